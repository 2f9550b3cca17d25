"""Processes of one machine that wait for each other: they are told, and answer from what is there in the end."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import waiting
from engine.index import Index
from engine.remote import Remote, index_folder
from engine.store.address import ServerAddress
from engine.waiting import turn
from engine.writer import IndexWriter
from query.api.generations import Generations
from query.cli.main import run
from query.request import SearchRequest
from query.search import Searcher
from tests.support.fault_proxy import Rule, Slow, fault_proxy
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, encode, make_index, put_model

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Another process has a lock, until the end of the block or for some seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "held\n"
        timer = threading.Timer(seconds or 0, other.stdin.close)
        if seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            other.stdin.close()
            other.wait(10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "TOLD_S", 0.2)
    for module in ("engine.catching_up", "engine.remote"):
        monkeypatch.setattr(f"{module}.OLDER_AFTER_S", 0.6)
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(scope="module")
def address(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index on the server with one model; tests change it."""
    address, here = addresses(), tmp_path_factory.mktemp("made")
    empty = make_index(here / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBHOUND_DATA", str(here / "data"))
        with IndexWriter(to_server(empty.folder, address)) as writer:
            put_model(writer, "org/animals", ANIMALS, seed=1)
    return address


@pytest.fixture
def folder(address: str) -> Path:
    """A working folder with a snapshot of what is in the index so far."""
    made = index_folder(address)
    Index(made).snapshot()
    return made


def change(folder: Path) -> None:
    """Writes a model to the index, which the snapshot does not have."""
    with IndexWriter(folder) as writer:
        put_model(writer, "org/things", THINGS, seed=time.monotonic_ns() % 2**31)


def test_who_waits_is_told_once_and_gets_the_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = tmp_path / "lock"
    with caplog.at_level(logging.WARNING, "hubhound.store"):
        with turn(lock, "is at it") as mine:
            assert mine
        assert caplog.messages == []
        with held(lock, 0.6), turn(lock, "is at it") as mine:
            assert mine
        assert caplog.messages == ["another process is at it: waiting for it"]
        with held(lock, 0.5), turn(lock, "is at it", 60.0) as mine:
            assert mine
    assert len(caplog.messages) == 2


def test_a_wait_in_vain_is_not_repeated_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock):
        begun = time.monotonic()
        with turn(lock, "is at it", 0.5) as mine:
            assert not mine
        assert 0.5 <= time.monotonic() - begun < 5
        begun = time.monotonic()
        with turn(lock, "is at it", 0.5) as mine:
            assert not mine
        assert time.monotonic() - begun < 0.4
    with turn(lock, "is at it", 0.5) as mine:
        assert mine
    with held(lock):
        begun = time.monotonic()
        with turn(lock, "is at it", 0.5) as mine:  # it had it in between: now it waits again
            assert not mine
        assert time.monotonic() - begun >= 0.5


def test_the_lock_is_let_go_where_something_fails(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), turn(lock, "is at it"):
        raise ZeroDivisionError
    with held(lock):
        pass


def test_a_search_answers_from_the_older_snapshot_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = Index(folder).snapshot()
    assert before.note is None
    change(folder)
    request = SearchRequest(("cat",), 3)
    with caplog.at_level(logging.WARNING, "hubhound.store"), held(folder / ".snapshots.lock"):
        searcher = Searcher(Index(folder), encode)
        answer = searcher.search(request)
    assert searcher.snapshot.number == before.number
    told = answer.to_json()["note"]
    assert str(told).startswith("another process is still fetching what has changed in the index t")
    assert str(told).endswith("this is the index as it was fetched 0 minutes ago")
    waits, older = caplog.messages
    assert waits.startswith("another process is fetching what has changed in the index t")
    assert older == told
    searcher = Searcher(Index(folder), encode)
    assert searcher.snapshot.number == before.number + 1
    assert "note" not in searcher.search(request).to_json()


def test_the_command_says_so_in_its_json(
    address: str, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["search", "--like", "org/animals#0", "--index", address, "-k", "2"]
    with held(folder / ".snapshots.lock"):
        assert run([*command, "--format", "json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["note"].startswith("another process is still fetching what has changed in the index")
        assert run(command) == 0
    assert caplog.messages.count(answer["note"]) == 1
    capsys.readouterr()
    assert run([*command, "--format", "json"]) == 0
    assert "note" not in json.loads(capsys.readouterr().out)


def test_without_a_snapshot_it_waits_on(folder: Path) -> None:
    shutil.rmtree(folder / "snapshots")
    with held(folder / ".snapshots.lock", 1.2):
        snapshot = Index(folder).snapshot()
    assert len(snapshot) and snapshot.note is None


def test_who_insists_waits_on(folder: Path) -> None:
    before = Index(folder).snapshot()
    change(folder)
    with held(folder / ".snapshots.lock", 1.2):
        snapshot = Index(folder).snapshot(insist=True)
    assert (snapshot.number, snapshot.note) == (before.number + 1, None)


def test_a_working_folder_that_is_being_opened_is_taken_as_it_is(
    address: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parsed = ServerAddress.parse(address)
    with caplog.at_level(logging.WARNING, "hubhound.store"), held(folder.with_name(f".{folder.name}.lock")):
        assert index_folder(address) == folder
        answer = Searcher(Index(folder), encode).search(SearchRequest(("cat",), 3))
    note = f"another process is still opening the index {parsed}: its files are taken as they are in {folder}"
    assert caplog.messages == [f"another process is opening the index {parsed}: waiting for it", note]
    assert answer.to_json()["note"] == note
    assert answer.searched
    remote = Remote.of(folder)
    assert remote is not None
    remote.refresh()  # as a service does every second
    assert Index(folder).note is None


def test_a_service_takes_a_note_back_when_it_has_caught_up(folder: Path) -> None:
    Index(folder).snapshot()
    generations = Generations(folder, lambda index: Searcher(index, encode))
    with held(folder / ".snapshots.lock"):
        generations.refresh()
    current = generations.current
    assert current is not None
    assert current.searcher.note is not None
    waiting._IN_VAIN.clear()  # a minute later
    generations._due = 0.0
    assert not generations.refresh()
    assert current.searcher.note is None


def test_a_working_folder_that_was_never_complete_is_waited_for(address: str, folder: Path) -> None:
    (folder / "fetched.json").unlink()  # as where it is being made
    with held(folder.with_name(f".{folder.name}.lock"), 1.2):
        assert index_folder(address) == folder
    assert Index(folder).note is None
    assert (folder / "fetched.json").exists()


def test_files_that_another_process_fetches_are_waited_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote.of(folder)
    assert remote is not None
    with (
        caplog.at_level(logging.WARNING, "hubhound.store"),
        held(folder.with_name(f".{folder.name}.probes.lock"), 0.6),
    ):
        remote.fetch("probes")
    assert caplog.messages == [f"another process is fetching the probes of the index {remote.address}: waiting for it"]


FOLLOW = """
import sys
from pathlib import Path
from engine.catching_up import catch_up
from engine.index import Index
from engine.store.address import ServerAddress
from engine.store.server import ServerStore
index, address = Index(Path(sys.argv[1])), ServerAddress.parse(sys.argv[2])
store = ServerStore.open(address.connect(), address.name)
print("open", flush=True)
catch_up(store, index.folder / "snapshots", index.background, index.manifest.background.fingerprint, None)
"""


def test_an_answer_that_trickles_does_not_hold_up_the_others(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that has the lock waits for a broken line: those behind it have answered long before it gives up."""
    before = Index(folder).snapshot()
    change(folder)
    parsed = ServerAddress.parse(address)
    with fault_proxy(parsed.url, Rule(Slow(20), path="_models/points")) as proxy:
        monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", "5")
        program = [sys.executable, "-c", FOLLOW, str(folder), f"qdrant://127.0.0.1:{proxy.port}/{parsed.name}"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as slow:
            assert slow.stdout is not None
            assert slow.stdout.readline() == "open\n"
            until = time.monotonic() + 30
            while not proxy.count(path="_models/points"):
                assert time.monotonic() < until
                time.sleep(0.02)
            searcher = Searcher(Index(folder), encode)
            assert slow.poll() is None
            assert searcher.snapshot.number == before.number
            assert searcher.search(SearchRequest(("cat",), 3)).note is not None
            _, told = slow.communicate(timeout=60)
    assert slow.returncode == 1
    assert "does not answer (its answer comes at " in told
