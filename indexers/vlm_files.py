"""Vision-language models in open_clip's layout: which files of a repository matter, and how they come to this disk.

As with classifiers the decisions are made twice: from the names before a download, and on the folder before loading.
Of a model that needs its text tower's config, that is fetched too; no tokenizer ever is, because nobody reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import Reason
from indexers import folders
from indexers.hub import Plan, Progress, Survey, fetch_json, sha256_of
from indexers.hub_errors import hub_errors
from indexers.identity import identity_of
from indexers.loaders.base import Metadata, Repository
from indexers.loaders.declined import Declined, naming, stage
from indexers.loaders.layout import CONFIG as TEXT_CONFIG
from indexers.loaders.layout import (
    Weights,
    check_size,
    escapes,
    files_in,
    is_native,
    read_json,
    read_small,
)

TASK = "zero-shot-image-classification"
"""What the Hub calls what they are for."""

CONFIG = "open_clip_config.json"

SAFE_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""Weights files in the order in which they are preferred."""

PICKLED_WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt")
"""The same, for files that are opened only when the user allows pickles, restricted to tensors then."""


def choose_weights(names: Collection[str], *, allow_pickle: bool) -> Weights:
    """Choose the weights to open.

    Args:
        names: Names of the repository's files, as paths relative to its folder.
        allow_pickle: Whether pickles may be chosen where there is nothing else.

    Raises:
        Declined: If it is not in open_clip's layout, or nothing in it may be opened.
    """
    if CONFIG not in names:
        raise Declined(
            Reason.UNSUPPORTED_LIBRARY,
            f"there is no {CONFIG}: vision-language models are read in open_clip's layout, with {SAFE_WEIGHTS[0]}",
        )
    for name in SAFE_WEIGHTS:
        if name in names:
            return Weights((name,))
    for name in PICKLED_WEIGHTS:
        if name in names:
            if allow_pickle:
                return Weights((name,), pickled=True)
            raise Declined(Reason.PICKLE_ONLY, f"only {name}: allow it with --allow-pickle, or ask for safetensors")
    raise Declined(Reason.NO_WEIGHTS, f"there is neither {SAFE_WEIGHTS[0]} nor {SAFE_WEIGHTS[1]}")


@stage(Reason.BROKEN_CONFIG)
def text_config_of(config: Mapping[str, object], names: Collection[str]) -> str | None:
    """Decide from its config whether open_clip can build a model from its own files alone.

    Args:
        config: Content of the repository's open_clip_config.json.
        names: Names of the repository's files.

    Returns:
        Name of the file with the config of its text tower; None where its text tower is open_clip's own.

    Raises:
        Declined: If it is no open_clip config, or the text tower's config is not among the files.
    """
    parts = config.get("model_cfg")
    if not isinstance(parts, dict) or not all(isinstance(parts.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise Declined(Reason.BROKEN_CONFIG, f"{CONFIG} has no model_cfg with a vision_cfg and a text_cfg")
    text = parts["text_cfg"].get("hf_model_name")
    if not text:
        return None
    if TEXT_CONFIG not in names:
        raise Declined(
            Reason.UNSUPPORTED_LIBRARY,
            f"its text tower is {str(text)[:100]!r} of transformers, and its {TEXT_CONFIG} is not among the files: "
            "profile it by name with 'hubhound profile'",
        )
    return TEXT_CONFIG


@stage(Reason.BROKEN_CONFIG)
def check_text_config(config: Mapping[str, object]) -> None:
    """Refuses a text tower that is code in the repository.

    Raises:
        Declined: It is.
    """
    if config.get("auto_map") and not is_native(config):
        raise Declined(Reason.REMOTE_CODE, "its text tower is code in the repository, which is never run")


def most_bytes(found: Survey, *, allow_pickle: bool) -> int:
    """What fetching can take at most, on the disk; 0 where nothing would be fetched."""
    try:
        weights = choose_weights(found.files, allow_pickle=allow_pickle)
    except Declined:
        return 0
    return sum(found.size_of(name) for name in (CONFIG, TEXT_CONFIG, *weights.files))


def settle(
    found: Survey,
    *,
    max_size_bytes: int,
    allow_pickle: bool,
    cache: Path | None,
    waits_s: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Download the configs, and decide whether the model will be wanted: as ``indexers.hub.settle`` for classifiers.

    Raises:
        ModelRefusedError: If it is not in open_clip's layout, too large or pickled only.
        ModelFailedError: If it is missing, has no weights or a broken config, or the Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    sizes = found.sizes
    with naming(found.repo, found.revision), hub_errors(cache):
        weights = choose_weights(sizes, allow_pickle=allow_pickle)
        path = fetch_json(found, CONFIG, cache, waits_s, progress)
        config = read_json(path)
        small: dict[str, bytes] = {}
        text = text_config_of(config, sizes)
        if text is not None:
            text_path = fetch_json(found, text, cache, waits_s, progress)
            check_text_config(read_json(text_path))
            small[text] = text_path.read_bytes()
        for name in weights.files:
            if sizes[name] is None:
                raise Declined(Reason.NETWORK, f"the Hub states no size for {name}")
        plan = Plan(found, path.parent, weights, None)
        check_size(plan.size_bytes, max_size_bytes)
        return replace(plan, identity=identity_of(config, small, [found.files[name].digest for name in weights.files]))


def in_folder(
    repo: str, revision: str, folder: Path, *, max_size_bytes: int, allow_pickle: bool
) -> tuple[Repository, str | None]:
    """Check that a model's folder may be used.

    Args:
        repo: Id, ``org/name``.
        revision: Content hash of the folder.
        folder: The folder.
        max_size_bytes: Refuse models with larger files.
        allow_pickle: Whether weights may be pickles where there is nothing else.

    Returns:
        The model, and its identity as of `settle`.

    Raises:
        ModelRefusedError: If it is not in open_clip's layout, too large or pickled only.
        ModelFailedError: If it has no weights, a broken config, or files that are links to elsewhere.
    """
    with naming(repo, revision), stage(Reason.MISSING):
        for name in files_in(folder):
            if name in (CONFIG, TEXT_CONFIG, *SAFE_WEIGHTS, *PICKLED_WEIGHTS) and escapes(folder, name):
                reason = Reason.BROKEN_CONFIG if name.endswith(".json") else Reason.BROKEN_WEIGHTS
                raise Declined(reason, f"{name} is a link out of the model's folder, which is not followed")
        weights, config, text = read_folder(folder, allow_pickle=allow_pickle)
        check_size(sum((folder / name).stat().st_size for name in weights.files), max_size_bytes)
        small = {text: read_small(folder / text)} if text is not None else {}
        identity = identity_of(config, small, [sha256_of(folder / name) for name in weights.files])
    return Repository(repo, revision, folder), identity


def read_folder(folder: Path, *, allow_pickle: bool) -> tuple[Weights, dict[str, object], str | None]:
    """What of a model's folder is to be opened.

    Args:
        folder: The folder; in that of a download everything is a link.
        allow_pickle: Whether weights may be pickles where there is nothing else.

    Returns:
        Its weights, the content of its config, and the name of its text tower's config if it needs one.

    Raises:
        Declined: If it cannot be used.
    """
    names = files_in(folder)
    weights = choose_weights(names, allow_pickle=allow_pickle)
    config = read_json(folder / CONFIG)
    text = text_config_of(config, names)
    if text is not None:
        check_text_config(read_json(folder / text))
    return weights, config, text


def revision_of(repo: str, folder: Path) -> tuple[str, Metadata]:
    """Hash what matters in a model's folder, as ``indexers.folders.revision_of`` does for classifiers.

    Raises:
        ModelFailedError: If the folder is gone or cannot be read.
    """
    general, metadata = folders.revision_of(repo, folder)
    with naming(repo, None), stage(Reason.MISSING):
        digest = hashlib.sha256(general.encode())
        for name in files_in(folder):
            if name in (CONFIG, *SAFE_WEIGHTS, *PICKLED_WEIGHTS):
                content = "a link to elsewhere" if escapes(folder, name) else sha256_of(folder / name)
                digest.update(f"\0{name}\0{content}".encode())
    return digest.hexdigest()[:40], metadata
