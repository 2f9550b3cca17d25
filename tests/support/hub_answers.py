"""What a Hub answers to each kind of request."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote

from tests.support.hub_content import File, NotThereError
from tests.support.hub_listing import describe, expanded, only, page_of, place_of, sibling

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
LISTING = "/api/models"


class MovedError(Exception):
    """The repository has another name now."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class Asked(ABC):
    """One request and the way to answer it; the server's handler is behind it."""

    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @abstractmethod
    def authorized(self) -> bool:
        """Whether the client sent the token."""

    @abstractmethod
    def send(self, status: int, headers: Mapping[str, str], size: int, chunks: Iterator[bytes]) -> None:
        """Answer."""

    def send_json(self, content: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an object."""
        text = json.dumps(content).encode()
        self.send(200, {"Content-Type": "application/json", **(headers or {})}, len(text), iter([text]))


def answer(asked: Asked, hub: HubServer) -> None:
    """Answer a request as the Hub would.

    Raises:
        NotThereError: If it would answer with an error.
        MovedError: If it would answer with a redirect.
    """
    for pattern, handle in _ROUTES:
        if match := re.fullmatch(pattern, asked.path):
            handle(asked, hub, match)
            return
    raise NotThereError(404, None, f"no such path: {asked.path}")


def _visible(asked: Asked, hub: HubServer, match: re.Match[str]) -> tuple[str, str]:
    kind, repo = match["kind"] or "models", match["repo"]
    if repo in hub.renamed:
        raise MovedError(asked.path.replace(f"/{repo}", f"/{hub.renamed[repo]}", 1))
    if (status := hub.vanished.get(repo)) is not None:
        raise NotThereError(status, "RepoNotFound", "Repository not found")
    if repo in hub.private and not asked.authorized():
        raise NotThereError(401, "RepoNotFound", "Invalid username or password.")
    return kind, repo


def _facts(hub: HubServer, repo: str) -> dict[str, Any]:
    gated = "manual" if repo in hub.gated else False
    return {"private": repo in hub.private, "gated": gated, **hub.facts.get(repo, {})}


def _list(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    place = place_of(asked.query, hub.cursor_age)
    if place.age != hub.cursor_age:
        raise NotThereError(hub.expired_status, None, "Invalid cursor: it has expired")
    if hub.before_page is not None:
        hub.before_page(place.number)
    entries = [
        describe(repo, revision, dates, _facts(hub, repo))
        for repo, (revision, dates) in hub.repositories.newest("models").items()
        if repo not in hub.private or asked.authorized()
    ]
    page, following = page_of(entries, asked.query, place, hub.page)
    asked.send_json(page, {"Link": f'<{hub.url}{LISTING}?{following}>; rel="next"'} if following else {})


def _info(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    kind, repo = _visible(asked, hub, match)
    newest = hub.repositories.revision(kind, repo, "main")
    dates = hub.repositories.dates(kind, repo, newest.commit)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"] or "main"))
    entry = describe(repo, revision, dates, _facts(hub, repo))
    if names := expanded(asked.query):
        asked.send_json(only(entry, names))
        return
    if asked.query.get("blobs", ["false"])[0].lower() in ("true", "1"):
        entry["siblings"] = [sibling(file) for file in revision.files.values()]
    asked.send_json(entry)


def _entry(file: File) -> dict[str, Any]:
    lfs = {"lfs": {"size": file.size, "oid": file.sha256, "pointerSize": 134}} if file.large else {}
    return {"type": "file", "oid": file.git_oid, "size": file.size, "path": file.name, **lfs}


def _folder_entry(name: str) -> dict[str, Any]:
    oid = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": name}


def _tree(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    kind, repo = _visible(asked, hub, match)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
    root = unquote(match["path"] or "")
    recursive = asked.query.get("recursive", ["false"])[0].lower() in ("true", "1")
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
    start = int(asked.query.get("cursor", ["0"])[0])
    page = list(entries.values())[start : start + hub.page]
    link = {}
    if start + hub.page < len(entries):
        kept = f"recursive={str(recursive).lower()}&cursor={start + hub.page}"
        link = {"Link": f'<{hub.url}{quote(match.string, safe="/%@")}?{kept}>; rel="next"'}
    asked.send_json(page, link)


def _paths_info(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    kind, repo = _visible(asked, hub, match)
    revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
    if "json" in asked.headers.get("content-type", ""):
        paths = json.loads(asked.body)["paths"]
    else:
        paths = parse_qs(asked.body.decode()).get("paths", [])
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        if path in revision.files:
            found.append(_entry(revision.files[path]))
        elif any(name.startswith(f"{path}/") for name in revision.files):
            found.append(_folder_entry(path))
    asked.send_json(found)


def _refs(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    kind, repo = _visible(asked, hub, match)
    refs = [
        {"name": name.rsplit("/", 1)[-1], "ref": name if "/" in name else f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in hub.repositories.branches(kind, repo).items()
    ]
    converts = [ref for ref in refs if ref["ref"].startswith("refs/convert/")]
    asked.send_json({"branches": [ref for ref in refs if ref not in converts], "converts": converts, "tags": []})


def _resolve(asked: Asked, hub: HubServer, match: re.Match[str]) -> None:
    kind, repo = _visible(asked, hub, match)
    if repo in hub.gated and not asked.authorized():
        raise NotThereError(403, "GatedRepo", f"Access to {repo} is restricted.")
    name = unquote(match["path"])
    with hub.repositories.lock:
        revision = hub.repositories.revision(kind, repo, unquote(match["revision"]))
        if name not in revision.files:
            raise NotThereError(404, "EntryNotFound", "Entry not found")
        file = revision.files[name]
        # Opened before anyone can replace it: a commit's content is that commit's to the last byte.
        stream = file.open()
    with stream:
        _send_file(asked, file, revision.commit, stream)


def _send_file(asked: Asked, file: File, commit: str, stream: BinaryIO) -> None:
    """Send a file or the range of it that was asked for."""
    start, end = 0, file.stored
    status = HTTPStatus.OK
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if file.large:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
    if match := re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("range", "")):
        first, last = match.groups()
        start = int(first) if first else max(0, file.stored - int(last))
        end = min(int(last) + 1, file.stored) if first and last else file.stored
        if start >= file.stored:
            asked.send(416, {"Content-Range": f"bytes */{file.stored}"}, 0, iter([]))
            return
        status = HTTPStatus.PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.stored}"
    asked.send(status, headers, end - start, file.chunks(stream, start, end))


_Route = Callable[[Asked, "HubServer", re.Match[str]], None]
_ROUTES: tuple[tuple[str, _Route], ...] = (
    (LISTING, _list),
    (rf"/api/{REPO}(/revision/(?P<revision>[^/]+))?", _info),
    (rf"/api/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _tree),
    (rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", _paths_info),
    (rf"/api/{REPO}/refs", _refs),
    (r"/((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
)
