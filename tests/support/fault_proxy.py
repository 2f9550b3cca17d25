"""A proxy that spoils the conversation with an HTTP server, by a script.

::

    with fault_proxy(server.url, Rule(Answer(503, retry_after_s=1), path="/points$", numbers={1, 2})) as proxy:
        QdrantClient(url=proxy.url)...
    assert proxy.count(path="/points$") == 3

Each request goes to the first rule that wants it; the others go through. ``proxy.rules`` can be changed at any time.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"}


@dataclass(frozen=True)
class Answer:
    """Answered by the proxy; the server never sees the request.

    Attributes:
        status: HTTP status.
        error: What ``status.error`` of the JSON body says.
        retry_after_s: The header, if any.
        body: The body in place of that JSON.
    """

    status: int = 503
    error: str = "Service unavailable"
    retry_after_s: float | None = None
    body: bytes | None = None


@dataclass(frozen=True)
class Reset:
    """The connection is reset.

    Attributes:
        executed: The server gets the request and answers first.
        after_bytes: How much of the answer (head and body) still goes through; 0 loses all of it.
    """

    executed: bool = False
    after_bytes: int = 0


DROP = Reset(executed=True)
"""The request is executed, its answer is lost: the client cannot know and must repeat."""


@dataclass(frozen=True)
class Hang:
    """Silence, then the connection is reset.

    Attributes:
        seconds: How long; the end of the proxy ends it, too.
        executed: The server gets the request first.
    """

    seconds: float = 3600.0
    executed: bool = False


@dataclass(frozen=True)
class Slow:
    """The answer comes late and slowly, but whole.

    Attributes:
        bytes_per_s: Speed of the answer.
        latency_s: Wait before it.
    """

    bytes_per_s: float = float("inf")
    latency_s: float = 0.0


@dataclass(frozen=True)
class Refuse:
    """The connection is reset and no other is accepted for a while, as where a server starts again.

    Attributes:
        seconds: How long; None: until :meth:`FaultProxy.listen`.
    """

    seconds: float | None = None


Fault = Answer | Reset | Hang | Slow | Refuse


@dataclass
class Rule:
    """Which requests a fault is for; all conditions must hold.

    Attributes:
        fault: What happens to them.
        method: HTTP method.
        path: Regular expression that is found in the path (without the query).
        numbers: Which of the requests with this method and path, from 1; None: each.
        probability: How likely each of them is taken.
        times: How often at most.
        seed: Of the chance.
    """

    fault: Fault
    method: str | None = None
    path: str = ""
    numbers: Collection[int] | None = None
    probability: float = 1.0
    times: int | None = None
    seed: int = 0
    met: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def wants(self, method: str, path: str) -> bool:
        """Whether the next request is one for this rule; counts it."""
        if self.method not in (None, method) or not re.search(self.path, path):
            return False
        self.met += 1
        if self.numbers is not None and self.met not in self.numbers:
            return False
        if self.times is not None and self.used >= self.times:
            return False
        if self.probability < 1 and self._chance.random() >= self.probability:
            return False
        self.used += 1
        return True


@dataclass
class Seen:
    """A request that came to the proxy.

    Attributes:
        method: HTTP method.
        path: With its query.
        fault: What was done to it, None for nothing.
        executed: The server got it and answered.
        status: What the client was told; None if it was told nothing whole.
        size_bytes: Length of its body.
        at_s: When it came (monotonic clock).
    """

    method: str
    path: str
    fault: Fault | None
    executed: bool = False
    status: int | None = None
    size_bytes: int = 0
    at_s: float = field(default_factory=time.monotonic)


class FaultProxy:
    """A proxy on the loopback interface, one thread a connection.

    Args:
        upstream: Address of the server (http).
        rules: The script.
    """

    def __init__(self, upstream: str, *rules: Rule) -> None:
        self.upstream = urlsplit(upstream)
        self.rules = list(rules)
        self.seen: list[Seen] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        # Bound but not listening: keeps the port ours while connections are refused.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self.listen()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Accepts connections (again)."""
        with self._lock:
            if self._listener is None and not self.stopped.is_set():
                self._listener = _bound(self.port)
                self._listener.listen(128)
                self._start(self._accept, self._listener)

    def refuse(self, seconds: float | None = None) -> None:
        """Resets all connections and refuses new ones, for a while or until :meth:`listen`."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener is not None:
            _close_listener(listener)
        for connection in connections:
            reset(connection)
        if seconds is not None:
            self._start(self._listen_after, seconds)

    def count(self, method: str | None = None, path: str = "", executed: bool | None = None) -> int:
        """Number of requests that came with this method and a path in which this pattern is found.

        Args:
            method: HTTP method; None: any.
            path: Regular expression.
            executed: Only those that the server did or did not get.
        """
        with self._lock:
            return sum(
                method in (None, one.method)
                and re.search(path, one.path) is not None
                and executed in (None, one.executed)
                for one in self.seen
            )

    def note(self, method: str, path: str, size_bytes: int) -> Seen:
        """Counts a request and decides what happens to it."""
        with self._lock:
            plain = path.partition("?")[0]
            fault = next((rule.fault for rule in self.rules if rule.wants(method, plain)), None)
            seen = Seen(method, path, fault, size_bytes=size_bytes)
            self.seen.append(seen)
            return seen

    def stop(self) -> None:
        """Closes everything and waits for the threads."""
        self.stopped.set()
        self.refuse()
        self._reserved.close()
        for thread in self._threads:
            thread.join(10)

    def _listen_after(self, seconds: float) -> None:
        if not self.stopped.wait(seconds):
            self.listen()

    def _start(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:  # closed
                return
            self._start(self._serve, connection, address)

    def _serve(self, connection: socket.socket, address: Any) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            _Handler(connection, address, self)  # type: ignore[arg-type]
        except OSError:  # the client or a fault ended it
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


@contextmanager
def fault_proxy(upstream: str, *rules: Rule) -> Iterator[FaultProxy]:
    """A proxy in front of a server, until the end of the block; see :class:`FaultProxy`."""
    proxy = FaultProxy(upstream, *rules)
    try:
        yield proxy
    finally:
        proxy.stop()


def reset(connection: socket.socket) -> None:
    """Ends a connection with a reset (RST), so that the other side loses what it has not read yet."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads
        os.close(connection.detach())  # not close(): the handler's files still hold the socket
    except OSError:
        pass  # it is closed


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = self.server.note(self.command, self.path, len(content))
        fault = seen.fault
        if isinstance(fault, Answer):
            seen.status = fault.status
            self._send(*_spoken(fault))
            return
        if isinstance(fault, Refuse):
            self.server.refuse(fault.seconds)
            return
        if isinstance(fault, Reset | Hang) and not fault.executed:
            self._end(fault)
            return
        try:
            answer = self._forward(content)
        except (OSError, http.client.HTTPException):
            reset(self.connection)  # no server behind us: as if it were not there
            self.close_connection = True
            return
        seen.executed = True
        if isinstance(fault, Reset | Hang):
            self._end(fault, _wire(*answer))
            return
        if isinstance(fault, Slow):
            self._drip(fault, _wire(*answer))
        else:
            self._send(*answer)
        seen.status = answer[0]

    def _forward(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        where = self.server.upstream
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        # A connection a request: a kept one may turn out to be dead, and then nobody knows whether it was executed.
        with closing(http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=600)) as upstream:
            upstream.request(self.command, self.path, content or None, headers)
            response = upstream.getresponse()
            body = response.read()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        return response.status, kept, body

    def _end(self, fault: Reset | Hang, answer: bytes = b"") -> None:
        if isinstance(fault, Hang):
            self.server.stopped.wait(fault.seconds)
        elif fault.after_bytes:
            self.wfile.write(answer[: fault.after_bytes])
            time.sleep(0.05)  # a reset overtakes what the other side has not read yet
        self.close_connection = True
        reset(self.connection)

    def _drip(self, fault: Slow, answer: bytes) -> None:
        self.server.stopped.wait(fault.latency_s)
        step_s = 0.02
        size = len(answer) if fault.bytes_per_s == float("inf") else max(1, int(fault.bytes_per_s * step_s))
        for start in range(0, len(answer), size):
            self.wfile.write(answer[start : start + size])
            if start + size < len(answer) and self.server.stopped.wait(size / fault.bytes_per_s):
                break

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.wfile.write(_wire(status, headers, body))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


def _spoken(fault: Answer) -> tuple[int, dict[str, str], bytes]:
    headers = {"Content-Type": "application/json"}
    if fault.retry_after_s is not None:
        headers["Retry-After"] = f"{fault.retry_after_s:g}"
    body = json.dumps({"status": {"error": fault.error}, "time": 0.0}).encode() if fault.body is None else fault.body
    return fault.status, headers, body


def _wire(status: int, headers: dict[str, str], body: bytes) -> bytes:
    reason = http.client.responses.get(status, "")
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _close_listener(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
    listener.close()
