"""Several machines write to one index on a server: nobody takes away what another has put, and readers follow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import remote as module
from engine.errors import HubhoundError, IndexDamagedError, InputError
from engine.index import Index, describe_background
from engine.outputs import OutputTable
from engine.remote import Remote, index_folder
from engine.remote_creation import new_index, refuse_taken
from engine.schema import Model
from engine.store.address import ServerAddress
from engine.store.base import StoreLayout, Written
from engine.store.server import ServerStore
from engine.store.shelf import FileShelf
from engine.verify import verify
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.support.servers import Addresses, Machines, machines, new_zoo, server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, encode, make_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def address(addresses: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return new_zoo(addresses(), tmp_path, monkeypatch)


@pytest.fixture
def machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return machines(address, tmp_path, monkeypatch)


def shown(folder: Path) -> list[str]:
    return [f"{model.repo}@{model.revision}" for model in Index(folder).snapshot().models]


def whole(store: ServerStore) -> None:
    """Every record has its outputs, and no others are there."""
    models = store.models()
    for model in models:
        table = store.outputs(model.repo, model.revision)
        assert (0 if table is None else len(table)) == model.outputs, model.repo
    assert store.count_outputs() == sum(model.outputs for model in models)


def test_calibrating_does_not_bring_back_what_others_replaced(machine: Machines) -> None:
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    for repo in ("org/a", "org/b", "org/c"):
        put_model(mine, repo, ANIMALS, seed=1)
    names = [f"new {i}" for i in range(60)]
    mine.set_background(describe_background(names, 10, mine.index.probe_embeddings, encode), "other")

    def meanwhile(done: int, total: int) -> None:
        if (done, total) == (1, 3):
            put_model(theirs, "org/b", THINGS, revision="r2", seed=2)  # with the background of before
            theirs.remove_model("org/c")

    with mine, theirs:
        assert mine.recalibrate(meanwhile) >= 3
        assert isinstance(mine.store, ServerStore)
        whole(mine.store)
        fingerprint = mine.index.manifest.background.fingerprint
        assert {model.calibration for model in mine.store.models()} == {fingerprint}
    assert shown(machine()) == ["org/a@r1", "org/b@r2"]


@pytest.mark.parametrize("first", ["r1", "r2"])
def test_of_two_revisions_the_record_written_last_stands(machine: Machines, first: str) -> None:
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    put_model(mine, "org/m", ANIMALS, revision="r0", seed=9)
    second = {"r1": "r2", "r2": "r1"}[first]
    put = theirs.store.upsert_outputs

    def then(table: OutputTable) -> None:
        """Between the others' outputs and their record."""
        theirs.store.upsert_outputs = put  # type: ignore[method-assign]
        put(table)
        put_model(mine, "org/m", ANIMALS, revision=first, seed=1)

    theirs.store.upsert_outputs = then  # type: ignore[method-assign]
    with mine, theirs:
        put_model(theirs, "org/m", THINGS, revision=second, seed=2)
        assert isinstance(mine.store, ServerStore)
        whole(mine.store)
        assert mine.index.responses.has("org/m", second)
        assert not mine.index.responses.has("org/m", "r0")
    assert shown(machine()) == [f"org/m@{second}"]


def test_removing_leaves_what_somebody_is_putting(machine: Machines) -> None:
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    put_model(mine, "org/m", ANIMALS, revision="r0", seed=9)
    put = theirs.store.upsert_outputs

    def then(table: OutputTable) -> None:
        theirs.store.upsert_outputs = put  # type: ignore[method-assign]
        put(table)
        mine.remove_model("org/m")

    theirs.store.upsert_outputs = then  # type: ignore[method-assign]
    with mine, theirs:
        put_model(theirs, "org/m", THINGS, revision="r1", seed=2)
        assert isinstance(mine.store, ServerStore)
        whole(mine.store)
        mine.remove_model("org/m")
        whole(mine.store)
        assert mine.store.count_outputs() == 0


@pytest.mark.parametrize("probes", ["same", "other"])
def test_who_goes_on_with_an_index_that_was_made_again_is_told(
    address: str, machine: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: str
) -> None:
    reading, writing = machine(), IndexWriter(machine())
    put_model(writing, "old/animals", ANIMALS, seed=1)
    assert shown(reading) == ["old/animals@r1"]
    service = Remote.of(reading)
    assert service is not None
    parsed = ServerAddress.parse(address)
    with ServerStore.open(parsed.connect(), parsed.name) as store:
        store.destroy()
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "maker"))
    again = make_index(tmp_path / "again" / "zoo", top_r=20 if probes == "same" else 15)
    made = to_server(again.folder, address)
    with IndexWriter(made) as fresh:
        put_model(fresh, "new/things", THINGS, seed=1)
    for act in (
        service.refresh,
        lambda: put_model(writing, "old/more", ANIMALS, seed=3),
        lambda: writing.remove_model("new/things"),
    ):
        with pytest.raises(IndexDamagedError, match="was made again since this began"):
            act()
    assert shown(made) == ["new/things@r1"]
    monkeypatch.setattr(module, "_STORES", {})
    monkeypatch.setenv("HUBHOUND_DATA", str(reading.parents[2]))
    assert index_folder(address) == reading
    assert shown(reading) == ["new/things@r1"]


def test_a_model_that_is_replaced_meanwhile_keeps_nobody_out(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = IndexWriter(machine())
    for number in range(4):
        put_model(writing, f"org/m{number}", ANIMALS, seed=number)
    index = Index(machine())
    reading = ServerStore.iter_outputs
    count = 0

    def busy(store: ServerStore, models: list[Model]) -> Iterator[OutputTable]:
        nonlocal count
        count += 1
        put_model(writing, f"org/m{count % 4}", ANIMALS, revision=f"r{count + 1}", seed=count)
        return reading(store, models)

    monkeypatch.setattr(ServerStore, "iter_outputs", busy)
    started = time.monotonic()
    with writing:
        seen = index.snapshot()
        assert len(seen.models) >= 3
        assert time.monotonic() - started < 30
        monkeypatch.undo()
        expected = sorted(f"{model.repo}@{model.revision}" for model in writing.store.models())
    assert [f"{model.repo}@{model.revision}" for model in index.snapshot().models] == expected


def test_a_damaged_model_does_not_take_the_others_along(machine: Machines) -> None:
    folder = machine()
    with IndexWriter(folder) as writer:
        put_model(writer, "org/good", ANIMALS, seed=1)
        put_model(writer, "org/bad", THINGS, seed=2)
        writer.store.delete_outputs("org/bad")
    index = Index(machine())
    assert [model.repo for model in index.snapshot().models] == ["org/good"]
    assert index.snapshot().number == 1  # it is not read again and again
    assert any("org/bad: 0 outputs in the store instead of 3" in problem for problem in verify(index.folder))
    with IndexWriter(folder) as writer:
        put_model(writer, "org/bad", THINGS, seed=2)
    assert [model.repo for model in index.snapshot().models] == ["org/bad", "org/good"]


def test_an_index_that_is_being_made_is_left_alone(
    addresses: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    address = ServerAddress.parse(addresses())
    with ServerStore.create(address.connect(), address.name, StoreLayout(80, 20, 24)) as store:
        shelf = FileShelf(store)
        shelf.put_bytes("making.json", "making", json.dumps({"host": "other", "at": time.time() - 60}).encode())
        with pytest.raises(InputError, match=r"is being made at qdrant://.* by other \(begun 6\d s ago\)"):
            refuse_taken(address)
        shelf.put_bytes("copying.json", "copying", b"{}")
        with pytest.raises(IndexDamagedError, match="unfinished copy"):
            refuse_taken(address)
        with pytest.raises(IndexDamagedError, match="unfinished copy"):
            index_folder(str(address))
        shelf.remove(["copying.json"])
        shelf.put_bytes("making.json", "making", json.dumps({"host": "other", "at": time.time() - 3600}).encode())
    refuse_taken(address)  # that was interrupted: it is gone now
    # Two at the same time: one of them is told, and what the other made is whole.
    with pytest.raises(HubhoundError), new_index(str(address), {}) as folder:
        make_index(folder)
        with new_index(str(address), {}) as other:
            make_index(other, top_r=15)
    assert Index(index_folder(str(address))).manifest.top_r == 15


def test_a_revision_that_is_a_path_leads_nowhere(machine: Machines, tmp_path: Path) -> None:
    folder = machine()
    remote = Remote.of(folder)
    assert remote is not None
    remote.shelf.put_bytes("responses/escaped.npy", "responses", b"anything")
    with pytest.raises(IndexDamagedError, match="which none can have"):
        Index(folder).responses.read("org/m", "r/../../../../escaped")
    assert not list(tmp_path.rglob("escaped*"))


def test_what_was_put_with_a_background_of_before_is_mended_by_who_put_it(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = IndexWriter(machine()), IndexWriter(machine())
    put_model(late, "org/early", ANIMALS, seed=1)
    with other:
        names = [f"new {i}" for i in range(60)]
        other.set_background(describe_background(names, 10, other.index.probe_embeddings, encode), "other")
        other.recalibrate()
        other.finish()
    put_model(late, "org/late", THINGS, seed=2)  # it has not looked yet
    fingerprint = other.index.manifest.background.fingerprint
    assert isinstance(late.store, ServerStore)
    assert late.store.calibrated_otherwise(fingerprint)
    # Whoever asks the server meanwhile computes the constants itself.
    index = Index(machine())
    scanned = Searcher(index, encode).search(SearchRequest(("lamp", "cat"), 6))
    served = ServedSearcher(index, index.remote.store, encode).search(SearchRequest(("lamp", "cat"), 6))  # type: ignore[union-attr]
    assert served.results == scanned.results
    assert not served.exact
    with late:
        late.finish()
        assert not late.store.calibrated_otherwise(fingerprint)


def test_a_model_that_is_removed_while_it_is_put_is_put_again(machine: Machines) -> None:
    """Its outputs go between the outputs and the record, as of one that another machine is about to remove."""
    with IndexWriter(machine()) as writer:
        store = writer.store
        assert isinstance(store, ServerStore)
        put = store.write_model

        def late(model: Model) -> Written:
            store.delete_outputs(model.repo)
            return put(model)

        store.write_model = late  # type: ignore[method-assign]
        put_model(writer, "org/m", THINGS, revision="r1", seed=2)
        whole(store)
        assert store.count_revision("org/m", "r1") == 3


def test_a_model_whose_outputs_come_late_is_shown_when_they_are_there(machine: Machines) -> None:
    folder = machine()
    with IndexWriter(folder) as writer:
        put_model(writer, "org/good", ANIMALS, seed=1)
        put_model(writer, "org/late", THINGS, seed=2)
        table = writer.store.outputs("org/late", "r1")
        assert table is not None
        writer.store.delete_outputs("org/late")
        index = Index(machine())
        assert [model.repo for model in index.snapshot().models] == ["org/good"]
        writer.store.upsert_outputs(table)  # as of a replica that was behind: the record does not change
        assert [model.repo for model in index.snapshot().models] == ["org/good", "org/late"]
