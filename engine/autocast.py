"""Half precision for the networks that bear it: each is tried on a few images, and the others run in float32.

What autocast does to descriptors depends on the network: on one it is lost in rounding, another overflows float16. So
nothing is assumed. Some images, spread over all of them, are run both ways, and autocast is kept only where no output's
descriptor moves by more than `BOUND`.

With z and z' the standardised responses of an output over n images, before and after, the measure is
``sqrt(mean_i (z'_i - z_i)^2)``, the largest of all outputs. It bounds what search sees: a concept's descriptor z_c has
mean 0 and standard deviation 1, so that the correlation ``rho = (1/n) sum_i z_i z_c,i`` of the output with *any*
concept moves by no more than the measure (Cauchy and Schwarz).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from engine.descriptors import are_probabilities, centred_log_probabilities
from engine.placement import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND = 0.02
"""Largest deviation of an output's standardised responses, root mean square, at which half precision is kept."""

CHECKED = 32
"""Images on which a network is tried."""

_CONSTANT = 1e-6  # as of the descriptors: such outputs are left out of an index, however they were computed


def casting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context in which a network runs in half precision, or strictly in float32.

    Args:
        device: Where it runs.
        dtype: Half precision, or None. On CUDA float32 then means float32: TF32, which rounds the factors of
            convolutions to ten bits as float16 does, is off.
    """
    if dtype is not None:
        return torch.autocast(device.type, dtype=dtype)
    return _without_tf32() if device.type == "cuda" else nullcontext()


def bears(reference: torch.Tensor, otherwise: Callable[[], torch.Tensor], bound: float = BOUND) -> tuple[bool, float]:
    """Whether a network bears to be run otherwise: whether its descriptors stay where they are.

    Args:
        reference: Its answers in float32, ``[b, outputs]``, on the host.
        otherwise: Its answers to the same images, run otherwise. An error other than a want of memory is a no.
        bound: Largest deviation that is allowed.

    Returns:
        Whether it does, and the deviation; infinite where it does not answer at all.

    Raises:
        MemoryError: Memory ran out; also ``RuntimeError`` for which `engine.placement.out_of_memory` holds.
    """
    try:
        answers = otherwise()
    except Exception as error:  # torch, its compilers and drivers raise what they like
        if out_of_memory(error):
            raise
        return False, float("inf")
    if reference.shape != answers.shape or reference.ndim != 2:
        return False, float("inf")
    found = deviation(reference.numpy(), answers.numpy())
    return found <= bound, found


def deviation(reference: npt.NDArray[np.floating], answers: npt.NDArray[np.floating]) -> float:
    """How far the descriptors of other answers lie from those of a reference, at most.

    Args:
        reference: ``[b, outputs]``, logits or probabilities.
        answers: The same outputs and images, computed otherwise.

    Returns:
        The largest root mean square difference of an output's standardised responses, >= 0. Outputs that have no
        descriptor in the reference (NaN, infinite or constant) do not count; one that loses its own is infinitely far.
    """
    worst = deviations(reference, answers)
    return float(worst.max()) if len(worst) else 0.0


def deviations(reference: npt.NDArray[np.floating], answers: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The same output by output, float64; without those that have no descriptor in the reference."""
    if are_probabilities(reference):
        reference = centred_log_probabilities(reference)
        answers = centred_log_probabilities(answers)
    before, good = _standardised(reference)
    after, still = _standardised(answers[:, good])
    found = np.sqrt(np.mean((after - before[:, good]) ** 2, axis=0))
    return np.where(still, found, np.inf)


def _standardised(answers: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Standardised columns, and which of them can be."""
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(answers).all(axis=0))
    values = np.where(finite, answers, 0.0).astype(np.float64)
    std = values.std(axis=0)
    good = finite & (std > _CONSTANT * np.abs(values).max(axis=0))
    return (values - values.mean(axis=0)) / np.where(good, std, 1.0), good


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
