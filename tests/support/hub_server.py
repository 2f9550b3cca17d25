"""A small Hugging Face Hub on loopback: real HTTP, for huggingface_hub unchanged.

It serves a folder::

    models/ORG/NAME/...            a model, its newest revision
    datasets/ORG/NAME/...          a dataset
    datasets/ORG/NAME@refs%2Fconvert%2Fparquet/...      another revision of it

A commit is a hash of the names and contents, so it stays what it is until a file changes. Point ``HF_ENDPOINT`` at
``url``. Every request is kept in ``requests``, and some can be made to fail: see `hub_faults`.
"""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_answers import LISTING, Asked, MovedError, answer
from tests.support.hub_content import Lie, NotThereError, Repositories
from tests.support.hub_faults import Fault, RandomFaults
from tests.support.hub_listing import place_of

PAGE = 1000


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        """The bytes asked for."""
        return self.headers.get("range")


class HubServer:
    """The server; use it as a context manager.

    Args:
        root: Folder with ``models`` and ``datasets``; looked at anew for every request.
        page: Entries on a page of a listing.

    Attributes:
        requests: What was asked, in order.
        gated: Repositories whose files only the token opens.
        private: Repositories that only the token shows.
        vanished: Repositories that the listing still names, and the status of everything else about them: 404 for
            deleted, 401 for private.
        renamed: New names of repositories by their old ones; two that are named after each other redirect for ever.
        token: The token.
        facts: By repository, what to say about it beyond its card, or instead: ``downloads``, ``likes``,
            ``library_name``, ``pipeline_tag``, ``lastModified`` ...
        faults: What goes wrong; the first that fits is used.
        random: What goes wrong at random where no fault fits; see `random_faults`.
        latency_s: How long every request waits first.
        before_page: Called with the number of a listing's page, from 1, before the page is made: what it changes on
            disk shows on that page.
        expired_status: How cursors are answered that `expire_cursors` has made invalid; 400 or 410.
    """

    def __init__(self, root: Path, page: int = PAGE) -> None:
        self.root = root
        self.repositories = Repositories(root)
        self.page = page
        self.requests: list[Request] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.vanished: dict[str, int] = {}
        self.renamed: dict[str, str] = {}
        self.token = "hf_let_me_in"  # noqa: S105
        self.facts: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.random: RandomFaults | None = None
        self.latency_s = 0.0
        self.before_page: Callable[[int], None] | None = None
        self.expired_status = 400
        self.cursor_age = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """What to set ``HF_ENDPOINT`` to."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> HubServer:
        self.repositories.remember()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http.hang_up()
        self._thread.join()

    def downloaded(self, kind: str = "GET") -> list[str]:
        """Names of the files whose content was asked for, in order, with repetitions."""
        return [
            unquote(request.path.split("/resolve/", 1)[1].split("/", 1)[1])
            for request in self.requests
            if request.method == kind and "/resolve/" in request.path
        ]

    @contextmanager
    def failing(self, path: str, **what: Any) -> Iterator[Fault]:
        """Let requests for a path fail for a while; see `Fault`."""
        fault = Fault(path, **what)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def random_faults(self, share: float = 0.05, seed: int = 0, retry_after_s: int = 1) -> RandomFaults:
        """From now on fail this share of all requests in ways that pass; a share of 0 ends it."""
        self.random = RandomFaults(share, seed, retry_after_s)
        return self.random

    def commit_of(self, repo: str, kind: str = "models") -> str:
        """The newest commit of a repository."""
        return self.repositories.revision(kind, repo, "main").commit

    def touch(
        self, repo: str, *, modified: str | None = None, created: str | None = None, kind: str = "models"
    ) -> None:
        """Set when a repository was changed or made, as ``2026-01-31T12:00:00.000Z``, until its next commit."""
        self.repositories.touch(kind, repo, modified, created)

    def lie(self, repo: str, name: str, *, size: int | None = None, sha256: str | None = None) -> None:
        """State another size or SHA-256 of a file than its content has, wherever they are stated."""
        self.repositories.lies[repo, name] = Lie(size, sha256)

    def corrupt(self, repo: str, name: str) -> None:
        """Send a file with one wrong byte in its middle; what is stated about it stays right."""
        self.repositories.lies[repo, name] = Lie(corrupt=True)

    def expire_cursors(self, status: int = 400) -> None:
        """Answer all cursors that were given out before with this status."""
        self.expired_status = status
        self.cursor_age += 1

    def take_fault(self, method: str, path: str, page: int | None = None) -> Fault | None:
        """The fault that is due for a request, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.fits(method, path, page):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return self.random.take(method) if self.random is not None else None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    hub: HubServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close what clients keep open, so that no handler waits for another request."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler, Asked):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        self.headers = {name.lower(): value for name, value in self.headers.items()}  # type: ignore[assignment]
        self.path, self.query, self.body = url.path, parse_qs(url.query), body
        hub.requests.append(Request(self.command, url.path, url.query, self.headers))
        time.sleep(hub.latency_s)
        self._fault = hub.take_fault(self.command, url.path, self._page())
        if self._fault is not None:
            time.sleep(self._fault.delay_s)
            if self._fault.silent:
                self._hang_up()
                return
            if self._fault.status is not None:
                self._send(self._fault.status, self._fault.headers, b'{"error": "as asked for"}')
                return
        try:
            answer(self, hub)
        except MovedError as moved:
            location = moved.location + (f"?{url.query}" if url.query else "")
            self._send(307, {"Location": location}, f"Temporary Redirect. Redirecting to {location}".encode())
        except NotThereError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            content = json.dumps({"error": error.message}).encode()
            self._send(error.status, {**code, "X-Error-Message": error.message}, content)

    def _page(self) -> int | None:
        if self.path != LISTING:
            return None
        try:
            return place_of(self.query, 0).number
        except NotThereError:
            return None

    def authorized(self) -> bool:
        """Whether the client sent the token."""
        return self.headers.get("authorization") == f"Bearer {self.server.hub.token}"

    def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send(status, headers, len(content), iter([content]))

    def send(self, status: int, headers: Mapping[str, str], size: int, chunks: Iterator[bytes]) -> None:
        """Send an answer, or as much of it as the fault leaves."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = size if self._fault is None else self._fault.length(size)
        cut = left < size
        for chunk in chunks:
            self.wfile.write(chunk[:left])
            left -= len(chunk)
            if left < 0:
                break
        if cut:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        if self._fault is not None and self._fault.reset:
            self._drain()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.close()
            self.rfile.close()
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _drain(self) -> None:
        """Wait until the client has what was sent: a reset would throw away what has not arrived."""
        waiting = array.array("i", [1])
        for _ in range(500):
            fcntl.ioctl(self.connection, termios.TIOCOUTQ, waiting)
            if not waiting[0]:
                return
            time.sleep(0.002)
