"""Downloaded files: one folder a model, all of them together within a budget."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.2


class Downloads:
    """A folder that holds the files of the models in hand, and never more bytes than it may.

    Room is reserved before a download begins, by what the Hub says it will take, and given back when the files are
    removed. What a killed run left behind counts as well; it is kept for those who come back for it, who need not
    download it again, and makes room for others when they need it.

    Args:
        folder: Where they lie; made if it does not exist.
        limit_bytes: Never exceeded.
        wanted: Names of folders of an earlier run that are worth keeping; all others are removed. None to keep all.
    """

    def __init__(self, folder: Path, limit_bytes: int, wanted: Collection[str] | None = ()) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._reserved: dict[str, int] = {}
        self._left: dict[str, int] = {}  # the oldest first
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if wanted is None or path.name in wanted:
                self._left[path.name] = size_of(path)
            else:
                _remove(path)

    @staticmethod
    def name(repo: str, revision: str) -> str:
        """What a model's folder is called."""
        return f"{repo.replace('/', '--')}@{revision[:16]}"

    @property
    def used_bytes(self) -> int:
        """Reserved, or left by an earlier run."""
        with self._changed:
            return sum(self._reserved.values()) + sum(self._left.values())

    def fits(self, size_bytes: int) -> bool:
        """Whether so much could ever be reserved."""
        return size_bytes <= self._limit_bytes

    def reserve(self, name: str, size_bytes: int, stop: threading.Event) -> Path | None:
        """Waits until there is room for a model's files.

        Args:
            name: Of its folder.
            size_bytes: At most, for all files together; must fit.
            stop: Ends the waiting.

        Returns:
            The folder, which need not exist; None when stopped.
        """
        with self._changed:
            while not stop.is_set():
                if name not in self._reserved and self._make_room(name, size_bytes):
                    self._left.pop(name, None)
                    self._reserved[name] = size_bytes
                    return self._folder / name
                self._changed.wait(_POLL_S)
        return None

    def remove(self, name: str) -> None:
        """Removes a model's files and gives their room back; harmless if there are none."""
        _remove(self._folder / name)
        with self._changed:
            self._reserved.pop(name, None)
            self._left.pop(name, None)
            self._changed.notify_all()

    def keep(self, name: str) -> None:
        """Leaves a model's files for another try or for the user, as long as nobody else needs the room."""
        with self._changed:
            if self._reserved.pop(name, None) is not None:
                self._left[name] = size_of(self._folder / name)
            self._changed.notify_all()

    def drop(self, name: str) -> None:
        """Removes what was left of a model, unless room is reserved for it again."""
        with self._changed:
            if self._left.pop(name, None) is not None:
                _remove(self._folder / name)
                self._changed.notify_all()

    def close(self) -> None:
        """Removes the folder if nothing is in it."""
        with suppress(OSError):
            self._folder.rmdir()

    def _make_room(self, name: str, size_bytes: int) -> bool:
        free = self._limit_bytes - sum(self._reserved.values())
        if size_bytes > free:
            return False
        others = [other for other in self._left if other != name]
        while others and size_bytes > free - sum(self._left[other] for other in others):
            oldest = others.pop(0)
            _remove(self._folder / oldest)
            del self._left[oldest]
        return True


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, links not followed; 0 where there is none."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
