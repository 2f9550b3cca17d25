"""What is in an index: counted by hand, by the library and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import HubhoundError
from engine.index import Index
from engine.knowledge import Knowledge
from engine.writer import IndexWriter
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import Listed, Refusal
from indexers.loaders.base import Metadata
from query.cli.main import run
from query.index_facts import crawl_facts, index_facts
from tests.support.small_index import make_filled_index, make_index

KEYS = [
    "manifest",
    "generation",
    "models",
    "copies",
    "outputs",
    "left_out",
    "libraries",
    "tasks",
    "profiles",
    "profiled_models",
    "performance",
    "bytes",
    "bytes_per_output",
]
"""What scripts read of ``index info``."""


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def listed(repo: str) -> Listed:
    return Listed(repo, "a" * 40, None, "2026-01-01T00:00:00Z", 10, None, False, Metadata())


def crawl(folder: Path, clock: Clock) -> None:
    """A crawl of four models: one is stored, one failed, one was refused, one waits."""
    with Journal(folder / FILE, clock=clock) as journal:
        p = journal.begin_pass("hub:https://hub?task=x", full=True)
        entries: list[tuple[Listed, Refusal | None]] = [(listed(f"org/m{i}"), None) for i in range(3)]
        journal.add_page(p, [*entries, (listed("org/big"), Refusal("too large", "5 GB"))], None)
        clock.now += 60
        journal.finish_pass(p)
        first = journal.claim()
        assert first is not None
        journal.fetched(first.repo, first.revision, size_bytes=10, weights=None, seconds=1.0)
        journal.probing(first.repo, first.revision)
        journal.stored(first.repo, first.revision, outputs=3, seconds={})
        second = journal.claim()
        assert second is not None
        journal.failed(second.repo, second.revision, "broken weights", "cut short", passing=False)
        journal.begin_pass("folder:/data/zoo?", full=False)


def test_facts_are_those_counted_by_hand(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    facts = index_facts(index, index.snapshot(), Knowledge())
    assert (facts.models, facts.outputs, facts.copies, facts.left_out, facts.generation) == (3, 14, 0, 0, 1)
    assert facts.libraries == {"timm": 2, "transformers": 1}
    assert facts.licences == {"mit": 1, "unknown": 2}
    files = [path for path in (tmp_path / "zoo" / "snapshots").rglob("*") if path.is_file()]
    assert facts.bytes["snapshots"] == sum(512 * path.stat().st_blocks for path in files)
    assert facts.manifest == index.manifest
    assert facts.crawl is None
    assert "hubness" not in facts.to_json()


def test_an_empty_index(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    facts = index_facts(index, None, Knowledge())
    assert (facts.generation, facts.models, facts.outputs, facts.libraries, facts.licences) == (0, 0, 0, {}, {})


def test_the_crawl_is_told_from_its_journal(tmp_path: Path) -> None:
    index, clock = make_index(tmp_path / "zoo"), Clock()
    assert crawl_facts(index) is None
    crawl(index.folder, clock)
    with IndexWriter(index.folder):  # a reader needs no lock
        found = crawl_facts(index)
    assert found is not None
    assert found.running is False
    assert found.phase is None
    assert found.began is not None
    assert found.began.timestamp() == 1_700_000_000
    told = found.model_dump(mode="json")
    assert {state: count for state, count in told["models"].items() if count} == {
        "stored": 1,
        "failed": 1,
        "refused": 1,
        "listed": 1,
    }
    assert told["stored"] == 1
    assert told["failures"] == [
        {"state": "failed", "reason": "broken weights", "count": 1},
        {"state": "refused", "reason": "too large", "count": 1},
    ]
    folder, hub = told["sources"]
    assert folder["unfinished"] == {"kind": "follow", "entries": 0, "started": "2023-11-14T22:14:20Z"}
    assert hub["last_full"] == "2023-11-14T22:14:20Z"
    assert hub["watermark"] == "2026-01-01T00:00:00Z"
    assert hub["unfinished"] is None


def test_a_damaged_journal_is_an_error_and_index_info_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_filled_index(tmp_path / "zoo")
    (index.folder / FILE).parent.mkdir()
    (index.folder / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(HubhoundError, match="damaged"):
        crawl_facts(index)
    assert run(["index", "info", "--index", str(index.folder), "--format", "json"]) == 0
    out, errors = capsys.readouterr()
    assert json.loads(out)["crawl"] is None
    assert "damaged" in errors


def test_the_command_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_filled_index(tmp_path / "zoo")
    crawl(index.folder, Clock())
    command = ["index", "info", "--index", str(index.folder)]
    assert run([*command, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [key for key in told if key in KEYS] == KEYS
    assert told["crawl"]["models"]["stored"] == 1
    assert told["manifest"]["method"] == "whitened"
    assert told == index_facts(Index(index.folder), index.snapshot(), index.knowledge(), crawl_facts(index)).to_json()
    assert run([*command, "--format", "json", "--hubness"]) == 0
    assert json.loads(capsys.readouterr().out)["hubness"]["outputs"] == 14
    assert run([*command, "--hubness"]) == 0
    table = capsys.readouterr().out
    assert "1 mit, 2 unknown" in table
    assert "give half of the answers" in table


def test_hubness_of_an_empty_index_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_index(tmp_path / "zoo")
    assert run(["index", "info", "--index", str(tmp_path / "zoo"), "--format", "json", "--hubness"]) == 0
    assert json.loads(capsys.readouterr().out)["hubness"] is None
