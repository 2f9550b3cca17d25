"""``hubhound profile`` and ``hubhound recommend``: options, answers and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import indexers.profiler as profiler_module
from engine.conductance_cache import FILE
from engine.index import Index
from engine.writer import IndexWriter
from query.cli.main import run
from query.cli.recommend import _bar, _count
from query.profiled import image_profiles
from tests.support.tiny_models import VIT, save_transformers
from tests.support.tiny_vlm import (
    BLOCKS,
    COCA_CONFIG,
    N_STEPS,
    PASSES,
    TASKS,
    add_photo_task,
    make_task_index,
    save_vlm,
    write_photos,
)
from tests.unit.test_cli_task import answer, refusal


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An index with tasks and no profiles, and the names of its models: two CLIPs and a CoCa."""
    root = tmp_path_factory.mktemp("made")
    models = [save_vlm(root / name, seed) for seed, name in enumerate(("one", "two"))]
    models.append(save_vlm(root / "coca", 2, COCA_CONFIG))
    return make_task_index(root / "zoo", models), models


@pytest.fixture(scope="module")
def profiled(made: tuple[Path, list[str]]) -> Path:
    """The same index with the profiles of all models."""
    folder = made[0].parent / "profiled"
    shutil.copytree(made[0], folder)
    assert run(["profile", *made[1], "--index", str(folder), *PASSES]) == 0
    return folder


@pytest.fixture
def models(made: tuple[Path, list[str]]) -> list[str]:
    return made[1]


@pytest.fixture
def bare(made: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "zoo"))


@pytest.fixture
def zoo(profiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(profiled, tmp_path / "zoo"))


@pytest.fixture
def target(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "target", 2, 77)


def ranking(capsys: pytest.CaptureFixture[str], zoo: Path, *arguments: object) -> Any:
    return json.loads(answer(capsys, "recommend", "--index", zoo, "--format", "json", *arguments)[0])


def test_profiling_is_done_once(bare: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ("profile", *models[:2], "--index", bare, *PASSES, "--format", "json")
    found = json.loads(answer(capsys, *command)[0])
    keys = {"model", "blocks", "profiles", "computed", "images", "completeness_gap", "seconds", "detail"}
    assert [set(one) for one in found["models"]] == [keys, keys]
    for one, name in zip(found["models"], models, strict=False):
        facts = (one["model"], one["blocks"], one["profiles"], one["computed"], one["images"], one["detail"])
        assert facts == (name, BLOCKS, 3, 3, 9, None) and one["completeness_gap"] >= 0 and one["seconds"] > 0
    before = Index(bare).knowledge()
    assert len(before.profiles) == 6 and {profile.n_steps for profile in before.profiles} == {N_STEPS}
    again = json.loads(answer(capsys, *command)[0])
    assert [(one["profiles"], one["computed"], one["images"]) for one in again["models"]] == [(3, 0, 0)] * 2
    assert Index(bare).knowledge() == before
    out, err = answer(capsys, *command[:-2])
    assert out.count("there already") == 2 and "2 of 2 models" in err
    assert answer(capsys, *command[:-1], "quiet")[0].split() == models[:2]


def test_again_computes_all_anew(zoo: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--n-steps", "3", "--device", "cpu", "--format", "json")
    line = refusal(capsys, "profile", models[0], "--index", zoo, *steps)
    assert f"n_steps {N_STEPS}, and 3 was asked for: use --n-steps {N_STEPS}, or --again" in line
    line = refusal(capsys, "profile", models[0], "--index", zoo, *PASSES, "--precision", "bfloat16")
    assert "use --precision float32, or --again" in line
    (one,) = json.loads(answer(capsys, "profile", models[0], "--index", zoo, *steps, "--again")[0])["models"]
    assert (one["computed"], one["images"]) == (3, 9)
    known = Index(zoo).knowledge()
    assert {p.n_steps for p in known.profiles_of(models[0])} == {3}
    assert {p.n_steps for p in known.profiles_of(models[1])} == {N_STEPS}
    part = (*steps, "--again", "--blocks", "visual.transformer.resblocks.0")
    (one,) = json.loads(answer(capsys, "profile", models[0], "--index", zoo, *part)[0])["models"]
    assert (one["computed"], one["images"], one["blocks"], one["profiles"]) == (3, 9, 1, 3)
    assert run(["profile", models[0], "--index", str(zoo), "--again", "--task", "pets"]) == 2
    assert "leave out --task" in capsys.readouterr().err


def test_without_n_steps_a_model_keeps_its_own(
    zoo: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = json.loads(answer(capsys, "profile", models[0], "--index", zoo, "--format", "json")[0])["models"]
    assert (one["computed"], one["detail"]) == (0, None)


def test_a_shell_makes_several_arguments_of_images(
    zoo: Path, target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    both = ranking(capsys, zoo, "--images", target[0], target[1])
    assert len(both["target"]["images"]) == 2
    assert both["ranking"] == ranking(capsys, zoo, "--images", target[0], "--images", target[1])["ranking"]
    assert run(["recommend", "--index", str(zoo), "--images", str(target[0]), "nothing.jpg"]) == 2
    assert "is no image" in capsys.readouterr().err


def test_again_with_a_model_that_fails_drops_nothing(
    zoo: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Index(zoo).knowledge()
    line = refusal(capsys, "profile", models[0], "--index", zoo, *PASSES, "--again", "--blocks", "nowhere.*")
    assert "nowhere" in line and Index(zoo).knowledge() == before
    assert len(image_profiles(Index(zoo))[models[0]].images["pets"]) == 3  # nor what is remembered of the images


def test_other_blocks_than_those_recorded_are_refused(
    zoo: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "profile", models[0], "--index", zoo, *PASSES, "--blocks", "visual.transformer.resblocks.1")
    assert "names others" in line and "--again" in line
    answer(capsys, "profile", models[0], "--index", zoo, *PASSES, "--blocks", "visual.transformer.resblocks.*")


def test_a_task_that_was_replaced_is_the_only_one_done_again(
    zoo: Path, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexWriter(zoo) as writer:
        add_photo_task(writer, tmp_path, "food", seed=50)
        writer.export_knowledge()
    command = ("profile", models[0], "--index", zoo, *PASSES, "--format", "json")
    (one,) = json.loads(answer(capsys, *command)[0])["models"]
    assert (one["profiles"], one["computed"], one["images"]) == (3, 1, 3)
    with IndexWriter(zoo) as writer:  # one that came with another sample, from elsewhere
        (old,) = writer.store.profiles(model=models[0], task="pets")
        writer.put_profiles([old.model_copy(update={"task_fingerprint": "0" * 64})])
    (one,) = json.loads(answer(capsys, *command)[0])["models"]
    assert (one["profiles"], one["computed"], one["images"]) == (3, 1, 0)  # its images were shown before
    assert {p.task_fingerprint for p in Index(zoo).knowledge().profiles_of(models[0])} == {
        task.fingerprint for task in Index(zoo).knowledge().tasks
    }


def test_only_some_tasks(bare: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "profile", models[0], "--index", bare, *PASSES, "--task", "pets", "--task", "cars")
    assert [profile.task for profile in Index(bare).knowledge().profiles] == ["cars", "pets"]
    line = refusal(capsys, "profile", models[0], "--index", bare, "--task", "dogs")
    assert line.endswith(f"there is no task 'dogs' in {bare}: it has cars, food, pets")


def test_a_model_that_cannot_be_loaded_among_others(
    bare: Path, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = f"open_clip:local-dir:{tmp_path}/nothing"
    capsys.readouterr()
    command = ["profile", models[0], broken, models[1], "--index", str(bare), *PASSES, "--format", "json"]
    assert run(command) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)["models"]
    assert [one["computed"] for one in found] == [3, 0, 3] and "does not exist" in found[1]["detail"]
    (line,) = [line for line in captured.err.splitlines() if line.startswith("hubhound: ")]
    assert "1 of 3 models could not be profiled" in line and broken in line
    assert len(Index(bare).knowledge().profiles) == 6
    assert "does not exist" in refusal(capsys, "profile", broken, "--index", bare)


def test_a_tower_without_known_blocks(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ViTConfig(**{**VIT, "num_hidden_layers": 1}, num_labels=5)  # a sequence of one is none
    folder = save_transformers(tmp_path / "org/flat", ViTForImageClassification, config)
    command = ("profile", folder, "--index", bare, *PASSES, "--format", "json")
    line = refusal(capsys, *command)
    assert "no blocks that are known: looked for" in line and "--blocks PATTERN" in line
    (one,) = json.loads(answer(capsys, *command, "--blocks", "vit.layers.*")[0])["models"]
    assert (one["model"], one["blocks"], one["computed"]) == ("org/flat", 1, 3)
    assert Index(bare).knowledge().profiles_of("org/flat")[0].blocks == ("vit.layers.0",)
    with IndexWriter(bare) as writer:
        add_photo_task(writer, tmp_path, "new", seed=60)
    (one,) = json.loads(answer(capsys, *command)[0])["models"]  # the recorded blocks are used again
    assert (one["profiles"], one["computed"], one["blocks"]) == (4, 1, 1)


def test_an_index_that_is_not_ready(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.small_index import make_index

    folder = make_index(tmp_path / "empty").folder
    line = refusal(capsys, "profile", models[0], "--index", folder)
    assert (
        f"has no tasks to profile models on: add some with 'hubhound task add NAME --images DIR --index {folder}'"
        in line
    )
    assert "no index at" in refusal(capsys, "profile", models[0], "--index", tmp_path / "nowhere")
    photo = write_photos(tmp_path / "target", 1, 0)[0]
    assert "no source tasks" in refusal(capsys, "recommend", "--images", photo, "--index", folder)
    assert "no index at" in refusal(capsys, "recommend", "--images", photo, "--index", tmp_path / "nowhere")


def test_an_index_that_another_process_writes(
    zoo: Path, models: list[str], target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexWriter(zoo):
        assert "another process" in refusal(capsys, "profile", models[0], "--index", zoo, *PASSES)
        assert len(ranking(capsys, zoo, "--images", target[0])["ranking"]) == 3


def test_recommending(zoo: Path, models: list[str], target: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = ranking(capsys, zoo, "--images", target[0].parent)
    assert {one["model"] for one in found["ranking"]} == set(models)
    assert [one["rank"] for one in found["ranking"]] == [1, 2, 3]
    predicted = [one["predicted_rank"] for one in found["ranking"]]
    assert predicted == sorted(predicted) and len(set(predicted)) == 3
    assert found["profiled"] == 6 and found["target"]["images"] == [str(path) for path in target]
    (incomplete,) = [one for one in found["ranking"] if one["model"] == models[-1]]
    assert {source["task"] for source in incomplete["sources"]} == set(TASKS[1:])
    assert ranking(capsys, zoo, "--images", target[0], "--images", target[1])["profiled"] == 0
    out, err = answer(capsys, "recommend", "--images", target[0].parent, "--index", zoo, "--explain", "-k", 2)
    assert "visual.transformer.resblocks.1" in out and "importance" in out and "█" in out
    assert "3 models ranked for 2 images" in err and "0 profiles of images had to be computed" in err
    first = ranking(capsys, zoo, "--images", target[0], "-k", 1, "--explain")["ranking"]
    assert len(first) == 1 and sum(block["importance"] for block in first[0]["blocks"]) == pytest.approx(1)
    quiet = answer(capsys, "recommend", "--images", target[0].parent, "--index", zoo, "--format", "quiet")[0]
    assert quiet.split() == [one["model"] for one in found["ranking"]]


def test_every_option_changes_the_answer(
    zoo: Path, models: list[str], target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def predicted(*arguments: object) -> list[float]:
        return [one["predicted_rank"] for one in ranking(capsys, zoo, "--images", target[0], *arguments)["ranking"]]

    usual = predicted()
    for option in (("--eta", 40), ("--gamma", 0.5), ("--eta", 0), ("--gamma", 0)):
        assert not np.allclose(predicted(*option), usual, rtol=1e-9), option
    assert len(predicted("-k", 1)) == 1
    listed = zoo / "list.txt"
    listed.write_text(f"# two\n{models[0]}\n{models[2]}\n")
    some = ranking(capsys, zoo, "--images", target[0], "--candidates", f"@{listed}")
    assert {one["model"] for one in some["ranking"]} == {models[0], models[2]}
    sizes = {p.model: p.parameters for p in Index(zoo).knowledge().profiles}
    limit = min(size for size in sizes.values() if size)
    small = ranking(capsys, zoo, "--images", target[0], "--max-params", limit)
    assert {one["model"] for one in small["ranking"]} == {m for m, size in sizes.items() if size == limit}
    assert len(small["ranking"]) + len(small["left_out"]) == 3


def test_asking_again_loads_nothing(
    zoo: Path, target: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ranking(capsys, zoo, "--images", target[0].parent)

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(profiler_module, "load_tower", load)
    again = ranking(capsys, zoo, "--images", target[1], "--images", target[0])
    assert again["ranking"] == first["ranking"] and again["profiled"] == 0
    capsys.readouterr()
    (zoo / FILE).unlink()
    assert run(["recommend", "--images", str(target[0]), "--index", str(zoo)]) == 1
    assert "a model was loaded" in capsys.readouterr().err


def test_candidates_that_cannot_be_ranked_are_named(
    zoo: Path, models: list[str], target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexWriter(zoo) as writer:
        writer.drop_profiles(models[1])
        writer.export_knowledge()
    _, err = answer(capsys, "recommend", "--images", target[0], "--index", zoo)
    assert f"not ranked, it has no profiles (1): {models[1]}: hubhound profile {models[1]} --index {zoo}" in err
    line = refusal(capsys, "recommend", "--images", target[0], "--index", zoo, "--candidates", models[1])
    assert "it has no profiles" in line and f"hubhound profile {models[1]} --index {zoo}" in line


def test_images_that_cannot_be_used(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    for path, message in (
        (tmp_path / "empty", "no image is in this folder"),
        (tmp_path / "missing.png", "no such file or folder"),
        (tmp_path / "bad.png", "is not an image that can be read"),
        ("", "the path is empty"),
    ):
        assert message in refusal(capsys, "recommend", "--images", path, "--index", zoo)


def test_a_wrong_address_is_one_line(target: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "recommend", "--images", target[0], "--index", "qdrant://host:6333")
    assert "the name of an index on a server" in line


@pytest.mark.parametrize(
    ("text", "count"),
    [("200M", 200_000_000), ("1.5b", 1_500_000_000), ("3k", 3000), ("17", 17), (" 2G ", 2 * 10**9), ("1e3", 1000)],
)
def test_numbers_of_parameters(text: str, count: int) -> None:
    assert _count(text) == count


@pytest.mark.parametrize("text", ["", "M", "5KM", "-1", "0", "nan", "inf", "1e30", "many"])
def test_what_is_no_number_of_parameters(text: str) -> None:
    with pytest.raises(click.BadParameter, match="200M"):
        _count(text)


def test_bars() -> None:
    assert _bar(1.0) == "█" * 20 and _bar(0.0) == "" and _bar(0.525) == "█" * 10 + "▌"


@pytest.mark.parametrize("command", ["profile", "recommend"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = answer(capsys, command, "--help")
    assert "Usage: hubhound" in out and "Examples:" in out


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
