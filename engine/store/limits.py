"""How long a request to a server over HTTP may take.

An HTTP client limits each step (a piece sent, a piece received), not their sum: an answer that comes a byte at a time
is waited for without end. A limit of the sum would have to fit the largest page over the slowest line, and would be far
too long for all others. So what is limited is the pace. While an answer is on its way, or a request is being taken, at
least ``FLOOR_BYTES_PER_S`` must pass in each window of ``WINDOW_S`` seconds spent waiting; else the request has failed
as one that timed out has: it is repeated (:mod:`engine.store.patience`), with fewer items where it has many. An answer
that fits into one window is never too slow, so over a line below the floor smaller pages get through. Until an answer
begins the server may be at work: for that the client's own limit stands.

Over gRPC every call has one total limit, the client's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import httpcore

from engine.store.contact import SILENT_S, Contact, contact_with
from engine.store.patience import deadline_from_environment

if TYPE_CHECKING:
    import httpx
    from qdrant_client import QdrantClient

CONNECT_S = 5.0
"""For a connection to be made."""
FIRST_READ_S = 10.0
"""For an answer to begin, as long as nothing has ever been answered: what is there may not be a Qdrant server."""
WINDOW_S = 30.0
"""Over which the pace is measured, or as long as the deadline where that is shorter."""
FLOOR_BYTES_PER_S = 10_000
"""Slower is a broken line: a million outputs would take days."""

_SHORTEST_WINDOW_S = 5.0
_PIECE_BYTES = 65_536


def limit_requests(client: QdrantClient, where: str) -> None:
    """Limits the requests of a client.

    Args:
        client: Newly made.
        where: URL of its server.

    Raises:
        InputError: The deadline in the environment is no number.
    """
    client.http.client.add_middleware(_hurried())
    window_s = min(WINDOW_S, max(_SHORTEST_WINDOW_S, deadline_from_environment()))
    contact = contact_with(where)
    # Neither qdrant-client nor httpx hands a network backend through to httpcore, whose interface it is; a test fails
    # when it is no longer found where it is now.
    http: Any = client.http.client._client
    for transport in (http._transport, *http._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend, contact, window_s)


def _hurried() -> Callable[[httpx.Request, Callable[[httpx.Request], httpx.Response]], httpx.Response]:
    """Makes requests wait less for a connection, and for the first answer, than for work to be done."""
    answered = False

    def limited(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
        nonlocal answered
        limits = dict(request.extensions.get("timeout") or {})
        for kind, most_s in (("connect", CONNECT_S), ("read", limits.get("read") if answered else FIRST_READ_S)):
            if most_s is not None:
                limits[kind] = most_s if limits.get(kind) is None else min(limits[kind], most_s)
        request.extensions["timeout"] = limits
        response = send(request)
        answered = True
        return response

    return limited


class _Pace:
    """How much has passed in how many seconds of waiting, window by window."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self.begin()

    def begin(self) -> None:
        self._waited_s = 0.0
        self._bytes = 0

    @property
    def left_s(self) -> float:
        """Of the window, more than 0."""
        return self._window_s - self._waited_s

    def passed(self, size_bytes: int, seconds: float) -> float | None:
        """Counts bytes; the pace in bytes a second if it was too slow over a whole window, else None."""
        self._bytes += size_bytes
        self._waited_s += seconds
        if self._waited_s < self._window_s:
            return None
        pace = self._bytes / self._waited_s
        self.begin()
        return pace if pace < FLOOR_BYTES_PER_S else None


class _Stream(httpcore.NetworkStream):
    """A connection on which bytes must pass at some pace."""

    def __init__(self, inner: httpcore.NetworkStream, contact: Contact, window_s: float) -> None:
        self._inner = inner
        self._contact = contact
        self._window_s = window_s
        self._pace = _Pace(window_s)
        self._asking = False
        self._answering = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._asking = False
        if not self._answering:
            found = self._first(max_bytes, timeout)
            self._answering = True
            self._pace.begin()
            return found
        while True:
            limit_s = self._pace.left_s if timeout is None else min(timeout, self._pace.left_s)
            begun = time.monotonic()
            try:
                found = self._inner.read(max_bytes, limit_s)
            except httpcore.ReadTimeout:
                if timeout is not None and limit_s == timeout:
                    raise
                found = b""
                slow = self._pace.passed(0, max(limit_s, time.monotonic() - begun))
            else:
                slow = self._pace.passed(len(found), time.monotonic() - begun)
                if slow is None:
                    return found
            if slow is not None:
                raise httpcore.ReadTimeout(f"its answer comes at {slow:,.0f} bytes/s")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._answering = False
        if not self._asking:
            self._asking = True
            self._pace.begin()
        limit_s = self._window_s if timeout is None else min(timeout, self._window_s)
        for start in range(0, len(buffer), _PIECE_BYTES):
            piece = buffer[start : start + _PIECE_BYTES]
            begun = time.monotonic()
            self._inner.write(piece, limit_s)
            slow = self._pace.passed(len(piece), time.monotonic() - begun)
            if slow is not None:
                raise httpcore.WriteTimeout(f"it takes what is sent at {slow:,.0f} bytes/s")

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._contact, self._window_s)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _first(self, max_bytes: int, timeout: float | None) -> bytes:
        """The beginning of an answer; who waits long for it is told."""
        if timeout is not None and timeout <= SILENT_S:
            return self._inner.read(max_bytes, timeout)
        try:
            return self._inner.read(max_bytes, SILENT_S)
        except httpcore.ReadTimeout:
            most = "" if timeout is None else f" for up to {timeout:.0f} s"
            self._contact.tell(
                f"the Qdrant server at {self._contact.where} has not answered for {SILENT_S:.0f} s: waiting{most}"
            )
        return self._inner.read(max_bytes, None if timeout is None else timeout - SILENT_S)


class _Backend(httpcore.NetworkBackend):
    """Makes connections on which bytes must pass at some pace."""

    def __init__(self, inner: httpcore.NetworkBackend, contact: Contact, window_s: float) -> None:
        self._inner = inner
        self._contact = contact
        self._window_s = window_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        made = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(made, self._contact, self._window_s)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_unix_socket(path, timeout, socket_options), self._contact, self._window_s)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)
