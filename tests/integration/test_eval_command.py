"""``hubhound eval`` from the command line, on a small index of pretend models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.descriptors import FloatArray
from engine.distance import METHODS
from engine.index import Index
from engine.verify import verify
from query.cli.main import run
from query.evaluate import derived
from query.evaluate.results import RetrievalReport, SweepReport
from tests.support.small_index import ANIMALS, THINGS, PretendEncoder, encode, make_filled_index, vector

BOTH = (*ANIMALS, *THINGS)
WORDS = (*(f"word {i}" for i in range(300)), "CAT", "feline", "chair", "Sofa")


class RecordingEncoder(PretendEncoder):
    """Remembers what it was asked; a concept's images lie beside its text, other templates a little elsewhere."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, ...], list[str]] = {}
        self.images = 0

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        self.texts.setdefault(tuple(templates), []).extend(texts)
        if tuple(templates) == ("{}",):
            return encode(texts)
        made = encode(texts) + 0.7 * np.stack([vector(f"{text} {templates}") for text in texts])
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)

    def encode_images(self, images: Any, count: int, progress: Any = None) -> FloatArray:
        made = encode([BOTH[image.getpixel((0, 0))[0]] for image in images])
        self.images += len(made)
        return made


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> RecordingEncoder:
    made = RecordingEncoder()
    monkeypatch.setattr(Index, "load_encoder", lambda self, device="cpu": made)
    monkeypatch.setattr("engine.calibration.imagenet21k_names", lambda: WORDS)
    return made


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    labels = {name: name for name in BOTH} | {"cat": "cat, feline"}

    def entries(names: Sequence[str]) -> list[dict[str, object]]:
        return [{"index": i, "label": labels[name], "class": f"c-{name}"} for i, name in enumerate(names)]

    return write(
        tmp_path / "truth.json",
        {"org/animals": entries(ANIMALS), "org/things": entries(THINGS), "zoo/both": entries(BOTH)},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_filled_index(tmp_path_factory.mktemp("made") / "zoo")


@pytest.fixture
def zoo(made: Index) -> Path:
    """An index that remembers no text."""
    (made.folder / "concepts.sqlite").unlink(missing_ok=True)
    return made.folder


@pytest.fixture
def images(tmp_path: Path, zoo: Path) -> Path:
    """Two images of every concept, none of them a probe but one of a cat."""
    lines = ["file,class", f"{zoo.parent}/images/000.png,c-cat"]
    for i, name in enumerate(BOTH):
        for j in range(2):
            Image.new("RGB", (3 + j, 3), (i, 0, 0)).save(tmp_path / f"{name}-{j}.png")
            lines.append(f"{name}-{j}.png,c-{name}")
    return write(tmp_path / "images.csv", "\n".join(lines))


def measured(
    zoo: Path, truth: Path, tmp_path: Path, *more: str, command: tuple[str, ...] = ("retrieval",)
) -> RetrievalReport | SweepReport:
    out = tmp_path / "out" / "figures.json"
    given = ("--index", str(zoo), "--truth", str(truth), "--background", "50", "--out", str(out))
    assert run(["eval", *command, *given, *more]) == 0
    kind = SweepReport if command[0] == "sweep" else RetrievalReport
    return kind.model_validate_json(out.read_bytes())


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.usefixtures("encoder")
def test_everything_at_once(
    zoo: Path, truth: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--images", str(images), "--methods", "dual,truncated", "--seeds", "2", "--lists", "20")
    files = ("--markdown", str(tmp_path / "deep" / "t.md"), "--plots", str(tmp_path / "plots"))
    report = measured(zoo, truth, tmp_path, *more, *files)
    assert isinstance(report, RetrievalReport)
    assert [table.task for table in report.tables] == ["output", "model", "naming", "lists", "images-1"]
    rows = {(row.method, row.group): row for row in report.tables[0].rows}
    assert {group for _, group in rows} == {"all", "seen", "unseen"}
    assert rows["dual", "all"].queries == 7
    assert rows["dual", "seen"].queries == 1
    assert rows["dual", "all"].figures["hit@1"].mean > 0.9  # the pretend models are good
    assert rows["dual", "all"].figures["hit@1"].sd is not None
    by_image = {row.method: row for row in report.tables[-1].rows if row.group == "all"}
    assert by_image["dual"].figures["hit@1"].mean > 0.9
    captured = capsys.readouterr()
    for part in ("Text to output", "Text to model", "dual", "seen (1)", "±"):
        assert part in captured.out
    assert "hit@1 / hit@5 in per cent" in captured.err
    assert "images-5" not in captured.out
    assert "image queries of 10 left out" in captured.err
    assert (tmp_path / "deep" / "t.md").read_text().startswith("# Retrieval")
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"task-output.png", "task-output.svg", "task-images-1.png", "hubness.svg"} <= drawn


def groups_at(report: RetrievalReport | SweepReport) -> list[dict[str, int]]:
    """How many queries each group has, at every point."""
    parts = report.tables[:1] if isinstance(report, RetrievalReport) else report.points
    return [{row.group: row.queries for row in part.rows} for part in parts]


def test_images_are_embedded_only_to_be_queries(
    zoo: Path, truth: Path, images: Path, tmp_path: Path, encoder: RecordingEncoder
) -> None:
    given = ("--images", str(images), "--methods", "cosine")
    split = {"all": 7, "seen": 1, "unseen": 6}
    assert groups_at(measured(zoo, truth, tmp_path, *given, "--tasks", "output")) == [split]
    assert groups_at(measured(zoo, truth, tmp_path, *given, "--values", "5", command=("sweep", "r"))) == [split]
    sweep = measured(zoo, truth, tmp_path, *given, "--values", "one", command=("sweep", "templates"))
    assert groups_at(sweep) == [split]
    assert encoder.images == 0
    measured(zoo, truth, tmp_path, *given, "--tasks", "images")
    assert encoder.images == 14


@pytest.mark.usefixtures("encoder")
def test_seen_follows_the_probes_that_are_used(zoo: Path, truth: Path, images: Path, tmp_path: Path) -> None:
    given = ("--images", str(images), "--methods", "cosine", "-r", "5")
    found = set()
    for seed in range(6):
        more = ("--tasks", "output", "--probes", "20", "--seed", str(seed))
        (groups,) = groups_at(measured(zoo, truth, tmp_path, *given, *more))
        found.add((groups.get("seen", 0), groups["unseen"]))
    assert found == {(0, 7), (1, 6)}  # the one labelled probe is drawn, or it is not
    report = measured(zoo, truth, tmp_path, *given, "--values", "5,80", command=("sweep", "probes"))
    assert groups_at(report) == [{"all": 7, "unseen": 7}, {"all": 7, "seen": 1, "unseen": 6}]
    other = make_filled_index(tmp_path / "b" / "zoo").folder
    probes = json.loads((other / "probes.json").read_text())
    probes[0]["sha256"] = "0" * 64  # another picture than the labelled one
    write(other / "probes.json", probes)
    report = measured(zoo, truth, tmp_path, *given, "--also", str(other), command=("sweep", "probe-source"))
    assert groups_at(report) == [{"all": 7, "seen": 1, "unseen": 6}, {"all": 7, "unseen": 7}]


@pytest.mark.usefixtures("encoder")
def test_formats(zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = measured(zoo, truth, tmp_path, "--methods", "truncated,dual", "--tasks", "output", "--format", "json")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == report.model_dump(mode="json")
    assert captured.err == ""
    measured(zoo, truth, tmp_path, "--methods", "truncated,dual", "--tasks", "output", "--format", "quiet")
    assert sorted(capsys.readouterr().out.split()) == ["dual", "truncated"]


def test_every_option_reaches_the_measurement(
    zoo: Path, truth: Path, tmp_path: Path, encoder: RecordingEncoder
) -> None:
    plain = measured(zoo, truth, tmp_path, "--methods", "dual", "--tasks", "output").settings
    assert (plain["r"], plain["k"], plain["seeds"], plain["probes"]) == (20, 10, [0], None)  # the index's own
    assert plain["templates"] == ["{}"]
    assert plain["encoder"] == "pretend"
    options = ("-r", "7", "--nearest", "3", "--seeds", "2", "--seed", "5", "--probes", "40", "--lists", "9")
    more = ("--templates", "one", "--templates", "my {}", "--tasks", "output,lists", "--methods", "cosine")
    found = measured(zoo, truth, tmp_path, *options, *more).settings
    expected = {"r": 7, "k": 3, "seeds": [5, 6], "probes": 40, "lists": 9, "background": 50, "methods": ["cosine"],
                "tasks": ["output", "lists"], "templates": ["a photo of a {}", "my {}"]}  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert set(encoder.texts) == {("{}",), ("a photo of a {}", "my {}")}


def test_the_background_has_no_synonym_of_a_label(
    zoo: Path, truth: Path, tmp_path: Path, encoder: RecordingEncoder
) -> None:
    measured(zoo, truth, tmp_path, "--methods", "dual", "--tasks", "output", "--background", "301")
    asked = encoder.texts["{}",]
    assert {"word 0", "Sofa", "cat"} <= set(asked)
    assert not {"CAT", "feline"} & set(asked)
    assert len(asked) == len(set(asked)) == 7 + 301


def test_texts_are_remembered_by_the_index(zoo: Path, truth: Path, tmp_path: Path, encoder: RecordingEncoder) -> None:
    first = measured(zoo, truth, tmp_path, "--methods", "dual", "--tasks", "output")
    encoder.texts.clear()
    second = measured(zoo, truth, tmp_path, "--methods", "dual", "--tasks", "output")
    assert encoder.texts == {}
    ours, theirs = (r.tables[0].rows[0].figures for r in (first, second) if isinstance(r, RetrievalReport))
    assert ours == theirs


@pytest.mark.usefixtures("encoder")
def test_queries_from_a_file(zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = write(tmp_path / "q.csv", "text,class,groups\ncat,c-cat,pets\nowl,c-owl,\nunicorn,c-none,\n")
    report = measured(zoo, truth, tmp_path, "--queries", str(queries), "--methods", "dual", "--tasks", "output")
    assert isinstance(report, RetrievalReport)
    assert {row.group: row.queries for row in report.tables[0].rows} == {"all": 2, "pets": 1}
    assert "1 of 3 queries left out: no output is of their class (c-none)" in capsys.readouterr().err


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(
    ("parameter", "values", "setting"),
    [("r", ("5,10", "20"), "r"), ("probes", ("40,80",), "probes"), ("background", ("20,60",), "background"),
     ("k", ("1,5",), "k")],
)  # fmt: skip
def test_sweeps_over_numbers(
    zoo: Path, truth: Path, tmp_path: Path, parameter: str, values: tuple[str, ...], setting: str
) -> None:
    given = [part for value in values for part in ("--values", value)]
    report = measured(zoo, truth, tmp_path, "--methods", "dual", *given, command=("sweep", parameter))
    assert isinstance(report, SweepReport)
    expected = ",".join(values).split(",")
    assert [point.value for point in report.points] == expected
    assert report.settings[setting] == [int(value) for value in expected]


@pytest.mark.usefixtures("encoder")
def test_a_sweep_has_values_of_its_own(zoo: Path, truth: Path, tmp_path: Path) -> None:
    report = measured(zoo, truth, tmp_path, "--plots", str(tmp_path / "p"), command=("sweep", "r"))
    assert isinstance(report, SweepReport)
    assert [point.value for point in report.points] == ["5", "10", "20", "50"]  # there are 80 probes
    assert (tmp_path / "p" / "sweep-r.svg").exists()
    suffix = "+divisive" if Index(zoo).manifest.normalisation == "divisive" else ""
    assert {row.method for row in report.points[0].rows} == {*(f"{method}{suffix}" for method in METHODS), "probelog"}


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(
    ("parameter", "options", "expected"),
    [
        ("k", (), ["1", "3", "10", "30"]),
        ("k", ("--background", "2"), ["1"]),
        ("r", ("--probes", "40"), ["5", "10", "20"]),
        ("r", ("--probes", "4", "-r", "2"), ["4"]),
        ("probes", (), ["20", "40", "80"]),
        ("probes", ("-r", "5"), ["10", "20", "40", "80"]),
        ("probes", ("--probes", "40"), ["20", "40"]),
    ],
)
def test_the_values_of_a_sweep_fit_the_other_options(
    zoo: Path, truth: Path, tmp_path: Path, parameter: str, options: tuple[str, ...], expected: list[str]
) -> None:
    report = measured(zoo, truth, tmp_path, "--methods", "cosine", *options, command=("sweep", parameter))
    assert isinstance(report, SweepReport)
    assert [point.value for point in report.points] == expected


def test_a_sweep_over_templates(zoo: Path, truth: Path, tmp_path: Path, encoder: RecordingEncoder) -> None:
    values = ("--values", "1,2", "--values", "a {}, of course", "--values", "index")
    report = measured(zoo, truth, tmp_path, "--methods", "cosine", *values, command=("sweep", "templates"))
    assert isinstance(report, SweepReport)
    assert [point.value for point in report.points] == ["1", "2", "a {}, of course", "index"]
    assert set(encoder.texts) == {("a photo of a {}",), ("a photo of a {}", "{}"), ("a {}, of course",), ("{}",)}
    figures = [point.rows[0].figures["mrr"].mean for point in report.points]
    assert figures[-1] == max(figures)  # what the pretend models were made with
    assert "templates" not in report.settings


@pytest.mark.usefixtures("encoder")
def test_a_sweep_over_probe_sources(zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_filled_index(tmp_path / "b" / "zoo").folder
    report = measured(
        zoo, truth, tmp_path, "--methods", "dual", "--also", str(other), command=("sweep", "probe-source")
    )
    assert isinstance(report, SweepReport)
    assert [point.value for point in report.points] == [str(f.parent / "images") for f in (zoo, other)]
    first, second = (point.rows[0].figures for point in report.points)
    assert first == second  # the pretend probes are the same
    capsys.readouterr()
    dropped = make_filled_index(tmp_path / "c" / "zoo", responses="drop").folder
    arguments = ["eval", "sweep", "probe-source", "--index", str(zoo), "--truth", str(truth), "--also", str(dropped)]
    assert run(arguments) == 1
    assert f"the index {dropped} kept no responses" in error_of(capsys)


@pytest.mark.usefixtures("encoder")
def test_a_derived_hub_is_an_index_like_any_other(
    zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"
    making = ["eval", "make-hub", "--from", str(zoo), "--truth", str(truth), "--out", str(hub)]
    sizes = ["--models", "12", "--min-classes", "2", "--max-classes", "4"]
    assert run([*making, *sizes, "--seed", "1", "--noise", "0.1", "--probabilities", "0.4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"12 models, \d+ outputs, \d+ of known class", captured.err)
    assert verify(hub) == []
    report = measured(hub, hub / "truth.json", tmp_path, "--methods", "dual", "--tasks", "output,model")
    assert isinstance(report, RetrievalReport)
    assert report.settings["models"] == 12
    assert report.tables[0].rows[0].figures["hit@5"].mean > 0.8
    capsys.readouterr()
    assert run([*making, *sizes]) == 1
    assert "there is an index" in error_of(capsys)
    assert run(["search", "cat", "--index", str(hub), "-k", "1", "--format", "quiet"]) == 0
    assert capsys.readouterr().out.startswith("derived/")


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["retrieval", "--methods", "dual,magic"], "method 'magic' is unknown"),
        (["retrieval", "-r", "999"], "top r is 999"),
        (["retrieval", "--nearest", "50"], "k = 50"),
        (["retrieval", "--probes", "81"], "81 probes"),
        (["retrieval", "--templates", "two"], "templates 'two'"),
        (["retrieval", "--truth", "nowhere.json"], "truth file nowhere.json cannot be read"),
        (["retrieval", "--queries", "nowhere.json"], "queries file nowhere.json cannot be read"),
        (["retrieval", "--images", "nowhere.csv"], "images file nowhere.csv cannot be read"),
        (["retrieval", "--index", "nowhere"], "no index at nowhere"),
        (["retrieval", "--index", "qdrant://host:6333"], "the name of an index on a server"),
        (["retrieval", "--background", "5000"], "5000"),
        (["sweep", "r", "--values", "5,900"], "top r is 900"),
        (["sweep", "templates", "--values", "6"], "6 templates: there are 5"),
        (["sweep", "templates", "--values", "0"], "0 templates"),
        (["sweep", "templates", "--values", "few"], "templates 'few'"),
        (["sweep", "templates", "--values", "9" * 5000], "a number of 5000 digits: there are 5 templates"),
        (["sweep", "probes", "--probes", "10"], "top r is 20"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    zoo: Path, truth: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"--index": str(zoo), "--truth": str(truth), "--background": "50"}
    given = [part for key, value in defaults.items() if key not in arguments for part in (key, value)]
    assert run(["eval", *arguments, *given]) == 1
    assert part in error_of(capsys)


@pytest.mark.usefixtures("encoder")
def test_images_of_other_classes(zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write(tmp_path / "images.csv", f"file,class\n{zoo.parent}/images/000.png,0\n")
    assert run(["eval", "retrieval", "--index", str(zoo), "--truth", str(truth), "--images", str(images)]) == 1
    assert "is of a class that the truth knows (0)" in error_of(capsys)


def test_a_truth_without_labels(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "bare.json", {"org/animals": [{"index": 0, "class": 3}]})
    assert run(["eval", "retrieval", "--index", str(zoo), "--truth", str(truth)]) == 1
    assert "bare.json has no label to ask with: add labels, or give --queries FILE" in error_of(capsys)


def test_a_value_of_thousands_of_digits(zoo: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "sweep", "r", "--values", "5," + "9" * 5000, "--index", str(zoo), "--truth", str(truth)]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "999999999... is not a whole number of at most 9 digits" in error
    assert len(error) < 500


@pytest.mark.parametrize("noise", ["inf", "nan", "1e200"])
def test_noise_that_is_no_number(
    zoo: Path, truth: Path, tmp_path: Path, noise: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "hub"
    hub = ["eval", "make-hub", "--from", str(zoo), "--truth", str(truth), "--out", str(target), "--noise", noise]
    assert run(hub) == 1
    assert "noise lies between 0 and 1,000,000" in error_of(capsys)
    assert not target.exists()


def test_models_without_a_usable_output_are_counted(
    zoo: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = derived.derived_responses
    monkeypatch.setattr(
        derived,
        "derived_responses",
        lambda d, *parts: honest(d, *parts) * (not d.repo.startswith("derived/00002")),
    )
    sizes = ["--models", "3", "--min-classes", "2", "--max-classes", "4"]
    assert (
        run(["eval", "make-hub", "--from", str(zoo), "--truth", str(truth), "--out", str(tmp_path / "h"), *sizes]) == 0
    )
    error = capsys.readouterr().err
    assert ": 2 models, " in error
    assert "1 models left out: none of their outputs is usable" in error


@pytest.mark.parametrize("command", [[], ["retrieval"], ["sweep"], ["make-hub"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", *command, "--help"]) == 0
    assert "Usage: hubhound eval" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["retrieval", "--tasks", "output,magic"],
        ["retrieval", "--tasks", "images"],
        ["retrieval", "--methods", ","],
        ["retrieval", "--seeds", "0"],
        ["retrieval", "--lists", "0"],
        ["sweep", "magic"],
        ["sweep", "r", "--values", "5,few"],
        ["sweep", "r", "--values", "0"],
        ["sweep", "r", "--also", "other"],
        ["sweep", "probe-source"],
        ["sweep", "probe-source", "--also", "other", "--values", "5"],
    ],
)
def test_wrong_usage(zoo: Path, truth: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", *arguments, "--index", str(zoo), "--truth", str(truth)]) == 2
    assert "Error" in capsys.readouterr().err
    hub = ["eval", "make-hub", "--from", str(zoo), "--truth", str(truth), "--out", "x"]
    for wrong in (["--models", "0"], ["--min-classes", "1"], ["--noise", "-1"], ["--probabilities", "1.5"]):
        assert run([*hub, *wrong]) == 2
    capsys.readouterr()
    assert run([*hub, "--min-classes", "9", "--max-classes", "8"]) == 1
    assert "9 to 8 classes" in error_of(capsys)
