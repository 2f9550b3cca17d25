"""What nobody has foreseen about one model must not end a crawl of a million."""

from __future__ import annotations

import traceback
from typing import Final

from engine.errors import ModelFailedError, Reason
from indexers.crawl import log
from indexers.crawl.journal import Claim
from indexers.loaders.declined import first_line

STRANGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    FileNotFoundError,
    IsADirectoryError,
    LookupError,
    MemoryError,
    NotADirectoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Errors that a strange model can raise where nobody thought of it; a full disk or a broken index is none of them."""


def unforeseen(claim: Claim, error: BaseException) -> ModelFailedError:
    """Makes one failed model of an error that nobody has foreseen, and logs where it came from.

    Args:
        claim: The model in hand.
        error: What was raised.
    """
    place = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f"{place.filename}:{place.lineno}" if place else None
    log.error("unforeseen", model=claim.repo, revision=claim.revision, detail=first_line(error), where=where)
    return ModelFailedError(
        Reason.RUN_FAILED,
        f"an error of ours, please report it: {first_line(error)}",
        claim.repo,
        claim.revision,
    )
