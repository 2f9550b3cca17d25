"""What spoils the conversation with a gRPC server: a proxy of calls, which answers by a script, and one of bytes.

::

    with call_proxy(server.grpc_port, Failing("UNAVAILABLE", "Shard is not active", call="Upsert", times=2)) as proxy:
        connect(server.url, grpc_port=proxy.port)...
    assert proxy.count("Upsert") == 3
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.support.fault_proxy import reset

_PIECE_BYTES = 65_536
_NO_LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


@dataclass
class Failing:
    """Which calls fail and how; all conditions must hold.

    Attributes:
        code: Name of the status.
        details: Its text.
        call: Name of the call, such as ``Upsert``; None: any.
        numbers: Which of the calls of this name, from 1; None: each.
        probability: How likely each of them is taken.
        times: How often at most.
        seed: Of the chance.
        executed: The server gets the call first, only its answer is lost.
        after_s: The failure comes so late.
        trailers: Metadata at the end, such as ``retry-after``.
    """

    code: str
    details: str = ""
    call: str | None = None
    numbers: Collection[int] | None = None
    probability: float = 1.0
    times: int | None = None
    seed: int = 0
    executed: bool = False
    after_s: float = 0.0
    trailers: tuple[tuple[str, str], ...] = ()
    met: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def wants(self, call: str) -> bool:
        """Whether the next call is one for this rule; counts it."""
        if self.call not in (None, call):
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


class CallProxy(grpc.GenericRpcHandler):
    """Hands calls on as bytes, or lets them fail.

    Args:
        upstream: Port of the server on the loopback interface.
        rules: The script.

    Attributes:
        port: Where it listens.
        seen: Names of the calls that came.
        sizes: Their lengths in bytes.
        metadata: What came with the last call.
        remaining_s: Its deadline.
    """

    def __init__(self, upstream: int, *rules: Failing) -> None:
        self.rules = list(rules)
        self.seen: list[str] = []
        self.sizes: list[int] = []
        self.metadata: dict[str, Any] = {}
        self.remaining_s: float | None = None
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{upstream}", _NO_LIMITS)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=_NO_LIMITS)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        """How a call of some name is answered."""
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)  # no serialisers: bytes stay bytes
        )

    def count(self, call: str) -> int:
        """Number of calls of a name that came."""
        with self._lock:
            return self.seen.count(call)

    def stop(self) -> None:
        """Ends everything and waits for it."""
        self.stopped.set()
        self._server.stop(0).wait(10)
        self._channel.close()

    def _answer(self, method: str, request: bytes, context: Any) -> bytes:
        call = method.rpartition("/")[2]
        with self._lock:
            self.seen.append(call)
            self.sizes.append(len(request))
            self.metadata = dict(context.invocation_metadata())
            self.remaining_s = context.time_remaining()
            rule = next((rule for rule in self.rules if rule.wants(call)), None)
        if rule is None or rule.executed:
            passed = [(key, value) for key, value in context.invocation_metadata() if key == "api-key"]
            try:
                answer: bytes = self._channel.unary_unary(method)(request, metadata=passed, timeout=60)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
        if rule is None:
            return answer
        self.stopped.wait(rule.after_s)
        context.set_trailing_metadata(rule.trailers)
        context.abort(grpc.StatusCode[rule.code], rule.details)
        raise AssertionError("abort returned")


@contextmanager
def call_proxy(upstream: int, *rules: Failing) -> Iterator[CallProxy]:
    """A proxy of calls in front of a server, until the end of the block; see :class:`CallProxy`."""
    proxy = CallProxy(upstream, *rules)
    try:
        yield proxy
    finally:
        proxy.stop()


class BytesProxy:
    """Hands bytes on, or not; one thread for each direction of a connection.

    Args:
        upstream: Port of the server on the loopback interface.

    Attributes:
        port: Where it listens.
        connections: How many were made.
        cut_after_bytes: The next connection that gets so much from the server is reset; then None again.
        bytes_per_s: Speed towards the client.
        to_client_bytes: How much went to clients.
        to_server_bytes: How much came from them.
    """

    def __init__(self, upstream: int) -> None:
        self.connections = 0
        self.cut_after_bytes: int | None = None
        self.bytes_per_s = float("inf")
        self.to_client_bytes = 0
        self.to_server_bytes = 0
        self._upstream = upstream
        self._silent: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def silence(self) -> None:
        """From now on nothing passes over the connections that there are, as if a cable were cut."""
        self._silent |= self._open

    def stop(self) -> None:
        """Closes everything and waits for the threads."""
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            reset(one)
        for thread in self._threads:
            thread.join(10)

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                return
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._open |= {client, server}
            self._start(self._to_server, client, server)
            self._start(self._to_client, server, client)

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(_PIECE_BYTES):
                if client not in self._silent:
                    self.to_server_bytes += len(piece)
                    server.sendall(piece)
        reset(server)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                if server in self._silent:
                    continue
                passed += len(piece)
                if self.cut_after_bytes is not None and passed > self.cut_after_bytes:
                    self.cut_after_bytes = None
                    break
                client.sendall(piece)
                self.to_client_bytes += len(piece)
                time.sleep(len(piece) / self.bytes_per_s)
        reset(client)


@contextmanager
def bytes_proxy(upstream: int) -> Iterator[BytesProxy]:
    """A proxy of bytes in front of a server, until the end of the block; see :class:`BytesProxy`."""
    proxy = BytesProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.stop()
