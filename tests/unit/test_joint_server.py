"""Candidates of an index on a server: made, measured, published, kept up to date and used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engine import joint_making
from engine import remote as module
from engine import writer as writing
from engine.errors import IndexUnusableError, InputError, StoreError
from engine.index import Index
from engine.index_files import IndexFile
from engine.joint import JointCode, take
from engine.joint_making import (
    MakingSettings,
    catch_up,
    draw_names,
    drop_candidates,
    make_candidates,
    update_candidates,
)
from engine.joint_recall import CODE_FILE, RECALL_FILE, JointRecall
from engine.prefetch import Prefetch
from engine.remote import Remote, index_folder
from engine.store.base import StoreFilter
from engine.store.joint import JointCollection, need_joint, open_joint
from engine.writer import IndexWriter
from query import served
from query.cli.candidates import candidates
from query.filters import parse_conditions
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher, choose_engine
from tests.support.joint_index import SETTINGS, fill, fingerprint, new_index, outputs_in, store_of
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import THINGS, encode, make_filled_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This machine's working folders."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def folder(addresses: Addresses, data: Path) -> Path:
    """Working folder of an index with three models, which no test changes; candidates may be there or not."""
    return fill(new_index(addresses, data))


@pytest.fixture
def fresh(addresses: Addresses, data: Path, tmp_path: Path) -> Path:
    """The same for one test, which may change it."""
    return fill(new_index(addresses, tmp_path))


def test_candidates_are_made_measured_and_seen_by_another_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall = make_candidates(folder, SETTINGS, encode=encode)
    assert recall.recall == {"10": 1.0, "100": 1.0}  # 100 candidates of 14 outputs
    assert recall.sufficient
    assert (recall.outputs, recall.concepts, recall.storage, recall.overlong) == (14, 10, "float16", 0)
    address = str(Remote.of(folder).address)  # type: ignore[union-attr]
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "other"))
    monkeypatch.setattr(module, "_STORES", {})
    there = index_folder(address)
    assert there != folder
    assert JointRecall.read(there) == recall
    joint = need_joint(there, store_of(there), fingerprint(there))
    assert joint.recall == recall
    assert joint.code.fingerprint == JointCode.load(folder / CODE_FILE).fingerprint
    assert len(outputs_in(joint)) == joint.count() == 14


def test_a_search_by_candidates_answers_as_the_scan(folder: Path) -> None:
    make_candidates(folder, SETTINGS, encode=encode)
    index, store = Index(folder), store_of(folder)
    joint = need_joint(folder, store, fingerprint(folder))
    request = SearchRequest(concepts=("cat", "lamp"), k=4)
    answer = ServedSearcher(index, store, encode, finder=joint.find, engine="candidates").search(request)
    expected = Searcher(index, encode).search(request)
    assert [result.model_dump() for result in answer.results] == [result.model_dump() for result in expected.results]
    assert (answer.exact, answer.engine, answer.candidates) == (False, "candidates", 14)
    with pytest.raises(InputError, match="--where"):
        joint.find(Prefetch(store), index.describe_texts(["cat"], encode), 0, 4, StoreFilter({}, None, None, None))


def test_candidates_have_the_order_of_margins(folder: Path) -> None:
    make_candidates(folder, MakingSettings(rank=64, concepts=400, held_out=5), encode=encode)
    index, joint = Index(folder), need_joint(folder, store_of(folder), fingerprint(folder))
    concepts = index.describe_texts(["owl"], encode)
    found = joint.candidates(joint.code.encode_concepts(concepts)[0], 2, 100)
    assert {(hit.repo, hit.output) for hit in found} == {("org/animals", 3), ("zoo/both", 3)}
    assert found == joint.candidates(joint.code.encode_concepts(concepts)[0], 2, 100, exact=True)


def test_models_that_come_and_go_are_followed(fresh: Path) -> None:
    folder = fresh
    make_candidates(folder, SETTINGS, encode=encode)
    store = store_of(folder)
    joint = need_joint(folder, store, fingerprint(folder))
    before, since = outputs_in(joint), store.newest()
    with IndexWriter(folder) as writer:
        change(writer)
    after = outputs_in(joint)
    assert after - before == {("org/new", "r1", 0), ("org/new", "r1", 1), *(("org/things", "r2", i) for i in range(3))}
    assert {repo for repo, _, _ in before - after} == {"org/animals", "org/things"}
    assert update_candidates(folder) == (0, 0)  # the writer has done it all
    joint.remove("org/new")
    table = store.outputs("org/new", "r1")
    joint.put(dataclasses.replace(table, repo="org/gone"))
    joint.put(take(table, slice(0, 1)))
    assert catch_up(joint, since, Index(folder).background()) == 3  # one put, one replaced, one removed
    assert outputs_in(joint) == after | {("org/gone", "r1", 0), ("org/gone", "r1", 1)}
    joint.remove("org/new")
    joint.remove("zoo/both")
    joint.put(take(table, slice(0, 1)))
    assert update_candidates(folder) == (8, 2)
    assert outputs_in(joint) == after


def test_models_that_come_while_the_graph_is_built_are_not_lost(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer does not know of any candidates then, and looks for them from time to time only."""
    folder = fresh
    waits = []
    with IndexWriter(folder) as writer:

        def build(joint: JointCollection, timeout_s: float, progress: object) -> int:
            change(writer)
            return 0

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            put_model(writer, "org/late", ("owl",), seed=7)

        monkeypatch.setattr(JointCollection, "wait", build)
        monkeypatch.setattr(joint_making.time, "sleep", sleep)
        make_candidates(folder, SETTINGS, encode=encode)
    assert waits == [joint_making.WRITERS_LOOK_S]
    assert waits[0] > writing._LOOK_S
    joint = need_joint(folder, store_of(folder), fingerprint(folder))
    assert {repo for repo, _, _ in outputs_in(joint)} == {"org/late", "org/new", "org/things", "zoo/both"}
    assert update_candidates(folder) == (0, 0)


def change(writer: IndexWriter) -> None:
    """A model comes, one is replaced, one goes."""
    put_model(writer, "org/new", ("owl", "cat"), seed=5)
    put_model(writer, "org/things", THINGS, revision="r2", seed=6)
    writer.remove_model("org/animals")


def sample_code() -> JointCode:
    """Fits no index."""
    names = ("mean", "start", "slope", "basis", "solver", "forward", "backward", "centre", "rotation")
    shapes = ((8,), (2,), (2, 8), (8, 1), (1, 8), (4, 4), (4, 4), (4,), (5, 5))
    arrays = {name: np.zeros(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    return JointCode("dual", "b" * 64, 2, 0.0, 1.0, **arrays)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_every_storage_can_be_made_again_in_place_of_another(folder: Path, storage: str) -> None:
    JointCollection.create(store_of(folder), sample_code(), "float32")
    settings = MakingSettings(rank=16, concepts=60, held_out=10, storage=storage)  # type: ignore[arg-type]
    recall = make_candidates(folder, settings, encode=encode)
    assert (recall.storage, recall.outputs, recall.recall["10"]) == (storage, 14, 1.0)
    store = store_of(folder)
    vectors = store.client.get_collection(f"{store.name}_joint").config.params.vectors["joint"]
    assert str(vectors.datatype.value) == ("float32" if storage == "float32" else "float16")
    assert (vectors.quantization_config is not None) == (storage == "int8")
    assert (vectors.hnsw_config.m, vectors.hnsw_config.ef_construct) == (32, 256)


def test_candidates_that_do_not_fit_are_not_used(folder: Path) -> None:
    store, background = store_of(folder), fingerprint(folder)
    drop_candidates(folder)
    assert open_joint(folder, store, background) is None
    with pytest.raises(InputError, match="has no candidates: make them with 'hubhound index candidates"):
        need_joint(folder, store, background)
    make_candidates(folder, SETTINGS, encode=encode)
    with pytest.raises(InputError, match="another background"):
        need_joint(folder, store, "0" * 64)
    kept = JointCode.load(folder / CODE_FILE)
    recall = JointRecall.read(folder)
    assert recall is not None
    recall.model_copy(update={"code": "0" * 64}).write(folder)
    with pytest.raises(InputError, match="do not belong together"):
        need_joint(folder, store, background)
    recall.write(folder)
    JointCollection.create(store, kept)  # as after a kill in the middle of filling
    with pytest.raises(InputError, match="are not those of the index"):
        need_joint(folder, store, background)
    store.client.delete_collection(f"{store.name}_joint")
    assert open_joint(folder, store, background) is None


def test_dropping_leaves_nothing(folder: Path) -> None:
    make_candidates(folder, SETTINGS, encode=encode)
    assert drop_candidates(folder)
    assert JointRecall.read(folder) is None
    store = store_of(folder)
    assert not store.client.collection_exists(f"{store.name}_joint")
    assert not [path for path in Remote.of(folder).shelf.entries(["core"]) if path.startswith("joint/")]  # type: ignore[union-attr]
    assert not drop_candidates(folder)


def test_another_projects_collection_is_left_alone(folder: Path) -> None:
    store = store_of(folder)
    drop_candidates(folder)
    store.client.create_collection(f"{store.name}_joint", vectors_config={}, sparse_vectors_config={})
    with pytest.raises(StoreError, match="another project"):
        make_candidates(folder, SETTINGS, encode=encode)
    assert store.client.collection_exists(f"{store.name}_joint")
    store.client.delete_collection(f"{store.name}_joint")


def test_what_cannot_be_done_is_said(addresses: Addresses, data: Path, tmp_path: Path) -> None:
    empty = new_index(addresses, tmp_path)
    with pytest.raises(IndexUnusableError, match="add models first"):
        make_candidates(empty, SETTINGS, encode=encode)
    embedded = make_filled_index(tmp_path / "embedded" / "zoo").folder
    with pytest.raises(InputError, match="is a folder: candidates are for an index on a Qdrant server"):
        make_candidates(embedded, SETTINGS, encode=encode)
    with pytest.raises(InputError, match="only an index on a Qdrant server"):
        need_joint(embedded, object(), "")


def test_names_are_not_in_the_background_nor_used_twice(folder: Path) -> None:
    index = Index(folder)
    held_out, fitted = draw_names(index, ["Tench", "goldfish"], MakingSettings(concepts=300, held_out=20))
    assert (len(held_out), len(fitted)) == (20, 300)
    assert len({*held_out, *fitted}) == 320
    assert not {"tench", "goldfish"} & {name.casefold() for name in (*held_out, *fitted)}
    assert len(draw_names(index, [], MakingSettings())[1]) == 2000
    for concepts, asked in ((49, 10), (60, 0), (30_000, 10)):
        with pytest.raises(InputError, match="concepts to fit to"):
            draw_names(index, [], MakingSettings(concepts=concepts, held_out=asked))


def test_the_command_says_what_was_measured(folder: Path) -> None:
    index = Index(folder)
    settings = MakingSettings(rank=16, concepts=60, held_out=10)
    held_out, fitted = draw_names(index, index.background().names, settings)
    index.embed([*held_out, *fitted], encode)  # remembered: no encoder is loaded
    drop_candidates(folder)
    address = str(Remote.of(folder).address)  # type: ignore[union-attr]
    given = ["--index", address, "--rank", "16", "--concepts", "60", "--held-out", "10"]
    result = CliRunner().invoke(candidates, [*given, "--oversampling", "2", "--format", "json"], catch_exceptions=False)
    shown = json.loads(result.stdout)
    assert (shown["recall"], shown["sufficient"], shown["oversampling"]) == ({"10": 1.0, "100": 1.0}, True, 2.0)
    result = CliRunner().invoke(candidates, given, catch_exceptions=False)
    assert "recall of the best 10" in result.stdout
    assert "the candidates are up to date" in result.stderr
    result = CliRunner().invoke(candidates, [*given, "--again", "--format", "quiet"], catch_exceptions=False)
    assert (result.stdout, result.stderr) == ("1.0000\n", "")
    low = JointRecall.read(folder)
    assert low is not None
    low.model_copy(update={"recall": {"10": 0.98}}).write(folder)
    Remote.of(folder).publish([IndexFile(RECALL_FILE, "core")])  # type: ignore[union-attr]
    result = CliRunner().invoke(candidates, [*given, "--format", "json"], catch_exceptions=False)
    assert json.loads(result.stdout)["sufficient"] is False
    assert "used only where --engine candidates asks for them" in result.stderr
    for there in (True, False):
        result = CliRunner().invoke(
            candidates, ["--index", address, "--drop", "--format", "json"], catch_exceptions=False
        )
        assert json.loads(result.stdout) == {"index": address, "dropped": there}
    result = CliRunner().invoke(candidates, ["--index", address, "--drop"], catch_exceptions=False)
    assert (result.stdout, result.stderr) == ("", "there were no candidates\n")


def test_only_candidates_of_a_high_recall_may_be_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_candidates(folder, SETTINGS, encode=encode)
    monkeypatch.setattr(served, "SCAN_UP_TO", 3)
    monkeypatch.setattr(served, "GRAPH_FROM", 13)
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    index, request = Index(folder), SearchRequest(concepts=("cat",))
    assert choose_engine("auto", index, request) == "candidates"
    filtered = SearchRequest(concepts=("cat",), where=parse_conditions(["library=timm"]))
    assert choose_engine("auto", index, filtered) == "qdrant"
    monkeypatch.setattr(served, "GRAPH_FROM", 14)
    assert choose_engine("auto", index, request) == "qdrant"
    monkeypatch.setattr(served, "GRAPH_FROM", 13)
    recall = JointRecall.read(folder)
    assert recall is not None
    recall.model_copy(update={"recall": {"10": 0.98, "100": 1.0}}).write(folder)
    assert choose_engine("auto", index, request) == "qdrant"
    assert choose_engine("candidates", index, request) == "candidates"
