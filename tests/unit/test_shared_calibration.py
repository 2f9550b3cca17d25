"""Several give an index on a server new backgrounds at once, and die of it: no reader takes one for the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.calibration import Background, calibrate
from engine.copy_stores import ServerSource
from engine.errors import IndexMismatchError
from engine.index import Index, describe_background
from engine.outputs import MIXED, OutputTable
from engine.remote import index_folder
from engine.store.address import ServerAddress
from engine.store.server import ServerStore
from engine.verify import repair, verify
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.support.crossing import KilledError, Steps, store_of
from tests.support.servers import Addresses, Machines, machines, new_zoo, server_addresses
from tests.support.small_index import ANIMALS, THINGS, encode, probe_embeddings, put_model

STEPS = ("outputs", "upsert_outputs", "change_model")


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


def background(seed: int) -> Background:
    return describe_background([f"cat {seed} {i}" for i in range(60)], 10, probe_embeddings(), encode)


def constants_are(table: OutputTable, made_with: Background) -> bool:
    expected = calibrate(table.idx, table.z, table.anchor, made_with)
    near = [  # anchors are rounded with every write
        np.allclose(getattr(expected, name), getattr(table.calibration, name), rtol=1e-4) for name in ("h", "s", "q")
    ]
    return all(near)


def readers_are_right(store: ServerStore, made_with: Background) -> bool:
    """Checks what readers rely on; whether all constants are of the background.

    Where outputs are said to have the constants of the index's background they have them, and where some have not, no
    answer of the server counts as certain.
    """
    whole = True
    for model in store.models():
        table = store.outputs(model.repo, model.revision)
        assert table is not None and len(table) == model.outputs
        right = constants_are(table, made_with)
        if table.calibrated_with(made_with.fingerprint, model.calibration):
            assert right, model.repo
        whole = whole and right
    if not whole:
        assert store.calibrated_otherwise(made_with.fingerprint)
    return whole


def half(writer: IndexWriter) -> None:
    """Writes the outputs of the second model with the writer's background, and dies before the record."""
    store = store_of(writer)
    model = store.model("org/b")
    assert model is not None
    table = store.outputs(model.repo, model.revision)
    assert table is not None
    constants = calibrate(table.idx, table.z, table.anchor, writer.background)
    store.upsert_outputs(table.with_calibration(constants, writer.background.fingerprint))


@pytest.mark.parametrize("fate", ["goes on", "is killed"])
def test_two_calibrations_that_cross_anywhere(machine: Machines, fate: str) -> None:
    """The other one does all of its work between any two steps of the first, which then goes on or is killed."""
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    for repo, seed in (("org/a", 1), ("org/b", 2)):
        put_model(mine, repo, ANIMALS, seed=seed)
    at, crossed = 0, True
    with mine, theirs:
        while crossed:
            one, two = background(2 * at), background(2 * at + 1)
            mine.set_background(one, "one")

            def meanwhile(two: Background = two) -> None:
                theirs.set_background(two, "two")
                theirs.recalibrate()
                if fate == "is killed":
                    raise KilledError

            with Steps(mine, STEPS, at, meanwhile) as steps:
                try:
                    mine.recalibrate()
                    assert not steps.crossed
                except IndexMismatchError as error:
                    assert "has been given another background meanwhile (60 phrases from two)" in str(error)
                except KilledError:
                    pass
            crossed = steps.crossed
            whole = readers_are_right(store_of(mine), two if crossed else one)
            assert whole or fate == "is killed"
            at += 1
    assert at > 6


def test_what_a_killed_calibration_mixed_is_told_and_mended_by_whoever_goes_on(machine: Machines) -> None:
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    for repo, seed in (("org/a", 1), ("org/b", 2), ("org/c", 3)):
        put_model(mine, repo, ANIMALS, seed=seed)
    one, two = background(1), background(2)
    mine.set_background(one, "one")
    theirs.set_background(two, "two")
    theirs.recalibrate()
    half(mine)
    with mine, theirs:
        store = store_of(theirs)
        record, table = store.model("org/b"), store.outputs("org/b", "r1")
        assert record is not None and table is not None
        assert record.calibration == two.fingerprint and table.background == one.fingerprint
        assert constants_are(table, one) and not constants_are(table, two)
        assert [model.repo for model in store.mixed(two.fingerprint)] == ["org/b"]
        folder = machine()
        index = Index(folder)
        assert index.background().fingerprint == two.fingerprint
        request = SearchRequest(("cat", "owl"), 6)
        scanned = Searcher(index, encode).search(request)
        served = ServedSearcher(index, index.remote.store, encode).search(request)  # type: ignore[union-attr]
        assert served.results == scanned.results and not served.exact
        (problem,) = verify(folder)
        assert problem == "org/b: calibrated with another background: index verify --repair mends it"
        # A copy would not say which constants its outputs have: its record does not claim any.
        with ServerSource(ServerAddress.parse(str(index.remote.address))) as source:  # type: ignore[union-attr]
            claims = {repo: point.payload.get("calibration") for repo, point in source.models().items()}
        assert claims == {"org/a": two.fingerprint, "org/b": None, "org/c": two.fingerprint}
        with IndexWriter(folder) as next_one:
            next_one.finish()
        assert readers_are_right(store, two) and not store.calibrated_otherwise(two.fingerprint)
        assert verify(folder) == []
        served = ServedSearcher(index, index.remote.store, encode).search(request)  # type: ignore[union-attr]
        assert served.exact
        again = Searcher(Index(machine()), encode).search(request)
        assert served.results == again.results == scanned.results


def test_repair_ends_a_calibration_that_was_killed(machine: Machines) -> None:
    folder = machine()
    with IndexWriter(folder) as writer:
        for repo, seed in (("org/a", 1), ("org/b", 2)):
            put_model(writer, repo, ANIMALS, seed=seed)
        writer.set_background(background(1), "one")
        half(writer)
    assert len(verify(folder)) == 2
    assert repair(folder) == ["2 model(s) are calibrated with the background of the index"]
    assert verify(folder) == []
    assert repair(folder) == []
    with IndexWriter(folder) as writer:
        assert readers_are_right(store_of(writer), background(1))


def test_outputs_of_two_backgrounds_in_one_model_are_known_as_such(machine: Machines) -> None:
    with IndexWriter(machine()) as writer:
        put_model(writer, "org/a", ANIMALS, seed=1)
        store = store_of(writer)
        table = store.outputs("org/a", "r1")
        assert table is not None and table.background == writer.background.fingerprint
        new = background(1)
        part = OutputTable(
            **{name: getattr(table, name)[:2] for name in ("output", "labels", "mean", "std", "idx", "z", "anchor")},
            repo="org/a",
            revision="r1",
            calibration=calibrate(table.idx[:2], table.z[:2], table.anchor[:2], new),
            background=new.fingerprint,
        )
        store.upsert_outputs(part)  # as a calibration that is killed between two requests
        torn = store.outputs("org/a", "r1")
        assert torn is not None and torn.background == MIXED
        for fingerprint in (new.fingerprint, writer.background.fingerprint):
            assert not torn.calibrated_with(fingerprint, fingerprint)
        assert store.calibrated_otherwise(writer.background.fingerprint)
        assert writer.recalibrate() == 1
        assert readers_are_right(store, writer.background)


def test_what_does_not_say_its_background_is_what_the_record_says(machine: Machines) -> None:
    """Outputs of a restored copy."""
    with IndexWriter(machine()) as writer:
        put_model(writer, "org/a", ANIMALS, seed=1)
        store, was = store_of(writer), writer.background
        store.restore("outputs", list(store.stored("outputs")))
        table = store.outputs("org/a", "r1")
        assert table is not None and table.background is None
        assert table.calibrated_with(was.fingerprint, was.fingerprint)
        assert not table.calibrated_with(was.fingerprint, "f" * 64)
        assert not store.calibrated_otherwise(was.fingerprint)
        new = background(1)
        writer.set_background(new, "one")
        assert writer.recalibrate() == 1
        assert readers_are_right(store, new)


def test_a_calibration_does_not_bring_back_what_others_removed_or_replaced_at_any_moment(machine: Machines) -> None:
    mine, theirs = IndexWriter(machine()), IndexWriter(machine())
    at, crossed = 0, True
    with mine, theirs:
        store = store_of(theirs)
        while crossed:
            put_model(theirs, "org/a", ANIMALS, revision=f"r{at}", seed=1)
            mine.set_background(background(at), "one")

            def meanwhile(at: int = at) -> None:
                if at % 2:
                    theirs.remove_model("org/a")
                else:
                    put_model(theirs, "org/a", THINGS, revision=f"r{at + 1}", seed=2)

            with Steps(mine, STEPS, at, meanwhile) as steps:
                mine.recalibrate()
            crossed = steps.crossed
            record = store.model("org/a")
            if crossed and at % 2:
                assert record is None and store.count_outputs() == 0, at
            else:
                assert record is not None
                assert record.revision == f"r{at + 1 if crossed else at}"
                assert store.count_outputs() == record.outputs == store.count_revision("org/a", record.revision), at
            at += 1
    assert at > 3


def test_a_writer_takes_over_a_background_that_its_own_machine_knows_already(machine: Machines) -> None:
    """Another process of the same machine has brought the working folder up to date before."""
    folder = machine()
    late = IndexWriter(folder)
    put_model(late, "org/a", ANIMALS, seed=1)
    with IndexWriter(machine()) as other:
        other.set_background(background(1), "one")
        other.recalibrate()
    assert index_folder(str(Index(folder).remote.address)).name  # type: ignore[union-attr]
    remote = Index(folder).remote
    assert remote is not None
    remote.refresh()
    put_model(late, "org/b", ANIMALS, seed=2)
    with late:
        late.finish()
        assert readers_are_right(store_of(late), background(1))
