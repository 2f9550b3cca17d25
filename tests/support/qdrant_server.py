"""A stand-in for a Qdrant server: Qdrant's REST API over the embedded engine, in a process of its own.

The engine stores, searches and filters; what is here only translates. It is not Qdrant: one shard a collection, no
cluster, no snapshots, no grouping, no recommendation or discovery queries.

``python -m tests.support.qdrant_server --folder DIR --port 0`` prints ``ready PORT`` when it answers. With
``--grpc-port 0`` it speaks gRPC as well (:mod:`tests.support.qdrant_standin_grpc`) and prints ``ready PORT GRPC_PORT``.
"""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic_core import from_json, to_json

from tests.support.qdrant_standin_collections import LATER_S, Collections
from tests.support.qdrant_standin_faults import Fault
from tests.support.qdrant_standin_routes import Request, Route, Routes

VERSION = "1.20.0"
"""The version that the stand-in says it is."""

MAX_REQUEST_BYTES = 32 << 20
"""Qdrant's own limit of a request."""

_OPEN_PATHS = {"/", "/healthz", "/livez", "/readyz"}
"""Answered without an API key, as by Qdrant."""

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """How a stand-in behaves.

    Attributes:
        api_key: Asked for in every request but those for health.
        read_only_api_key: A key that may not write.
        disk_full_after: Number of writing requests after which the disk is full; None: never.
        disk_full_status: What is answered then: 500, or 507 as the newest versions do.
        later_s: When an update takes effect that the client does not wait for.
        max_request_bytes: Longer requests are refused.
        version: The version that it says it is.
        grpc_port: Where it speaks gRPC; 0 takes a free one, None: nowhere.
        max_message_bytes: Longer requests over gRPC are refused; -1: no limit, as Qdrant has none.
        tls_certificate: PEM file; with it the server speaks https.
        tls_key: PEM file of its key.
    """

    api_key: str | None = None
    read_only_api_key: str | None = None
    disk_full_after: int | None = None
    disk_full_status: int = 500
    later_s: float = LATER_S
    max_request_bytes: int = MAX_REQUEST_BYTES
    version: str = VERSION
    grpc_port: int | None = None
    max_message_bytes: int = -1
    tls_certificate: Path | None = None
    tls_key: Path | None = None


class StandinServer(ThreadingHTTPServer):
    """The server; one thread a connection, one request a collection at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int, options: Options) -> None:
        self.options = options
        self.collections = Collections(folder, options.later_s)
        self.routes = Routes(options.version)
        self._writes = 0
        self._counting = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        if options.tls_certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.tls_certificate, options.tls_key)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: Any, size_bytes: int) -> Any:
        """The ``result`` of the answer to a request.

        Args:
            method: HTTP method.
            target: Path and query.
            headers: Of the request; only those for keys are looked at.
            body: JSON, None for none.
            size_bytes: Length of the body on the wire.

        Raises:
            Fault: It is refused.
        """
        url = urlsplit(target)
        route, open_parts = self.routes.match(method, url.path)
        if url.path not in _OPEN_PATHS:
            self.check_key(headers, route)
        return self.perform(route, Request(open_parts, dict(parse_qsl(url.query)), body, size_bytes))

    def perform(self, route: Route, request: Request) -> Any:
        """The ``result`` of the answer to a request that was let in."""
        if route.writes:
            self.count_write()
        try:
            return route.answer(self.collections, request)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Fault(400, f"Format error in JSON body: {type(error).__name__}: {error}") from error

    def check_key(self, headers: Any, route: Route) -> None:
        """Refuses a request without the right API key."""
        options = self.options
        if options.api_key is None and options.read_only_api_key is None:
            return
        given = headers.get("api-key") or (headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if given is None:
            raise Fault(401, "Must provide an API key or an Authorization bearer token", plain=True)
        if given == options.api_key:
            return
        if given != options.read_only_api_key:
            raise Fault(401, "Invalid API key or JWT", plain=True)
        if route.writes:
            raise Fault(403, "Forbidden: Global manage access is required")

    def count_write(self) -> None:
        """Refuses a write when the disk is full."""
        with self._counting:
            self._writes += 1
            full = self.options.disk_full_after is not None and self._writes > self.options.disk_full_after
        if full:
            text = "Service internal error: No space left on device: WAL buffer size exceeds available disk space"
            raise Fault(self.options.disk_full_status, text)

    def optimise_forever(self) -> None:
        """Optimises the collections that are due and idle."""
        while True:
            time.sleep(0.2)
            for collection in self.collections.all():
                if collection.due and collection.idle:
                    try:
                        collection.optimise()
                    except Fault as fault:  # it was deleted meanwhile
                        sys.stderr.write(f"optimise: {fault}\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exception(), (OSError, ssl.SSLError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: StandinServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet

    def _answer(self) -> None:
        started = time.perf_counter()
        try:
            route, result = self._result()
        except Fault as fault:
            if fault.plain:
                self._send(fault.status, fault.text.encode(), "text/plain; charset=utf-8")
                return
            refusal = {"status": {"error": fault.text}, "time": time.perf_counter() - started}
            self._send(fault.status, to_json(refusal), "application/json")
            return
        if route.raw:
            text = isinstance(result, str)
            body = result.encode() if isinstance(result, str) else to_json(result)
            self._send(200, body, "text/plain; charset=utf-8" if text else "application/json")
            return
        answer = {"result": result, "status": "ok", "time": time.perf_counter() - started}
        self._send(200, to_json(answer), "application/json")

    def _result(self) -> tuple[Route, Any]:
        url = urlsplit(self.path)
        size_bytes = int(self.headers.get("Content-Length") or 0)
        limit = self.server.options.max_request_bytes
        if size_bytes > limit:
            self._skip(size_bytes)
            text = f"Payload error: JSON payload ({size_bytes} bytes) is larger than allowed (limit: {limit} bytes)."
            raise Fault(400, text)
        content = self.rfile.read(size_bytes)
        route, open_parts = self.server.routes.match(self.command, url.path)
        if url.path not in _OPEN_PATHS:
            self.server.check_key(self.headers, route)
        try:
            body = from_json(content) if content else None
        except ValueError as error:
            raise Fault(400, f"Format error in JSON body: {error}") from error
        if self.command in ("POST", "PUT", "PATCH") and not isinstance(body, dict):
            raise Fault(400, "Format error in JSON body: expected an object")
        return route, self.server.perform(route, Request(open_parts, dict(parse_qsl(url.query)), body, size_bytes))

    def _skip(self, size_bytes: int) -> None:
        while size_bytes > 0:
            read = len(self.rfile.read(min(size_bytes, 1 << 20)))
            if not read:
                return
            size_bytes -= read

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def version_string(self) -> str:
        return "actix-standin"

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Standin:
    """A stand-in server that runs.

    Attributes:
        folder: Where its data are.
        port: Where it listens.
        url: Its address.
        process: Its process.
        grpc_port: Where it speaks gRPC, None: nowhere.
    """

    folder: Path
    port: int
    url: str
    process: subprocess.Popen[str]
    arguments: list[str]
    grpc_port: int | None = None

    def kill(self) -> None:
        """Ends it as a power switch would (SIGKILL); what it acknowledged is there after :meth:`restart`."""
        self.process.kill()
        self.process.wait(30)

    def restart(self) -> None:
        """Starts it again at the same address over the same data, after a stop or a kill."""
        self.stop()
        again = [] if self.grpc_port is None else ["--grpc-port", str(self.grpc_port)]
        self.process, self.port, self.grpc_port = _start(self.folder, self.port, [*self.arguments, *again])

    def stop(self) -> None:
        """Ends it; nothing happens if it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def standin(folder: Path, port: int = 0, **options: Any) -> Iterator[Standin]:
    """A stand-in server in a child process, until the end of the block.

    Args:
        folder: Where its data are, or will be.
        port: Where it listens; 0 takes a free one.
        options: See :class:`Options`.
    """
    Options(**options)  # a wrong name fails here
    arguments = [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    process, port, grpc_port = _start(folder, port, arguments)
    scheme = "https" if options.get("tls_certificate") else "http"
    running = Standin(folder, port, f"{scheme}://127.0.0.1:{port}", process, arguments, grpc_port)
    try:
        yield running
    finally:
        running.stop()


def _start(folder: Path, port: int, arguments: list[str]) -> tuple[subprocess.Popen[str], int, int | None]:
    command = [sys.executable, "-m", "tests.support.qdrant_server", "--folder", str(folder), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(
        [*command, "--attached", *arguments],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.PIPE,  # its end is ours
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready "):
        process.kill()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()
        raise RuntimeError(f"the stand-in server did not start: {line!r}, see its errors above")
    ports = [int(part) for part in line.split()[1:]]
    return process, ports[0], ports[1] if len(ports) > 1 else None


def tls_files(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, its own authority, and its key (PEM files); needs the ``openssl`` command."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    about = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-keyout", key, "-out", certificate, *about], check=True, capture_output=True)
    return certificate, key


def _stop_at_the_end_of_input(server: StandinServer) -> None:
    while os.read(0, 1024):
        pass
    server.shutdown()


def main() -> None:
    """Runs the server until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key")
    parser.add_argument("--read-only-api-key")
    parser.add_argument("--disk-full-after", type=int, metavar="N", help="writing requests before the disk is full")
    parser.add_argument("--disk-full-status", type=int, default=500)
    parser.add_argument("--later-s", type=float, default=LATER_S)
    parser.add_argument("--max-request-bytes", type=int, default=MAX_REQUEST_BYTES)
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--grpc-port", type=int)
    parser.add_argument("--max-message-bytes", type=int, default=-1)
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--attached", action="store_true", help="stop at the end of standard input")
    given = vars(parser.parse_args())
    folder, port, attached = given.pop("folder"), given.pop("port"), given.pop("attached")
    options = Options(**given)
    server = StandinServer(folder, port, options)
    ports, over_grpc = [server.server_address[1]], None
    if options.grpc_port is not None:
        # Here: most servers start without it, in half the time.
        from tests.support.qdrant_standin_grpc import grpc_server

        limit, tls = options.max_message_bytes, (options.tls_certificate, options.tls_key)
        over_grpc, grpc_port = grpc_server(server, options.grpc_port, limit, *tls)
        over_grpc.start()
        ports.append(grpc_port)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests; they stop this process
    threading.Thread(target=server.optimise_forever, daemon=True).start()
    if attached:
        threading.Thread(target=_stop_at_the_end_of_input, args=(server,), daemon=True).start()
    sys.stdout.write(" ".join(["ready", *map(str, ports)]) + "\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    if over_grpc is not None:
        over_grpc.stop(1).wait()
    server.collections.close()


if __name__ == "__main__":
    main()
