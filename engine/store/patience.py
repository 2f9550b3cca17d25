"""How requests to a server are repeated, slowed down and given up.

Every request of a store can be repeated: writing a record again, with the same id, changes nothing, and removing what
is gone does nothing. So whatever may pass (a refused or lost connection, no answer in time, 408, 429, 502, 503, 504)
is tried again, with waits that double and are drawn at random, so that many clients do not return together; a server
that says how long to wait (``Retry-After``) is obeyed. What cannot pass (a wrong key, a full disk, something that is
not Qdrant) is reported at once.
"""

from __future__ import annotations

import functools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Timer
from typing import TypeVar

from qdrant_client import QdrantClient

from engine.errors import HubhoundError, InputError, StoreError
from engine.store.contact import SILENT_S, Contact, contact_with
from engine.store.trouble import Kind, Trouble, trouble_of

T = TypeVar("T")
Item = TypeVar("Item")

DEADLINE = "HUBHOUND_QDRANT_DEADLINE"
"""Environment variable: seconds after which a request that keeps failing is given up."""

_DEADLINE_S = 120.0
_TOLD_S = 3.0
"""After which somebody who waits is told why."""


def deadline_from_environment() -> float:
    """Seconds after which a request that keeps failing is given up; 120 unless told.

    Raises:
        InputError: The variable is not a number from 1 to 86400.
    """
    text = os.environ.get(DEADLINE)
    if not text:
        return _DEADLINE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise InputError(f"{DEADLINE}={text[:40]!r}: use a number of seconds from 1 to 86400")
    return seconds


class Pace:
    """How much goes into one request: halved when the server is overburdened, grown back as it recovers.

    Args:
        most: Items in one request at best, at least 1.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = most

    def slower(self, tried: int) -> bool:
        """Halves after a request of some items was too much; False if there was nothing to halve."""
        self.size = max(1, min(self.size, tried // 2))
        return tried > 1

    def faster(self) -> None:
        """Grows by a quarter after a request that worked."""
        self.size = min(self.most, self.size + max(1, self.size // 4))


class Patience:
    """Repeats requests to one server, and says in one line why it gave up.

    Args:
        where: URL of the server, for messages.
        name: Of the index, for messages.
        keyed: Whether an API key is sent.
        deadline_s: How long a request may fail before it is given up, None for the environment's.
        contact_s: The same, as long as nobody has ever answered at the address: who mistyped it should not wait long.
        first_wait_s: Before the second try, on average; doubled before each further one.
        longest_wait_s: Between two tries, unless the server asks for more.
        contact: With the server, None for the one at ``where``.
        watched: Tell who waits long for one answer; over HTTP its connections do so (:mod:`engine.store.limits`).

    Attributes:
        contact: With the server, shared by all of this process who ask it.
    """

    def __init__(
        self,
        where: str,
        name: str,
        *,
        keyed: bool = False,
        deadline_s: float | None = None,
        contact_s: float = 5.0,
        first_wait_s: float = 0.2,
        longest_wait_s: float = 15.0,
        contact: Contact | None = None,
        watched: bool = False,
    ) -> None:
        self.where = where
        self._name = name
        self._keyed = keyed
        self._deadline_s = deadline_from_environment() if deadline_s is None else deadline_s
        self._contact_s = min(contact_s, self._deadline_s)
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s
        self._answered = False
        self.contact = contact or contact_with(where)
        self._watched = watched

    def call(self, doing: str, request: Callable[[], T]) -> T:
        """The answer to a request, repeated until there is one.

        Args:
            doing: What is being done, to read as "cannot DOING the index NAME at URL".
            request: The request; it may be executed any number of times.

        Raises:
            StoreError: It was refused, or failed for longer than the deadline.
        """
        started = time.monotonic()
        tries = 0
        while True:
            try:
                return self._tried(request)
            except HubhoundError:
                raise
            except Exception as error:
                tries += 1
                self._wait(doing, trouble_of(error), error, tries, started)

    def pages(self, doing: str, pace: Pace, request: Callable[[int], tuple[Sequence[Item], bool]]) -> Iterator[Item]:
        """What comes in pages, with as much in a page as the server can answer in time.

        Args:
            doing: As in :meth:`call`.
            pace: How much to ask for.
            request: Given a number of items, the next so many and whether there are more; called again with a smaller
                number if it failed.
        """
        more = True
        while more:
            found, more = self._paced(doing, pace, pace.most, request)
            yield from found

    def each(self, doing: str, items: Sequence[Item], pace: Pace, request: Callable[[Sequence[Item]], object]) -> None:
        """Hands over many items in parts that the server can take; the deadline is that of each part.

        Args:
            doing: As in :meth:`call`.
            items: What to hand over.
            pace: How many at once.
            request: Hands over a part; it may be executed any number of times with overlapping parts.
        """
        start = 0
        while start < len(items):
            at = start

            def part(size: int, at: int = at) -> int:
                request(items[at : at + size])
                return size

            start += self._paced(doing, pace, len(items) - at, part)

    def _paced(self, doing: str, pace: Pace, most: int, request: Callable[[int], T]) -> T:
        """One request whose size is halved whenever it proves too large."""
        started = time.monotonic()
        tries = 0
        while True:
            size = min(pace.size, most)
            try:
                answer = self._tried(functools.partial(request, size))
            except HubhoundError:
                raise
            except Exception as error:
                trouble = trouble_of(error)
                tries += 1
                if trouble.smaller and pace.slower(size) and not trouble.again:
                    continue  # refused for its size alone: a smaller one need not wait
                self._wait(doing, trouble, error, tries, started)
                continue
            pace.faster()
            return answer

    def _tried(self, request: Callable[[], T]) -> T:
        with self.contact.asking(), self._watching() if self._watched else nullcontext():
            answer = request()
        self._answered = True
        self.contact.answered()
        return answer

    @contextmanager
    def _watching(self) -> Iterator[None]:
        waits = f"the Qdrant server at {self.where} has not answered for {SILENT_S:.0f} s: waiting"
        timer = Timer(SILENT_S, self.contact.tell, [waits])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _wait(self, doing: str, trouble: Trouble, error: Exception, tries: int, started: float) -> None:
        """Waits before the next try.

        Raises:
            StoreError: There is no point in one.
        """
        if not trouble.unreached:
            self._answered = True
        if trouble.again or trouble.kind in {Kind.TRUST, Kind.FOREIGN}:
            self.contact.failed()
        else:
            self.contact.answered()
        if not trouble.again or (trouble.nowhere and not self._answered):
            raise StoreError(self._message(doing, trouble), self.where) from error
        deadline_s = self._deadline_s if self._answered else self._contact_s
        longest = min(self._longest_wait_s, self._first_wait_s * 2.0 ** min(tries, 30))
        wait_s = max(trouble.after_s, random.uniform(0, longest))  # noqa: S311
        elapsed_s = time.monotonic() - started
        if elapsed_s + wait_s > deadline_s:
            tail = f" (tried {tries} times in {elapsed_s:.0f} s)" if tries > 1 else ""
            if trouble.after_s > deadline_s:
                tail = f" (it asks to wait {trouble.after_s:.0f} s; {DEADLINE} allows {deadline_s:.0f})"
            raise StoreError(self._message(doing, trouble) + tail, self.where) from error
        if self._answered and elapsed_s > _TOLD_S:
            left_s = deadline_s - elapsed_s
            self.contact.tell(f"{self._message(doing, trouble)}; trying again for up to {left_s:.0f} s")
        time.sleep(wait_s)

    def _message(self, doing: str, trouble: Trouble) -> str:
        return trouble.message(doing, self._name, self.where, self._keyed)


def patience_with(client: QdrantClient, name: str) -> Patience:
    """Patience with the server of a client, as the environment says.

    Args:
        client: Of the server.
        name: Of the index, for messages.
    """
    options = client.init_options
    where = url = str(options.get("url") or options.get("path") or "this process")
    over_grpc = bool(options.get("prefer_grpc"))
    if over_grpc:
        where = f"{url} (gRPC port {options.get('grpc_port')})"
    keyed = options.get("api_key") is not None
    return Patience(where, name, keyed=keyed, contact=contact_with(url), watched=over_grpc)
