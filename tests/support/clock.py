"""A clock for tests."""

from __future__ import annotations


class Clock:
    """Stands still unless told otherwise.

    Args:
        now: What it shows.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
