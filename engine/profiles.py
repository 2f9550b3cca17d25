"""Conductance profiles as arrays: what recommendation and its evaluation compute with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.errors import InputError

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageProfiles:
    """The conductance profiles of one model, image by image.

    Attributes:
        model: As it was named.
        blocks: d names, from the input to the answer.
        images: Per task, mean |conductance| of each block for each image of its sample, float64 ``[images, d]``.
        n_steps: Steps of the path they were computed with.
    """

    model: str
    blocks: tuple[str, ...]
    images: Mapping[str, Float64Array] = field(repr=False)
    n_steps: int = 50

    def __post_init__(self) -> None:
        for task, rows in self.images.items():
            if rows.ndim != 2 or rows.shape[1] != len(self.blocks) or not len(rows):
                raise InputError(
                    f"the profiles of {self.model} on {task} have the shape {rows.shape}: "
                    f"one row an image and {len(self.blocks)} blocks are needed"
                )

    def mean(self, task: str) -> Float64Array:
        """The profile of a task: the mean over all its images, float64 ``[d]``."""
        return np.asarray(self.images[task].mean(axis=0), np.float64)
