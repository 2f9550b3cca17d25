"""Candidates from a graph that a server has really built, over HTTP: what it finds, misses and says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import models as qm

from engine.index import Index
from engine.joint_making import MakingSettings, draw_names, make_candidates, update_candidates
from engine.joint_recall import JointRecall
from engine.remote import Remote
from engine.scan import top_k
from engine.store import joint as module
from engine.store.joint import need_joint
from engine.writer import IndexWriter
from query.cli.candidates import candidates
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.support.joint_index import fingerprint, joint_of, new_index, store_of
from tests.support.servers import server_addresses
from tests.support.small_index import encode, put_model

MODELS, OUTPUTS = 20, 100
SETTINGS = MakingSettings(rank=24, concepts=400, held_out=30, storage="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder of an index of 2,000 outputs, which the server has in a graph: it makes one of few, too."""
    root = tmp_path_factory.mktemp("graph")
    real = module._options

    def options(*given: Any) -> dict[str, Any]:
        made = real(*given)
        made["vectors_config"]["joint"].hnsw_config.full_scan_threshold = 10  # kB, the least
        return {**made, "optimizers_config": qm.OptimizersConfigDiff(indexing_threshold=100, default_segment_number=1)}

    with pytest.MonkeyPatch.context() as patch, server_addresses(root / "server") as addresses:
        patch.setenv("HUBHOUND_DATA", str(root / "data"))
        patch.setattr(module, "_options", options)
        folder = new_index(addresses, root)
        rng = np.random.default_rng(0)
        with IndexWriter(folder) as writer:
            for number in range(MODELS):
                words = [f"meaning {i}" for i in rng.integers(0, 700, OUTPUTS)]
                put_model(writer, f"org/m{number:02d}", words, seed=number)
        make_candidates(folder, SETTINGS, encode=encode)
        yield folder


def asked(folder: Path) -> Any:
    """The concepts that recall was measured with."""
    index = Index(folder)
    held_out, _ = draw_names(index, index.background().names, SETTINGS)
    return index.describe_texts(held_out, encode)


def scanned(folder: Path, k: int) -> list[set[tuple[str, int]]]:
    """The exact best for each of them, from the whole index."""
    snapshot = Index(folder).snapshot()
    found = top_k(snapshot.arrays, asked(folder), k, "whitened", kernel="numpy")
    names = [model.repo for model in snapshot.models]
    places = [np.searchsorted(snapshot.starts, rows, side="right") - 1 for rows, _ in found]
    return [
        {(names[place], int(snapshot.output[row])) for place, row in zip(of, rows, strict=True)}
        for of, (rows, _) in zip(places, found, strict=True)
    ]


def shares(folder: Path, k: int, limit: int, breadth: int, exact: bool = False) -> float:
    """Recall at k by hand."""
    joint = joint_of(folder)
    vectors = joint.code.encode_concepts(asked(folder))
    found = [{(hit.repo, hit.output) for hit in joint.candidates(v, limit, breadth, exact)} for v in vectors]
    return float(np.mean([len(true & some) / k for true, some in zip(scanned(folder, k), found, strict=True)]))


def test_all_outputs_are_in_the_graph_and_recall_was_measured_with_it(folder: Path) -> None:
    recall = JointRecall.read(folder)
    assert recall is not None
    assert recall.outputs == recall.in_graph == MODELS * OUTPUTS
    assert joint_of(folder).in_graph() == MODELS * OUTPUTS
    assert recall.recall["10"] == pytest.approx(shares(folder, 10, 100, recall.breadth), abs=1e-4)
    assert recall.recall["100"] == pytest.approx(shares(folder, 100, 500, recall.breadth), abs=1e-4)
    assert recall.sufficient


def test_it_is_the_graph_that_answers(folder: Path) -> None:
    """Of the ten nearest by the code a narrow search misses some, a wide one none: comparing all never would."""
    joint = joint_of(folder)
    vectors = joint.code.encode_concepts(asked(folder))

    def missed(breadth: int) -> int:
        return sum(
            len(
                {(h.repo, h.output) for h in joint.candidates(v, 5, 5, exact=True)}
                - {(h.repo, h.output) for h in joint.candidates(v, 5, breadth)}
            )
            for v in vectors
        )

    assert missed(1) > 0
    assert missed(512) == 0


def test_searches_find_what_the_scan_finds(folder: Path) -> None:
    index, store = Index(folder), store_of(folder)
    joint = need_joint(folder, store, fingerprint(folder))
    request = SearchRequest(concepts=("meaning 3", "meaning 77", "meaning 500"), k=10)
    answer = ServedSearcher(index, store, encode, finder=joint.find, engine="candidates").search(request)
    expected = Searcher(index, encode).search(request)
    assert [result.model_dump() for result in answer.results] == [result.model_dump() for result in expected.results]
    assert answer.candidates == 100  # of 2,000


def test_the_command_says_how_many_are_in_the_graph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New outputs are searched one by one until the server takes them up."""
    with IndexWriter(folder) as writer:
        put_model(writer, "org/new", ("meaning 3", "meaning 5"), seed=99)
    address = str(Remote.of(folder).address)  # type: ignore[union-attr]
    given = ["--index", address]
    shown = json.loads(CliRunner().invoke(candidates, [*given, "--format", "json"], catch_exceptions=False).stdout)
    assert (shown["index"], shown["outputs"], shown["in_graph"]) == (address, 2000, 2000)
    assert (shown["missing"], shown["stale"], shown["now"]) == (0, 0, {"outputs": 2002, "in_graph": 2000})
    result = CliRunner().invoke(candidates, given, catch_exceptions=False)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["outputs", "now", "2,002"] in rows
    assert rows.count(["of", "them", "in", "the", "graph", "2,000"]) == 2
    assert "2 outputs are not in the graph yet: the server compares them one by one" in " ".join(result.stderr.split())
    joint = joint_of(folder)
    (vector,) = joint.code.encode_concepts(Index(folder).describe_texts(["meaning 5"], encode))
    assert ("org/new", 1) in {(hit.repo, hit.output) for hit in joint.candidates(vector, 100, 512)}
    with IndexWriter(folder) as writer:
        writer.remove_model("org/new")
    assert update_candidates(folder) == (0, 0)
    assert joint.count() == 2000
