"""How long to wait before something that failed, and may pass, is tried again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

RETRY_AFTER_LIMIT_S = 3600.0
"""Longest wait, in seconds, that a server can ask for; a larger Retry-After counts as this."""

SMALLEST = 0.1
"""No wait is shorter than this part of the base: a draw near zero would be no wait at all."""


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter: ``wait ~ U(0, min(longest, base * factor ** (attempt - 1)))``.

    The jitter goes down to zero because many workers that failed together must not come back together
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Attributes:
        base_s: Longest wait after the first attempt, in seconds, above 0.
        factor: By which the longest wait grows with each attempt, at least 1.
        longest_s: The longest wait grows no further than this, in seconds, at least ``base_s``.
        attempts: After as many attempts a failure is for good, at least 1.

    Raises:
        ValueError: If one of them is out of its range.
    """

    base_s: float = 10.0
    factor: float = 2.0
    longest_s: float = 3600.0
    attempts: int = 8

    def __post_init__(self) -> None:
        if not (self.base_s > 0 and self.factor >= 1 and self.base_s <= self.longest_s < math.inf):
            raise ValueError(f"not a backoff: {self}")
        if self.attempts < 1:
            raise ValueError("there must be one attempt at least")

    def wait_s(self, attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
        """Seconds to wait after a failed attempt.

        Args:
            attempt: Which attempt failed, from 1.
            retry_after_s: What the server asked for: a lower bound up to ``RETRY_AFTER_LIMIT_S``, on top of which up to
                ``base_s`` is drawn; None, and what is no time, if it named none.
            rng: Where the jitter comes from; one number is drawn.

        Returns:
            At least ``SMALLEST * base_s``, at most ``longest_s``, or ``retry_after_s + base_s`` if that is more.

        Raises:
            ValueError: If ``attempt`` is not positive.
        """
        if attempt < 1:
            raise ValueError("attempts are counted from 1")
        draw = rng.random()
        try:
            ceiling = min(self.longest_s, self.base_s * self.factor ** (attempt - 1))
        except OverflowError:
            ceiling = self.longest_s
        wait = max(SMALLEST * self.base_s, draw * ceiling)
        if retry_after_s is None or not retry_after_s > 0:
            return wait
        return max(wait, min(retry_after_s, RETRY_AFTER_LIMIT_S) + draw * self.base_s)
