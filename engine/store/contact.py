"""Whether a server answers: what all who ask it in this process have found."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock
from weakref import WeakValueDictionary

SILENT_S = 10.0
"""After which a server that has not answered a request is taken to be away, and who waits is told."""

log = logging.getLogger("hubhound.store")

_CONTACTS: WeakValueDictionary[str, Contact] = WeakValueDictionary()
_LOCK = Lock()


class Contact:
    """The contact with one server. Safe to use from any thread.

    Args:
        where: URL of the server.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._lock = Lock()
        self._numbers = count()
        self._asking: dict[int, float] = {}
        self._answered_at: float | None = None
        self._lost_at: float | None = None
        self._told = False

    @property
    def up(self) -> bool:
        """Whether it answered when it was last asked; False, too, while an answer is long in coming."""
        now = time.monotonic()
        with self._lock:
            last = -1.0 if self._answered_at is None else self._answered_at
            waiting = any(now - max(begun, last) > SILENT_S for begun in self._asking.values())
            return self._lost_at is None and not waiting

    @property
    def age_s(self) -> float | None:
        """Seconds since it last answered, None if it never did."""
        with self._lock:
            return None if self._answered_at is None else time.monotonic() - self._answered_at

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While a request waits for its answer."""
        number = next(self._numbers)
        with self._lock:
            self._asking[number] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._asking[number]

    def answered(self) -> None:
        """It has answered, if only that it will not do what was asked."""
        now = time.monotonic()
        with self._lock:
            before = self._lost_at if self._lost_at is not None else self._answered_at
            told, self._told = self._told, False
            self._answered_at, self._lost_at = now, None
        if told:
            away = "" if before is None else f" after {now - before:.0f} s"
            log.warning("the Qdrant server at %s answers again%s", self.where, away)

    def failed(self) -> None:
        """It has not answered, or only that it cannot now."""
        with self._lock:
            if self._lost_at is None:
                self._lost_at = time.monotonic()

    def tell(self, message: str) -> None:
        """Tells who waits why, once until it answers again."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            log.warning("%s", message)


def contact_with(where: str) -> Contact:
    """The contact with a server that this process has, kept as long as somebody has it.

    Args:
        where: URL of the server.
    """
    with _LOCK:
        contact = _CONTACTS.get(where)
        if contact is None:
            contact = _CONTACTS[where] = Contact(where)
        return contact
