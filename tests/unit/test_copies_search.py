"""Copies in answers: one hit with its copies, filters on any of them, and questions about a copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.index import Index
from engine.schema import Model, ModelState
from engine.writer import IndexWriter
from query.answers import SearchAnswer, also
from query.cli.main import run
from query.describe import Describer, DescribeRequest
from query.filters import Filter, parse_conditions
from query.lookup import find_model, find_record, near_models
from query.panels import panels
from query.request import SearchRequest
from query.rerank import Reranker, RerankSettings
from query.search import Searcher
from tests.support.output_tables import fast_folder
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    encode,
    encode_images,
    make_filled_index,
    put_model,
    write_example,
)
from tests.unit.test_rerank import PretendProfiler

A = "org/animals"  # timm, mit, 1000 parameters, 50 downloads
COPIES: dict[str, dict[str, Any]] = {
    "b/copy": {"library": "timm", "licence": "apache-2.0", "parameters": 1000, "downloads": 9},
    "c/copy": {"library": "transformers", "licence": "apache-2.0", "downloads": 900},
    "a/copy": {"library": "onnx"},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with fast_folder(tmp_path_factory.mktemp("x")) as place:
        made = make_filled_index(place / "zoo")
        made.embed([*ANIMALS, *THINGS], encode)
        with IndexWriter(made.folder) as writer:
            for repo, facts in COPIES.items():
                record = {"revision": f"r-{repo}", "state": ModelState.COPY, "copy_of": A, **facts}
                writer.put_copy(Model.model_validate({"repo": repo, **record}))
            writer.finish()
        yield Index(made.folder)


@pytest.fixture(scope="module")
def searcher(index: Index) -> Searcher:
    return Searcher(index, encode, encode_images=encode_images)


def ask(searcher: Searcher, *where: str, concept: str = "cat", k: int = 100, **options: Any) -> SearchAnswer:
    return searcher.search(SearchRequest((concept,), k, where=parse_conditions(where), **options))


def shown(answer: SearchAnswer) -> dict[str, tuple[str, ...]]:
    return {hit.model: hit.copies for hit in answer.results[0].hits}


def test_one_hit_with_its_copies(searcher: Searcher) -> None:
    answer = ask(searcher)
    assert shown(answer) == {A: ("a/copy", "b/copy", "c/copy"), "org/things": (), "zoo/both": ()}
    assert answer.searched == 14
    hits = answer.to_json()["results"][0]["hits"]  # type: ignore[index]
    assert {hit["model"]: hit.get("copies") for hit in hits} == {
        A: ["a/copy", "b/copy", "c/copy"],
        "org/things": None,
        "zoo/both": None,
    }


@pytest.mark.parametrize(
    ("where", "model", "copies"),
    [
        (["library=timm"], A, ("b/copy",)),
        (["licence=apache-2.0"], "b/copy", ("c/copy",)),
        (["library=onnx"], "a/copy", ()),
        (["library=transformers", "library=onnx"], "a/copy", ("c/copy",)),
        (["min-downloads=51"], "c/copy", ()),
        (["min-downloads=9", "max-parameters=1k"], A, ("b/copy",)),
        (["model=?/copy"], "a/copy", ("b/copy", "c/copy")),
        (["model=C/COPY"], "c/copy", ()),
        (["library=timm", "licence=apache-*"], "b/copy", ()),  # by one model, not by two together
        (["label=yes", "library=onnx"], "a/copy", ()),
    ],
)
def test_a_filter_that_any_copy_satisfies(
    searcher: Searcher, where: list[str], model: str, copies: tuple[str, ...]
) -> None:
    answer = ask(searcher, *where)
    whole = ask(searcher).results[0].outputs
    assert shown(answer)[model] == copies
    family = {A, *COPIES}
    assert len(family & set(shown(answer))) == 1
    hits = [hit for hit in answer.results[0].outputs if hit.model in family]
    assert [(h.output, h.label, h.margin) for h in hits] == [
        (h.output, h.label, h.margin) for h in whole if h.model == A
    ]
    assert {hit.revision for hit in hits} == {"r1" if model == A else f"r-{model}"}


def test_a_filter_that_nobody_satisfies(searcher: Searcher) -> None:
    assert ask(searcher, "library=timm", "min-downloads=900").searched == 0  # only both together would


def test_filters_agree_with_looking_at_every_model(tmp_path: Path) -> None:
    """Random facts and conditions against the definition, model by model."""
    rng = np.random.default_rng(3)

    def facts() -> dict[str, Any]:
        some = {
            "library": rng.choice(["timm", "Transformers", "onnx"]),
            "licence": rng.choice(["mit", "MIT", "apache-2.0"]),
            "architecture": rng.choice(["resnet18", "resnet50", "vit_[b]"]),
            "parameters": int(rng.integers(1, 2_000_000)),
            "downloads": int(rng.integers(0, 5000)),
        }
        return {key: value for key, value in some.items() if rng.random() < 0.7}

    with fast_folder(tmp_path) as place:
        folder = make_filled_index(place / "zoo").folder
        with IndexWriter(folder) as writer:
            for i in range(12):
                put_model(writer, f"org/m{i}", THINGS[: 1 + i % 3], seed=i, **facts())
                for j in range(i % 4):
                    record = {"revision": "c", "state": "copy", "copy_of": f"org/m{i}", **facts()}
                    writer.put_copy(Model.model_validate({"repo": f"copy{j}/m{i}", **record}))
            snapshot = writer.snapshot()
        assert snapshot is not None

        def fits(model: Model, key: str, value: str) -> bool:
            if key == "max-parameters":
                return model.parameters is not None and model.parameters <= float(value)
            if key == "min-downloads":
                return model.downloads is not None and model.downloads >= float(value)
            own = {"model": model.repo}.get(key) or getattr(model, key, None)
            return own is not None and fnmatchcase(own.lower(), value.lower())

        values = {
            "model": ["*/m1*", "copy?/*", "org/m3", "[x]"],
            "library": ["timm", "transformers", "*"],
            "licence": ["mit", "apache*", "gpl"],
            "architecture": ["resnet??", "RESNET18", "vit_[[]b]"],
            "max-parameters": ["500000", "1e6"],
            "min-downloads": ["0", "2500"],
        }
        filter_, families = Filter(snapshot), 0
        for _ in range(300):
            keys = rng.choice(list(values), size=rng.integers(1, 5))
            pairs = [(str(key), str(rng.choice(values[str(key)]))) for key in keys]
            found = filter_.allowed(parse_conditions([f"{key}={value}" for key, value in pairs]))
            assert found.rows is not None
            for place_, model in enumerate(snapshot.models):
                family = (model, *snapshot.copies.get(model.repo, ()))
                expected = tuple(
                    one
                    for one in family
                    if all(any(fits(one, k, v) for k, v in pairs if k == key) for key in dict(pairs))
                )
                assert found.holders(place_) == expected
                start, stop = snapshot.starts[place_ : place_ + 2]
                assert (found.rows[start:stop] == bool(expected)).all()
                families += len(expected) > 1
        assert families > 100


def test_models_that_cover_a_list(searcher: Searcher) -> None:
    def models(*where: str) -> dict[str, tuple[str, ...]]:
        request = SearchRequest(("cat", "dog"), 5, where=parse_conditions(where), level="model")
        answer = searcher.search(request)
        assert all(("copies" in hit) == bool(hit.get("copies")) for hit in answer.to_json()["results"][0]["hits"])  # type: ignore[index]
        return {hit.model: hit.copies for hit in answer.results[0].models}

    assert models()[A] == ("a/copy", "b/copy", "c/copy")
    assert models("library=onnx") == {"a/copy": ()}


def test_with_labels_as_witnesses(searcher: Searcher) -> None:
    for evidence in ("labels", "both"):
        assert shown(ask(searcher, "library=onnx", evidence=evidence)) == {"a/copy": ()}


def test_a_copy_can_be_asked_about(searcher: Searcher) -> None:
    own = searcher.search(SearchRequest(like=f"{A}#2", k=5))
    asked = searcher.search(SearchRequest(like="b/copy@r-b/copy#2", k=5))
    assert asked.results[0].hits == own.results[0].hits
    assert not {A, *COPIES} & set(shown(asked))
    assert asked.to_json()["results"][0]["query"] == {"like": "b/copy@r-b/copy#2", "copy_of": A}  # type: ignore[index]
    assert own.to_json()["results"][0]["query"] == {"like": f"{A}#2"}  # type: ignore[index]
    whole = searcher.search(SearchRequest(like="b/copy", level="model"))
    assert {hit.model for hit in whole.results[0].models} == {"zoo/both", "org/things"}
    with pytest.raises(InputError, match="at revision r-b/copy, not r1"):
        searcher.search(SearchRequest(like="b/copy@r1#2"))


def test_copies_are_found_by_name(searcher: Searcher) -> None:
    snapshot = searcher.snapshot
    assert find_model(snapshot, "b/copy") == find_model(snapshot, A) == 0
    assert find_record(snapshot, "b/copy")[1] is snapshot.copies[A][1]
    assert near_models(snapshot, "other/copy") == ["a/copy", "b/copy", "c/copy"]


def test_describing_a_copy(index: Index) -> None:
    describer = Describer(index, [*ANIMALS, *THINGS], encode)
    assert describer.knows("c/copy")
    assert not describer.knows("c/copy@r1")
    own, answer = (describer.describe(model, DescribeRequest()) for model in (A, "c/copy"))
    assert answer.outputs == own.outputs
    assert (answer.model, answer.revision, answer.copy_of) == ("c/copy", "r-c/copy", A)
    assert answer.to_json()["copy_of"] == A
    assert "copy_of" not in own.to_json()


def test_contact_sheets_and_reranking_of_a_hit_under_a_copy(index: Index, searcher: Searcher, tmp_path: Path) -> None:
    image = write_example(tmp_path / "owl.png", "owl")

    def asked(*where: str) -> SearchRequest:
        return SearchRequest(images=(image,), k=3, where=parse_conditions(where))

    for where, title, also_ in (
        ([], A, ", also: a/copy (+2 more)"),
        (["licence=apache-2.0"], "b/copy", ", also: c/copy"),
    ):
        request = asked(*where)
        questions = searcher.ask(request)
        answer = searcher.answer(request, questions)
        drawn = panels(index, searcher.snapshot, searcher.background, "whitened", questions, answer)
        (panel,) = [panel for panel in drawn if panel.title == f"{panel.title[0]}. {title} #3 owl"]
        assert panel.subtitle.endswith(also_)
    profiler = PretendProfiler()
    answer = searcher.search(asked("library=onnx"))
    settings = RerankSettings(0.5, 3)
    after = Reranker(index, searcher.snapshot, profiler, settings).rerank(answer, [image], 3)  # type: ignore[arg-type]
    assert {hit.model for hit in after.results[0].outputs} == {"a/copy"} == set(profiler.asked)
    assert after.rerank is not None
    assert all(hit.reason is None for hit in after.rerank.hits)


@pytest.mark.parametrize(
    ("count", "most", "text"),
    [(1, 2, "also: m0"), (2, 2, "also: m0, m1"), (3, 2, "also: m0, m1 (+1 more)"), (2000, 1, "also: m0 (+1,999 more)")],
)
def test_how_copies_are_told(count: int, most: int, text: str) -> None:
    assert also([f"m{i}" for i in range(count)], most) == text


def test_the_commands_show_copies(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    def out(*arguments: str) -> str:
        assert run([*arguments, "--index", str(index.folder)]) == 0
        return capsys.readouterr().out

    lines = out("search", "cat", "-k", "1").splitlines()
    (at,) = [i for i, line in enumerate(lines) if A in line]
    assert lines[at + 1].strip() == "also: a/copy, b/copy (+1 more)"
    assert "also: a/copy, b/copy, c/copy" in out("search", "cat", "-k", "1", "--explain")
    assert "also: a/copy, b/copy (+1 more)" in out("search", "cat", "dog", "--level", "model", "-k", "2")
    assert out("search", "cat", "-k", "1", "--format", "quiet") == f"{A}#2\n".replace("#2", f"#{ANIMALS.index('cat')}")
    assert f"like b/copy#0, a copy of {A}" in out("search", "--like", "b/copy#0")
    listed = out("index", "models").splitlines()
    assert sum(f"copy of {A}" in line for line in listed) == 3
    records = json.loads(out("index", "models", "--format", "json"))
    assert {r["repo"]: (r["state"], r["copy_of"], r["copied_revision"]) for r in records if r["copy_of"]} == {
        repo: ("copy", A, "r1") for repo in COPIES
    }
    facts = json.loads(out("index", "info", "--format", "json"))
    assert (facts["models"], facts["copies"], facts["outputs"]) == (3, 3, 14)
    assert "3  (of 1 of these models)" in out("index", "info")
    assert out("index", "verify") == ""


def test_the_commands_tell_of_copies_that_nobody_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fast_folder(tmp_path) as place:
        folder = make_filled_index(place / "zoo").folder
        with IndexWriter(folder) as writer:
            writer.put_copy(Model(repo="b/copy", revision="c", state=ModelState.COPY, copy_of=A))
            writer.remove_model(A)
            writer.finish()
        assert run(["index", "models", "--index", str(folder)]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "b/copy" in line]
        assert f"copy of {A}" in line
        assert "the original is gone or has changed" in line
        assert run(["index", "verify", "--index", str(folder)]) == 1
        assert "b/copy: a copy of org/animals@r1" in capsys.readouterr().out
        assert run(["index", "info", "--index", str(folder)]) == 0
        assert ["copies", "none"] in [line.split() for line in capsys.readouterr().out.splitlines()]
