"""Preprocessed probes on the disk: decoded and resized once for all models that want the same pixels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.probes import ProbeSet
from indexers.loaders.base import Preprocessing

Pixels = npt.NDArray[np.uint8]


class PixelCache:
    """Arrays of uint8 pixels ``[n, 3, height, width]``, one for each probe set and distinct preprocessing.

    Args:
        folder: Where they are kept.
        limit_bytes: The arrays used longest ago are removed beyond this size.
    """

    def __init__(self, folder: Path, limit_bytes: int = 20 * 10**9) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
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
        folder = self._folder / probes.fingerprint[:16]
        path = folder / f"{preprocessing.key}.npy"
        found = _read(path, shape)
        if found is not None:
            os.utime(path)
            return found
        folder.mkdir(parents=True, exist_ok=True)
        self._make_room(int(np.prod(shape)))
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
        os.close(handle)
        try:
            array = np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=shape)
            self._fill(array, probes, preprocessing, progress)
            array.flush()
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return array

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
        files = sorted(self._folder.glob("*/*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = wanted_bytes
        for path in files:
            total += path.stat().st_size
            if total > self._limit_bytes:
                path.unlink(missing_ok=True)


def _read(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    try:
        array: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None
