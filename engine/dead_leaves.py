"""Dead leaves: images of overlapping shapes whose sizes follow a power law, with the statistics of natural images.

Lee, Mumford and Huang, "Occlusion models for natural images", 2001. Textured and with shapes other than discs, after
Baradad et al., "Learning to see by looking at noise", 2021. Needs no photographs, no licence and no network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 256
"""Width and height in pixels."""

_SHAPES = 300  # enough to cover the whole image at these radii
_SMALLEST, _LARGEST = 3.0, 110.0  # radii in pixels
_EXPONENT = 3.0  # p(radius) ~ radius^-3: the image looks alike at every scale


def draw_dead_leaves(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """One image.

    Args:
        rng: Decides everything.
        size: Width and height in pixels.

    Returns:
        An RGB image.
    """
    palette = rng.integers(0, 256, (rng.integers(3, 24), 3))
    image = Image.new("RGB", (size, size), tuple(int(v) for v in palette[0]))
    brush = ImageDraw.Draw(image)
    low, high = _SMALLEST ** (1 - _EXPONENT), _LARGEST ** (1 - _EXPONENT)
    radii = (low + rng.random(_SHAPES) * (high - low)) ** (1 / (1 - _EXPONENT)) * size / SIZE
    # Larger leaves fall first, so that the small ones stay visible; a third is shuffled, so that all kinds overlap.
    radii = np.sort(radii)[::-1].copy()
    mixed = rng.random(_SHAPES) < 0.33
    radii[mixed] = rng.permutation(radii[mixed])
    radii[: _SHAPES // 10] *= 4
    for radius in radii:
        centre = rng.random(2) * size
        colour = tuple(int(v) for v in np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 18, 3), 0, 255))
        kind = rng.integers(4)
        if kind == 0:
            brush.ellipse([*(centre - radius), *(centre + radius)], fill=colour)
        elif kind == 1:
            wide = radius * rng.uniform(0.3, 1)
            half = np.array([radius, wide])
            brush.ellipse([*(centre - half), *(centre + half)], fill=colour)
        else:
            corners = rng.integers(3, 8)
            angles = np.sort(rng.random(corners)) * 2 * np.pi
            points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            brush.polygon([(float(x), float(y)) for x, y in points], fill=colour)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.5))))
    pixels = np.asarray(image, dtype=np.float32)
    grain = rng.normal(0, rng.uniform(0, 16), pixels.shape)
    above, below = rng.uniform(0.7, 1.3, 2)
    light = np.linspace(above, below, size)[:, None, None]  # a slow change of light from top to bottom
    return Image.fromarray(np.clip(pixels * light + grain, 0, 255).astype(np.uint8))


def write_dead_leaves(
    folder: Path, count: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Writes numbered PNG files.

    Args:
        folder: Must exist.
        count: How many.
        seed: Image i depends on (seed, i) alone, so a longer set begins with the shorter one.
        progress: Called with (done, total).
    """
    paths = []
    for i in range(count):
        path = folder / f"{i:06d}.png"
        draw_dead_leaves(np.random.default_rng((seed, i))).save(path, compress_level=3)
        paths.append(path)
        if progress:
            progress(i + 1, count)
    return paths
