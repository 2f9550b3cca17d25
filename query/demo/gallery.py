"""Drawings kept in memory as tensors, and the preprocessing that each model wants."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from query.demo.palette import COLOURS
from query.demo.shapes import SHAPES
from query.demo.world import CONCEPTS, Facts, sketch

UNKNOWN = -1
"""Stands for a fact that a drawing does not have."""

FACET_SIZES: tuple[int, ...] = (len(CONCEPTS), len(COLOURS), len(COLOURS), len(SHAPES))
"""How many values each fact can have: the concept, its colour, the ground's colour, the small shape beside it."""

_COLOUR_NUMBER = {name: i for i, name in enumerate(COLOURS)}
_SHAPE_NUMBER = {name: i for i, name in enumerate(SHAPES)}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        size_px: Side of the input in pixels.
        mean: Mean per channel, of values from 0 to 1.
        std: Standard deviation per channel.
        interpolation: "bilinear" or "bicubic".
        crop_fraction: The input's side over the side of the resized image that it is cut from.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0

    @property
    def edge_px(self) -> int:
        """Side of the resized image in pixels, before the crop."""
        return int(self.size_px / self.crop_fraction)

    def resized(self, images: Tensor) -> Tensor:
        """Resizes images, without the crop.

        Args:
            images: uint8, [n, 3, side, side].

        Returns:
            uint8, [n, 3, edge_px, edge_px].
        """
        if images.shape[-1] == self.edge_px:
            return images
        size = (self.edge_px, self.edge_px)
        parts = [
            functional.interpolate(part.float(), size=size, mode=self.interpolation, antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            for part in torch.split(images, 512)
        ]
        return torch.cat(parts)

    def inputs(self, resized: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Crops resized images and normalises them.

        Args:
            resized: What `resized` returned, or some rows of it.
            shift: By how many pixels the crop is moved down and to the right from the centre, at most
                `MAX_SHIFT_PX` either way; what lies outside repeats the image's border.

        Returns:
            float32, [n, 3, size_px, size_px], channels last.
        """
        mean = torch.tensor(self.mean).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std).view(1, 3, 1, 1) * 255
        pixels = resized.float().sub_(mean).div_(std)
        pad = MAX_SHIFT_PX if shift != (0, 0) else 0
        if pad:
            pixels = functional.pad(pixels, (pad,) * 4, mode="replicate")
        margin = pad + (self.edge_px - self.size_px) // 2
        top, left = margin + shift[0], margin + shift[1]
        pixels = pixels[:, :, top : top + self.size_px, left : left + self.size_px]
        return pixels.contiguous(memory_format=torch.channels_last)


MAX_SHIFT_PX = 3
"""The farthest a crop is moved while training."""


@dataclass(frozen=True)
class Gallery:
    """Drawings and the facts about them.

    Attributes:
        images: uint8, [n, 3, side, side].
        facets: int64, [n, 4]: per drawing the numbers of the concept, its colour, the ground's colour and the small
            shape, `UNKNOWN` where there is none.
        facts: The same by name.
    """

    images: Tensor
    facets: Tensor
    facts: tuple[Facts, ...]

    @property
    def concepts(self) -> Tensor:
        """The concepts' numbers, int64, [n]."""
        return self.facets[:, 0]


def _facets(facts: Facts, concept: int) -> tuple[int, int, int, int]:
    return (
        concept,
        _COLOUR_NUMBER.get(facts.colour or "", UNKNOWN),
        _COLOUR_NUMBER.get(facts.ground or "", UNKNOWN),
        _SHAPE_NUMBER.get(facts.beside or "", UNKNOWN),
    )


def draw_gallery(per_concept: int, size_px: int, seed: tuple[int, ...], advance: Callable[[], object]) -> Gallery:
    """Draws every concept a number of times.

    Args:
        per_concept: How often each concept is drawn.
        size_px: Side of the drawings in pixels.
        seed: Names the gallery.
        advance: Called after each drawing.

    Returns:
        The drawings, the concepts taking turns.
    """
    n = per_concept * len(CONCEPTS)
    images = np.empty((n, size_px, size_px, 3), dtype=np.uint8)
    facets = np.empty((n, 4), dtype=np.int64)
    facts = []
    for i in range(n):
        number = i % len(CONCEPTS)
        drawn = sketch(CONCEPTS[number], np.random.default_rng((*seed, i)), size_px)
        images[i] = np.asarray(drawn.image)
        facets[i] = _facets(drawn.facts, number)
        facts.append(drawn.facts)
        advance()
    return Gallery(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(facets), tuple(facts))
