"""Where a worker works: folders on its node's disk, its own and those that it shares."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from engine.errors import HubhoundError
from indexers.crawl.fleet.parcel import Piece, unpack

_LARGEST = 4096
_LOCK = ".lock"
_IMAGES = "images-"
_PART = ".part-"


class Place:
    """Folders of a worker. What one has left that was killed is removed by the next that takes its place.

    ::

        CACHE/pixels/                       preprocessed images, shared by all workers of the node
        CACHE/fleet/OWNER/images-PARCEL/    the images, shared by the workers of one index
        CACHE/fleet/OWNER/0, 1, 2 ...       of one worker each: its downloads
        CACHE/pixels/scratch-OWNER-0 ...    likewise: what its models' processes write

    Args:
        cache: Folder for everything.
        owner: Names the index.
        parcel: Names the images.

    Raises:
        OSError: Folders cannot be made.
    """

    def __init__(self, cache: Path, owner: str, parcel: str) -> None:
        self.pixels = cache / "pixels"
        self._home = cache / "fleet" / owner
        self._home.mkdir(parents=True, exist_ok=True)
        self.images = self._home / f"{_IMAGES}{parcel}"
        self._part = self._home / f"{_PART}{os.getpid()}"
        self._number, self._lock = self._take()
        self.folder = self._home / str(self._number)
        self.scratch = self.pixels / f"scratch-{owner}-{self._number}"
        _remove(self.folder)
        self.folder.mkdir()
        for path in self._home.glob(f"{_IMAGES}*"):
            if path != self.images:  # those of the index as it was before
                _remove(path)

    @property
    def has_images(self) -> bool:
        """Whether the images are here, all of them."""
        return self.images.is_dir()

    def unpack(self, piece: Piece, *, first: bool, last: bool) -> None:
        """Writes some of the images.

        Args:
            piece: One after the other.
            first: It begins anew.
            last: Now they are complete.

        Raises:
            HubhoundError: A file would lie outside the folder.
            OSError: They cannot be written.
        """
        if first:
            _remove(self._part)
            self._part.mkdir()
        unpack(piece, self._part)
        if last:
            try:
                self._part.rename(self.images)
            except OSError:
                if not self.has_images:  # another worker was quicker
                    raise
            _remove(self._part)

    def close(self) -> None:
        """Removes what is the worker's own."""
        _remove(self.folder)
        _remove(self._part)
        os.close(self._lock)

    def _take(self) -> tuple[int, int]:
        # A lock goes with its process, however that ends.
        for number in range(_LARGEST):
            handle = os.open(self._home / f"{number}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                continue
            return number, handle
        raise HubhoundError(f"{self._home} has no place for one more worker: look whether its file system can lock")


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
