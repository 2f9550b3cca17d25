"""A small Hugging Face Hub on loopback: real HTTP, for huggingface_hub unchanged.

It serves a folder::

    models/ORG/NAME/...            a model, its newest revision
    datasets/ORG/NAME/...          a dataset
    datasets/ORG/NAME@refs%2Fconvert%2Fparquet/...      another revision of it

A commit is a hash of the names and contents, so it stays what it is until a file changes. Point ``HF_ENDPOINT`` at
``url``. Every request is kept in ``requests``, and some can be made to fail.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.hub_content import File, NotThereError, Repositories

PAGE = 1000
EPOCH = "2024-01-01T00:00:00.000Z"

REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"


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
        delay_s: Wait this long first.
    """

    path: str
    method: str | None = None
    status: int | None = None
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay_s: float = 0.0


class HubServer:
    """The server; use it as a context manager.

    Args:
        root: Folder with ``models`` and ``datasets``; read anew for every request.
        page: Entries on a page of a listing.

    Attributes:
        requests: What was asked, in order.
        gated: Repositories whose files only the token opens.
        private: Repositories that only the token shows.
        token: The token.
        facts: By repository, what to say about it beyond its card: ``downloads``, ``likes``, ``library_name`` ...
        faults: What goes wrong; the first that fits is used.
    """

    def __init__(self, root: Path, page: int = PAGE) -> None:
        self.root = root
        self.repositories = Repositories(root)
        self.page = page
        self.requests: list[Request] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.token = "hf_let_me_in"  # noqa: S105
        self.facts: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
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

    def commit_of(self, repo: str, kind: str = "models") -> str:
        """The newest commit of a repository."""
        return self.repositories.revision(kind, repo, "main").commit

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that is due for a request, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.times != 0 and fault.method in (None, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
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


class _Handler(BaseHTTPRequestHandler):
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
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, url.path, url.query, headers))
        self._fault = hub.take_fault(self.command, url.path)
        if self._fault is not None:
            time.sleep(self._fault.delay_s)
            if self._fault.status == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if self._fault.status is not None:
                self._send(self._fault.status, {**self._fault.headers}, b'{"error": "as asked for"}')
                return
        try:
            for pattern, handle in _ROUTES:
                if match := re.fullmatch(pattern, url.path):
                    handle(self, hub, match, parse_qs(url.query), body)
                    return
            raise NotThereError(404, None, f"no such path: {url.path}")
        except NotThereError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            content = json.dumps({"error": error.message}).encode()
            self._send(error.status, {**code, "X-Error-Message": error.message}, content)

    def authorized(self) -> bool:
        """Whether the client sent the token."""
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def send_json(self, content: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode())

    def send_file(self, file: File, commit: str) -> None:
        """Send a file or the range of it that was asked for."""
        start, end = 0, file.size
        status = HTTPStatus.OK
        headers = {
            "ETag": f'"{file.etag}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if file.large:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = match.groups()
            start = int(first) if first else max(0, file.size - int(last))
            end = min(int(last) + 1, file.size) if first and last else file.size
            if start >= file.size:
                self._send(416, {"Content-Range": f"bytes */{file.size}"}, b"")
                return
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        with file.path.open("rb") as stream:
            stream.seek(start)
            self._send(status, headers, stream.read(end - start))

    def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        cut = self._fault.cut if self._fault is not None else None
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
        if cut is not None and self.command != "HEAD":
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _visible(handler: _Handler, hub: HubServer, match: re.Match[str]) -> tuple[str, str]:
    kind, repo = match["kind"] or "models", match["repo"]
    if repo in hub.private and not handler.authorized():
        raise NotThereError(401, "RepoNotFound", "Invalid username or password.")
    return kind, repo


def _info(handler: _Handler, hub: HubServer, match: re.Match[str], query: Mapping[str, list[str]], body: bytes) -> None:
    kind, repo = _visible(handler, hub, match)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"] or "main"))
    sized = query.get("blobs", ["false"])[0].lower() in ("true", "1")
    card = revision.card()
    tags = list(card.get("tags") or [])
    handler.send_json(
        {
            "_id": revision.commit[:24],
            "id": repo,
            "modelId": repo,
            "author": repo.split("/")[0],
            "sha": revision.commit,
            "lastModified": EPOCH,
            "createdAt": EPOCH,
            "private": repo in hub.private,
            "gated": "manual" if repo in hub.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "siblings": [_sibling(file, sized=sized) for file in revision.files.values()],
            **hub.facts.get(repo, {}),
        }
    )


def _sibling(file: File, *, sized: bool) -> dict[str, Any]:
    if not sized:
        return {"rfilename": file.name}
    lfs = {"lfs": {"size": file.size, "sha256": file.sha256, "pointerSize": 134}} if file.large else {}
    return {"rfilename": file.name, "size": file.size, "blobId": file.git_oid, **lfs}


def _entry(file: File) -> dict[str, Any]:
    lfs = {"lfs": {"size": file.size, "oid": file.sha256, "pointerSize": 134}} if file.large else {}
    return {"type": "file", "oid": file.git_oid, "size": file.size, "path": file.name, **lfs}


def _folder_entry(name: str) -> dict[str, Any]:
    oid = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": name}


def _tree(handler: _Handler, hub: HubServer, match: re.Match[str], query: Mapping[str, list[str]], body: bytes) -> None:
    kind, repo = _visible(handler, hub, match)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
    root = unquote(match["path"] or "")
    recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries: dict[str, dict[str, Any]] = {}
    for name, file in revision.files.items():
        if root and not name.startswith(f"{root}/"):
            continue
        inner = name[len(root) + 1 if root else 0 :].split("/")
        for depth in range(1, len(inner) if recursive else min(len(inner), 2)):
            folder = "/".join([*([root] if root else []), *inner[:depth]])
            entries.setdefault(folder, _folder_entry(folder))
        if recursive or len(inner) == 1:
            entries[name] = _entry(file)
    if root and not entries:
        raise NotThereError(404, "EntryNotFound", f"{root} does not exist")
    start = int(query.get("cursor", ["0"])[0])
    page = list(entries.values())[start : start + hub.page]
    link = {}
    if start + hub.page < len(entries):
        kept = f"recursive={str(recursive).lower()}&cursor={start + hub.page}"
        link = {"Link": f'<{hub.url}{quote(match.string, safe="/%@")}?{kept}>; rel="next"'}
    handler.send_json(page, link)


def _paths_info(
    handler: _Handler, hub: HubServer, match: re.Match[str], query: Mapping[str, list[str]], body: bytes
) -> None:
    kind, repo = _visible(handler, hub, match)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
    if "json" in handler.headers.get("Content-Type", ""):
        paths = json.loads(body)["paths"]
    else:
        paths = parse_qs(body.decode()).get("paths", [])
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        if path in revision.files:
            found.append(_entry(revision.files[path]))
        elif any(name.startswith(f"{path}/") for name in revision.files):
            found.append(_folder_entry(path))
    handler.send_json(found)


def _refs(handler: _Handler, hub: HubServer, match: re.Match[str], query: Mapping[str, list[str]], body: bytes) -> None:
    kind, repo = _visible(handler, hub, match)
    refs = [
        {"name": name.rsplit("/", 1)[-1], "ref": name if "/" in name else f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in hub.repositories.branches(kind, repo).items()
    ]
    converts = [ref for ref in refs if ref["ref"].startswith("refs/convert/")]
    handler.send_json({"branches": [ref for ref in refs if ref not in converts], "converts": converts, "tags": []})


def _resolve(
    handler: _Handler, hub: HubServer, match: re.Match[str], query: Mapping[str, list[str]], body: bytes
) -> None:
    kind, repo = _visible(handler, hub, match)
    if repo in hub.gated and not handler.authorized():
        raise NotThereError(403, "GatedRepo", f"Access to {repo} is restricted.")
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
    name = unquote(match["path"])
    if name not in revision.files:
        raise NotThereError(404, "EntryNotFound", "Entry not found")
    handler.send_file(revision.files[name], revision.commit)


_Route = Callable[[_Handler, HubServer, re.Match[str], Mapping[str, list[str]], bytes], None]
_ROUTES: tuple[tuple[str, _Route], ...] = (
    (rf"/api/{REPO}(/revision/(?P<revision>[^/]+))?", _info),
    (rf"/api/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _tree),
    (rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", _paths_info),
    (rf"/api/{REPO}/refs", _refs),
    (r"/((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
)
