"""``hubhound search``: every way to ask, in every form, and one line for everything that cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.index import Index
from engine.writer import IndexWriter
from query.cli.main import run
from query.contact_sheet import Panel, write_contact_sheet
from tests.support.small_index import (
    ANIMALS,
    PretendEncoder,
    encode,
    make_filled_index,
    make_index,
    put_model,
    write_example,
)

HIT = ["rank", "model", "revision", "output", "label", "margin", "percentile", "local", "global", "prior"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = make_filled_index(tmp_path_factory.mktemp("x") / "zoo")
    index.embed([*ANIMALS, "lamp", "ship", "a", "b", "c", "d"], encode)
    return index.folder


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known or wrong must not wait for an encoder; tests that need one put it there."""
    monkeypatch.setattr(Index, "load_encoder", lambda *_: pytest.fail("the encoder was loaded"))


@pytest.fixture
def encoder(no_encoder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(3):
        write_example(folder / f"{i}.png", "horse", i)
    write_example(folder / "more" / "3.png", "horse", 3)
    return folder


def search(zoo: Path, *arguments: object, status: int = 0) -> None:
    assert run(["search", "--index", str(zoo), *map(str, arguments)]) == status


def answer(capsys: pytest.CaptureFixture[str], zoo: Path, *arguments: object) -> dict[str, Any]:
    """The JSON of a search, with nothing on standard error."""
    search(zoo, *arguments, "--format", "json")
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    assert list(found) == ["results", "searched", "exact", "seconds"]
    assert found["exact"] is True
    return found


def refused(capsys: pytest.CaptureFixture[str], zoo: Path, *arguments: object) -> str:
    """The one line of an error."""
    capsys.readouterr()
    search(zoo, *arguments, status=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("hubhound: ")
    assert "an error of ours" not in lines[0]
    return lines[0]


def test_outputs_in_json(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, zoo, "cat", "lamp", "-k", 2, "--explain")
    assert [result["query"] for result in found["results"]] == [{"text": "cat"}, {"text": "lamp"}]
    assert found["searched"] == 14
    for result in found["results"]:
        assert [list(hit) for hit in result["hits"]] == [[*HIT, "probes"]] * 2
        assert [hit["rank"] for hit in result["hits"]] == [1, 2]
        assert all(list(hit["local"]) == ["distance", "hubness", "scale"] for hit in result["hits"])
        assert all(list(hit["global"]) == ["correlation", "hubness", "scale"] for hit in result["hits"])
        probes = [probe for hit in result["hits"] for probe in hit["probes"]]
        assert all(list(probe) == ["probe", "file", "response", "concept"] for probe in probes)
        assert len(probes) == 20
    lamps = {(hit["model"], hit["output"]) for hit in found["results"][1]["hits"]}
    assert lamps == {("org/things", 2), ("zoo/both", 6)}
    dual = answer(capsys, zoo, "cat", "-k", 1, "--method", "dual")["results"][0]["hits"][0]
    assert list(dual) == [name for name in HIT if name != "prior"]


def test_models_in_json(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, zoo, "cat", "lamp", "--level", "model")
    (result,) = found["results"]
    assert result["query"] == {"texts": ["cat", "lamp"]}
    assert result["hits"][0]["model"] == "zoo/both"
    for rank, hit in enumerate(result["hits"], 1):
        assert list(hit) == ["rank", "model", "revision", "margin", "covered", "outputs"]
        assert hit["rank"] == rank
        assert [list(matched) for matched in hit["outputs"]] == [["concept", "output", "label", "margin"]] * 2
        assert hit["margin"] == pytest.approx(sum(matched["margin"] for matched in hit["outputs"]) / 2, abs=1e-5)
    assert [(m["concept"], m["output"], m["label"]) for m in result["hits"][0]["outputs"]] == [
        ("cat", 0, None),
        ("lamp", 6, None),
    ]
    some = answer(capsys, zoo, "cat", "lamp", "--level", "model", "--require", "any", "--explain")["results"][0]
    animals = next(hit for hit in some["hits"] if hit["model"] == "org/animals")
    assert animals["covered"] == 1
    assert animals["outputs"][1] == {"concept": "lamp", "output": None, "label": None, "margin": None}
    assert len(animals["outputs"][0]["probes"]) == 10


@pytest.mark.usefixtures("encoder")
def test_images_in_json(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(photos / name) for name in ("0.png", "1.png", "2.png", "more/3.png")]
    (result,) = answer(capsys, zoo, "--images", photos, "-k", 2)["results"]
    assert result["query"] == {"images": files}
    assert {(hit["model"], hit["output"]) for hit in result["hits"]} == {("org/animals", 2), ("zoo/both", 2)}
    (result,) = answer(capsys, zoo, "--images", files[1], "--images", files[0], "horse", "-k", 1)["results"]
    assert result["query"] == {"text": "horse", "images": [files[1], files[0]]}
    (result,) = answer(capsys, zoo, "horse", "--images", *files[:3], "-k", 1)["results"]  # as a shell expands *.png
    assert result["query"] == {"text": "horse", "images": files[:3]}
    (result,) = answer(capsys, zoo, "--images", photos, "--level", "model", "-k", 1)["results"]
    assert result["query"] == {"images": files}
    assert [m["concept"] for m in result["hits"][0]["outputs"]] == ["4 images"]


def test_like_in_json(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, zoo, "--like", "zoo/both#1", "-k", 3)
    (result,) = found["results"]
    assert result["query"] == {"like": "zoo/both#1"}
    assert found["searched"] == 7
    assert (result["hits"][0]["model"], result["hits"][0]["output"]) == ("org/animals", 1)
    assert [list(hit) for hit in result["hits"]] == [HIT] * 3
    found = answer(capsys, zoo, "--like", "zoo/both", "--level", "model")
    (result,) = found["results"]
    assert result["query"] == {"like": "zoo/both"}
    assert [(hit["model"], len(hit["outputs"])) for hit in result["hits"]] == [("org/animals", 7), ("org/things", 7)]
    matched = {m["concept"]: m["output"] for m in result["hits"][0]["outputs"] if (m["margin"] or 0) > 1}
    assert matched == {"#0": 0, "#1": 1, "#2": 2, "#3": 3}
    assert answer(capsys, zoo, "--like", "zoo/both", "--level", "model", "--require", "all")["results"][0]["hits"] == []


@pytest.mark.usefixtures("encoder")
def test_labels_in_json(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for evidence, first in (("both", ["probes", "labels"]), ("labels", ["probes", "labels"])):
        hits = answer(capsys, zoo, "cat", "--evidence", evidence)["results"][0]["hits"]
        assert [list(hit) for hit in hits] == [[*HIT, "witnesses", "label_margin"]] * len(hits)
        assert (hits[0]["model"], hits[0]["witnesses"]) == ("org/animals", first)
        assert hits[0]["label_margin"] > 0
    assert len(hits) == 7  # those of zoo/both have none


@pytest.mark.usefixtures("encoder")
def test_tables_are_for_people(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(zoo, "cat", "lamp", "ship", "--level", "model", "--require", "any", "--explain")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["cat,", "lamp,", "ship"]
    assert lines[2].split() == ["model", "margin", "covered", "concept:", "output,", "label,", "margin"]
    assert "2/3" in lines[4]
    assert "cat: #0  " in captured.out
    assert "lamp: #2 lamp  " in captured.out
    assert "ship: nothing" in captured.out
    assert ".png" in captured.out
    assert captured.err.startswith("14 outputs searched exactly in ")
    search(zoo, "cat", "--evidence", "both", "-k", 3)
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[-1] == "witnesses"
    assert "probes, labels" in out
    search(zoo, "horse", "--images", photos, "-k", 1)
    assert capsys.readouterr().out.splitlines()[0].strip() == "horse, 4 images"
    search(zoo, "--images", photos / "0.png", "-k", 1)
    assert capsys.readouterr().out.splitlines()[0].strip() == "1 image"
    search(zoo, "--like", "org/animals#3", "-k", 1)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].strip() == "like org/animals#3"
    assert "10 outputs searched" in captured.err


def test_long_lists_are_cut_in_tables_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_index(tmp_path / "zoo")
    names = [f"thing {i}" for i in range(15)]
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/one", names, seed=1)
        put_model(writer, "org/two", names, seed=2)
        writer.finish()
    search(index.folder, "--like", "org/one", "--level", "model")
    out = capsys.readouterr().out
    assert "thing 11: #11" in out
    assert "thing 12: " not in out
    assert "and 3 more (--format json has them)" in out
    hit = answer(capsys, index.folder, "--like", "org/one", "--level", "model")["results"][0]["hits"][0]
    assert [m["output"] for m in hit["outputs"]] == list(range(15))


@pytest.mark.usefixtures("encoder")
def test_quiet_is_names_alone(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["cat", "lamp", "--level", "model", "-k", 1], ["zoo/both"]),
        (["--like", "zoo/both#6", "-k", 1], ["org/things#2"]),
        (["--like", "org/animals", "--level", "model", "-k", 1], ["zoo/both"]),
        (["--images", photos, "-k", 1, "--where", "library=timm", "--where", "label=yes"], ["org/animals#2"]),
        (["cat", "owl", "-k", 1, "--evidence", "both"], ["org/animals#0", "org/animals#3"]),
    ):
        search(zoo, *arguments, "--format", "quiet")
        captured = capsys.readouterr()
        assert captured.out.split() == expected
        assert captured.err == ""


@pytest.mark.parametrize("kind", ["texts", "list", "like", "images", "none"])
@pytest.mark.usefixtures("encoder")
def test_evidence_is_drawn(
    zoo: Path,
    photos: Path,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [f"thing {i}" for i in range(14)]
    arguments, panels, heading = {
        "texts": (["cat", "lamp", "-k", 2], 4, "cat, lamp"),
        "list": (["cat", "lamp", "--level", "model", "-k", 1], 2, "cat, lamp"),
        "like": (["--like", "org/animals#0", "-k", 3], 3, "like org/animals#0"),
        "images": (["--images", photos, "-k", 2, "--evidence", "both"], 2, "4 images"),
        "none": ([*many, "--level", "model"], 0, ", ".join(many[:12])),
    }[kind]
    headings: list[str] = []

    def write(path: Path, panels: list[Panel], heading: str) -> None:
        headings.append(heading)
        write_contact_sheet(path, panels, heading)

    monkeypatch.setattr("query.contact_sheet.write_contact_sheet", write)
    file = tmp_path / f"why{panels}.png"
    search(zoo, *arguments, "--evidence-image", file, "--format", "json")
    captured = capsys.readouterr()
    assert captured.err == f"{file}: {panels} outputs with their strongest probes\n"
    json.loads(captured.out)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.height > 100 + 150 * panels
        assert np.asarray(picture).std() > 1
    assert headings == [heading]


def test_a_list_longer_than_every_model_is_answered_with_nothing_and_a_note(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [*ANIMALS, "lamp", "a", "b", "c"]  # eight, and the largest model has seven outputs
    search(zoo, *many, "--level", "model")
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("14 outputs searched")
    assert err[1:] == [
        "no model qualifies: with --require all each concept needs an output of its own; try --require any"
    ]
    found = answer(capsys, zoo, *many, "--level", "model")
    assert found["results"] == [{"query": {"texts": many}, "hits": []}]
    search(zoo, *many, "--level", "model", "--format", "quiet")
    assert capsys.readouterr() == ("", "")
    assert len(answer(capsys, zoo, *many, "--level", "model", "--require", "any")["results"][0]["hits"]) > 0


@pytest.mark.usefixtures("encoder")
def test_the_note_on_finding_nothing_says_why(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["cat", "--where", "library=onnx"], "no output in the index satisfies --where"),
        (["--like", "zoo/both#0", "--where", "model=zoo/*"], "no output of another model satisfies --where"),
        (["cat", "--evidence", "labels", "--where", "label=no"], "has a label that says anything: try --evidence both"),
        (["--like", "zoo/both", "--level", "model", "--require", "all"], "each concept needs an output of its own"),
    ):
        search(zoo, *arguments)
        err = capsys.readouterr().err.splitlines()
        assert reason in err[-1]
        assert len(err) <= 2


def test_a_list_that_nothing_covers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/animals", ANIMALS)
        writer.finish()
    index.embed(["river"], encode)
    search(index.folder, "river", "--level", "model", "--require", "any")
    assert "closer to one of the concepts than the background" in capsys.readouterr().err.splitlines()[1]
    search(index.folder, "--like", "org/animals#0")
    assert capsys.readouterr().err.strip() == "there is no other model in the index"


def test_one_broken_image_among_many_is_named(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = photos / "more" / "broken.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    line = refused(capsys, zoo, "--images", photos)
    assert str(cut) in line
    assert "damaged" in line
    assert "leave it out of --images" in line
    assert "3.png" not in line


def test_bad_images(zoo: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("words")
    assert "there is no such file or folder" in refused(capsys, zoo, "--images", tmp_path / "absent.png")
    assert "no image is in this folder" in refused(capsys, zoo, "--images", photos, "--images", empty)
    assert f"{text} is not an image" in refused(capsys, zoo, "--images", text)
    assert "there are 2" in refused(capsys, zoo, "cat", "dog", "--images", photos)
    assert "there are 2" in refused(capsys, zoo, "cat", "dog", "--images", photos, "--level", "model")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["cat", "dog", "Cat", "--level", "model"], "'Cat' is twice in the list"),
        (["--like", "org/animal#1"], "org/animal is not in the index: did you mean org/animals"),
        (["--like", "animals", "--level", "model"], "did you mean org/animals"),
        (["--like", "x/y#1"], "the model x/y is not in the index"),
        (["--like", "org/animals#17"], "no output 17 of org/animals"),
        (["--like", "org/animals#x"], "the number of an output"),
        (["--like", "org/animals"], "names no output"),
        (["--like", "org/animals#1", "--level", "model"], "names one output"),
        (["--like", "org/animals#1", "cat"], "leave out the concepts and images"),
        (["cat", "--require", "all"], "add --level model"),
        (["--like", "org/animals#1", "--require", "any"], "add --level model"),
        (["cat", "dog", "--level", "model", "--evidence", "labels"], "without --level model"),
        (["--like", "org/animals#1", "--evidence", "both"], "without --level model and --like"),
        (["cat", "--evidence-image", "why.gif"], "ends in .png"),
        (["cat", "--evidence-image", "why"], "ends in .png"),
        (["cat", "--evidence-image", "/no/such/folder/why.png"], "does not exist"),
        (["cat", " ", "--level", "model"], "empty"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    zoo: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in refused(capsys, zoo, *arguments)


def test_the_same_concept_twice_in_a_file_is_found(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "list.txt"
    file.write_text("cat\ndog\n")
    assert "'dog' is twice" in refused(capsys, zoo, f"@{file}", "dog", "--level", "model")
    assert len(answer(capsys, zoo, f"@{file}", "dog")["results"]) == 3  # apart, they are three questions


def test_nothing_to_search_for_and_unknown_choices_are_wrong_usage(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        [],
        ["--level", "model"],
        ["cat", "--level", "probe"],
        ["cat", "--evidence", "everything"],
        ["cat", "--level", "model", "--require", "some"],
    ):
        search(zoo, *arguments, status=2)
        assert "Error" in capsys.readouterr().err


def test_a_photograph_among_the_concepts_is_refused(
    zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, zoo, "cat", photos / "0.png")
    assert f"{photos / '0.png'} is an image file: use --images" in line


def test_like_is_one_question(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(zoo, "--like", "org/animals#0", "--like", "org/animals#1", status=2)
    assert "one output or model at a time" in capsys.readouterr().err


def test_a_ceiling_says_what_counts(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = answer(capsys, zoo, "cat", "dog", "--level", "model", "--ceiling", 2)["results"]
    for hit in result["hits"]:
        counted = [min(m["margin"], 2) + 0.01 * max(m["margin"] - 2, 0) for m in hit["outputs"]]
        assert hit["score"] == pytest.approx(sum(counted) / 2, abs=1e-5)
    scores = [hit["score"] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)
    search(zoo, "cat", "dog", "--level", "model", "--ceiling", 2)
    assert "counts" in capsys.readouterr().out
    (plain,) = answer(capsys, zoo, "cat", "dog", "--level", "model")["results"]
    assert "score" not in plain["hits"][0]
