"""What an index can be copied from: a folder, a server, a backup."""

from __future__ import annotations

import abc
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self

from engine.index_files import MANIFEST, Group
from engine.manifest import Manifest, read_manifest
from engine.responses import ResponseArchive
from engine.schema import ModelState
from engine.store.base import StoredPoint, StoreLayout
from engine.store.content import canonical

MARKER = "copying.json"
"""In a folder or on a server's shelf: what is there is being made and not complete."""

Progress = Callable[[float, float, str], None]
"""Called with (done, total, what is being done); a total of 0 is unknown."""


class SourceFile(NamedTuple):
    """A file to be copied."""

    path: str
    """Below the index's folder, with slashes."""
    group: Group
    size_bytes: int
    sha256: str | None
    """As it should be, where that is known without reading it."""


class CopySource(abc.ABC):
    """An index to be copied; closing it lets go of a lock or a connection.

    Attributes:
        name: As the user named it.
        layout: Of its store.
        with_probes: Whether the probe images come along.
    """

    name: str
    layout: StoreLayout
    with_probes: bool

    @abc.abstractmethod
    def manifest(self) -> Manifest:
        """What it was made with, now."""

    @abc.abstractmethod
    def models(self) -> dict[str, StoredPoint]:
        """The records of all models, by repository id, ordered by it."""

    @abc.abstractmethod
    def outputs(self, models: Sequence[StoredPoint]) -> Iterator[StoredPoint]:
        """The outputs of these models' revisions, in any order.

        Args:
            models: Some of :meth:`models`.
        """

    @abc.abstractmethod
    def knowledge(self) -> Iterator[StoredPoint]:
        """The records of tasks, profiles and performance."""

    @abc.abstractmethod
    def responses(self, models: Sequence[StoredPoint]) -> list[SourceFile]:
        """The files with the responses of these models' revisions, of those that have one.

        Args:
            models: Some of :meth:`models`.
        """

    @abc.abstractmethod
    def files(self) -> list[SourceFile]:
        """All files but responses and the manifest, those of probes only if they come along."""

    @abc.abstractmethod
    def fetch(self, files: Sequence[SourceFile], place: Callable[[str], Path]) -> dict[str, str]:
        """Writes files somewhere, each whole or not at all.

        Args:
            files: Some of :meth:`files` and :meth:`responses`.
            place: Where a path goes.

        Returns:
            The SHA-256 of what was read, by path.

        Raises:
            IndexDamagedError: A file is not what it should be.
            ProbeError: A probe image is missing.
            OSError: A file cannot be read or written.
        """

    @abc.abstractmethod
    def hash_of(self, file: SourceFile) -> str:
        """The SHA-256 of a file."""

    def version(self) -> object:
        """Something that is another thing after a model changed; what nobody can change has one version."""
        return None

    def files_version(self) -> object:
        """Something that is another thing after a file or something that is known about tasks changed."""
        return None

    @property
    def expected_bytes(self) -> int:
        """What a copy of the store will take, roughly."""
        return 0

    @property
    def promised(self) -> dict[str, object] | None:
        """What it says that it holds (``IndexContent.to_json``), where it says so."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of it; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def copied_manifest(self) -> Manifest:
        """The manifest that a copy has: images that come along lie in its own folder."""
        return own_probes(self.manifest())

    @property
    def identity(self) -> str:
        """Of the index, the same for its copies: what a copy that was cut short is told by."""
        manifest = self.manifest()
        made = (manifest.created_at.isoformat(), manifest.probes.fingerprint, manifest.encoder.fingerprint)
        return hashlib.sha256(canonical(made)).hexdigest()


@contextmanager
def unsynced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that has its name when it is whole, and is not waited for: of many, the disk is told together.

    Args:
        path: The file; its folder must exist.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def own_probes(manifest: Manifest) -> Manifest:
    """A manifest that says that the probe images lie in the index's own folder."""
    return manifest.model_copy(update={"probes": manifest.probes.model_copy(update={"folder": None})})


def manifest_hash(manifest: Manifest) -> str:
    """The SHA-256 of what a manifest says, wherever the probe images lie."""
    return hashlib.sha256(canonical(own_probes(manifest).model_dump(mode="json"))).hexdigest()


def store_bytes(layout: StoreLayout, outputs: int) -> int:
    """What an embedded store takes, roughly: measured 3,561 bytes an output at r = 50 and d = 384."""
    return outputs * (32 * layout.top_r + 4 * layout.dimension + 512)


def manifest_from(content: bytes) -> Manifest:
    """A manifest from the bytes of its file.

    Raises:
        IndexMismatchError: It was made by another version.
        IndexDamagedError: It cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder))


def responses_path(model: StoredPoint) -> str:
    """Where the responses of a model's revision lie below an index's folder, if they were kept."""
    return f"responses/{ResponseArchive(Path()).path(model.payload['repo'], model.payload['revision']).name}"


def outputs_of(model: StoredPoint) -> int:
    """How many outputs the record of a model claims."""
    return int(model.payload.get("outputs") or 0) if model.payload["state"] == ModelState.INDEXED.value else 0
