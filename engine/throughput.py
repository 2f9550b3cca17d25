"""Running a network over many images as fast as this machine can, whatever the network.

On a CPU the best batch size, memory format and number of threads differ several times over from network to network and
from hour to hour; on a GPU the batch size does, and what fits. So they are measured on the work itself: the first
batches are run in different ways, their answers are kept, and the fastest way does the rest. Nothing is computed twice
but what decides about half precision (`engine.autocast`) and about a compiled network. Where memory runs out, the batch
is halved and the same images are run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product

import torch

from engine.autocast import BOUND, CHECKED, bears, casting
from engine.placement import Lane, Placement, out_of_memory, pick_device

__all__ = ["Fetch", "Runner", "Way", "cpu_threads", "pick_device"]

Fetch = Callable[[int, int], torch.Tensor]
"""``(start, stop) -> images`` of those positions."""

_Trials = Generator["Way", float, tuple["Way", float]]


_SLUMP = 2.5  # so many times slower than it was found to be ...
_PATIENCE = 3  # ... for so many batches, and a way is searched for anew
_GAIN = 1.02  # a trial must be that much faster to win: one batch is a noisy measurement
_DOUBLE_GAIN = 1.05  # so much faster must twice the batch be to be worth its memory
_SMALLEST = 8  # where doubling begins
_JUDGED = 8  # fewer images do not tell how far standardised responses move
_SAME = 1e-3  # a compiled network's descriptors may move so far in float32


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
        where: Where to run, and how.
        way: A way known to be good, which is then not searched for.
        lane: How images get there, by default as suits the device.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        module: torch.nn.Module,
        where: torch.device | Placement,
        way: Way | None = None,
        lane: Lane | None = None,
    ) -> None:
        self._placement = where if isinstance(where, Placement) else Placement(where)
        self._device = self._placement.device
        self._forward = forward
        self._module = module.to(self._device)
        self._lane = lane or self._placement.lane()
        self._format: bool | None = None
        self._fast: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._ceiling = self._placement.max_batch
        self._rate = 0.0
        self.way = way
        """The fastest way, once it is known."""
        self.dtype: torch.dtype | None = None
        """What operations are cast to, once that is decided; None for nothing."""
        self.moved: float | None = None
        """How far half precision moves descriptors, where it was tried (`engine.autocast.deviation`)."""
        self.compiled: bool | None = None
        """Whether the compiled network answers, once that is decided."""

    def run(
        self,
        fetch: Fetch,
        n: int,
        progress: Callable[[int], None] | None = None,
        sample: Callable[[int], torch.Tensor] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Answers for all images, in order.

        Args:
            fetch: Gives images, on the CPU; asked for each once, in order.
            n: How many there are.
            progress: Called with the number done so far.
            sample: ``count -> images``, spread over all, on which half precision is tried; the first by default.

        Yields:
            Batches of answers on the CPU, float32.
        """
        feed = _Feed(fetch, n)
        self._decide_precision(feed, sample)
        done = 0
        while feed.left:
            for answers in self._cruise(feed) if self.way else self._explore(feed):
                yield answers
                done += len(answers)
                if progress:
                    progress(done)

    def _explore(self, feed: _Feed) -> Iterator[torch.Tensor]:
        """Runs batches in different ways until the fastest is known."""
        trials = _double(self._ceiling) if self._placement.searches_batches else _search()
        way = next(trials)
        while feed.left:
            images = feed.take(min(way.batch, self._ceiling))
            started = time.perf_counter()
            coming = self._launch(images, way)
            rate = 0.0
            if coming is None:
                feed.give_back(images)
            else:
                answers = coming()
                rate = len(images) / (time.perf_counter() - started)
                yield answers
            try:
                way = trials.send(rate)
            except StopIteration as end:
                best, self._rate = end.value
                self.way = self._capped(best)
                return

    def _cruise(self, feed: _Feed) -> Iterator[torch.Tensor]:
        """Runs batches in the way that is known; where copies overlap, answers are waited for one batch later."""
        if self._placement.compiler and self.compiled is None:
            self._decide_compiler(feed)
        waiting: Callable[[], torch.Tensor] | None = None
        slow = 0
        while feed.left and self.way:
            try:
                images = feed.take(min(self.way.batch, self._ceiling))
            except Exception:  # there are fewer than were announced, or one cannot be read
                if waiting is not None:
                    yield waiting()
                raise
            started = time.perf_counter()
            coming = self._launch(images, self.way)
            if coming is None:
                feed.give_back(images)
                continue
            if waiting is not None:
                yield waiting()
            waiting = coming
            if not self._lane.overlaps:
                answers, waiting = waiting(), None
                rate = len(images) / (time.perf_counter() - started)
                yield answers
                # Another program may have taken a core since: what was best then can be the worst now.
                slow = slow + 1 if self._rate and rate < self._rate / _SLUMP else 0
                if slow == _PATIENCE and not self._placement.searches_batches:
                    self.way = None
        if waiting is not None:
            yield waiting()

    def _launch(self, images: torch.Tensor, way: Way) -> Callable[[], torch.Tensor] | None:
        """Sets a batch going; None where memory ran out, and smaller ones are the rule from now on."""
        try:
            return self._lane.bring(self._compute(self._lane.send(images)(), way, self.dtype))
        except (MemoryError, RuntimeError) as error:
            if len(images) == 1 or not out_of_memory(error):
                raise
        self._ceiling = len(images) // 2
        self.way = self.way and self._capped(self.way)
        self._lane.release()
        return None

    def _compute(self, images: torch.Tensor, way: Way, dtype: torch.dtype | None) -> torch.Tensor:
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        if images.ndim == 4:
            if self._format != way.channels_last:
                self._module.to(memory_format=layout)
                self._format = way.channels_last
            images = images.contiguous(memory_format=layout)
        with torch.inference_mode(), self._threads(way.threads), casting(self._device, dtype):
            if self._fast is None:
                return self._forward(images)
            # A compiled network is made for one size: the last images are padded to it.
            missing = max(0, way.batch - len(images))
            padded = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return self._fast(padded)[: len(images)]

    def _threads(self, count: int) -> AbstractContextManager[None]:
        return cpu_threads(count) if self._device.type == "cpu" else nullcontext()

    def _capped(self, way: Way) -> Way:
        return replace(way, batch=min(way.batch, self._ceiling))

    def _decide_precision(self, feed: _Feed, sample: Callable[[int], torch.Tensor] | None) -> None:
        """Tries half precision, if it is wanted, on a few images."""
        self.dtype = self.moved = None
        dtype = self._placement.dtype
        if dtype is None or feed.left < _JUDGED:
            return
        count = min(CHECKED, feed.left)
        images = feed.peek(count) if sample is None else sample(count)
        while len(images) >= _JUDGED:
            try:
                exact = self._answers(images, None)
                good, self.moved = bears(exact, lambda: self._answers(images, dtype))  # noqa: B023 (called at once)
                self.dtype = dtype if good else None
                return
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            self._lane.release()
            images = images[: len(images) // 2]

    def _decide_compiler(self, feed: _Feed) -> None:
        """Compiles the network, and goes on without where that fails or its answers are others."""
        self.compiled = False
        if self.way is None or feed.left < _JUDGED:
            return
        images = feed.peek(min(self.way.batch, self._ceiling))
        if len(images) < _JUDGED:
            return
        try:
            exact = self._answers(images, self.dtype)
            torch._dynamo.reset()  # what was compiled for other networks counts against a limit
            self._fast = torch.compile(self._forward, backend=str(self._placement.compiler), dynamic=False)
            self.compiled, _ = bears(exact, lambda: self._answers(images, self.dtype), BOUND if self.dtype else _SAME)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if not self.compiled:
            self._fast = None
            self._lane.release()

    def _answers(self, images: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        way = self.way or Way(len(images), True, torch.get_num_threads())
        return self._lane.bring(self._compute(self._lane.send(images)(), way, dtype))()


class _Feed:
    """Images in order, as many at once as are asked for; what did not fit can be given back.

    Args:
        fetch: As of ``Runner.run``.
        n: How many there are.
    """

    def __init__(self, fetch: Fetch, n: int) -> None:
        self._fetch = fetch
        self._n = n
        self._fetched = 0
        self._back: torch.Tensor | None = None

    @property
    def left(self) -> int:
        """Images that are still to come."""
        return self._n - self._fetched + (0 if self._back is None else len(self._back))

    def take(self, count: int) -> torch.Tensor:
        """The next images, at most so many."""
        if self._back is not None:
            images = self._back[:count]
            self._back = self._back[count:] if len(self._back) > count else None
            return images
        start = self._fetched
        self._fetched = min(self._n, start + count)
        return self._fetch(start, self._fetched)

    def give_back(self, images: torch.Tensor) -> None:
        """Has images come again before all others."""
        self._back = images if self._back is None else torch.cat([images, self._back])

    def peek(self, count: int) -> torch.Tensor:
        """The next images, at most so many, which are still to come afterwards."""
        images = self.take(count)
        self.give_back(images)
        return images


def _double(limit: int) -> _Trials:
    """Finds the fastest batch on an accelerator: twice the images each time, while that gains and memory suffices.

    The first batch of a size pays for set-up, so each size is run twice and the second time counts; a rate of 0 says
    that memory ran out.
    """
    best, fastest = Way(min(_SMALLEST, limit), channels_last=True, threads=1), 0.0
    trial = best
    while trial.batch <= limit:
        if not (yield trial):
            break
        rate = yield trial
        if rate <= fastest * _DOUBLE_GAIN:
            break
        best, fastest = trial, rate
        trial = replace(trial, batch=2 * trial.batch)
    return best, fastest


def _search() -> _Trials:
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
