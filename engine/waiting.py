"""Locks between processes of one machine, whose wait is told and may have an end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

TOLD_S = 10.0
"""After which who waits is told for what."""

OLDER_AFTER_S = 20.0
"""After which who can do with what is here already does not wait any longer for what is newer."""

_AGAIN_S = 60.0
"""So long after a wait in vain nobody waits again: a command looks more than once, a service every second."""

log = logging.getLogger("hubhound.store")

_TOLD: set[str] = set()
_IN_VAIN: dict[str, float] = {}


@contextmanager
def turn(path: Path, other: str, most_s: float | None = None) -> Iterator[bool]:
    """Holds a lock, after waiting for those who had it.

    Args:
        path: Of the lock's file.
        other: What another process does that has it, to read as "another process OTHER".
        most_s: To wait at most; None for as long as it takes. Where the wait was in vain, nobody in this process waits
            again for the next minute.

    Yields:
        Whether it is held; always, unless there is an end to the wait.

    Raises:
        OSError: The lock's file cannot be made.
    """
    key = str(path)
    if most_s is not None and time.monotonic() < _IN_VAIN.get(key, 0.0):
        most_s = 0.0
    lock = FileLock(path)
    held = _acquired(lock, TOLD_S if most_s is None else min(TOLD_S, most_s))
    if not held and (most_s is None or most_s > TOLD_S):
        if key not in _TOLD:
            _TOLD.add(key)
            log.warning("another process %s: waiting for it", other)
        held = _acquired(lock, -1 if most_s is None else most_s - TOLD_S)
    if not held:
        if most_s:
            _IN_VAIN[key] = time.monotonic() + _AGAIN_S
        yield False
        return
    _TOLD.discard(key)
    _IN_VAIN.pop(key, None)
    try:
        yield True
    finally:
        lock.release()


def _acquired(lock: FileLock, timeout_s: float) -> bool:
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return False
    return True
