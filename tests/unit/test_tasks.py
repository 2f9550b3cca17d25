"""Drawing a task's sample, and what an index keeps of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import IndexDamagedError, InputError, ProbeError
from engine.schema import Performance
from engine.tasks import add_task, draw_task, drop_task, task_folder, task_images
from engine.writer import IndexWriter
from tests.support.knowledge import make_profile
from tests.support.small_index import make_index


def write_images(folder: Path, names: list[str], seed: int = 0) -> Path:
    """Small images of noise, each different."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", [f"{i:02d}.png" for i in range(40)])


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IndexWriter]:
    with IndexWriter(make_index(tmp_path / "zoo").folder) as opened:
        yield opened


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_draw_is_a_seeded_shuffle_of_the_sorted_paths(photos: Path) -> None:
    drawn = draw_task("pets", photos)
    paths = sorted(photos.iterdir())
    expected = [paths[i] for i in np.random.default_rng(0).permutation(40)[:25]]
    assert list(drawn.sources) == expected and len(set(expected)) == 25
    assert [image.sha256 for image in drawn.task.images] == [sha(path) for path in expected]
    hashes = "\n".join(sha(path) for path in expected)
    assert drawn.task.fingerprint == hashlib.sha256(hashes.encode()).hexdigest()
    assert (drawn.task.drawn_from, drawn.task.seed, drawn.task.classes, drawn.asked) == (40, 0, (), 25)


def test_the_same_folder_elsewhere_gives_the_same_sample(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "copy"
    other.mkdir(parents=True)
    for path in sorted(photos.iterdir(), reverse=True):  # in another order on the disk
        shutil.copy(path, other)
    assert draw_task("pets", other).task == draw_task("pets", photos).task


def test_every_argument_counts(photos: Path) -> None:
    drawn = draw_task("pets", photos)
    assert draw_task("pets", photos, seed=1).task.fingerprint != drawn.task.fingerprint
    assert draw_task("pets", photos, count=7).sources == drawn.sources[:7]
    steps: list[tuple[int, int]] = []
    draw_task("pets", photos, count=3, progress=lambda now, total: steps.append((now, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_equal_images_are_drawn_once(photos: Path) -> None:
    for i in range(40):
        shutil.copy(photos / f"{i:02d}.png", photos / f"again {i}.png")
    drawn = draw_task("pets", photos, count=100)
    assert len(drawn.sources) == len({image.sha256 for image in drawn.task.images}) == 40
    assert (drawn.task.drawn_from, drawn.asked) == (80, 100)
    for seed in range(5):
        assert len(set(map(sha, draw_task("pets", photos, count=20, seed=seed).sources))) == 20


def test_subfolders_are_classes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pets", ["dog/a.png", "cat/b.png", "cat/deeper/c.png", "été/d.png"])
    assert draw_task("pets", folder, count=1).task.classes == ("cat", "dog", "été")
    write_images(folder, ["loose.png"], seed=5)
    assert draw_task("pets", folder).task.classes == (), "some images have no class"


def test_a_folder_name_that_is_no_text(tmp_path: Path, writer: IndexWriter) -> None:
    folder = tmp_path / "pets"
    write_images(folder / "x", ["a.png"])
    (folder / "x").rename(folder / b"\xff\xfe".decode("utf-8", "surrogateescape"))
    drawn = draw_task("pets", folder)
    assert add_task(writer, drawn)
    assert writer.store.tasks()[0].classes == ("??",)


def test_a_damaged_image_is_an_error_that_names_it(photos: Path) -> None:
    bad = draw_task("pets", photos).sources[3]
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ProbeError, match=rf"task pets: .*{bad.name}.*--skip-bad") as caught:
        draw_task("pets", photos)
    assert caught.value.path == bad
    drawn = draw_task("pets", photos, skip_bad=True)
    assert len(drawn.sources) == 25 and bad not in drawn.sources
    assert [error.path for error in drawn.skipped] == [bad]
    expected = [i for i in np.random.default_rng(0).permutation(40)[:26] if f"{i:02d}.png" != bad.name]
    assert [int(path.stem) for path in drawn.sources] == expected


def test_folders_that_cannot_be_drawn_from(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"nowhere of task pets does not exist"):
        draw_task("pets", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ProbeError, match="holds no images"):
        draw_task("pets", tmp_path)
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(ProbeError, match=r"none of the 1 images in .* can be read"):
        draw_task("pets", tmp_path, skip_bad=True)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")  # goes in a circle
    with pytest.raises(ProbeError):
        draw_task("pets", tmp_path)


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", ".hidden", "-x", "x" * 101, "été", "a\n"])
def test_names_that_cannot_be_used(photos: Path, name: str) -> None:
    with pytest.raises(InputError, match="task name") as caught:
        draw_task(name, photos)
    assert "\n" not in str(caught.value)


def test_counts_and_seeds_that_cannot_be_used(photos: Path) -> None:
    for count, seed in (0, 0), (1, -1), (1, 2**63):
        with pytest.raises(InputError, match="draw at least 1"):
            draw_task("pets", photos, count, seed)


def test_an_index_keeps_its_own_copy(photos: Path, writer: IndexWriter) -> None:
    drawn = draw_task("pets", photos)
    contents = [path.read_bytes() for path in drawn.sources]
    assert add_task(writer, drawn)
    shutil.rmtree(photos)
    index = writer.index.folder
    assert writer.store.tasks() == [drawn.task]
    paths = task_images(index, drawn.task)
    assert [path.read_bytes() for path in paths] == contents
    assert paths == tuple(index / "tasks" / "pets" / image.file for image in drawn.task.images)
    assert {path.name for path in task_folder(index, "pets").iterdir()} == {image.file for image in drawn.task.images}


def test_file_names_become_safe_and_unique(tmp_path: Path, writer: IndexWriter) -> None:
    names = ["a/x.PNG", "b/x.png", f"c/{'long' * 50}.png", "d/sp ace & $(rm).png", "e/日本.png", "f/..-x.png"]
    drawn = draw_task("pets", write_images(tmp_path / "odd", names))
    add_task(writer, drawn)
    made = [image.file for image in drawn.task.images]
    by_source = dict(zip((path.name for path in drawn.sources), made, strict=True))
    assert [int(name[:3]) for name in made] == list(range(6)) and len(set(made)) == 6
    assert by_source["sp ace & $(rm).png"][4:] == "sp_ace_____rm_.png"
    assert by_source["日本.png"][4:] == "__.png" and by_source["x.PNG"][4:] == "x.png"
    assert max(map(len, made)) == 4 + 60 + 4
    assert len(task_images(writer.index.folder, drawn.task)) == 6


def test_the_same_again_is_a_no_op_and_mends_what_is_damaged(photos: Path, writer: IndexWriter) -> None:
    drawn = draw_task("pets", photos)
    profile = make_profile()
    add_task(writer, drawn)
    writer.put_profiles([profile])
    first = task_images(writer.index.folder, drawn.task)[0]
    before = first.stat().st_mtime_ns
    assert not add_task(writer, drawn)
    assert first.stat().st_mtime_ns == before
    first.write_bytes(b"x")
    with pytest.raises(IndexDamagedError, match=r"000-.*has changed: .*--sample 25 --seed 0"):
        task_images(writer.index.folder, drawn.task)
    first.unlink()
    with pytest.raises(IndexDamagedError, match="cannot be read"):
        task_images(writer.index.folder, drawn.task)
    images = tuple(image.model_copy(update={"file": f"{image.file[:3]}-renamed.png"}) for image in drawn.task.images)
    drawn = replace(drawn, task=drawn.task.model_copy(update={"images": images}))  # the same bytes under other names
    known = writer.store.tasks()[0]
    assert not add_task(writer, drawn, replace=True)
    assert writer.store.tasks() == [known]
    task_images(writer.index.folder, known)
    assert writer.store.profiles() == [profile]


def test_another_sample_needs_replace_and_takes_the_profiles_with_it(photos: Path, writer: IndexWriter) -> None:
    first, second = draw_task("pets", photos), draw_task("pets", photos, seed=1, count=4)
    add_task(writer, first)
    kept = make_profile(task="cars")
    performance = Performance(model="m", task="pets", value=0.5)
    writer.put_profiles([make_profile(), kept])
    writer.put_performance([performance])
    with pytest.raises(InputError, match=r"task pets .*25 images, seed 0.*--replace"):
        add_task(writer, second)
    assert writer.store.tasks() == [first.task] and len(writer.store.profiles()) == 2
    assert add_task(writer, second, replace=True)
    assert writer.store.tasks() == [second.task]
    assert writer.store.profiles() == [kept] and writer.store.performance() == [performance]
    task_images(writer.index.folder, second.task)
    assert len(list(task_folder(writer.index.folder, "pets").iterdir())) == 4


def test_a_source_that_changes_under_the_copy_leaves_the_old_task_whole(photos: Path, writer: IndexWriter) -> None:
    first, second = draw_task("pets", photos, seed=1), draw_task("pets", photos)
    add_task(writer, first)
    second.sources[-1].write_bytes(b"something else")
    with pytest.raises(ProbeError, match="was changed"):
        add_task(writer, second, replace=True)
    second.sources[-1].unlink()
    with pytest.raises(ProbeError, match="was removed"):
        add_task(writer, second, replace=True)
    assert writer.store.tasks() == [first.task]
    task_images(writer.index.folder, first.task)
    assert [path.name for path in (writer.index.folder / "tasks").iterdir()] == ["pets"], "nothing half-made is left"


def test_a_run_killed_between_images_and_record_can_be_repeated(
    photos: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_task("pets", photos)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "put_task", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_task(writer, drawn)
    assert writer.store.tasks() == []
    other = draw_task("pets", photos, count=2)
    assert add_task(writer, other)
    assert len(list(task_folder(writer.index.folder, "pets").iterdir())) == 2


def test_removing(photos: Path, writer: IndexWriter) -> None:
    for name in "pets", "cars":
        add_task(writer, draw_task(name, photos, count=2))
    drop_task(writer, "pets")
    assert [task.name for task in writer.store.tasks()] == ["cars"]
    assert not task_folder(writer.index.folder, "pets").exists()
    with pytest.raises(InputError, match=r"no task 'pets' in .*: it has cars"):
        drop_task(writer, "pets")
    drop_task(writer, "cars")
    with pytest.raises(InputError, match="it has none"):
        drop_task(writer, "cars")
