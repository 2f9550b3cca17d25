"""Textures that cover the whole canvas: each a pattern over two coordinates, painted in two colours."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from query.demo.palette import RGB, contrasting
from query.demo.pen import Pen

Field = NDArray[np.float32]
"""One number for each pixel of the canvas, [size, size]."""

Level = Any
"""What a pattern returns: an array [size, size] of numbers from 0 to 1 or of truth values."""

Pattern = Callable[[Field, Field, np.random.Generator], Level]
"""How much of the second colour each pixel has, from 0 to 1 (or False and True), given u and v in units of a period."""


def _stripes(u: Field, v: Field, rng: np.random.Generator) -> Level:
    return (v % 1) < rng.uniform(0.35, 0.65)


def _dots(u: Field, v: Field, rng: np.random.Generator) -> Level:
    shifted = u + 0.5 * (np.floor(v) % 2)
    return (shifted % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < rng.uniform(0.24, 0.36) ** 2


def _checkerboard(u: Field, v: Field, rng: np.random.Generator) -> Level:
    return (np.floor(1.5 * u) + np.floor(1.5 * v)) % 2 == 0


def _bricks(u: Field, v: Field, rng: np.random.Generator) -> Level:
    row = np.floor(1.5 * v)
    column = 0.7 * u + 0.5 * (row % 2)
    tone = np.sin(12.9 * np.floor(column) + 78.2 * row) * 43758.5
    mortar = ((1.5 * v) % 1 < 0.2) | (column % 1 < 0.1)
    return np.where(mortar, 1.0, 0.3 * (tone % 1))


def _waves(u: Field, v: Field, rng: np.random.Generator) -> Level:
    return (v + rng.uniform(0.3, 0.45) * np.sin(2 * np.pi * u / rng.uniform(1.6, 2.4))) % 1 < 0.5


def _grid(u: Field, v: Field, rng: np.random.Generator) -> Level:
    line = rng.uniform(0.14, 0.22)
    return (u % 1 < line) | (v % 1 < line)


def _noise(u: Field, v: Field, rng: np.random.Generator) -> Level:
    cells = int(rng.integers(20, 41))
    index = np.arange(u.shape[0]) * cells // u.shape[0]
    return rng.random((cells, cells), dtype=np.float32)[np.ix_(index, index)]


def _zigzag(u: Field, v: Field, rng: np.random.Generator) -> Level:
    return (v + rng.uniform(0.8, 1.1) * np.abs(u / 1.3 % 1 - 0.5) * 2) % 1 < 0.5


def _honeycomb(u: Field, v: Field, rng: np.random.Generator) -> Level:
    high = np.float32(np.sqrt(3))
    first = _hexagon_distance(u % 1 - 0.5, v % high - high / 2)
    second = _hexagon_distance((u - 0.5) % 1 - 0.5, (v - high / 2) % high - high / 2)
    return np.minimum(first, second) > rng.uniform(0.38, 0.42)


def _hexagon_distance(x: Field, y: Field) -> Field:
    across: Field = np.abs(x)
    return np.maximum(across, 0.5 * across + np.float32(0.866) * np.abs(y))


def _plaid(u: Field, v: Field, rng: np.random.Generator) -> Level:
    broad = rng.uniform(0.4, 0.55)
    level = 0.36 * ((0.7 * u) % 1 < broad) + 0.36 * ((0.7 * v) % 1 < broad)
    thin = ((0.7 * u + 0.3) % 1 < 0.1) | ((0.7 * v + 0.3) % 1 < 0.1)
    return np.where(thin, 1.0, level)


def _wood(u: Field, v: Field, rng: np.random.Generator) -> Level:
    bend = 0.5 * np.sin(0.5 * u + rng.uniform(0, 6)) + 0.25 * np.sin(1.1 * u + 0.9 * v)
    knot_u, knot_v = rng.uniform(-2, 2, size=2)
    knot = 1.6 * np.exp(-((u - knot_u) ** 2) / 3 - (v - knot_v) ** 2 / 0.8)
    return 0.5 + 0.5 * np.sin(2 * np.pi * 1.4 * (v + bend + knot))


def _scales(u: Field, v: Field, rng: np.random.Generator) -> Level:
    level: Level = np.zeros_like(u)
    for back in (1, 0):
        row = np.floor(2 * v) - back
        across = (u + 0.5 * (row % 2)) % 1 - 0.5
        distance = np.sqrt(across**2 + ((2 * v - row) / 2) ** 2)
        level = np.where(distance < 0.56, np.where(distance > 0.43, 1.0, 0.45 * distance), level)
    return level


TEXTURES: dict[str, tuple[Pattern | None, float]] = {
    "stripes": (_stripes, 180),
    "polka dots": (_dots, 180),
    "checkerboard": (_checkerboard, 45),
    "brick wall": (_bricks, 12),
    "waves": (_waves, 25),
    "grid": (_grid, 45),
    "noise": (_noise, 0),
    "zigzag": (_zigzag, 40),
    "honeycomb": (_honeycomb, 180),
    "plaid": (_plaid, 20),
    "wood grain": (_wood, 20),
    "fish scales": (_scales, 15),
    "confetti": (None, 0),
}
"""The pattern of each texture and by how many degrees it may be turned either way; confetti is strewn instead."""


def _confetti(canvas: Image.Image, rng: np.random.Generator, ground: RGB) -> None:
    size = canvas.width
    for _ in range(int(rng.integers(28, 46))):
        x, y, angle, length = rng.uniform((0, 0, 0, 0.05), (size, size, 180, 0.09))
        pen = Pen(canvas, rng, ground, (x, y), length * size, angle)
        pen.box(-1, -0.5, 1, 0.5, pen.pick("red", "orange", "yellow", "green", "blue", "purple", "pink", minimum=120))


def _colours(name: str, rng: np.random.Generator) -> tuple[str, RGB, RGB]:
    grounds: tuple[str, ...] = ()
    if name == "wood grain":
        grounds = ("brown", "beige", "orange")
    elif name == "brick wall" and rng.random() < 0.5:
        grounds = ("red", "brown", "orange")
    ground_name, ground = contrasting(rng, [], grounds) if grounds else contrasting(rng, [])
    if name == "wood grain":
        dark = tuple(round(c * rng.uniform(0.5, 0.7)) for c in ground)
        return ground_name, ground, (dark[0], dark[1], dark[2])
    return ground_name, ground, contrasting(rng, [ground], minimum=190)[1]


def draw_texture(canvas: Image.Image, name: str, rng: np.random.Generator) -> tuple[str, RGB]:
    """Covers a canvas with a texture.

    Args:
        canvas: The square RGB image to cover.
        name: One of `TEXTURES`.
        rng: Source of randomness.

    Returns:
        The first colour's name and shade.
    """
    pattern, turn = TEXTURES[name]
    size = canvas.width
    ground_name, ground, colour = _colours(name, rng)
    if pattern is None:
        canvas.paste(ground, (0, 0, size, size))
        _confetti(canvas, rng, ground)
        return ground_name, ground
    angle = np.float32(np.radians(rng.uniform(-turn, turn)))
    periods = np.float32(rng.uniform(3.0, 5.0))
    line = (np.arange(size, dtype=np.float32) / size - np.float32(0.5)) * periods
    u0, v0 = rng.uniform(0, 7, size=2).astype(np.float32)
    u = np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None] + u0
    v = -np.sin(angle) * line[None, :] + np.cos(angle) * line[:, None] + v0
    level = np.asarray(pattern(u, v, rng), dtype=np.float32)[..., None]
    low, high = np.asarray(ground, dtype=np.float32), np.asarray(colour, dtype=np.float32)
    canvas.paste(Image.fromarray((low + level * (high - low)).astype(np.uint8)))
    return ground_name, ground
