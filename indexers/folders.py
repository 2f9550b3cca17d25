"""Models in local folders in Hub layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.errors import Reason
from indexers.loaders.base import Metadata, Repository
from indexers.loaders.declined import Declined, naming, stage
from indexers.loaders.layout import (
    CARD,
    CONFIG,
    PREPROCESSOR_CONFIGS,
    Weights,
    check_size,
    escapes,
    files_in,
    library_of,
    read_json,
    weights_in,
)

MAX_STATED_CHARACTERS = 200
"""Longest licence, tag or library name that counts as stated."""

MAX_STATED_TAGS = 200

_LARGEST = 2**63 - 1

MAX_CARD_BYTES = 2**20
"""Largest model card whose header is read."""


def revision_of(repo: str, folder: Path) -> tuple[str, Metadata]:
    """Hash what matters in a model's folder.

    Args:
        repo: Id, ``org/name``.
        folder: The folder.

    Returns:
        40 hex digits, of the SHA-256 over names and contents of configs, card and weights; and what the card states.

    Raises:
        ModelFailedError: If the folder is gone or cannot be read.
    """
    with naming(repo, None), stage(Reason.MISSING):
        names = files_in(folder)
        try:
            weights = weights_in(folder, allow_pickle=True)
        except Declined:  # the model gets a revision all the same, to be remembered by
            weights = Weights(())
        relevant = {CONFIG, CARD, *PREPROCESSOR_CONFIGS, *weights.files, weights.index}
        digest = hashlib.sha256()
        for name in names:
            if name not in relevant:
                continue
            digest.update(f"{name}\0".encode())
            if escapes(folder, name):
                digest.update(b"a link to elsewhere\0")
                continue
            with (folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:40], _metadata(folder)


def fetch(repo: str, revision: str, folder: Path, *, max_size_bytes: int, allow_pickle: bool) -> Repository:
    """Check that a loader may use a model's folder.

    Args:
        repo: Id, ``org/name``.
        revision: Content hash of the folder.
        folder: The folder.
        max_size_bytes: Refuse models with larger files.
        allow_pickle: Whether weights may be pickles where there is nothing else.

    Raises:
        ModelRefusedError: If it is no image classifier, needs remote code, is too large or pickled only.
        ModelFailedError: If it has no weights, a broken config, or files that are links to elsewhere.
    """
    with naming(repo, revision), stage(Reason.MISSING):
        names = files_in(folder)
        _check_links(folder, [CONFIG, *PREPROCESSOR_CONFIGS], Reason.BROKEN_CONFIG)
        library_of(read_json(folder / CONFIG), names)
        weights = weights_in(folder, allow_pickle=allow_pickle)
        _check_links(folder, [*weights.files, *([weights.index] if weights.index else [])], Reason.BROKEN_WEIGHTS)
        check_size(sum((folder / name).stat().st_size for name in weights.files), max_size_bytes)
        return Repository(repo, revision, folder, _metadata(folder))


def _check_links(folder: Path, names: list[str], reason: Reason) -> None:
    for name in names:
        if (folder / name).exists() and escapes(folder, name):
            raise Declined(reason, f"{name} is a link out of the model's folder, which is not followed")


def _metadata(folder: Path) -> Metadata:
    card = folder / CARD
    if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES or escapes(folder, CARD):
        return Metadata()
    from huggingface_hub.repocard import metadata_load

    try:
        stated = metadata_load(card) or {}
    except Exception:  # a card is written by people, and nothing depends on it
        return Metadata()
    return Metadata(
        licence=licence_of(stated.get("license")),
        tags=tags_of(stated.get("tags")),
        library=text_of(stated.get("library_name")),
    )


def licence_of(stated: object) -> str | None:
    """Bring the licence as cards state it into one line.

    Args:
        stated: An id, a list of ids, or nothing.

    Returns:
        None where it is not stated, or not in at most `MAX_STATED_CHARACTERS` that can be printed.
    """
    return text_of(", ".join(tags_of(stated if isinstance(stated, list) else [stated])))


def text_of(stated: object) -> str | None:
    """What a stranger stated, if it is a text of at most `MAX_STATED_CHARACTERS` that can be printed, else None."""
    # Lone surrogates cannot be printed either; no store takes them.
    is_text = isinstance(stated, str) and 0 < len(stated) <= MAX_STATED_CHARACTERS and stated.isprintable()
    return stated if is_text else None  # type: ignore[return-value]


def tags_of(stated: object, most: int = MAX_STATED_TAGS) -> tuple[str, ...]:
    """What a stranger stated as tags; those that are no text as of `text_of` are left out.

    Args:
        stated: A list, or anything else for no tags.
        most: Of so many, the first ones, is taken notice.
    """
    return tuple(tag for tag in (stated if isinstance(stated, list | tuple) else ())[:most] if text_of(tag))


def count_of(stated: object) -> int | None:
    """What a stranger stated, if it is a number from 0 that a database can hold, else None."""
    # bool is an int; SQLite's integers end at 2^63.
    return stated if type(stated) is int and 0 <= stated <= _LARGEST else None
