"""What index verify and index rebuild do with tasks, profiles and performance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.index import Index
from engine.rebuild import rebuild
from engine.schema import Performance
from engine.tasks import add_task, draw_task, task_folder
from engine.verify import verify
from engine.writer import IndexWriter
from tests.support.knowledge import make_profile
from tests.support.small_index import make_filled_index, make_index, write_probe_images

NAME = "open_clip:a/b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = make_filled_index(tmp_path / "zoo")
    photos = write_probe_images(tmp_path / "photos", 5)
    with IndexWriter(index.folder) as writer:
        drawn = draw_task("pets", photos)
        add_task(writer, drawn)
        writer.put_profiles([make_profile(NAME, task_fingerprint=drawn.task.fingerprint)])
        writer.put_performance([Performance(model=NAME, task="pets", value=0.5)])
        writer.finish()
    return index.folder


def test_a_whole_index_has_no_problem(folder: Path) -> None:
    assert verify(folder) == []


def test_a_changed_image_of_a_task_is_found(folder: Path) -> None:
    image = sorted(task_folder(folder, "pets").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"0")
    [problem] = verify(folder)
    assert "has changed" in problem and image.name in problem


def test_profiles_of_another_sample_are_found(folder: Path) -> None:
    with IndexWriter(folder) as writer:
        writer.put_profiles([make_profile(NAME, task_fingerprint="other"), make_profile("open_clip:c/d", "gone")])
        writer.export_knowledge()
    first, second = verify(folder)
    assert first.startswith(f"{NAME}: 1 of its profiles") and second.startswith("open_clip:c/d: 1 of its profiles")


def test_an_export_that_is_behind_the_store_is_found(folder: Path) -> None:
    with IndexWriter(folder) as writer:
        writer.put_performance([Performance(model=NAME, task="pets", value=0.6)])
    [problem] = verify(folder)
    assert "index snapshot" in problem


def test_rebuilding_takes_tasks_along(folder: Path, tmp_path: Path) -> None:
    key = ProfileKey(NAME, "r1", ("a", "b"), 50)
    ConductanceCache(folder / FILE).put(key, 1, {"0" * 64: (np.array([1.0, 2.0]), 0.5)})
    target = make_index(tmp_path / "again", top_r=10).folder
    assert rebuild(folder, target) == 3
    assert verify(target) == []
    assert Index(target).knowledge() == Index(folder).knowledge()
    known = ConductanceCache(target / FILE).get(key, ["0" * 64])
    assert known is not None and known.rows["0" * 64][1] == 0.5
    assert rebuild(folder, target) == 0
    assert verify(target) == []
