"""What a worker has a process do with one model: what it asks, and what it makes of the answer.

An answer was read as a message, so it has the form it should have; whether it can be true is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np

from indexers.crawl.limits import Limits
from indexers.crawl.messages import (
    CONDUCTANCE,
    RESPONSES,
    Answer,
    GarbageError,
    Job,
    ProfileAnswer,
    ProfileJob,
    Recorded,
    Telling,
    images_of,
)
from indexers.crawl.nursery import Nursery
from indexers.crawl.records import Probed, Profiled
from indexers.crawl.watchdog import Child
from indexers.loaders.base import Repository
from indexers.pixels import PixelCache
from indexers.strange_arrays import StrangeArrayError, read

STAGES: Final = ("load", "decode", "probe")
"""What the seconds of a model are spent on in its process."""

Found_co = TypeVar("Found_co", covariant=True)


class Assignment(Protocol[Found_co]):
    """One model, and what is wanted of it.

    Attributes:
        repository: Its files, on this disk.
    """

    @property
    def repository(self) -> Repository: ...  # noqa: D102

    def job(self, number: int) -> Job | ProfileJob:
        """What the process is asked."""
        ...

    def time_s(self, limits: Limits, told: Telling | None) -> float:
        """How long it may take from its start until it says more.

        Args:
            limits: Of the process.
            told: What it has said last.
        """
        ...

    def take(self, child: Child, answer: Answer | ProfileAnswer) -> Found_co:
        """What the process has found out.

        Raises:
            GarbageError: It cannot be meant.
        """
        ...

    def check_images(self, cancelled: Callable[[], bool]) -> None:
        """Looks whether the images that models are shown are what they were, because a process says that they are not.

        Raises:
            HubhoundError: They are not.
        """
        ...


class Probing:
    """A classifier is to be shown the probes.

    Args:
        repository: Its files.
        nursery: That has opened the probes.
        cache: Of preprocessed probes.
    """

    def __init__(self, repository: Repository, nursery: Nursery, cache: PixelCache) -> None:
        self.repository = repository
        self._nursery = nursery
        self._cache = cache

    def job(self, number: int) -> Job:
        """See `Assignment`."""
        model = self.repository
        return Job(number=number, repo=model.repo, revision=model.revision, folder=str(model.folder.absolute()))

    def time_s(self, limits: Limits, told: Telling | None) -> float:
        """See `Assignment`."""
        return limits.time_s

    def take(self, child: Child, answer: Answer | ProfileAnswer) -> Probed:
        """See `Assignment`."""
        if not isinstance(answer, Answer):
            raise GarbageError("answered what it was not asked")
        n, outputs = answer.shape
        if n != self._nursery.probes or len(answer.labels) != outputs:
            raise GarbageError(
                f"answered {n:,} x {outputs:,} responses and {len(answer.labels):,} labels "
                f"to {self._nursery.probes:,} probes"
            )
        if not answer.pixels.startswith(f"{self._nursery.fingerprint[:16]}/"):
            raise GarbageError("used other probes")
        try:
            responses = read(child.folder / RESPONSES, "<f4", answer.shape).astype(np.float32, copy=False)
        except StrangeArrayError as error:
            raise GarbageError(f"left strange responses: {error}") from error
        if answer.new_pixels:
            try:
                file = child.folder / Path(answer.pixels).name
                self._cache.adopt(answer.pixels, file, (n, 3, *answer.input_size))
            except StrangeArrayError as error:
                raise GarbageError(f"left strange pixels: {error}") from error
        else:
            self._cache.touch(answer.pixels)
        return Probed(
            library=answer.library,
            architecture=answer.architecture,
            parameters=answer.parameters,
            input_size=answer.input_size,
            labels=answer.labels,
            responses=responses,
            probabilities=answer.probabilities,
            seconds={stage: answer.seconds.get(stage, 0.0) for stage in STAGES},
            memory_bytes=child.process.peak_bytes() or 0,
        )

    def check_images(self, cancelled: Callable[[], bool]) -> None:
        """See `Assignment`."""
        self._nursery.check_probes(cancelled)


class Profiling:
    """A vision-language model is to be profiled.

    Args:
        repository: Its files.
        wanted: The job, with any number.
        check: Raises HubhoundError if an image of a task is not what it was.
    """

    def __init__(self, repository: Repository, wanted: ProfileJob, check: Callable[[], None]) -> None:
        self.repository = repository
        self._wanted = wanted
        self._check = check

    def job(self, number: int) -> ProfileJob:
        """See `Assignment`."""
        return self._wanted.model_copy(update={"number": number})

    def time_s(self, limits: Limits, told: Telling | None) -> float:
        """See `Assignment`: loading has the time of a model, and so has each task, one after the other."""
        if told is None or told.what != "probing":
            return limits.time_s
        tasks = self._wanted.tasks
        images = len({image.sha256 for sample in tasks.values() for image in sample})
        return limits.time_s * (1 + min(len(tasks), 1 + told.done * len(tasks) // max(1, images)))

    def take(self, child: Child, answer: Answer | ProfileAnswer) -> Profiled:
        """See `Assignment`."""
        if not isinstance(answer, ProfileAnswer):
            raise GarbageError("answered what it was not asked")
        wanted = self._wanted
        images = images_of(wanted, answer.revision)
        if answer.images != len(images):
            raise GarbageError(f"answered for {answer.images:,} images of {len(images):,}")
        if wanted.precision not in ("auto", answer.precision):
            raise GarbageError(f"computed in {answer.precision}, not in {wanted.precision}")
        same = wanted.recorded is not None and wanted.recorded.revision == answer.revision
        if len(set(answer.blocks)) != len(answer.blocks) or (same and not self._fits(wanted.recorded, answer)):
            raise GarbageError("has other blocks than its profiles")
        rows = np.zeros((0, len(answer.blocks) + 1))
        if images:
            try:
                rows = read(child.folder / CONDUCTANCE, "<f8", (len(images), len(answer.blocks) + 1)).astype(np.float64)
            except StrangeArrayError as error:
                raise GarbageError(f"left strange conductance: {error}") from error
        if not np.isfinite(rows).all() or (rows < 0).any():
            raise GarbageError("left conductance that is negative or not finite")
        return Profiled(
            name=wanted.name,
            revision=answer.revision,
            blocks=answer.blocks,
            parameters=answer.parameters,
            n_steps=wanted.n_steps,
            precision=answer.precision,
            rows={sha256: (row[:-1].copy(), float(row[-1])) for sha256, row in zip(images, rows, strict=True)},
            again=not same,
            seconds={stage: answer.seconds.get(stage, 0.0) for stage in ("load", "probe")},
            memory_bytes=child.process.peak_bytes() or 0,
        )

    def check_images(self, cancelled: Callable[[], bool]) -> None:
        """See `Assignment`."""
        self._check()

    @staticmethod
    def _fits(recorded: Recorded | None, answer: ProfileAnswer) -> bool:
        return recorded is not None and recorded.blocks == answer.blocks
