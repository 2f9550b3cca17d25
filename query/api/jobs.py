"""Jobs: what takes longer than a request may, done one after the other.

A thread sees to them. It runs no model itself: :mod:`query.api.job_process` starts a process for each job.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from engine.schema import Record
from query.api.errors import ApiError, Problem, ProblemKind, retry_after, to_problem
from query.api.metrics import JobEnd, Metrics
from query.api.settings import Settings

Kind = Literal["recommend", "search"]
State = Literal["queued", "running", "done", "failed", "cancelled"]

MOST_FINISHED = 100
"""Finished jobs that are kept at most, whatever their age."""

PROGRAM = (sys.executable, "-P", "-m", "query.api.job_child")
"""What runs the models of a job."""

_FOLDER = "hubhound-job-"
_PATIENCE_S = 3.0
_BUSY_S = 5.0


class JobProgress(Record):
    """How far a job is."""

    model: str = Field(description="The model that is being shown images.")
    what: str = Field(
        description="What is being done with it: starting (of the job's process), reading, loading, profiling."
    )
    done: float = Field(description="Images done; parts of images count.")
    total: float = Field(description="Images to do; 0 while that is not known.")
    model_number: int = Field(description="Which of the models it is, from 1.")
    models: int = Field(description="Models in all.")


class Job(Record):
    """A job, as clients see it."""

    id: str
    kind: Kind
    state: State
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    progress: JobProgress | None = Field(default=None, description="Once a model's turn has come.")
    result: dict[str, Any] | None = Field(
        default=None, description="Of a job that is done: what the request would have been answered at once."
    )
    problem: Problem | None = Field(default=None, description="Of a job that failed: why.")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = self.model_dump(mode="json", exclude={"problem"})
        return {**told, "problem": self.problem.to_json() if self.problem else None}


class KeptImages:
    """Uploaded images in a folder that lives as long as a job needs them.

    Args:
        paths: Of the images, which are moved.
        names: What clients call them.

    Attributes:
        folder: Where they are; files of the job's process are put there, too.
        paths: Of the images, as they are now.
        names: What clients call them, by path.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        try:
            self.paths = tuple(Path(shutil.move(path, self.folder)) for path in paths)
        except BaseException:
            self.drop()
            raise
        self.names = {str(path): name for path, name in zip(self.paths, names, strict=True)}

    def drop(self) -> None:
        """Removes the folder; it may be gone."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Watch:
    """What a job's work tells, and where it learns that it is to end.

    Attributes:
        progress: How far it is.
        cancelled: It is to end; what it answers then does not count.
    """

    def __init__(self) -> None:
        self.progress: JobProgress | None = None
        self.cancelled = False


Work = Callable[[Watch], dict[str, Any]]
"""What a job does: its answer as plain values. It looks a few times a second whether it is cancelled."""


@dataclass(eq=False)
class _Entry:
    """A job inside."""

    id: str
    kind: Kind
    owner: str | None
    images: KeptImages
    request_id: str | None
    created: float
    watch: Watch = field(default_factory=Watch)
    state: State = "queued"
    started: float | None = None
    finished: float | None = None
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    ended: Future[None] = field(default_factory=Future)

    def job(self) -> Job:
        return Job(
            id=self.id,
            kind=self.kind,
            state=self.state,
            created=_moment(self.created),
            started=None if self.started is None else _moment(self.started),
            finished=None if self.finished is None else _moment(self.finished),
            progress=self.watch.progress,
            result=self.result,
            problem=self.problem,
        )


class Jobs:
    """The jobs of a service: one runs, some wait, finished ones are kept for a while.

    A job belongs to the API key that it was made with; for others it does not exist.

    Args:
        settings: ``max_jobs`` and ``job_keep_s``.
        metrics: Told how many jobs are in each state.
        clock: Seconds since 1970.
        program: Another program than ours for the processes of jobs: a command with its arguments.

    Attributes:
        program: That runs models.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        program: Sequence[str] | None = None,
    ) -> None:
        self.program = tuple(program or PROGRAM)
        self._most = settings.max_jobs
        self._keep_s = settings.job_keep_s
        self._metrics = metrics
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._queue: dict[_Entry, Work] = {}
        self._running: _Entry | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        _sweep(Path(tempfile.gettempdir()))

    def submit(
        self, kind: Kind, work: Work, images: KeptImages, owner: str | None = None, request_id: str | None = None
    ) -> Job:
        """Puts a job into the queue; its images are dropped when it has ended, and also if it is refused.

        Args:
            kind: What it answers.
            work: Runs in the thread of jobs.
            images: That the work needs.
            owner: Name of the API key, None without keys.
            request_id: Of the request that made it, for its problem and the log.

        Raises:
            ApiError: ``busy``: as many as may be are waiting or running, or the service is stopping.
        """
        with self._changed:
            self._forget_old()
            waiting = len(self._queue) + (self._running is not None)
            if not self._closed and waiting < self._most:
                entry = _Entry(secrets.token_urlsafe(16), kind, owner, images, request_id, self._clock())
                self._entries[entry.id] = entry
                self._queue[entry] = work
                if self._thread is None:
                    self._thread = threading.Thread(target=self._loop, name="hubhound-jobs", daemon=True)
                    self._thread.start()
                self._changed.notify()
                self._count()
                return entry.job()
        images.drop()
        if self._closed:
            raise ApiError(ProblemKind.BUSY, "the service is stopping: ask again later", headers=retry_after(_BUSY_S))
        raise ApiError(
            ProblemKind.BUSY,
            f"{waiting} job{'s wait or run' if waiting > 1 else ' waits or runs'} already, as many as may be: ask "
            "again later",
            headers=retry_after(_BUSY_S),
        )

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job as it is now.

        Raises:
            ApiError: ``job-not-found``: there is none, it is forgotten, or it is another key's.
        """
        with self._changed:
            return self._find(job_id, owner).job()

    def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """Ends a job: a waiting one at once, the running one in a moment, when its process is killed.

        Raises:
            ApiError: ``job-not-found``, or ``job-finished``.
        """
        with self._changed:
            entry = self._find(job_id, owner)
            if entry.finished is not None:
                raise ApiError(
                    ProblemKind.JOB_FINISHED, f"the job is {entry.state}: there is nothing left of it to cancel"
                )
            self._cancel(entry)
            return entry.job()

    async def wait(self, job_id: str, timeout_s: float) -> Job:
        """A job when it has ended, or as it is after a while.

        Args:
            job_id: Of any owner.
            timeout_s: That while, in seconds.

        Raises:
            ApiError: ``job-not-found``.
        """
        with self._changed:
            entry = self._entries.get(job_id)
        if entry is None:
            raise _unknown()
        await asyncio.wait([asyncio.wrap_future(entry.ended)], timeout=timeout_s)
        with self._changed:
            return entry.job()

    def abandon(self, job_id: str) -> None:
        """Forgets a job whose id nobody was told; what is left of it is cancelled."""
        with self._changed:
            entry = self._entries.pop(job_id, None)
            if entry is not None and entry.finished is None:
                self._cancel(entry)

    async def stop(self, patience_s: float = _PATIENCE_S) -> None:
        """Cancels everything; no job is taken any more.

        Args:
            patience_s: How long the running one is waited for, in seconds; its images are removed in any case.
        """
        with self._changed:
            self._closed = True
            running = self._running
            for entry in (*self._queue, *([running] if running else [])):
                self._cancel(entry)
            self._changed.notify_all()
        if running is not None:
            await asyncio.wait([asyncio.wrap_future(running.ended)], timeout=patience_s)
            running.images.drop()

    def _loop(self) -> None:
        while (one := self._next()) is not None:
            self._run(*one)

    def _next(self) -> tuple[_Entry, Work] | None:
        """The job whose turn it is, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            self._running = entry = next(iter(self._queue))
            work = self._queue.pop(entry)
            entry.state, entry.started = "running", self._clock()
            self._count()
            return entry, work

    def _run(self, entry: _Entry, work: Work) -> None:
        result = problem = None
        state: JobEnd = "done"
        try:
            result = work(entry.watch)
        except BaseException as error:  # whatever it is, the next job has its turn
            state, problem = "failed", to_problem(error, request_id=entry.request_id, names=entry.images.names)
        entry.images.drop()
        with self._changed:
            self._running = None
            if entry.watch.cancelled:
                state, result, problem = "cancelled", None, None
            entry.result, entry.problem = result, problem
            self._end(entry, state)

    def _cancel(self, entry: _Entry) -> None:
        entry.watch.cancelled = True
        if entry.state == "queued":
            del self._queue[entry]
            entry.images.drop()
            self._end(entry, "cancelled")

    def _end(self, entry: _Entry, state: JobEnd) -> None:
        entry.state, entry.finished = state, self._clock()
        entry.ended.set_result(None)
        if self._metrics is not None:
            self._metrics.job_ended(state)
        self._forget_old()
        self._count()

    def _find(self, job_id: str, owner: str | None) -> _Entry:
        self._forget_old()
        entry = self._entries.get(job_id)
        if entry is None or entry.owner != owner:
            raise _unknown()
        return entry

    def _forget_old(self) -> None:
        ends = sorted((entry.finished, entry.id) for entry in self._entries.values() if entry.finished is not None)
        for place, (finished, job_id) in enumerate(reversed(ends)):
            if place >= MOST_FINISHED or finished + self._keep_s <= self._clock():
                del self._entries[job_id]

    def _count(self) -> None:
        if self._metrics is not None:
            self._metrics.jobs(len(self._queue), int(self._running is not None))


def _sweep(folder: Path) -> None:
    """Removes the images of jobs whose service was killed."""
    for path in folder.glob(f"{_FOLDER}*"):
        match = re.fullmatch(rf"{_FOLDER}(\d+)-.*", path.name)
        if match is not None and not _runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)  # not through a link, and not what is another user's


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _unknown() -> ApiError:
    return ApiError(
        ProblemKind.JOB_NOT_FOUND, "there is no such job: it was never made, is another key's, or is forgotten by now"
    )
