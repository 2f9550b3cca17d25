"""What an index can be copied to: a new folder, a new name on a server."""

from __future__ import annotations

import abc
import json
import os
import shutil
import tempfile
from collections.abc import Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engine.copy_source import MARKER, CopySource, SourceFile
from engine.copy_stores import FolderSource
from engine.errors import IndexMismatchError, IndexMissingError, InputError, StoreError
from engine.files import read_json, write_json
from engine.index import refuse_occupied
from engine.index_files import MANIFEST, checked_path, index_files
from engine.knowledge import Knowledge
from engine.manifest import Manifest, write_manifest
from engine.probes import hash_file
from engine.schema import ModelState
from engine.snapshot import split_copies, write_snapshot
from engine.store.address import ServerAddress
from engine.store.base import DescriptorStore, StoreLayout

if TYPE_CHECKING:
    from engine.store.server import ServerChoices, ServerStore

_SIGN = "knowledge.seq"  # tells machines that work with an index on a server to read anew what is known about tasks
_SCRATCH_BYTES = 256 << 20
_SCRATCH_FILES = 500


class CopyTarget(abc.ABC):
    """An index that is being made as a copy; it is not an index before :meth:`complete`.

    Attributes:
        name: As the user named it.
        store: Of the copy, open.
        resumed: Whether an earlier run has begun it.
    """

    name: str
    store: DescriptorStore
    resumed: bool

    @abc.abstractmethod
    def take(self, source: CopySource, files: Sequence[SourceFile]) -> dict[str, str]:
        """Takes files over; those that are there with the same contents are left alone.

        Returns:
            The SHA-256 of what the copy has now, read back, by path.

        Raises:
            OSError: A file cannot be read or written.
            StoreError: The server refused or did not answer.
        """

    @abc.abstractmethod
    def remove_others(self, paths: Set[str]) -> None:
        """Removes files that an earlier run has taken over and the original no longer has.

        Args:
            paths: Of the files that stay.
        """

    @abc.abstractmethod
    def complete(self, manifest: Manifest) -> None:
        """Makes the copy an index: everything queries need, and the manifest last."""

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of it; closing twice is harmless. What is there stays, to go on with later."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _marker(source: CopySource) -> dict[str, str]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"from": source.name, "identity": source.identity, "started_at": started}


def _check_marker(value: object, source: CopySource, name: str) -> None:
    marker: dict[str, Any] = value if isinstance(value, dict) else {}
    if marker.get("identity") != source.identity:
        raise InputError(
            f"{name} is an unfinished copy of {marker.get('from', 'something else')}, not of {source.name}: "
            f"finish that one, or give it up with 'hubhound index delete --index {name}'"
        )


def _check_layout(layout: StoreLayout, source: CopySource, name: str) -> None:
    if layout != source.layout:
        raise IndexMismatchError(
            f"the store of the unfinished copy {name} was made for {layout}, {source.name} has {source.layout}: "
            f"give the unfinished copy up with 'hubhound index delete --index {name}'",
            "store",
            source.layout,
            layout,
        )


class FolderTarget(CopyTarget):
    """A folder that an index is copied to.

    Args:
        folder: Must not exist or be empty, unless it is an unfinished copy of the same index.
        source: What is copied.

    Raises:
        InputError: Something else is there.
        IndexLockedError: Another process is making this copy.
        StoreError: There is not enough room on the disk, or the store cannot be made.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, source: CopySource) -> None:
        from engine.store.edge import EdgeStore

        self.name = str(folder)
        self._folder = folder
        marker = folder / MARKER
        self.resumed = marker.exists()
        if self.resumed:
            if (folder / MANIFEST).exists():  # killed between the last two steps
                marker.unlink()
                refuse_occupied(folder)
            _check_marker(read_json(marker), source, self.name)
        else:
            refuse_occupied(folder)
            require_room(folder, source)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(marker, _marker(source))
        store = folder / "store"
        # Its layout is written last: without it nothing that counts was written.
        if (store / "layout.json").exists():
            self.store = EdgeStore.open(store)
        else:
            shutil.rmtree(store, ignore_errors=True)
            self.store = EdgeStore.create(store, source.layout)
        try:
            _check_layout(self.store.layout, source, self.name)
        except IndexMismatchError:
            self.store.close()
            raise

    def take(self, source: CopySource, files: Sequence[SourceFile]) -> dict[str, str]:
        """See :meth:`CopyTarget.take`."""
        due = [file for file in files if not self._has(source, file)]
        source.fetch(due, lambda path: checked_path(self._folder, path))
        for file in due:  # together, after all were written: one by one the disk would be waited for each time
            _sync(checked_path(self._folder, file.path))
        return {file.path: hash_file(checked_path(self._folder, file.path)) for file in files}

    def remove_others(self, paths: Set[str]) -> None:
        """See :meth:`CopyTarget.remove_others`."""
        for path, _ in index_files(self._folder):
            if path not in paths:
                checked_path(self._folder, path).unlink()

    def complete(self, manifest: Manifest) -> None:
        """See :meth:`CopyTarget.complete`."""
        models = self.store.models()
        fingerprint = manifest.background.fingerprint
        indexed = [model for model in models if model.state is ModelState.INDEXED]
        calibrated = all(model.calibration == fingerprint for model in indexed)
        self.store.optimize()
        self.store.flush()
        if calibrated:
            copies, _ = split_copies(models)
            write_snapshot(self._folder / "snapshots", self.store, indexed, fingerprint, None, copies)
        knowledge = Knowledge.of(self.store.knowledge())
        if knowledge != Knowledge():
            knowledge.write(self._folder)
        self.store.close()
        write_manifest(self._folder, manifest)
        (self._folder / MARKER).unlink()
        if not calibrated:  # the original was between two backgrounds: the first writer brings it to one
            from engine.writer import IndexWriter

            with IndexWriter(self._folder) as writer:
                writer.finish()

    def close(self) -> None:
        """See :meth:`CopyTarget.close`."""
        self.store.close()

    def _has(self, source: CopySource, file: SourceFile) -> bool:
        path = checked_path(self._folder, file.path)
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        return hash_file(path) == source.hash_of(file)


class ServerTarget(CopyTarget):
    """A name on a server that an index is copied to.

    Args:
        address: Must name nothing on the server, unless it is an unfinished copy of the same index.
        source: What is copied.
        choices: How the collections are laid out on the server; the server's own by default.

    Raises:
        InputError: Something else is there.
        StoreError: The server refused or did not answer.
    """

    store: ServerStore

    def __init__(self, address: ServerAddress, source: CopySource, choices: ServerChoices | None = None) -> None:
        from engine.store.server import ServerChoices, ServerStore
        from engine.store.shelf import FileShelf

        self.name = str(address)
        if not source.with_probes:
            raise InputError("an index on a server has its probe images there: leave out --no-probes")
        try:
            self.store = ServerStore.open(address.connect(), address.name)
            fresh = False
        except IndexMissingError:
            self.store = ServerStore.create(address.connect(), address.name, source.layout, choices or ServerChoices())
            fresh = True
        try:
            self._shelf = FileShelf(self.store)
            self.resumed = not fresh
            if not fresh:
                self._refuse_other(source)
                self._refuse_respread(choices)
            if self._shelf.entry(MARKER) is None:
                # In a group of its own: nobody fetches it with the index's files.
                self._shelf.put_bytes(MARKER, "copying", json.dumps(_marker(source)).encode())
        except BaseException:
            self.store.close()
            raise

    def _refuse_other(self, source: CopySource) -> None:
        there = self._shelf.entries(["core", "copying"])
        if MANIFEST in there:
            if MARKER in there:  # killed between the last two steps
                self._shelf.remove([MARKER])
            raise InputError(
                f"there is an index at {self.name} already: choose another name, or delete it first with "
                f"'hubhound index delete --index {self.name}'"
            )
        if MARKER in there:
            with tempfile.TemporaryDirectory() as scratch:
                self._shelf.fetch([there[MARKER]], lambda path: Path(scratch) / path)
                _check_marker(read_json(Path(scratch) / MARKER), source, self.name)
        elif there or self.store.count("models") or self.store.count("outputs"):
            raise InputError(
                f"an index is being made at {self.name}: choose another name, or give it up with "
                f"'hubhound index delete --index {self.name}'"
            )
        _check_layout(self.store.layout, source, self.name)

    def _refuse_respread(self, choices: ServerChoices | None) -> None:
        from engine.remote_creation import spread_of
        from engine.store.server import ServerChoices

        if choices in {None, ServerChoices()}:
            return
        found = spread_of(self.store)
        if found != choices:
            raise InputError(
                f"the unfinished copy {self.name} was begun with shards {found.shards}, replicas {found.replicas} and "
                f"write consistency {found.write_consistency}: leave the options out, or begin anew after 'hubhound "
                f"index delete --index {self.name}'"
            )

    def take(self, source: CopySource, files: Sequence[SourceFile]) -> dict[str, str]:
        """See :meth:`CopyTarget.take`."""
        from engine.store.shelf import ShelfEntry

        hashes: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="hubhound-copy-") as scratch:
            for batch in _batches(files):
                places = {file.path: Path(scratch) / f"{i}" for i, file in enumerate(batch)}
                if isinstance(source, FolderSource):
                    found = {file.path: source.local(file) for file in batch}
                    read = {file.path: source.hash_of(file) for file in batch}
                else:
                    read = source.fetch(batch, places.__getitem__)
                    found = places
                self._shelf.put([(file.path, file.group, found[file.path]) for file in batch])
                entries = [ShelfEntry(file.path, file.group, read[file.path], file.size_bytes) for file in batch]
                self._shelf.fetch(entries, places.__getitem__)  # read back, which checks it
                hashes |= {file.path: hash_file(places[file.path]) for file in batch}
                for place in places.values():
                    with suppress(FileNotFoundError):
                        place.unlink()
        return hashes

    def remove_others(self, paths: Set[str]) -> None:
        """See :meth:`CopyTarget.remove_others`."""
        there = set(self._shelf.entries())
        if paths - there:
            raise StoreError(f"{min(paths - there)} does not arrive at {self.name}: run again", self.name)
        self._shelf.remove(sorted(there - paths - {MARKER}))

    def complete(self, manifest: Manifest) -> None:
        """See :meth:`CopyTarget.complete`."""
        self.store.optimize()
        self._shelf.put_bytes(_SIGN, "core", datetime.now(UTC).isoformat().encode())
        with tempfile.TemporaryDirectory() as scratch:
            write_manifest(Path(scratch), manifest)
            self._shelf.put([(MANIFEST, "core", Path(scratch) / MANIFEST)])
        self._shelf.remove([MARKER])
        self.store.close()

    def close(self) -> None:
        """See :meth:`CopyTarget.close`."""
        self.store.close()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _batches(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Files that lie on the disk at once on their way."""
    batches: list[list[SourceFile]] = []
    held = _SCRATCH_BYTES
    for file in files:
        if held + file.size_bytes > _SCRATCH_BYTES or len(batches[-1]) >= _SCRATCH_FILES:
            batches.append([])
            held = 0
        batches[-1].append(file)
        held += file.size_bytes
    return batches


def require_room(folder: Path, source: CopySource) -> None:
    """Refuses to begin what the disk has no room for.

    Args:
        folder: Where the copy goes; it need not exist.
        source: What is copied.

    Raises:
        StoreError: The disk has less free space than the copy will take, roughly.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    files = [*source.files(), *source.responses(list(source.models().values()))]
    need = source.expected_bytes + sum(file.size_bytes for file in files)
    free = shutil.disk_usage(place).free
    if free < need:
        raise StoreError(
            f"the disk is full: a copy of {source.name} takes about {need >> 20:,} MB and {place} has "
            f"{free >> 20:,} MB: free some space, or choose another disk",
            folder,
        )


def open_target(index: str, source: CopySource, choices: ServerChoices | None = None) -> CopyTarget:
    """Begins a copy, or goes on with one that was cut short.

    Args:
        index: A folder, or a server's address.
        source: What is copied.
        choices: How the collections are laid out on a server.

    Raises:
        InputError: Something else is there.
        IndexLockedError: Another process is making this copy.
        StoreError: There is no room, or the store cannot be made.
        OSError: The folder cannot be written.
    """
    if ServerAddress.is_server(index):
        return ServerTarget(ServerAddress.parse(index), source, choices)
    return FolderTarget(Path(index).expanduser(), source)
