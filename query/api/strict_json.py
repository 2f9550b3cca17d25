"""JSON as strangers send it: read strictly, so that nothing behind has to expect what cannot be meant."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from engine.errors import one_line
from query.api.errors import ApiError, ProblemKind

T = TypeVar("T", bound=BaseModel)

DEPTH = 32
"""Deepest nesting of lists and objects; no body of ours needs more than 4."""


def read_json(text: bytes, model: type[T]) -> T:
    """A body as its model has it.

    Args:
        text: JSON in UTF-8. Refused are NaN, infinities and numbers that overflow, names that come twice in an
            object, more than `DEPTH` levels, lone surrogates and NUL characters, numbers of thousands of digits.
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
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise _invalid("a text holds half of a surrogate pair, which is no character")
    return value


_TOO_DEEP = f"it is nested deeper than {DEPTH} levels"


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
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _RefusedError(f"{one_line(twice, 100)!r} is given twice")
    return found


def _strings(value: Any) -> Iterator[str]:
    """All texts, names of fields too. Depth is checked on the way."""
    left = [(value, 1)]
    while left:
        found, depth = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict | list):
            if depth > DEPTH:
                raise _invalid(_TOO_DEEP)
            if isinstance(found, dict):
                yield from found
                found = list(found.values())
            left += [(each, depth + 1) for each in found]


def _invalid(reason: str) -> ApiError:
    return ApiError(ProblemKind.INVALID_REQUEST, f"the body is not valid JSON: {reason}")
