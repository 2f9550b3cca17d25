"""The service over an index on a Qdrant server: it follows what is written there, and outlives the server's absence."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.remote import index_folder
from engine.store.address import ServerAddress
from engine.writer import IndexWriter
from query.api import create_app
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.service import asking, small_settings
from tests.support.small_index import ANIMALS, PretendEncoder, make_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


def eventually(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_follows_the_server_and_outlives_its_absence(
    addresses: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", "1")
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "writer"))
    direct = ServerAddress.parse(addresses())
    empty = make_index(tmp_path / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    written = to_server(empty.folder, str(direct))
    with IndexWriter(written) as writer:
        put_model(writer, "org/animals", ANIMALS, seed=1)
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "reader"))
    with fault_proxy(f"http://{direct.host}:{direct.port}") as proxy:
        folder = index_folder(f"qdrant://127.0.0.1:{proxy.port}/{direct.name}")
        app = create_app(small_settings(folder), load_encoder=PretendEncoder)
        with asking(app) as service:

            def searched() -> int:
                answer = service.post("/v1/search", {"concepts": ["cat"], "explain": True})
                assert answer.status_code == 200, answer.text
                return int(answer.json()["searched"])

            assert searched() == 4
            assert service.get("/v1/probes/0/image").status_code == 200  # its image came from the server
            with IndexWriter(written) as writer:
                put_model(writer, "org/new", ("bee", "ant"), seed=8)
            eventually(lambda: searched() == 6)
            proxy.refuse()
            with IndexWriter(written) as writer:
                put_model(writer, "org/unseen", ("eel",), seed=9)
            time.sleep(1.5)
            assert searched() == 6  # what it has seen last goes on answering
            assert service.get("/readyz").status_code == 200
            proxy.listen()
            eventually(lambda: searched() == 7)
