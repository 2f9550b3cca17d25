"""The drawn world: some sixty concepts and how to draw each of them, differently every time.

Every drawing follows from the generator it is given, so a seed names a world. Drawing needs Pillow and numpy only.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from query.demo.letters import LETTERS, draw_letter
from query.demo.palette import CONCEPT_COLOURS, RGB, contrasting
from query.demo.pen import Pen
from query.demo.scenes import SCENES, draw_scene
from query.demo.shapes import SHAPES, draw_shape
from query.demo.surfaces import draw_colour, draw_ground
from query.demo.textures import TEXTURES, draw_texture

OVERSAMPLING = 2
"""Drawings are made this many times larger and reduced, which smooths their edges."""


@dataclass(frozen=True)
class Concept:
    """One thing that the world can draw.

    Attributes:
        name: What a person would type, such as "star" or "letter B".
        kind: "shape", "colour", "texture", "letter" or "scene".
        captions: Phrases that fit after "a photo of a", the name first.
    """

    name: str
    kind: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What is known about a drawing.

    Attributes:
        concept: What it shows.
        colour: The colour name of the shape or letter shown, if it has one colour.
        ground: The colour name of what lies behind, if anything does.
        beside: The name of a small shape in a corner, if there is one.
    """

    concept: Concept
    colour: str | None = None
    ground: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Sketch:
    """A drawing and what is known about it.

    Attributes:
        image: The drawing, RGB.
        facts: What it shows.
    """

    image: Image.Image
    facts: Facts


_SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("round disc",),
    "star": ("five-pointed star",),
    "ring": ("round ring with a hole",),
    "arrow": ("pointing arrow",),
    "crescent": ("crescent moon",),
    "lightning bolt": ("flash of lightning",),
    "half circle": ("semicircle",),
    "gear": ("cogwheel",),
    "stripes": ("striped pattern",),
    "polka dots": ("dotted pattern",),
    "checkerboard": ("checkered pattern",),
    "brick wall": ("wall of bricks",),
    "waves": ("wavy pattern",),
    "grid": ("grid of lines",),
    "noise": ("grainy noise",),
    "zigzag": ("zigzag pattern",),
    "plaid": ("tartan cloth",),
    "wood grain": ("wooden board",),
    "fish scales": ("scaly skin",),
    "confetti": ("colourful paper confetti",),
    "sailing boat": ("boat on water", "sailboat"),
    "sun": ("shining sun",),
    "face": ("smiley face",),
    "car": ("small car",),
    "mountain": ("snowy mountain",),
    "traffic light": ("stop light",),
}


def _concepts() -> tuple[Concept, ...]:
    names = [("shape", name) for name in SHAPES]
    names += [("colour", name) for name in CONCEPT_COLOURS]
    names += [("texture", name) for name in TEXTURES]
    names += [("letter", f"letter {letter}") for letter in LETTERS]
    names += [("scene", name) for name in SCENES]
    concepts = []
    for kind, name in names:
        more = _SYNONYMS.get(name, ())
        if kind == "colour":
            more = (f"{name} surface", f"{name} paint")
        elif kind == "letter":
            more = (f"capital {name}",)
        concepts.append(Concept(name, kind, (name, *more)))
    return tuple(concepts)


CONCEPTS: tuple[Concept, ...] = _concepts()
"""Every concept of the world, always in the same order."""

_QUIET_SPOTS = ((0.12, 0.12), (0.88, 0.12), (0.12, 0.88), (0.88, 0.88))


def _place(canvas: Image.Image, rng: np.random.Generator, ground: RGB, turn: float, mirrored: bool = False) -> Pen:
    """Puts a frame somewhere on the canvas, large enough to be the subject."""
    size = canvas.width
    radius = rng.uniform(0.33, 0.46)
    room = 0.5 - radius
    x, y = 0.5 + rng.uniform(-room, room, size=2)
    return Pen(
        canvas,
        rng,
        ground,
        (float(x) * size, float(y) * size),
        float(radius) * size,
        float(rng.uniform(-turn, turn)),
        float(rng.uniform(0.9, 1.12)),
        mirrored,
    )


def _add_beside(canvas: Image.Image, rng: np.random.Generator, ground: RGB, shown: str) -> str:
    """Puts a small shape into a corner."""
    names = [name for name in SHAPES if name != shown]
    name = names[int(rng.integers(len(names)))]
    x, y = _QUIET_SPOTS[int(rng.integers(len(_QUIET_SPOTS)))]
    size = canvas.width
    pen = Pen(canvas, rng, ground, (x * size, y * size), float(rng.uniform(0.06, 0.09)) * size)
    draw_shape(pen, name, contrasting(rng, [ground], minimum=160)[1])
    return name


def _add_grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Makes an image a little brighter or darker and adds a little noise."""
    pixels = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    level = np.float32(rng.uniform(0.94, 1.04))
    pixels = pixels * level + noise * np.float32(rng.uniform(0, 5))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def sketch(concept: Concept, rng: np.random.Generator, size: int) -> Sketch:
    """Draws a concept and tells what else came into the picture.

    Args:
        concept: What to draw.
        rng: Source of every random choice.
        size: Side of the image in pixels.

    Returns:
        The drawing.
    """
    canvas = Image.new("RGB", (OVERSAMPLING * size, OVERSAMPLING * size))
    name = concept.name
    colour: str | None = None
    ground: str | None = None
    beside: str | None = None
    if concept.kind == "colour":
        shade = draw_colour(canvas, name, rng)
    elif concept.kind == "texture":
        _, shade = draw_texture(canvas, name, rng)
    else:
        ground, shade = draw_ground(canvas, rng)
    if rng.random() < (0.3 if ground else 0.1):
        beside = _add_beside(canvas, rng, shade, name)
    if concept.kind == "scene":
        draw_scene(_place(canvas, rng, shade, SCENES[name][1], bool(rng.random() < 0.5)), name)
    elif concept.kind in ("shape", "letter"):
        colour, fill = contrasting(rng, [shade])
        if concept.kind == "shape":
            draw_shape(_place(canvas, rng, shade, SHAPES[name][1]), name, fill)
        else:
            draw_letter(_place(canvas, rng, shade, 0), name.removeprefix("letter "), fill)
    return Sketch(_add_grain(canvas.reduce(OVERSAMPLING), rng), Facts(concept, colour, ground, beside))


def draw(concept: Concept, rng: np.random.Generator, size: int) -> Image.Image:
    """Draws a concept.

    Args:
        concept: What to draw.
        rng: Source of every random choice: the same state draws the same image.
        size: Side of the image in pixels.

    Returns:
        The drawing, RGB.
    """
    return sketch(concept, rng, size).image
