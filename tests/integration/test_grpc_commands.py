"""The same commands on one index on a server, over REST and over gRPC: the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine import prefetch, remote
from engine.index import Index
from engine.writer import IndexWriter
from query.cli.main import run
from tests.support.qdrant_grpc_faults import CallProxy, call_proxy
from tests.support.qdrant_server import standin
from tests.support.small_index import ANIMALS, THINGS, PretendEncoder, make_index, put_model


@dataclass(frozen=True)
class Pair:
    """One index by two addresses.

    Attributes:
        rest: Over REST.
        grpc: Over gRPC, through a proxy that sees the calls.
        calls: That proxy.
        folder: The index that it is a copy of.
    """

    rest: str
    grpc: str
    calls: CallProxy
    folder: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    made = make_index(root / "zoo")
    with IndexWriter(made.folder) as writer:
        for i in range(10):
            words = [(*ANIMALS, *THINGS)[(i + j) % 7] for j in range(5)]
            put_model(writer, f"org/m{i}", words, seed=i, library=("timm", "onnx")[i % 2])
        writer.finish()
    with (
        standin(root / "server", grpc_port=0) as server,
        call_proxy(server.grpc_port or 0) as calls,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HUBHOUND_DATA", str(root / "data"))
        patch.setattr(remote, "_STORES", {}, raising=False)
        patch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())
        rest = f"qdrant://127.0.0.1:{server.port}/zoo"
        over_grpc = f"{rest}?grpc={calls.port}"
        assert run(["index", "copy", str(made.folder), over_grpc]) == 0
        assert run(["index", "candidates", "--index", over_grpc]) == 0
        yield Pair(rest, over_grpc, calls, made.folder)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())
    monkeypatch.setattr(prefetch, "FIRST", 4)
    monkeypatch.setattr(prefetch, "PER_HIT", 1)


def both(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str
) -> tuple[Any, Any]:
    """What a command says of each, each time on a machine that knows nothing yet, as JSON."""
    answers = []
    for number, index in enumerate((pair.rest, pair.grpc)):
        monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / f"data{number}"))
        monkeypatch.setattr(remote, "_STORES", {}, raising=False)
        capsys.readouterr()
        before = len(pair.calls.seen)
        assert run([*command, "--index", index, "--format", "json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
        assert (len(pair.calls.seen) > before) == (index == pair.grpc), "it goes the way that was asked for"
    return answers[0], answers[1]


VOLATILE = {"seconds", "milliseconds", "bytes", "created_at", "generation", "folder", "index", "server", "address"}


def steady(answer: Any) -> Any:
    """An answer without what two runs do not share."""
    if isinstance(answer, dict):
        return {key: steady(value) for key, value in answer.items() if key not in VOLATILE}
    return [steady(one) for one in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("engine", ["scan", "qdrant", "candidates"])
def test_searches(
    pair: Pair, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [["cat", "lamp", "never seen", "-k", "4"]]
    if engine != "candidates":
        asked += [["dog", "--where", "library=timm", "--where", "label=yes"], ["cat", "-k", "50"]]
    if engine == "scan":
        asked += [["cat", "dog", "--level", "model"], ["--like", "org/m3#1"], ["cat", "--explain"]]
    for words in asked:
        rest, over_grpc = both(pair, tmp_path, monkeypatch, capsys, "search", *words, "--engine", engine)
        assert steady(rest) == steady(over_grpc), "bit for bit"
        assert rest["searched"]
    if engine == "qdrant":
        assert "Query" in pair.calls.seen


def test_what_is_in_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["index", "info", "--hubness"], ["index", "models"], ["describe", "org/m2"]):
        rest, over_grpc = both(pair, tmp_path, monkeypatch, capsys, *command)
        assert steady(rest) == steady(over_grpc) and rest
    for index in (pair.rest, pair.grpc):
        assert run(["index", "verify", "--index", index]) == 0


def test_writing_copying_and_going_back(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    copied = pair.grpc.replace("/zoo?", "/copied?")
    assert run(["index", "copy", pair.rest, copied]) == 0
    with IndexWriter(remote.index_folder(copied)) as writer:
        put_model(writer, "org/new", ["cat", "boat"], seed=77)
        put_model(writer, "org/m0", ["dog"], seed=78, revision="r2")
        writer.finish()
    assert run(["index", "verify", "--index", copied]) == 0
    assert run(["index", "copy", copied, str(tmp_path / "back")]) == 0
    capsys.readouterr()
    found = []
    for index in (copied, str(tmp_path / "back")):
        assert run(["search", "cat", "dog", "-k", "60", "--index", index, "--format", "json"]) == 0
        found.append(steady(json.loads(capsys.readouterr().out)))
    assert found[0] == found[1]
    assert "org/new" in json.dumps(found[0])
    shutil.rmtree(tmp_path / "back")
