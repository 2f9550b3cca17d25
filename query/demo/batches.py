"""The order in which a model sees its drawings."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from query.demo.gallery import MAX_SHIFT_PX


def shuffled_batches(
    n: int, size: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Goes through drawings in random order, again and again, until there were enough steps.

    Args:
        n: Number of drawings.
        size: Number of drawings in a batch.
        steps: Number of batches.
        rng: Source of randomness.

    Yields:
        The drawings' numbers, int64, [size], and by how many pixels to shift them.
    """
    size = min(size, n)
    order = rng.permutation(n)
    start = 0
    for _ in range(steps):
        if start + size > n:
            order, start = rng.permutation(n), 0
        down, right = rng.integers(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, size=2).tolist()
        yield torch.from_numpy(order[start : start + size]), (down, right)
        start += size
