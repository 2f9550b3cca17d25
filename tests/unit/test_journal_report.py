"""Counts, rates, failures, queue and histories of a journal, against numbers worked out by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexers.crawl.backoff import Backoff
from indexers.crawl.journal import Journal
from indexers.crawl.journal_report import Failure, Queue
from indexers.crawl.records import Listed, Refusal, State
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(10_000.0)


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite", clock=clock, backoff=Backoff(attempts=2)) as made:
        yield made


def fill(journal: Journal, *repos: str, refusal: Refusal | None = None) -> None:
    p = journal.begin_pass("hub", True)
    journal.add_page(p, [(Listed(repo, "1"), refusal) for repo in repos], "next")


def begin(journal: Journal) -> tuple[str, str]:
    claim = journal.claim()
    assert claim is not None
    return claim.repo, claim.revision


def test_an_empty_journal_has_answers(journal: Journal) -> None:
    assert journal.counts() == dict.fromkeys(State, 0)
    assert journal.failures() == journal.reasons() == journal.sources() == journal.rows("o/a") == []
    assert journal.history("o/a") == []
    assert journal.queue() == Queue(0, 0, None, None)
    for rates in (journal.rates(), journal.rates(3600)):
        assert (rates.models, rates.outputs, rates.size_bytes, rates.models_per_min) == (0, 0, 0, 0.0)
        assert set(rates.seconds.values()) == {None}


def test_rates(journal: Journal, clock: Clock) -> None:
    fill(journal, "o/a", "o/b", "o/c", "o/d")
    for moment, outputs, fetch_s, load_s in ((0, 100, 1.0, 2.0), (3000, 40, 2.0, 6.0)):
        clock.now = 10_000.0 + moment
        it = begin(journal)
        journal.fetched(*it, size_bytes=7, weights=None, seconds=fetch_s)
        journal.probing(*it)
        journal.stored(*it, outputs=outputs, seconds={"load": load_s, "probe": 9.0})
    it = begin(journal)
    journal.fetched(*it, size_bytes=5, weights=None, seconds=6.0)
    journal.stored(*it, outputs=40, copy_of="o/b")  # neither loaded nor probed, and its outputs are another's
    it = begin(journal)
    journal.fetched(*it, size_bytes=1000, weights=None, seconds=50.0)
    journal.failed(*it, "crashed", "signal 11", passing=False)  # no reading: counts nowhere
    clock.now = 10_000.0 + 6000
    rates = journal.rates()
    assert (rates.span_s, rates.models, rates.copies, rates.outputs, rates.size_bytes) == (6000, 3, 1, 140, 19)
    assert (rates.models_per_min, rates.outputs_per_min) == pytest.approx((3 / 100, 140 / 100))
    assert rates.seconds == {"fetch": 3.0, "load": 4.0, "decode": None, "probe": 9.0, "store": None}
    last = journal.rates(3600)
    assert (last.span_s, last.models, last.copies, last.outputs, last.size_bytes) == (3600, 2, 1, 40, 12)
    assert (last.models_per_min, last.outputs_per_min) == pytest.approx((2 / 60, 40 / 60))
    assert last.seconds["load"] == 6.0 and last.seconds["fetch"] == 4.0
    assert journal.rates(1e9).span_s == 6000  # not longer than there has been a crawl


def test_failures_by_reason(journal: Journal) -> None:
    fill(journal, *[f"o/{i}" for i in range(6)])
    fill(journal, "o/x", refusal=Refusal("not asked for", "3 downloads"))
    for _ in range(3):
        repo, revision = begin(journal)
        journal.failed(repo, revision, "broken weights", f"of {repo}", passing=False)
    journal.failed(*begin(journal), "network", "reset", passing=True)
    journal.refused(*begin(journal), "gated", "ask for it")
    journal.release(*begin(journal))  # put back, for no fault of its own
    assert journal.failures() == [
        Failure(State.FAILED, "broken weights", 3, "o/0", "of o/0"),
        Failure(State.LISTED, "network", 1, "o/3", "reset"),
        Failure(State.REFUSED, "gated", 1, "o/4", "ask for it"),
        Failure(State.REFUSED, "not asked for", 1, "o/x", "3 downloads"),
    ]
    assert journal.reasons() == ["broken weights", "gated", "network", "not asked for"]
    counts = {state.value: count for state, count in journal.counts().items() if count}
    assert counts == {"failed": 3, "listed": 2, "refused": 2}


def test_the_queue(journal: Journal, clock: Clock) -> None:
    fill(journal, "o/a")
    clock.now += 50
    fill(journal, "o/b", "o/c")
    assert journal.queue() == Queue(due=3, waiting=0, oldest_s=50.0, next_try_s=None)
    next_try = journal.failed(*begin(journal), "network", "reset", passing=True, retry_after_s=100)
    assert next_try is not None
    clock.now += 5
    assert journal.queue() == Queue(2, 1, 5.0, next_try - clock.now)
    begin(journal), begin(journal)
    assert journal.queue() == Queue(0, 1, None, next_try - clock.now)
    clock.now = next_try + 7
    assert journal.queue() == Queue(1, 0, 7.0, None)


def test_history_and_rows(journal: Journal, clock: Clock) -> None:
    fill(journal, "o/a", "o/b")
    clock.now += 1
    it = begin(journal)
    clock.now += 1
    journal.fetched(*it, size_bytes=9, weights="w", seconds=0.5)
    journal.failed(*it, "crashed", "signal 11", passing=False)
    fill(journal, "o/b")
    journal.add_page(journal.begin_pass("file", False), [(Listed("o/a", "2"), None)], None)
    pid = os.getpid()
    found = [(e.at, e.revision, e.state.value, e.reason, e.detail) for e in journal.history("o/a")]
    assert found == [
        (10_000.0, "1", "listed", None, None),
        (10_001.0, "1", "fetching", None, None),
        (10_002.0, "1", "fetched", None, None),
        (10_002.0, "1", "failed", "crashed", "signal 11"),
        (10_002.0, "1", "gone", "replaced", "by 2"),
        (10_002.0, "2", "listed", None, None),
    ]
    assert {event.pid for event in journal.history("o/a")} == {pid}
    old, new = journal.rows("o/a")
    assert (old.state, old.attempts, old.listed_at, old.changed_at) == (State.GONE, 1, 10_000.0, 10_002.0)
    assert (new.revision, new.source, new.attempts, new.in_hand) == ("2", "file", 0, False)


def test_sources(journal: Journal, clock: Clock) -> None:
    p = journal.begin_pass("hub", True)
    journal.add_page(p, [(Listed("o/a", "1", modified="2026-01"), None)], None)
    clock.now += 5
    journal.finish_pass(p)
    clock.now += 5
    q = journal.begin_pass("hub", False)
    journal.add_page(q, [(Listed("o/a", "1", modified="2026-02"), None)] * 2, "next")
    journal.begin_pass("a file", True)
    other, hub = journal.sources()
    assert (other.name, other.watermark, other.last_full, other.unfinished) == ("a file", None, None, "full")
    assert (hub.watermark, hub.last_full, hub.unfinished, hub.entries) == ("2026-01", 10_005.0, "follow", 2)
    assert hub.started_at == 10_010.0
    journal.finish_pass(q)
    assert journal.sources()[1].unfinished is None and journal.sources()[1].entries == 0


def test_retry(journal: Journal, clock: Clock) -> None:
    fill(journal, "o/a", "o/b", "o/c", "o/d")
    fill(journal, "o/x", refusal=Refusal("not asked for", "3 downloads"))
    journal.failed(*begin(journal), "network", "reset", passing=True, retry_after_s=500)
    journal.failed(*begin(journal), "network", "reset", passing=False)
    journal.refused(*begin(journal), "gated", "ask")
    assert journal.retry("nonsense") == journal.retry(repo="o/d") == journal.retry("gated", "o/a") == 0
    assert journal.retry("network") == 2
    assert journal.queue() == Queue(3, 0, 0.0, None)
    assert [journal.rows(repo)[0].attempts for repo in ("o/a", "o/b")] == [0, 0]
    assert journal.retry(repo="o/c") == 1
    assert journal.retry() == 1  # o/x, for now
    assert journal.counts()[State.LISTED] == 5 and journal.failures() == []


def test_prune_forgets_events_and_nothing_else(journal: Journal, clock: Clock) -> None:
    fill(journal, "o/a", "o/b")
    it = begin(journal)
    clock.now += 100
    journal.failed(*it, "crashed", "signal 11", passing=False)
    assert journal.prune(200) == 0
    clock.now += 50
    assert journal.prune(100) == 3
    assert [event.state for event in journal.history("o/a")] == [State.FAILED]
    assert journal.rows("o/a")[0].detail == "signal 11" and len(journal.rows("o/b")) == 1
