"""The heartbeat of a crawl: what a supervisor reads while the crawl runs, hangs, ends or is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from indexers.crawl.heartbeat import FILE, STALE_S, HeartbeatWriter, read
from indexers.crawl.log import logging_to
from indexers.crawl.watch import Watch

REPOSITORY = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_it_says(path: Path) -> None:
    watch = Watch(lambda: 100.0)
    watch.listed(5, 2, 1, None)
    watch.stored(10, copy=False)
    watch.failed("crashed")
    watch.started("probe", "org/a")
    wall = time.time()
    with HeartbeatWriter(path, watch, every_s=0.05) as writer:
        writer.beat("crawling")
        eventually(lambda: json.loads(path.read_text())["state"] == "crawling")
        said = json.loads(path.read_text())
        found = read(path)
    assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())
    assert datetime.fromisoformat(said["at"]).timestamp() == pytest.approx(wall, abs=20)
    assert said["counts"] == watch.now().counts()
    assert said["counts"]["stored"] == 1
    assert said["rates"]["models_per_min_overall"] == 60
    assert [(held["stage"], held["repo"]) for held in said["in_hand"]] == [("probe", "org/a")]
    assert datetime.fromisoformat(said["in_hand"][0]["since"]).timestamp() == pytest.approx(wall, abs=20)
    assert found is not None
    assert found.alive
    assert found.age_s < 20
    assert found.beat.model_dump(mode="json") == said


def test_it_is_written_before_the_block_begins_and_removed_when_it_ends(path: Path) -> None:
    with HeartbeatWriter(path, Watch()):
        assert json.loads(path.read_text())["state"] == "listing"
    assert list(path.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), HeartbeatWriter(path, Watch()):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_the_counts_follow_the_crawl(path: Path) -> None:
    watch = Watch()
    with HeartbeatWriter(path, watch, every_s=0.02):
        for count in (1, 2):
            watch.stored(1, copy=False)
            eventually(lambda count=count: json.loads(path.read_text())["counts"]["stored"] == count)  # type: ignore[misc]


def test_a_main_loop_that_hangs_shows(path: Path) -> None:
    """The file is still written, but its time is the main loop's."""
    now = [1_000_000.0]
    watch = Watch()
    with HeartbeatWriter(path, watch, every_s=0.02, clock=lambda: now[0]) as writer:
        writer.beat("crawling")
        now[0] += 300
        watch.stored(1, copy=False)
        eventually(lambda: json.loads(path.read_text())["counts"]["stored"] == 1)
        found = read(path, clock=lambda: now[0])
        assert found is not None
        assert (found.alive, found.age_s) == (True, 300)
        writer.beat("waiting")
        eventually(lambda: json.loads(path.read_text())["state"] == "waiting")
        found = read(path, clock=lambda: now[0])
        assert found is not None
        assert found.age_s == 0


def test_readers_never_meet_half_a_file(path: Path) -> None:
    watch = Watch()
    for i in range(200):
        watch.started("fetch", f"org/model-{i}")
    with HeartbeatWriter(path, watch, every_s=0.001):
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            assert len(json.loads(path.read_text())["in_hand"]) == 200


def test_none_where_there_is_none(path: Path) -> None:
    assert read(path) is None
    for nonsense in ("", "{", "[]", '{"pid": 1}', '{"pid": "x", "host": 3}', "\xff\xfe"):
        path.write_text(nonsense, encoding="latin-1")
        assert read(path) is None
    path.unlink()
    path.mkdir()
    assert read(path) is None


def test_a_killed_crawl_is_dead_and_the_next_one_takes_its_place(path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom indexers.crawl.heartbeat import HeartbeatWriter\n"
        "from indexers.crawl.watch import Watch\n"
        f"with HeartbeatWriter(Path({str(path)!r}), Watch(), every_s=0.001):\n"
        "    print('up', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    found = read(path)
    assert found is not None
    assert (found.beat.pid, found.alive) == (process.pid, True)
    os.kill(process.pid, signal.SIGKILL)
    # A process that has ended and was not waited for has a number still, but does not run.
    eventually(lambda: (again := read(path)) is not None and not again.alive)
    process.wait()
    process.stdout.close()
    found = read(path)
    assert found is not None
    assert not found.alive
    (path.parent / f".{FILE}.abc123").write_text("half of wh")  # as a kill in the middle of writing leaves
    with HeartbeatWriter(path, Watch()):
        found = read(path)
        assert found is not None
        assert (found.beat.pid, found.alive) == (os.getpid(), True)
    assert list(path.parent.iterdir()) == []


def test_another_process_of_the_same_number_is_not_the_crawl(path: Path) -> None:
    with HeartbeatWriter(path, Watch(), every_s=60):
        edit(path, birth="12345")  # this process began later than that
        found = read(path)
        assert found is not None
        assert not found.alive
        for pid in (0, -1, 2**70):
            edit(path, pid=pid, birth=None)
            found = read(path)
            assert found is not None
            assert not found.alive
        edit(path, pid=os.getpid())


def test_on_another_host_only_the_age_tells(path: Path) -> None:
    with HeartbeatWriter(path, Watch(), every_s=60):
        edit(path, host="elsewhere", pid=dead_pid())
        at = json.loads(path.read_text())["at"]
        wrote = datetime.fromisoformat(at).timestamp()
        for age_s, alive in ((STALE_S - 1, True), (STALE_S + 1, False)):
            found = read(path, clock=lambda age_s=age_s: wrote + age_s)  # type: ignore[misc]
            assert found is not None
            assert (found.alive, found.age_s) == (alive, pytest.approx(age_s))
    assert path.exists()  # another's file is left to the other


def test_clocks_that_disagree_make_no_negative_age(path: Path) -> None:
    with HeartbeatWriter(path, Watch()):
        found = read(path, clock=lambda: datetime(2000, 1, 1, tzinfo=UTC).timestamp())
        assert found is not None
        assert found.age_s == 0


def test_what_a_later_version_adds_is_passed_over(path: Path) -> None:
    with HeartbeatWriter(path, Watch(), every_s=60):
        edit(path, colour="red")
        assert read(path) is not None


def test_a_disk_that_cannot_be_written_is_logged_once_and_stops_nothing(tmp_path: Path) -> None:
    """A folder that is not there fails as a full disk does: with an OSError at every write."""
    folder = tmp_path / "crawl"
    watch, log = Watch(), StringIO()
    with logging_to("json", log), HeartbeatWriter(folder / FILE, watch, every_s=0.01) as writer:
        time.sleep(0.2)
        folder.mkdir()
        eventually((folder / FILE).exists)  # it recovers by itself
        writer.beat("crawling")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("heartbeat not written", "warning")]
    assert lines[0]["detail"] == "No such file or directory"


def test_a_file_that_cannot_be_filled(path: Path) -> None:
    """The system takes no more than a few bytes, as on a full disk."""
    code = (
        "import resource, signal, time\nfrom pathlib import Path\n"
        "from indexers.crawl.heartbeat import HeartbeatWriter\n"
        "from indexers.crawl.log import logging_to\nfrom indexers.crawl.watch import Watch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"with logging_to('text'), HeartbeatWriter(Path({str(path)!r}), Watch(), every_s=0.01):\n    time.sleep(0.2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"warning: heartbeat not written: path {path}: File too large\n")
    assert list(path.parent.iterdir()) == []


def test_names_that_are_no_unicode_do_not_stop_it(path: Path) -> None:
    watch = Watch()
    watch.started("fetch", "org/\ud800\x1b")
    with HeartbeatWriter(path, watch):
        assert json.loads(path.read_text())["in_hand"][0]["repo"] == "org/\\ud800\\x1b"
