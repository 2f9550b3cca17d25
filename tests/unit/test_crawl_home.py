"""Where the journals of crawls lie that write to the same index on a server, and how one asks them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from engine.remote import index_folder
from indexers.crawl.home import home_of, shards_in
from indexers.crawl.journal import FILE, Journal
from query.cli.main import run

SERVER = "qdrant://127.0.0.1:1/zoo"
"""Nobody listens there."""


def test_parts_of_a_shared_index_have_folders_of_their_own(tmp_path: Path) -> None:
    assert home_of(tmp_path, None, shared=True) == tmp_path
    assert home_of(tmp_path, (1, 4), shared=False) == tmp_path  # whose index is its own
    assert home_of(tmp_path, (1, 4), shared=True) == tmp_path / "shards" / "1-of-4"
    assert shards_in(tmp_path) == []
    for shard in ((10, 12), (2, 12), (0, 3)):
        home_of(tmp_path, shard, shared=True).mkdir(parents=True)
    (tmp_path / "shards" / "other").mkdir()
    assert shards_in(tmp_path) == ["0/3", "2/12", "10/12"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path))
    return index_folder(SERVER, offline=True)


def make_journal(folder: Path) -> None:
    (folder / FILE).parent.mkdir(parents=True)
    Journal(folder / FILE).close()


def test_a_part_can_be_asked_while_the_server_is_away(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_journal(home_of(home, (0, 2), shared=True))
    assert run(["crawl", "status", "--index", SERVER, "--shard", "0/2", "--format", "quiet"]) == 0
    assert "listed 0" in capsys.readouterr().out
    assert run(["crawl", "status", "--index", SERVER]) == 1
    assert "was crawled in parts, name one: --shard 0/2" in capsys.readouterr().err
    assert run(["crawl", "why", "org/name", "--index", SERVER, "--shard", "1/2"]) == 1
    assert "--shard 0/2" in capsys.readouterr().err


def test_a_model_of_another_part_is_told_where_to_ask(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"org/model-{i}" for i in range(20)]
    digest = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names}
    ours, theirs = (next(name for name in names if digest[name] % 2 == part) for part in (0, 1))
    make_journal(home_of(home, (0, 2), shared=True))
    for command in ("why", "retry"):
        assert run(["crawl", command, theirs, "--index", SERVER, "--shard", "0/2"]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"'{theirs}' belongs to part 1/2, not to 0/2: " in line
        assert f"'hubhound crawl {command} {theirs} --index {SERVER} --shard 1/2'" in line
        assert run(["crawl", command, ours, "--index", SERVER, "--shard", "0/2"]) == 1
        assert "has not met" in capsys.readouterr().err


def test_the_whole_can_be_asked_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["crawl", "status", "--index", SERVER]) == 1
    assert "there has been no crawl of the index qdrant://127.0.0.1:1/zoo" in capsys.readouterr().err
    make_journal(home)
    assert run(["crawl", "status", "--index", SERVER, "--format", "quiet"]) == 0
    assert run(["crawl", "retry", "--index", SERVER, "--reason", "gated"]) == 1
    assert "there is no reason 'gated'" in capsys.readouterr().err
