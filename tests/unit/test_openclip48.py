"""The zoo of 48 models, and what an evaluation refuses before it profiles one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import HubhoundError, InputError, ModelFailedError, ProbeError, Reason, StoreError
from engine.tasks import add_task, draw_task
from engine.writer import IndexWriter
from indexers.profiler import ProfileSettings
from indexers.towers import TowerSource
from query.evaluate import zoo_profiles
from query.evaluate.openclip48 import MODELS
from query.evaluate.zoo_profiles import PreparedZoo, ZooRequest, prepare, task_folders, zoo_sources
from tests.support.knowledge import make_profile
from tests.support.small_index import make_index
from tests.unit.test_tasks import write_images

GROUNDTRUTH = Path(__file__).parents[3] / "shared" / "groundtruth"
NAMES = ("open_clip:a/x", "open_clip:b/x", "open_clip:c/x")
SOURCES = tuple(map(TowerSource, NAMES))
MEASURED = {name: ("cars", "pets", "signs") for name in NAMES}


class Heard:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, float, float]] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def overall(self, what: str, done: int, total: int) -> None:
        self.bars.append((what, done, total))

    def current(self, what: str, done: float, total: float) -> None:
        self.bars.append((what, done, total))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for seed, name in enumerate(("cars", "pets", "signs", "other")):
        write_images(tmp_path / "photos" / name, [f"{i}.png" for i in range(8)], seed)
    (tmp_path / "photos" / "empty").mkdir()
    write_images(tmp_path / "photos" / ".hidden", ["a.png"])
    return task_folders(tmp_path / "photos")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IndexWriter]:
    with IndexWriter(make_index(tmp_path / "zoo").folder) as opened:
        yield opened


class Pretended:
    """Stands for the profiling of models, which has its own tests.

    ``seen``: the models that it was called for; ``errors``: what it raises for some.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.errors: dict[str, HubhoundError] = {}

    def __call__(self, writer: object, source: TowerSource, *_: object, **__: object) -> None:
        self.seen.append(source.name)
        if source.name in self.errors:
            raise self.errors[source.name]


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended()
    monkeypatch.setattr(zoo_profiles, "profile_model", pretended)
    return pretended


def run(writer: IndexWriter, request: ZooRequest, screen: Heard | None = None) -> PreparedZoo:
    return prepare(writer, request, MEASURED, "cpu", lambda _: ProfileSettings(), screen or Heard())


@pytest.mark.real
@pytest.mark.skipif(not GROUNDTRUTH.is_dir(), reason="needs ../shared/groundtruth")
def test_the_models_are_those_of_the_table() -> None:
    with (GROUNDTRUTH / "models.csv").open(newline="") as file:
        assert tuple((row["model"], row["pretrained"]) for row in csv.DictReader(file)) == MODELS


def test_open_clip_has_all_of_them() -> None:
    import open_clip

    known = set(open_clip.list_pretrained())
    assert [pair for pair in MODELS if pair not in known] == []
    assert len(set(MODELS)) == 48


def test_a_zoo_is_a_name_or_a_file(tmp_path: Path) -> None:
    sources = zoo_sources("openclip48")
    assert [source.name for source in sources] == [f"open_clip:{a}/{b}" for a, b in MODELS]
    listed = tmp_path / "zoo.txt"
    listed.write_text("open_clip:b/x\n# not this one\nopen_clip:a/x\nopen_clip:b/x\n")
    assert [source.name for source in zoo_sources(str(listed))] == ["open_clip:b/x", "open_clip:a/x"]
    listed.write_text("\n")
    with pytest.raises(InputError, match="names no model"):
        zoo_sources(str(listed))
    with pytest.raises(InputError, match=r"none\.txt"):
        zoo_sources(str(tmp_path / "none.txt"))


def test_a_folder_of_images_is_a_task(folders: dict[str, Path], tmp_path: Path) -> None:
    assert list(folders) == ["cars", "other", "pets", "signs"]
    with pytest.raises(ProbeError, match="does not exist"):
        task_folders(tmp_path / "none")
    with pytest.raises(ProbeError, match="no folder in"):
        task_folders(folders["cars"])
    write_images(tmp_path / "photos" / "a b", ["a.png"])
    with pytest.raises(InputError, match="'a b' cannot be used"):
        task_folders(tmp_path / "photos")


def test_what_is_missing_is_added_and_what_is_there_stays(
    writer: IndexWriter, folders: dict[str, Path], profiled: Pretended
) -> None:
    add_task(writer, draw_task("pets", folders["pets"], 3, seed=5))
    (folders["cars"] / "0.png").write_bytes(b"no image")
    screen = Heard()
    made = run(writer, ZooRequest(SOURCES, folders, images=8), screen)
    assert made == PreparedZoo(NAMES, ("cars", "pets", "signs"), {})
    assert profiled.seen == list(NAMES)
    tasks = {task.name: (len(task.images), task.seed) for task in writer.store.tasks()}
    assert tasks == {"cars": (7, 0), "pets": (3, 5), "signs": (8, 0)}
    assert screen.lines[0].endswith("(1): other")
    assert "pets is a task of 3 images already" in "\n".join(screen.lines)
    assert "left out of cars:" in "\n".join(screen.lines)
    assert ("models", 2, 3) in screen.bars
    assert ("signs", 8, 8) in screen.bars
    assert run(writer, ZooRequest(SOURCES, {})).tasks == ("cars", "pets", "signs")


def test_a_model_that_fails_is_left_out_and_a_broken_store_is_not(
    writer: IndexWriter, folders: dict[str, Path], profiled: Pretended
) -> None:
    errors = profiled.errors
    errors[NAMES[0]] = ModelFailedError(Reason.NETWORK, "the Hub does not answer", NAMES[0])
    screen = Heard()
    made = run(writer, ZooRequest(SOURCES, folders, images=2), screen)
    assert made.models == NAMES[1:]
    assert "the Hub does not answer" in made.left_out[NAMES[0]]
    assert f"{NAMES[0]} is left out: " in screen.lines[-1]
    errors[NAMES[1]] = InputError("no memory")
    with pytest.raises(InputError, match=r"1 of 3 models .* first that could not is open_clip:a/x: .*answer"):
        run(writer, ZooRequest(SOURCES, folders, images=2))
    assert profiled.seen == 2 * list(NAMES)
    errors[NAMES[1]] = StoreError("the disk is full", "zoo")
    with pytest.raises(StoreError):
        run(writer, ZooRequest(SOURCES, folders, images=2))


def test_what_cannot_be_measured_is_refused_before_anything_is_added(
    writer: IndexWriter, folders: dict[str, Path], profiled: Pretended
) -> None:
    strangers = (SOURCES[0], TowerSource("open_clip:d/x"))
    with pytest.raises(InputError, match="1 of 2 models of the zoo have known performance"):
        run(writer, ZooRequest(strangers, folders))
    with pytest.raises(InputError, match=r"on 1 of 2 tasks \(cars, other\)"):
        run(writer, ZooRequest(SOURCES, {name: folders[name] for name in ("cars", "other")}))
    with pytest.raises(InputError, match=r"0 of 0 tasks \(add some with --tasks\)"):
        run(writer, ZooRequest(SOURCES, {}))
    writer.put_profiles([make_profile(NAMES[2], n_steps=10)])
    with pytest.raises(InputError, match=r"made with 10 steps, and 50 .*--n-steps 10.*profile open_clip:c/x --again"):
        run(writer, ZooRequest(SOURCES, folders))
    assert writer.store.tasks() == []
    assert not profiled.seen
    made = run(writer, ZooRequest((*SOURCES, strangers[1]), folders, images=1, n_steps=10))
    assert made.left_out == {"open_clip:d/x": "no known performance"}
