"""The journal: listings, work, duplicates, and files that are no journal. Random sequences: test_journal_rules."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import InputError
from indexers.crawl.backoff import Backoff
from indexers.crawl.journal import Journal
from indexers.crawl.journal_passes import PageResult
from indexers.crawl.records import Listed, Refusal, State
from indexers.loaders.base import Metadata
from tests.support.clock import Clock

ROOT = Path(__file__).resolve().parents[2]
NO = Refusal("not asked for", "it has 3 downloads")


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    with Journal(tmp_path / "crawl" / "journal.sqlite", clock=clock, backoff=Backoff(attempts=2)) as made:
        yield made


def listed(repo: str, revision: str = "1", modified: str | None = None) -> tuple[Listed, None]:
    return Listed(repo, revision, modified=modified), None


def fill(journal: Journal, *repos: str) -> None:
    p = journal.begin_pass("hub", False)
    journal.add_page(p, [listed(repo) for repo in repos], None)
    journal.finish_pass(p)


def store(journal: Journal, weights: str | None = None, copy_of: str | None = None, outputs: int = 5) -> str:
    """Takes what is due through to the end."""
    claim = journal.claim()
    assert claim is not None
    it = claim.repo, claim.revision
    assert journal.fetched(*it, size_bytes=10, weights=weights, seconds=0.5)
    if copy_of is None:
        assert journal.probing(*it)
    journal.stored(*it, outputs=outputs, copy_of=copy_of, sketch=(1.0, 2.0) if copy_of is None else None)
    return claim.repo


def state(journal: Journal, repo: str) -> list[tuple[str, str, str | None]]:
    return [(row.revision, row.state.value, row.reason) for row in journal.rows(repo)]


# -- listing ----------------------------------------------------------------------------------------------------------


def test_a_pass_goes_on_where_it_was(journal: Journal, clock: Clock) -> None:
    p = journal.begin_pass("hub", True)
    assert (p.cursor, p.entries, p.newest, p.resumed, p.ended) == (None, 0, None, False, False)
    journal.add_page(p, [listed("o/a", modified="2026-02"), listed("o/b", modified="2026-03")], "page 2")
    journal.add_page(p, [listed("o/c", modified="2026-09")], "page 3")
    again = journal.begin_pass("hub", True)
    # The newest is the first page's: whatever changes behind the pass's back is newer than that, and listed later.
    assert (again.number, again.cursor, again.entries, again.newest) == (p.number, "page 3", 3, "2026-03")
    assert again.resumed and not again.ended
    other = journal.begin_pass("hub", False)
    assert other.number != p.number and not other.resumed
    assert journal.begin_pass("file", True).number not in (p.number, other.number)
    journal.set_cursor(p, "page 4")
    assert journal.begin_pass("hub", True).cursor == "page 4"
    fresh = journal.restart_pass(p)
    assert (fresh.number, fresh.cursor, fresh.entries, fresh.newest) == (p.number, None, 0, "2026-03")
    assert journal.begin_pass("hub", True).cursor is None
    journal.add_page(p, [], None)
    assert journal.begin_pass("hub", True).ended
    assert journal.watermark("hub") is None and journal.last_full("hub") is None
    clock.now = 2000.0
    journal.finish_pass(p)
    assert (journal.watermark("hub"), journal.last_full("hub")) == ("2026-03", 2000.0)
    with pytest.raises(ValueError, match="finished"):
        journal.finish_pass(p)
    assert journal.begin_pass("hub", True).number != p.number


def test_the_watermark_is_never_lowered(journal: Journal) -> None:
    for modified, mark in (("2026-03", "2026-03"), ("2026-01", "2026-03"), (None, "2026-03"), ("2026-04", "2026-04")):
        p = journal.begin_pass("hub", False)
        journal.add_page(p, [listed("o/a", modified=modified)], None)
        journal.finish_pass(p)
        assert journal.watermark("hub") == mark
    assert journal.watermark("file") is None and journal.last_full("hub") is None


def test_every_entry_counts_once(journal: Journal) -> None:
    p = journal.begin_pass("hub", True)
    page = [listed("o/a"), listed("o/a"), (Listed("o/b", "1"), NO)]
    assert journal.add_page(p, page, "2") == PageResult(new=1, known=1, refused=1)
    assert journal.add_page(p, [listed("o/a", "2"), listed("o/b")], None) == PageResult(changed=2)
    assert state(journal, "o/a") == [("1", "gone", "replaced"), ("2", "listed", None)]


def test_a_page_is_taken_in_whole_or_not_at_all(journal: Journal) -> None:
    p = journal.begin_pass("hub", True)
    with pytest.raises(InputError, match="cannot be the name"):
        journal.add_page(p, [listed("o/a"), listed("o/\udcff")], "page 2")
    assert journal.counts()[State.LISTED] == 0
    assert journal.begin_pass("hub", True).cursor is None


def test_what_a_listing_says_is_kept_and_cut(journal: Journal) -> None:
    said = Metadata("mit\ud800", ("timm", "\ud800", *["x" * 100] * 100), 2**80, -1, "timm")
    full = Listed("o/a", "1", Path("/models/o/a"), "2026-01", 10**30, 5, True, said)
    p = journal.begin_pass("hub", True)
    journal.add_page(p, [(full, None)], "2")
    journal.add_page(p, [(Listed("o/a", "1", metadata=Metadata(likes=4)), None)], "3")
    claim = journal.claim()
    assert claim is not None and claim.folder == Path("/models/o/a")
    got = claim.listed
    assert (got.modified, got.size_bytes, got.parameters, got.gated) == ("2026-01", 2**63 - 1, 5, False)
    assert (got.metadata.licence, got.metadata.downloads, got.metadata.likes) == ("mit?", 2**63 - 1, 4)
    assert got.metadata.tags[:3] == ("timm", "\ud800", "x" * 100) and len(got.metadata.tags) < 25


def test_the_filter_as_it_is_now_holds(journal: Journal) -> None:
    p = journal.begin_pass("hub", True)
    refused_after_fetch = Listed("o/c", "1", modified="2026-05")
    journal.add_page(p, [(Listed("o/a", "1"), NO), listed("o/b"), (refused_after_fetch, None)], "2")
    journal.claim()
    journal.refused("o/c", "1", "too large", "its weights are 5 GB")
    journal.add_page(p, [listed("o/a"), (Listed("o/b", "1"), NO), (refused_after_fetch, None)], "3")
    assert state(journal, "o/a") == [("1", "listed", None)]
    assert state(journal, "o/b") == [("1", "refused", "not asked for")]
    assert state(journal, "o/c") == [("1", "refused", "too large")]  # no filter said so: listing it changes nothing


def test_a_new_revision_replaces_when_it_is_stored(journal: Journal) -> None:
    fill(journal, "o/a")
    store(journal)
    p = journal.begin_pass("hub", False)
    assert journal.add_page(p, [listed("o/a", "2")], "x") == PageResult(changed=1)
    assert [row[1] for row in state(journal, "o/a")] == ["stored", "listed"]
    assert journal.add_page(p, [listed("o/a", "1")], "x") == PageResult(known=1)  # changed back
    assert [row[1] for row in state(journal, "o/a")] == ["stored", "gone"]
    journal.add_page(p, [listed("o/a", "2")], "x")
    store(journal)
    assert state(journal, "o/a") == [("1", "gone", "replaced"), ("2", "stored", None)]


def test_unseen_is_what_a_full_pass_missed(journal: Journal) -> None:
    fill(journal, *[f"o/{i:04}" for i in range(1200)])
    p = journal.begin_pass("hub", True)
    journal.add_page(p, [listed(f"o/{i:04}") for i in range(0, 1200, 2)], "2")
    journal.gone("o/0001", "not found", "404")
    journal.add_page(p, [listed("o/0003", "2")], None)  # there, at another revision
    other = journal.begin_pass("file", True)
    journal.add_page(other, [listed("elsewhere/a")], None)
    found = []
    for repo, revision in journal.unseen(p):
        found.append(repo)
        assert revision == "1"
        journal.gone(repo, "not found", "404")  # as a crawl does while it goes through them
    assert found == [f"o/{i:04}" for i in range(5, 1200, 2)]
    assert list(journal.unseen(p)) == []


# -- work -------------------------------------------------------------------------------------------------------------


def test_order_of_claims(journal: Journal, clock: Clock) -> None:
    p = journal.begin_pass("hub", True)
    entries = [("o/old", "2026-01"), ("o/none", None), ("o/new", "2026-03"), ("o/same", "2026-03")]
    journal.add_page(p, [listed(repo, modified=modified) for repo, modified in entries], None)
    first = journal.claim()
    assert first is not None and (first.repo, first.attempts) == ("o/new", 1)
    next_try = journal.failed("o/new", "1", "network", "reset", passing=True, retry_after_s=100)
    assert next_try is not None and next_try >= clock.now + 100
    second = journal.claim()
    assert second is not None and second.repo == "o/same"
    clock.now = next_try - 0.01
    third = journal.claim()
    assert third is not None and third.repo == "o/old"
    clock.now = next_try
    again = journal.claim()  # due, and before what was never tried
    assert again is not None and (again.repo, again.attempts) == ("o/new", 2)
    last = journal.claim()
    assert last is not None and last.repo == "o/none"
    assert journal.claim() is None
    assert journal.failed("o/new", "1", "network", "reset", passing=True) is None  # of two attempts
    assert state(journal, "o/new") == [("1", "failed", "network")]


@pytest.mark.parametrize("passing", [True, False])
def test_two_revisions_of_a_repository_are_never_in_hand_together(journal: Journal, passing: bool) -> None:
    fill(journal, "o/a")
    journal.claim()
    p = journal.begin_pass("hub", False)
    journal.add_page(p, [listed("o/a", "2")], None)
    assert journal.claim() is None
    assert journal.failed("o/a", "1", "network", "reset", passing=passing) is None
    assert state(journal, "o/a")[0] == ("1", "gone", "replaced")
    claim = journal.claim()
    assert claim is not None and claim.revision == "2"


def test_many_threads_claim_each_revision_once(journal: Journal) -> None:
    fill(journal, *[f"o/{i}" for i in range(200)])
    claimed: list[str] = []

    def work() -> None:
        while (claim := journal.claim()) is not None:
            claimed.append(claim.repo)
            journal.fetched(claim.repo, claim.revision, size_bytes=1, weights=None, seconds=0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"o/{i}" for i in range(200))
    assert journal.counts()[State.FETCHED] == 200


def test_a_failed_reading_is_no_result(journal: Journal) -> None:
    fill(journal, "o/a")
    journal.claim()
    for size_bytes, seconds in ((-1, 0.0), (1, math.nan), (1, -1.0), (1, math.inf)):
        with pytest.raises(ValueError):
            journal.fetched("o/a", "1", size_bytes=size_bytes, weights=None, seconds=seconds)
    journal.fetched("o/a", "1", size_bytes=1, weights=None, seconds=0)
    with pytest.raises(ValueError):
        journal.stored("o/a", "1", outputs=0)
    with pytest.raises(ValueError):
        journal.stored("o/a", "1", outputs=2, sketch=(math.nan, 1.0))
    with pytest.raises(ValueError, match="stages"):
        journal.stored("o/a", "1", outputs=2, seconds={"lunch": 1.0})
    with pytest.raises(ValueError, match="itself"):
        journal.stored("o/a", "1", outputs=2, copy_of="o/a")
    assert state(journal, "o/a") == [("1", "fetched", None)]
    assert journal.rows("o/a")[0].outputs is None
    with pytest.raises(ValueError, match="fetched and cannot become fetched"):
        journal.fetched("o/a", "1", size_bytes=1, weights=None, seconds=0)
    with pytest.raises(ValueError, match="never listed"):
        journal.probing("o/x", "1")
    journal.failed("o/a", "1", "crashed", "it\nwas " + "x" * 1000, passing=False)
    row = journal.rows("o/a")[0]
    assert (row.outputs, row.size_bytes, dict(row.seconds)) == (None, None, {})
    assert row.detail is not None and row.detail.startswith("it was x") and len(row.detail) == 500


def test_gone_while_in_hand(journal: Journal) -> None:
    fill(journal, "o/a", "o/b")
    journal.claim(), journal.claim()
    for repo in ("o/a", "o/b"):
        assert journal.gone(repo, "not found", "404") == []
        assert not journal.fetched(repo, "1", size_bytes=1, weights=None, seconds=0)
    assert journal.failed("o/a", "1", "not found", "404", passing=True) is None
    assert state(journal, "o/a") == [("1", "gone", "not found")]
    journal.stored("o/b", "1", outputs=3)  # it is in the index, whatever was found meanwhile
    assert state(journal, "o/b") == [("1", "stored", None)]
    with pytest.raises(ValueError, match="not in hand"):
        journal.stored("o/a", "1", outputs=3)
    assert journal.under_way() == []


def test_recover(journal: Journal) -> None:
    fill(journal, "o/copy", "o/held", "o/lost", "o/waits", "o/killer", "o/gone")
    for _ in range(5):
        journal.claim()
    journal.fetched("o/waits", "1", size_bytes=1, weights=None, seconds=0)
    index = {("o/held", "1"): (4, None), ("o/copy", "1"): (4, "o/held")}
    assert journal.recover(lambda repo, revision: index.get((repo, revision))) == (2, 3)
    assert [row[1] for repo in ("o/held", "o/copy") for row in state(journal, repo)] == ["stored", "stored"]
    assert journal.copies_of("o/held") == ["o/copy"]
    attempts = {repo: journal.rows(repo)[0].attempts for repo in ("o/lost", "o/waits", "o/killer")}
    assert attempts == {"o/lost": 1, "o/waits": 0, "o/killer": 1}
    assert journal.under_way() == []
    for _ in range(3):
        journal.claim()
    journal.release("o/lost", "1")
    assert journal.rows("o/lost")[0].attempts == 1  # of the two that were begun
    journal.fetched("o/waits", "1", size_bytes=1, weights=None, seconds=0)
    journal.fetched("o/killer", "1", size_bytes=1, weights=None, seconds=0)
    journal.probing("o/killer", "1")
    assert [name for name, _, _ in journal.under_way()] == ["o/waits", "o/killer"]
    assert journal.recover(lambda repo, revision: None) == (0, 2)
    assert state(journal, "o/killer") == [("1", "failed", "crashed")]
    assert state(journal, "o/waits") == [("1", "listed", None)]


def test_every_statement_of_the_work_uses_an_index(journal: Journal) -> None:
    """SQLite chooses without knowing how many rows there are; a bad choice makes a claim take seconds."""
    fill(journal, *[f"o/{i}" for i in range(9)])
    statements: list[str] = []
    connection = journal._database._connection
    connection.set_trace_callback(statements.append)
    for i in range(3):
        store(journal, "w" * (1 + i // 2))
    journal.with_weights("w"), journal.similar(5, (1.0, 2.0), 1e-3), journal.copies_of("o/0"), journal.queue()
    journal.claim(), journal.claim(), journal.claim()
    (a, _, _), (b, _, _), (c, _, _) = journal.under_way()
    journal.release(a, "1"), journal.refused(b, "1", "gated", "x"), journal.failed(c, "1", "n", "x", passing=True)
    journal.gone("o/0", "x", "x"), journal.recover(lambda repo, revision: None), journal.retry(repo="o/1")
    journal.rates(60), journal.history("o/1"), journal.rows("o/1")
    journal.add_page(journal.begin_pass("hub", True), [listed("o/1", "2"), listed("o/77")], "x")
    connection.set_trace_callback(None)
    checked = 0
    for statement in statements:
        if statement.startswith(("SELECT", "UPDATE revisions", "INSERT INTO revisions")):
            for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
                bad = "SCAN" in step and "revisions" in step and "INDEX in_hand" not in step and "INDEX due" not in step
                assert not bad and "by_state" not in step, (statement, step)
                checked += 1
    assert checked > 60


# -- duplicates -------------------------------------------------------------------------------------------------------


def test_duplicates(journal: Journal) -> None:
    fill(journal, "o/a", "o/b", "o/c", "o/d")
    assert [store(journal, "w"), store(journal, "w", copy_of="o/a"), store(journal, "v")] == ["o/a", "o/b", "o/c"]
    assert journal.with_weights("w") == ("o/a", "1") and journal.with_weights("u") is None
    both = [("o/a", "1"), ("o/c", "1")]
    assert journal.similar(5, (1.0, 2.0), 0.0) == both  # o/b is no original
    assert journal.similar(6, (1.0, 2.0), 1.0) == []
    # The tolerance is of max(1, |number|): 0.01 around 1, 0.02 around 2.
    assert journal.similar(5, (1.009, 2.019), 0.01) == both
    assert journal.similar(5, (1.011, 2.0), 0.01) == journal.similar(5, (1.0, 2.03), 0.01) == []
    assert journal.copies_of("o/a") == ["o/b"]
    assert journal.gone("o/a", "not found", "404") == ["o/b"]
    assert state(journal, "o/b") == [("1", "listed", None)]
    assert journal.copies_of("o/a") == [] and journal.with_weights("w") is None
    assert store(journal, "w") == "o/b" and journal.with_weights("w") == ("o/b", "1")


@pytest.mark.parametrize(("weights", "again"), [("w", []), ("other", ["o/b"])])
def test_copies_of_a_revision_that_was_replaced(journal: Journal, weights: str, again: list[str]) -> None:
    fill(journal, "o/a", "o/b")
    store(journal, "w"), store(journal, "w", copy_of="o/a")
    journal.add_page(journal.begin_pass("hub", False), [listed("o/a", "2")], None)
    journal.claim()
    journal.fetched("o/a", "2", size_bytes=1, weights=weights, seconds=0)
    assert journal.stored("o/a", "2", outputs=5) == again
    assert journal.copies_of("o/a") == [repo for repo in ["o/b"] if repo not in again]


def test_a_copy_whose_original_went_meanwhile_is_listed_again(journal: Journal) -> None:
    fill(journal, "o/a", "o/b")
    store(journal, "w")
    journal.claim()
    journal.gone("o/a", "not found", "404")
    assert journal.stored("o/b", "1", outputs=5, copy_of="o/a") == ["o/b"]
    assert state(journal, "o/b") == [("1", "listed", None)]
