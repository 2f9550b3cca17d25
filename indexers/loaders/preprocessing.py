"""Splitting a model's own preprocessing into a part that gives bytes and an affine part, and proving that it is so."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image

from engine.errors import Reason
from indexers.loaders.base import Preprocessing
from indexers.loaders.declined import Declined, stage

MAX_SIDE = 4096
"""Longest side, in pixels, that an image may have on its way through a model's preprocessing."""

TOLERANCE = 1e-5
"""Largest difference from the library's own preprocessing, relative to its largest value where that exceeds one."""

Transform = Callable[[Image.Image], torch.Tensor]


def key_of(parts: Mapping[str, object]) -> str:
    """Name the bytes part of a preprocessing by everything that determines its result.

    Args:
        parts: Library, its version, sizes, interpolation ...; anything that JSON can hold.

    Returns:
        16 hex digits. The versions of Pillow and torchvision are part of it, because both have changed how they resize.
    """
    versions = {"pillow": PIL.__version__, "torchvision": torchvision.__version__}
    canonical = json.dumps({**versions, **parts}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check_sides(sides: Mapping[str, float]) -> None:
    """Refuse a preprocessing that would make huge images, before it does.

    Args:
        sides: What is asked for, in pixels, by the name of the setting.

    Raises:
        Declined: If a side is not between 1 and `MAX_SIDE`.
    """
    for name, side in sides.items():
        if not math.isfinite(side) or not 1 <= side <= MAX_SIDE:
            raise Declined(Reason.BAD_PREPROCESSING, f"{name} asks for images of {side:g} pixels a side")


def split(full: Transform, to_pixels: Transform, key: str) -> Preprocessing:
    """Measure the affine part of a preprocessing and check that the two parts together are the whole.

    The library's configuration is not trusted for it: a black and a white image give the two numbers per channel
    whatever the steps in between are called, and noise of two shapes shows whether it was true.

    Args:
        full: The library's own preprocessing, RGB image -> ``[3, height, width]``.
        to_pixels: The part before scaling, RGB image -> uint8 of the same shape.
        key: Names what `to_pixels` does.

    Returns:
        The preprocessing, proven on two synthetic images.

    Raises:
        Declined: If it cannot be split so, or its output size depends on the image.
    """
    with stage(Reason.BAD_PREPROCESSING):
        low, high = (_centre(full(_flat(level))) for level in (0, 255))
        span = high - low
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (span != 0).all()):
            raise Declined(Reason.BAD_PREPROCESSING, "its scaling gives no finite numbers")
        std = 1.0 / span
        mean = -low * std

        def rgb_to_pixels(image: Image.Image) -> torch.Tensor:
            return to_pixels(image if image.mode == "RGB" else image.convert("RGB"))

        images = _noise()
        whole = [full(image) for image in images]
        pixels = [rgb_to_pixels(image) for image in images]
        if len({answer.shape for answer in (*whole, *pixels)}) != 1:
            raise Declined(Reason.BAD_PREPROCESSING, "the size of its output depends on the image")
        if any(answer.dtype != torch.uint8 for answer in pixels):
            raise Declined(Reason.BAD_PREPROCESSING, "it does not resize bytes")
        height, width = (int(side) for side in pixels[0].shape[-2:])
        check_sides({"its output": max(height, width)})
        preprocessing = Preprocessing(
            key=key,
            size=(height, width),
            to_pixels=rgb_to_pixels,
            mean=(float(mean[0]), float(mean[1]), float(mean[2])),
            std=(float(std[0]), float(std[1]), float(std[2])),
        )
        for part, expected in zip(pixels, whole, strict=True):
            if difference(preprocessing.normalise(part), expected) > TOLERANCE:
                raise Declined(Reason.BAD_PREPROCESSING, "it is more than a resize, a crop and a scaling per channel")
    return preprocessing


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference between two results, relative to the largest expected value where that exceeds one.

    Args:
        found: Pixel values, any shape.
        expected: Pixel values, the same shape.
    """
    expected = expected.to(torch.float64)
    return float((found.to(torch.float64) - expected).abs().max() / max(1.0, float(expected.abs().max())))


def _flat(level: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (level, level, level))


def _centre(values: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if values.ndim != 3 or values.shape[0] != 3:
        raise Declined(Reason.BAD_PREPROCESSING, f"it makes an array of shape {list(values.shape)} of an RGB image")
    # The centre: the border may be padding.
    return values[:, values.shape[1] // 2, values.shape[2] // 2].to(torch.float64).numpy()


@functools.cache
def _noise() -> tuple[Image.Image, Image.Image]:
    # Wide and smaller than most inputs, tall and larger: so that both enlarging and shrinking is seen.
    generator = np.random.default_rng(0)
    wide, tall = (generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((61, 97), (500, 333)))
    return Image.fromarray(wide), Image.fromarray(tall)
