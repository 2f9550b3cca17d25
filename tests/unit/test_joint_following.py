"""Candidates of an index that changes: what they miss is known, and brought in without making them anew."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models as qm

from engine.calibration import Background, calibrate
from engine.errors import IndexUnusableError, InputError
from engine.index import Index, describe_background
from engine.joint import JointCode, take
from engine.joint_making import catch_up, drop_candidates, make_candidates, update_candidates
from engine.joint_recall import CODE_FILE
from engine.store.joint import JointCollection, open_joint
from engine.writer import IndexWriter
from query import served
from query.request import SearchRequest
from query.served import choose_engine
from tests.support.joint_index import SETTINGS, fill, fingerprint, joint_of, new_index, outputs_in, store_of
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import ANIMALS, THINGS, encode, probe_embeddings, put_model

REQUEST = SearchRequest(concepts=("cat",))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This machine's working folders; ``auto`` would take candidates for the smallest indexes."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(root))
        patch.setattr(served, "SCAN_UP_TO", 3)
        patch.setattr(served, "GRAPH_FROM", 3)
        yield root


def with_candidates(addresses: Addresses, scratch: Path) -> Path:
    folder = fill(new_index(addresses, scratch))
    make_candidates(folder, SETTINGS, encode=encode)
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    return folder


@pytest.fixture
def folder(addresses: Addresses, data: Path, tmp_path: Path) -> Path:
    """Working folder of an index with candidates."""
    return with_candidates(addresses, tmp_path)


@pytest.fixture(scope="module")
def shared(addresses: Addresses, data: Path) -> Path:
    """The same for tests that leave it as it was."""
    return with_candidates(addresses, data)


def other_background() -> Background:
    return describe_background([f"new {i}" for i in range(60)], 10, probe_embeddings(), encode)


def recalibrate(folder: Path, background: Background) -> None:
    with IndexWriter(folder) as writer:
        writer.set_background(background, "test")
        writer.recalibrate()


def there_and_back(folder: Path) -> None:
    """Another background for a while, in which a model comes, one is replaced and one goes."""
    first = Index(folder).background()
    recalibrate(folder, other_background())
    with IndexWriter(folder) as writer:
        put_model(writer, "late/model", ANIMALS, seed=5)
        put_model(writer, "org/things", THINGS, revision="r2", seed=6)
        writer.remove_model("org/animals")
    recalibrate(folder, first)


def expected(folder: Path) -> set[tuple[str, str, int]]:
    store = store_of(folder)
    tables = list(store.iter_outputs(store.models()))
    return {(table.repo, table.revision, output) for table in tables for output in table.output.tolist()}


def test_candidates_of_a_background_that_came_back_are_incomplete_and_completed_without_being_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = JointCode.load(folder / CODE_FILE).fingerprint
    kept = outputs_in(joint_of(folder))
    assert choose_engine("auto", Index(folder), REQUEST) == "candidates"
    assert joint_of(folder).joined.missing() == 0
    there_and_back(folder)
    # As many outputs as before: four went and four came, so that a count says nothing.
    assert store_of(folder).count_outputs() == joint_of(folder).count() == 14
    joint = joint_of(folder)
    assert {model.repo for model in joint.joined.missing_models()} == {"late/model", "org/things"}
    assert (joint.joined.missing(), joint.joined.share()) == (2, pytest.approx(1 / 3))
    assert choose_engine("auto", Index(folder), REQUEST) == "qdrant"
    assert choose_engine("candidates", Index(folder), REQUEST) == "candidates"
    put: list[str] = []
    monkeypatch.setattr(
        JointCollection,
        "put_encoded",
        lambda self, encoded, real=JointCollection.put_encoded: (
            put.extend(t.repo for t, _ in encoded),
            real(self, encoded),
        ),
    )
    assert update_candidates(folder) == (7, 7)  # four outputs of late/model and three of org/things@r2
    assert sorted(put) == ["late/model", "org/things"]
    joint = joint_of(folder)
    assert (joint.code.fingerprint, joint.joined.missing()) == (code, 0)
    assert outputs_in(joint) == expected(folder) != kept
    assert choose_engine("auto", Index(folder), REQUEST) == "candidates"
    assert update_candidates(folder) == (0, 0)
    assert len(put) == 2


def vectors_in(folder: Path, repo: str) -> dict[tuple[str, int], np.ndarray]:
    """Stored vectors of a model's outputs, by revision and output."""
    store = store_of(folder)
    where = qm.Filter(must=[qm.FieldCondition(key="repo", match=qm.MatchValue(value=repo))])
    found, _ = store.client.scroll(f"{store.name}_joint", where, limit=100, with_vectors=True)
    return {(one.payload["revision"], one.payload["output"]): np.array(one.vector["joint"]) for one in found}  # type: ignore[index, call-overload]


def test_a_writer_keeps_them_complete(folder: Path) -> None:
    with IndexWriter(folder) as writer:
        put_model(writer, "org/new", ("owl", "cat"), seed=5)
        put_model(writer, "org/things", THINGS, revision="r2", seed=6)
        writer.remove_model("org/animals")
    joint = joint_of(folder)
    assert (joint.joined.missing(), joint.joined.share()) == (0, 1.0)
    assert outputs_in(joint) == expected(folder)


def test_a_writer_that_changes_the_background_puts_nothing_into_candidates_of_the_former(folder: Path) -> None:
    """Its vectors would be of other constants, and counted as right when the former background is back."""
    first = Index(folder).background()
    with IndexWriter(folder) as writer:
        writer.set_background(other_background(), "test")
        writer.recalibrate()
        put_model(writer, "late/model", ANIMALS, seed=5)
        writer.set_background(first, "test")
        writer.recalibrate()
        put_model(writer, "later/model", ANIMALS, seed=6)
    assert [model.repo for model in joint_of(folder).joined.missing_models()] == ["late/model"]
    assert vectors_in(folder, "late/model") == {}
    assert update_candidates(folder) == (4, 0)


@pytest.mark.parametrize("how", ["dropped", "made anew", "made anew with other numbers"])
def test_a_writer_goes_on_when_the_candidates_that_it_knows_are_no_more(folder: Path, how: str) -> None:
    with IndexWriter(folder) as writer:
        if how == "dropped":
            drop_candidates(folder)
        else:
            rank = 16 if how == "made anew" else 8
            make_candidates(folder, dataclasses.replace(SETTINGS, rank=rank, seed=7), encode=encode)
        put_model(writer, "org/things", THINGS, revision="r2", seed=6)
        put_model(writer, "late/model", ANIMALS, seed=5)
        writer.remove_model("org/animals")
    assert {model.repo for model in store_of(folder).models()} == {"late/model", "org/things", "zoo/both"}
    if how == "dropped":
        assert not store_of(folder).client.collection_exists(f"{store_of(folder).name}_joint")
        return
    joint = joint_of(folder)
    assert {model.repo for model in joint.joined.missing_models()} == {"late/model", "org/things"}
    assert joint.joined.share() == pytest.approx(1 / 3)
    update_candidates(folder)
    assert outputs_in(joint) == expected(folder)
    right = joint.code.encode_outputs(next(store_of(folder).iter_outputs([store_of(folder).model("late/model")])))  # type: ignore[list-item]
    stored = vectors_in(folder, "late/model")
    np.testing.assert_allclose([stored["r1", output] for output in range(4)], right, rtol=2e-3, atol=2e-3)  # float16


def test_vectors_are_of_the_constants_of_the_code_whatever_the_server_has(folder: Path) -> None:
    """As while another background is being brought in, or after that was given up."""
    first, other = Index(folder).background(), other_background()
    store = store_of(folder)
    model = store.model("zoo/both")
    assert model is not None
    table = store.outputs("zoo/both", "r1")
    assert table is not None
    right = vectors_in(folder, "zoo/both")
    wrong = table.with_calibration(calibrate(table.idx, table.z, table.anchor, other), other.fingerprint)
    store.upsert_outputs(wrong)
    store.upsert_model(model.model_copy(update={"calibration": other.fingerprint}))
    joint = joint_of(folder)
    off = np.abs(joint.code.encode_outputs(wrong) - [right["r1", i] for i in table.output.tolist()]).max()
    assert off > 0.05
    joint.remove("zoo/both")
    assert catch_up(joint, 0, first) == 3
    assert_same(vectors_in(folder, "zoo/both"), right)
    joint.remove("zoo/both")
    assert update_candidates(folder) == (7, 0)
    assert_same(vectors_in(folder, "zoo/both"), right)
    before = products(folder, joint.code)
    recall = make_candidates(folder, SETTINGS, encode=encode)  # fitted to the same constants, nearly the same code
    assert recall.recall["10"] == 1.0
    np.testing.assert_allclose(products(folder, JointCode.load(folder / CODE_FILE)), before, atol=5e-3)


def products(folder: Path, code: JointCode) -> np.ndarray:
    """What a concept's candidates are ordered by, as the collection has it."""
    vectors = vectors_in(folder, "zoo/both")
    return code.encode_concepts(Index(folder).describe_texts(["owl"], encode))[0] @ np.transpose(
        [vectors["r1", output] for output in range(7)]
    )


def assert_same(found: dict[tuple[str, int], np.ndarray], right: dict[tuple[str, int], np.ndarray]) -> None:
    assert found.keys() == right.keys()
    for key, vector in right.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-5)


def test_a_background_that_is_changed_while_they_are_made_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(joint: JointCollection, timeout_s: float, progress: object) -> int:
        with IndexWriter(folder) as writer:
            writer.set_background(other_background(), "test")
        return 0

    monkeypatch.setattr(JointCollection, "wait", build)
    with pytest.raises(IndexUnusableError, match=r"background of qdrant://.* was changed .* run again"):
        make_candidates(folder, SETTINGS, encode=encode)
    assert not store_of(folder).client.collection_exists(f"{store_of(folder).name}_joint")
    with pytest.raises(InputError, match="has no candidates"):
        joint_of(folder)


def test_a_claim_mends_what_was_removed_before_it_and_shows_what_is_removed_after(shared: Path) -> None:
    joint, store = joint_of(shared), store_of(shared)
    table = store.outputs("zoo/both", "r1")
    assert table is not None
    joint.remove_revision("zoo/both", "r0")
    assert (joint.count(), joint.joined.missing()) == (14, 0)  # of another revision, and it has none
    joint.remove_revision("zoo/both", "r1")
    assert (joint.count(), joint.joined.missing()) == (7, 1)
    joint.claim(table)
    assert (joint.count(), joint.joined.missing()) == (14, 0)
    joint.claim(dataclasses.replace(table, revision="r2"))  # whose record is not the one that stands
    assert joint.joined.missing() == 0
    joint.remove_revision("zoo/both", "r2")
    assert (joint.count(), joint.joined.missing()) == (14, 0)
    joint.remove("zoo/both", keep_revision="r1")
    assert (joint.count(), joint.joined.missing()) == (14, 0)


def test_candidates_of_another_version_are_made_again(shared: Path) -> None:
    store = store_of(shared)
    store.client.update_collection(f"{store.name}_joint", metadata={"format": 1})
    try:
        with pytest.raises(InputError, match="by another version of hubhound: make them with 'hubhound index candid"):
            joint_of(shared)
        assert open_joint(shared, store, fingerprint(shared)) is None
    finally:
        store.client.update_collection(f"{store.name}_joint", metadata={"format": 2})


def test_a_writer_that_does_not_know_of_them_leaves_them_incomplete_and_that_shows(
    addresses: Addresses, data: Path, tmp_path: Path
) -> None:
    folder = fill(new_index(addresses, tmp_path))
    with IndexWriter(folder) as writer:  # looks for candidates every 30 seconds
        make_candidates(folder, SETTINGS, encode=encode)
        put_model(writer, "org/things", THINGS, revision="r2", seed=6)
    assert joint_of(folder).joined.missing() == 1
    assert update_candidates(folder) == (3, 3)
    assert outputs_in(joint_of(folder)) == expected(folder)


def test_a_completion_that_was_killed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there_and_back(folder)
    real = JointCollection.put_encoded

    def killed(self: JointCollection, encoded: list[Any]) -> None:
        (one,) = encoded
        if one[0].repo == "late/model":
            real(self, [(take(one[0], slice(0, 2)), one[1][:2])])
            raise KeyboardInterrupt
        real(self, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(JointCollection, "put_encoded", killed)
        with pytest.raises(KeyboardInterrupt):
            update_candidates(folder)
    assert "late/model" in {model.repo for model in joint_of(folder).joined.missing_models()}
    assert choose_engine("auto", Index(folder), REQUEST) == "qdrant"
    missing, stale = update_candidates(folder)
    assert 2 <= missing <= 5  # without what was put in before
    assert stale == 7
    assert outputs_in(joint_of(folder)) == expected(folder)
    assert update_candidates(folder) == (0, 0)


def test_vectors_that_got_lost_are_found_by_their_number(shared: Path) -> None:
    """The records say that they are there; as after a backup of the server that is older for one collection."""
    store = store_of(shared)
    where = qm.Filter(must=[qm.FieldCondition(key="output", match=qm.MatchValue(value=1))])
    store.client.delete(f"{store.name}_joint", qm.FilterSelector(filter=where))
    joint = joint_of(shared)
    assert (joint.joined.missing(), joint.count()) == (0, 11)
    assert choose_engine("auto", Index(shared), REQUEST) == "qdrant"
    assert update_candidates(shared) == (3, 0)
    assert outputs_in(joint) == expected(shared)
