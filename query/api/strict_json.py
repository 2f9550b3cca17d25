"""JSON as strangers send it: read strictly, so that nothing behind has to expect what cannot be meant."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from engine.errors import one_line
from query.api.errors import ApiError, ProblemKind

T = TypeVar("T", bound=BaseModel)

DEPTH = 32
"""Deepest nesting of lists and objects; no body of ours needs more than 4."""

MOST_NODES = 20_000
"""Values and names of fields in one body: other requests wait while each is looked at."""


def read_json(text: bytes, model: type[T]) -> T:
    """A body as its model has it.

    Args:
        text: JSON in UTF-8. Refused are NaN, infinities and numbers that overflow, names that come twice in an
            object, more than `DEPTH` levels or `MOST_NODES` values and names, lone surrogates and NUL characters,
            numbers of thousands of digits.
        model: What it must fit.

    Raises:
        ApiError: ``invalid-request``: it is not such JSON.
        RequestValidationError: It does not fit the model; what was sent is not repeated in it.
    """
    value = parse_json(text)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def parse_json(text: bytes) -> Any:
    """Plain values of strict JSON; see `read_json`.

    Raises:
        ApiError: ``invalid-request``.
    """
    if _marks(text) > 2 * MOST_NODES:
        raise _invalid(_TOO_MANY)
    try:
        value = json.loads(
            text.decode("utf-8"), parse_constant=_constant, parse_float=_number, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start:,}") from None
    except RecursionError:
        raise _invalid(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at character {error.pos:,}") from None
    except ValueError as error:  # ours, and Python's on integers of thousands of digits
        reason = one_line(str(error), 200) if isinstance(error, _RefusedError) else "a number has too many digits"
        raise _invalid(reason) from None
    for string in _strings(value):
        if "\0" in string:
            raise _invalid("a text holds a NUL character")
        try:
            string.encode()
        except UnicodeEncodeError:
            raise _invalid("a text holds half of a surrogate pair, which is no character") from None
    return value


_MARKS = (b",", b":", b"[", b"{")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one without an end, too, or it is looked for many times
_TOO_DEEP = f"it is nested deeper than {DEPTH} levels"
_TOO_MANY = f"it has more than {MOST_NODES:,} values and names"


class _RefusedError(ValueError):
    """Valid for Python's parser, not for us."""


def _constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is no number in JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError("a number is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RefusedError(f"{one_line(name[:1000], 100)!r} is given twice")
            seen.add(name)
    return found


def _marks(text: bytes) -> int:
    """Commas, colons and opening brackets, at most two for each value or name; at once where they are few.

    Counted before anything is made of the text: the garbage collection of a hundred thousand lists takes seconds.
    """
    marks = sum(map(text.count, _MARKS))
    return marks if marks <= MOST_NODES else sum(map(_STRING.sub(b"", text).count, _MARKS))


def _strings(value: Any) -> list[str]:
    """All texts, names of fields too. Depth and number of the nodes are checked on the way."""
    strings: list[str] = []
    left = [(value, 1)]
    nodes = 1
    while left:
        found, depth = left.pop()
        if isinstance(found, str):
            strings.append(found)
        elif isinstance(found, dict | list):
            if depth > DEPTH:
                raise _invalid(_TOO_DEEP)
            nodes += 2 * len(found) if isinstance(found, dict) else len(found)
            if nodes > MOST_NODES:
                raise _invalid(_TOO_MANY)
            if isinstance(found, dict):
                strings += found
                found = list(found.values())
            left += [(each, depth + 1) for each in found]
    return strings


def _invalid(reason: str) -> ApiError:
    return ApiError(ProblemKind.INVALID_REQUEST, f"the body is not valid JSON: {reason}")
