"""Where models come from: what a user may name, and how each becomes a repository on this disk.

A model is named by its Hub id (``org/name``, ``org/name@revision``), by a local folder in Hub layout, by a folder of
such folders, or by ``@file``, a list of any of these. Importing this module imports no model library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError
from indexers import folders, hub
from indexers.loaders.base import Metadata, Repository
from indexers.loaders.layout import CONFIG, WEIGHT_SUFFIXES

GIGABYTE = 10**9
DEFAULT_MAX_SIZE_BYTES = 4 * GIGABYTE

_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class ModelSource:
    """One model that a user named.

    Attributes:
        repo: Id, ``org/name``; of a local folder its last two path parts.
        revision: Branch, tag or commit on the Hub, None for the newest.
        folder: The local folder, None for a model on the Hub.
    """

    repo: str
    revision: str | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        """What the user could have typed for it."""
        if self.folder is not None:
            return str(self.folder)
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def expand(arguments: Sequence[str]) -> list[ModelSource]:
    """Find out which models a user means.

    Args:
        arguments: Hub ids, folders, folders of folders and ``@file``, in any mixture. A file has one argument a line;
            ``#`` starts a comment, empty lines are skipped, relative folders are relative to the working folder.

    Returns:
        The models in the order named, those of a folder sorted by path, each once.

    Raises:
        InputError: If an argument is none of these, names nothing, or two different models have the same id.
    """
    sources = [source for argument in arguments for source in _expand(argument)]
    by_repo: dict[str, ModelSource] = {}
    for source in sources:
        first = by_repo.setdefault(source.repo, source)
        if _place(first) != _place(source):
            raise InputError(f"{first} and {source} are both called {source.repo}: an index can hold only one of them")
    return list(by_repo.values())


def revision_of(source: ModelSource) -> tuple[str, Metadata]:
    """Find out which revision of a model there is now, without fetching its weights.

    Args:
        source: The model.

    Returns:
        The commit sha (Hub) or a hash of what matters in the folder, 40 hex digits; and what is stated about it.

    Raises:
        ModelRefusedError: If the Hub does not let us see it.
        ModelFailedError: If there is no such model, or the Hub cannot be reached.
    """
    if source.folder is not None:
        return folders.revision_of(source.repo, source.folder)
    return hub.revision_of(source.repo, source.revision)


def fetch(
    source: ModelSource,
    revision: str,
    *,
    max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES,
    allow_pickle: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Repository:
    """Bring the files that a loader needs to this disk; from the Hub these only, and none of a model we would refuse.

    Args:
        source: The model.
        revision: Its revision, as `revision_of` gave it.
        max_size_bytes: Refuse models with larger files.
        allow_pickle: Whether weights may be pickles where there is nothing else.
        cache: Folder for downloads in the layout of huggingface_hub's cache, None for that cache itself.
        progress: Called with the bytes that are here and the bytes in all, during a download.

    Raises:
        ModelRefusedError: If it is no image classifier, needs remote code, is gated, too large or pickled only.
        ModelFailedError: If it is missing, has no weights or a broken config, or the Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    if source.folder is not None:
        return folders.fetch(
            source.repo, revision, source.folder, max_size_bytes=max_size_bytes, allow_pickle=allow_pickle
        )
    return hub.fetch(
        source.repo, revision, max_size_bytes=max_size_bytes, allow_pickle=allow_pickle, cache=cache, progress=progress
    )


def _expand(argument: str) -> Iterator[ModelSource]:
    if not argument.startswith("@"):
        yield from _one(argument)
        return
    file = Path(argument[1:]).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"the list of models {file} cannot be read: {reason}") from error
    named = [(number, _COMMENT.sub("", line).strip()) for number, line in enumerate(lines, start=1)]
    named = [(number, line) for number, line in named if line]
    if not named:
        raise InputError(f"the list {file} names no models: write one a line")
    for number, line in named:
        try:
            if line.startswith("@"):
                raise InputError("a list of models cannot name another list")
            yield from _one(line)
        except InputError as error:
            raise InputError(f"{file}, line {number}: {error}") from error


def _one(argument: str) -> Iterator[ModelSource]:
    path = Path(argument).expanduser()
    # An empty argument, from a variable that is not set, would be the working folder.
    if argument.strip() and path.is_dir():
        yield from _in_folder(path)
        return
    if path.is_file():
        raise InputError(f"{argument} is a file: to give a list of models, write @{argument}")
    match = _HUB_ID.fullmatch(argument)
    if match is None or not _is_hub_id(match["repo"]) or ".." in (match["revision"] or ""):
        raise InputError(f"{argument!r} is neither a folder nor a model on the Hub: org/name or org/name@revision")
    yield ModelSource(match["repo"], match["revision"])


def _is_hub_id(repo: str) -> bool:
    # The Hub's own rules, beyond the characters.
    return len(repo) <= 96 and "--" not in repo and ".." not in repo and not repo.endswith(".git")


def _in_folder(root: Path) -> Iterator[ModelSource]:
    found = False
    for name, inner, files in os.walk(root):
        inner.sort()
        if CONFIG in files or any(file.endswith(WEIGHT_SUFFIXES) for file in files):
            found = True
            # Not resolved: a folder is called what the user calls it.
            folder = Path(os.path.abspath(name))
            if len(folder.parts) < 3:
                raise InputError(f"{folder} has no org: a model's folder is called org/name")
            inner.clear()
            yield ModelSource("/".join(folder.parts[-2:]), folder=folder)
        else:
            inner[:] = [folder_name for folder_name in inner if not folder_name.startswith(".")]
    if not found:
        raise InputError(f"there is no model in {root}: a model's folder holds a {CONFIG} and weights")


def _place(source: ModelSource) -> object:
    return source.folder.resolve() if source.folder is not None else (source.repo, source.revision)
