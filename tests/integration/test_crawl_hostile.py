"""The daemon and models that do what they should not, among good ones: each is one failed model with a reason."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from engine.schema import ModelState
from engine.writer import IndexWriter
from indexers.crawl import kinds
from indexers.crawl.backoff import Backoff
from indexers.crawl.daemon import CrawlOptions, Daemon
from indexers.crawl.fetching import Fetcher, FetchOptions
from indexers.crawl.filters import Filters
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.keeper import CRASHES
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.listing import open_source
from indexers.crawl.records import State
from indexers.crawl.watch import Watch
from tests.support.crawling import models_of
from tests.support.small_index import make_index
from tests.support.tiny_models import timm_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux"),
]

ACTS = {
    "never": "took too long",
    "allocate": "out of memory",
    "leave": "crashed",
    "crash": "crashed",
    "garbage": "crashed",
}
"""What a model does in its process, and what becomes of it."""


def crawl(index: Path, source: Path, cache: Path, *, preload: str | None = None) -> tuple[Watch, Journal]:
    watch, filters = Watch(), Filters()
    journal = Journal(index / FILE, backoff=Backoff(0.05, longest_s=0.1))
    with IndexWriter(index) as writer:
        daemon = Daemon(
            writer,
            journal,
            kinds.classifiers(writer, journal, watch, keep_gone=False),
            open_source(str(source), filters),
            filters,
            CrawlOptions(fetchers=2),
            FetchOptions(10**9),
            Setup(index, None, cache, 10**9),
            Limits(memory_bytes=10**9, time_s=8, scratch_bytes=10**8),
            watch,
            preload=preload,
        )
        assert daemon.run() == 0
    return watch, journal


def test_none_of_them_stops_the_daemon(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo").folder
    (index / "crawl").mkdir()
    for number, name in enumerate([*ACTS, "fine"]):
        # Of different numbers of classes: else all would be copies of one.
        timm_model(tmp_path / "hub" / ("hostile" if name in ACTS else "org") / name, classes=3 + number)
    before = psutil.Process().children(recursive=True)
    watch, journal = crawl(index, tmp_path / "hub", tmp_path / "cache", preload="tests.support.hostile")
    with journal:
        for name, reason in ACTS.items():
            (row,) = journal.rows(f"hostile/{name}")
            assert (row.state, row.reason) == (State.FAILED, reason), (name, row)
            if reason == "crashed":
                events = [event for event in journal.history(f"hostile/{name}") if event.reason == reason]
                assert len(events) == CRASHES  # once can have been another's fault
        (row,) = journal.rows("org/fine")
        assert row.state is State.STORED
    assert models_of(index)["org/fine"].state is ModelState.INDEXED
    assert watch.now().failed == {"took too long": 1, "out of memory": 1, "crashed": 3}
    assert psutil.Process().children(recursive=True) == before
    assert not list((tmp_path / "cache").glob("scratch*"))


def test_what_nobody_has_foreseen_is_one_failed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours in the fetching or the storing of one model: the others are not its victims."""
    index = make_index(tmp_path / "zoo").folder
    (index / "crawl").mkdir()
    for classes, name in enumerate(("one", "two", "three"), start=3):
        timm_model(tmp_path / "hub" / "org" / name, classes=classes)
    fetch, describe = Fetcher.fetch, IndexWriter.describe

    def strange_fetch(self: Fetcher, claim: object) -> object:
        if getattr(claim, "repo", "") == "org/one":
            raise RecursionError("a config that nests")
        return fetch(self, claim)  # type: ignore[arg-type]

    def strange_describe(self: IndexWriter, repo: str, *rest: object) -> object:
        if repo == "org/two":
            raise ValueError("a shape")
        return describe(self, repo, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Fetcher, "fetch", strange_fetch)
    monkeypatch.setattr(IndexWriter, "describe", strange_describe)
    _, journal = crawl(index, tmp_path / "hub", tmp_path / "cache")
    with journal:
        rows = {name: journal.rows(f"org/{name}")[0] for name in ("one", "two", "three")}
    assert rows["three"].state is State.STORED
    for name, said in (("one", "a config that nests"), ("two", "a shape")):
        assert (rows[name].state, rows[name].reason) == (State.FAILED, "failed while running")
        assert said in (rows[name].detail or "")
        assert "report it" in (rows[name].detail or "")
