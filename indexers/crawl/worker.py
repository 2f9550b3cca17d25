"""One model after another in a process of its own, watched from outside: whatever it does, the daemon goes on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import shutil
import socket
import time
from dataclasses import replace
from typing import TypeVar

from engine.errors import HubhoundError, ModelError, ModelFailedError, ModelRefusedError, Reason
from indexers.crawl import sandbox, scratch, watchdog
from indexers.crawl.assignments import Assignment, Probing
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.messages import (
    Answer,
    Blame,
    Channel,
    ClosedError,
    Failure,
    GarbageError,
    Hello,
    ProfileAnswer,
    Telling,
    read_reply,
)
from indexers.crawl.nursery import MODEL, CancelledError, Nursery, NurseryError
from indexers.crawl.process import Birth, Ending, Process
from indexers.crawl.records import Probed
from indexers.crawl.watchdog import BrokenError, Child, Progress, Watchdog
from indexers.loaders.base import Repository
from indexers.loaders.declined import REFUSALS
from indexers.pixels import PixelCache
from indexers.strange_arrays import StrangeArrayError

__all__ = ["Limits", "Nursery", "Progress", "Setup", "Worker", "WorkerStopped"]

Found = TypeVar("Found")

_POLL_S = 0.1
_BIRTH_S = 30.0
_END_S = 10.0
_GRACE_S = 0.5
_SENT_S = 10.0
_ALMOST_FULL_BYTES = 64 * 2**20
_NOT_A_MODELS = frozenset(
    {Reason.NETWORK, Reason.GATED, Reason.FILTERED, Reason.CHECKSUM, Reason.TIMED_OUT, Reason.CRASHED}
)
"""Reasons that only the daemon finds; some of them would have it try again for ever."""


class WorkerStopped(Exception):
    """The worker was told to stop; what it had in hand is neither done nor failed."""


class Worker:
    """Loads and probes models, each in a child process within limits; one thread uses it.

    Args:
        nursery: Where its processes are born; several workers may share one.
    """

    _numbers = itertools.count()

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._limits = nursery.limits
        self._cache = PixelCache(nursery.setup.cache, nursery.setup.cache_bytes)
        self._child: Child | None = None
        self._stopped = False
        self._jobs = 0
        self.children = 0
        """Processes born so far."""
        self.protection: tuple[str, ...] = ()
        """Layers in force in the latest process, known once there was one."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Layers that this platform, kernel or device does not allow; empty before the first process."""
        return tuple(
            layer for layer in (*sandbox.LAYERS, watchdog.NAME) if self.protection and layer not in self.protection
        )

    def probe(self, repository: Repository, progress: Progress | None = None) -> Probed:
        """Loads a model and shows it the probes.

        Args:
            repository: Its files, on this disk.
            progress: Called from this thread a few times a second.

        Raises:
            ModelRefusedError: The loader declines to load it.
            ModelFailedError: It does not work, ended its process, or took too much time or memory.
            HubhoundError: No process can be started: the index's probes have changed ...
            WorkerStopped: ``stop`` was called.
            OSError: The disk is full.
        """
        return self.run(Probing(repository, self._nursery, self._cache), progress)

    def run(self, assignment: Assignment[Found], progress: Progress | None = None) -> Found:
        """Has a process do something with a model.

        Args:
            assignment: What with which.
            progress: As of ``probe``.

        Raises:
            HubhoundError: As of ``probe``.
            WorkerStopped: Likewise.
            OSError: Likewise.
        """
        repository = assignment.repository
        last: BrokenError | None = None
        for _ in range(2):
            child = self._usable_child()
            used = child.jobs > 0
            try:
                return self._run(child, assignment, progress)
            except BrokenError as broken:
                last = broken
                self._drop()
                self._check_disk()
                # A process that has run others before may have been broken by one of those.
                if not used or broken.reason is Reason.TIMED_OUT:
                    break
            except NurseryError:
                last = BrokenError(Reason.CRASHED, "its process ended together with the one that had started it")
                self._drop()
            except ModelError:  # an answer like any other
                raise
            except BaseException:
                self._drop()
                raise
        if last is None:
            raise RuntimeError("a model was not tried")
        raise ModelFailedError(last.reason, last.detail, repository.repo, repository.revision)

    def stop(self) -> None:
        """Kills the process at once; ``probe`` raises ``WorkerStopped`` from now on.

        Can be called from every thread and from a signal handler.
        """
        self._stopped = True
        child = self._child
        if child is not None:
            child.process.kill()

    def close(self) -> None:
        """Ends its process and removes its files; the nursery stays."""
        self._drop()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _check_stopped(self) -> None:
        if self._stopped:
            raise WorkerStopped

    def _usable_child(self) -> Child:
        child = self._child
        if child is not None and not self._still_good(child):
            self._drop()
        for attempt in range(3):
            self._check_stopped()
            if self._child is not None:
                return self._child
            try:
                self._child = self._bear()
            except CancelledError:
                raise WorkerStopped from None
            except (NurseryError, ClosedError, GarbageError) as error:
                self._check_stopped()
                if attempt == 2:
                    raise HubhoundError(f"no process for models can be started: {error}") from error
        raise RuntimeError("no process was born")

    def _still_good(self, child: Child) -> bool:
        if child.jobs >= self._limits.models_per_child:
            return False
        has = child.process.memory_bytes()
        return has is None or has - child.born_bytes <= self._limits.growth_bytes

    def _bear(self) -> Child:
        self._nursery.start(self._is_stopped)  # before the folder is there: it empties the scratch folder
        folder = scratch.new(self._nursery.scratch, f"{MODEL}{next(self._numbers)}")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                birth = self._nursery.fork(theirs, folder, self._is_stopped)
        except BaseException:
            ours.close()
            scratch.remove(folder)
            raise
        self.children += 1
        child = Child(birth, Process(birth.pid), Channel(ours), folder)
        self._child = child
        try:
            self._check_stopped()
            hello = read_reply(child.channel.receive(_BIRTH_S) or b"")
            if not isinstance(hello, Hello):
                raise GarbageError("did not begin with a greeting")
        except BaseException:
            self._drop()
            raise
        has = child.process.memory_bytes()
        child.born_bytes = has or 0
        self.protection = (*hello.layers, *((watchdog.NAME,) if has is not None else ()))
        return child

    def _drop(self) -> Ending | None:
        """Kills the process, waits for its end and removes its files."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.process.kill()
        ending = self._ending(child.birth, _END_S)
        child.process.close()
        child.channel.close()
        scratch.remove(child.folder)
        return ending

    def _ending(self, birth: Birth, timeout_s: float) -> Ending | None:
        """How a process ended, None if it lives on or its nursery is gone."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        with contextlib.suppress(NurseryError):
            while (ending := self._nursery.ended(birth)) is None and time.monotonic() < deadline:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.05)
            return ending
        return None

    def _run(self, child: Child, assignment: Assignment[Found], progress: Progress | None) -> Found:
        self._jobs += 1
        child.jobs += 1
        watch = Watchdog(child, replace(self._limits, time_s=math.inf), progress)
        started, time_s = time.monotonic(), assignment.time_s(self._limits, None)
        job = assignment.job(self._jobs)
        try:
            child.channel.send(job, _SENT_S)
            while True:
                self._check_stopped()
                data = child.channel.receive(_POLL_S)
                if time.monotonic() - started > time_s:
                    raise BrokenError(Reason.TIMED_OUT, f"it was stopped after {time_s:g} s while {watch.stage}")
                watch.look()
                if data is None:
                    continue
                reply = read_reply(data)
                match reply:
                    case Telling():
                        watch.tell(reply)
                        time_s = assignment.time_s(self._limits, reply)
                    case Answer(number=job.number) | ProfileAnswer(number=job.number):
                        return self._take(child, assignment, reply)
                    case Failure(number=job.number):
                        self._take_failure(child, reply, assignment)
                    case _:
                        raise GarbageError("answered what it was not asked")
        except ClosedError:
            self._check_stopped()
            raise self._death(child, watch.stage) from None
        except (GarbageError, StrangeArrayError) as error:
            raise BrokenError(Reason.CRASHED, f"its process {error} while {watch.stage}") from error

    def _take(self, child: Child, assignment: Assignment[Found], answer: Answer | ProfileAnswer) -> Found:
        found = assignment.take(child, answer)
        if not scratch.empty(child.folder):
            self._drop()
        return found

    def _take_failure(self, child: Child, failure: Failure, assignment: Assignment[object]) -> None:
        repository = assignment.repository
        if failure.blame is Blame.PROBES:
            try:
                assignment.check_images(self._is_stopped)
            except CancelledError:
                raise WorkerStopped from None
            raise GarbageError("says that a probe cannot be read")
        if failure.blame is Blame.DISK:
            self._check_disk()
            raise BrokenError(failure.reason, failure.detail)
        if failure.reason in _NOT_A_MODELS:
            raise GarbageError("failed for a reason that it cannot know")
        if failure.reason is Reason.OUT_OF_MEMORY:
            raise BrokenError(failure.reason, failure.detail)
        if not scratch.empty(child.folder):
            self._drop()
        kind = ModelRefusedError if failure.reason in REFUSALS else ModelFailedError
        raise kind(failure.reason, failure.detail, repository.repo, repository.revision)

    def _death(self, child: Child, stage: str) -> BrokenError:
        ending = self._ending(child.birth, _GRACE_S)
        if ending is None:
            if child.birth.generation != self._nursery.generation or self._nursery.pid is None:
                raise NurseryError("the nursery has ended")
            return BrokenError(Reason.CRASHED, f"its process closed its connection while {stage}")
        return BrokenError(Reason.CRASHED, f"its process {ending} while {stage}")

    def _check_disk(self) -> None:
        """A full disk is no model's fault.

        Raises:
            OSError: It is full.
        """
        if shutil.disk_usage(self._nursery.scratch).free < _ALMOST_FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._nursery.scratch))
