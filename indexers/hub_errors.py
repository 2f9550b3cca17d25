"""What the Hub answers when it does not give what was asked for, as reasons; and the patience with what passes."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

from engine.errors import Reason, StoreError
from indexers.loaders.declined import Declined, first_line

RETRY_WAITS_S = (1.0, 4.0)
"""Seconds before the second and the third try of a request that failed for a reason that passes."""

MAX_WAIT_S = 60.0
"""Longest wait, in seconds, that the Hub can ask for; beyond that the model is left for another run."""

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

Result = TypeVar("Result")


def patiently(call: Callable[[], Result], waits_s: Sequence[float] = RETRY_WAITS_S) -> Result:
    """Call again after a while what failed for a reason that passes.

    Args:
        call: Asks the Hub.
        waits_s: Seconds before each further try, longer where the Hub asks for it; none for those who try again later.
    """
    for wait_s in waits_s:
        try:
            return call()
        except Exception as error:
            asked_s = retry_after_s(error)
            if not _passes(error) or asked_s > MAX_WAIT_S:
                raise
            # Many workers that fail together must not come back together.
            time.sleep(max(asked_s, wait_s * random.uniform(0.75, 1.25)))  # noqa: S311
    return call()


def _passes(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _PASSING
    # huggingface_hub has tried again by itself before it says that it found no local copy instead.
    return _is_transport(error)


def _is_transport(error: BaseException) -> bool:
    # By name: huggingface_hub has changed the package it speaks HTTP with, and will again.
    return any(kind.__module__.partition(".")[0] in ("httpx", "httpx2") for kind in type(error).__mro__)


def retry_after_s(error: BaseException) -> float:
    """Seconds that the Hub wants us to wait, 0 where it does not say.

    Args:
        error: What huggingface_hub raised.
    """
    stated = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "0")
    try:
        return max(0.0, float(stated))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


@contextmanager
def hub_errors(cache: Path | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a reason and what to do about it.

    Args:
        cache: Where downloads go, to be named if it cannot be written.

    Raises:
        Declined: The Hub does not give what was asked for.
        StoreError: Downloads cannot be written.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise Declined(
            Reason.GATED, "its authors want to be asked: accept their terms on its page, and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise Declined(Reason.MISSING, "there is no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise Declined(
            Reason.MISSING, "there is no such model, or it is private: check its name, or set HF_TOKEN"
        ) from error
    except errors.DisabledRepoError as error:
        raise Declined(Reason.GATED, "the Hub has disabled access to it") from error
    except errors.RemoteEntryNotFoundError as error:
        raise Declined(Reason.MISSING, f"a file is gone: {first_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _declined(error.__cause__ or error) from error
    except errors.HfHubHTTPError as error:
        raise _declined(error) from error
    except OSError as error:
        if error.errno in _UNWRITABLE:
            where = error.filename or cache or "huggingface_hub's cache"
            raise StoreError(
                f"downloads cannot be written to {where}: {error.strerror}: make room or choose another cache folder",
                where,
            ) from error
        raise _declined(error) from error
    except Exception as error:
        if _is_transport(error):
            raise _declined(error) from error
        raise


@contextmanager
def making_sense() -> Iterator[None]:
    """Turn what the code of huggingface_hub, or ours, raises over an answer that makes no sense into a reason.

    Raises:
        Declined: It passes: whoever answers may be no Hub at all, but what a network puts in its place.
    """
    try:
        yield
    except OSError:  # some of huggingface_hub's own errors are this and a ValueError too
        raise
    except _NONSENSE as error:
        if _is_transport(error):
            raise
        said = f"what the Hub says of it is nonsense: {first_line(error, 200)}: try again later"
        raise Declined(Reason.NETWORK, said) from error


def _declined(error: BaseException) -> Declined:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return Declined(Reason.GATED, f"the Hub refuses it to you (status {status}): check HF_TOKEN")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Declined(Reason.NETWORK, "HF_HUB_OFFLINE is set, and it is not in the cache")
    asked_s = retry_after_s(error) or None
    detail = f"the Hub did not answer as it should: {first_line(error, 200)}: try again later"
    return Declined(Reason.NETWORK, detail, asked_s)
