"""Questions: example images by hand, outputs in the place of concepts, and everything that cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.descriptors import FloatArray
from engine.errors import InputError
from engine.index import Index
from engine.schema import Model
from engine.writer import IndexWriter
from query.questions import Question, QuestionMaker
from query.request import SearchRequest
from query.search import Searcher
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    N,
    PretendEncoder,
    answers,
    encode,
    encode_images,
    make_filled_index,
    make_index,
    probe_embeddings,
    put_model,
    vector,
    write_example,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_filled_index(tmp_path_factory.mktemp("x") / "zoo")


def ask(index: Index, request: SearchRequest) -> list[Question]:
    return Searcher(index, encode, encode_images=encode_images).ask(request)


def unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.sqrt((v.astype(np.float64) ** 2).sum()))


def examples(folder: Path, concept: str, count: int) -> tuple[Path, ...]:
    folder.mkdir(exist_ok=True)
    return tuple(write_example(folder / f"{concept}{i}.png", concept, i) for i in range(count))


def seen(concept: str, variant: int) -> np.ndarray:
    """What ``encode_images`` sees in an example, written down again."""
    return unit(vector(concept).astype(np.float64) + 0.7 * vector(f"variant {variant} of {concept}"))


def standardised(t: np.ndarray) -> np.ndarray:
    similarity = probe_embeddings().astype(np.float64) @ t
    return np.asarray((similarity - similarity.mean()) / similarity.std())


def test_images_are_the_mean_of_their_normalised_embeddings(index: Index, tmp_path: Path) -> None:
    paths = examples(tmp_path, "owl", 3)
    (question,) = ask(index, SearchRequest(images=paths))
    expected = unit(np.mean([seen("owl", i) for i in range(3)], axis=0))
    np.testing.assert_allclose(question.concepts.t, expected[None], atol=1e-6)
    np.testing.assert_allclose(question.concepts.z, standardised(expected)[None], atol=1e-5)
    assert question.query.model_dump(exclude_unset=True) == {"images": tuple(map(str, paths))}
    assert question.names == ("3 images",)
    assert ask(index, SearchRequest(images=paths[:1]))[0].names == ("1 image",)


def test_text_and_images_are_the_mean_of_both(index: Index, tmp_path: Path) -> None:
    paths = examples(tmp_path, "owl", 5)
    (question,) = ask(index, SearchRequest((" cat ",), images=paths))
    images = unit(np.mean([seen("owl", i) for i in range(5)], axis=0))
    expected = unit(images + unit(vector("cat")))  # the text counts as much as all of the images
    np.testing.assert_allclose(question.concepts.t, expected[None], atol=1e-6)
    assert question.query.model_dump(exclude_unset=True) == {"text": "cat", "images": tuple(map(str, paths))}
    assert question.names == ("cat and 5 images",)


def test_one_question_a_text_or_one_for_the_list(index: Index) -> None:
    apart = ask(index, SearchRequest(("cat", "dog", "cat")))
    assert [q.query.text for q in apart] == ["cat", "dog", "cat"]
    assert [len(q.concepts) for q in apart] == [1, 1, 1]
    np.testing.assert_array_equal(apart[0].concepts.z, apart[2].concepts.z)
    (together,) = ask(index, SearchRequest(("cat", "dog"), level="model"))
    assert together.names == together.query.texts == ("cat", "dog")
    np.testing.assert_allclose(together.concepts.t, encode(["cat", "dog"]), atol=1e-6)
    np.testing.assert_array_equal(together.concepts.z[1], apart[1].concepts.z[0])


def test_images_are_remembered_by_their_content(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    asked: list[str] = []

    def counted(paths: Sequence[Path]) -> FloatArray:
        asked.extend(path.name for path in paths)
        return encode_images(paths)

    first = write_example(tmp_path / "a.png", "cat")
    copy = write_example(tmp_path / "copy.png", "cat")
    other = write_example(tmp_path / "b.png", "cat", 1)
    (question,) = Searcher(index, encode, encode_images=counted).ask(SearchRequest(images=(first, copy, other)))
    assert len(asked) == 2
    assert "b.png" in asked
    expected = unit(2 * seen("cat", 0) + seen("cat", 1))  # twice the same picture counts twice
    np.testing.assert_allclose(question.concepts.t, expected[None], atol=1e-6)
    write_example(first, "dog")  # another picture under an old name
    moved = copy.rename(tmp_path / "moved.png")
    (again,) = Searcher(Index(index.folder), encode, encode_images=counted).ask(SearchRequest(images=(moved, first)))
    assert asked[2:] == ["a.png"]
    np.testing.assert_allclose(again.concepts.t, unit(seen("cat", 0) + seen("dog", 0))[None], atol=1e-6)


def test_the_index_s_encoder_sees_images(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())
    paths = examples(tmp_path, "horse", 2)
    (question,) = Searcher(Index(index.folder)).ask(SearchRequest(images=paths))
    np.testing.assert_allclose(question.concepts.t, unit(seen("horse", 0) + seen("horse", 1))[None], atol=1e-6)


def test_one_broken_image_among_many_is_named_before_the_encoder_is_loaded(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "load_encoder", lambda *_: pytest.fail("the encoder was loaded"))
    good = examples(tmp_path, "lamp", 4)
    cut = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for bad, part in ((cut, "is damaged"), (text, "is not an image"), (tmp_path / "gone.png", "cannot be read")):
        with pytest.raises(InputError, match=part) as raised:
            Searcher(index).ask(SearchRequest(images=(*good[:2], bad, *good[2:])))
        assert str(bad) in str(raised.value)
        assert "\n" not in str(raised.value)


def expected_responses(raw: FloatArray) -> np.ndarray:
    """Standardised responses of a model as an index with divisive normalisation describes them, output by output."""
    z = np.array([(column - column.mean()) / column.std() for column in raw.T.astype(np.float64)])
    variance = np.array([np.mean((z[:, i] - z[:, i].mean()) ** 2) for i in range(N)])
    exponent = -0.5 * len(z) / (len(z) + 100)
    gained = z * np.maximum(variance / variance.mean(), 1e-4) ** exponent
    return np.array([(row - row.mean()) / row.std() for row in gained])


def predictor(responses: np.ndarray) -> np.ndarray:
    """The direction that predicts an output's responses best: ridge regression with a tenth of the mean variance."""
    probes = probe_embeddings().astype(np.float64)
    centred = probes - probes.mean(axis=0)
    d = probes.shape[1]
    ridge = 0.1 * (centred**2).sum() / N / d
    return unit(np.linalg.inv(centred.T @ centred / N + ridge * np.eye(d)) @ (centred.T @ responses / N))


def test_an_output_s_own_responses_stand_for_a_concept(index: Index) -> None:
    for like, concepts, seed, number in (("org/animals#2", ANIMALS, 1, 2), ("org/things@r1#0", THINGS, 2, 0)):
        (question,) = ask(index, SearchRequest(like=like))
        expected = expected_responses(answers(concepts, seed=seed))[number]
        np.testing.assert_allclose(question.concepts.z[0], expected, atol=4e-3)  # float16 in the archive
        np.testing.assert_allclose(question.concepts.t[0], predictor(expected), atol=1e-3)
        assert question.names == (concepts[number],)
        assert question.query.model_dump(exclude_unset=True) == {"like": like}


def test_a_whole_model_is_a_list_of_its_outputs(index: Index) -> None:
    (question,) = ask(index, SearchRequest(like="zoo/both", level="model"))
    assert question.names == tuple(f"#{i}" for i in range(7))
    np.testing.assert_allclose(question.concepts.z, expected_responses(answers((*ANIMALS, *THINGS), seed=3)), atol=4e-3)
    single = ask(index, SearchRequest(like="zoo/both#5"))[0]
    np.testing.assert_array_equal(single.concepts.z[0], question.concepts.z[5])
    np.testing.assert_allclose(single.concepts.t[0], question.concepts.t[5], atol=1e-6)
    assert single.without == question.without == 2


def test_probes_that_move_every_output_are_quietened(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    values = answers([f"concept {i}" for i in range(60)])
    values[:10] *= np.random.default_rng(0).choice([-8, 8], size=60)
    values[:5] += 15
    with IndexWriter(index.folder) as writer:
        table, _ = writer.describe("org/loud", "r1", (None,) * 60, values)
        writer.put(Model(repo="org/loud", revision="r1", outputs=60), table, values)
        writer.finish()
    (question,) = ask(Index(index.folder), SearchRequest(like="org/loud", level="model"))
    expected = expected_responses(values)
    np.testing.assert_allclose(question.concepts.z, expected, atol=4e-3)
    plain = (values - values.mean(axis=0)) / values.std(axis=0)
    assert np.abs(expected[:, :5]).mean() < 0.95 * np.abs(plain.T[:, :5]).mean()
    np.testing.assert_allclose(question.concepts.z.mean(axis=1), 0, atol=1e-6)


def test_dropped_responses_are_predicted_except_on_the_kept_probes(tmp_path: Path) -> None:
    dropped = make_filled_index(tmp_path / "a" / "zoo", responses="drop")
    assert not (dropped.folder / "responses").exists()
    (question,) = ask(dropped, SearchRequest(like="org/animals#1"))
    responses = expected_responses(answers(ANIMALS, seed=1))[1]
    kept = np.sort(np.argsort(-responses)[:20])
    predicted = standardised(predictor(responses))
    expected = predicted.copy()
    expected[kept] = responses[kept]
    np.testing.assert_allclose(question.concepts.z[0], expected, atol=1e-3)
    assert np.abs(responses - predicted)[kept].max() > 0.1  # the two differ where the kept ones were put in


def test_outputs_keep_their_numbers_where_some_were_left_out(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        values = answers(ANIMALS, seed=1)
        values[:, 1] = 3.0  # says nothing
        table, left_out = writer.describe("org/gap", "r1", ANIMALS, values)
        record = {"repo": "org/gap", "revision": "r1", "outputs": len(table), "left_out": left_out}
        writer.put(Model.model_validate(record), table, values)
        put_model(writer, "org/other", ("owl", "horse"), seed=2)
        writer.finish()
    searcher = Searcher(Index(index.folder), encode)
    assert searcher.ask(SearchRequest(like="org/gap#3"))[0].names == ("owl",)
    found = searcher.search(SearchRequest(like="org/gap#3", k=1)).results[0].outputs[0]
    assert (found.model, found.output) == ("org/other", 0)
    with pytest.raises(InputError, match=r"no output 1 of org/gap; it has 3 outputs"):
        searcher.ask(SearchRequest(like="org/gap#1"))


@pytest.mark.parametrize(
    ("like", "level", "part"),
    [
        ("org/animal#0", "output", "org/animal is not in the index: did you mean org/animals"),
        ("animals", "model", "did you mean org/animals"),
        ("xyz/qqq", "model", "'hubhound index models' shows"),
        ("org/animals@r2#0", "output", "at revision r1, not r2"),
        ("org/animals#4", "output", "no output 4 of org/animals; it has 4 outputs"),
        ("org/animals#99999999999999999", "output", "no output 99999999999999999"),
        ("org/animals#" + "9" * 5000, "output", "the number of an output"),
        ("org/animals#-1", "output", "the number of an output"),
        ("org/animals#", "output", "the number of an output"),
        ("org/animals#cat", "output", "the number of an output"),
        ("org/animals", "output", "names no output: use org/animals#NUMBER"),
        ("org/animals#0", "model", "names one output: with --level model name a model, org/animals"),
    ],
)
def test_what_is_not_there_cannot_be_liked(index: Index, like: str, level: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as raised:
        ask(index, SearchRequest(like=like, level=level))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_maker_uses_the_background_it_is_given(index: Index) -> None:
    snapshot, background = index.snapshot(), index.background()
    question = QuestionMaker(index, snapshot, background, encode).make(SearchRequest(("cat",)))[0]
    assert background.whitening is not None
    u = unit(vector("cat")) @ background.whitening.astype(np.float64)
    tau = (probe_embeddings().astype(np.float64) @ u).std()
    assert question.concepts.white is not None
    np.testing.assert_allclose(question.concepts.white[0], u / tau, rtol=1e-4, atol=1e-5)
