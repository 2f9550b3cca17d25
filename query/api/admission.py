"""Who is let in: so many requests at once, each with a body of so many bytes.

A slot belongs to the work of a request, not to its connection: it is given back when the answer has been sent *and*
everything that was handed to other threads on its behalf has ended. Whoever hands something over says so::

    future = pool.submit(work)
    hold_while(future)
    return await asyncio.wrap_future(future)
"""

from __future__ import annotations

from asyncio import Future as AsyncFuture
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from query.api.errors import ApiError, ProblemKind, retry_after

JSON_BYTES = 1_000_000
"""Largest body that is not multipart, whatever ``max_body_mb`` allows: it is parsed while other requests wait."""

RETRY_S = 1.0
"""When a client that found no slot is told to come back, in seconds."""

_CURRENT: ContextVar[Slot | None] = ContextVar("hubhound_slot", default=None)


class Slot:
    """A place among the requests in flight; taken until everybody who holds it has let go.

    Args:
        free: Called once, by whoever lets go last, from any thread.
    """

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self._held = 1
        self._lock = Lock()

    def hold(self) -> bool:
        """One more holds it, unless everybody has let go already: a task may outlive the request that began it.

        Returns:
            Whether it is held now, and has to be let go.
        """
        with self._lock:
            held = self._held > 0
            self._held += held
        return held

    def let_go(self, _: object = None) -> None:
        """One less holds it; to be called once for each hold, and once by whoever took the slot."""
        with self._lock:
            self._held -= 1
            last = self._held == 0
        if last:
            self._free()


class Slots:
    """So many requests in flight, of which one client never has more than half. Safe to use from any thread.

    Args:
        most: Slots, at least 1. A client may have one of 1.
        told: Called with how many are taken, whenever that changes.
    """

    def __init__(self, most: int, told: Callable[[int], None]) -> None:
        self._most = most
        self._told = told
        self._share = max(1, most // 2)
        self._taken = 0
        self._of: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def taken(self) -> int:
        """Slots that somebody holds."""
        return self._taken

    @contextmanager
    def slot(self, client: str | None = None) -> Iterator[Slot]:
        """A slot for the request that is being answered, which `hold_while` finds in the same task.

        Args:
            client: Who asks, as told apart from others; None where all who ask are one.

        Raises:
            ApiError: ``busy``: none is free, or the client has half of all.
        """
        self._take(client)
        slot = Slot(lambda: self._give_back(client))
        before = _CURRENT.set(slot)
        try:
            yield slot
        finally:
            _CURRENT.reset(before)
            slot.let_go()

    def _take(self, client: str | None) -> None:
        with self._lock:
            if self._taken >= self._most:
                raise _busy(f"as many requests as may be, {self._most:,}")
            if client is not None:
                if self._of[client] >= self._share:
                    raise _busy(f"as many of your requests as may be, {self._share:,}")
                self._of[client] += 1
            self._taken += 1
            self._told(self._taken)

    def _give_back(self, client: str | None) -> None:
        with self._lock:
            if client is not None:
                self._of[client] -= 1
                if not self._of[client]:
                    del self._of[client]
            self._taken -= 1
            self._told(self._taken)


def _busy(what: str) -> ApiError:
    return ApiError(
        ProblemKind.BUSY, f"{what}, are being answered: come back in a moment", headers=retry_after(RETRY_S)
    )


def hold_while(future: Future[Any] | AsyncFuture[Any]) -> None:
    """Keeps the slot of the request that is being answered until a future is done, however the request ends.

    Outside a request it does nothing.

    Args:
        future: What other threads work on; one that was cancelled while it waited is done.
    """
    slot = _CURRENT.get()
    if slot is not None and slot.hold():
        future.add_done_callback(slot.let_go)


class Body:
    """The body of a request, no longer than it may be.

    Args:
        receive: Where it comes from.
        headers: Of the request.
        max_body_bytes: Largest body; what is not multipart may have `JSON_BYTES` at most.

    Attributes:
        over: Whether more came than may.
        whole: Whether all of it has come.
        gone: Whether the client went away.
    """

    def __init__(self, receive: Receive, headers: Headers, max_body_bytes: int) -> None:
        self._receive = receive
        multipart = headers.get("content-type", "").lstrip().lower().startswith("multipart/")
        self._most = max_body_bytes if multipart else min(max_body_bytes, JSON_BYTES)
        self._bytes = 0
        self.over = False
        self.gone = False
        self._lengths = headers.getlist("content-length")
        self.whole = not ("transfer-encoding" in headers or any(length != "0" for length in self._lengths))

    def check_head(self) -> None:
        """Refuses what the head of the request says to be too large.

        Raises:
            ApiError: ``too-large``, or ``invalid-request``: the length is not a number.
        """
        lengths = self._lengths
        if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
            raise ApiError(ProblemKind.INVALID_REQUEST, "Content-Length is not one number", headers=_CLOSE)
        # More than 18 digits are too many bytes whatever they are, and Python may refuse to read them.
        if lengths and (len(lengths[0].lstrip("0")) > 18 or int(lengths[0]) > self._most):
            self.over = True
            raise self.too_large

    @property
    def too_large(self) -> ApiError:
        """What is raised when more comes than may."""
        return ApiError(
            ProblemKind.TOO_LARGE,
            f"the body is larger than the {self._most:,} bytes that it may have: send less at once",
            headers=_CLOSE,
            max_bytes=self._most,
        )

    async def receive(self) -> Message:
        """The next part.

        Raises:
            ApiError: ``too-large``.
        """
        if self.over:
            raise self.too_large
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self._bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            self.whole = True
        if self._bytes > self._most:
            self.over = True
            raise self.too_large
        return message

    async def drain(self) -> None:
        """Reads the rest and drops it: a connection that is closed on a client who still sends loses the answer."""
        while not (self.whole or self.gone):
            message = await self._receive()
            self.gone = message["type"] == "http.disconnect"
            self.whole = not message.get("more_body", False)


_CLOSE = {"Connection": "close"}
