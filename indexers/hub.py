"""Models on the Hugging Face Hub, or on whatever ``HF_ENDPOINT`` names; ``HF_TOKEN`` is respected."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import Reason, StoreError
from indexers.folders import licence_of
from indexers.loaders.base import Metadata, Repository
from indexers.loaders.declined import Declined, first_line, naming
from indexers.loaders.layout import (
    CARD,
    CONFIG,
    MAX_JSON_BYTES,
    PREPROCESSOR_CONFIGS,
    check_size,
    choose_weights,
    library_of,
    read_json,
    shards_of,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

RETRY_WAITS_S = (1.0, 4.0)
"""Seconds before the second and the third try of a request that failed for a reason that passes."""

MAX_WAIT_S = 60.0
"""Longest wait, in seconds, that the Hub can ask for; beyond that the model is left for another run."""

INFO_TIMEOUT_S = 30.0

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

Result = TypeVar("Result")


def revision_of(repo: str, revision: str | None) -> tuple[str, Metadata]:
    """Ask the Hub for the commit of a revision.

    Args:
        repo: Id, ``org/name``.
        revision: Branch, tag or commit, None for the newest.

    Returns:
        The commit sha, and what the Hub states about the model.

    Raises:
        ModelRefusedError: If it is gated.
        ModelFailedError: If there is no such model, or the Hub cannot be reached.
    """
    with naming(repo, None), _hub_errors(None):
        info = _info(_api(), repo, revision, files=False)
        return _commit(info), _metadata(info)


def fetch(
    repo: str,
    revision: str,
    *,
    max_size_bytes: int,
    allow_pickle: bool,
    cache: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> Repository:
    """Download the files that a loader needs, after deciding from names, sizes and config that one will want them.

    Args:
        repo: Id, ``org/name``.
        revision: Commit sha.
        max_size_bytes: Refuse models with larger files.
        allow_pickle: Whether weights may be pickles where there is nothing else.
        cache: Folder for downloads, None for huggingface_hub's own.
        progress: Called with the bytes that are here and the bytes in all.

    Raises:
        ModelRefusedError: If it is no image classifier, needs remote code, is gated, too large or pickled only.
        ModelFailedError: If it is missing, has no weights or a broken config, or the Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    with naming(repo, revision), _hub_errors(cache):
        api = _api()
        info = _info(api, repo, revision, files=True)
        commit = _commit(info)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        if CONFIG not in sizes:
            kind = f"a {info.library_name} model" if info.library_name else "of no library it names"
            raise Declined(Reason.UNSUPPORTED_LIBRARY, f"there is no {CONFIG}, it is {kind}")
        if (sizes[CONFIG] or 0) > MAX_JSON_BYTES:
            raise Declined(Reason.BROKEN_CONFIG, f"{CONFIG} is larger than {MAX_JSON_BYTES >> 20} MiB")

        def download(name: str, advance: Callable[[int], None] | None = None) -> Path:
            bar = _bar(advance)
            return Path(
                _patiently(
                    lambda: api.hf_hub_download(repo, name, revision=commit, cache_dir=cache, tqdm_class=bar),
                )
            )

        config = download(CONFIG)
        library = library_of(read_json(config), sizes)
        weights = choose_weights(sizes, allow_pickle=allow_pickle)
        if weights.index is not None:
            weights = replace(weights, files=shards_of(download(weights.index), sizes))
        total = sum(_size(sizes, name) for name in weights.files)
        check_size(total, max_size_bytes)
        small = (CARD,) if library == "timm" else (CARD, *PREPROCESSOR_CONFIGS)
        for name in small:
            if name in sizes and _size(sizes, name) <= MAX_JSON_BYTES:
                download(name)
        here = 0

        def advance(size_bytes: int) -> None:
            nonlocal here
            here += size_bytes
            if progress is not None:
                progress(min(here, total), total)

        for name in weights.files:
            download(name, advance)
        return Repository(repo, commit, config.parent, _metadata(info))


def _api() -> HfApi:
    from huggingface_hub import HfApi

    # huggingface_hub reads the variable once, when it is imported; a program that sets it later means it too.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return HfApi(endpoint=endpoint or None, library_name="hubhound")


def _info(api: HfApi, repo: str, revision: str | None, *, files: bool) -> ModelInfo:
    return _patiently(
        lambda: api.model_info(repo, revision=revision, files_metadata=files, timeout=INFO_TIMEOUT_S),
    )


def _commit(info: ModelInfo) -> str:
    if not info.sha:
        raise Declined(Reason.NETWORK, "the Hub states no commit for it")
    return info.sha


def _size(sizes: Mapping[str, int | None], name: str) -> int:
    size_bytes = sizes[name]
    if size_bytes is None:
        raise Declined(Reason.NETWORK, f"the Hub states no size for {name}")
    return size_bytes


def _metadata(info: ModelInfo) -> Metadata:
    card = info.card_data
    return Metadata(
        licence=licence_of(card.get("license") if card is not None else None),
        tags=tuple(info.tags or ()),
        downloads=info.downloads,
        likes=info.likes,
        library=info.library_name,
    )


def _bar(advance: Callable[[int], None] | None) -> type[Any]:
    """A progress bar class for huggingface_hub that shows nothing and passes the bytes on."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            if advance is not None:
                advance(int(n or 0))

        # Without these two a download over Xet makes two bars of this class and counts every byte twice.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

    return Bar


def _patiently(call: Callable[[], Result]) -> Result:
    """Call again after a while what failed for a reason that passes."""
    for wait_s in RETRY_WAITS_S:
        try:
            return call()
        except Exception as error:
            asked_s = _retry_after_s(error)
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


def _retry_after_s(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date; rare, and our own waits do
        return 0.0


@contextmanager
def _hub_errors(cache: Path | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a reason and what to do about it."""
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


def _declined(error: BaseException) -> Declined:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return Declined(Reason.GATED, f"the Hub refuses it to you (status {status}): check HF_TOKEN")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Declined(Reason.NETWORK, "HF_HUB_OFFLINE is set, and it is not in the cache")
    return Declined(Reason.NETWORK, f"the Hub did not answer as it should: {first_line(error)}: try again later")
