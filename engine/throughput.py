"""Running a network over many images as fast as this machine can, whatever the network.

On a CPU the best batch size, memory format and number of threads differ several times over from network to network and
from hour to hour, so they are measured on the work itself: the first batches are run in different ways, their answers
are kept, and the fastest way does the rest. Nothing is computed twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch

Fetch = Callable[[int, int], torch.Tensor]
"""``(start, stop) -> images`` of those positions."""


_SLUMP = 2.5  # so many times slower than it was found to be ...
_PATIENCE = 3  # ... for so many batches, and a way is searched for anew
_GAIN = 1.02  # a trial must be that much faster to win: one batch is a noisy measurement


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        batch: Images at once.
        channels_last: Memory format of images and weights.
        threads: Of the CPU; without meaning elsewhere.
    """

    batch: int
    channels_last: bool
    threads: int


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        InputError: The device is unknown or absent.
    """
    from engine.errors import InputError

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Runs torch with so many threads and restores the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Runner:
    """Runs a network over positions 0..n of some images and finds the fastest way on the fly.

    Args:
        forward: ``images [b, ...] -> answers [b, ...]``; called in inference mode.
        module: The network behind it: moved to the device, its memory format is changed as needed.
        device: Where to run.
        way: A way known to be good, which is then not searched for.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        module: torch.nn.Module,
        device: torch.device,
        way: Way | None = None,
    ) -> None:
        self._forward = forward
        self._module = module.to(device)
        self._device = device
        self._format: bool | None = None
        self.way = way
        """The fastest way, once it is known."""
        self._rate = 0.0

    def run(self, fetch: Fetch, n: int, progress: Callable[[int], None] | None = None) -> Iterator[torch.Tensor]:
        """Answers for all images, in order.

        Args:
            fetch: Gives images, on the CPU.
            n: How many there are.
            progress: Called with the number done so far.

        Yields:
            Batches of answers on the CPU, float32.
        """
        cpu = self._device.type == "cpu"
        trials = _search() if cpu and self.way is None else None
        way = self.way or (next(trials) if trials else Way(64, True, torch.get_num_threads()))
        done, slow = 0, 0
        while done < n:
            stop = min(n, done + way.batch)
            images = fetch(done, stop)
            started = time.perf_counter()
            yield self._answer(images, way)
            rate = (stop - done) / (time.perf_counter() - started)
            done = stop
            if progress:
                progress(done)
            if trials:
                try:
                    way = trials.send(rate)
                except StopIteration as end:
                    trials, self.way, self._rate = None, end.value[0], end.value[1]
                    way = end.value[0]
            elif cpu:
                # Another program may have taken a core since: what was best then can be the worst now.
                slow = slow + 1 if self._rate and rate < self._rate / _SLUMP else 0
                if slow == _PATIENCE:
                    trials, slow = _search(), 0
                    way = next(trials)

    def _answer(self, images: torch.Tensor, way: Way) -> torch.Tensor:
        if self._format != way.channels_last and images.ndim == 4:
            layout = torch.channels_last if way.channels_last else torch.contiguous_format
            self._module.to(memory_format=layout)
            self._format = way.channels_last
        images = images.to(self._device, non_blocking=True)
        if images.ndim == 4:
            images = images.contiguous(
                memory_format=torch.channels_last if way.channels_last else torch.contiguous_format
            )
        cuda = self._device.type == "cuda"
        with (
            torch.inference_mode(),
            cpu_threads(way.threads),
            torch.autocast("cuda", dtype=torch.float16, enabled=cuda),
        ):
            return self._forward(images).float().cpu()


def _search() -> Generator[Way, float, tuple[Way, float]]:
    """Finds the fastest way on a few batches: yields trials, is sent images per second, returns the best and its rate.

    Threads and memory format are tried together, because the worse of two formats can be the better one with another
    number of threads; then the batch size.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    best, fastest = Way(batch=4, channels_last=True, threads=cores), 0.0
    yield replace(best, batch=1)  # the first batch pays for set-up: its rate says nothing
    for threads, channels_last in product(sorted({cores, 1}, reverse=True), (True, False)):
        trial = Way(best.batch, channels_last, threads)
        rate = yield trial
        if rate > fastest * _GAIN:
            best, fastest = trial, rate
    for batch in (8, 16, 32):
        trial = replace(best, batch=batch)
        rate = yield trial
        if rate <= fastest * _GAIN:
            break
        best, fastest = trial, rate
    return best, fastest
