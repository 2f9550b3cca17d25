"""Files that a user gives an evaluation, read with errors that say where."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from engine.errors import InputError

_NAMED = 3  # how many of many wrong entries an error names


def read_json_input(path: Path, what: str) -> object:
    """The value in a JSON file that a user gave.

    Args:
        path: The file.
        what: What it is, for the error.

    Raises:
        InputError: It cannot be read or is not JSON; the message says at which line.
    """
    try:
        value: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"the {what} {path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # a ValueError: not UTF-8, or a number of 4,300 digits
        raise InputError(f"the {what} {path} cannot be read: {error}") from error
    return value


def read_csv(path: Path, what: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that a user gave, by the names of its first line.

    Args:
        path: The file, UTF-8.
        what: What it is, for the error.
        columns: Those that it must have.

    Returns:
        Line number and cells of each row; a cell that is not there is an empty text.

    Raises:
        InputError: It cannot be read or lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"the {what} {path} has no column {missing[0]}: its first line must name the columns")
        return [(reader.line_num, {key: value for key, value in row.items() if key}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the {what} {path} cannot be read: {error}") from error


def class_id(value: object) -> str | None:
    """A class as it stands in a file, as a text; None if it is neither a text nor a whole number."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def named(names: Sequence[str]) -> str:
    """The first few of some names, for an error."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
