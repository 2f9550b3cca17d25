"""Copies, backups, restorations and exports under kill -9: never a half that passes for a whole, and they go on."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.backup import BackupSource, backup_index
from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index, read_content
from engine.errors import IndexUnusableError
from engine.export import INVENTORY, export_index
from engine.index import Index
from engine.remote import index_folder
from engine.verify import verify
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.servers import server_addresses

MODELS = 16
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.integration.test_copy_kill"])


def child(command: str, source: str, target: str, steps: Connection) -> None:
    """One command in a process of its own, which tells every step of its progress bar."""
    from engine import copying

    copying._GROUP = 8  # more steps to be killed at

    def step(_done: float, _total: float, what: str) -> None:
        steps.send(what)

    if command == "copy":
        with open_source(source) as old, open_target(target, old) as new:
            copy_index(old, new, step)
    elif command == "restore":
        with BackupSource(Path(source)) as backup, open_target(target, backup) as new:
            copy_index(backup, new, step)
    elif command == "backup":
        with open_source(source) as old:
            backup_index(old, Path(target), step)
    else:
        export_index(Path(source), Path(target), step)


def run(command: str, source: str | Path, target: str | Path, kill_at: int | None, moments: random.Random) -> list[str]:
    """Runs a command, and kills it after a number of steps; the steps that it told."""
    heard, told = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=child, args=(command, str(source), str(target), told))
    process.start()
    told.close()
    steps: list[Any] = []
    while kill_at is None or len(steps) < kill_at:
        try:
            steps.append(heard.recv())
        except EOFError:
            break
    if kill_at is not None:
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
    process.join()
    heard.close()
    assert process.exitcode in ((0,) if kill_at is None else (0, -9))
    return steps


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo", models=MODELS).folder


@pytest.fixture(scope="module")
def original(zoo: Path) -> str:
    return content(zoo)


@pytest.fixture(scope="module")
def backup(zoo: Path, original: str) -> Path:
    file = zoo.parent / "whole.backup"
    with open_source(str(zoo)) as source:
        assert backup_index(source, file).content.sha256 == original
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    with fast_folder(tmp_path) as made:
        yield made


def content(index: str | Path) -> str:
    with open_source(str(index)) as source:
        return read_content(source).sha256


@pytest.mark.parametrize("command", ["copy", "restore"])
def test_killed_copies_and_restorations_are_no_index_and_go_on(
    zoo: Path, backup: Path, original: str, folder: Path, command: str
) -> None:
    source = zoo if command == "copy" else backup
    moments = random.Random(1)
    total = len(run(command, source, folder / "whole", None, moments))
    assert content(folder / "whole") == original
    cut_short = 0
    for number in range(2):
        target = folder / f"killed-{number}"
        for kill_at in sorted(moments.sample(range(total), 3)):
            run(command, source, target, kill_at, moments)
            try:
                Index(target)
            except IndexUnusableError:
                cut_short += 1
            else:  # killed when all was done
                assert content(target) == original
                break
        else:
            run(command, source, target, None, moments)
        assert content(target) == original
        assert verify(target) == []
    assert cut_short >= 2


def test_a_killed_backup_is_no_file_of_that_name(zoo: Path, original: str, folder: Path) -> None:
    moments = random.Random(2)
    total = len(run("backup", zoo, folder / "whole", None, moments))
    cut_short = 0
    for kill_at in moments.sample(range(total // 2), 4):  # it runs on for a moment after it has said where it is
        run("backup", zoo, folder / "killed", kill_at, moments)
        if (folder / "killed").exists():
            break
        cut_short += 1
    else:
        run("backup", zoo, folder / "killed", None, moments)
    assert cut_short >= 1
    with BackupSource(folder / "killed") as source:
        assert read_content(source).sha256 == original
    assert sorted(path.name for path in folder.iterdir()) == ["killed", "whole"]


def test_a_killed_export_says_that_it_is_not_whole(zoo: Path, folder: Path) -> None:
    moments = random.Random(3)
    total = len(run("export", zoo, folder / "whole", None, moments))
    cut_short = 0
    for kill_at in moments.sample(range(total // 2), 3):
        run("export", zoo, folder / "killed", kill_at, moments)
        if (folder / "killed" / INVENTORY).exists():
            break
        cut_short += 1
    else:
        run("export", zoo, folder / "killed", None, moments)
    assert cut_short >= 1
    for name in ("outputs", "models"):
        tables = [pq.read_table(folder / run_ / f"{name}.parquet") for run_ in ("whole", "killed")]
        assert tables[0].equals(tables[1]) and tables[0].num_rows > MODELS
    assert not list((folder / "killed").glob("*.part"))


def test_a_copy_to_a_server_that_is_killed_goes_on(folder: Path) -> None:
    moments = random.Random(4)
    zoo = make_full_index(folder / "zoo", models=7).folder
    original = content(zoo)
    with server_addresses(folder / "server") as addresses:
        address = addresses()
        for kill_at in (0, 3, 1):
            run("copy", zoo, address, kill_at, moments)
            with pytest.raises(IndexUnusableError):
                index_folder(address)
        run("copy", zoo, address, None, moments)
        assert content(address) == original
        run("copy", address, folder / "back", 3, moments)
        with pytest.raises(IndexUnusableError):
            Index(folder / "back")
        run("copy", address, folder / "back", None, moments)
    assert content(folder / "back") == original
