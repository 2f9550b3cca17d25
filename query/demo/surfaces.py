"""What lies behind a drawing, and the large coloured surfaces that stand for the colours themselves."""

import numpy as np
from PIL import Image

from query.demo.palette import COLOURS, RGB, contrasting, lighter, shade
from query.demo.pen import Pen, arc


def _blob(pen: Pen, fill: RGB, rough: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    radius = np.ones_like(angles)
    for wave in (2, 3, 5, 7):
        radius += rough / wave * np.sin(wave * angles + pen.vary(0, 6.3)) * pen.vary(0.5, 1.5)
    pen.polygon(zip((radius * np.cos(angles)).tolist(), (radius * np.sin(angles)).tolist(), strict=True), fill)


def _fade(canvas: Image.Image, first: RGB, second: RGB, quarter_turns: int) -> None:
    ramp = Image.linear_gradient("L").resize(canvas.size).rotate(90 * quarter_turns)
    canvas.paste(first, (0, 0, *canvas.size))
    canvas.paste(second, (0, 0, *canvas.size), ramp)


def draw_ground(canvas: Image.Image, rng: np.random.Generator) -> tuple[str, RGB]:
    """Paints something quiet for another drawing to lie on: flat, fading, blotched, or faintly ruled.

    Args:
        canvas: The RGB image to paint over.
        rng: Source of randomness.

    Returns:
        The ground's colour name and its main shade.
    """
    name = COLOURS[int(rng.integers(len(COLOURS)))]
    colour = shade(name, rng)
    near = lighter(colour, float(rng.uniform(0.06, 0.16)) * (1 if sum(colour) < 540 else -1))
    kind = int(rng.choice(4, p=(0.35, 0.25, 0.2, 0.2)))
    if kind == 1:
        _fade(canvas, colour, near, int(rng.integers(4)))
        return name, colour
    canvas.paste(colour, (0, 0, *canvas.size))
    size = canvas.width
    if kind == 2:
        for x, y, radius in rng.uniform((0, 0, 0.1), (1, 1, 0.3), size=(4, 3)):
            _blob(Pen(canvas, rng, colour, (x * size, y * size), radius * size), near, 0.3)
    elif kind == 3:
        pen = Pen(canvas, rng, colour, angle=rng.uniform(0, 180))
        for y in np.arange(-1.4, 1.4, rng.uniform(0.3, 0.6)):
            pen.box(-1.5, y, 1.5, y + 0.07, near)
    return name, colour


def _strew(canvas: Image.Image, name: str, rng: np.random.Generator) -> None:
    """Covers most of the canvas with splashes of one colour over another."""
    size = canvas.width
    _, ground = contrasting(rng, [shade(name, rng)], minimum=160)
    canvas.paste(ground, (0, 0, *canvas.size))
    x, y, radius = rng.uniform((0.42, 0.42, 0.42), (0.58, 0.58, 0.52))
    _blob(Pen(canvas, rng, ground, (x * size, y * size), radius * size), shade(name, rng), 0.35)
    for x, y, radius in rng.uniform((0, 0, 0.03), (1, 1, 0.14), size=(int(rng.integers(4, 9)), 3)):
        _blob(Pen(canvas, rng, ground, (x * size, y * size), radius * size), shade(name, rng), 0.2)


def _brush(canvas: Image.Image, name: str, rng: np.random.Generator) -> None:
    """Covers most of the canvas with broad strokes of one colour over another."""
    _, ground = contrasting(rng, [shade(name, rng)], minimum=160)
    canvas.paste(ground, (0, 0, *canvas.size))
    pen = Pen(canvas, rng, ground, angle=rng.uniform(0, 180))
    for y in np.arange(-0.8, 0.9, 0.3):
        bow = arc(0, y, pen.vary(0.7, 1.0), pen.vary(-0.2, 0.2), 180, 360, 12)
        pen.stroke(bow, pen.vary(0.32, 0.42), shade(name, rng))


def _patch(canvas: Image.Image, name: str, rng: np.random.Generator) -> None:
    """Covers the whole canvas with pieces in shades of one colour."""
    canvas.paste(shade(name, rng), (0, 0, *canvas.size))
    size = canvas.width
    for x, y, radius, angle in rng.uniform((0, 0, 0.12, 0), (1, 1, 0.4, 90), size=(int(rng.integers(0, 9)), 4)):
        Pen(canvas, rng, (0, 0, 0), (x * size, y * size), radius * size, angle).box(-1, -1, 1, 1, shade(name, rng))


def draw_colour(canvas: Image.Image, name: str, rng: np.random.Generator) -> RGB:
    """Fills a canvas mostly with one colour: flat, fading, in pieces, in splashes, or in broad strokes.

    Args:
        canvas: The RGB image to paint over.
        name: The colour's name.
        rng: Source of randomness.

    Returns:
        A shade of the colour.
    """
    kind = int(rng.integers(4))
    if kind == 0:
        _fade(canvas, shade(name, rng), shade(name, rng), int(rng.integers(4)))
    elif kind == 1:
        _patch(canvas, name, rng)
    elif kind == 2:
        _strew(canvas, name, rng)
    else:
        _brush(canvas, name, rng)
    return shade(name, rng)
