"""What only the embedded store has: its lock, its folder, its errors."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.errors import IndexLockedError, IndexMismatchError, IndexMissingError, StoreError
from engine.schema import Model
from engine.store import records
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from engine.store.shard import Shard, engine_errors, folder_bytes
from tests.support.output_tables import assert_same, fast_folder, make_table

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


def open_elsewhere(path: Path) -> str:
    code = f"""
from engine.store.edge import EdgeStore
try:
    with EdgeStore.open({str(path)!r}) as store:
        print(store.count_outputs())
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_is_open_in_one_process_at_a_time(folder: Path) -> None:
    path = folder / "store"
    with EdgeStore.create(path, LAYOUT) as store:
        store.upsert_outputs(make_table(LAYOUT))
        with pytest.raises(IndexLockedError):
            EdgeStore.open(path)
        answer = open_elsewhere(path)
        assert answer.startswith("IndexLockedError") and str(path) in answer and "\n" not in answer
    assert open_elsewhere(path) == "7"
    shard = Shard.open(path / "models")  # without the store's lock, as a forked child would hold it
    with pytest.raises(IndexLockedError):
        EdgeStore.open(path)
    shard.close()
    EdgeStore.open(path).close()


def test_answers_do_not_change_by_optimising(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.edge_config._INDEX_FROM_KB", 5_000)
    layout = StoreLayout(probes=200, top_r=20, dimension=512)
    tables = [make_table(layout, f"org/{i}", m=1000, seed=i) for i in range(6)]
    sparse = records.local_query(np.random.default_rng(1).standard_normal(200), 0.0)
    dense = records.global_query(np.random.default_rng(2).standard_normal(512))
    with EdgeStore.create(folder / "store", layout) as store:
        for table in tables:
            store.upsert_outputs(table)
        before = store.query_local(*sparse, 50), store.query_global(dense, 50)
        store.optimize()
        assert list((folder / "store").rglob("inverted_index.dat")), "large enough to be indexed"
        after = store.query_local(*sparse, 50), store.query_global(dense, 50)
        for old, new in zip(before, after, strict=True):
            assert [(h.repo, h.output) for h in old] == [(h.repo, h.output) for h in new]
            np.testing.assert_allclose([h.score for h in old], [h.score for h in new], rtol=1e-4)
        best = np.concatenate([records.global_documents(table, "whitened") @ dense for table in tables])
        np.testing.assert_allclose([h.score for h in after[1]], np.sort(best)[::-1][:50], rtol=1e-4)
        assert_same(store.outputs("org/3", "r1"), tables[3])
        store.upsert_outputs(make_table(layout, "org/3", m=1000, seed=9))
        assert_same(store.outputs("org/3", "r1"), make_table(layout, "org/3", m=1000, seed=9))
        assert store.count_outputs() == 6000


def test_takes_no_room_when_empty(tmp_path: Path) -> None:
    path = tmp_path / "store"  # on a disk: a file system in memory gives whole pages to holes that are mapped
    EdgeStore.create(path, LAYOUT).close()
    assert folder_bytes(path) < 1_000_000
    assert all(file.stat().st_size <= 1 << 20 for file in path.glob("*/wal/*"))


def test_reports_a_full_disk_before_it_hits_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EdgeStore.create(folder / "store", LAYOUT) as store:
        store.upsert_outputs(make_table(LAYOUT))
        usage = type("Usage", (), {"free": 1_000_000})
        with monkeypatch.context() as patch:
            patch.setattr("engine.store.shard.shutil.disk_usage", lambda _: usage)
            for write in (
                lambda: store.upsert_outputs(make_table(LAYOUT, "org/b")),
                lambda: store.upsert_model(Model(repo="org/b", revision="r1")),
                lambda: store.delete_outputs("org/a"),
                lambda: store.delete_model("org/a"),
                store.optimize,
            ):
                with pytest.raises(StoreError, match="disk is full") as caught:
                    write()
                assert "\n" not in str(caught.value)
        assert_same(store.outputs("org/a", "r1"), make_table(LAYOUT))
        store.upsert_outputs(make_table(LAYOUT, "org/b"))


def test_reports_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EdgeStore.create(folder / "store", LAYOUT).close()

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("engine.store.edge.os.open", refuse)
        with pytest.raises(StoreError, match="read-only"):
            EdgeStore.open(folder / "store")
    (folder / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot create"):
        EdgeStore.create(folder / "file", LAYOUT)


def test_reports_damage_and_lets_go_of_the_lock(folder: Path) -> None:
    path = folder / "store"
    with EdgeStore.create(path, LAYOUT) as store:
        store.upsert_outputs(make_table(LAYOUT))
    (segment,) = (path / "outputs").glob("segments/*/segment.json")
    segment.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged") as caught:
            EdgeStore.open(path)
        assert "\n" not in str(caught.value)
    (path / "layout.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        EdgeStore.open(path)
    (path / "layout.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(IndexMismatchError, match="format 99"):
        EdgeStore.open(path)


def test_makes_up_for_an_interrupted_creation_but_removes_nothing_else(folder: Path) -> None:
    path = folder / "store"
    EdgeStore.create(path, LAYOUT).close()
    (path / "layout.json").unlink()
    with pytest.raises(IndexMissingError):
        EdgeStore.open(path)
    with EdgeStore.create(path, LAYOUT) as store:
        store.upsert_outputs(make_table(LAYOUT))
    other = folder / "other"
    (other / "outputs").mkdir(parents=True)
    (other / "outputs" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="something else"):
        EdgeStore.create(other, LAYOUT)
    assert (other / "outputs" / "thesis.txt").exists()


def test_clears_what_a_killed_optimisation_left(folder: Path) -> None:
    path = folder / "store"
    EdgeStore.create(path, LAYOUT).close()
    half = path / "outputs" / "temp_segments" / "segment_builder_x" / "vectors.dat"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * 1000)
    EdgeStore.open(path).close()
    assert not half.exists()


def test_turns_a_panic_of_the_engine_into_an_error(folder: Path) -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(StoreError, match="index out of bounds"), engine_errors("read", folder):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), engine_errors("read", folder):
        raise KeyboardInterrupt


def test_leaves_a_full_disk_report_of_the_system_readable(folder: Path) -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), Exception("IO Error: x (os error 28)\nmore")):
        with pytest.raises(StoreError, match="disk is full"), engine_errors("write to", folder):
            raise error
