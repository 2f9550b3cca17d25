"""What every loader does around its library: keep it quiet, and look at what came out before anyone trusts it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from engine.errors import Reason
from indexers.loaders.declined import Declined, stage

_LIBRARIES = ("timm", "transformers", "huggingface_hub")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' reports, progress bars and advice off the terminal, and torch's random numbers untouched.

    What they say is either raised as an error by us (weights that are missing) or of no use to a reader. Everything is
    put back at the end; callers hold a lock, because all of it belongs to the process. The library that is about to be
    used must have been imported before: transformers sets up its logger then.
    """
    levels = {name: logging.getLogger(name).level for name in _LIBRARIES}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _no_progress_bars():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            for name in _LIBRARIES:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    if "transformers" not in sys.modules:  # importing it takes seconds that a timm model need not wait
        yield
        return
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def numbers_of(module: torch.nn.Module) -> int:
    """Numbers that a network holds: its parameters and buffers, each once.

    Args:
        module: The network, on any device; on the meta device it holds none yet.
    """
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def finish(module: torch.nn.Module) -> torch.nn.Module:
    """Make a loaded network ready to run: eval mode, float32, no gradients.

    Args:
        module: The network, changed in place.

    Returns:
        The same network.

    Raises:
        Declined: If a weight is NaN or infinite.
    """
    module = module.eval().float().requires_grad_(False)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # A sum carries every NaN and infinity on and needs no second tensor; that it overflows by itself is rare.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise Declined(Reason.BROKEN_WEIGHTS, f"{name} holds NaN or infinite values")
    return module


def try_out(
    module: torch.nn.Module, forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor], pixels: torch.Tensor
) -> int:
    """Run a network once.

    Args:
        module: The network, ready to run.
        forward: How to run it.
        pixels: Pixel values of one image, float32 ``[1, 3, height, width]``.

    Returns:
        How many outputs it has.

    Raises:
        Declined: If it fails, or answers anything but one row of numbers.
    """
    with stage(Reason.RUN_FAILED), torch.inference_mode():
        answer = forward(module, pixels)
    if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
        raise Declined(Reason.NOT_A_CLASSIFIER, f"it answers {type(answer).__name__}, not a row of numbers")
    if answer.ndim != 2 or answer.shape[0] != 1 or answer.shape[1] == 0:
        raise Declined(Reason.NOT_A_CLASSIFIER, f"it answers an array of shape {list(answer.shape)} for one image")
    return int(answer.shape[1])
