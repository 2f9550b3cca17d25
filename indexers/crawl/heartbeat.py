"""The file by which a supervisor sees that a crawl runs and gets on: ``INDEX/crawl/heartbeat.json``."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.files import write_json
from indexers.crawl import log
from indexers.crawl.watch import Watch

FILE = "heartbeat.json"

EVERY_S = 5.0
"""Seconds from one writing to the next."""

STALE_S = 60.0
"""On another host than the crawl's, a heartbeat older than this is taken for a dead one's."""

Phase = Literal["listing", "crawling", "waiting", "stopping"]


class Held(BaseModel):
    """A model that a stage is at work on.

    Attributes:
        stage: One of the stages of a crawl.
        repo: Its id.
        since: ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    repo: str
    since: str


class Beat(BaseModel):
    """What the file says.

    Attributes:
        pid: Of the daemon.
        host: That it runs on.
        birth: When the system says the process began, in its own ticks; tells it from a later one of the same number.
        at: When the daemon last went through its main loop, ISO 8601 in UTC; stands still when the daemon does.
        state: What it is at.
        counts: From the start of the run, by name.
        rates: Of the last ten minutes and overall, by name.
        in_hand: What the stages are at work on, the longest first.
    """

    # A newer version may say more; a supervisor that reads the file has no use for refusing it.
    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    host: str
    birth: str | None = None
    at: datetime
    state: Phase
    counts: dict[str, int]
    rates: dict[str, float | None]
    in_hand: list[Held]


@dataclass(frozen=True)
class Heartbeat:
    """The heartbeat of a crawl, as found.

    Attributes:
        beat: What the file says.
        age_s: Seconds since the daemon last went through its main loop.
        alive: Whether the daemon's process runs; on another host, whether the file is fresh.
    """

    beat: Beat
    age_s: float
    alive: bool


class HeartbeatWriter:
    """Keeps the file current while a crawl runs; a context manager that removes it at the end, whatever the end.

    A thread writes, the daemon's main loop says when it comes by: the time in the file is the main loop's, so that
    it stands still when the loop hangs. What cannot be written is logged once and never stops the crawl.

    Args:
        path: The file; its folder must exist.
        watch: What the crawl counts in.
        every_s: Seconds from one writing to the next.
        clock: Seconds since 1970.
    """

    def __init__(
        self, path: Path, watch: Watch, every_s: float = EVERY_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._watch = watch
        self._every_s = every_s
        self._clock = clock
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._birth = _birth(self._pid)
        self._beat: tuple[Phase, float] = ("listing", clock())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._troubled = False

    def __enter__(self) -> HeartbeatWriter:
        with contextlib.suppress(OSError):
            for left in self._path.parent.glob(f".{self._path.name}.*"):  # of one that was killed as it wrote
                left.unlink(missing_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def beat(self, state: Phase) -> None:
        """The main loop has come by.

        Args:
            state: What the crawl is at.
        """
        self._beat = (state, self._clock())

    def close(self) -> None:
        """Stops writing and removes the file; harmless when done already."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        found = _load(self._path)
        if found is None or (found.pid, found.host) == (self._pid, self._host):
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            self._write()

    def _write(self) -> None:
        (state, at), now, written = self._beat, self._watch.now(), self._clock()
        beat = Beat(
            pid=self._pid,
            host=self._host,
            birth=self._birth,
            at=_utc(at),
            state=state,
            counts=now.counts(),
            rates=now.rates(),
            in_hand=[
                Held(stage=held.stage, repo=log.escaped(held.repo), since=_utc(written - held.seconds).isoformat())
                for held in now.in_hand
            ],
        )
        try:
            write_json(self._path, beat.model_dump(mode="json"))
        except OSError as error:
            if not self._troubled:
                log.warning("heartbeat not written", path=self._path, detail=error.strerror or str(error))
            self._troubled = True
        else:
            self._troubled = False


def read(path: Path, clock: Callable[[], float] = time.time) -> Heartbeat | None:
    """Looks whether a crawl runs.

    Args:
        path: The file.
        clock: Seconds since 1970.

    Returns:
        None where there is no heartbeat, or nothing that can be understood as one.
    """
    beat = _load(path)
    if beat is None:
        return None
    age_s = max(0.0, clock() - beat.at.timestamp())
    here = beat.host == socket.gethostname()
    return Heartbeat(beat, age_s, _runs(beat.pid, beat.birth) if here else age_s <= STALE_S)


def _load(path: Path) -> Beat | None:
    try:
        return Beat.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _runs(pid: int, birth: str | None) -> bool:
    """Whether a process of this number runs and is the one meant."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # there is one, of another user
    found = _birth(pid)
    return found != "" and (birth is None or found is None or found == birth)


def _birth(pid: int) -> str | None:
    """When a process began, in ticks since the system did; empty for one that has ended, None where /proc tells not."""
    try:
        # The name, in brackets, may hold anything; what follows it is the third field of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in b"ZX" else fields[19].decode("ascii")
    except (OSError, IndexError):
        return None
