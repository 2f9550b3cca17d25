"""Names for outputs: against the readable reference, without labels, with wrong ones, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.descriptors import FloatArray, concept_descriptors, normalise
from engine.distance import METHODS, Method, margins
from engine.errors import ConceptError, IndexUnusableError, InputError
from engine.index import Index
from engine.scan import decode_anchors
from engine.writer import IndexWriter
from query.cli.main import run
from query.describe import (
    DescribeAnswer,
    Describer,
    DescribeRequest,
    disagrees,
    word_scores,
)
from query.lookup import find_model, near_models
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    answers,
    encode,
    make_filled_index,
    make_index,
    probe_embeddings,
    put_model,
    vector,
)

WORDS = (*ANIMALS, *THINGS, *(f"word {i}" for i in range(60)))
MANY = tuple(f"word {i}" for i in range(40))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three small models: too few outputs for a reference."""
    return make_filled_index(tmp_path_factory.mktemp("describe") / "zoo")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """80 outputs: of a model with right labels and of one with the labels of its neighbours."""
    folder = tmp_path_factory.mktemp("describe-large") / "zoo"
    make_index(folder)
    with IndexWriter(folder) as writer:
        put_model(writer, "org/right", MANY, seed=1)
        put_model(writer, "org/wrong", MANY, labels=[*MANY[1:], MANY[0]], seed=2)
        writer.finish()
    return Index(folder)


@pytest.fixture(scope="module")
def describer(large: Index) -> Describer:
    return Describer(large, WORDS, encode)


def best_names(answer: DescribeAnswer) -> list[str]:
    return [output.concepts[0].name for output in answer.outputs]


def all_margins(index: Index, method: Method, names: Sequence[str], embed: object = encode) -> FloatArray:
    """The readable reference: every name on every output of the index, ``[V, L]``."""
    snapshot = index.snapshot()
    rows = np.arange(len(snapshot))
    a = snapshot.arrays
    matrix = index.background(snapshot.background).whitening
    concepts = concept_descriptors(embed(names), index.probe_embeddings, matrix)  # type: ignore[operator]
    anchors = decode_anchors(a, rows).astype(np.float32)
    return margins(*a.kept(rows), anchors, a.constants(rows), concepts, method)


@pytest.mark.parametrize("method", METHODS)
def test_names_are_those_of_the_readable_reference(large: Index, describer: Describer, method: Method) -> None:
    answer = describer.describe("org/wrong", DescribeRequest(4, method))
    every = all_margins(large, method, WORDS)  # 80 outputs: all of them are the reference
    for row, found in enumerate(answer.outputs, start=40):
        scores = []
        for name in range(len(WORDS)):
            on_all = [float(value) for value in every[name]]
            mean = sum(on_all) / len(on_all)
            std = (sum((value - mean) ** 2 for value in on_all) / len(on_all)) ** 0.5
            scores.append((on_all[row] - mean) / std)
        order = sorted(range(len(WORDS)), key=lambda name: -scores[name])[:4]
        assert [c.name for c in found.concepts] == [WORDS[name] for name in order]
        assert [c.margin for c in found.concepts] == pytest.approx([every[name, row] for name in order], abs=1e-4)
        assert [c.score for c in found.concepts] == pytest.approx([scores[name] for name in order], abs=1e-4)


def test_without_labels_the_right_names_are_found(index: Index) -> None:
    """zoo/both has no labels, and too few outputs are in the index for a reference: margins decide."""
    answer = Describer(index, WORDS, encode).describe("zoo/both", DescribeRequest())
    assert best_names(answer) == [*ANIMALS, *THINGS]
    assert all(output.label is None and output.agrees is None for output in answer.outputs)
    assert all(found.score == found.margin for output in answer.outputs for found in output.concepts)
    assert answer.vocabulary == len(WORDS)
    expected = all_margins(index, "whitened", WORDS)[:, 7:]
    got = [[found.margin for found in output.concepts] for output in answer.outputs]
    np.testing.assert_allclose(got, np.sort(expected, axis=0)[::-1][:3].T, atol=1e-4)


def test_placeholders_are_no_labels(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    with IndexWriter(tmp_path / "zoo") as writer:
        put_model(writer, "org/plain", ANIMALS, labels=[f"LABEL_{i}" for i in range(4)])
        writer.finish()
    answer = Describer(Index(tmp_path / "zoo"), WORDS, encode).describe("org/plain", DescribeRequest(1))
    assert best_names(answer) == list(ANIMALS)
    assert [output.label for output in answer.outputs] == [f"LABEL_{i}" for i in range(4)]
    assert {output.agrees for output in answer.outputs} == {None}


def test_right_labels_agree_and_wrong_ones_do_not(large: Index, describer: Describer) -> None:
    right = describer.describe("org/right", DescribeRequest())
    wrong = describer.describe("org/wrong", DescribeRequest())
    assert best_names(right) == best_names(wrong) == list(MANY)
    assert all(output.agrees is True for output in right.outputs)
    every = all_margins(large, "whitened", MANY)[:, 40:]
    expected = [every[(i + 1) % 40, i] > -0.5 or every[i, i] - every[(i + 1) % 40, i] <= 5 for i in range(40)]
    assert [output.agrees for output in wrong.outputs] == expected
    assert sum(expected) < 20


@pytest.mark.parametrize("method", METHODS)
def test_agreement_depends_neither_on_the_method_nor_on_k(describer: Describer, method: Method) -> None:
    one = describer.describe("org/wrong", DescribeRequest(1, method))
    five = describer.describe("org/wrong", DescribeRequest(5))
    same = [a.agrees == b.agrees for a, b in zip(one.outputs, five.outputs, strict=True)]
    assert sum(same) >= 38  # the best name may be another one by another method


def test_any_meaning_of_a_label_may_agree(tmp_path: Path) -> None:
    """A first synonym, and what stands in parentheses."""
    make_index(tmp_path / "zoo")
    labels = ["cat, Felis catus", "Canis familiaris (dog)", "horse_owl", "chair"]
    with IndexWriter(tmp_path / "zoo") as writer:
        put_model(writer, "org/plain", ANIMALS, labels=labels)
        writer.finish()
    answer = Describer(Index(tmp_path / "zoo"), WORDS, encode).describe("org/plain", DescribeRequest(1))
    assert [output.agrees for output in answer.outputs] == [True, True, False, False]


def test_labels_that_the_encoder_does_not_know_are_no_disagreement(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    with IndexWriter(tmp_path / "zoo") as writer:
        put_model(writer, "org/plain", ANIMALS, labels=["猫猫", "犬犬", "horse", "chair"])
        writer.finish()

    def latin_only(texts: Sequence[str]) -> FloatArray:
        for text in texts:
            if not text.isascii():
                raise ConceptError(f"the vocabulary knows no part of {text!r}", text)
        return encode(texts)

    answer = Describer(Index(tmp_path / "zoo"), WORDS, latin_only).describe("org/plain", DescribeRequest(1))
    assert [output.agrees for output in answer.outputs] == [None, None, True, False]
    with pytest.raises(ConceptError, match="knows no part"):
        Describer(Index(tmp_path / "zoo"), ["cat", "猫猫猫"], latin_only).describe("org/plain", DescribeRequest(1))


def test_rule_of_disagreement_by_hand() -> None:
    label = [-0.5, -0.4, -5.0, -1.5, 2.0, -0.5]
    best = [4.6, 9.0, -0.5, 3.6, 9.0, 4.5]
    assert disagrees(label, best).tolist() == [True, False, False, True, False, False]


def test_scores_by_hand() -> None:
    reference = np.tile(np.asarray([[1.0, 3.0], [0.0, 0.5]], np.float32), 15)  # means 2 and 0.25, deviations 1 and 0.25
    values = np.asarray([[4.0, 2.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(word_scores(values, reference), [[2, 0], [3, -1]], rtol=1e-6)
    np.testing.assert_array_equal(word_scores(values, reference[:, :29]), values)
    assert values.tolist() == [[4.0, 2.0], [1.0, 0.0]]
    constant = word_scores(values, np.ones((2, 30), np.float32))
    assert np.isfinite(constant).all()


def test_a_word_that_is_near_everything_does_not_win_everywhere(tmp_path: Path) -> None:
    """All things share much, and their names are less exact than the word for what they share."""
    shared = vector("what all share")
    things = [f"thing {i}" for i in range(40)]

    def embed(texts: Sequence[str]) -> FloatArray:
        rows = []
        for text in texts:
            if text.startswith("thing"):
                rows.append(0.85 * shared + 0.3 * vector(text) + 0.6 * vector(f"another meaning of {text}"))
            else:
                rows.append(shared if text == "hub" else vector(text))
        return normalise(rows)

    meant = normalise([0.85 * shared + 0.5 * vector(text) for text in things])
    similarity = probe_embeddings() @ meant.T
    values = (similarity - similarity.mean(0)) / similarity.std(0)
    make_index(tmp_path / "zoo")
    with IndexWriter(tmp_path / "zoo") as writer:
        table, _ = writer.describe("org/things", "r1", (None,) * 40, values.astype(np.float32))
        from engine.schema import Model

        writer.put(Model(repo="org/things", revision="r1", outputs=40), table, None)
        writer.finish()
    index = Index(tmp_path / "zoo")
    describer = Describer(index, [*things, "hub"], embed)
    for method in METHODS:
        by_margin = all_margins(index, method, describer.vocabulary, embed).argmax(axis=0)
        by_score = best_names(describer.describe("org/things", DescribeRequest(1, method)))
        assert (by_margin == 40).sum() >= 10
        assert by_score.count("hub") <= 1
        right = sum(name == thing for name, thing in zip(by_score, things, strict=True))
        assert right >= 1.4 * (by_margin == np.arange(40)).sum() >= 7


def test_outputs_that_are_not_in_the_index(large: Index, describer: Describer) -> None:
    values = answers(MANY, seed=1)
    table = describer.outputs_of("new/model", "r9", (*MANY[:39], None), values)
    generation = large.snapshot().number
    with IndexWriter(large.folder):  # an index that is being written can be asked all the same
        answer = describer.describe_outputs(table, DescribeRequest(2))
    known = describer.describe("org/right", DescribeRequest(2))
    assert (answer.model, answer.revision) == ("new/model", "r9")
    for new, old in zip(answer.outputs, known.outputs, strict=True):
        assert new.output == old.output
        assert [found.name for found in new.concepts] == [found.name for found in old.concepts]
        assert [found.margin for found in new.concepts] == pytest.approx([f.margin for f in old.concepts], abs=1e-4)
    assert answer.outputs[-1].label is None
    assert answer.outputs[-1].agrees is None
    assert large.snapshot().number == generation
    assert [model.repo for model in large.snapshot().models] == ["org/right", "org/wrong"]


def test_outputs_without_information_are_not_described(describer: Describer) -> None:
    values = answers(MANY, seed=1)
    values[:, 3] = 1.0
    table = describer.outputs_of("new/model", "r9", MANY, values)
    answer = describer.describe_outputs(table, DescribeRequest(1))
    assert best_names(answer) == [name for i, name in enumerate(MANY) if i != 3]
    with pytest.raises(InputError, match="no output 3"):
        describer.describe_outputs(table, DescribeRequest(outputs=(3,)))


def test_an_empty_index_names_outputs_by_their_margins(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    describer = Describer(index, WORDS, encode)
    table = describer.outputs_of("new/model", "r9", ANIMALS, answers(ANIMALS))
    assert best_names(describer.describe_outputs(table, DescribeRequest(1))) == list(ANIMALS)
    assert not describer.knows("new/model")
    assert describer.near("new/model") == []
    with pytest.raises(IndexUnusableError, match="is empty"):
        describer.describe("new/model", DescribeRequest())


def test_some_outputs(describer: Describer) -> None:
    whole = describer.describe("org/right", DescribeRequest())
    some = describer.describe("org/right@r1", DescribeRequest(outputs=(17, 3, 17)))
    assert [output.output for output in some.outputs] == [17, 3]
    for output in some.outputs:
        other = whole.outputs[output.output]
        assert output.concepts[0].name == other.concepts[0].name
        assert output.concepts[0].margin == pytest.approx(other.concepts[0].margin, abs=1e-5)


def test_more_outputs_than_one_block(large: Index, monkeypatch: pytest.MonkeyPatch, describer: Describer) -> None:
    monkeypatch.setattr("query.describe._OUTPUTS", 7)
    monkeypatch.setattr("query.describe._ELEMENTS", 500)
    small = Describer(large, WORDS, encode).describe("org/wrong", DescribeRequest())
    monkeypatch.undo()
    whole = describer.describe("org/wrong", DescribeRequest())
    for a, b in zip(small.outputs, whole.outputs, strict=True):
        assert (a.output, a.label, a.agrees) == (b.output, b.label, b.agrees)
        assert [c.name for c in a.concepts] == [c.name for c in b.concepts]
        assert [c.score for c in a.concepts] == pytest.approx([c.score for c in b.concepts], abs=1e-4)


def test_more_names_than_the_vocabulary_has(index: Index) -> None:
    answer = Describer(index, ["cat", "dog", "cat "], encode).describe("org/animals", DescribeRequest(10))
    assert answer.vocabulary == 2
    assert {len(output.concepts) for output in answer.outputs} == {2}


@pytest.mark.parametrize(
    ("model", "request_", "part"),
    [
        ("org/animal", DescribeRequest(), "did you mean org/animals"),
        ("animals", DescribeRequest(), "did you mean org/animals"),
        ("ORG/Things", DescribeRequest(), "did you mean org/things"),
        ("qqqqqq/zzzzz", DescribeRequest(), "index models"),
        ("org/animals@r2", DescribeRequest(), "at revision r1, not r2"),
        ("org/animals", DescribeRequest(outputs=(4,)), "outputs 0 to 3"),
        ("org/animals", DescribeRequest(outputs=(-1,)), "no output -1"),
        ("org/animals", DescribeRequest(0), "-k 0"),
        ("org/animals", DescribeRequest(method="cosine"), "use one of"),
    ],
)
def test_bad_requests(index: Index, model: str, request_: DescribeRequest, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        Describer(index, WORDS, encode).describe(model, request_)
    assert "\n" not in str(caught.value)


def test_an_output_that_was_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    values = answers(ANIMALS)
    values[:, 1] = 2.0
    with IndexWriter(tmp_path / "zoo") as writer:
        from engine.schema import Model

        table, left_out = writer.describe("org/x", "r1", ANIMALS, values)
        writer.put(Model(repo="org/x", revision="r1", outputs=3, left_out=left_out), table, None)
        writer.finish()
    describer = Describer(Index(tmp_path / "zoo"), WORDS, encode)
    with pytest.raises(InputError, match="left out of the index: its answers are constant"):
        describer.describe("org/x", DescribeRequest(outputs=(1,)))
    assert best_names(describer.describe("org/x", DescribeRequest(1))) == ["cat", "horse", "owl"]


def test_models_are_found_by_their_names(index: Index) -> None:
    snapshot = index.snapshot()
    assert snapshot.models[find_model(snapshot, "org/things")].repo == "org/things"
    assert snapshot.models[find_model(snapshot, "org/things@r1")].repo == "org/things"
    assert near_models(snapshot, "other/both") == ["zoo/both"]
    assert near_models(snapshot, "thing") == ["org/things"]


def test_json_has_the_shape_of_the_contract(describer: Describer) -> None:
    answer = describer.describe("org/right", DescribeRequest(2, outputs=(5,))).to_json()
    assert list(answer) == ["model", "revision", "outputs", "vocabulary", "seconds"]
    (output,) = answer["outputs"]  # type: ignore[misc]
    assert list(output) == ["output", "label", "agrees", "concepts"]
    assert list(output["concepts"][0]) == ["name", "margin", "score"]


@pytest.fixture
def words(large: Index, tmp_path: Path) -> Path:
    """A vocabulary that the index remembers with the labels: no encoder is needed."""
    large.embed([*WORDS, *MANY], encode)
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS))
    return file


def test_command(large: Index, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["describe", "org/wrong", "--index", str(large.folder), "--vocabulary", str(words)]
    assert run([*command, "--output", "3", "--output", "4", "-k", "2", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["outputs"][0]["agrees"] is not None
    assert [output["output"] for output in answer["outputs"]] == [3, 4]
    assert [output["label"] for output in answer["outputs"]] == ["word 4", "word 5"]
    assert [output["concepts"][0]["name"] for output in answer["outputs"]] == ["word 3", "word 4"]
    assert run([*command, "--output", "0"]) == 0
    written = capsys.readouterr()
    (line,) = [line for line in written.out.splitlines() if "word 0" in line]
    assert line.split()[:4] == ["0", "word", "1", "✗"]
    assert "1 of 1 labels disagree" in written.err
    assert run([*command, "--format", "quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{i}\t{name}" for i, name in enumerate(MANY)]


def test_command_shows_only_disagreements(large: Index, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = ["--index", str(large.folder), "--vocabulary", str(words), "--only-disagreements", "--format", "json"]
    assert run(["describe", "org/right", *tail]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)["outputs"] == []
    assert "0 of 40 labels disagree" in written.err
    assert "another order" not in written.err
    assert run(["describe", "org/wrong", *tail]) == 0
    written = capsys.readouterr()
    shown = json.loads(written.out)["outputs"]
    assert len(shown) > 20
    assert all(output["agrees"] is False for output in shown)
    assert "another order" in written.err


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["rigt"], 1, "neither a folder nor a model"),
        (["right"], 1, "did you mean org/right"),
        (["org/right", "--output", "99"], 1, "outputs 0 to 39"),
        (["org/right", "--vocabulary", "absent.txt"], 1, "absent.txt"),
        (["org/right", "--index", "qdrant://x:1"], 1, "the name of an index on a server"),
        (["org/right", "--index", "absent"], 1, "no index at absent"),
        (["org/right", "-k", "0"], 2, "-k"),
        ([], 2, "MODEL"),
    ],
)
def test_command_refuses(
    large: Index, words: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, part: str
) -> None:
    assert run(["describe", "--index", str(large.folder), "--vocabulary", str(words), *arguments]) == status
    error = capsys.readouterr().err
    assert part in error
    if status == 1:
        assert len(error.strip().splitlines()) == 1


@pytest.mark.usefixtures("one_thread")
def test_command_runs_a_model_that_is_not_in_the_index(
    large: Index, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.tiny_models import timm_model

    timm_model(tmp_path / "models" / "me" / "new")
    timm_model(tmp_path / "models" / "me" / "newer")
    large.embed(["ant", "bee", "cat", "dog", "eel"], encode)
    tail = ["--index", str(large.folder), "--vocabulary", str(words), "--cache", str(tmp_path / "cache")]
    tail += ["--device", "cpu", "--format", "json"]
    with IndexWriter(large.folder):
        assert run(["describe", str(tmp_path / "models" / "me" / "new"), *tail]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "me/new"
    assert [output["label"] for output in answer["outputs"]] == ["ant", "bee", "cat", "dog", "eel"]
    assert all(len(output["concepts"]) == 3 for output in answer["outputs"])
    assert [model.repo for model in large.snapshot().models] == ["org/right", "org/wrong"]
    assert run(["describe", str(tmp_path / "models"), *tail]) == 1
    assert "names 2 models" in capsys.readouterr().err
