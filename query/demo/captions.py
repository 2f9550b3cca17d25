"""What is said about a drawing: captions to learn from, and phrases that serve as a background for calibration."""

from dataclasses import dataclass

import numpy as np

from query.demo.letters import LETTERS
from query.demo.palette import COLOURS
from query.demo.scenes import SCENES
from query.demo.shapes import SHAPES
from query.demo.textures import TEXTURES
from query.demo.world import CONCEPTS, Concept, Facts

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "{}",
    "a {} in the scene",
    "an image of {}",
    "a close-up photo of a {}",
)
"""The forms that captions take, which are also the prompts that a search averages."""


@dataclass(frozen=True)
class Caption:
    """A caption and which facts of a drawing it names.

    Attributes:
        text: The caption.
        colour: Whether it names the colour of the shape or letter.
        ground: Whether it names the colour of the ground.
        beside: Whether it names the small shape in the corner.
    """

    text: str
    colour: bool = False
    ground: bool = False
    beside: bool = False


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def plain_caption(concept: Concept, rng: np.random.Generator) -> Caption:
    """Names a concept and nothing else.

    Args:
        concept: What the drawing shows.
        rng: Source of randomness; the name itself is chosen half of the time.

    Returns:
        The caption.
    """
    noun = concept.name if rng.random() < 0.5 else _choose(concept.captions, rng)
    return Caption(_choose(TEMPLATES, rng).format(noun))


def full_caption(facts: Facts, rng: np.random.Generator) -> Caption:
    """Names a concept and some of the other facts of its drawing.

    Args:
        facts: What is known about the drawing.
        rng: Source of randomness.

    Returns:
        The caption.
    """
    noun = _choose(facts.concept.captions, rng)
    colour, ground, beside = (
        fact is not None and bool(rng.random() < share)
        for fact, share in ((facts.colour, 0.7), (facts.ground, 0.4), (facts.beside, 0.6))
    )
    if colour:
        noun = f"{facts.colour} {noun}"
    if ground:
        noun = f"{noun} on a {facts.ground} ground"
    if beside:
        noun = f"{noun} beside a small {facts.beside}"
    return Caption(_choose(TEMPLATES, rng).format(noun), colour, ground, beside)


_SIZES = ("small", "large", "tiny", "wide")
_MATERIALS = ("striped", "dotted", "wavy", "checkered", "grainy", "scaly", "shining", "painted")
_WORDS = (
    "drawing",
    "picture",
    "pattern",
    "surface",
    "paint",
    "paper",
    "cloth",
    "ground",
    "corner",
    "shape",
    "capital letter",
    "colour",
    "disc",
    "pointing hand",
    "hole",
    "line",
    "flash",
    "wall",
    "lines",
    "board",
    "skin",
    "boat",
    "water",
    "moon",
    "light",
    "snow",
    "scene",
    "photo",
    "image",
    "grey surface",
    "beige paper",
    "turquoise paint",
)


def _phrase(concept: Concept, form: int, rng: np.random.Generator) -> str:
    """Puts a concept into a phrase that says more than its name."""
    name, colour, size = concept.name, _choose(COLOURS, rng), _choose(_SIZES, rng)
    shape, scene = _choose(tuple(SHAPES), rng), _choose(tuple(SCENES), rng)
    texture, material = _choose(tuple(TEXTURES), rng), _choose(_MATERIALS, rng)
    forms = {
        "shape": (
            f"{size} {colour} {name}",
            f"{colour} {name} on a {texture} ground",
            f"two {material} {name} shapes beside a {scene}",
            f"{name} inside a {size} {shape}",
            f"{material} {name} over a {colour} {scene}",
        ),
        "colour": (
            f"{name} and {colour} paint on paper",
            f"{name} {shape} on a {colour} ground",
            f"{size} {name} {scene}",
            f"{texture} in {name} and {colour}",
            f"{name} letter {_choose(LETTERS, rng)} beside a {shape}",
        ),
        "texture": (
            f"{colour} {name}",
            f"{name} behind a {size} {shape}",
            f"{scene} in front of {name}",
            f"{colour} {name} beside {texture}",
            f"{size} {name} on {colour} paper",
        ),
        "letter": (
            f"{colour} {name}",
            f"{size} {name} beside a {shape}",
            f"{name} over a {scene}",
            f"{colour} {name} in front of {texture}",
            f"{name} next to the letter {_choose(LETTERS, rng)}",
        ),
        "scene": (
            f"{size} {colour} {name}",
            f"{name} beside a {colour} {shape}",
            f"{name} and {scene}",
            f"{material} {name} in front of {texture}",
            f"two {name} pictures on {colour} paper",
        ),
    }
    return forms[concept.kind][form]


def background_phrases() -> tuple[str, ...]:
    """Lists phrases about the world, none of which is the name of a concept.

    They are what a concept is compared with when outputs are calibrated, so every concept has its share of them.

    Returns:
        At least 300 distinct phrases, always the same ones in the same order.
    """
    rng = np.random.default_rng(2024)
    phrases = [_phrase(concept, form, rng) for form in range(5) for concept in CONCEPTS]
    names = {concept.name.lower() for concept in CONCEPTS}
    return tuple(phrase for phrase in dict.fromkeys([*phrases, *_WORDS]) if phrase.lower() not in names)
