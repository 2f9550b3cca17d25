"""Files that are whole or absent, never half-written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from engine.errors import IndexDamagedError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under another name, brings it to the disk and renames it into place.

    Args:
        path: The file; its folder must exist.
        write: Gets the open file.

    Raises:
        OSError: The disk is full, the folder read-only ...; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file atomically."""
    data = json.dumps(value, ensure_ascii=False, indent=1).encode()
    write_atomic(path, lambda file: file.write(data))


def write_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Writes a ``.npy`` file atomically."""
    write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))


def read_json(path: Path) -> object:
    """Reads a JSON file of an index.

    Raises:
        IndexDamagedError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IndexDamagedError(f"the index file {path} cannot be read: {error}", path) from error


def read_array(path: Path, mapped: bool = True) -> npt.NDArray[np.generic]:
    """Reads a ``.npy`` file of an index, memory-mapped and read-only unless told otherwise.

    Raises:
        IndexDamagedError: It is missing, cut short or not an array.
    """
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDamagedError(f"the index file {path} cannot be read: {error}", path) from error
    return array


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when its contents are complete.

    Args:
        path: The final name; must not exist.

    Yields:
        A temporary folder beside it to write into.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def size_bytes(path: Path) -> int:
    """Bytes that a file or folder occupies on the disk (sparse files count what they really take)."""
    if not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_blocks * 512
    return sum(item.stat().st_blocks * 512 for item in path.rglob("*") if item.is_file() and not item.is_symlink())
