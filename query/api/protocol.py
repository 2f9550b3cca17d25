"""What a connection may do before a request is there that the guards can look at."""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import suppress
from typing import Any, ClassVar
from uuid import uuid4

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from query.api.errors import LOGGER, ApiError, ProblemKind, problem_response

_RESERVED_DESCRIPTORS = 200  # for the index, uploads, thumbnails, jobs and the libraries
_MOST_CONNECTIONS = 4000
_DISCARDED_HEADS = 16  # so many times the limit of a head is read and thrown away from a client that was refused
_TELL_AGAIN_S = 60.0
_OFFERS = frozenset({b"upgrade", b"http2-settings"})

log = logging.getLogger(LOGGER)


def room_for_connections() -> int:
    """How many connections there may be at once, after this process was allowed all the descriptors it may have."""
    with suppress(OSError, ValueError):  # some systems call a limit endless and do not take that back
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, max(descriptors - _RESERVED_DESCRIPTORS, descriptors // 2))


class Connection(HttpToolsProtocol):
    """Uvicorn's connection with limits where it has none: on heads, on silence, on the number of connections.

    A request that offers another protocol (``Upgrade``) is answered as if it did not, which RFC 9110 section 7.8
    allows; uvicorn would lose its body.

    Attributes:
        HEAD_BYTES: Largest head of a request, also of what follows a body in chunks. A head that begins in the middle
            of what was received may have twice as many.
        HEAD_S: Seconds from the connection, or on a kept one from the first byte, until a head is whole.
        LINGER_S: Seconds for which a client whose head was refused may go on sending before it is cut off: closed at
            once, the answer could be lost on its way.
        MOST_CONNECTIONS: More are closed at once.
    """

    HEAD_BYTES: ClassVar[int] = 64 * 1024
    HEAD_S: ClassVar[float] = 10.0
    LINGER_S: ClassVar[float] = 2.0
    MOST_CONNECTIONS: ClassVar[int] = _MOST_CONNECTIONS

    _told_full_at: ClassVar[float] = float("-inf")

    @classmethod
    def limited_to(cls, connections: int) -> type[Connection]:
        """The same with another limit on the number of connections.

        Args:
            connections: At once, at least 1.
        """
        return type(cls.__name__, (cls,), {"MOST_CONNECTIONS": connections})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room_bytes = self.HEAD_BYTES
        self._progress = 0  # grows with every head that is whole and every piece of a body
        self._offers_upgrade = False
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Lets a client in, if there is room for it."""
        if len(self.connections) >= self.MOST_CONNECTIONS:
            self.transport = transport
            self._refused = True
            self._tell_full()
            transport.abort()
            return
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.HEAD_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets a client."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what came, no more at once than a head may have."""
        self._unset_keepalive_if_required()
        rest: bytes | memoryview = data
        while rest and not (self._refused or self.transport.is_closing()):
            piece = rest
            if len(rest) > self._room_bytes:
                view = memoryview(rest)
                piece, rest = view[: self._room_bytes], view[self._room_bytes :]
            else:
                rest = b""
            self._take(piece)
        if self._refused:
            self._discard(len(rest))
        elif self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            # Nobody is being answered, and these bytes have ended the time that a kept connection may be idle.
            self._head_timer = self.loop.call_later(self.HEAD_S, self.transport.abort)

    def on_headers_complete(self) -> None:
        """Begins to answer, unless the head is to be read once more without what it offers."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers_upgrade = True
            return
        self._progress += 1
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hands on a piece of a body."""
        self._progress += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a body."""
        self._progress += 1
        if not self._offers_upgrade:
            super().on_message_complete()

    def _take(self, data: bytes | memoryview) -> None:
        before = self._progress
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        self._room_bytes = self.HEAD_BYTES if self._progress > before else self._room_bytes - len(data)
        if self._room_bytes <= 0:
            self._refuse()

    def _feed(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offered:
                if not self._offers_upgrade:  # CONNECT: what follows its head is not HTTP
                    return
                data = memoryview(data)[offered.args[0] :]
            head = self._head_without_offer()
            self._offers_upgrade = False
            # The parser takes everything behind such a head for another protocol, and cannot be told otherwise.
            self.parser = httptools.HttpRequestParser(self)
            with suppress(AttributeError):  # before httptools 0.6.3
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _OFFERS]
                lines.append(b"connection:" + b",".join(tokens))
            elif name not in _OFFERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self) -> None:
        self._refused = True
        self._stop_head_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # the answer would be taken for that of the request before
            return
        detail = f"the head of a request may have {self.HEAD_BYTES:,} bytes: send fewer or shorter header fields"
        problem = ApiError(ProblemKind.TOO_LARGE, detail).problem
        request_id = uuid4().hex
        log.info("request %s: status %d, its head is too large", request_id, problem.status)
        answer = problem_response(problem, request_id)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        headers.append((b"x-request-id", request_id.encode()))
        lines = b"".join(b"%s: %s\r\n" % one for one in headers)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + bytes(answer.body))
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(self.LINGER_S, self.transport.abort)

    def _discard(self, size_bytes: int) -> None:
        self._room_bytes -= size_bytes
        if self._room_bytes < -_DISCARDED_HEADS * self.HEAD_BYTES:
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _tell_full(self) -> None:
        now = self.loop.time()
        if now - self._told_full_at >= _TELL_AGAIN_S:
            type(self)._told_full_at = now
            log.warning(
                "%d connections are open, which is all there may be: more are closed at once", len(self.connections)
            )
