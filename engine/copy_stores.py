"""Indexes with a store to be copied from: in a folder, on a server."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.copy_source import CopySource, SourceFile, manifest_from, outputs_of, responses_path, store_bytes, unsynced
from engine.errors import IndexDamagedError, IndexLockedError, IndexMissingError, ProbeError
from engine.index import Index
from engine.index_files import MANIFEST, UNFINISHED, checked_path, index_files
from engine.manifest import Manifest, read_manifest, unfinished
from engine.probes import hash_file
from engine.store.address import ServerAddress
from engine.store.base import DescriptorStore, StoredPoint
from engine.store.points import CALIBRATION

if TYPE_CHECKING:
    from engine.store.server import ServerStore
    from engine.store.shelf import ShelfEntry

_BLOCK = 1 << 20


class StoreSource(CopySource):
    """What sources with a store have in common."""

    store: DescriptorStore

    def models(self) -> dict[str, StoredPoint]:
        """See :meth:`CopySource.models`."""
        found = {point.payload["repo"]: point for point in self.store.stored("models")}
        return dict(sorted(found.items()))

    def outputs(self, models: Sequence[StoredPoint]) -> Iterator[StoredPoint]:
        """See :meth:`CopySource.outputs`."""
        revisions = {model.payload["repo"]: model.payload["revision"] for model in models if outputs_of(model)}
        if revisions:
            for point in self.store.stored("outputs", repos=list(revisions)):
                if revisions.get(point.payload["repo"]) == point.payload["revision"]:
                    yield point

    def knowledge(self) -> Iterator[StoredPoint]:
        """See :meth:`CopySource.knowledge`."""
        return self.store.stored("profiles")

    @property
    def expected_bytes(self) -> int:
        """See :meth:`CopySource.expected_bytes`."""
        return store_bytes(self.layout, self.store.count("outputs"))

    def close(self) -> None:
        """See :meth:`CopySource.close`."""
        self.store.close()


class FolderSource(StoreSource):
    """An index in a folder; its store is locked until it is closed, so that nothing changes meanwhile.

    Args:
        folder: Of the index.
        with_probes: Copy the probe images too, wherever they are.
        probes: Where they are now, if they were moved.

    Raises:
        IndexMissingError: There is none.
        IndexLockedError: Another process is writing.
        StoreError: The store cannot be opened.
    """

    def __init__(self, folder: Path, with_probes: bool = True, probes: Path | None = None) -> None:
        from engine.store.edge import EdgeStore

        self.name = str(folder)
        self.with_probes = with_probes
        self._index = Index(folder)
        self._probes = probes or self._index.probe_folder
        try:
            self.store = EdgeStore.open(folder / "store")
        except IndexLockedError as error:
            raise IndexLockedError(folder) from error
        self.layout = self.store.layout

    def manifest(self) -> Manifest:
        """See :meth:`CopySource.manifest`."""
        return read_manifest(self._index.folder)

    def responses(self, models: Sequence[StoredPoint]) -> list[SourceFile]:
        """See :meth:`CopySource.responses`."""
        paths = [responses_path(model) for model in models if outputs_of(model)]
        places = [(path, self._index.folder / path) for path in paths]
        return [SourceFile(path, "responses", file.stat().st_size, None) for path, file in places if file.exists()]

    def copied_manifest(self) -> Manifest:
        """See :meth:`CopySource.copied_manifest`; images that stay where they are are referred to there."""
        if self.with_probes:
            return super().copied_manifest()
        manifest = self.manifest()
        return manifest.model_copy(
            update={"probes": manifest.probes.model_copy(update={"folder": str(self._probes.absolute())})}
        )

    def files(self) -> list[SourceFile]:
        """See :meth:`CopySource.files`.

        Raises:
            ProbeError: A probe image is missing.
        """
        folder = self._index.folder
        found = [
            SourceFile(path, group, (folder / path).stat().st_size, None)
            for path, group in index_files(folder, ["core", "tasks"])
            if is_copied(path)
        ]
        if self.with_probes:
            for file, sha256 in self._index.probe_files:
                with _probe_errors(self._probes):
                    size = (self._probes / file).stat().st_size
                found.append(SourceFile(f"probes/{file}", "probes", size, sha256))
        return found

    def local(self, file: SourceFile) -> Path:
        """Where a file lies."""
        if file.group == "probes":
            return self._probes / file.path.removeprefix("probes/")
        return checked_path(self._index.folder, file.path)

    def fetch(self, files: Sequence[SourceFile], place: Callable[[str], Path]) -> dict[str, str]:
        """See :meth:`CopySource.fetch`."""
        hashes = {}
        for file in files:
            target = place(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            hashes[file.path] = copy_file(self.local(file), target)
            self.check(file, hashes[file.path])
        return hashes

    def hash_of(self, file: SourceFile) -> str:
        """See :meth:`CopySource.hash_of`."""
        found = hash_file(self.local(file))
        self.check(file, found)
        return found

    def check(self, file: SourceFile, found: str) -> None:
        """Refuses a file that is not what it should be.

        Args:
            file: Some file.
            found: The SHA-256 of what was read.

        Raises:
            IndexDamagedError: A probe image is another one than the index was made with.
        """
        if file.sha256 not in {None, found}:
            raise IndexDamagedError(
                f"the probe image {self.local(file)} is not the one that the index was made with: put that back, "
                "say where it is with --probes, or leave the images out with --no-probes",
                self.local(file),
            )


class ServerSource(StoreSource):
    """An index on a server, which others may be writing to meanwhile.

    Args:
        address: Of the index.

    Raises:
        IndexMissingError: There is none, or it is being made.
        IndexDamagedError: It is an unfinished copy.
        StoreError: The server refused or did not answer.
    """

    store: ServerStore

    with_probes = True  # without them a copy would need the server that it was made to be independent of

    def __init__(self, address: ServerAddress) -> None:
        from engine.store.server import ServerStore
        from engine.store.shelf import FileShelf

        self.name = str(address)
        try:
            self.store = ServerStore.open(address.connect(), address.name)
        except IndexMissingError as error:
            raise IndexMissingError(self.name) from error
        self.layout = self.store.layout
        self._claimed: set[str] = set()
        self._shelf = FileShelf(self.store)
        there = self._shelf.entries(["core", "copying"])
        if MANIFEST not in there:
            self.store.close()
            raise unfinished(self.name) if UNFINISHED in there else IndexMissingError(self.name)

    def manifest(self) -> Manifest:
        """See :meth:`CopySource.manifest`."""
        entry = self._shelf.entry(MANIFEST)
        if entry is None:
            raise IndexMissingError(self.name)
        with tempfile.TemporaryDirectory() as folder:
            self._shelf.fetch([entry], lambda path: Path(folder) / path)
            return manifest_from((Path(folder) / MANIFEST).read_bytes())

    def files(self) -> list[SourceFile]:
        """See :meth:`CopySource.files`."""
        return _source_files(self._shelf.entries(["core", "probes", "tasks"]).values())

    def responses(self, models: Sequence[StoredPoint]) -> list[SourceFile]:
        """See :meth:`CopySource.responses`."""
        paths = [responses_path(model) for model in models if outputs_of(model)]
        return _source_files(self._shelf._retrieve_heads(paths).values())

    def fetch(self, files: Sequence[SourceFile], place: Callable[[str], Path]) -> dict[str, str]:
        """See :meth:`CopySource.fetch`."""
        from engine.store.shelf import ShelfEntry

        entries = [ShelfEntry(file.path, file.group, file.sha256 or "", file.size_bytes) for file in files]
        self._shelf.fetch(entries, place)
        return {file.path: hash_file(place(file.path)) for file in files}

    def hash_of(self, file: SourceFile) -> str:
        """See :meth:`CopySource.hash_of`."""
        return file.sha256 or ""

    def models(self) -> dict[str, StoredPoint]:
        """See :meth:`CopySource.models`."""
        found = super().models()
        self._claimed = {str(model.payload[CALIBRATION]) for model in found.values() if model.payload.get(CALIBRATION)}
        return found

    def version(self) -> object:
        """The number of the newest change of a model, and whose outputs have constants that its record does not name.

        The latter come without a change of the record, from a calibration that is under way or was killed.
        """
        mixed = {model.repo for claimed in self._claimed for model in self.store.mixed(claimed)}
        return self.store.newest(), frozenset(mixed)

    def files_version(self) -> object:
        """The core files, one of which changes with what is known about tasks."""
        return tuple(self._shelf.entries(["core"]).values())


@contextmanager
def _probe_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ProbeError(
            f"the index's probe images are no longer in {folder} ({error.filename}): put them back, "
            "say where they are with --probes, or leave them out with --no-probes",
            folder,
        ) from error


def _source_files(entries: Iterable[ShelfEntry]) -> list[SourceFile]:
    return [
        SourceFile(entry.path, entry.group, entry.size_bytes, entry.sha256)  # type: ignore[arg-type]
        for entry in entries
        if is_copied(entry.path)
    ]


def is_copied(path: str) -> bool:
    """Whether a file goes along: not the manifest, which comes last, nor what belongs to one server only.

    That is signs to other machines, and the code of the candidates, which is worth nothing without their collection.
    """
    try:
        checked_path(Path(), path)
    except IndexDamagedError:
        return False
    return path != MANIFEST and not path.startswith("joint/")


def copy_file(source: Path, target: Path) -> str:
    """Copies a file; it appears whole or not at all. A power cut may take it back, see :func:`unsynced`.

    Returns:
        The SHA-256 of what was read.

    Raises:
        OSError: It cannot be read or written.
    """
    digest = hashlib.sha256()
    with source.open("rb") as content, unsynced(target) as file:
        while block := content.read(_BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def open_source(index: str, with_probes: bool = True, probes: Path | None = None) -> CopySource:
    """Opens an index to be copied.

    Args:
        index: A folder, or a server's address.
        with_probes: Copy the probe images too.
        probes: Where they are now, if they were moved.

    Raises:
        IndexMissingError: There is none.
        IndexLockedError: Another process is writing to the folder.
        StoreError: The store cannot be opened, or the server did not answer.
    """
    from engine.remote import Remote

    if ServerAddress.is_server(index):
        return ServerSource(ServerAddress.parse(index))
    folder = Path(index).expanduser()
    remote = Remote.of(folder)
    if remote is not None:
        return ServerSource(remote.address)
    return FolderSource(folder, with_probes, probes)
