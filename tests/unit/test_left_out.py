"""Models whose outputs are not all on the server: left out, told of, and there as soon as they are whole."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine import catching_up
from engine.catching_up import Seen
from engine.index import Index
from engine.outputs import OutputTable
from engine.remote import index_folder
from engine.schema import Model
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.small_index import ANIMALS, make_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(catching_up, "time", made)
    return made


class Replica:
    """What one replica of the server has not got yet of some models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.missing: set[str] = set()
        self.counted: list[str] = []
        read, count = ServerStore.iter_outputs, ServerStore.count_revision

        def some(store: ServerStore, models: Sequence[Model]) -> Iterator[OutputTable]:
            return (table for table in read(store, models) if table.repo not in self.missing)

        def counted(store: ServerStore, repo: str, revision: str, *given: Any) -> int:
            self.counted.append(repo)
            return 0 if repo in self.missing else count(store, repo, revision, *given)

        monkeypatch.setattr(ServerStore, "iter_outputs", some)
        monkeypatch.setattr(ServerStore, "count_revision", counted)


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    return Replica(monkeypatch)


@pytest.fixture(scope="module")
def address(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index on the server with 30 models of four outputs."""
    folder = tmp_path_factory.mktemp("writer")
    empty = make_index(folder / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    address = addresses()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(folder / "data"))
        with IndexWriter(to_server(empty.folder, address)) as writer:
            for i in range(30):
                put_model(writer, f"org/m{i:02}", ANIMALS, seed=i)
    return address


@pytest.fixture
def index(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """That index on a machine that knows nothing of it yet."""
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(catching_up, "_DUE", {})
    monkeypatch.setattr(catching_up, "_TOLD", {})
    return Index(index_folder(address))


def left_out(index: Index) -> list[str]:
    assert index.remote is not None
    return [model.repo for model in Seen.of(index.current_snapshot(), index.remote.identity).incomplete]


def test_a_replica_that_was_behind_is_asked_again_by_time(index: Index, replica: Replica, clock: Clock) -> None:
    replica.missing = {"org/m07"}
    assert left_out(index) == ["org/m07"]
    clock.now += 10
    assert left_out(index) == ["org/m07"]
    assert replica.counted == ["org/m07"]
    replica.missing = set()
    clock.now += 1
    assert left_out(index) == ["org/m07"], "it was counted a second ago"
    assert replica.counted == ["org/m07"]
    clock.now += 10
    assert left_out(index) == []  # though no record has changed
    assert len(index.snapshot().models) == 30


def test_those_that_stay_broken_do_not_stand_before_the_others(index: Index, replica: Replica, clock: Clock) -> None:
    replica.missing = {f"org/m{i:02}" for i in range(29)}
    assert len(left_out(index)) == 29
    replica.missing.remove("org/m28")
    for _ in range(4):
        clock.now += 6
        if "org/m28" not in left_out(index):
            break
    assert len(left_out(index)) == 28
    assert "org/m28" in [model.repo for model in index.snapshot().models]
    before = len(replica.counted)
    clock.now += 6
    left_out(index)
    assert len(replica.counted) - before <= 20, "a look must stay cheap"


def test_they_are_named_once_until_others_are_left_out(
    index: Index, replica: Replica, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    replica.missing = {f"org/m{i:02}" for i in range(5)}
    with caplog.at_level(logging.WARNING, "hubhound.store"):
        left_out(index)
        clock.now += 10
        left_out(index)
        name = index.name.rpartition("/")[2]
        tail = (
            f"the outputs are not all on the server: left out of the index {name} until they are; "
            "if that lasts, 'hubhound index verify' says what is missing"
        )
        assert caplog.messages == [f"of org/m00, org/m01, org/m02 and 2 more {tail}"]
        replica.missing = {"org/m01"}
        clock.now += 10
        left_out(index)
        replica.missing = set()
        clock.now += 10
        left_out(index)
    assert caplog.messages[1:] == [f"of org/m01 {tail}"]
