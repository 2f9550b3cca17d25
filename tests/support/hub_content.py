"""What a Hub serves: a folder of repositories, their revisions and what identifies their files."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

LFS_BYTES = 1024
"""Files from this size on are served as the Hub serves large files: identified by their SHA-256."""


class NotThereError(Exception):
    """An error of the Hub's interface: status, ``X-Error-Code``, ``X-Error-Message``."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class File:
    """One file of a revision."""

    name: str
    path: Path
    size: int
    git_oid: str
    sha256: str

    @property
    def large(self) -> bool:
        """Whether the Hub would keep it in large file storage."""
        return self.size >= LFS_BYTES

    @property
    def etag(self) -> str:
        """What identifies the content in a response's headers."""
        return self.sha256 if self.large else self.git_oid


@dataclass(frozen=True)
class Revision:
    """The files of a repository at one time."""

    commit: str
    files: Mapping[str, File]

    def card(self) -> dict[str, Any]:
        """The header of the revision's README.md."""
        if (file := self.files.get("README.md")) is None:
            return {}
        match = re.match(r"---\n(.*?)\n---\n", file.path.read_text(encoding="utf-8"), re.DOTALL)
        content = yaml.safe_load(match[1]) if match else {}
        return content if isinstance(content, dict) else {}


class Repositories:
    """The repositories in a folder, read anew whenever one is asked for.

    Args:
        root: Folder with ``models`` and ``datasets``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._hashes: dict[tuple[Path, int, int], tuple[str, str]] = {}

    def revision(self, kind: str, repo: str, name: str) -> Revision:
        """A revision of a repository.

        Raises:
            NotThereError: If there is no such repository or revision.
        """
        folder = self.root / kind / repo
        if not folder.is_dir():
            raise NotThereError(404, "RepoNotFound", "Repository not found")
        others = {unquote(path.name.split("@", 1)[1]): path for path in folder.parent.glob(f"{folder.name}@*")}
        by_name = {"main": folder, **others}
        if name in by_name:
            return self._read(by_name[name])
        for path in by_name.values():
            revision = self._read(path)
            if revision.commit == name:
                return revision
        raise NotThereError(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def branches(self, kind: str, repo: str) -> dict[str, str]:
        """Commits by the name of their revision."""
        folder = self.root / kind / repo
        names = ["main", *(unquote(path.name.split("@", 1)[1]) for path in folder.parent.glob(f"{folder.name}@*"))]
        return {name: self.revision(kind, repo, name).commit for name in names}

    def _read(self, folder: Path) -> Revision:
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                size = path.stat().st_size
                git_oid, sha256 = self._hash(path)
                files[name] = File(name, path, size, git_oid, sha256)
        names = "".join(f"{name}\0{file.git_oid}\0" for name, file in files.items())
        return Revision(hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest(), files)

    def _hash(self, path: Path) -> tuple[str, str]:
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key not in self._hashes:
                content = path.read_bytes()
                git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
                self._hashes[key] = git_oid, hashlib.sha256(content).hexdigest()
            return self._hashes[key]
