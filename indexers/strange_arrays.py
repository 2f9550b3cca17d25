"""A ``.npy`` file that a process wrote whom nobody trusts: opened only if it is exactly what was announced."""

from __future__ import annotations

import math
import os
import stat
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

_MAX_HEADER = 1000
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

_NOT_A_HEADER = (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)


class StrangeArrayError(ValueError):
    """A file is not the array that was announced; the message says what it is instead."""


@contextmanager
def opened(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A regular file that holds one array and nothing else, positioned at its first number.

    Args:
        path: The file; a link is not followed, and nothing is waited for.
        dtype: Of the array, exactly; objects are never read.
        shape: Likewise; the last axis varies fastest.

    Raises:
        StrangeArrayError: It is missing or something else.
    """
    dtype = np.dtype(dtype)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StrangeArrayError(f"{path.name} cannot be opened ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise StrangeArrayError(f"{path.name} is not a plain file")
        try:
            found, fortran, kind = _READERS[np.lib.format.read_magic(file)](file, max_header_size=_MAX_HEADER)
        except (
            ValueError,
            KeyError,
            TypeError,
            SyntaxError,
            RecursionError,
            MemoryError,
            tokenize.TokenError,
        ) as error:
            raise StrangeArrayError(f"{path.name} is not an array") from error
        if (found, kind, fortran and len(shape) > 1) != (shape, dtype, False):
            raise StrangeArrayError(f"{path.name} holds {str(kind)[:50]} {str(found)[:80]}, not {dtype} {shape}")
        expected = file.tell() + math.prod(shape) * dtype.itemsize
        if facts.st_size != expected:
            raise StrangeArrayError(f"{path.name} has {facts.st_size:,} bytes instead of {expected:,}")
        yield file


def read(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The array in such a file, in memory.

    Args:
        path: The file.
        dtype: Of the array.
        shape: Likewise.

    Raises:
        StrangeArrayError: It is missing or something else.
    """
    with opened(path, dtype, shape) as file:
        array: npt.NDArray[np.generic] = np.empty(shape, dtype)
        view = memoryview(array.data).cast("B")
        read = 0
        while read < len(view):
            count = file.readinto(view[read:])  # type: ignore[attr-defined]
            if not count:
                raise StrangeArrayError(f"{path.name} became shorter while it was read")
            read += count
    return array
