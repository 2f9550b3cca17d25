"""What killed runs have left is found and removed, in a folder and on a server; what is in hand stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import leftovers as module
from engine.errors import IndexMissingError
from engine.index import Index
from engine.leftovers import Leftover, find_leftovers
from engine.schema import Model
from engine.verify import repair, verify
from engine.writer import IndexWriter
from tests.support.crossing import KilledError
from tests.support.servers import server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, answers, make_index, put_model

Maker = Callable[[], Path]


@pytest.fixture(scope="module", params=["folder", "server"])
def maker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    folder = tmp_path_factory.mktemp(request.param)
    numbers = iter(range(100))
    if request.param == "folder":
        yield lambda: make_index(folder / str(next(numbers)) / "zoo").folder
        return
    with server_addresses(folder / "server") as addresses, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(folder / "data"))
        yield lambda: to_server(make_index(folder / str(next(numbers)) / "zoo").folder, addresses())


def killed_put(folder: Path, repo: str, revision: str, before_record: bool) -> None:
    """Puts a model and dies: before its record, or before anything that it replaces goes."""

    def killed(*given: object, **more: object) -> None:
        raise KilledError

    with IndexWriter(folder) as writer:
        names = ("write_model", "upsert_model") if before_record else ("clear", "delete_outputs")
        for name in names:
            setattr(writer.store, name, killed)
        with pytest.raises(KilledError):
            put_model(writer, repo, THINGS, revision=revision, seed=2)
        for name in names:
            delattr(writer.store, name)


def filled(folder: Path) -> Path:
    """Four outputs and their responses of a replaced revision, three of a model that never had a record."""
    with IndexWriter(folder) as writer:
        put_model(writer, "org/m", ANIMALS, revision="r1", seed=1)
        put_model(writer, "org/whole", ANIMALS, revision="r1", seed=3)
        writer.finish()
    killed_put(folder, "org/m", "r2", before_record=False)
    killed_put(folder, "org/never", "r1", before_record=True)
    with IndexWriter(folder) as writer:
        writer.finish()
    return folder


def found(folder: Path) -> list[Leftover]:
    with IndexWriter(folder) as writer:
        return find_leftovers(writer.store, writer.store.models())


def test_what_killed_runs_left_is_found_and_removed(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(maker())
    expected = "the store has 7 outputs of no model: left by a killed run, index verify --repair removes them"
    assert expected in verify(folder)
    monkeypatch.setattr(module, "FRESH_S", -1.0)
    assert found(folder) == [
        Leftover("org/m", "r1", 4, fresh=False),
        Leftover("org/never", "r1", 3, fresh=False),
    ]
    archive = Index(folder).responses
    there = [("org/m", "r1"), ("org/m", "r2"), ("org/whole", "r1"), ("org/never", "r1")]
    had = [archive.has(*name) for name in there]
    assert had[:3] == [True, True, True]
    assert repair(folder) == [
        "org/m@r1: 4 outputs that no record names are removed",
        "org/never@r1: 3 outputs that no record names are removed",
        *(["the snapshot is that of the store again"] if Index(folder).remote is None else []),
    ]
    assert verify(folder) == [] and found(folder) == []
    assert [archive.has(*name) for name in there] == [False, True, True, False]
    with IndexWriter(folder) as writer:
        assert writer.store.count_outputs() == 3 + 4
        put_model(writer, "org/never", ANIMALS, revision="r1", seed=4)
        writer.finish()
    assert [model.repo for model in Index(folder).snapshot().models] == ["org/m", "org/never", "org/whole"]
    with IndexWriter(folder) as writer:
        table = writer.store.outputs("org/m", "r2")
        assert table is not None
        # As of a kill between the removal of outputs and that of responses.
        archive.write(replace(table, revision="r0"), answers(THINGS, seed=2))
    assert archive.has("org/m", "r0")
    assert repair(folder) == ["responses of 1 revision(s) that no record names are removed"]
    assert not archive.has("org/m", "r0") and archive.has("org/m", "r2")
    assert repair(folder) == []


def test_what_somebody_may_have_in_hand_is_left_alone(maker: Maker) -> None:
    folder = maker()
    shared = Index(folder).remote is not None
    with IndexWriter(folder) as writer:
        put_model(writer, "org/m", ANIMALS, revision="r1", seed=1)
        writer.finish()
    killed_put(folder, "org/m", "r2", before_record=True)
    lines = repair(folder)
    archive = Index(folder).responses
    if shared:
        assert lines == [
            "org/m@r2: 3 outputs that no record names are left alone: somebody may be putting them, "
            "repair again in ten minutes"
        ]
        assert archive.has("org/m", "r2")
    else:  # nobody else can be writing
        assert lines == ["org/m@r2: 3 outputs that no record names are removed"]
        assert not archive.has("org/m", "r2")
    assert archive.has("org/m", "r1")


def test_outputs_that_get_a_record_meanwhile_stay(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = maker()
    with IndexWriter(folder) as writer:
        put_model(writer, "org/m", ANIMALS, revision="r1", seed=1)
        assert not writer.remove_leftover("org/m", "r1")
        assert writer.store.count_outputs() == 4
        if Index(folder).remote is None:
            return
        # Somebody puts a revision that looked like a leftover: after its outputs went, before its record.
        monkeypatch.setattr(module, "FRESH_S", -1.0)
        with IndexWriter(folder) as other:
            real = other.store.upsert_outputs

            def swept(table: object) -> None:
                other.store.upsert_outputs = real  # type: ignore[method-assign]
                real(table)  # type: ignore[arg-type]
                assert repair(folder)[0] == "org/m@r2: 3 outputs that no record names are removed"

            other.store.upsert_outputs = swept  # type: ignore[method-assign]
            put_model(other, "org/m", THINGS, revision="r2", seed=2)
            assert other.store.model("org/m") is not None
            assert other.store.count_outputs() == 3
            assert other.index.responses.has("org/m", "r2") and not other.index.responses.has("org/m", "r1")
    assert verify(folder) == []


def test_a_model_without_its_outputs_is_not_counted_as_leftovers(maker: Maker) -> None:
    folder = maker()
    with IndexWriter(folder) as writer:
        put_model(writer, "org/m", ANIMALS, seed=1)
        writer.finish()
        record = writer.store.model("org/m")
        assert isinstance(record, Model)
        writer.store.upsert_model(record.model_copy(update={"outputs": 9}))
    problems = verify(folder)
    assert any("org/m: 4 outputs in the store instead of 9: add it again" in problem for problem in problems)
    assert not any("of no model" in problem for problem in problems)


def test_there_must_be_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError):
        repair(tmp_path / "nothing")
