"""Copying between folders and a server, there and back, through a server that fails and one that is written to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.backup import BackupSource, backup_index
from engine.copy_report import CopyReport
from engine.copy_source import MARKER
from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index, read_content
from engine.errors import IndexUnusableError, InputError
from engine.index import Index
from engine.remote import index_folder
from engine.store.address import ServerAddress
from engine.store.server import ServerChoices, ServerStore
from engine.store.shelf import FileShelf
from engine.verify import verify
from engine.writer import IndexWriter
from tests.support.fault_proxy import DROP, Answer, Reset, Rule, fault_proxy
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import ANIMALS, put_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield folder


@pytest.fixture(scope="module")
def zoo(place: Path) -> Path:
    return make_full_index(place / "zoo", models=1).folder


@pytest.fixture(scope="module")
def original(zoo: Path) -> str:
    return content(zoo)


@pytest.fixture(scope="module")
def addresses(place: Path) -> Iterator[Addresses]:
    with server_addresses(place / "server") as made:
        yield made


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))


def run_copy(source: str | Path, target: str | Path, stop_at: int | None = None) -> CopyReport:
    count = iter(range(stop_at if stop_at is not None else 1 << 30))

    def step(_done: float, _total: float, _what: str) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt

    with open_source(str(source)) as old, open_target(str(target), old) as new:
        return copy_index(old, new, step)


def content(index: str | Path) -> str:
    with open_source(str(index)) as source:
        return read_content(source).sha256


def test_there_and_back(zoo: Path, original: str, addresses: Addresses, tmp_path: Path) -> None:
    address, other = addresses(), addresses()
    assert run_copy(zoo, address).content.sha256 == original
    folder = index_folder(address)
    assert Index(folder).manifest.probes.folder is None
    assert Index(folder).knowledge() == Index(zoo).knowledge()
    assert verify(folder) == []
    with ServerStore.open(ServerAddress.parse(address).connect(), ServerAddress.parse(address).name) as store:
        # What only a server has, to search by: it follows from the records.
        assert store.newest() > 0
        assert store.distinct("model") == ["org/animals-0", "zoo/again", "zoo/both"]
        assert FileShelf(store).entry(MARKER) is None
    with open_source(address) as source:
        assert backup_index(source, tmp_path / "zoo.backup").content.sha256 == original
    with BackupSource(tmp_path / "zoo.backup") as source, open_target(other, source) as target:
        assert copy_index(source, target).content.sha256 == original
    assert run_copy(str(index_folder(other)), tmp_path / "back").content.sha256 == original  # by its working folder
    assert content(tmp_path / "back") == original
    assert verify(tmp_path / "back") == []


@pytest.mark.parametrize("stop", [0, 2])
def test_a_copy_on_a_server_that_was_cut_short_goes_on(
    zoo: Path, original: str, addresses: Addresses, place: Path, stop: int
) -> None:
    address = addresses()
    with pytest.raises(KeyboardInterrupt):
        run_copy(zoo, address, stop)
    with pytest.raises(IndexUnusableError):
        index_folder(address)
    with pytest.raises(IndexUnusableError, match=f"is an unfinished copy.*hubhound index delete --index {address}'"):
        open_source(address)
    with (
        open_source(str(zoo)) as source,
        pytest.raises(InputError, match="begun with shards 1, replicas 1 and write consistency 1: leave"),
    ):
        open_target(address, source, ServerChoices(shards=2))
    if stop == 0:
        another = make_full_index(place / "another" / "zoo", models=1).folder
        with pytest.raises(InputError, match="unfinished copy of"):
            run_copy(another, address)
    report = run_copy(zoo, address)
    assert report.resumed and report.content.sha256 == original == content(address)
    with pytest.raises(InputError, match="there is an index"):
        run_copy(zoo, address)


def test_a_server_that_fails_now_and_then(zoo: Path, original: str, addresses: Addresses, tmp_path: Path) -> None:
    plain = ServerAddress.parse(addresses())
    rules = [
        Rule(Answer(503, retry_after_s=0), probability=0.05, seed=1),
        Rule(DROP, method="PUT", probability=0.1, seed=2),
        Rule(Reset(), probability=0.05, seed=3),
    ]
    with fault_proxy(plain.url, *rules) as proxy:
        through = addresses(proxy.url)
        assert run_copy(zoo, through).content.sha256 == original
        assert run_copy(through, tmp_path / "back").content.sha256 == original
    assert content(f"qdrant://{plain.host}:{plain.port}/{ServerAddress.parse(through).name}") == original


def test_a_server_index_that_is_written_to_while_it_is_copied(zoo: Path, addresses: Addresses, tmp_path: Path) -> None:
    address = addresses()
    run_copy(zoo, address)
    folder = index_folder(address)
    stop = threading.Event()
    begun = threading.Event()

    def write() -> None:
        with IndexWriter(folder) as writer:
            for number in range(1000):
                put_model(writer, "org/animals-0", ANIMALS, revision=f"w{number}", seed=number)
                begun.set()
                if stop.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(30)
    seen = 0

    def let_it_end(_done: float, _total: float, _what: str) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            stop.set()

    try:
        with open_source(address) as old, open_target(str(tmp_path / "copy"), old) as new:
            report = copy_index(old, new, let_it_end)
    finally:
        stop.set()
        writer.join()
    assert report.content.models.count == 4 and report.content.outputs.count == 11
    assert verify(tmp_path / "copy") == []


def test_a_kill_between_the_last_two_steps_leaves_a_whole_index(
    zoo: Path, original: str, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = addresses()

    def killed(self: FileShelf, paths: Sequence[str]) -> None:
        if MARKER in paths:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FileShelf, "remove", killed)
        run_copy(zoo, address)
    assert len(Index(index_folder(address)).snapshot()) == 11
    assert content(address) == original
    with pytest.raises(InputError, match="there is an index"):
        run_copy(zoo, address)
    parsed = ServerAddress.parse(address)
    with ServerStore.open(parsed.connect(), parsed.name) as store:
        assert FileShelf(store).entry(MARKER) is None


def test_probe_images_cannot_stay_behind_on_a_server(zoo: Path, addresses: Addresses) -> None:
    with open_source(str(zoo), with_probes=False) as old, pytest.raises(InputError, match="--no-probes"):
        open_target(addresses(), old)
