"""What a Hub serves: a folder of repositories, their revisions, their dates and what identifies their files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import yaml

LFS_BYTES = 1024
"""Files from this size on are served as the Hub serves large files: identified by their SHA-256."""

MAX_HEADER_BYTES = 25_000_000
"""Longest safetensors header that the Hub looks into."""

_CHUNK_BYTES = 2**20

Signature = tuple[tuple[str, int, int, int, int], ...]


class NotThereError(Exception):
    """An error of the Hub's interface: status, ``X-Error-Code``, ``X-Error-Message``."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class File:
    """One file of a revision.

    Attributes:
        name: As the repository has it.
        path: Where its content is.
        size: Stated size in bytes.
        git_oid: Stated SHA-1 of git's blob.
        sha256: Stated SHA-256.
        stored: Size of the content that is sent.
        link: Content instead of the path's, where that is a symbolic link: git keeps the name it points to.
        corrupt: Whether a byte in the middle is sent wrong.
    """

    name: str
    path: Path
    size: int
    git_oid: str
    sha256: str
    stored: int
    link: bytes | None = None
    corrupt: bool = False

    @property
    def large(self) -> bool:
        """Whether the Hub would keep it in large file storage."""
        return self.size >= LFS_BYTES

    @property
    def etag(self) -> str:
        """What identifies the content in a response's headers."""
        return self.sha256 if self.large else self.git_oid

    def open(self) -> BinaryIO:
        """The content as it is stored."""
        return io.BytesIO(self.link) if self.link is not None else self.path.open("rb")

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``."""
        with self.open() as stream:
            stream.seek(start)
            return stream.read(end - start)

    def chunks(self, stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``end`` of the opened content, in chunks and with the error it is to have."""
        wrong = self.stored // 2 if self.corrupt else -1
        stream.seek(start)
        for at in range(start, end, _CHUNK_BYTES):
            chunk = stream.read(min(_CHUNK_BYTES, end - at))
            if at <= wrong < at + len(chunk):
                chunk = chunk[: wrong - at] + bytes([chunk[wrong - at] ^ 0xFF]) + chunk[wrong - at + 1 :]
            yield chunk


@dataclass(frozen=True)
class Lie:
    """What the Hub states about a file although it is not so; None states the truth."""

    size: int | None = None
    sha256: str | None = None
    corrupt: bool = False


@dataclass(frozen=True)
class Revision:
    """The files of a repository at one time."""

    commit: str
    files: Mapping[str, File]

    def card(self) -> dict[str, Any]:
        """The header of the revision's README.md."""
        return self._card

    @cached_property
    def _card(self) -> dict[str, Any]:
        if (file := self.files.get("README.md")) is None or file.link is not None:
            return {}
        match = re.match(r"---\n(.*?)\n---\n", file.path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        try:
            content = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError:
            return {}
        # Dates and the like go into JSON as they are written.
        return json.loads(json.dumps(content, default=str)) if isinstance(content, dict) else {}

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What the Hub's interface says of it that follows from its files."""
        card = self._card
        return {
            "sha": self.commit,
            "tags": list(card.get("tags") or []),
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "config": self.config,
            "safetensors": self.safetensors,
            "siblings": [{"rfilename": name} for name in self.files],
            "usedStorage": sum(file.size for file in self.files.values()),
        }

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """What the Hub takes from config.json."""
        if (file := self.files.get("config.json")) is None or file.size > MAX_HEADER_BYTES:
            return None
        try:
            content = json.loads(file.read(0, file.size))
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        return {key: content[key] for key in ("architectures", "model_type", "auto_map") if key in content}

    @cached_property
    def safetensors(self) -> dict[str, Any] | None:
        """Parameters by type and in all, from the headers of the weights; None if there are none or they are broken."""
        names = [name for name in self.files if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
        parameters: dict[str, int] = {}
        try:
            for name in ["model.safetensors"] if "model.safetensors" in names else names:
                for tensor in _header(self.files[name]):
                    kind = tensor["dtype"]
                    parameters[kind] = parameters.get(kind, 0) + math.prod(tensor["shape"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return {"parameters": parameters, "total": sum(parameters.values())} if parameters else None


def _header(file: File) -> list[dict[str, Any]]:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, file.stored):
        raise ValueError(length)
    tensors = [entry for name, entry in json.loads(file.read(8, 8 + length)).items() if name != "__metadata__"]
    if any(math.prod(tensor["shape"]) > file.size for tensor in tensors):
        raise ValueError("the header promises what the file does not hold")
    return tensors


@dataclass
class Dates:
    """When a repository was made and changed, ISO 8601 in UTC with milliseconds."""

    commit: str | None
    created: str
    modified: str


def iso(seconds: float) -> str:
    """A moment as the Hub writes it, from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class _Known:
    signature: Signature
    revision: Revision


class Repositories:
    """The repositories in a folder, looked at anew whenever one is asked for; unchanged files are read once.

    Args:
        root: Folder with ``models`` and ``datasets``.

    Attributes:
        lies: By repository and file name, what is stated instead of the truth.
        aliases: By repository, names that it claims to have, and the file of the repository behind each: a folder
            cannot hold ``../x``, a Hub's answer can.
        lock: Held while anything is looked at; whoever holds it changes several files in one commit.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lies: dict[tuple[str, str], Lie] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.lock = threading.RLock()
        self._known: dict[str, _Known] = {}
        self._hashes: dict[tuple[Path, int, int, int], tuple[str, str]] = {}
        self._dates: dict[tuple[str, str], Dates] = {}
        self._last_s = 0.0

    def remember(self) -> None:
        """Take what is there now as it is: its dates are those of its files. What comes later is dated then."""
        for kind in ("models", "datasets"):
            with self.lock:
                for repo, folder in self._folders(kind):
                    newest_s = max([os.stat(folder).st_mtime_ns, *(entry[1] for entry in _signature(folder))]) / 1e9
                    self._dates[kind, repo] = Dates(None, iso(newest_s), iso(newest_s))
            for revision, _ in self.newest(kind).values():
                revision.about  # noqa: B018 - computed once, and not while a client waits

    def revision(self, kind: str, repo: str, name: str) -> Revision:
        """A revision of a repository.

        Raises:
            NotThereError: If there is no such repository or revision.
        """
        with self.lock:
            return self._revision(kind, repo, name)

    def _revision(self, kind: str, repo: str, name: str) -> Revision:
        folder = self.root / kind / repo
        if not folder.is_dir():
            raise NotThereError(404, "RepoNotFound", "Repository not found")
        others = {unquote(path.name.split("@", 1)[1]): path for path in folder.parent.glob(f"{folder.name}@*")}
        by_name = {"main": folder, **others}
        if name in by_name:
            return self._told(repo, self._read(str(by_name[name])))
        for path in by_name.values():
            revision = self._read(str(path))
            if revision.commit == name:
                return self._told(repo, revision)
        raise NotThereError(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def branches(self, kind: str, repo: str) -> dict[str, str]:
        """Commits by the name of their revision."""
        folder = self.root / kind / repo
        names = ["main", *(unquote(path.name.split("@", 1)[1]) for path in folder.parent.glob(f"{folder.name}@*"))]
        return {name: self.revision(kind, repo, name).commit for name in names}

    def newest(self, kind: str) -> dict[str, tuple[Revision, Dates]]:
        """The newest revision of every repository and its dates."""
        with self.lock:
            found = {}
            for repo, folder in self._folders(kind):
                try:
                    revision = self._told(repo, self._read(folder))
                except OSError:  # being changed right now
                    continue
                found[repo] = revision, self.dates(kind, repo, revision.commit)
            for key in [key for key in self._dates if key[0] == kind and key[1] not in found]:
                del self._dates[key]
            return found

    def dates(self, kind: str, repo: str, commit: str) -> Dates:
        """The dates of a repository whose newest commit this is; a commit not seen before is dated now."""
        with self.lock:
            if (dates := self._dates.get((kind, repo))) is None:
                now = self._now()
                dates = self._dates[kind, repo] = Dates(commit, now, now)
            elif dates.commit is None:
                dates.commit = commit
            elif dates.commit != commit:
                dates.commit, dates.modified = commit, self._now()
            return dates

    def touch(self, kind: str, repo: str, modified: str | None, created: str | None) -> None:
        """Set dates of a repository; its next commit is dated when it is seen again."""
        with self.lock:
            dates = self.dates(kind, repo, self.revision(kind, repo, "main").commit)
            dates.modified = modified or dates.modified
            dates.created = created or dates.created

    def _now(self) -> str:
        self._last_s = max(time.time(), self._last_s)
        return iso(self._last_s)

    def _folders(self, kind: str) -> list[tuple[str, str]]:
        if not (self.root / kind).is_dir():
            return []
        return [
            (f"{org.name}/{repo.name}", repo.path)
            for org in os.scandir(self.root / kind)
            if org.is_dir()
            for repo in os.scandir(org.path)
            if "@" not in repo.name and not repo.name.startswith(".") and repo.is_dir()
        ]

    def _told(self, repo: str, revision: Revision) -> Revision:
        aliases = self.aliases.get(repo, {})
        lies = {name: lie for (liar, name), lie in self.lies.items() if liar == repo} if self.lies else {}
        if not aliases and not lies:
            return revision
        files = dict(revision.files)
        for name, lie in lies.items():
            if (file := files.get(name)) is not None:
                size = file.size if lie.size is None else lie.size
                files[name] = replace(file, size=size, sha256=lie.sha256 or file.sha256, corrupt=lie.corrupt)
        for name, source in aliases.items():
            files[name] = replace(files[source], name=name)
        return Revision(revision.commit, files)

    def _read(self, folder: str) -> Revision:
        with self.lock:
            signature = _signature(folder)
            known = self._known.get(folder)
            if known is not None and known.signature == signature:
                return known.revision
            files = {}
            for name, mtime_ns, size, inode, mode in signature:
                path = Path(folder, name)
                link = os.readlink(path).encode() if stat.S_ISLNK(mode) else None
                git_oid, sha256 = _hash_link(link) if link is not None else self._hash(path, mtime_ns, size, inode)
                files[name] = File(name, path, size, git_oid, sha256, size, link)
            names = "".join(f"{name}\0{file.git_oid}\0" for name, file in files.items())
            revision = Revision(hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest(), files)
            self._known[folder] = _Known(signature, revision)
            return revision

    def _hash(self, path: Path, mtime_ns: int, size: int, inode: int) -> tuple[str, str]:
        key = (path, mtime_ns, size, inode)
        if key not in self._hashes:
            git_oid = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            sha256 = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    git_oid.update(chunk)
                    sha256.update(chunk)
            self._hashes[key] = git_oid.hexdigest(), sha256.hexdigest()
        return self._hashes[key]


def _hash_link(link: bytes) -> tuple[str, str]:
    git_oid = hashlib.sha1(b"blob %d\0" % len(link) + link, usedforsecurity=False).hexdigest()
    return git_oid, hashlib.sha256(link).hexdigest()


def _signature(folder: str) -> Signature:
    """What changes when a file of a folder does: name, time, size, inode and mode of each, sorted by name."""
    found: list[tuple[str, int, int, int, int]] = []
    _scan(folder, "", found)
    found.sort()
    return tuple(found)


def _scan(folder: str, prefix: str, found: list[tuple[str, int, int, int, int]]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _scan(entry.path, f"{prefix}{entry.name}/", found)
            else:
                about = entry.stat(follow_symlinks=False)
                found.append((prefix + entry.name, about.st_mtime_ns, about.st_size, about.st_ino, about.st_mode))
