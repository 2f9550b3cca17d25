"""Another process, watched and killed from outside; whatever runs in it has no say in that."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

PEAK, OWN = ("VmHWM",), ("RssAnon", "RssShmem")


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        status: Its exit status, None if a signal ended it.
        signal: That signal.
    """

    status: int | None
    signal: int | None

    def __str__(self) -> str:
        """The end of a sentence that begins with "its process"."""
        if self.signal is None:
            return f"exited with status {self.status}"
        name = (signal.strsignal(self.signal) or "unknown").lower()
        return f"ended with signal {self.signal} ({name})"


@dataclass(frozen=True)
class Birth:
    """A process that a nursery has forked.

    Attributes:
        pid: Its id.
        generation: Which of the nurseries that were started one after the other has forked it.
    """

    pid: int
    generation: int


class Process:
    """A process that somebody else started and waits for.

    Args:
        pid: Its id; it must not have been waited for yet, so that the id is still its own.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # Of the kind that a signal handler may take while it interrupts its holder.
        self._lock = threading.RLock()
        self._open = True
        self._handle: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """Ends it at once; can be called from every thread and from a signal handler, and after its end."""
        with self._lock:
            if not self._open:
                return
            with contextlib.suppress(OSError):
                if self._handle is not None:
                    signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                else:
                    os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Forgets it; must come before anybody waits for it."""
        with self._lock:
            self._open = False
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def memory_bytes(self) -> int | None:
        """Its resident memory without files that it has mapped; None where the platform does not tell."""
        return self._sum(OWN)

    def peak_bytes(self) -> int | None:
        """Its largest resident size so far, with mapped files; None where the platform does not tell."""
        return self._sum(PEAK)

    def hidden_bytes(self) -> int:
        """Disk space and memory of files that it holds open and that have no name any more."""
        total = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    total += facts.st_blocks * 512 if facts.st_nlink == 0 else 0
        return total

    def _sum(self, names: tuple[str, ...]) -> int | None:
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        found = [int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in names]
        return sum(found) if found else None
