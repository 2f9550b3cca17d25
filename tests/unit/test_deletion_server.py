"""Deleting an index on a server: exactly its collections, and what this machine keeps of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine import deletion
from engine.copy_source import MARKER
from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index
from engine.deletion import Doomed, open_deletion
from engine.errors import IndexMismatchError, IndexMissingError, InputError, StoreError
from engine.index import Index
from engine.index_files import MANIFEST
from engine.remote import Remote, index_folder, is_index, working_folder
from engine.remote_creation import refuse_taken
from engine.schema import Model, ModelState
from engine.store.address import ServerAddress
from engine.store.base import StoreLayout
from engine.store.server import ServerStore
from engine.store.server_client import Collections
from engine.store.shelf import FileShelf
from engine.verify import verify
from engine.writer import IndexWriter
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder, make_table
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import ANIMALS, put_model

LAYOUT = StoreLayout(probes=20, top_r=4, dimension=3, method="whitened")
PARTS = ("files", "joint", "models", "outputs", "profiles")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield folder


@pytest.fixture(scope="module")
def zoo(place: Path) -> Path:
    return make_full_index(place / "zoo", models=1).folder


@pytest.fixture(scope="module")
def addresses(place: Path) -> Iterator[Addresses]:
    with server_addresses(place / "server") as made:
        yield made


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(deletion, "WATCH_S", 0.0)


def put(zoo: Path, address: str) -> ServerAddress:
    """Copies the index to an address, and works with it there."""
    with open_source(str(zoo)) as source, open_target(address, source) as target:
        copy_index(source, target)
    index_folder(address)
    return ServerAddress.parse(address)


def make(text: str) -> ServerAddress:
    """Makes collections as an index has them, with little in them, and a folder to work with them."""
    address = ServerAddress.parse(text)
    with ServerStore.create(address.connect(), address.name, LAYOUT) as store:
        store.upsert_outputs(make_table(LAYOUT, m=2))
        store.upsert_model(Model(repo="org/a", revision="r1", outputs=2))
        FileShelf(store).put_bytes(MANIFEST, "core", b"{}")
    assert is_index(text)
    return address


@pytest.fixture
def address(addresses: Addresses) -> ServerAddress:
    return make(addresses())


@pytest.fixture
def real(zoo: Path, addresses: Addresses) -> ServerAddress:
    return put(zoo, addresses())


@pytest.fixture(scope="module")
def client(addresses: Addresses) -> Iterator[QdrantClient]:
    made = ServerAddress.parse(addresses()).connect()
    yield made
    made.close()


def delete(index: object) -> Doomed:
    with open_deletion(str(index)) as opened:
        opened.run()
        return opened.doomed


def collections(client: QdrantClient, name: str) -> set[str]:
    """The collections whose names begin so."""
    return {one.name for one in client.get_collections().collections if one.name.startswith(name)}


def foreign(client: QdrantClient, name: str) -> None:
    """Makes a collection of another project."""
    client.create_collection(name, vectors_config=qm.VectorParams(size=2, distance=qm.Distance.DOT))


def test_its_collections_go_and_no_others(zoo: Path, real: ServerAddress, client: QdrantClient) -> None:
    address, name = real, real.name
    other = put(zoo, f"{address}_2")
    foreign(client, f"{name}_joint")  # not ours, though it has a name of ours
    foreign(client, f"{name}_mine")
    doomed = delete(f"{address}/")
    assert doomed.index == str(address)
    assert doomed.collections == {
        f"{name}_models": 4,
        f"{name}_outputs": 11,
        f"{name}_profiles": 3,
        f"{name}_files": doomed.collections[f"{name}_files"],
    }
    assert (doomed.models, doomed.outputs, doomed.resumed) == (4, 11, False)
    assert doomed.stays == [f"the collection {name}_joint, which is another project's"]
    others = {f"{other.name}_{part}" for part in PARTS if part != "joint"}
    assert collections(client, name) == {f"{name}_joint", f"{name}_mine", *others}
    assert verify(index_folder(str(other))) == []
    with pytest.raises(IndexMissingError):
        index_folder(str(address))
    for left in ("joint", "mine"):
        client.delete_collection(f"{name}_{left}")
    delete(other)
    assert collections(client, name) == set()
    with pytest.raises(InputError, match=f"there is no index at {address}: nothing to delete"):
        delete(address)


def test_what_this_machine_keeps_goes_along(address: ServerAddress) -> None:
    folder = working_folder(address)
    neighbour = folder.with_name(f"{folder.name}_2")
    neighbour.mkdir()
    (folder / "crawl").mkdir()
    (folder / "crawl" / "journal.sqlite").write_text("x")
    files = sum(path.is_file() for path in folder.rglob("*"))
    with pytest.raises(InputError, match=f"works with the index {address}: delete that one by its address"):
        delete(folder)
    with open_deletion(str(address)) as opened:
        assert opened.doomed.folder == folder
        assert opened.doomed.files >= files
        assert opened.doomed.size_bytes > 0
        opened.run()
    assert not folder.exists()
    assert neighbour.exists()


def test_a_folder_in_use_is_told_and_goes_the_next_time(
    address: ServerAddress, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_LOCK_S", 0.05)
    folder = working_folder(address)
    with (
        FileLock(folder.with_name(f".{folder.name}.lock")),
        pytest.raises(StoreError, match=r"is deleted, but another process is using the folder .*give the command"),
    ):
        delete(address)
    assert collections(client, address.name) == set()
    assert folder.exists()
    doomed = delete(address)
    assert (doomed.resumed, doomed.collections, doomed.folder) == (True, {}, folder)
    assert not folder.exists()


class Killed(BaseException):
    pass


def test_killed_anywhere_it_is_no_index_and_can_be_finished(
    addresses: Addresses, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Collections.delete
    for after in (0, 1, 2, 4):
        text = addresses()
        address = make(text)
        left = iter(range(after))

        def remove_some(self: Collections, part: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed
            remove(self, part)

        with monkeypatch.context() as patched:
            patched.setattr(Collections, "delete", remove_some)
            with pytest.raises(Killed):
                delete(text)
        assert is_index(text) == (after == 0)
        if after == 2:  # what is left is in nobody's way
            refuse_taken(address)
            make(text)
            assert not delete(text).resumed
        else:
            assert delete(text).resumed == (after > 0)
        assert collections(client, address.name) == set()
        assert not working_folder(address).exists()


def test_what_is_another_projects_or_versions_is_refused(address: ServerAddress, client: QdrantClient) -> None:
    foreign(client, f"{address.name}x_models")
    with pytest.raises(StoreError, match="is not part of an index, but of another project"):
        delete(f"{address}x")
    client.delete_collection(f"{address.name}x_models")
    foreign(client, f"{address.name}x_outputs")
    with pytest.raises(InputError, match=r"there is no index at .*: nothing to delete"):
        delete(f"{address}x")
    assert client.collection_exists(f"{address.name}x_outputs")
    client.delete_collection(f"{address.name}x_outputs")
    for made, words in ((99, "update hubhound"), (1, "index migrate")):
        client.update_collection(f"{address.name}_models", metadata={"format": made})
        with pytest.raises(IndexMismatchError, match=words):
            delete(address)
    assert len(collections(client, address.name)) == 3


def write(address: ServerAddress) -> None:
    with ServerStore.open(address.connect(), address.name) as store:
        store.upsert_model(Model(repo="org/new", revision="x", state=ModelState.FAILED, reason="r", detail="why"))


def make_again(address: ServerAddress) -> None:
    with ServerStore.open(address.connect(), address.name) as store:
        layout = store.layout
        store.destroy()
    ServerStore.create(address.connect(), address.name, layout).close()


def know(address: ServerAddress) -> None:
    """As who profiles models: no record of a classifier changes."""
    remote = Remote.of(index_folder(str(address)))
    assert remote is not None
    remote.touch_knowledge()


@pytest.mark.parametrize("change", [write, know, make_again])
def test_one_that_is_written_to_is_refused(
    address: ServerAddress, monkeypatch: pytest.MonkeyPatch, change: Callable[[ServerAddress], None]
) -> None:
    """While it is looked at, and while a person thinks about it."""

    def watched(seconds: float) -> None:
        assert seconds == deletion.WATCH_S
        change(address)

    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", watched)
        with pytest.raises(InputError, match=f"the index {address} is being written to: end the crawl"):
            open_deletion(str(address))
    with open_deletion(str(address)) as opened:
        change(address)
        with pytest.raises(InputError, match="is being written to"):
            opened.run()
    with ServerStore.open(address.connect(), address.name) as store:
        assert store.identity
    delete(address)


def test_when_it_was_written_to_is_told(address: ServerAddress) -> None:
    with open_deletion(str(address)) as opened:
        assert 0 <= (opened.doomed.lately_s or -1) < 60


def test_one_that_is_made_again_meanwhile_is_left_alone(
    address: ServerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Collections.delete

    def remove_and_make(self: Collections, part: str, doing: str = "write to") -> None:
        remove(self, part, doing)
        if part == "outputs":
            monkeypatch.setattr(Collections, "delete", remove)
            make(str(address))

    monkeypatch.setattr(Collections, "delete", remove_and_make)
    with pytest.raises(InputError, match="somebody has just made an index at"):
        delete(address)
    assert is_index(str(address))


def test_one_that_is_made_while_what_is_left_is_looked_at_is_left_alone(address: ServerAddress) -> None:
    with ServerStore.open(address.connect(), address.name) as store:
        store.client.delete_collection(f"{address.name}_models")
    with open_deletion(str(address)) as opened:
        assert opened.doomed.resumed
        make(str(address))
        with pytest.raises(InputError, match="somebody has just made an index at"):
            opened.run()
    assert is_index(str(address))


def test_unfinished_ones(address: ServerAddress) -> None:
    with ServerStore.open(address.connect(), address.name) as store:
        shelf = FileShelf(store)
        shelf.remove([MANIFEST])
        shelf.put_bytes("making.json", "making", json.dumps({"host": "far", "at": time.time()}).encode())
        with pytest.raises(InputError, match=r"is being made at .* by far \(begun 0 s ago\): wait for it"):
            delete(address)
        shelf.put_bytes("making.json", "making", json.dumps({"host": "far", "at": time.time() - 5000}).encode())
        with pytest.raises(InputError, match=r"but no manifest.*hubhound index delete --index"):
            refuse_taken(address)
        shelf.put_bytes(MARKER, "copying", b"{}")
        with pytest.raises(Exception, match=f"hubhound index delete --index {address}'"):
            refuse_taken(address)
    delete(address)
    refuse_taken(address)


def test_one_that_has_lost_a_collection_can_go(address: ServerAddress, client: QdrantClient) -> None:
    client.delete_collection(f"{address.name}_outputs")
    assert delete(address).outputs == 0
    assert collections(client, address.name) == set()


def test_who_writes_all_the_same_is_told(real: ServerAddress) -> None:
    address = real
    with IndexWriter(index_folder(str(address))) as writer:
        put_model(writer, "org/early", ANIMALS)
        delete(address)
        with pytest.raises((StoreError, IndexMissingError)) as caught:
            put_model(writer, "org/late", ANIMALS)
    assert "\n" not in str(caught.value)
    assert Remote.of(working_folder(address)) is None
    with pytest.raises(IndexMissingError):
        Index(index_folder(str(address)))
