"""``hubhound index delete`` as a person and a script meet it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import deletion
from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index
from engine.errors import IndexMissingError
from engine.joint_making import make_candidates
from engine.remote import index_folder, shown
from engine.store.address import ServerAddress
from engine.store.server_client import equal_all
from indexers.crawl.heartbeat import FILE, HeartbeatWriter
from indexers.crawl.watch import Watch
from query.cli.main import run
from tests.support.full_index import make_full_index
from tests.support.joint_index import SETTINGS, fill, joint_of, new_index
from tests.support.output_tables import fast_folder
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import encode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo", models=1).folder


@pytest.fixture(scope="module")
def addresses(original: Path) -> Iterator[Addresses]:
    with server_addresses(original.parent / "server") as made:
        yield made


@pytest.fixture
def zoo(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(deletion, "WATCH_S", 0.0)
    with fast_folder(tmp_path) as made:
        shutil.copytree(original, made / "zoo")
        yield made / "zoo"


def said(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO())
        assert run(["index", "delete", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if status:
        assert err.count("\n") == 1
        assert out == ""
    return out, err


def test_without_a_terminal_it_wants_to_be_told(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "--index", zoo, "--format", "json", status=1)
    assert err == f"hubhound: {zoo} is not deleted: there is no terminal to ask in, give --yes\n"
    assert (zoo / "manifest.json").exists()


def test_a_key_in_the_address_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "--index", "qdrant://me:verysecret@db.example/zoo", status=1)
    assert "verysecret" not in err
    assert "HUBHOUND_QDRANT_API_KEY" in err


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(
    zoo: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a script whose variable is not set."""
    monkeypatch.chdir(zoo)
    _, err = said(capsys, "--index", name, "--yes", status=1)
    assert err == "hubhound: --index is empty: name the index to delete\n"
    assert (zoo / "manifest.json").exists()


def test_what_goes_is_told(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / "notes.txt").write_text("mine")
    out, err = said(capsys, "--index", zoo, "--yes", "--format", "json")
    answer = json.loads(out)
    told, where, *left, done = err.splitlines()
    assert told == f"to be deleted: the index {zoo}: 4 models, 25 outputs"
    assert where.startswith(f"  folder {zoo}: {answer['files']} files, ")
    assert left == [f"stays: {one}" for one in answer["stays"]]
    assert done == f"{zoo} is deleted; what stays: {'; '.join(answer['stays'])}"
    assert answer.pop("seconds") >= 0
    assert answer.pop("bytes") > 1000
    assert answer.pop("files") > 20
    assert answer == {
        "index": str(zoo),
        "models": 4,
        "outputs": 25,
        "collections": {},
        "folder": str(zoo),
        "stays": answer["stays"],
        "resumed": False,
    }
    assert [path.name for path in zoo.iterdir()] == ["notes.txt"]


def test_on_a_server(zoo: Path, addresses: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    address = addresses()
    with open_source(str(zoo)) as source, open_target(address, source) as target:
        copy_index(source, target)
    home = index_folder(address)
    assert run(["index", "info", "--index", address, "--format", "json"]) == 0
    server = json.loads(capsys.readouterr().out)["server"]
    assert (server["shards"], server["replicas"], server["write_consistency"]) == (1, 1, 1)
    assert run(["index", "info", "--index", address]) == 0
    assert "shards 1, replicas 1, write consistency 1" in capsys.readouterr().out
    for crawl in (home / "crawl", home / "shards" / "1-of-3" / "crawl", home / "vlms" / "crawl"):
        crawl.mkdir(parents=True)
        with HeartbeatWriter(crawl / FILE, Watch()):
            _, err = said(capsys, "--index", address, "--yes", status=1)
        assert f"a crawl is writing to {address} (process {os.getpid()} on " in err
    out, err = said(capsys, "--index", address, "--yes")
    assert out == ""
    name = address.rpartition("/")[2]
    assert f"to be deleted: the index {address}: 4 models, 11 outputs\n" in err
    assert f"  collection {name}_outputs: 11 points\n" in err
    assert f"  folder {home}: " in err
    assert re.search(r"  last written to \d+ s ago\n", err)
    assert err.endswith(f"{address} is deleted\n")
    assert said(capsys, "--index", address, "--yes", status=1)[1].endswith("nothing to delete\n")


def test_one_with_candidates(
    zoo: Path, addresses: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(new_index(addresses, tmp_path))
    make_candidates(folder, SETTINGS, encode=encode)
    index = shown(folder)
    for left_out, missing in (("", 0), ("org/things", 1)):
        joint_of(folder).joined.unmark(equal_all({"repo": left_out}))
        assert run(["index", "info", "--index", index, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["server"]["missing"] == missing
        assert run(["index", "info", "--index", index]) == 0
        assert ("1 models: index candidates puts them in" in capsys.readouterr().out) == bool(missing)
    out, _ = said(capsys, "--index", index, "--yes", "--format", "json")
    name = index.rpartition("/")[2]
    assert json.loads(out)["collections"][f"{name}_joint"] == 14
    with pytest.raises(IndexMissingError):
        index_folder(index)
    client = ServerAddress.parse(index).connect()
    assert not client.collection_exists(f"{name}_joint")
    client.close()


def answered(index: Path, answer: bytes) -> tuple[int, str, str]:
    """Runs the command in a terminal in which somebody answers its question."""
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-c", "from query.cli.main import main; main()", "index", "delete"]
        process = subprocess.Popen(
            [*command, "--index", str(index), "--format", "quiet"],
            cwd=ROOT,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(ours, answer)
        out, err = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    return process.returncode, out, err


def test_in_a_terminal_it_asks(zoo: Path) -> None:
    for answer in (b"n\n", b"\n"):
        status, out, err = answered(zoo, answer)
        assert (status, out) == (1, "")
        assert "Delete all of this for good? [y/N]: " in err
        assert err.endswith(f"hubhound: {zoo} is not deleted\n")
        assert (zoo / "manifest.json").exists()
    status, out, err = answered(zoo, b"y\n")
    assert (status, out) == (0, f"{zoo}\n")
    assert "4 models, 25 outputs" in err.partition("Delete all of this")[0]
    assert not zoo.exists()
