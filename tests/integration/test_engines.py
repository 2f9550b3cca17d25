"""``hubhound search --engine``: an index on a server answered by a scan here or by the server's own search."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import prefetch, remote
from engine.index import Index
from engine.remote import index_folder
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore, connect
from engine.writer import IndexWriter
from query import served
from query.cli.main import run
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.integration.conftest import REALHUB
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, PretendEncoder, encode, make_index, put_model
from tests.support.stores import standin_url


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(scope="module")
def zoo(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an index of ten models."""
    folder = tmp_path_factory.mktemp("made")
    address = addresses()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(folder / "data"))
        empty = make_index(folder / "zoo")
        shutil.copytree(empty.probe_folder, empty.folder / "probes")
        with IndexWriter(to_server(empty.folder, address)) as writer:
            for i in range(10):
                words = [(*ANIMALS, *THINGS)[(i + j) % 7] for j in range(5)]
                put_model(writer, f"org/m{i}", words, seed=i, library=("timm", "onnx")[i % 2])
            writer.finish()
    return address


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows nothing yet; its working folders."""
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HUBHOUND_ENGINE", raising=False)
    monkeypatch.setattr(remote, "_STORES", {}, raising=False)
    monkeypatch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())
    monkeypatch.setattr(prefetch, "FIRST", 4)
    monkeypatch.setattr(prefetch, "PER_HIT", 1)
    return tmp_path / "data"


def ask(capsys: pytest.CaptureFixture[str], address: str, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["search", "--index", address, "--format", "json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def snapshots(machine: Path) -> list[Path]:
    return [path for path in machine.rglob("gen-*") if not path.name.startswith(".")]


def test_both_engines_find_the_same(zoo: str, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        ("cat", "lamp", "never seen", "-k", "4"),
        ("owl", "--where", "library=o*", "--explain"),
        ("owl", "-k", "200"),
    ]
    by_server = [ask(capsys, zoo, *question, "--engine", "qdrant") for question in asked]
    assert not snapshots(machine), "the server's search needs nothing here"
    for question, found in zip(asked, by_server, strict=True):
        scanned = ask(capsys, zoo, *question, "--engine", "scan")
        assert found["results"] == scanned["results"]
        assert found["searched"] == scanned["searched"]
        assert (found["engine"], found["exact"]) == ("qdrant", True)
        assert not {"engine", "candidates", "rounds"} & scanned.keys()
    assert by_server[0]["candidates"] < 3 * 50
    assert snapshots(machine)


def test_auto_scans_small_indexes_and_what_is_here_already(
    zoo: str, machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "SCAN_UP_TO", 49)
    assert ask(capsys, zoo, "cat")["engine"] == "qdrant"
    assert ask(capsys, zoo, "cat", "--where", "library=t*")["engine"] == "qdrant"
    assert not snapshots(machine)
    with monkeypatch.context() as patch:
        patch.setattr(ServerStore, "distinct", lambda *_: None)
        assert "engine" not in ask(capsys, zoo, "cat", "--where", "library=t*"), "a wildcard for too many values"
    shutil.rmtree(next(machine.rglob("snapshots")))
    assert "engine" not in ask(capsys, zoo, "cat", "--level", "model"), "only a scan can answer that"
    assert snapshots(machine)
    assert "engine" not in ask(capsys, zoo, "cat"), "now the outputs are here"
    shutil.rmtree(next(machine.rglob("snapshots")))
    monkeypatch.setattr(served, "SCAN_UP_TO", 50)
    assert "engine" not in ask(capsys, zoo, "cat"), "fifty outputs are few"


def test_the_environment_chooses_and_the_summary_says_what_was_done(
    zoo: str, machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUBHOUND_ENGINE", "qdrant")
    assert run(["search", "cat", "--index", zoo, "-k", "2"]) == 0
    captured = capsys.readouterr()
    assert "50 outputs searched by the server" in captured.err
    assert "certified exact" in captured.err
    monkeypatch.setattr(prefetch, "MOST", 2)
    assert run(["search", "never seen", "--index", zoo, "-k", "9"]) == 0
    assert "not certified, more than 2 outputs come close to the best 9" in capsys.readouterr().err
    assert not snapshots(machine)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cat", "--level", "model"), "--level model compares all outputs"),
        (("--like", "org/m1#2"), "--like compares outputs"),
        (("cat", "--evidence", "labels"), "--evidence labels compares the labels"),
        (("cat", "--method", "probelog"), "serve --method whitened only"),
    ],
    ids=["level", "like", "evidence", "method"],
)
def test_what_the_server_cannot_answer(
    zoo: str, machine: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "--index", zoo, "--engine", "qdrant", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "use --engine scan" in lines[0]
    assert not snapshots(machine)


def test_candidates_that_were_never_made(zoo: str, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "cat", "--index", zoo, "--engine", "candidates"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "make them with 'hubhound index candidates --index" in lines[0]
    assert not snapshots(machine)


def test_folders_have_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_index(tmp_path / "plain" / "zoo")
    assert run(["search", "cat", "--index", str(index.folder), "--engine", "qdrant"]) == 1
    assert "is a folder: leave it out" in capsys.readouterr().err


def test_a_contact_sheet_of_what_the_server_found(zoo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "why.png"
    arguments = ["search", "cat", "--index", zoo, "--engine", "qdrant", "-k", "3", "--evidence-image", str(sheet)]
    assert run(arguments) == 0
    assert "3 outputs with their strongest probes" in capsys.readouterr().err
    assert sheet.stat().st_size > 0


def test_a_writer_at_work(addresses: Addresses, tmp_path: Path) -> None:
    """A model changes between two revisions all the time: whatever is certified is the answer of one of them."""
    address = addresses()
    empty = make_index(tmp_path / "made" / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    folder = to_server(empty.folder, address)
    request = SearchRequest(("owl", "lamp"), k=6)
    states = []

    def put(writer: IndexWriter, turn: int) -> None:
        put_model(writer, "org/restless", THINGS if turn % 2 else ANIMALS, revision=f"r{turn % 2}", seed=turn % 2)

    with IndexWriter(folder) as writer:
        for i in range(4):
            put_model(writer, f"org/m{i}", (*ANIMALS, *THINGS), seed=10 + i)
        for turn in range(2):
            put(writer, turn)
            states.append(Searcher(Index(index_folder(address)), encode).search(request).results)
        assert states[0] != states[1]
        stop = threading.Event()

        def work() -> None:
            turn = 0
            while not stop.is_set():
                put(writer, turn)
                turn += 1
                stop.wait(0.3)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            index = Index(folder)
            assert index.remote is not None
            searcher = ServedSearcher(index, index.remote.open_store(), encode)
            found = [searcher.search(request) for _ in range(6)]
        finally:
            stop.set()
            thread.join()
    certified = [answer.results for answer in found if answer.exact]
    assert certified, "the writer rests now and then"
    assert all(results in states for results in certified)
    calm = searcher.search(request)
    assert calm.exact
    assert calm.results in states


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REALHUB.is_dir(), reason="the real models of ../shared/realhub are not here")
def test_real_models_and_a_hundred_concepts(
    real_zoo: tuple[Path, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best ten of the server are those of the scan, with the certificate."""
    monkeypatch.undo()
    folder = tmp_path / "zoo"
    shutil.copytree(real_zoo[0], folder)
    index = Index(folder)
    names = [label.split(",")[0] for label in index.snapshot().labels]
    chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:100]]
    request = SearchRequest(tuple(dict.fromkeys(chosen)))
    scanned = Searcher(index).search(request)
    client, name = connect(standin_url()), f"real_{tmp_path.name}".replace("-", "_")
    with EdgeStore.open(folder / "store") as embedded, ServerStore.create(client, name, embedded.layout) as store:
        for model in embedded.models():
            if (table := embedded.outputs(model.repo, model.revision)) is not None:
                store.upsert_outputs(table)
            store.upsert_model(model)
        found = ServedSearcher(index, store).search(request)
        store.destroy()
    assert found.results == scanned.results
    assert found.exact
    assert found.rounds <= 2
    assert found.candidates < 300 * len(request.concepts)
