"""What a service tells of the server that its index is on: away, back, another index there, another background."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import catching_up
from engine.index import Index, describe_background
from engine.outputs import OutputTable
from engine.remote import Remote, index_folder
from engine.schema import Model
from engine.store.address import ServerAddress
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from query.api import create_app
from query.api.errors import LOGGER
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.service import Asked, asking, small_app, small_settings
from tests.support.small_index import ANIMALS, THINGS, PretendEncoder, encode, make_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@dataclass
class Served:
    """A service over an index on a server that is reached through a proxy, and the index's writer."""

    service: Asked
    proxy: FaultProxy
    address: ServerAddress
    written: Path
    read: Path

    def standing(self) -> dict[str, Any]:
        answer = self.service.get("/readyz")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["store"]
        return found

    def metric(self, name: str) -> float:
        text = self.service.get("/metrics").text
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )
        return float(value)

    def searched(self) -> int:
        answer = self.service.post("/v1/search", {"concepts": ["cat"]})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["searched"])


def eventually(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def new_index(folder: Path, address: str) -> tuple[ServerAddress, Path]:
    """An index on the server with one model: its address and the writer's working folder."""
    made = ServerAddress.parse(address)
    empty = make_index(folder / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(folder / "data"))
        written = to_server(empty.folder, str(made))
        with IndexWriter(written) as writer:
            put_model(writer, "org/animals", ANIMALS, seed=1)
    return made, written


@contextmanager
def serving(direct: ServerAddress, written: Path, data: Path) -> Iterator[Served]:
    """A service on another machine than the writer's."""
    with pytest.MonkeyPatch.context() as patch, fault_proxy(direct.url) as proxy:
        patch.setenv("HUBHOUND_QDRANT_DEADLINE", "1")
        patch.setenv("HUBHOUND_DATA", str(data))
        folder = index_folder(f"qdrant://127.0.0.1:{proxy.port}/{direct.name}")
        with asking(create_app(small_settings(folder), load_encoder=PretendEncoder)) as service:
            yield Served(service, proxy, direct, written, folder)


@pytest.fixture(scope="module")
def shared(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> tuple[ServerAddress, Path]:
    """An index that tests add to."""
    return new_index(tmp_path_factory.mktemp("shared"), addresses())


@pytest.fixture
def served(shared: tuple[ServerAddress, Path], tmp_path: Path) -> Iterator[Served]:
    with serving(*shared, tmp_path / "reader") as made:
        yield made


def test_a_server_that_is_away_is_told_of_and_answers_go_on(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    outputs = served.searched()
    well = served.standing()
    assert well["up"] is True and well["last_contact_s"] < 30
    assert {name: well[name] for name in ("replaced", "left_out_models")} == {"replaced": False, "left_out_models": 0}
    assert served.metric("hubhound_store_up") == 1
    with caplog.at_level(logging.INFO):
        served.proxy.refuse()
        eventually(lambda: served.standing()["up"] is False)
        assert served.searched() == outputs
        eventually(lambda: served.standing()["last_contact_s"] > 1.5)
        assert served.metric("hubhound_store_up") == 0
        assert served.metric("hubhound_store_contact_age_seconds") > 1.5
        assert served.service.get("/v1/index").json()["store"]["up"] is False
        away = "generation 1 goes on answering until there is contact again: the Qdrant server at"
        eventually(lambda: any(text.startswith(away) for text in caplog.messages))
        time.sleep(1.5)  # it is asked again and again
        assert served.metric("hubhound_generation_errors_total") == 0, "nothing was wrong with the index"
        served.proxy.listen()
        eventually(lambda: served.standing()["up"] is True)
    assert served.metric("hubhound_store_contact_age_seconds") < 1.5
    told = [record for record in caplog.records if record.name in {LOGGER, "hubhound.store"}]
    assert len([record for record in told if record.message.startswith(away)]) == 1
    assert not [record for record in told if record.levelno >= logging.ERROR]


def test_who_is_told_of_the_absence_is_told_of_the_end(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.patience._TOLD_S", 0.0)
    with caplog.at_level(logging.WARNING, "hubhound.store"):
        served.proxy.refuse()
        eventually(lambda: bool(caplog.messages))
        served.proxy.listen()
        eventually(lambda: len(caplog.messages) > 1 and "answers again" in caplog.messages[-1])
    away = [text for text in caplog.messages if "does not answer" in text and "trying again" in text]
    assert len(away) == 1
    assert f"the Qdrant server at {served.proxy.url} answers again after " in caplog.messages[-1]


def test_an_index_that_was_made_again_is_told_of(
    addresses: Addresses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = addresses()
    with serving(*new_index(tmp_path / "first", address), tmp_path / "reader") as served:
        with ServerStore.open(served.address.connect(), served.address.name) as store:
            store.destroy()
        with caplog.at_level(logging.ERROR, LOGGER):
            new_index(tmp_path / "again", address)
            eventually(lambda: served.standing()["replaced"] is True)
            assert served.standing()["up"] is True
            assert served.metric("hubhound_store_replaced") == 1
            assert served.metric("hubhound_generation_errors_total") >= 1
            assert served.service.get("/v1/index").json()["store"]["replaced"] is True
            assert served.searched() == len(ANIMALS)
            time.sleep(0.3)
        assert len([text for text in caplog.messages if "was made again" in text]) == 1


def test_another_background_is_told_of(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    index = Index(served.written)
    names = [f"other phrase {i}" for i in range(40)]
    with caplog.at_level(logging.INFO, LOGGER), IndexWriter(served.written) as writer:
        writer.set_background(describe_background(names, 10, index.probe_embeddings, encode), "phrases.txt")
        writer.recalibrate()
        told = "is calibrated with another background: phrases.txt, 40 phrases"
        eventually(lambda: any(text.endswith(told) for text in caplog.messages))


def test_models_that_are_left_out_are_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that the replica which is asked has not got yet."""
    monkeypatch.setattr(catching_up, "_AGAIN_S", 0.2)
    before = served.searched()
    remote = Remote.of(served.read)
    assert remote is not None
    store, missing = remote.store, {"org/things"}
    read, count = store.iter_outputs, store.count_revision

    def some(models: Sequence[Model]) -> Iterator[OutputTable]:
        return (table for table in read(models) if table.repo not in missing)

    monkeypatch.setattr(store, "iter_outputs", some)
    monkeypatch.setattr(store, "count_revision", lambda repo, rev: 0 if repo in missing else count(repo, rev))
    with IndexWriter(served.written) as writer:
        put_model(writer, "org/things", THINGS, seed=2)
        put_model(writer, "org/more", ("bee", "ant"), seed=3)
    eventually(lambda: served.searched() == before + 2)
    assert served.standing()["left_out_models"] == served.metric("hubhound_left_out_models") == 1
    missing.clear()
    eventually(lambda: served.searched() == before + len(THINGS) + 2)
    eventually(lambda: served.metric("hubhound_left_out_models") == 0)
    assert served.standing()["left_out_models"] == 0


def test_an_index_in_a_folder_has_no_server(tmp_path: Path) -> None:
    with asking(small_app(tmp_path / "zoo")) as service:
        assert service.get("/readyz").json()["store"] is None
        assert service.get("/v1/index").json()["store"] is None
        lines = service.get("/metrics").text.splitlines()
        assert "hubhound_store_up 1.0" in lines
        assert "hubhound_store_contact_age_seconds 0.0" in lines
        assert "hubhound_store_replaced 0.0" in lines
