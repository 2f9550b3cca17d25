"""Copies of a model in the index: who counts, what is kept, and what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engine.errors import IndexDamagedError
from engine.index import Index, describe_background
from engine.rebuild import rebuild
from engine.schema import Model, ModelState
from engine.snapshot import split_copies
from engine.verify import verify
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from tests.support.output_tables import fast_folder
from tests.support.small_index import ANIMALS, THINGS, encode, make_filled_index, make_index, put_model

A, B, C = "org/animals", "org/things", "zoo/both"  # the models of the filled index
View = dict[str, tuple[str, str | None]]


def copy(repo: str, of: str, revision: str = "c1", **facts: Any) -> Model:
    return Model(repo=repo, revision=revision, state=ModelState.COPY, copy_of=of, **facts)


def view(folder: Path) -> View:
    """What a search can show after a new snapshot: revision and original, by repository."""
    with IndexWriter(folder) as writer:
        writer.snapshot()
    snapshot = Index(folder).snapshot()
    assert len(snapshot) == sum(model.outputs for model in snapshot.models)
    return {repo: (record.revision, record.copy_of) for repo, (_, record) in snapshot.places.items()}


def found(folder: Path, concept: str = "cat") -> list[tuple[str, tuple[str, ...], float]]:
    hits = Searcher(Index(folder), encode).search(SearchRequest((concept,), 5)).results[0].outputs
    return [(hit.model, hit.copies, hit.margin) for hit in hits]


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "responses").iterdir()}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The filled index with two copies of its first model."""
    with fast_folder(tmp_path_factory.mktemp("copies")) as place:
        folder = make_filled_index(place / "zoo").folder
        with IndexWriter(folder) as writer:
            writer.put_copy(copy("b/two", A, likes=7))
            writer.put_copy(copy("a/one", A))
            writer.finish()
        yield folder


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as place:
        yield place


@pytest.fixture
def zoo(template: Path, fast: Path) -> Path:
    return shutil.copytree(template, fast / "zoo")


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "copy"},
        {"copy_of": "org/b"},
        {"state": "failed", "copy_of": "org/b"},
        {"state": "copy", "copy_of": "org/a"},
        {"state": "copy", "copy_of": "org/b", "outputs": 3},
        {"copied_revision": "r1"},
    ],
)
def test_records_that_make_no_sense(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Model.model_validate({"repo": "org/a", "revision": "r1", **facts})


def test_copies_are_in_the_snapshot_and_have_no_outputs(zoo: Path) -> None:
    snapshot = Index(zoo).snapshot()
    assert [model.repo for model in snapshot.models] == [A, B, C]
    assert {of: [c.repo for c in some] for of, some in snapshot.copies.items()} == {A: ["a/one", "b/two"]}
    record = snapshot.copies[A][1]
    assert (record.likes, record.outputs, record.copied_revision) == (7, 0, "r1")
    assert len(snapshot) == 14
    with IndexWriter(zoo) as writer:
        assert writer.store.count_outputs() == 14
        assert writer.copies(A) == list(snapshot.copies[A])
        assert writer.lost_copies() == []
    assert verify(zoo) == []


def test_a_snapshot_is_due_after_each_change(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        assert writer.snapshot(force=False) is None
        for change in (lambda: writer.put_copy(copy("new/copy", C)), lambda: writer.remove_model("new/copy")):
            change()
            writer._due = 0.0
            assert writer.snapshot(force=False) is not None


def test_snapshots_without_copies_still_open(zoo: Path) -> None:
    meta = Index(zoo).snapshot().folder / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({key: value for key, value in content.items() if key != "copies"}))
    snapshot = Index(zoo).snapshot()
    assert snapshot.copies == {}
    assert found(zoo)[0][:2] == (A, ())
    assert any("not that of the store" in problem for problem in verify(zoo))
    content["copies"][0]["copy_of"] = "no/body"
    meta.write_text(json.dumps(content))
    with pytest.raises(IndexDamagedError, match="index snapshot"):
        Index(zoo).snapshot()


def test_a_model_of_its_own_becomes_a_copy_and_loses_its_outputs(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        writer.put_copy(copy(C, B, "c9"))
        assert writer.store.count_outputs() == 7
        assert writer.store.model(C) == writer.copies(B)[0]
    assert view(zoo)[C] == ("c9", B)
    assert not any("both" in name for name in files(zoo))
    assert verify(zoo) == []


def test_a_copy_becomes_a_model_of_its_own(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        put_model(writer, "a/one", ("castle",), revision="r5", seed=6)
    assert view(zoo) | {"a/one": ("r5", None)} == view(zoo)
    assert found(zoo, "castle")[0][0] == "a/one"
    assert found(zoo)[0][:2] == (A, ("b/two",))
    assert verify(zoo) == []


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (copy("new/copy", "no/body"), "not in the index"),
        (copy("new/copy", "a/one"), "not in the index"),  # copies are never chained
        (copy("new/copy", A, copied_revision="r0"), "the index has r1"),
        (Model(repo="new/copy", revision="r1"), "not a copy"),
        (copy("new/copy", A).model_copy(update={"outputs": 4}), "no outputs"),  # which would not be readable again
        (copy("new/copy", B).model_copy(update={"repo": B}), "itself"),
    ],
)
def test_what_cannot_be_a_copy(zoo: Path, model: Model, part: str) -> None:
    before = view(zoo)
    with IndexWriter(zoo) as writer, pytest.raises(ValueError, match=part):
        writer.put_copy(model)
    assert view(zoo) == before
    assert verify(zoo) == []


def test_failures_do_not_hide_copies_unless_nobody_sees_them(zoo: Path) -> None:
    failed = {"revision": "r9", "state": ModelState.FAILED, "reason": "network"}
    with IndexWriter(zoo) as writer:
        writer.record(Model(repo="a/one", **failed))  # type: ignore[arg-type]
        assert writer.copies(A)[0].repo == "a/one"
        writer.remove_model(A)
        writer.record(Model(repo="a/one", **failed))  # type: ignore[arg-type]
        known = writer.store.model("a/one")
        assert known is not None
        assert known.state is ModelState.FAILED


def test_the_copies_of_a_removed_model_wait(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        writer.remove_model(A)
        assert writer.store.model(A) is None
        assert (
            [model.repo for model in writer.copies(A)] == ["a/one", "b/two"] == [c.repo for c in writer.lost_copies()]
        )
        assert writer.store.count_outputs() == 10
        writer.remove_model("never/there")
    assert view(zoo) == {B: ("r1", None), C: ("r1", None)}
    assert {name for name, *_ in found(zoo)} <= {B, C}
    assert files(zoo) == {"org--things@r1.npy", "zoo--both@r1.npy"}
    problems = verify(zoo)
    assert [problem.split(":")[0] for problem in problems] == ["a/one", "b/two"]
    assert all(f"a copy of {A}@r1" in problem and "add it again" in problem for problem in problems)
    with IndexWriter(zoo) as writer:  # one is probed and becomes the original, the other is found to be its copy
        put_model(writer, "b/two", ANIMALS, revision="c1", seed=1)
        writer.put_copy(copy("a/one", "b/two"))
    assert view(zoo) == {B: ("r1", None), C: ("r1", None), "b/two": ("c1", None), "a/one": ("c1", "b/two")}
    assert verify(zoo) == []


def test_copies_follow_an_original_that_answers_as_before(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        put_model(writer, A, ANIMALS, revision="r2", seed=1)
    assert view(zoo)["a/one"] == ("c1", A)
    assert found(zoo)[0][1] == ("a/one", "b/two")
    assert verify(zoo) == []


def test_copies_do_not_follow_an_original_that_answers_otherwise(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        put_model(writer, A, ANIMALS, revision="r2", seed=11)
        assert [model.repo for model in writer.lost_copies()] == ["a/one", "b/two"]
    assert view(zoo) == {A: ("r2", None), B: ("r1", None), C: ("r1", None)}
    assert len(verify(zoo)) == 2


def test_an_original_that_becomes_a_copy_takes_its_own_along(zoo: Path) -> None:
    with IndexWriter(zoo) as writer:
        put_model(writer, "new/original", ANIMALS, seed=1)
        put_model(writer, "new/other", THINGS, seed=1)
        writer.put_copy(copy(A, "new/original"))
    assert {repo: of for repo, (_, of) in view(zoo).items() if of} == dict.fromkeys(
        (A, "a/one", "b/two"), "new/original"
    )
    with IndexWriter(zoo) as writer:  # but not to one that answers otherwise
        writer.put_copy(copy("new/original", "new/other"))
    assert {repo: of for repo, (_, of) in view(zoo).items() if of} == {"new/original": "new/other"}
    assert len(verify(zoo)) == 3


def test_rebuild_and_recalibration_keep_copies(zoo: Path, fast: Path) -> None:
    with IndexWriter(zoo) as writer:
        writer.put_copy(copy("aa/first", B))  # comes before its original, which must be there first
        put_model(writer, "zz/gone", ("castle",), seed=5)
        writer.put_copy(copy("aa/lost", "zz/gone"))
        writer.remove_model("zz/gone")
        made = describe_background([f"other {i}" for i in range(40)], 5, writer.index.probe_embeddings, encode)
        writer.set_background(made, "test")
        assert writer.recalibrate() == 3
        writer.finish()
    before = view(zoo)
    assert before["aa/first"] == ("c1", B)
    target = make_index(fast / "again" / "zoo", top_r=25)
    assert rebuild(zoo, target.folder) == 3
    assert rebuild(zoo, target.folder) == 0
    assert view(target.folder) == before
    with IndexWriter(target.folder) as writer:
        assert [model.repo for model in writer.lost_copies()] == ["aa/lost"]
    assert verify(target.folder) == ["aa/lost: a copy of zz/gone@r1, which is not in the index: add it again"]


def test_splitting_by_hand() -> None:
    models = [
        Model(repo="o", revision="1"),
        copy("z", "o", copied_revision="1"),
        copy("b", "o", copied_revision="1"),
        copy("old", "o", copied_revision="0"),
        copy("unknown", "o"),
        copy("orphan", "nobody", copied_revision="1"),
        copy("chained", "b", copied_revision="c1"),
        copy("of a failure", "f", copied_revision="1"),
        Model(repo="f", revision="1", state=ModelState.FAILED),
    ]
    shown, lost = split_copies(reversed(models))
    assert {original: [model.repo for model in some] for original, some in shown.items()} == {"o": ["b", "z"]}
    assert [model.repo for model in lost] == ["chained", "of a failure", "old", "orphan", "unknown"]


class KilledError(BaseException):
    """No handler of ours may catch it."""


STEPS = ("upsert_outputs", "upsert_model", "delete_outputs", "delete_model")


def killed_at(writer: IndexWriter, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the writer before its step-th write; each of them is acknowledged, so what came before is durable."""
    count = iter(range(1000))

    def guarded(write: Callable[..., object]) -> Callable[..., object]:
        def go(*args: object, **kwargs: object) -> object:
            if next(count) == step:
                raise KilledError
            return write(*args, **kwargs)

        return go

    for name in STEPS:
        monkeypatch.setattr(writer.store, name, guarded(getattr(writer.store, name)))
    for name in ("write", "remove_others"):
        monkeypatch.setattr(writer.index.responses, name, guarded(getattr(writer.index.responses, name)))


REST: View = {B: ("r1", None), C: ("r1", None)}
BEFORE: View = REST | {A: ("r1", None), "a/one": ("c1", A), "b/two": ("c1", A)}
MADE_COPY: View = {B: ("r1", None), C: ("r1", None), A: ("c1", C)}
OPERATIONS: dict[str, tuple[Callable[[IndexWriter], None], list[View]]] = {
    # what is done, and every state that a search may see, the last one when it is finished
    "put_copy": (lambda w: w.put_copy(copy(B, C)), [BEFORE, BEFORE | {B: ("c1", C)}]),
    "put_copy of an original": (lambda w: w.put_copy(copy(A, C)), [BEFORE, MADE_COPY]),
    "remove_model": (lambda w: w.remove_model(A), [BEFORE, REST]),
    "remove_model of a copy": (
        lambda w: w.remove_model("a/one"),
        [BEFORE, REST | {A: ("r1", None), "b/two": ("c1", A)}],
    ),
    "put of a copy": (
        lambda w: put_model(w, "a/one", ("castle",), revision="r5"),
        [BEFORE, BEFORE | {"a/one": ("r5", None)}],
    ),
    "put of the same original": (
        lambda w: put_model(w, A, ANIMALS, revision="r2", seed=1),
        [
            BEFORE,
            REST | {A: ("r1", None), "b/two": ("c1", A)},
            REST | {A: ("r1", None)},
            BEFORE | {A: ("r2", None)},
        ],
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_between_any_two_steps_leaves_a_consistent_index(template: Path, fast: Path, name: str) -> None:
    operation, allowed = OPERATIONS[name]
    seen: list[View] = []
    for step in range(20):
        folder = shutil.copytree(template, fast / str(step) / "zoo")
        with pytest.MonkeyPatch.context() as patch, IndexWriter(folder) as writer:
            killed_at(writer, step, patch)
            try:
                operation(writer)
                break
            except KilledError:
                pass
        seen.append(view(folder))
        assert seen[-1] in allowed, f"killed at step {step}"
        assert all(hit[0] in seen[-1] and set(hit[1]) <= set(seen[-1]) for hit in found(folder))
        for problem in verify(folder):
            assert "of no model" in problem or "which is not in the index" in problem, problem
        with IndexWriter(folder) as writer:
            operation(writer)  # as the next run does
            assert writer.store.count_outputs() == sum(model.outputs for model in writer.store.models())
        assert view(folder) == allowed[-1]
        lost = {"a/one", "b/two"} - set(allowed[-1]) - ({"a/one"} if name == "remove_model of a copy" else set())
        assert {problem.split(":")[0] for problem in verify(folder)} == lost
        with IndexWriter(folder) as writer:
            claimed = {f"{m.repo.replace('/', '--')}@{m.revision}.npy" for m in writer.store.models() if m.outputs}
        assert files(folder) == claimed
        shutil.rmtree(folder)
    else:
        pytest.fail("it never came to an end")
    assert len(seen) >= 3
    assert seen[0] == BEFORE
    if name != "put of the same original":
        assert allowed[-1] in seen, "it counts before it is tidied up"


def test_searching_a_snapshot_whose_original_has_gone_meanwhile(zoo: Path) -> None:
    """A reader keeps its generation: it must not fall over what the writer has done since."""
    searcher = Searcher(Index(zoo), encode)
    before = searcher.search(SearchRequest(like="a/one#0")).results
    with IndexWriter(zoo) as writer:
        writer.remove_model(A)
        writer.finish()
    after = searcher.search(SearchRequest(like="a/one#0")).results
    assert [hit.model for hit in after[0].outputs] == [hit.model for hit in before[0].outputs]
    margins = [[hit.margin for hit in one[0].outputs] for one in (before, after)]
    np.testing.assert_allclose(*margins, atol=2.0)  # the archived responses are gone, too: what is left is coarser
