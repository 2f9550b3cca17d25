"""Deleting an index: what belongs to it and nothing else, in an order in which what is left is never taken for one.

In a folder ``deleting.json`` is written first: with it nothing there is an index any more. Then the parts go that an
index has; what somebody else has put there stays. On a server ``NAME_models`` goes first, without which the other
collections are nobody's, then those, then the folder in which this machine worked with the index. Whoever repeats a
deletion that was interrupted finds what is left and finishes it.
"""

from __future__ import annotations

import abc
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from engine.errors import HubhoundError, IndexLockedError, IndexMissingError, InputError, StoreError
from engine.files import write_json
from engine.index_files import DELETING, MANIFEST, UNFINISHED
from engine.remote import KNOWLEDGE_CHANGED, Remote, working_folder
from engine.store.address import ServerAddress

if TYPE_CHECKING:
    from engine.store.server import ServerStore

WATCH_S = 3.0
"""How long an index on a server is watched for somebody who writes to it before it is deleted."""

_LOCK_S = 10.0
_PARTS = (
    *("store", "snapshots", "responses", "tasks", "probes", "labels", "background", "joint", "crawl", "vlms", "shards"),
    *("probes.json", "probe_embeddings.npy", "concepts.sqlite", "conductance.sqlite", "knowledge.json"),
    *("knowledge.due", ".snapshots.lock", MANIFEST, UNFINISHED),
)
_BESIDE = ("-wal", "-shm", "-journal")  # of SQLite

Progress = Callable[[int, int], None]


@dataclass
class Doomed:
    """What a deletion removes.

    Attributes:
        index: Its name, as the user gave it or as its address reads in full.
        models: Records of models, copies and failures too; None if that cannot be told.
        outputs: Outputs in the store; None if that cannot be told.
        collections: Points of each collection on a server.
        folder: The index's folder, or the one in which this machine works with one on a server; None if there is none.
        files: Files in it that go.
        size_bytes: What they take on the disk.
        stays: What is in the way and is left alone, each with the reason.
        resumed: Whether an earlier deletion has begun.
        lately_s: Seconds since somebody last wrote to the index on the server; None if that cannot be told.
    """

    index: str
    models: int | None = None
    outputs: int | None = None
    collections: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None
    files: int = 0
    size_bytes: int = 0
    stays: list[str] = field(default_factory=list)
    resumed: bool = False
    lately_s: float | None = None

    def to_json(self) -> dict[str, object]:
        """Everything as JSON."""
        return {
            "index": self.index,
            "models": self.models,
            "outputs": self.outputs,
            "collections": self.collections,
            "folder": None if self.folder is None else str(self.folder),
            "files": self.files,
            "bytes": self.size_bytes,
            "stays": self.stays,
            "resumed": self.resumed,
        }


class Deletion(abc.ABC):
    """An index that is about to be deleted; nothing has happened to it before :meth:`run`.

    Attributes:
        doomed: What goes.
    """

    doomed: Doomed

    @abc.abstractmethod
    def run(self, progress: Progress | None = None) -> None:
        """Deletes it.

        Args:
            progress: Called with (parts removed, parts in all).

        Raises:
            InputError: Somebody has written to it meanwhile, or has made another index of the name.
            StoreError: The server refused or did not answer; run again for the rest.
            OSError: A file cannot be removed; run again for the rest.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of it; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FolderDeletion(Deletion):
    """An index in a folder, locked until it is closed.

    Args:
        folder: Of the index, of an unfinished copy, or of what an interrupted deletion has left.

    Raises:
        InputError: It is something else.
        IndexLockedError: Another process is writing.
        StoreError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from engine.store.edge import EdgeStore, locked

        _refuse_stranger(folder)
        self._folder = folder
        self.doomed = Doomed(str(folder), folder=folder, resumed=(folder / DELETING).exists())
        store = folder / "store"
        with ExitStack() as held:
            if store.is_dir():
                try:
                    with EdgeStore.open(store) as opened:
                        self.doomed.models, self.doomed.outputs = opened.count("models"), opened.count("outputs")
                except IndexLockedError as error:
                    raise IndexLockedError(folder) from error
                except HubhoundError:
                    pass  # damaged, or half deleted: it can go all the same
                try:
                    held.enter_context(locked(store))
                except IndexLockedError as error:
                    raise IndexLockedError(folder) from error
            self._held = held.pop_all()
        self._kept = _kept(folder)
        _count_files(self.doomed, list(self._going()))
        for path in sorted(folder.iterdir()):
            if path.name in self._kept:
                self.doomed.stays.append(f"{path}, which may hold images of yours")
            elif not _is_part(path.name) and path.name != DELETING:
                self.doomed.stays.append(f"{path}, which is no part of an index")
            elif path.is_symlink():
                self.doomed.stays.append(f"what {path} links to")
        self.doomed.stays += _probe_images(folder)

    def run(self, progress: Progress | None = None) -> None:
        """See :meth:`Deletion.run`."""
        write_json(self._folder / DELETING, {"hubhound": "deleting", "kept": sorted(self._kept)})
        _sync(self._folder)
        parts = list(self._going())
        for done, path in enumerate(parts):
            _remove(path)
            (progress or _silent)(done + 1, len(parts))
        _sync(self._folder)
        (self._folder / DELETING).unlink()
        if not any(self._folder.iterdir()):
            try:
                self._folder.resolve().rmdir()
                if self._folder.is_symlink():
                    self._folder.unlink()
            except OSError as error:  # a volume's own folder, or one in a folder that is not ours
                self.doomed.stays.append(f"the empty folder {self._folder} ({error.strerror})")

    def _going(self) -> Iterator[Path]:
        """The parts of the index that are there and go, in the order in which they do."""
        there = {path.name: path for path in self._folder.iterdir()}
        yield from (there[name] for name in sorted(there) if _is_part(name) and name not in self._kept)

    def close(self) -> None:
        """See :meth:`Deletion.close`."""
        self._held.close()


class ServerDeletion(Deletion):
    """An index on a server, and the folder in which this machine works with it.

    Nothing on a server says that somebody is writing: it is watched for a while.

    Args:
        address: Of the index.

    Raises:
        InputError: There is no such index, or it is being made or written to.
        IndexMismatchError: Another version made it.
        StoreError: The collections are another project's, or the server refused or did not answer.
    """

    def __init__(self, address: ServerAddress) -> None:
        from engine.store.patience import patience_with
        from engine.store.server import ServerStore
        from engine.store.server_client import Collections
        from engine.store.server_config import PARTS

        self._address = address
        self._parts = PARTS
        self.doomed = Doomed(str(address))
        client = address.connect()
        self._store: ServerStore | None = None
        with ExitStack() as failed:
            failed.callback(client.close)
            self._on = Collections(client, address.name, patience_with(client, address.name))
            try:
                self._store = ServerStore.open(client, address.name, self._on.patience)
            except IndexMissingError:
                self.doomed.resumed = True
            for part in PARTS:
                if not self._on.exists(part, "read"):
                    continue
                if self._on.is_ours(part, self._on.metadata(part, "read")):
                    self.doomed.collections[self._on.of(part)] = self._on.count(part)
                else:
                    self.doomed.stays.append(f"the collection {self._on.of(part)}, which is another project's")
            folder = working_folder(address)
            # An empty one is left by whoever looks for an index that is not there.
            here = [path for path in (folder, _going(folder)) if path.is_dir() and any(path.iterdir())]
            if here:
                self.doomed.folder = folder
                _count_files(self.doomed, here)
            if not self.doomed.collections and self.doomed.folder is None:
                raise InputError(f"there is no index at {address}: nothing to delete")
            self._seen: tuple[object, ...] | None = None
            if self._store is not None:
                self._look(self._store)
            failed.pop_all()
        self._client = client

    def _look(self, store: ServerStore) -> None:
        from engine.remote_creation import being_made

        maker = being_made(store)
        if maker is not None:
            raise InputError(f"an index is being made at {self._address} by {maker}: wait for it, or end it first")
        self._seen = self._state(store)
        newest = store.newest()
        self.doomed.models = store.count("models")
        self.doomed.outputs = store.count_outputs() if self._on.exists("outputs", "read") else 0
        if newest:
            self.doomed.lately_s = max(0.0, time.time() - newest / 1e6)
        time.sleep(WATCH_S)
        self._refuse_changed()

    def _state(self, store: ServerStore) -> tuple[object, ...]:
        """Something that is another thing when somebody writes: identity, last changes, points of all collections."""
        from engine.store.shelf import FileShelf

        points = [self._on.count(part) for part in self._parts if self._on.exists(part, "read")]
        return store.identity_now(), store.newest(), FileShelf(store).entry(KNOWLEDGE_CHANGED), *points

    def _refuse_changed(self) -> None:
        if not self._on.exists("models", "read"):
            return
        if self._store is None:
            raise self._made_again()
        if self._state(self._store) != self._seen:
            told = "end the crawl or command that does, on whatever machine it runs, and delete it then"
            raise InputError(f"the index {self._address} is being written to: {told}")

    def run(self, progress: Progress | None = None) -> None:
        """See :meth:`Deletion.run`."""
        self._refuse_changed()
        for done, part in enumerate(self._parts):
            # Without the first there is no index; if there is one again, these are its collections.
            if part != self._parts[0] and self._on.exists("models", "write to"):
                raise self._made_again()
            self._on.delete(part)
            (progress or _silent)(done + 1, len(self._parts))
        if self.doomed.folder is not None:
            self._remove_folder(self.doomed.folder)

    def _made_again(self) -> InputError:
        return InputError(f"somebody has just made an index at {self._address}: it is left alone")

    def _remove_folder(self, folder: Path) -> None:
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=_LOCK_S)
        except Timeout as error:
            raise StoreError(
                f"the index {self._address} is deleted, but another process is using the folder {folder} in which this "
                "machine worked with it: end that one, and give the command again",
                folder,
            ) from error
        with ExitStack() as held:
            held.callback(lock.release)
            # By another name it cannot be half there for whoever makes an index of this name.
            for path in (_going(folder), folder):
                if path.is_dir():
                    path.rename(_going(folder))
                    shutil.rmtree(_going(folder))

    def close(self) -> None:
        """See :meth:`Deletion.close`."""
        self._client.close()


def open_deletion(index: str) -> Deletion:
    """Looks at an index that is to be deleted.

    Args:
        index: A folder, or a server's address.

    Raises:
        InputError: There is no index, or somebody is writing to the one on the server.
        IndexLockedError: Another process is writing to the one in the folder.
        HubhoundError: See the two deletions.
    """
    if ServerAddress.is_server(index):
        return ServerDeletion(ServerAddress.parse(index))
    return FolderDeletion(Path(index).expanduser())


def _refuse_stranger(folder: Path) -> None:
    """Refuses what is no index, whatever its files are called."""
    if not folder.is_dir():
        raise InputError(f"there is no index at {folder}: nothing to delete")
    remote = Remote.of(folder)
    if remote is not None:
        raise InputError(
            f"{folder} is where this machine works with the index {remote.address}: delete that one by its address, "
            "or remove the folder, which comes back when it is needed"
        )
    marker, manifest, copying = (_read(folder / name) for name in (DELETING, MANIFEST, UNFINISHED))
    ours = marker.get("hubhound") == "deleting" or {"probes", "encoder"} <= set(manifest) or "identity" in copying
    if not ours and not ((folder / MANIFEST).is_file() and (folder / "store" / "layout.json").is_file()):
        raise InputError(f"{folder} is no index: nothing is deleted")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_part(name: str) -> bool:
    plain = next((name.removesuffix(end) for end in _BESIDE if name.endswith(f".sqlite{end}")), name)
    hidden = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", plain)  # what a write that was killed has left (tempfile)
    return plain in _PARTS or (hidden is not None and hidden[1] in (*_PARTS, DELETING))


def _probe_images(folder: Path) -> list[str]:
    probes = _read(folder / MANIFEST).get("probes")
    where = probes.get("folder") if isinstance(probes, dict) else None
    return [f"the probe images in {where}, which the index only refers to"] if isinstance(where, str) else []


def _kept(folder: Path) -> set[str]:
    """Names of parts that may hold the user's own images: only what the manifest calls the index's own may go."""
    begun, manifest = _read(folder / DELETING), _read(folder / MANIFEST)
    if isinstance(begun.get("kept"), list):
        return {str(name) for name in begun["kept"]}
    probes = manifest.get("probes")
    if not isinstance(probes, dict):  # damaged, or a copy under way, which has made what is there itself
        return {"probes"} if (folder / MANIFEST).exists() else set()
    where = probes.get("folder")
    if not isinstance(where, str):
        return set()
    images = Path(where).resolve()
    return {"probes", *(name for name in _PARTS if images.is_relative_to((folder / name).resolve()))}


def _going(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.deleting")


def _count_files(doomed: Doomed, parts: list[Path]) -> None:
    for part in parts:
        for path in [part] if part.is_symlink() or not part.is_dir() else part.rglob("*"):
            if path.is_symlink() or not path.is_dir():
                doomed.files += 1
                doomed.size_bytes += path.lstat().st_blocks * 512


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Brings to the disk what has appeared and gone in a folder."""
    with ExitStack() as held:
        handle = os.open(folder, os.O_RDONLY)
        held.callback(os.close, handle)
        os.fsync(handle)


def _silent(_done: int, _total: int) -> None:
    pass
