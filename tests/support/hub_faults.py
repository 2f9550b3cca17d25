"""What a Hub does wrong, and when: on request, or at random."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """An answer that is given instead of the right one.

    Attributes:
        path: Regular expression that the request's path must contain.
        method: Of the requests it is for, None for any.
        status: The wrong status; 0 to close the connection without an answer.
        times: How often, -1 for always.
        headers: Sent along.
        cut: Send the right answer, but only so many bytes of its body, and close the connection.
        cut_share: The same as a share of the body, 0 to 1.
        delay_s: Wait this long first.
        reset: Close with a TCP reset instead of an orderly end; with neither ``cut`` nor ``status``, before any answer.
        page: Of a listing, from 1, None for any.
        skip: Let so many requests pass first.
    """

    path: str = ""
    method: str | None = None
    status: int | None = None
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    cut_share: float | None = None
    delay_s: float = 0.0
    reset: bool = False
    page: int | None = None
    skip: int = 0

    @property
    def silent(self) -> bool:
        """Whether there is no answer at all."""
        cut = self.cut is not None or self.cut_share is not None
        return self.status == 0 or (self.reset and self.status is None and not cut)

    def length(self, size: int) -> int:
        """How many bytes of a body of this size are sent."""
        if self.cut is not None:
            return min(self.cut, size)
        return size if self.cut_share is None else int(size * self.cut_share)

    def fits(self, method: str, path: str, page: int | None) -> bool:
        """Whether it is for such a request."""
        return (
            self.times != 0
            and self.method in (None, method)
            and self.page in (None, page)
            and re.search(self.path, path) is not None
        )


class RandomFaults:
    """Fails a share of all requests in ways that pass.

    Args:
        share: Of the requests, 0 to 1.
        seed: Of the choice; with several clients at once also their order decides.
        retry_after_s: What the answers with status 429 ask for.

    Attributes:
        given: How often each kind was given.
    """

    WITHOUT_BODY = ("429", "500", "503", "504", "reset before answer")
    WITH_BODY = (*WITHOUT_BODY, "reset in body", "truncated body")

    def __init__(self, share: float, seed: int, retry_after_s: int = 1) -> None:
        self.share = share
        self.retry_after_s = retry_after_s
        self.given: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def take(self, method: str) -> Fault | None:
        """The fault of the next request, if it gets one."""
        with self._lock:
            if self._random.random() >= self.share:
                return None
            kind = self._random.choice(self.WITHOUT_BODY if method == "HEAD" else self.WITH_BODY)
            cut_share = self._random.random() * 0.9
            self.given[kind] += 1
        if kind.isdigit():
            headers = {"Retry-After": str(self.retry_after_s)} if kind == "429" else {}
            return Fault(status=int(kind), headers=headers)
        if kind == "reset before answer":
            return Fault(reset=True)
        return Fault(cut_share=cut_share, reset=kind == "reset in body")
