"""How a model is declined: the code that finds the fault does not know whose fault it is, its caller does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import DETAIL_CHARACTERS, ModelFailedError, ModelRefusedError, Reason, one_line

REFUSALS = frozenset(
    {
        Reason.NOT_A_CLASSIFIER,
        Reason.REMOTE_CODE,
        Reason.PICKLE_ONLY,
        Reason.TOO_LARGE,
        Reason.GATED,
        Reason.UNSUPPORTED_LIBRARY,
        Reason.FILTERED,
    }
)
"""Reasons why we decline to try; every other reason is something that did not work."""

SCRATCH_PREFIX = "hubhound-model-"
"""Beginning of the names of the temporary folders that libraries load from; of no interest in a message."""

_SCRATCH = re.compile(rf"[^\s'\"]*{SCRATCH_PREFIX}\w+")

_STARVED = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "out of memory",
    "bad_alloc",
)


class Declined(Exception):  # never leaves the loaders: `naming` turns it into a ModelError
    """A model cannot be used.

    Args:
        reason: The kind of fault.
        detail: One line for a person: what was found and what to do; made one by `one_line`.
        retry_after_s: Seconds to wait before the next try, where the Hub named them.
    """

    def __init__(self, reason: Reason, detail: str, retry_after_s: float | None = None) -> None:
        detail = one_line(detail)
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


@contextmanager
def naming(repo: str, revision: str | None) -> Iterator[None]:
    """Turn a `Declined` raised inside into the error of this model.

    Args:
        repo: Id, ``org/name``.
        revision: Commit or content hash, if it is known by now.

    Raises:
        ModelRefusedError: For the reasons in `REFUSALS`.
        ModelFailedError: For all others.
    """
    try:
        yield
    except Declined as declined:
        kind = ModelRefusedError if declined.reason in REFUSALS else ModelFailedError
        raise kind(declined.reason, declined.detail, repo, revision, declined.retry_after_s) from declined.__cause__


@contextmanager
def stage(reason: Reason) -> Iterator[None]:
    """Turn anything that a library raises inside into a `Declined`.

    Args:
        reason: What a failure at this stage means. Running out of memory is told apart at every stage.

    Raises:
        Declined: With the first line of the cause.
    """
    try:
        yield
    except Declined:
        raise
    except ImportError as error:
        raise Declined(Reason.UNSUPPORTED_LIBRARY, f"a package is missing: {first_line(error)}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise Declined(
                Reason.OUT_OF_MEMORY, f"{first_line(error, 200)}: run it where there is more memory"
            ) from error
        raise Declined(reason, first_line(error)) from error


def first_line(error: BaseException, characters: int = DETAIL_CHARACTERS) -> str:
    """The error's type and the first line of its message that says something.

    Args:
        error: What was raised.
        characters: Most that are kept, at least 1.
    """
    lines = (line.strip() for line in str(error).splitlines())
    # "Error(s) in loading state_dict for X:" and the like only introduce the line that says something.
    said = next((line for line in lines if line and not line.endswith(":")), str(error).strip())
    said = _SCRATCH.sub("its folder", said[: 8 * characters])  # which takes time by the square of the length
    return one_line(f"{type(error).__name__}: {said}" if said else type(error).__name__, characters)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library failed because there was not enough memory."""
    if isinstance(error, MemoryError):
        return True
    # torch raises a plain RuntimeError when the CPU's allocator fails, onnxruntime an error of its own.
    text = str(error).lower()
    return any(part in text for part in _STARVED)
