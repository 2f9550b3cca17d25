"""The colours of the drawn world: named ranges of hue, saturation and value, and pairs that can be told apart."""

import colorsys
from collections.abc import Sequence

import numpy as np

RGB = tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""

_Range = tuple[float, float]

_RANGES: dict[str, tuple[_Range, _Range, _Range]] = {
    # hue in degrees, saturation, value
    "red": ((-8, 7), (0.80, 1.0), (0.70, 0.98)),
    "orange": ((22, 34), (0.85, 1.0), (0.90, 1.0)),
    "yellow": ((51, 60), (0.70, 1.0), (0.90, 1.0)),
    "green": ((95, 140), (0.55, 1.0), (0.40, 0.80)),
    "blue": ((212, 238), (0.65, 1.0), (0.55, 1.0)),
    "purple": ((270, 290), (0.50, 0.9), (0.42, 0.72)),
    "pink": ((325, 345), (0.28, 0.55), (0.95, 1.0)),
    "brown": ((18, 30), (0.55, 0.8), (0.28, 0.50)),
    "black": ((0, 360), (0.00, 0.2), (0.00, 0.12)),
    "white": ((0, 360), (0.00, 0.05), (0.94, 1.0)),
    "grey": ((0, 360), (0.00, 0.08), (0.40, 0.68)),
    "beige": ((36, 46), (0.18, 0.32), (0.82, 0.94)),
    "turquoise": ((172, 186), (0.50, 0.9), (0.60, 0.85)),
}

COLOURS: tuple[str, ...] = tuple(_RANGES)
"""Every colour name the world paints with."""

CONCEPT_COLOURS: tuple[str, ...] = COLOURS[:10]
"""The colour names that are concepts of their own."""


def shade(name: str, rng: np.random.Generator) -> RGB:
    """Draws one shade of a named colour.

    Args:
        name: One of `COLOURS`.
        rng: Source of randomness.

    Returns:
        The shade.
    """
    hue, saturation, value = (rng.uniform(*bounds) for bounds in _RANGES[name])
    red, green, blue = colorsys.hsv_to_rgb((hue / 360.0) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def difference(first: RGB, second: RGB) -> float:
    """Measures how far apart two colours look, by the usual "redmean" approximation.

    Args:
        first: One colour.
        second: The other.

    Returns:
        0 for the same colour, about 765 between black and white.
    """
    red_mean = (first[0] + second[0]) / 2
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    weights = (2 + red_mean / 256, 4.0, 2 + (255 - red_mean) / 256)
    return float((weights[0] * red**2 + weights[1] * green**2 + weights[2] * blue**2) ** 0.5)


def contrasting(
    rng: np.random.Generator, against: Sequence[RGB], names: Sequence[str] = COLOURS, minimum: float = 220.0
) -> tuple[str, RGB]:
    """Picks a named shade that stands out from other colours.

    Args:
        rng: Source of randomness.
        against: The colours to stand out from.
        names: The colour names to choose from.
        minimum: The `difference` that is enough. If a dozen tries do not reach it, the best of them is taken.

    Returns:
        The colour's name and the shade.
    """
    best: tuple[float, str, RGB] | None = None
    for _ in range(12):
        name = names[int(rng.integers(len(names)))]
        candidate = shade(name, rng)
        gap = min((difference(candidate, other) for other in against), default=minimum)
        if best is None or gap > best[0]:
            best = (gap, name, candidate)
        if gap >= minimum:
            break
    if best is None:  # pragma: no cover - the loop always runs
        raise AssertionError
    return best[1], best[2]


def lighter(colour: RGB, amount: float) -> RGB:
    """Mixes a colour with white, or with black for a negative amount.

    Args:
        colour: The colour.
        amount: From -1 (black) over 0 (unchanged) to 1 (white).

    Returns:
        The mixed colour.
    """
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(c + (goal - c) * abs(amount)) for c in colour)
    return red, green, blue
