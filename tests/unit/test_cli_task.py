"""``hubhound task`` and ``hubhound performance``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.index import Index
from engine.tasks import task_images
from engine.writer import IndexWriter
from query.cli.main import run
from tests.support.knowledge import make_profile
from tests.support.small_index import make_index
from tests.unit.test_tasks import write_images

TABLE = """model,pretrained,dataset,acc1,source
a,x,cars,0.5,card
b,x,cars,0.7,
c,x,cars,0.5,
c,x,pets,0.123456789,
b,x,pets,,
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return make_index(tmp_path / "zoo").folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write_images(folder / "pets", [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)])
    write_images(folder / "cars", [f"{i}.png" for i in range(5)], seed=1)
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    return folder


@pytest.fixture
def accuracies(tmp_path: Path) -> Path:
    path = tmp_path / "accuracies.csv"
    path.write_text(TABLE)
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What a command that succeeds writes."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("hubhound: ")]
    return line


@pytest.mark.parametrize(
    "command",
    [["task"], ["performance"], ["task", "add"], ["task", "list"], ["task", "remove"], ["performance", "import"]],
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = answer(capsys, *command, "--help")
    assert "Usage: hubhound" in out
    assert len(command) == 1 or "Examples:" in out


def test_adding_listing_and_removing(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = answer(capsys, "task", "add", "pets", "--index", zoo, "--images", photos / "pets")
    assert out.split()[-5:] == ["pets", "25", "40", "2", "added"]
    assert "next: hubhound profile" in err
    out, err = answer(capsys, "task", "add", "pets", "--index", zoo, "--images", photos / "pets")
    assert out.split()[-2:] == ["there", "already"] and err == ""
    with IndexWriter(zoo) as writer:
        writer.put_profiles([make_profile("a"), make_profile("b"), make_profile("b", "other")])
        writer.finish()
    out, _ = answer(capsys, "task", "list", "--index", zoo)
    assert out.split()[-6:] == ["pets", "25", "40", "2", "2", "0"]
    out, err = answer(capsys, "task", "list", "--index", zoo, "--format", "json")
    (entry,) = json.loads(out)["tasks"]
    (task,) = Index(zoo).knowledge().tasks
    assert entry == {
        "name": "pets",
        "images": 25,
        "drawn_from": 40,
        "seed": 0,
        "classes": ["cat", "dog"],
        "fingerprint": task.fingerprint,
        "profiles": 2,
        "performance": 0,
    }
    assert len(task_images(zoo, task)) == 25
    out, err = answer(capsys, "task", "remove", "pets", "--index", zoo)
    assert out == "" and "2 profiles" in err
    assert answer(capsys, "task", "list", "--index", zoo, "--format", "quiet") == ("", "")
    assert [profile.task for profile in Index(zoo).knowledge().profiles] == ["other"]


def test_every_option_counts(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add = ("task", "add", "pets", "--index", zoo, "--images", photos / "pets", "--format", "json")
    assert json.loads(answer(capsys, *add, "--sample", 3)[0])["tasks"] == [
        {"name": "pets", "images": 3, "drawn_from": 40, "seed": 0, "added": True}
    ]
    line = refusal(capsys, *add, "--sample", 3, "--seed", 4)
    assert "another sample" in line and "--replace" in line
    out, err = answer(capsys, *add, "--sample", 50, "--seed", 4, "--replace")
    assert json.loads(out)["tasks"][0]["images"] == 40
    assert "40 different images are all there are, 50 were asked for" in err
    bad = photos / "pets" / "cat" / "3.png"
    bad.write_bytes(b"nonsense")
    line = refusal(capsys, *add, "--sample", 40, "--replace")
    assert "3.png" in line and "--skip-bad" in line
    out, err = answer(capsys, *add, "--sample", 40, "--replace", "--skip-bad")
    assert json.loads(out)["tasks"][0]["images"] == 39 and "left out: " in err


def test_every_folder_is_a_task(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add = ("task", "add", "--each", "--index", zoo, "--images", photos, "--format", "quiet")
    out, err = answer(capsys, *add)
    assert out.split() == ["cars", "pets"]
    assert "empty holds no images" in err and "cars: 5 different images" in err and ".hidden" not in err
    assert [(task.name, len(task.classes)) for task in Index(zoo).knowledge().tasks] == [("cars", 0), ("pets", 2)]
    assert answer(capsys, *add)[0].split() == ["cars", "pets"], "again is a no-op"


def test_each_keeps_what_was_finished_before_an_error(
    zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (photos / "pets").rglob("*.png"):
        path.write_bytes(b"nonsense")
    assert "task pets" in refusal(capsys, "task", "add", "--each", "--index", zoo, "--images", photos)
    assert [task.name for task in Index(zoo).knowledge().tasks] == ["cars"]
    (photos / "no name").mkdir()
    write_images(photos / "no name", ["a.png"])
    assert "'no name'" in refusal(capsys, "task", "add", "--each", "--index", zoo, "--images", photos)


def test_wrong_usage(zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--images", photos],
        ["pets", "--images", photos, "--each"],
        ["pets", "--images", photos, "--sample", 0],
        ["pets", "--images", photos, "--seed", -1],
        ["pets"],
    ):
        assert run(["task", "add", "--index", str(zoo), *map(str, arguments)]) == 2
    nowhere = photos / "nowhere"
    assert "does not exist" in refusal(capsys, "task", "add", "x", "--index", zoo, "--images", nowhere)
    assert "does not exist" in refusal(capsys, "task", "add", "--each", "--index", zoo, "--images", nowhere)
    assert "no folder in" in refusal(capsys, "task", "add", "--each", "--index", zoo, "--images", photos / "empty")
    assert "task name 'a b'" in refusal(capsys, "task", "add", "a b", "--index", zoo, "--images", photos)
    assert "no task 'x'" in refusal(capsys, "task", "remove", "x", "--index", zoo)
    for command in (["task", "list"], ["performance", "list"], ["task", "remove", "x"]):
        assert "no index at" in refusal(capsys, *command, "--index", nowhere)


def test_home_is_understood(
    zoo: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, accuracies: Path
) -> None:
    monkeypatch.setenv("HOME", str(zoo.parent))
    answer(capsys, "task", "add", "cars", "--index", "~/zoo", "--images", "~/photos/cars")
    answer(capsys, "performance", "import", "~/accuracies.csv", "--index", "~/zoo")
    assert answer(capsys, "task", "list", "--index", "~/zoo", "--format", "quiet")[0] == "cars\n"
    assert answer(capsys, "performance", "list", "--index", "~/zoo", "--format", "quiet")[0]


def test_importing_performance(zoo: Path, accuracies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("performance", "import", accuracies, "--index", zoo, "--format", "json")
    facts = {"records": 4, "missing": 1, "models": 3, "tasks": 2, "replaced": 0, "unchanged": 0}
    out, err = answer(capsys, *load)
    assert json.loads(out) == {**facts, "models_without_profile": 3}
    assert "3 of 3 models have no profile yet" in err
    with IndexWriter(zoo) as writer:
        writer.put_profiles([make_profile("open_clip:a/x")])
    accuracies.write_text(TABLE.replace("0.7", "0.71"))
    out, err = answer(capsys, *load)
    assert json.loads(out) == {**facts, "replaced": 1, "unchanged": 3, "models_without_profile": 2}
    known = {(record.model, record.task): record.value for record in Index(zoo).knowledge().performance}
    assert known == {
        ("open_clip:a/x", "cars"): 0.5,
        ("open_clip:b/x", "cars"): 0.71,
        ("open_clip:c/x", "cars"): 0.5,
        ("open_clip:c/x", "pets"): 0.123456789,
    }
    out, _ = answer(capsys, *load[:-2])
    assert [line.split()[-1] for line in out.strip().splitlines()[-6:]] == ["4", "1", "3", "2", "0", "4"]
    assert answer(capsys, *load[:-1], "quiet")[0].split() == [f"open_clip:{name}/x" for name in "abc"]


def test_listing_performance(zoo: Path, accuracies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "performance", "import", accuracies, "--index", zoo)
    out, _ = answer(capsys, "performance", "list", "--index", zoo, "--format", "json")
    entries = json.loads(out)["performance"]
    assert [(e["task"], e["rank"], e["model"][10:], e["value"], e["source"]) for e in entries] == [
        ("cars", 1.0, "b/x", 0.7, None),
        ("cars", 2.5, "a/x", 0.5, "card"),
        ("cars", 2.5, "c/x", 0.5, None),
        ("pets", 1.0, "c/x", 0.123456789, None),
    ]
    out, _ = answer(capsys, "performance", "list", "--index", zoo, "--task", "pets")
    assert out.split()[-5:] == ["pets", "1", "open_clip:c/x", "0.1235", "acc1"] and "cars" not in out
    line = refusal(capsys, "performance", "list", "--index", zoo, "--task", "dogs")
    assert "task 'dogs'" in line and "cars, pets" in line


def test_tasks_that_are_only_known_by_performance_are_named(
    zoo: Path, photos: Path, accuracies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "performance", "import", accuracies, "--index", zoo)
    answer(capsys, "task", "add", "cars", "--index", zoo, "--images", photos / "cars")
    out, err = answer(capsys, "task", "list", "--index", zoo)
    assert out.split()[-6:] == ["cars", "5", "5", "-", "0", "3"]
    assert "no images, of pets:" in err


@pytest.mark.parametrize("row", ["a,x,cars,0.5,", "d,x,cars,1.5,", "d,x,cars,-1,", "d,x,cars,x,", ",x,cars,1,"])
def test_a_row_that_cannot_be_used_imports_nothing(
    zoo: Path, accuracies: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    accuracies.write_text(TABLE + row + "\n")
    assert "line 7" in refusal(capsys, "performance", "import", accuracies, "--index", zoo)
    assert Index(zoo).knowledge().performance == ()
    with IndexWriter(zoo) as writer:
        assert writer.store.knowledge() == []


def test_a_file_that_is_not_there(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refusal(capsys, "performance", "import", tmp_path / "none.csv", "--index", zoo)


def test_forgetting_performance(zoo: Path, accuracies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "performance", "import", accuracies, "--index", zoo)
    remove = ("performance", "remove", "--index", zoo)
    assert "1 value removed" in answer(capsys, *remove, "--task", "cars", "--model", "open_clip:a/x")[1]
    assert {(one.model, one.task) for one in Index(zoo).knowledge().performance} == {
        ("open_clip:b/x", "cars"),
        ("open_clip:c/x", "cars"),
        ("open_clip:c/x", "pets"),
    }
    assert "2 values removed" in answer(capsys, *remove, "--model", "open_clip:c/x")[1]
    assert "nothing is known about task 'pets'" in refusal(capsys, *remove, "--task", "pets")
    assert "1 value removed" in answer(capsys, *remove, "--task", "cars")[1]
    assert Index(zoo).knowledge().performance == ()
    assert run(["performance", "remove", "--index", str(zoo)]) == 2
