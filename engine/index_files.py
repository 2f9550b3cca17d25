"""The files of an index beside its store: which there are, and what they are needed for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

from engine.errors import IndexDamagedError

Group = Literal["core", "probes", "tasks", "responses"]
"""``core``: what every query needs; ``probes``: images to run models on; ``tasks``: samples that VLMs are profiled on;
``responses``: what an index can be made again from."""

GROUPS: tuple[Group, ...] = get_args(Group)

MANIFEST = "manifest.json"
"""Written last wherever an index is made: a folder or a server with it holds an index that is whole."""

UNFINISHED = "copying.json"
"""Beside where the manifest will be, while an index is copied or restored there."""

DELETING = "deleting.json"
"""In the folder of an index that is being deleted: whatever else is still there, it is none any more."""

_CORE = ("probes.json", "probe_embeddings.npy", "background", "joint", MANIFEST)


class IndexFile(NamedTuple):
    """One file of an index."""

    path: str
    """Below the index's folder, with slashes."""
    group: Group


def index_files(folder: Path, groups: Sequence[Group] = GROUPS) -> Iterator[IndexFile]:
    """The files of an index, by group and path; the manifest comes last.

    Caches (snapshots, remembered texts and conductance), the crawl's journal and the store are no part of them.

    Args:
        folder: Of the index.
        groups: Which of them.
    """
    for group in sorted(groups, key="core".__eq__):
        for name in _CORE if group == "core" else (group,):
            for path in sorted(_below(folder / name)):
                yield IndexFile(path.relative_to(folder).as_posix(), group)


def checked_path(folder: Path, path: str) -> Path:
    """Where a file of an index lies, refusing every path that leads elsewhere.

    Args:
        folder: Of the index.
        path: As another machine or a backup gives it.

    Raises:
        IndexDamagedError: The path is absolute, leads out of the folder or is none of an index's.
    """
    parts = PurePosixPath(path).parts
    known = {*GROUPS[1:], *_CORE}
    if not parts or parts[0] not in known or ".." in parts or "\\" in path or "\0" in path:
        raise IndexDamagedError(f"{path!r} is no file of an index: whatever it came from cannot be trusted", folder)
    return folder.joinpath(*parts)


def _below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        # Hidden names are those of files that are being written.
        yield from (file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
