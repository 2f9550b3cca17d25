"""Models on the Hugging Face Hub, or on whatever ``HF_ENDPOINT`` names; ``HF_TOKEN`` is respected.

Fetching has three steps, so that a crawler can decide between them, and `fetch` takes them in one go::

    survey(repo, revision)    one request: names, sizes and hashes of the files
    settle(survey)            the small files; from here on it is known what the model is and which weights it needs
    download(plan)            the weights, checked against the hash that the Hub states
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import Reason
from indexers.folders import count_of, licence_of, tags_of, text_of
from indexers.hub_errors import RETRY_WAITS_S, hub_errors, making_sense, patiently
from indexers.hub_progress import bar, tell_as_it_comes
from indexers.identity import identity_of
from indexers.loaders.base import Metadata, Repository
from indexers.loaders.declined import Declined, naming
from indexers.loaders.layout import (
    CONFIG,
    MAX_JSON_BYTES,
    PREPROCESSOR_CONFIGS,
    Weights,
    check_size,
    choose_weights,
    library_of,
    read_json,
    shards_of,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

INFO_TIMEOUT_S = 30.0

MAX_NAME_CHARACTERS = 1024
"""Longest name of a file that is taken notice of."""

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""What a commit sha looks like."""

Progress = Callable[[int, int], None]
"""Called with the bytes of the weights that are here, and their bytes in all; what it raises ends the download."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub states it.

    Attributes:
        size_bytes: None where it is not stated.
        digest: What identifies its content: SHA-256 for large files, git's object id for others.
        sha256: Of its content, None where it is not stated.
    """

    size_bytes: int | None
    digest: str | None
    sha256: str | None


@dataclass(frozen=True)
class Survey:
    """What a repository holds, before anything is downloaded.

    Attributes:
        repo: Id, ``org/name``.
        revision: Commit sha.
        files: By name, as paths relative to the repository.
        metadata: What the Hub states.
    """

    repo: str
    revision: str
    files: Mapping[str, RemoteFile]
    metadata: Metadata

    @property
    def sizes(self) -> dict[str, int | None]:
        """Bytes by name."""
        return {name: file.size_bytes for name, file in self.files.items()}

    def most_bytes(self, *, allow_pickle: bool) -> int:
        """What fetching can take at most, on the disk; 0 where nothing would be fetched.

        Args:
            allow_pickle: Whether weights may be pickles where there is nothing else.
        """
        try:
            weights = choose_weights(self.files, allow_pickle=allow_pickle)
        except Declined:
            return self.size_of(CONFIG)
        files = weights.files
        if weights.index is not None:  # which of them it names is not known yet
            ending = ".bin" if weights.pickled else ".safetensors"
            files = (weights.index, *(name for name in self.files if name.endswith(ending) and "/" not in name))
        return sum(self.size_of(name) for name in (CONFIG, *PREPROCESSOR_CONFIGS, *files))

    def size_of(self, name: str) -> int:
        """Bytes of a file, 0 where there is none or its size is not stated."""
        file = self.files.get(name)
        return (file.size_bytes or 0) if file is not None else 0


@dataclass(frozen=True)
class Plan:
    """A model that a loader will want: its small files are here, its weights are not.

    Attributes:
        survey: What there is.
        folder: Where the files are, or will be.
        weights: Those to download.
        identity: Equal for models that must answer alike: hash of the weights' hashes and of everything but names and
            labels in the configs; None where the Hub states no hashes.
    """

    survey: Survey
    folder: Path
    weights: Weights
    identity: str | None

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(self.survey.size_of(name) for name in self.weights.files)


def revision_of(repo: str, revision: str | None, *, waits_s: Sequence[float] | None = None) -> tuple[str, Metadata]:
    """Ask the Hub for the commit of a revision.

    Args:
        repo: Id, ``org/name``.
        revision: Branch, tag or commit, None for the newest.
        waits_s: Seconds before each further try of what can pass.

    Returns:
        The commit sha, and what the Hub states about the model.

    Raises:
        ModelRefusedError: If it is gated.
        ModelFailedError: If there is no such model, or the Hub cannot be reached.
    """
    with naming(repo, None), hub_errors(None):
        info = _info(_api(), repo, revision, waits_s, files=False)
        with making_sense():
            return _commit(info, revision), _metadata(info)


def survey(repo: str, revision: str, *, waits_s: Sequence[float] | None = None) -> Survey:
    """Ask the Hub which files a revision has.

    Args:
        repo: Id, ``org/name``.
        revision: Commit sha.
        waits_s: Seconds before each further try of what can pass.

    Raises:
        ModelRefusedError: If it is gated.
        ModelFailedError: If it is missing, or the Hub cannot be reached or answers nonsense.
    """
    with naming(repo, revision), hub_errors(None):
        info = _info(_api(), repo, revision, waits_s, files=True)
        with making_sense():
            files = {}
            for file in info.siblings or ():
                name, sha256 = file.rfilename, file.lfs.sha256 if file.lfs is not None else None
                digest = sha256 if file.lfs is not None else file.blob_id
                if not isinstance(name, str):
                    raise ValueError("a file whose name is no text")
                if (file.size is not None and count_of(file.size) is None) or (digest and not text_of(digest)):
                    raise ValueError(f"the size or the hash of {name[:100]!r}")
                # Nothing that a loader needs is called so that it cannot be printed.
                if len(name) <= MAX_NAME_CHARACTERS and name.isprintable():
                    files[name] = RemoteFile(file.size, digest, sha256)
            return Survey(repo, _commit(info, revision), files, _metadata(info))


def settle(
    found: Survey,
    *,
    max_size_bytes: int,
    allow_pickle: bool,
    cache: Path | None,
    waits_s: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Download the small files, and decide from names, sizes and config whether a loader will want the model.

    Args:
        found: What there is.
        max_size_bytes: Refuse models with larger files.
        allow_pickle: Whether weights may be pickles where there is nothing else.
        cache: Folder for downloads, None for huggingface_hub's own.
        waits_s: Seconds before each further try of what can pass.
        progress: Called with zeros as the small files come: nothing of the weights is here.

    Raises:
        ModelRefusedError: If it is no image classifier, needs remote code, is too large or pickled only.
        ModelFailedError: If it is missing, has no weights or a broken config, or the Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    sizes = found.sizes
    with naming(found.repo, found.revision), hub_errors(cache):
        if CONFIG not in sizes:
            library = found.metadata.library
            kind = f"a {library} model" if library else "of no library it names"
            raise Declined(Reason.UNSUPPORTED_LIBRARY, f"there is no {CONFIG}, it is {kind}")

        def get(name: str) -> Path:
            return fetch_json(found, name, cache, waits_s, progress)

        path = get(CONFIG)
        config = read_json(path)
        library = library_of(config, sizes)
        weights = choose_weights(sizes, allow_pickle=allow_pickle)
        if weights.index is not None:
            weights = replace(weights, files=shards_of(get(weights.index), sizes))
        for name in weights.files:
            if sizes[name] is None:
                raise Declined(Reason.NETWORK, f"the Hub states no size for {name}")
        plan = Plan(found, path.parent, weights, None)
        check_size(plan.size_bytes, max_size_bytes)
        small = {}
        for name in () if library == "timm" else PREPROCESSOR_CONFIGS:
            if name in sizes and found.size_of(name) <= MAX_JSON_BYTES:
                small[name] = get(name).read_bytes()
        digests = [found.files[name].digest for name in weights.files]
        return replace(plan, identity=identity_of(config, small, digests))


def download(
    plan: Plan, *, cache: Path | None, progress: Progress | None = None, waits_s: Sequence[float] | None = None
) -> Repository:
    """Download the weights and check them.

    Args:
        plan: What to download.
        cache: Folder for downloads, the same as of `settle`.
        progress: Called with the bytes that are here and the bytes in all.
        waits_s: Seconds before each further try of what can pass.

    Raises:
        ModelFailedError: If they are gone, are not what the Hub says they are, or the Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    found, total, here = plan.survey, plan.size_bytes, 0

    def advance(size_bytes: int) -> None:
        nonlocal here
        here += size_bytes
        if progress is not None:
            progress(min(here, total), total)

    with naming(found.repo, found.revision), hub_errors(cache):
        for name in plan.weights.files:
            path = fetch_file(found, name, cache, waits_s, advance)
            _check(path, found.files[name].sha256)
        return Repository(found.repo, found.revision, plan.folder, found.metadata)


def fetch(
    repo: str,
    revision: str,
    *,
    max_size_bytes: int,
    allow_pickle: bool,
    cache: Path | None,
    progress: Progress | None = None,
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
        ModelFailedError: If it is missing, has no weights or a broken config, is not what the Hub says it is, or the
            Hub cannot be reached.
        StoreError: If downloads cannot be written.
    """
    found = survey(repo, revision)
    plan = settle(found, max_size_bytes=max_size_bytes, allow_pickle=allow_pickle, cache=cache)
    return download(plan, cache=cache, progress=progress)


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = sha256_of(path)
    if found != sha256:
        # Else the next try would find it in the cache and look no further.
        for place in (path.resolve(), path):
            with suppress(OSError):
                place.unlink()
        raise Declined(
            Reason.CHECKSUM, f"{path.name} has the SHA-256 {found[:12]}… where the Hub states {sha256[:12]}…"
        )


def _api() -> HfApi:
    from huggingface_hub import HfApi

    # huggingface_hub reads the variable once, when it is imported; a program that sets it later means it too.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return HfApi(endpoint=endpoint or None, library_name="hubhound")


def _info(api: HfApi, repo: str, revision: str | None, waits_s: Sequence[float] | None, *, files: bool) -> ModelInfo:
    with making_sense():
        return patiently(
            lambda: api.model_info(repo, revision=revision, files_metadata=files, timeout=INFO_TIMEOUT_S),
            RETRY_WAITS_S if waits_s is None else waits_s,
        )


def fetch_file(
    found: Survey,
    name: str,
    cache: Path | None,
    waits_s: Sequence[float] | None,
    advance: Callable[[int], None] | None = None,
) -> Path:
    """Download one file, unless it is here already.

    Args:
        found: What there is.
        name: Of the file.
        cache: Folder for downloads, None for huggingface_hub's own.
        waits_s: Seconds before each further try of what can pass.
        advance: Called with the bytes that came, 0 before the first; what it raises ends the download.

    Raises:
        Declined: If more comes than is stated, or `MAX_JSON_BYTES` where no size is stated, or nonsense.
    """
    stated = found.sizes.get(name)
    api, shown = _api(), bar(name, MAX_JSON_BYTES if stated is None else stated, advance)
    if advance is not None:
        advance(0)
    tell_as_it_comes()
    with making_sense():
        return Path(
            patiently(
                lambda: api.hf_hub_download(
                    found.repo, name, revision=found.revision, cache_dir=cache, tqdm_class=shown
                ),
                RETRY_WAITS_S if waits_s is None else waits_s,
            )
        )


def fetch_json(
    found: Survey, name: str, cache: Path | None, waits_s: Sequence[float] | None, progress: Progress | None
) -> Path:
    """Download a JSON file: as `fetch_file`, but nothing beyond `MAX_JSON_BYTES`; ``progress`` hears of zeros.

    Raises:
        Declined: If it is larger.
    """
    if found.size_of(name) > MAX_JSON_BYTES:
        raise Declined(Reason.BROKEN_CONFIG, f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    return fetch_file(found, name, cache, waits_s, lambda _size_bytes: progress(0, 0) if progress else None)


def _commit(info: ModelInfo, asked: str | None) -> str:
    if not info.sha:
        raise Declined(Reason.NETWORK, "the Hub states no commit for it")
    if COMMIT.fullmatch(info.sha) is None:
        raise ValueError("a commit that is none")
    if asked is not None and COMMIT.fullmatch(asked) and asked != info.sha:
        raise Declined(Reason.NETWORK, f"asked for the commit {asked[:12]} the Hub answers with {info.sha[:12]}")
    return info.sha


def _metadata(info: ModelInfo) -> Metadata:
    card = info.card_data
    return Metadata(
        licence=licence_of(card.get("license") if card is not None else None),
        tags=tags_of(info.tags),
        downloads=count_of(info.downloads),
        likes=count_of(info.likes),
        library=text_of(info.library_name),
    )
