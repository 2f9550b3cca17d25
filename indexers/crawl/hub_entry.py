"""One model as a hub's API describes it, which is a stranger's word: what cannot be so counts as not said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from indexers.crawl.filters import moment
from indexers.crawl.records import Listed
from indexers.folders import count_of, licence_of, tags_of, text_of
from indexers.hub import COMMIT
from indexers.loaders.base import Metadata

MAX_TAGS = 1000
"""More than are stored: filters look at them all."""

DTYPE_BITS = {"F4": 4, "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32}
DTYPE_BITS |= {"F32": 32, "U64": 64, "I64": 64, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
"""Types of safetensors."""


def entry_of(item: object) -> Listed | None:
    """Read one model of the API's answer.

    Args:
        item: As JSON has it.

    Returns:
        None if it has no id or revision that there can be. Of what else it says, nonsense counts as not said.
    """
    if not isinstance(item, dict):
        return None
    repo, revision = item.get("id"), item.get("sha")
    if (
        not isinstance(repo, str)
        or not is_id(repo)
        or not isinstance(revision, str)
        or COMMIT.fullmatch(revision) is None
    ):
        return None
    tags = tags_of(item.get("tags"), MAX_TAGS)
    parameters, size_bytes = _safetensors(item.get("safetensors"))
    card = item.get("cardData")
    licence = licence_of(card.get("license")) if isinstance(card, dict) else None
    if licence is None:
        licence = licence_of([tag.removeprefix("license:") for tag in tags if tag.startswith("license:")])
    return Listed(
        repo,
        revision,
        modified=_modified(item.get("lastModified")),
        size_bytes=size_bytes,
        parameters=parameters,
        gated=item.get("gated") not in (False, None),
        metadata=Metadata(
            licence=licence,
            tags=tags,
            downloads=count_of(item.get("downloads")),
            likes=count_of(item.get("likes")),
            library=text_of(item.get("library_name")),
        ),
    )


def is_id(repo: str) -> bool:
    """Whether a text is an id, ``org/name``, that a model on a Hub can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    if repo.count("/") != 1 or len(repo) > 2 * 96 or not repo.isascii():
        return False
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


def _modified(stated: object) -> str | None:
    text = moment(stated) if isinstance(stated, str) else None
    # A date in the future would become the watermark, and nothing after it would ever be seen.
    limit = moment((datetime.now(UTC) + timedelta(days=1)).isoformat())
    return text if text is not None and limit is not None and text <= limit else None


def _safetensors(stated: object) -> tuple[int | None, int | None]:
    """Number of parameters, and bytes that they take as far as their types are known."""
    if not isinstance(stated, dict):
        return None, None
    total = count_of(stated.get("total"))
    by_type = stated.get("parameters")
    if not isinstance(by_type, dict) or not by_type:
        return total, None
    bits = 0
    for kind, stated_count in by_type.items():
        count = count_of(stated_count)
        if count is None or kind not in DTYPE_BITS:
            return total, None
        bits += count * DTYPE_BITS[kind]
    return total, count_of(-(-bits // 8))
