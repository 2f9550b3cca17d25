"""What watches a model's process from outside while it works: its time, its memory, and the files it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import Reason
from indexers.crawl import scratch
from indexers.crawl.limits import SCRATCH_ENTRIES, Limits
from indexers.crawl.messages import Channel, Telling
from indexers.crawl.process import Birth, Process

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""

NAME = "memory and disk watched"
"""What this adds to the layers of the process's own sandbox."""

_LOOK_EVERY_S = 0.1
_SEARCH_EVERY_S = 0.5
_TELL_EVERY_S = 0.1


class BrokenError(Exception):
    """A process can no longer be used.

    Args:
        reason: What the model failed with.
        detail: One line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass
class Child:
    """A model's process, as the daemon knows it.

    Attributes:
        birth: Of it.
        process: Kills and measures it.
        channel: Talks to it.
        folder: Its scratch folder.
        born_bytes: Memory it was born with.
        jobs: Models it was given so far.
    """

    birth: Birth
    process: Process
    channel: Channel
    folder: Path
    born_bytes: int = 0
    jobs: int = 0


class Watchdog:
    """Looks after one job of a process from outside.

    Args:
        child: The process.
        limits: What it may take.
        progress: Told how far it is, a few times a second.
    """

    def __init__(self, child: Child, limits: Limits, progress: Progress | None) -> None:
        self._child = child
        self._limits = limits
        self._progress = progress
        self._started = self._told = time.monotonic()
        self._looked = 0.0
        self._searched = self._started
        self.stage = "starting"
        """What the process is doing, as it says."""

    def tell(self, telling: Telling) -> None:
        """Passes on how far the process is.

        Args:
            telling: What it said.
        """
        now = time.monotonic()
        if self._progress and (telling.what != self.stage or now - self._told >= _TELL_EVERY_S):
            self._told = now
            self._progress(telling.what, telling.done, telling.total)
        self.stage = telling.what

    def look(self) -> None:
        """Looks at time, memory and disk; cheap enough to be called all the time.

        Raises:
            BrokenError: The process takes more than it may.
        """
        now = time.monotonic()
        limits = self._limits
        if now - self._started > limits.time_s:
            raise BrokenError(Reason.TIMED_OUT, f"it was stopped after {limits.time_s:g} s while {self.stage}")
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        has = self._child.process.memory_bytes()
        if has is not None and has - self._child.born_bytes > limits.memory_bytes:
            raise BrokenError(
                Reason.OUT_OF_MEMORY,
                f"it was stopped when it took more than {limits.memory_bytes / 1e9:.3g} GB while {self.stage}",
            )
        if now - self._searched >= _SEARCH_EVERY_S:
            self._searched = now
            lies = scratch.size_bytes(self._child.folder)
            if lies is None:
                detail = f"it was stopped when it made more than {SCRATCH_ENTRIES:,} files while {self.stage}"
                raise BrokenError(Reason.CRASHED, detail)
            if lies + self._child.process.hidden_bytes() > limits.scratch_bytes:
                detail = (
                    f"it was stopped when it wrote more than {limits.scratch_bytes / 1e9:.3g} GB while {self.stage}"
                )
                raise BrokenError(Reason.CRASHED, detail)
