"""Lists that users keep in text files, one entry a line."""

from __future__ import annotations

from pathlib import Path

from engine.errors import InputError


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a UTF-8 file without surrounding space; blank ones are dropped.

    Args:
        path: The file.
        what: What it is for, for the error.

    Raises:
        InputError: The file is missing, unreadable or not text.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the {what} file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} file {path} cannot be read: it is not UTF-8 text") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
