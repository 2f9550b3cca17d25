"""``hubhound crawl status``, ``why`` and ``retry``."""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import Found, Listed, Refusal, State
from query.cli.crawl_journal import _span
from query.cli.main import run


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """An index of which only the crawl's part is there: the commands need no more."""
    index = tmp_path / "zoo"
    with Journal(index / FILE) as journal:
        p = journal.begin_pass("hub", True)
        names = ["good", "copy", "broken", "gated", "slow", "hand", "new"]
        page: list[tuple[Listed, Refusal | None]] = [(Listed(f"o/{name}", name[0] * 40), None) for name in names]
        page.append((Listed("o/small", "s" * 40), Refusal("not asked for", "it has 3 downloads")))
        journal.add_page(p, page, "next")
        for _ in range(6):
            claim = journal.claim()
            assert claim is not None
            it = claim.repo, claim.revision
            match claim.repo:
                case "o/good":
                    journal.fetched(*it, size_bytes=2_000_000, weights="w", seconds=0.5)
                    journal.probing(*it)
                    journal.stored(*it, outputs=1000, seconds={"load": 1.0, "decode": 0.0, "probe": 2.0, "store": 0.25})
                case "o/copy":
                    journal.fetched(*it, size_bytes=2_000_000, weights="w", seconds=0.5)
                    journal.stored(*it, outputs=1000, copy_of="o/good")
                case "o/broken":
                    journal.failed(*it, "broken weights", "tensor \x1b[31mx\nis missing", passing=False)
                case "o/gated":
                    journal.refused(*it, "gated", "accept its terms")
                case "o/slow":
                    journal.failed(*it, "network", "timed out", passing=True, retry_after_s=1000)
    return index


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    assert run(["crawl", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(answer(capsys, *arguments, "--format", "json")[0])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(["crawl", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("hubhound: ")
    return line


@pytest.mark.parametrize("command", ["status", "retry", "why"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = answer(capsys, command, "--help")
    assert f"Usage: hubhound crawl {command}" in out and "Examples:" in out


def test_status(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = answer(capsys, "status", "--index", zoo)
    lines = [line.split() for line in out.splitlines()]
    for counted in (["listed", "2"], ["refused", "2"], ["fetching", "1"], ["stored", "2"], ["failed", "1"]):
        assert counted in lines
    hour = next(line for line in lines if line[:2] == ["last", "hour"])
    assert hour[-7:] == ["4.0", "MB", "0.50", "1.00", "0.00", "2.00", "0.25"] and "1,000" in hour
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if "broken weights" in line)
    assert row.split()[:5] == ["failed", "broken", "weights", "1", "o/broken"] and row.rstrip().endswith("x is missing")
    assert any(line[:3] == ["tried", "again", "network"] for line in lines)
    assert "full, 8 entries so far" in out and "never" in out
    assert "no crawl runs" in err and "1 due, the oldest for" in err
    assert "1 wait for another try, the next in 16 min" in err
    assert f"hubhound crawl why MODEL --index {zoo}" in err


def test_status_for_programs(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = document(capsys, "status", "--index", zoo)
    assert status["models"] == {
        "listed": 2, "refused": 2, "fetching": 1, "fetched": 0, "probing": 0, "stored": 2, "failed": 1, "gone": 0,
    }  # fmt: skip
    assert (status["running"], status["pid"]) == (False, None)
    rates = status["rates"]["since_the_start"]
    assert (rates["models"], rates["copies"], rates["outputs"], rates["size_bytes"]) == (2, 1, 1000, 4_000_000)
    assert rates["seconds"] == {"fetch": 0.5, "load": 1.0, "decode": 0.0, "probe": 2.0, "store": 0.25}
    assert (status["queue"]["due"], status["queue"]["waiting"]) == (1, 1)
    assert 990 < status["queue"]["next_try_s"] < 1011
    assert {(f["state"], f["reason"], f["count"], f["model"]) for f in status["failures"]} == {
        ("failed", "broken weights", 1, "o/broken"),
        ("listed", "network", 1, "o/slow"),
        ("refused", "gated", 1, "o/gated"),
        ("refused", "not asked for", 1, "o/small"),
    }
    (source,) = status["sources"]
    assert (source["source"], source["last_full"]) == ("hub", None)
    assert (source["unfinished"]["kind"], source["unfinished"]["entries"]) == ("full", 8)
    quiet, _ = answer(capsys, "status", "--index", zoo, "--format", "quiet")
    assert quiet.splitlines()[0] == "listed 2" and len(quiet.splitlines()) == 8


def test_what_was_found_in_the_index_is_told_apart(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found in the index" not in answer(capsys, "status", "--index", zoo)[1]
    assert document(capsys, "status", "--index", zoo)["found_in_index"] == 0
    with Journal(zoo / FILE) as journal:
        gated = Found("o/bad", "b" * 40, State.FAILED, reason="broken weights", detail="not all there")
        page: list[tuple[Listed, Refusal | None]] = [
            (Listed(f"o/{name}", name[0] * 40), None) for name in ("there", "bad")
        ]
        journal.add_page(journal.begin_pass("hub", True), page, "next")
        assert journal.adopt([Found("o/there", "t" * 40, State.STORED, 7), gated]) != []
    status = document(capsys, "status", "--index", zoo)
    assert (status["found_in_index"], status["models"]["stored"], status["models"]["failed"]) == (1, 3, 2)
    assert status["rates"]["since_the_start"]["models"] == 2  # no rate counts it
    assert "1 of those stored were found in the index" in answer(capsys, "status", "--index", zoo)[1]
    out, err = answer(capsys, "why", "o/there", "--index", zoo)
    assert "is in the index with 7 outputs, and was found there" in out and err == ""
    assert re.search(r" stored +found in the index", out)
    out, err = answer(capsys, "why", "o/bad", "--index", zoo)
    assert "failed after one attempt: broken weights: not all there (found in the index)" in out
    assert f"hubhound crawl retry o/bad --index {zoo}" in err


@pytest.mark.parametrize(
    ("pid", "age_s", "said"),
    [
        (os.getpid(), 2, "the crawl runs: process"),
        (os.getpid(), 300, "the crawl hangs: process"),
        (2**22 + 5, 300, "ended without a word, its last sign of life was 5 min ago"),  # above Linux's largest
    ],
    ids=["running", "hanging", "gone"],
)
def test_status_says_whether_a_crawl_runs(
    zoo: Path, capsys: pytest.CaptureFixture[str], pid: int, age_s: float, said: str
) -> None:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    beat = {"pid": pid, "host": socket.gethostname(), "at": at.isoformat(), "state": "crawling"}
    path = zoo / "crawl" / "heartbeat.json"
    path.write_text(json.dumps({**beat, "counts": {}, "rates": {}, "in_hand": []}))
    _, err = answer(capsys, "status", "--index", zoo)
    assert said in err and f"process {pid} on" in err
    status = document(capsys, "status", "--index", zoo)
    assert (status["running"], status["pid"]) == (said.startswith("the crawl runs"), pid)
    assert age_s <= status["heartbeat_age_s"] < age_s + 10


@pytest.mark.parametrize(
    ("model", "fate", "hint"),
    [
        ("o/good", "is in the index with 1,000 outputs, it took 3.8 s", None),
        ("o/copy", "is in the index as a copy of o/good", None),
        (
            "o/broken",
            "failed after one attempt: broken weights: tensor \N{REPLACEMENT CHARACTER}[31mx is missing",
            "retry",
        ),
        ("o/gated", "was refused: gated: accept its terms", "retry"),
        ("o/slow", "after one attempt: network: timed out", "retry"),
        ("o/hand", "is under way, fetching since", "killed"),
        ("o/new", "waits to be fetched", "status"),
        ("o/small", "was refused when it was listed, before anything was fetched: not asked for", "filters"),
    ],
)
def test_why(zoo: Path, capsys: pytest.CaptureFixture[str], model: str, fate: str, hint: str | None) -> None:
    out, err = answer(capsys, "why", model, "--index", zoo)
    first = out.splitlines()[0]
    assert first.startswith(f"{model}@{model[2] * 40}: ") and fate in first
    assert hint in err if hint else err == ""
    if hint == "retry":
        assert f"hubhound crawl retry {model} --index {zoo}" in err
    assert ("copies of it: o/copy" in out) == (model == "o/good")
    (revision,) = document(capsys, "why", model, "--index", zoo)["revisions"]
    assert revision["history"][0]["state"] in ("listed", "refused")
    assert revision["history"][-1]["state"] == revision["state"]
    quiet, _ = answer(capsys, "why", model, "--index", zoo, "--format", "quiet")
    assert quiet == f"{model[2] * 40} {revision['state']}\n"


def test_retry(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "retry", "--index", zoo, "--reason", "bad luck")
    assert line.endswith("there are: 'broken weights', 'gated', 'network', 'not asked for'")
    with Journal(zoo / FILE) as running:  # as the daemon has it open
        _, err = answer(capsys, "retry", "--index", zoo, "--reason", "network")
        assert err == "1 put back, the crawl takes them next\n"
        claim = running.claim()
        assert claim is not None and (claim.repo, claim.attempts) == ("o/slow", 1)
    _, err = answer(capsys, "retry", "--index", zoo, "o/good", "o/broken", "o/broken")
    assert "o/good was left as it is" in err and "1 put back" in err
    found = document(capsys, "retry", "--index", zoo, "o/gated", "--reason", "gated")
    assert found == {"put_back": 1, "models": {"o/gated": 1}}
    quiet, _ = answer(capsys, "retry", "--index", zoo, "--reason", "not asked for", "--format", "quiet")
    assert quiet == "1\n"
    assert "none, nothing failed" in refusal(capsys, "retry", "--index", zoo, "--reason", "gated")
    assert run(["crawl", "retry", "--index", str(zoo)]) == 2


def test_what_is_not_there(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["why", "o/a"], ["retry", "--reason", "network"]):
        line = refusal(capsys, *command, "--index", tmp_path / "other")
        assert "there has been no crawl" in line and str(tmp_path / "other") in line
    assert not (tmp_path / "other").exists()
    assert "has not met a model 'o/a'" in refusal(capsys, "why", "o/a", "--index", zoo)
    assert "has not met a model 'o/a'" in refusal(capsys, "retry", "o/gated", "o/a", "--index", zoo)
    assert document(capsys, "why", "o/gated", "--index", zoo)["revisions"][0]["state"] == "refused"  # nothing was done
    (zoo / FILE).write_bytes(b"\0" * 5000)
    for command in (["status"], ["why", "o/a"], ["retry", "o/a"]):
        assert "is damaged" in refusal(capsys, *command, "--index", zoo)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (4.26, "4.3 s"), (59.4, "59 s"), (59.7, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
        (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (86_400 + 120, "1 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert _span(seconds) == text
