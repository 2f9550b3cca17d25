"""Repairing an index on a server while others write to it: what they put has all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import leftovers
from engine import verify as module
from engine.index import Index
from engine.shared_model import SharedModel
from engine.verify import repair, verify
from engine.writer import IndexWriter
from tests.support.crossing import KilledError
from tests.support.servers import server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, make_index, put_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(leftovers, "FRESH_S", -1.0)  # as if it had been long ago
    with server_addresses(tmp_path / "server") as addresses:
        yield to_server(make_index(tmp_path / "made" / "zoo").folder, addresses())


def killed(*given: object, **more: object) -> None:
    raise KilledError


def put(folder: Path) -> None:
    with IndexWriter(folder) as other:
        put_model(other, "org/m", THINGS, seed=2)


def test_what_is_put_while_leftovers_go_keeps_its_responses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IndexWriter(folder) as writer, monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(writer.store, "write_model", killed)
        put_model(writer, "org/m", THINGS, seed=2)
    clear_all = SharedModel.clear_all

    def crossed(model: SharedModel, *given: Any) -> Any:
        monkeypatch.setattr(SharedModel, "clear_all", clear_all)
        put(folder)
        return clear_all(model, *given)

    monkeypatch.setattr(SharedModel, "clear_all", crossed)
    (line,) = repair(folder)
    assert line.startswith("org/m@")
    assert "are left alone" in line
    assert verify(folder) == []


def test_what_is_put_while_responses_go_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IndexWriter(folder) as writer, monkeypatch.context() as patched:
        put_model(writer, "org/m", THINGS, seed=2)
        patched.setattr(writer.index.responses, "remove", killed)
        with pytest.raises(KilledError):
            writer.remove_model("org/m")
    real = module.remove_forgotten

    def crossed(*given: Any) -> int:
        put(folder)
        return real(*given)

    monkeypatch.setattr(module, "remove_forgotten", crossed)
    repair(folder)
    assert verify(folder) == []


def test_a_record_under_a_number_that_readers_have_passed_is_shown_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer was killed before it looked, and it replaced a record: the number of records tells nothing."""
    with IndexWriter(folder) as writer:
        put_model(writer, "org/m", ANIMALS, seed=1)
        writer.finish()
    with IndexWriter(folder) as first, IndexWriter(folder) as second:
        put_records = first.store._records._put  # type: ignore[attr-defined]

        def passed(*given: object) -> None:
            put_model(second, "org/other", ANIMALS, seed=9)
            Index(folder).current_snapshot()
            put_records(*given)
            raise KilledError

        first.store._records._put = passed  # type: ignore[attr-defined]
        with pytest.raises(KilledError):
            put_model(first, "org/m", THINGS, revision="r2", seed=2)
    assert {model.repo: model.revision for model in Index(folder).snapshot().models}["org/m"] != "r2"
    assert "the snapshot is not that of the store: run hubhound index verify --repair" in verify(folder)
    monkeypatch.setattr(leftovers, "FRESH_S", 600.0)  # just now: its former outputs may be in somebody's hands
    assert "1 model(s) that snapshots have otherwise are shown to all machines again" in repair(folder)
    assert {model.repo: model.revision for model in Index(folder).snapshot().models}["org/m"] == "r2"
    monkeypatch.setattr(leftovers, "FRESH_S", -1.0)
    repair(folder)
    assert verify(folder) == []
