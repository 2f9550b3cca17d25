"""How often one may ask: a bucket of tokens for each."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_BUCKETS = 10_000
"""Buckets that are remembered; the one that was longest not asked for is forgotten first, and would be full again."""

MIN_BURST = 10.0
"""Requests that may come at once, however low the rate."""


class RateLimit:
    """Token buckets: each fills at a steady rate up to a burst, and a request takes a token. For use from one thread.

    In any ``t`` seconds one name is let through at most ``burst + t * per_minute / 60`` times.

    Args:
        per_minute: Requests a minute; 0 for any number.
        clock: Seconds that only grow.

    Attributes:
        burst: Requests that may come at once: a sixth of a minute's, at least 10.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._clock = clock
        self.burst = max(MIN_BURST, per_minute / 6)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Buckets that are remembered."""
        return len(self._buckets)

    def take(self, name: str, cost: float = 1.0) -> float:
        """Takes a token.

        Args:
            name: Whose bucket.
            cost: Tokens to take, > 0 and at most the burst.

        Returns:
            0 if they were taken; otherwise nothing was, and these are the seconds until they can be.
        """
        if not self._per_second:
            return 0.0
        now = self._clock()
        tokens, since = self._buckets.pop(name, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self._per_second)
        # Floating point: a client that comes exactly when it was told to is not sent away for a billionth of a token.
        enough = tokens >= cost - 1e-9
        self._buckets[name] = (max(0.0, tokens - cost) if enough else tokens, now)
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (cost - tokens) / self._per_second
