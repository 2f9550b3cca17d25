"""Making an index on a Qdrant server."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from filelock import FileLock

from engine.errors import IndexMissingError, InputError
from engine.files import write_json
from engine.index_files import MANIFEST, UNFINISHED, index_files
from engine.manifest import unfinished
from engine.remote import FILE, Progress, Remote, working_folder
from engine.store.address import ServerAddress
from engine.store.edge import EdgeStore
from engine.store.server import ServerChoices, ServerStore
from engine.store.shelf import FileShelf

_MAKING = "making.json"  # on the shelf: while an index is being made there, by whom and since when
_MAKING_S = 900.0
"""After which a creation that has not ended was interrupted."""


@contextmanager
def new_index(index: str, spread: Mapping[str, int], progress: Progress | None = None) -> Iterator[Path]:
    """Where to make a new, empty index; one for a server is brought there when it is made.

    Args:
        index: A folder, or a server's address.
        spread: Fields of ``ServerChoices``; of no account for a folder.
        progress: Called with (files brought to the server, files in all).

    Yields:
        The folder to make it in, which does not exist or is the one given.

    Raises:
        InputError: There is one already.
        StoreError: The server refused or did not answer.
    """
    if not ServerAddress.is_server(index):
        if any(number != 1 for number in spread.values()):
            raise InputError(f"{index} is a folder: --shards, --replicas and --write-consistency are for servers")
        yield Path(index).expanduser()
        return
    address = ServerAddress.parse(index)
    refuse_taken(address)
    parent = working_folder(address).parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=parent, prefix=f".{address.name}.new."))
    try:
        yield scratch / "index"
        create_remote(address, scratch / "index", ServerChoices(**spread), progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def create_remote(
    address: ServerAddress, index: Path, choices: ServerChoices, progress: Progress | None = None
) -> Remote:
    """Makes an empty index on a server from an empty embedded one, which becomes the working folder.

    Args:
        address: Of the new index.
        index: Folder of the embedded one, on the disk of the working folders. It is gone afterwards.
        choices: How the server spreads and keeps it.
        progress: Called with (files brought to the server, files in all).

    Raises:
        InputError: There is an index at the address already.
        StoreError: The server refused or did not answer.
        OSError: The working folder cannot be written.
    """
    refuse_taken(address)
    with EdgeStore.open(index / "store") as embedded:
        layout = embedded.layout
    store = ServerStore.create(address.connect(), address.name, layout, choices)
    FileShelf(store).put_bytes(_MAKING, "making", json.dumps({"host": gethostname(), "at": time.time()}).encode())
    folder = working_folder(address)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(index / "store")
        index.rename(folder)
        write_json(folder / FILE, {"address": str(address), "identity": store.identity})
        remote = Remote(address, folder, store.identity)
        remote.keep(store)
        *files, manifest = index_files(folder)
        remote.publish(files, progress)
        remote.check()
        remote.publish([manifest])
        remote.shelf.remove([_MAKING])
        remote.remember({"probes/": store.identity})
        remote.refresh()
    return remote


def refuse_taken(address: ServerAddress) -> None:
    """Refuses to make an index where there is one; what an interrupted creation has left is removed.

    Raises:
        InputError: There is one.
        IndexDamagedError: There is an unfinished copy.
        StoreError: The server refused or did not answer, or the collections are of another project.
    """
    try:
        store = ServerStore.open(address.connect(), address.name)
    except IndexMissingError:
        return
    with store:
        shelf = FileShelf(store)
        if shelf.entry(MANIFEST) is not None:
            raise InputError(
                f"there is an index at {address} already: choose another name, or delete it first with "
                f"'hubhound index delete --index {address}'"
            )
        if shelf.entry(UNFINISHED) is not None:
            raise unfinished(str(address))
        if store.count("models"):
            raise InputError(
                f"there are models at {address}, but no manifest: restore a backup elsewhere, or delete what is there "
                f"with 'hubhound index delete --index {address}'"
            )
        maker = being_made(store)
        if maker is not None:
            raise InputError(f"an index is being made at {address} by {maker}: wait for it, or choose another name")
        store.destroy()


def spread_of(store: ServerStore) -> ServerChoices:
    """How the outputs of a store are spread over its server.

    Raises:
        StoreError: The server refused or did not answer.
    """
    name = f"{store.name}_outputs"
    found = store.call("read", lambda: store.client.get_collection(name)).config.params
    return ServerChoices(found.shard_number or 1, found.replication_factor or 1, found.write_consistency_factor or 1)


def being_made(store: ServerStore) -> str | None:
    """Who is making the index of a store at this moment, and since when; None if nobody is, or that was long ago.

    Args:
        store: On a server.

    Raises:
        StoreError: The server refused or did not answer.
    """
    making = FileShelf(store).read_bytes(_MAKING)
    return None if making is None else _by_whom(making)


def _by_whom(making: bytes) -> str | None:
    """Who makes an index, None if that was long ago."""
    try:
        value = json.loads(making)
        host, seconds = str(value["host"]), time.time() - float(value["at"])
    except (ValueError, KeyError, TypeError):
        return None
    return f"{host} (begun {seconds:.0f} s ago)" if seconds < _MAKING_S else None
