"""The same commands on an embedded index and on one on a server: the same answers."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine import remote
from engine.index import Index
from engine.remote import index_folder
from query.cli.main import run
from query.demo.training import World
from tests.support.servers import server_addresses
from tests.support.stores import URL
from tests.support.tiny_vlm import PASSES, save_vlm, write_photos

pytestmark = pytest.mark.slow

MODELS = 4
TOLERANCE = 1e-5
RUN_TWICE = 1e-4
"""Where models were run for each index: in what batches is chosen by time, so that last digits differ."""
VOLATILE = {"seconds", "milliseconds", "bytes", "created_at", "indexed_at", "generation", "folder", "index", "crawl"}
"""What two runs of the same command on the same index do not share."""


@dataclass(frozen=True)
class Pair:
    """Two indexes that are told the same, made of the same answers of models.

    Attributes:
        edge: A folder, filled by commands.
        server: Its copy on a server.
        filled: Another one on the server, filled by the same commands over gRPC.
        root: For files.
        models: Folders of the models.
    """

    edge: str
    server: str
    filled: str
    root: Path
    models: tuple[Path, ...]

    def each(self) -> tuple[str, str]:
        return self.edge, self.server


@pytest.fixture(scope="module")
def pair(drawn_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    environment = pytest.MonkeyPatch()
    environment.setenv("HUBHOUND_DATA", str(root / "data"))
    environment.setenv("HUBHOUND_DEVICE", "cpu")
    models = tuple(sorted((drawn_world.models / "tiny").iterdir())[:MODELS])
    if URL is None:
        environment.setenv("HUBHOUND_QDRANT_API_KEY", "a-key")
    with server_addresses(root / "qdrant", api_key="a-key", grpc=True) as addresses:
        made = Pair(str(root / "zoo"), addresses(), addresses(grpc=True), root, models)
        for index in (made.edge, made.filled):
            create = ["index", "create", "--index", index, "--probes", str(drawn_world.probes)]
            encoder = f"open_clip:local-dir:{drawn_world.encoder}"
            assert run([*create, "--encoder", encoder, "--background", str(drawn_world.background)]) == 0
            # From here on another machine, which has to fetch what it needs.
            environment.setenv("HUBHOUND_DATA", str(root / "other"))
            environment.setattr(remote, "_STORES", {})
            cache = ["--cache", str(root / "cache")]
            assert run(["index", "add", "--index", index, *cache, *map(str, models[:-1])]) == 0
            crawled = root / f"hub-{len(index)}" / "tiny"  # the last one is crawled
            shutil.copytree(models[-1], crawled / models[-1].name)
            crawl = ["crawl", "--index", index, "--source", str(crawled.parent), "--once", *cache]
            assert run([*crawl, "--device", "cpu"]) == 0
        assert run(["index", "copy", made.edge, made.server]) == 0
        yield made
    environment.undo()


Ask = Callable[..., tuple[Any, Any]]


@pytest.fixture
def ask(pair: Pair, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a command on both and reads their JSON."""

    def both(*command: str, form: bool = True) -> tuple[Any, Any]:
        answers = []
        for index in pair.each():
            capsys.readouterr()
            assert run([*command, "--index", index, *(["--format", "json"] if form else [])]) == 0
            out = capsys.readouterr().out
            answers.append(json.loads(out) if form else out)
        return answers[0], answers[1]

    return both


def agree(one: Any, other: Any, where: str = "", tolerance: float = TOLERANCE) -> None:
    """Two answers say the same: texts and whole numbers exactly, others within the tolerance."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for key in one.keys() - VOLATILE:
            agree(one[key], other[key], f"{where}.{key}", tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            agree(mine, theirs, f"{where}[{i}]", tolerance)
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance), (where, one, other)
    else:
        assert one == other, where


def concepts(world: World) -> list[str]:
    return world.queries.read_text().split()[:8]


def test_what_the_same_commands_have_made(pair: Pair, drawn_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for index in (pair.edge, pair.filled):
        for command in (["search", *concepts(drawn_world)], ["index", "models"], ["crawl", "status"]):
            capsys.readouterr()
            assert run([*command, "--index", index, "--format", "json"]) == 0
            found = json.loads(capsys.readouterr().out)
            answers.append(found["models"] if command[0] == "crawl" else found)
        assert run(["index", "verify", "--index", index]) == 0
    agree(answers[:3], answers[3:], tolerance=RUN_TWICE)


def test_searches(ask: Ask, drawn_world: World, pair: Pair) -> None:
    few = concepts(drawn_world)
    name = f"tiny/{pair.models[0].name}"
    probe = str(next(drawn_world.probes.iterdir()))
    for command in (
        [*few, "--explain", "-k", "20"],
        [*few[:3], "--level", "model"],
        [*few[:3], "--level", "model", "--require", "any"],
        ["--like", f"{name}#1"],
        ["--like", name, "--level", "model"],
        ["--images", probe],
        [few[0], "--evidence", "labels"],
        [few[0], "--evidence", "both"],
        [few[0], "--where", "library=timm", "--where", "label=yes"],
        [few[0], "--method", "probelog"],
    ):
        edge, server = ask("search", *command)
        agree(edge, server)
        assert edge["searched"]


def test_what_is_in_it(ask: Ask, pair: Pair) -> None:
    for command in (["index", "info", "--hubness"], ["index", "models"]):
        edge, server = ask(*command)
        if command[1] == "info":
            there = server.pop("server")
            assert (there["outputs"], there["models"]) == (server["outputs"], MODELS)
        agree(edge, server)
    assert len(edge)
    edge, server = ask("index", "models", form=True)
    assert [model["repo"] for model in server] == [f"tiny/{folder.name}" for folder in pair.models]
    for index in pair.each():
        assert run(["index", "verify", "--index", index]) == 0
        assert run(["index", "snapshot", "--index", index]) == 0
    # Probes: in the user's folder for the embedded index, kept by the server for the other.
    assert Index(index_folder(pair.edge)).manifest.probes.folder is not None
    assert Index(index_folder(pair.server)).manifest.probes.folder is None


def test_names_for_outputs(ask: Ask, drawn_world: World, pair: Pair) -> None:
    words = pair.root / "words.txt"
    words.write_text("\n".join(drawn_world.queries.read_text().split()))
    for model in (f"tiny/{pair.models[0].name}", str(pair.models[1])):
        agree(*ask("describe", model, "--vocabulary", str(words), "-k", "3"), tolerance=RUN_TWICE)


def test_measuring(ask: Ask, drawn_world: World, pair: Pair) -> None:
    labels = json.loads(drawn_world.labels.read_text())
    truth = pair.root / "truth.json"
    stands_for = {
        f"tiny/{folder.name}": [
            {"index": i, "label": entry["label"], "class": entry["concept"]}
            for i, entry in enumerate(labels[f"tiny/{folder.name}"])
        ]
        for folder in pair.models
    }
    truth.write_text(json.dumps(stands_for))
    edge, server = ask(
        "eval", "retrieval", "--truth", str(truth), "--methods", "whitened,probelog", "--tasks", "output"
    )
    agree(edge, server)


def test_tasks_profiles_and_recommendations(ask: Ask, pair: Pair) -> None:
    names = [save_vlm(pair.root / "vlm" / name, seed) for seed, name in enumerate(("one", "two"))]
    photos = [write_photos(pair.root / "photos" / task, 3, seed) for seed, task in enumerate(("cars", "pets"))]
    for task in ("cars", "pets"):
        ask("task", "add", task, "--images", str(pair.root / "photos" / task), form=False)
    agree(*ask("task", "list"))
    with (pair.root / "known.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "pretrained", "dataset", "acc1"])
        for i, name in enumerate(names):
            model, _, pretrained = name.partition(" ")
            rows.writerows([model, pretrained, task, 0.3 + 0.2 * i] for task in ("cars", "pets"))
    ask("performance", "import", str(pair.root / "known.csv"))
    agree(*ask("performance", "list"))
    ask("profile", *names, *PASSES, form=False)
    agree(*ask("recommend", "--images", str(photos[0][0]), "--device", "cpu"), tolerance=RUN_TWICE)
    ask("performance", "remove", "--task", "cars", form=False)
    ask("task", "remove", "cars", form=False)
    edge, server = ask("task", "list")
    agree(edge, server)
    assert len(json.dumps(server)) > 2


def test_calibrating_and_rebuilding(ask: Ask, drawn_world: World, pair: Pair) -> None:
    phrases = pair.root / "phrases.txt"
    phrases.write_text("\n".join(drawn_world.background.read_text().split("\n")[:150]))
    ask("index", "calibrate", "--background", str(phrases), form=False)
    few = concepts(drawn_world)
    agree(*ask("search", *few))
    edge, server = ask("index", "info")
    assert edge["manifest"]["background"] == server["manifest"]["background"]
    # Rebuilt from the embedded one onto the server, and from the server into a folder.
    other = f"{pair.server}r"
    assert run(["index", "rebuild", "--index", pair.edge, "--to", other, "--top-r", "30"]) == 0
    assert run(["index", "rebuild", "--index", pair.server, "--to", str(pair.root / "back"), "--top-r", "30"]) == 0
    for index in (str(pair.root / "back"), other):
        assert run(["index", "verify", "--index", index]) == 0
    assert Index(index_folder(other)).manifest.top_r == 30


def test_a_second_creation_is_refused(pair: Pair, drawn_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for index in pair.each():
        create = ["index", "create", "--index", index, "--probes", "dead-leaves:100"]
        assert run([*create, "--encoder", f"open_clip:local-dir:{drawn_world.encoder}"]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "there is an index at" in lines[0]
