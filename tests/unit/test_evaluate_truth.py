"""What an evaluation takes from its user: the truth over an index's responses, queries, labelled images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.descriptors import FloatArray
from engine.errors import IndexUnusableError, InputError
from engine.index import Index
from engine.writer import IndexWriter
from query.evaluate.labelled import read_images, read_labels, seen_classes
from query.evaluate.queries import answerable, derive_queries, group_by_seen, read_queries
from query.evaluate.truth import Known, Truth, read_truth, read_zoo, write_truth
from query.evaluate.zoo import Query
from tests.support.small_index import ANIMALS, D, N, answers, make_filled_index, make_index, put_model, vector

TRUTH = {
    "org/animals": [{"index": i, "label": f"{name}, {name}us", "imagenet_class": i} for i, name in enumerate(ANIMALS)],
    "org/things": [{"index": 0, "label": "chair", "class": "seat"}, {"index": 1, "label": "table", "class": None}],
    "zoo/both": [{"index": 0, "label": "kitty", "class": "0"}, {"index": 1, "label": "hound", "classes": [1, "wolf"]}],
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Only read from."""
    return make_filled_index(tmp_path_factory.mktemp("made") / "zoo")


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_the_zoo_has_the_responses_of_the_models_and_what_is_known(index: Index, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    zoo = read_zoo(index, read_truth(write(tmp_path / "t.json", TRUTH)), lambda *step: seen.append(step))
    assert zoo.models == ("org/animals", "org/things", "zoo/both")
    assert zoo.starts.tolist() == [0, 4, 7, 14]
    assert zoo.output.tolist() == [*range(4), *range(3), *range(7)]
    assert zoo.labels == (*ANIMALS, "chair", "table", "lamp", *[None] * 7)
    expected = [{"0"}, {"1"}, {"2"}, {"3"}, {"seat"}, set(), set(), {"0"}, {"1", "wolf"}, *[set()] * 5]
    assert [set(classes) for classes in zoo.classes] == expected
    raw = answers(ANIMALS, seed=1).T.astype(np.float64)
    z = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    np.testing.assert_allclose(zoo.responses[:4], z, atol=4e-3)  # the archive's float16 is exact to 2^-11 of 4
    np.testing.assert_allclose(zoo.responses.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(zoo.responses.std(1), 1, atol=1e-6)
    np.testing.assert_array_equal(zoo.probes, index.probe_embeddings)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_rows_stay_with_their_outputs_when_some_were_left_out(tmp_path: Path) -> None:
    made = make_index(tmp_path / "zoo")
    with IndexWriter(made.folder) as writer:
        values = answers(("cat", "dog", "horse"), seed=5)
        values[:, 1] = 3.0
        table, left_out = writer.describe("org/holey", "r1", ("cat", "dog", "horse"), values)
        from engine.schema import Model

        model = Model(repo="org/holey", revision="r1", outputs=len(table), left_out=left_out)
        writer.put(model, table, values)
        writer.finish()
    entries = [{"index": i, "label": None, "class": f"c{i}"} for i in range(3)]
    zoo = read_zoo(made, read_truth(write(tmp_path / "t.json", {"org/holey": entries})))
    assert zoo.output.tolist() == [0, 2]
    assert [set(c) for c in zoo.classes] == [{"c0"}, {"c2"}]
    third = (values[:, 2] - values[:, 2].mean()) / values[:, 2].std()
    np.testing.assert_allclose(zoo.responses[1], third, atol=4e-3)


def test_models_that_the_truth_does_not_know_are_left_out(index: Index, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    whole = read_zoo(index, read_truth(write(tmp_path / "t.json", TRUTH)))
    known = {"zoo/both": TRUTH["zoo/both"], "org/things": TRUTH["org/things"]}
    zoo = read_zoo(index, read_truth(write(tmp_path / "t.json", known)), lambda *step: steps.append(step))
    assert zoo.models == ("org/things", "zoo/both")
    assert zoo.starts.tolist() == [0, 3, 10]
    assert zoo.output.tolist() == [*range(3), *range(7)]
    assert zoo.labels == whole.labels[4:]
    assert zoo.classes == whole.classes[4:]
    np.testing.assert_array_equal(zoo.responses, whole.responses[4:])
    assert steps == [(1, 2), (2, 2)]


def test_a_written_truth_reads_back(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.json", TRUTH))
    write_truth(tmp_path / "again.json", truth.models)
    assert read_truth(tmp_path / "again.json").models == truth.models
    assert truth.models["zoo/both"][1] == Known("hound", ("1", "wolf"))
    assert truth.names == ("cat", "catus", "dog", "dogus", "horse", "horseus", "owl", "owlus", "chair", "table",
                           "kitty", "hound")  # fmt: skip


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ('{"org/a": [\n  {"index": 0,}\n]}', "line 2, column 1"),
        ("", "line 1, column 1"),
        ("[]", "must be"),
        ('{"org/a": 3}', "must be"),
        ("{}", "class of no output"),
        ({"org/a": [{"index": 0, "class": None}]}, "class of no output"),
        ({"org/a": [{"index": 0, "class": 1}, {"index": "1", "class": 1}]}, 'org/a, entry 2: its index .* "1"'),
        ({"org/a": [{"index": -1, "class": 1}]}, "its index"),
        ({"org/a": [{"index": True, "class": 1}]}, "its index"),
        ({"org/a": [{"index": 0, "class": 1}, {"index": 0, "class": 2}]}, "output 0 stands there twice"),
        ({"org/a": [{"index": 0, "clas": 1}]}, "none of them"),
        ({"org/a": [{"index": 0, "class": 1, "classes": [1]}]}, "class and classes"),
        ({"org/a": [{"index": 0, "class": 1.5}]}, "whole number, not 1.5"),
        ({"org/a": [{"index": 0, "class": [1]}]}, "whole number"),
        ({"org/a": [{"index": 0, "classes": "x"}]}, "must be a list"),
        ({"org/a": [{"index": 0, "classes": ["x", " "]}]}, "whole number"),
        ({"org/a": [{"index": 0, "label": 3, "class": 1}]}, "its label"),
        ({"org/a": ["tench"]}, "entry 1"),
        ('{"org/a": [{"index": 0, "class": ' + "9" * 5000 + "}]}", "cannot be read: .*4300 digits"),
    ],
)
def test_a_malformed_truth_is_named_with_the_place(tmp_path: Path, value: object, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        read_truth(write(tmp_path / "t.json", value))
    assert "t.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_truth(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_truth(tmp_path / "none.json")


def test_a_truth_of_another_index_is_refused(index: Index, tmp_path: Path) -> None:
    strangers = {f"who/{i}": [{"index": 0, "class": 1}] for i in range(5)}
    with pytest.raises(InputError, match=r"5 model\(s\).*who/0, who/1, who/2, \.\.\.;"):
        read_zoo(index, read_truth(write(tmp_path / "t.json", TRUTH | strangers)))
    beyond = {"org/things": [{"index": i, "class": 1} for i in (0, 3, 99)]}
    with pytest.raises(InputError, match=r"2 output\(s\) that do not exist: org/things#3, org/things#99;"):
        read_zoo(index, read_truth(write(tmp_path / "t.json", beyond)))


def test_responses_must_have_been_kept(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo", responses="drop")
    truth = read_truth(write(tmp_path / "t.json", {"org/things": TRUTH["org/things"]}))
    with pytest.raises(IndexUnusableError, match=r"kept no responses of org/things.*--responses"):
        read_zoo(index, truth)


def test_responses_of_another_size_are_refused(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    truth = read_truth(write(tmp_path / "t.json", {"org/things": TRUTH["org/things"]}))
    np.save(index.responses.path("org/things", "r1"), np.zeros((2, N), np.float16))
    with pytest.raises(IndexUnusableError, match=r"org/things have the shape \(2, 80\) instead of \(3, 80\)"):
        read_zoo(index, truth)


def test_an_empty_index(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.json", TRUTH))
    with pytest.raises(IndexUnusableError, match="is empty"):
        read_zoo(make_index(tmp_path / "zoo"), truth)


def test_queries_are_derived_from_the_label_that_most_outputs_carry() -> None:
    models = {
        "a": {0: Known("crane, bird", ("10",)), 1: Known("b", ("9",)), 2: Known("x", ())},
        "b": {0: Known("bird of the north", ("10",)), 1: Known("both", ("9", "only-shared"))},
        "c": {0: Known(" crane ", ("10",)), 1: Known("both", ("9",)), 2: Known("both", ("9",)), 3: Known(None, ("7",))},
        "d": {0: Known(", nothing", ("8",))},
    }
    # "both" speaks for 9 only where 9 is its only class; 7 and 8 have no name.
    expected = (Query("both", "9"), Query("crane", "10"), Query("both", "only-shared"))
    assert derive_queries(Truth(Path("t"), models)) == expected


def test_classes_are_ordered_by_value_however_long_their_numbers() -> None:
    long = "1" + "0" * 5000
    classes = ["b", long, "10", "9", "007", long[:-1], "a", "²"]
    truth = Truth(Path("t"), {"m": {i: Known(f"t{i}", (cls,)) for i, cls in enumerate(classes)}})
    assert [query.cls for query in derive_queries(truth)] == ["007", "9", "10", long[:-1], long, "a", "b", "²"]


def test_a_truth_without_labels_cannot_ask() -> None:
    truth = Truth(Path("t.json"), {"a": {0: Known(None, ("1",)), 1: Known("named", ())}})
    expected = "the truth file t.json has no label to ask with: add labels, or give --queries FILE"
    with pytest.raises(InputError) as caught:
        derive_queries(truth)
    assert str(caught.value) == expected


def test_queries_from_files(tmp_path: Path) -> None:
    expected = (Query("house cat", "0", ("easy", "pet")), Query("owl", "x"))
    as_json = [{"text": " house  cat", "class": 0, "groups": ["easy", "pet", "all", "easy"]},
               {"text": "owl", "class": "x"}]  # fmt: skip
    assert read_queries(write(tmp_path / "q.json", as_json)) == expected
    table = '\ufefftext,class,groups\n"house cat",0,easy; pet;all\nowl,x,\n'
    assert read_queries(write(tmp_path / "q.csv", table)) == expected
    assert read_queries(write(tmp_path / "short.csv", "class,text\nx,owl\n")) == expected[1:]


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("q.json", "{", "line 1"),
        ("q.json", {"text": "a"}, "must be a list"),
        ("q.json", [], "is empty"),
        ("q.json", [{"text": "a", "class": 1}, {"text": "a"}], "entry 2: it needs a text and a class"),
        ("q.json", [{"text": 3, "class": 1}], "entry 1"),
        ("q.json", [{"text": " ", "class": 1}], "entry 1: a concept is empty"),
        ("q.json", [{"text": "a", "class": 1, "groups": "seen"}], "entry 1"),
        ("q.json", ["a"], "entry 1"),
        ("q.csv", "text\ncat\n", "no column class"),
        ("q.csv", "", "no column text"),
        ("q.csv", "text,class\n", "is empty"),
        ("q.csv", "text,class\ncat,1\ndog\n", "line 3: it needs"),
        ("q.csv", 'text,class\n"cat,1\n', "cannot be read"),
    ],
)
def test_malformed_queries_are_named_with_the_place(tmp_path: Path, name: str, value: object, part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_queries(write(tmp_path / name, value))


def test_queries_that_nothing_can_answer(index: Index, tmp_path: Path) -> None:
    zoo = read_zoo(index, read_truth(write(tmp_path / "t.json", TRUTH)))
    cat, unicorn = Query("cat", "0"), Query("unicorn", "u")
    assert answerable((cat, unicorn), {"zoo": zoo}) == ((cat,), (unicorn,))
    with pytest.raises(InputError, match=r"no output of zoo is of the class of any query \(u\)"):
        answerable((unicorn,), {"zoo": zoo})


def test_parting_many_queries_takes_each_a_few_times(index: Index, tmp_path: Path) -> None:
    hashed = []

    class Counted(Query):
        def __hash__(self) -> int:
            hashed.append(1)
            return hash(self.text)

    zoo = read_zoo(index, read_truth(write(tmp_path / "t.json", TRUTH)))
    queries = [Counted(f"q{i}", "0" if i % 2 else "u") for i in range(200)]
    kept, dropped = answerable(queries, {"zoo": zoo})
    assert (kept, dropped) == (tuple(queries[1::2]), tuple(queries[::2]))
    assert len(hashed) <= 3 * len(queries)


@pytest.fixture
def pictures(index: Index, tmp_path: Path) -> Path:
    """A folder beside which the first four probes lie."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        shutil.copy(index.probe_folder / f"{i:03d}.png", tmp_path / "images")
    return tmp_path


def rows_of(pictures: Path, *, column: str = "class") -> Path:
    """Probes 3 (under another name) and 1, and an image that is no probe."""
    folder = pictures / "labelled"
    folder.mkdir()
    shutil.copy(pictures / "images" / "003.png", folder / "a.png")
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    return write(folder / "i.csv", f"file,note,{column}\na.png,,0\nred.png,,seat\n../images/001.png,,wolf\n")


@pytest.mark.parametrize("column", ["class", "class_index"])
def test_labelled_images_that_are_probes_are_recognised_by_content(index: Index, pictures: Path, column: str) -> None:
    asked: list[str] = []

    def encode(files: Sequence[Path]) -> FloatArray:
        asked.extend(file.name for file in files)
        return np.stack([vector(file.name) for file in files])

    images = read_images(rows_of(pictures, column=column), index, encode)
    assert images.classes == ("0", "seat", "wolf")
    assert images.probe.tolist() == [3, -1, 1]
    assert asked == ["red.png"]
    p = index.probe_embeddings
    np.testing.assert_array_equal(images.vectors, np.stack([p[3], vector("red.png"), p[1]]))
    assert images.vectors.shape == (3, D)
    assert seen_classes(images) == {"0", "wolf"}
    assert seen_classes(images, np.array([0, 1, 2])) == {"wolf"}
    assert seen_classes(images, np.arange(0)) == frozenset()
    queries = (Query("cat", "0", ("unseen", "pet")), Query("chair", "seat"))
    assert group_by_seen(queries, seen_classes(images)) == (
        Query("cat", "0", ("pet", "seen")),
        Query("chair", "seat", ("unseen",)),
    )


def test_images_that_all_are_probes_need_no_encoder(index: Index, pictures: Path) -> None:
    def refuse(files: Sequence[Path]) -> FloatArray:
        raise AssertionError(files)

    table = write(pictures / "i.csv", "file,class\nimages/000.png,a\nimages/000.png,b\n")
    assert read_images(table, index, refuse).probe.tolist() == [0, 0]


def test_labels_are_read_without_embedding(index: Index, pictures: Path) -> None:
    table = rows_of(pictures)
    (table.parent / "red.png").write_bytes(b"no image at all")
    labels = read_labels(table, index)
    assert (labels.classes, labels.probe.tolist()) == (("0", "seat", "wolf"), [3, -1, 1])


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("file,class\n", "is empty"),
        ("file,kind\nimages/000.png,a\n", "no column class"),
        ("class\na\n", "no column file"),
        ("file,class\nimages/000.png,a\nimages/none.png,b\n", "line 3: the image .*none.png cannot be read"),
        ("file,class\nimages/000.png,\n", "line 2: it needs"),
        ("file,class\nimages,a\n", "line 2"),
    ],
)
def test_malformed_image_lists(index: Index, pictures: Path, value: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_images(write(pictures / "i.csv", value), index, lambda files: np.zeros((len(files), D), np.float32))


def test_put_model_is_what_the_zoo_reads(tmp_path: Path) -> None:
    """A changed revision is read from its own responses."""
    made = make_filled_index(tmp_path / "zoo")
    with IndexWriter(made.folder) as writer:
        put_model(writer, "org/things", ("lamp", "chair"), revision="r2", seed=9)
        writer.finish()
    zoo = read_zoo(Index(made.folder), read_truth(write(tmp_path / "t.json", {"org/things": TRUTH["org/things"]})))
    assert zoo.starts.tolist() == [0, 2]
    assert zoo.labels == ("lamp", "chair")
    raw = answers(("lamp", "chair"), seed=9).T.astype(np.float64)
    np.testing.assert_allclose(zoo.responses, (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True), atol=4e-3)
