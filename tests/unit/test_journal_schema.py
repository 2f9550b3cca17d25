"""The journal's file: foreign, damaged, newer, read while it is written and where nothing can be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engine.errors import IndexDamagedError, InputError, StoreError
from indexers.crawl.journal import Journal
from indexers.crawl.records import Listed, State
from tests.support.output_tables import fast_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as folder:
        yield folder / "crawl" / "journal.sqlite"


def fill(path: Path, models: int = 3) -> None:
    with Journal(path) as journal:
        p = journal.begin_pass("hub", True)
        journal.add_page(p, [(Listed(f"o/{i}", f"{i:040}"), None) for i in range(models)], None)


def line_of(error: Exception, path: Path) -> str:
    assert "\n" not in str(error) and str(path) in str(error)
    return str(error)


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_journal(path: Path, read_only: bool) -> None:
    path.parent.mkdir()
    path.write_text("dear diary " * 500)
    with pytest.raises(IndexDamagedError) as raised:
        Journal(path, read_only=read_only)
    assert "is damaged" in line_of(raised.value, path) and "crawl again" in str(raised.value)
    path.unlink()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE recipes (cake)")
    with pytest.raises(IndexDamagedError) as raised:
        Journal(path, read_only=read_only)
    assert "not the journal of a crawl" in line_of(raised.value, path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_journal(path: Path, read_only: bool) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("PRAGMA user_version = 2")
    with pytest.raises(InputError, match="newer hubhound") as raised:
        Journal(path, read_only=read_only)
    line_of(raised.value, path)


def test_damage_in_the_middle(path: Path) -> None:
    fill(path, 3000)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    with pytest.raises(IndexDamagedError) as raised, Journal(path) as journal:
        journal.history("o/1")
    assert "is damaged" in line_of(raised.value, path)


def test_reading_what_is_not_there(path: Path) -> None:
    with pytest.raises(InputError, match="no journal"):
        Journal(path, read_only=True)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()  # killed as it was made
    with pytest.raises(InputError, match="no journal"):
        Journal(path, read_only=True)
    fill(path)


def test_a_folder_that_cannot_be_made(path: Path) -> None:
    path.parent.write_text("a file")
    with pytest.raises(StoreError, match="cannot be made") as raised:
        Journal(path)
    line_of(raised.value, path.parent)


def test_reading_while_it_is_written(path: Path) -> None:
    fill(path)
    with Journal(path) as writer, Journal(path, read_only=True) as reader:
        assert reader.counts()[State.LISTED] == 3
        writer.claim()
        assert reader.counts()[State.FETCHING] == 1
        with writer._database.transaction() as connection:  # a transaction in the middle hides nothing and bars nobody
            connection.execute("UPDATE revisions SET state = 'gone'")
            assert reader.counts()[State.FETCHING] == 1
        assert reader.counts()[State.GONE] == 3
        with pytest.raises(ValueError, match="for reading"):
            reader.claim()


READ = """
import os, sys
from pathlib import Path
from indexers.crawl.journal import Journal
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
path = Path(sys.argv[1])
try:
    (path.parent / "x").touch()
    sys.exit("the folder can be written")
except PermissionError:
    pass
with Journal(path, read_only=True) as journal:
    print({state.value: count for state, count in journal.counts().items() if count})
print(sorted(file.name for file in path.parent.iterdir()))
"""


@pytest.mark.parametrize("left", ["closed", "killed", "written"])
def test_reading_where_nothing_can_be_written(path: Path, left: str) -> None:
    fill(path)
    if left != "closed":
        writer = Journal(path)
        writer.claim()
        if left == "killed":  # the file and its log, as they lie on a disk that was copied or mounted for reading
            copy = path.parent.with_name("copied")
            copy.mkdir()
            for name in (path.name, f"{path.name}-wal"):
                shutil.copyfile(path.with_name(name), copy / name)
            writer.close()
            path = copy / path.name
    path.parent.chmod(0o555)
    path.parent.parent.chmod(0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    finally:
        path.parent.chmod(0o755)
        if left == "written":
            writer.close()
    counts, files = (done.stdout + "\n\n").split("\n")[:2]
    assert done.returncode == 0, done.stderr
    assert counts == ("{'listed': 3}" if left == "closed" else "{'listed': 2, 'fetching': 1}")
    assert ("journal.sqlite-shm" in files) == (left == "written")
