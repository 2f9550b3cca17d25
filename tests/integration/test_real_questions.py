"""Every kind of question, and the evaluation, on real models and photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.index import Index
from query.cli.main import run
from query.request import SearchRequest
from query.search import Searcher
from tests.integration.conftest import REAL_MODELS, REALHUB

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not REALHUB.is_dir(), reason="the real models of ../shared/realhub are not here"),
]
LITE, MOBILE = REAL_MODELS


def classes_of(folder: Path) -> dict[tuple[str, int], int | None]:
    truth = json.loads((folder.parent / "truth.json").read_text())
    return {(model, entry["index"]): entry["imagenet_class"] for model, entries in truth.items() for entry in entries}


def test_the_evaluation_shows_the_papers_pattern(
    real_zoo: tuple[Path, set[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = real_zoo
    arguments = ["eval", "retrieval", "--index", str(folder), "--truth", str(folder.parent / "truth.json")]
    arguments += [
        "--images",
        str(REALHUB / "images.csv"),
        "--tasks",
        "output,naming",
        "--out",
        str(tmp_path / "e.json"),
    ]
    arguments += ["--methods", "whitened+divisive,dual,probelog,truncated,soft-wpmi"]
    assert run(arguments) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    found = {
        (table["task"], row["method"], row["group"]): row["figures"]["hit@1"]["mean"]
        for table in report["tables"]
        for row in table["rows"]
    }
    first = {key[1:]: value for key, value in found.items() if key[0] == "output"}
    assert first["probelog", "all"] > first["truncated", "all"] + 0.08, first
    assert first["dual", "all"] > first["probelog", "all"], first
    assert first["whitened+divisive", "unseen"] > first["dual", "unseen"] + 0.02, first
    assert first["whitened+divisive", "seen"] > first["dual", "seen"] - 0.05, first
    assert first["whitened+divisive", "all"] > first["soft-wpmi", "all"], first
    words = "whitened+divisive, words calibrated"
    assert found["naming", words, "all"] > found["naming", "whitened+divisive", "all"], found
    assert "Text to output" in capsys.readouterr().out


def test_outputs_like_an_output_mean_the_same(real_zoo: tuple[Path, set[int]]) -> None:
    folder, _ = real_zoo
    truth, searcher = classes_of(folder), Searcher(Index(folder))
    chosen = np.random.default_rng(0).choice(1000, 40, replace=False).tolist()
    right = []
    for output in chosen:
        hits = searcher.search(SearchRequest(like=f"{LITE}#{output}", k=5)).results[0].outputs
        assert {hit.model for hit in hits} == {MOBILE}
        right.append([truth[hit.model, hit.output] == truth[LITE, output] for hit in hits])
    # Of 1001 outputs of a model that is right about less than half of its own images; chance is 0.001.
    assert np.mean([row[0] for row in right]) > 0.3, right
    assert np.mean([any(row) for row in right]) > 0.5, right


def test_a_photograph_finds_its_class(real_zoo: tuple[Path, set[int]]) -> None:
    folder, _ = real_zoo
    image = next(iter((REALHUB / "images").glob("*school_bus*")))
    for request in (SearchRequest(images=(image,)), SearchRequest(("school bus",), images=(image,))):
        hit = Searcher(Index(folder)).search(request).results[0].outputs[0]
        assert (hit.model, hit.output) in {(LITE, 779), (MOBILE, 780)}


def test_labels_beside_the_probes_do_no_harm_and_help(real_zoo: tuple[Path, set[int]]) -> None:
    folder, seen = real_zoo
    truth, searcher = classes_of(folder), Searcher(Index(folder))
    labels = json.loads((folder.parent / "truth.json").read_text())[LITE]
    asked = [entry for entry in labels if entry["imagenet_class"] not in seen][:150]
    texts = tuple(entry["label"].split(",")[0] for entry in asked)
    share = {}
    for evidence in ("probes", "both"):
        answer = searcher.search(SearchRequest(texts, 1, evidence=evidence))  # type: ignore[arg-type]
        best = [result.outputs[0] for result in answer.results]
        share[evidence] = np.mean(
            [truth[hit.model, hit.output] == entry["imagenet_class"] for hit, entry in zip(best, asked, strict=True)]
        )
    assert share["both"] > share["probes"] + 0.05, share


def test_a_model_without_labels_is_described(
    real_zoo: tuple[Path, set[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, seen = real_zoo
    bare = tmp_path / "someone" / "nameless"
    shutil.copytree(REALHUB / "models" / MOBILE, bare)
    config = json.loads((bare / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(1001)}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (bare / "config.json").write_text(json.dumps(config))
    truth = [entry for entry in json.loads((folder.parent / "truth.json").read_text())[MOBILE]]
    known = [entry for entry in truth if entry["imagenet_class"] in seen]
    names = {entry["index"]: entry["label"].split(",")[0] for entry in known}
    (tmp_path / "words.txt").write_text("\n".join(dict.fromkeys(names.values())))
    before = sorted(path.name for path in (folder / "responses").iterdir())
    arguments = ["describe", str(bare), "--index", str(folder), "--vocabulary", str(tmp_path / "words.txt"), "-k", "5"]
    assert run([*arguments, "--cache", str(folder.parent / "cache"), "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "someone/nameless"
    assert len(answer["outputs"]) == 1001
    assert {output["label"] for output in answer["outputs"]} == {None}
    right = [
        [concept["name"] == names[output["output"]] for concept in output["concepts"]]
        for output in answer["outputs"]
        if output["output"] in names
    ]
    assert len(right) == len(names)
    # 240 names to choose from: chance is 0.4 and 2 per cent.
    assert np.mean([row[0] for row in right]) > 0.25, np.mean([row[0] for row in right])
    assert np.mean([any(row) for row in right]) > 0.45, np.mean([any(row) for row in right])
    assert sorted(path.name for path in (folder / "responses").iterdir()) == before, "nothing was stored"


def test_one_model_for_a_list(
    real_zoo: tuple[Path, set[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, seen = real_zoo
    labels = json.loads((folder.parent / "truth.json").read_text())[LITE]
    wanted = {entry["label"].split(",")[0]: entry["index"] for entry in labels if entry["imagenet_class"] in seen}
    wanted = dict(list(wanted.items())[100:110])
    sheet = tmp_path / "why.png"
    arguments = ["search", *wanted, "--level", "model", "--index", str(folder)]
    assert run([*arguments, "--evidence-image", str(sheet), "--format", "json"]) == 0
    hits = json.loads(capsys.readouterr().out)["results"][0]["hits"]
    assert [hit["model"] for hit in hits] == [LITE, MOBILE]
    outputs = {matched["concept"]: matched["output"] for matched in hits[0]["outputs"]}
    assert sum(outputs[text] == output for text, output in wanted.items()) >= 9, (outputs, wanted)
    assert sheet.stat().st_size > 10_000
