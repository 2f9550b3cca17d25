"""An index on a Qdrant server, and the folder in which each machine works with it.

The server has everything: models, outputs and what is known about tasks in the store, the other files on the shelf
(:mod:`engine.store.shelf`). A machine that uses the index keeps a *working folder*, which is an index's folder in all
respects, except that ``server.json`` stands in place of ``store/``::

    server.json        address and identity of the store
    manifest.json ...  core files, brought up to date whenever the index is opened
    probes/, tasks/    fetched when something first needs them
    snapshots/         what queries scan, brought up to date by the models that changed (engine.catching_up)

Apart from a crawl's journal it is a cache: it can be removed and comes back.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from platformdirs import user_data_path

from engine.errors import IndexDamagedError, IndexMissingError, IndexReplacedError, InputError
from engine.files import read_json, write_json
from engine.index_files import MANIFEST, UNFINISHED, Group, IndexFile, checked_path, index_files
from engine.manifest import unfinished
from engine.store.address import ServerAddress
from engine.store.base import DescriptorStore
from engine.waiting import OLDER_AFTER_S, turn

if TYPE_CHECKING:
    from engine.store.server import ServerStore
    from engine.store.shelf import FileShelf, ShelfEntry

FILE = "server.json"
"""Makes a folder a working folder."""

VLMS = "vlms"
"""What may follow the name in an address: the crawl of vision-language models has a journal of its own."""

_FETCHED = "fetched.json"
KNOWLEDGE_CHANGED = "knowledge.seq"  # on the shelf: changes with every change of what is known about tasks

Progress = Callable[[int, int], None]

_STORES: dict[tuple[int, str, str], ServerStore] = {}
"""Of this process, by address and identity."""

_NOTES: dict[Path, str] = {}
"""Why a working folder may be older than its index, where another process kept it locked."""

log = logging.getLogger("hubhound.store")


def data_folder() -> Path:
    """Where working folders are kept: ``HUBHOUND_DATA``, or the user's data folder."""
    given = os.environ.get("HUBHOUND_DATA")
    return Path(given).expanduser() if given else user_data_path("hubhound")


def index_folder(index: str | Path, *, offline: bool = False) -> Path:
    """The folder to work in for an index, wherever it is.

    Args:
        index: A folder, which is returned as it is; or a server's address (``ServerAddress.parse``): its working folder
            is made if it is new, and its core files are brought up to date.
        offline: Ask no server: whatever the working folder holds will do.

    Raises:
        InputError: The address cannot be used.
        IndexMissingError: There is no such index on the server.
        StoreError: The server refused or did not answer.
        OSError: The working folder cannot be written.
    """
    text = str(index)
    if not ServerAddress.is_server(text):
        return Path(index).expanduser()
    place, mark, options = text.partition("?")
    place = place.rstrip("/")
    below = VLMS if place.endswith(f"/{VLMS}") else ""
    address = ServerAddress.parse(place.removesuffix(f"/{VLMS}") + mark + options)
    folder = working_folder(address) if offline else Remote.attach(address).folder
    return folder / below if below else folder


def working_folder(address: ServerAddress) -> Path:
    """Where a machine works with an index on a server; it need not exist."""
    host = address.host.replace(":", "_")
    return data_folder() / "servers" / f"{host}_{address.port}" / address.name


def is_index(index: str) -> bool:
    """Whether there is a complete index at a folder or an address.

    Raises:
        StoreError: The server refused or did not answer.
    """
    try:
        return (index_folder(index) / MANIFEST).exists()
    except IndexMissingError:
        return False


def open_store(folder: Path) -> DescriptorStore:
    """Opens the store of an index.

    Args:
        folder: Of the index, or to work with one on a server.

    Raises:
        IndexMissingError: There is none.
        IndexLockedError: Another process has the embedded store open.
        StoreError: It is damaged, or the server refused or did not answer.
    """
    remote = Remote.of(folder)
    if remote is not None:
        return remote.open_store()
    from engine.store.edge import EdgeStore

    return EdgeStore.open(folder / "store")


def shown(folder: Path) -> str:
    """An index as its user named it: the address of one on a server, the folder of any other."""
    remote = Remote.of(folder)
    return str(folder) if remote is None else str(remote.address)


class Remote:
    """An index on a server, seen from its working folder.

    Args:
        address: Of the index.
        folder: To work in.
        identity: Of the store that the folder belongs to.
    """

    def __init__(self, address: ServerAddress, folder: Path, identity: str) -> None:
        self.address = address
        self.folder = folder
        self.identity = identity

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """What a working folder belongs to; None if the folder is none.

        Raises:
            IndexDamagedError: ``server.json`` cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        value = read_json(path)
        try:
            return cls(ServerAddress.parse(value["address"]), folder, str(value["identity"]))  # type: ignore[index]
        except (KeyError, TypeError, InputError) as error:
            raise IndexDamagedError(f"the file {path} is damaged: remove the folder {folder}", folder) from error

    @classmethod
    def attach(cls, address: ServerAddress) -> Self:
        """Makes or updates the working folder of an index on a server.

        Raises:
            IndexMissingError: There is no such index on the server.
            StoreError: The server refused or did not answer.
            OSError: The folder cannot be written.
        """
        folder = working_folder(address)
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock, other = folder.with_name(f".{folder.name}.lock"), f"is opening the index {address}"
        with turn(lock, other, OLDER_AFTER_S) as held:
            if held:
                return cls._attached(address, folder)
        older = cls._older(address, folder)
        if older is not None:
            return older
        with turn(lock, other):
            return cls._attached(address, folder)

    @classmethod
    def _attached(cls, address: ServerAddress, folder: Path) -> Self:
        from engine.store.server import ServerStore

        try:
            store = ServerStore.open(address.connect(), address.name)
        except IndexMissingError as error:
            raise IndexMissingError(str(address)) from error
        remote = cls(address, folder, store.identity)
        remote.keep(store)
        folder.mkdir(exist_ok=True)
        before = cls.of(folder) if (folder / FILE).exists() else None
        if before is None or before.identity != store.identity:
            if any(folder.iterdir()):  # what it holds belongs to an index that is no longer there
                shutil.rmtree(folder)
                folder.mkdir()
            write_json(folder / FILE, {"address": str(address), "identity": store.identity})
        elif str(before.address) != str(address):  # by another protocol
            write_json(folder / FILE, {"address": str(address), "identity": store.identity})
        remote.refresh()
        return remote

    @classmethod
    def _older(cls, address: ServerAddress, folder: Path) -> Self | None:
        """The working folder as another process has left it so far, with a note; None if it was never complete."""
        if not all((folder / file).is_file() for file in (FILE, MANIFEST, _FETCHED)):
            return None
        remote = cls.of(folder)
        if remote is not None and folder not in _NOTES:
            _NOTES[folder] = (
                f"another process is still opening the index {address}: its files are taken as they are in {folder}"
            )
            log.warning("%s", _NOTES[folder])
        return remote

    @property
    def note(self) -> str | None:
        """Why the working folder may be older than the index; None where nothing is known of it."""
        return _NOTES.get(self.folder)

    @property
    def store(self) -> ServerStore:
        """The store, opened when the process first needs it and kept."""
        store = _STORES.get(self._key)
        return store if store is not None else self.keep(self.open_store())

    @property
    def _key(self) -> tuple[int, str, str]:
        return os.getpid(), str(self.address), self.identity  # a fork must not share its parent's connection

    def keep(self, store: ServerStore) -> ServerStore:
        """Has the process use an open store from now on."""
        return _STORES.setdefault(self._key, store)

    def open_store(self) -> ServerStore:
        """Opens the store once more, for a writer that will close it.

        Raises:
            IndexMissingError: The index is no longer on the server.
            IndexReplacedError: Another one has taken its place.
            StoreError: The server refused or did not answer.
        """
        from engine.store.server import ServerStore

        store = ServerStore.open(self.address.connect(), self.address.name)
        if store.identity != self.identity:
            store.close()
            raise self._replaced()
        return store

    def check(self) -> None:
        """Makes sure that the index is still the one that the working folder belongs to.

        Collections are found by their name: without this, who goes on while an index is deleted and made again would
        read and write the new one with the probes of the old.

        Raises:
            IndexReplacedError: Another one has taken its place.
            StoreError: It is gone, or the server refused or did not answer.
        """
        if self.store.identity_now() != self.identity:
            _STORES.pop(self._key, None)
            raise self._replaced()

    def _replaced(self) -> IndexReplacedError:
        return IndexReplacedError(
            f"the index {self.address} was made again since this began: start again", str(self.address)
        )

    @cached_property
    def shelf(self) -> FileShelf:
        """The index's files on the server."""
        from engine.store.shelf import FileShelf

        return FileShelf(self.store)

    def refresh(self) -> bool:
        """Brings the core files and what is known about tasks up to date.

        Returns:
            Whether the manifest has changed.

        Raises:
            IndexMissingError: The index is not complete: it is being made, or making it was interrupted.
            StoreError: The server refused or did not answer.
        """
        self.check()
        entries = self.shelf.entries(["core"])
        manifest = entries.pop(MANIFEST, None)
        if manifest is None:
            copying = self.shelf.entry(UNFINISHED) is not None
            raise unfinished(str(self.address)) if copying else IndexMissingError(str(self.address))
        before = self._fetched()
        changed = before.get(MANIFEST) != manifest.sha256
        self._fetch([entry for entry in entries.values() if entry.path != KNOWLEDGE_CHANGED], before)
        known = entries.get(KNOWLEDGE_CHANGED)
        if known is not None and before.get(KNOWLEDGE_CHANGED) != known.sha256:
            self._export_knowledge()
            before[KNOWLEDGE_CHANGED] = known.sha256
        self._fetch([manifest], before)
        _NOTES.pop(self.folder, None)
        return changed

    def fetch(self, group: Group, owner: str | None = None, progress: Progress | None = None) -> None:
        """Brings files of a group here that are not here yet.

        Args:
            group: Which.
            owner: Only of this one (``engine.store.shelf.owner_of``).
            progress: Called with (files done, files in all).

        Raises:
            IndexDamagedError: A file on the server is damaged.
            StoreError: The server refused or did not answer.
        """
        with self._fetching(group):
            before = self._fetched()
            self._fetch(list(self.shelf.entries([group], owner).values()), before, progress)

    def fetch_once(self, group: Group) -> None:
        """As ``fetch``, for what does not change while the index lives."""
        marker = f"{group}/"
        if marker not in self._fetched():
            self.fetch(group)
            with self._fetching(group):
                self.remember({**self._fetched(), marker: self.identity})

    def publish(self, files: Sequence[IndexFile], progress: Progress | None = None) -> None:
        """Puts files of the working folder on the server, in the order given.

        Raises:
            OSError: A file cannot be read.
            StoreError: The server refused or did not answer.
        """
        self.shelf.put([(file.path, file.group, self.folder / file.path) for file in files], progress)

    def publish_core(self) -> None:
        """Puts core files on the server that have changed here, the manifest last."""
        *others, manifest = list(index_files(self.folder, ["core"]))
        self.publish(others)
        self.publish([manifest])

    def touch_knowledge(self) -> None:
        """Says that what is known about tasks is changing or has changed: others read it anew."""
        self.shelf.put_bytes(KNOWLEDGE_CHANGED, "core", os.urandom(16))

    def _fetching(self, group: Group) -> AbstractContextManager[bool]:
        return turn(
            self.folder.with_name(f".{self.folder.name}.{group}.lock"),
            f"is fetching the {group} of the index {self.address}",
        )

    def _export_knowledge(self) -> None:
        from engine.knowledge import Knowledge

        Knowledge.of(self.store.knowledge()).write(self.folder)

    def _fetch(self, entries: Sequence[ShelfEntry], before: dict[str, str], progress: Progress | None = None) -> None:
        wanted = [
            entry
            for entry in entries
            if before.get(entry.path) != entry.sha256 or not checked_path(self.folder, entry.path).is_file()
        ]
        self.shelf.fetch(wanted, lambda path: checked_path(self.folder, path), progress)
        before.update({entry.path: entry.sha256 for entry in wanted})
        self.remember(before)

    def _fetched(self) -> dict[str, str]:
        path = self.folder / _FETCHED
        if not path.is_file():
            return {}
        value = read_json(path)
        return {str(key): str(sha256) for key, sha256 in value.items()} if isinstance(value, dict) else {}

    def remember(self, fetched: dict[str, str]) -> None:
        """Notes the SHA-256 of what is here, by path; a group that is here as a whole by its name and a slash."""
        if fetched != self._fetched():
            write_json(self.folder / _FETCHED, fetched)
