"""The memory of conductance: what is put is got, whatever happens to the file."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.conductance_cache import ConductanceCache, ProfileKey

KEY = ProfileKey("open_clip:a/b", "r1", ("x.0", "x.1"), 50)
ROWS = {"i1": (np.array([1 / 3, 1e-300]), 0.1), "i2": (np.array([0.0, 7e30]), 0.0)}


@pytest.fixture
def cache(tmp_path: Path) -> ConductanceCache:
    return ConductanceCache(tmp_path / "memory.sqlite")


def test_what_is_put_is_got_bit_for_bit(cache: ConductanceCache, tmp_path: Path) -> None:
    assert cache.get(KEY, ["i1"]) is None
    assert not (tmp_path / "memory.sqlite").exists()
    cache.put(KEY, 123, ROWS)
    known = ConductanceCache(tmp_path / "memory.sqlite").get(KEY, ["i2", "i1", "new", "i1"])
    assert known is not None and known.parameters == 123 and set(known.rows) == {"i1", "i2"}
    for image, (vector, gap) in ROWS.items():
        assert known.rows[image][0].tobytes() == vector.tobytes() and known.rows[image][1] == gap
        known.rows[image][0][:] = 9  # the array is the caller's
    again = cache.get(KEY, [])
    assert again is not None and not again.rows


def test_a_row_is_put_in_place_of_its_former_self(cache: ConductanceCache) -> None:
    cache.put(KEY, 1, ROWS)
    cache.put(KEY, 1, {"i1": (np.array([5.0, 6.0]), 0.5)})
    known = cache.get(KEY, ["i1", "i2"])
    assert known is not None and known.rows["i1"][0].tolist() == [5.0, 6.0] and len(known.rows) == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, model="open_clip:a/c"),
        replace(KEY, revision="r2"),
        replace(KEY, blocks=("x.1", "x.0")),
        replace(KEY, blocks=("x.0",)),
        replace(KEY, n_steps=49),
        replace(KEY, precision="float16"),
    ],
)
def test_keys_that_differ_in_anything_are_kept_apart(cache: ConductanceCache, other: ProfileKey) -> None:
    cache.put(KEY, 1, ROWS)
    assert cache.get(other, list(ROWS)) is None
    cache.put(other, 2, {"i1": (np.full(len(other.blocks), 4.0), 0.0)})
    first, second = cache.get(KEY, list(ROWS)), cache.get(other, list(ROWS))
    assert first is not None and first.parameters == 1 and first.rows["i1"][0].tolist() == [1 / 3, 1e-300]
    assert second is not None and second.parameters == 2 and list(second.rows) == ["i1"]


def test_places(cache: ConductanceCache) -> None:
    assert cache.place("org/a") is None
    cache.remember_place("org/a", "/one")
    cache.remember_place("org/a", "/two")
    assert cache.place("org/a") == "/two" and cache.place("org/b") is None


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_damaged_file_is_begun_anew(cache: ConductanceCache, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "memory.sqlite").write_bytes(damage)
    (tmp_path / "memory.sqlite-journal").write_bytes(b"of no use")
    assert cache.get(KEY, ["i1"]) is None and cache.place("org/a") is None
    assert cache.only_key("open_clip:a/b", "r1", 50) is None
    cache.put(KEY, 1, ROWS)
    known = cache.get(KEY, list(ROWS))
    assert known is not None and set(known.rows) == set(ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.sqlite"]


def test_a_file_cut_off_in_the_middle(cache: ConductanceCache, tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    cache.put(KEY, 1, {f"i{i}": (np.zeros(2), 0.0) for i in range(500)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cache.get(KEY, [f"i{i}" for i in range(500)])
    cache.put(KEY, 1, ROWS)
    known = cache.get(KEY, list(ROWS))
    assert known is not None and known.rows["i1"][0].tolist() == [1 / 3, 1e-300]


@pytest.mark.parametrize(
    "change", ["conductance = x'0102'", "conductance = zeroblob(24)", "conductance = 'text'", "gap = NULL"]
)
def test_a_damaged_row_is_not_known(cache: ConductanceCache, tmp_path: Path, change: str) -> None:
    cache.put(KEY, 1, ROWS)
    with closing(sqlite3.connect(tmp_path / "memory.sqlite")) as database, database:
        database.execute(f"UPDATE rows SET {change} WHERE image = 'i1'")  # noqa: S608
    known = cache.get(KEY, list(ROWS))
    assert known is not None and list(known.rows) == ["i2"]


@pytest.mark.parametrize("path", ["missing/folder/memory.sqlite", "a file/memory.sqlite", "a folder"])
def test_where_nothing_can_be_written_nothing_is_said(tmp_path: Path, path: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    cache = ConductanceCache(tmp_path / path)
    cache.put(KEY, 1, ROWS)
    cache.remember_place("org/a", "/one")
    assert cache.get(KEY, ["i1"]) is None and cache.place("org/a") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read(cache: ConductanceCache, tmp_path: Path) -> None:
    cache.put(KEY, 1, ROWS)
    (tmp_path / "memory.sqlite").chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        cache.put(KEY, 1, {"i3": ROWS["i1"]})
        known = cache.get(KEY, [*ROWS, "i3"])
        assert known is not None and set(known.rows) == set(ROWS)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_another_program_keeps_locked(
    cache: ConductanceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.conductance_cache._PATIENCE_S", 0.05)
    cache.put(KEY, 1, {"i1": ROWS["i1"]})
    with closing(sqlite3.connect(tmp_path / "memory.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        cache.put(KEY, 1, {"i2": ROWS["i2"]})
        known = cache.get(KEY, list(ROWS))
        assert known is not None and list(known.rows) == ["i1"]
    cache.put(KEY, 1, {"i2": ROWS["i2"]})
    known = cache.get(KEY, list(ROWS))
    assert known is not None and set(known.rows) == set(ROWS)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from engine.conductance_cache import ConductanceCache, ProfileKey
cache, who = ConductanceCache(Path(sys.argv[1])), sys.argv[2]
for i in range(40):
    cache.put(ProfileKey("m", "r", ("a", "b"), 50), 7, {f"{who}{i}": (np.array([float(i), 0.5]), 0.0)})
    cache.remember_place(f"{who}{i}", who)
"""


def test_two_processes_write_at_once(cache: ConductanceCache, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "memory.sqlite")]
    running = [subprocess.Popen([*command, who], cwd=Path(__file__).parents[2]) for who in "xyz"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    images = [f"{who}{i}" for who in "xyz" for i in range(40)]
    known = cache.get(ProfileKey("m", "r", ("a", "b"), 50), images)
    assert known is not None and set(known.rows) == set(images)
    assert all(known.rows[f"{who}{i}"][0][0] == i for who in "xyz" for i in range(40))
    assert all(cache.place(image) == image[0] for image in images)


def test_the_only_key_of_a_model(cache: ConductanceCache) -> None:
    assert cache.only_key("open_clip:a/b", "r1", 50) is None
    cache.put(KEY, 1, {})
    assert cache.only_key("open_clip:a/b", "r1", 50) == KEY
    for other in (("open_clip:a/c", "r1", 50), ("open_clip:a/b", "r2", 50), ("open_clip:a/b", "r1", 49)):
        assert cache.only_key(*other) is None
    cache.put(replace(KEY, blocks=("y",)), 1, {})
    assert cache.only_key("open_clip:a/b", "r1", 50) is None
