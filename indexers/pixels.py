"""Preprocessed probes on the disk: decoded and resized once for all models that want the same pixels."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexers.loaders.base import Preprocessing
from indexers.strange_arrays import StrangeArrayError, opened

if TYPE_CHECKING:
    from engine.probes import ProbeSet  # imports Pillow: whoever only adopts arrays does not need it

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Got:
    """What a cache gave last.

    Attributes:
        name: Of the array beneath the cache's folder, ``PROBES/PREPROCESSING.npy``.
        new: It was not there, and lies in the outbox now.
    """

    name: str
    new: bool


class PixelCache:
    """Arrays of uint8 pixels ``[n, 3, height, width]``, one for each probe set and distinct preprocessing.

    Args:
        folder: Where they are kept.
        limit_bytes: The arrays used longest ago are removed beyond this size.
        outbox: Nothing in ``folder`` is changed, and new arrays are left here under their file names, for a process
            that may write there to ``adopt``.
    """

    def __init__(self, folder: Path, limit_bytes: int = 20 * 10**9, outbox: Path | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._outbox = outbox
        self.got: Got | None = None
        """What ``get`` gave last."""
        self.decoded = 0
        """Images decoded so far, for those who want to know whether the cache works."""

    def get(
        self, probes: ProbeSet, preprocessing: Preprocessing, progress: Callable[[int, int], None] | None = None
    ) -> Pixels:
        """The probes as one preprocessing leaves them, memory-mapped.

        Args:
            probes: n probes.
            preprocessing: The model's own.
            progress: Called with (done, total) while images are decoded.

        Raises:
            ProbeError: A probe cannot be read.
            OSError: The array cannot be written.
        """
        height, width = preprocessing.size
        shape = (len(probes), 3, height, width)
        name = f"{probes.fingerprint[:16]}/{preprocessing.key}.npy"
        path = self._folder / name
        found = _read(path, shape)
        self.got = Got(name, found is None and self._outbox is not None)
        if found is not None:
            if self._outbox is None:
                os.utime(path)
            return found
        if self._outbox is not None:
            path = self._outbox / path.name
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(int(np.prod(shape)))
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(temporary)
            self._fill(array, probes, preprocessing, progress)
            array.flush()
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return array

    def adopt(self, name: str, file: Path, shape: tuple[int, ...]) -> bool:
        """Takes an array that a process whom nobody trusts has left in its outbox.

        Args:
            name: Of the array beneath the cache's folder.
            file: Where it lies; it is gone afterwards.
            shape: It must have, ``[n, 3, height, width]``.

        Returns:
            Whether it is new; one that another process brought first stays.

        Raises:
            StrangeArrayError: It is something else.
            OSError: The disk is full ...
        """
        path = self._folder / name
        if path.exists():
            file.unlink(missing_ok=True)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(int(np.prod(shape)))
        # Looked at where its maker can no longer exchange it for something else.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            _move(file, Path(temporary))
            with opened(Path(temporary), np.uint8, shape) as array:
                os.fchmod(array.fileno(), 0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return True

    def touch(self, name: str) -> None:
        """Notes that an array was used, so that others are removed before it.

        Args:
            name: Of the array beneath the cache's folder; there may be none.
        """
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._folder / name, follow_symlinks=False)

    def _fill(
        self,
        array: Pixels,
        probes: ProbeSet,
        preprocessing: Preprocessing,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        def one(i: int) -> None:
            array[i] = preprocessing.to_pixels(probes.image(i)).numpy()

        # Pillow decodes and resizes without the interpreter's lock, so threads are enough.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for done, _ in enumerate(pool.map(one, range(len(probes)))):
                self.decoded += 1
                if progress:
                    progress(done + 1, len(probes))

    def _make_room(self, wanted_bytes: int) -> None:
        total = wanted_bytes
        files = sorted((facts for path in self._folder.glob("*/*.npy") for facts in _age(path)), reverse=True)
        for _, size, path in files:
            total += size
            if total > self._limit_bytes:
                path.unlink(missing_ok=True)


def _age(path: Path) -> list[tuple[float, int, Path]]:
    try:
        facts = path.stat()
    except FileNotFoundError:  # another process has just made room
        return []
    return [(facts.st_mtime, facts.st_size, path)]


def _reserve(name: str) -> None:
    """Makes the disk give the whole file now: a full disk ends a process that writes to mapped memory."""
    if hasattr(os, "posix_fallocate"):
        with open(name, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _move(file: Path, target: Path) -> None:
    try:
        file.replace(target)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise StrangeArrayError(f"{file.name} is missing or a folder") from error
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        target.unlink()
        shutil.copyfile(file, target, follow_symlinks=False)
        file.unlink()


def _read(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    try:
        array: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None
