from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from indexers.crawl.downloads import Downloads, size_of

NEVER = threading.Event()


def fill(folder: Path, size_bytes: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * size_bytes)
    return folder


def test_what_is_reserved_never_exceeds_the_limit(tmp_path: Path) -> None:
    """Many threads reserve, write, and give back; the bytes on the disk are looked at all the while."""
    downloads = Downloads(tmp_path / "d", 1000)
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            most[0] = max(most[0], size_of(tmp_path / "d"))

    def work(start: int) -> None:
        for i in range(start, start + 15):
            size_bytes = 50 + 37 * (i % 11)
            folder = downloads.reserve(f"m{i}", size_bytes, NEVER)
            assert folder is not None
            fill(folder, size_bytes)
            time.sleep(0.005)
            assert downloads.used_bytes <= 1000
            downloads.remove(f"m{i}")

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(100 * n,)) for n in range(6)]
    watcher.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    stop.set()
    watcher.join()
    assert 0 < most[0] <= 1000
    assert downloads.used_bytes == 0
    downloads.close()
    assert not (tmp_path / "d").exists()


def test_one_waits_until_another_gives_back_and_stops_waiting_when_told(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path, 100)
    assert downloads.fits(100)
    assert not downloads.fits(101)
    assert downloads.reserve("a", 80, NEVER) == tmp_path / "a"
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(downloads.reserve("b", 30, NEVER)))
    waiting.start()
    time.sleep(0.1)
    assert got == []
    downloads.remove("a")
    waiting.join(5)
    assert got == [tmp_path / "b"]
    stopped = threading.Event()
    stopped.set()
    assert downloads.reserve("c", 80, stopped) is None


def test_one_folder_is_in_one_hand_at_a_time(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path, 100)
    downloads.reserve("a", 10, NEVER)
    soon = threading.Event()
    threading.Timer(0.3, soon.set).start()
    assert downloads.reserve("a", 10, soon) is None


@pytest.mark.parametrize(("asked", "stays"), [(30, ["big", "small"]), (50, ["small"]), (95, [])])
def test_what_a_killed_run_left_is_kept_until_the_room_is_needed(tmp_path: Path, asked: int, stays: list[str]) -> None:
    fill(tmp_path / "big", 50)
    fill(tmp_path / "small", 10)
    fill(tmp_path / "forgotten", 70)
    downloads = Downloads(tmp_path, 100, wanted=["big", "small"])
    assert not (tmp_path / "forgotten").exists()
    assert downloads.used_bytes == 60
    assert downloads.reserve("new", asked, NEVER) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == stays
    assert downloads.used_bytes <= 100


def test_who_comes_back_for_what_was_left_does_not_pay_twice(tmp_path: Path) -> None:
    fill(tmp_path / "half", 60)
    downloads = Downloads(tmp_path, 100, wanted=["half"])
    assert downloads.reserve("half", 90, NEVER) == tmp_path / "half"
    assert (tmp_path / "half" / "weights").exists()
    assert downloads.used_bytes == 90
    downloads.keep("half")
    assert downloads.used_bytes == 60
    downloads.remove("half")
    assert downloads.used_bytes == 0
    assert not (tmp_path / "half").exists()


def test_names_are_those_of_one_revision() -> None:
    assert Downloads.name("org/model", "0123456789abcdef0123") == "org--model@0123456789abcdef"
