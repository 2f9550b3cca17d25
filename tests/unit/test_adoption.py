"""A crawl whose journal is new takes over what its index holds: nothing is fetched, nothing is probed."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Reason
from engine.schema import Model, ModelState
from engine.similarity import sketch
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from indexers.crawl import adoption, kinds
from indexers.crawl.adoption import Adopter
from indexers.crawl.backoff import Backoff
from indexers.crawl.daemon import CrawlOptions, Daemon
from indexers.crawl.desk import Desk
from indexers.crawl.filters import Filters
from indexers.crawl.fleet import staff
from indexers.crawl.fleet.gathering import FleetOptions, fleet
from indexers.crawl.fleet.orders import Seen, Trouble
from indexers.crawl.holdings import Holdings
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.listing import Page
from indexers.crawl.local_crew import Size
from indexers.crawl.porter import FetchOptions
from indexers.crawl.records import Found, Listed, State
from indexers.crawl.standing import Snapshot
from indexers.crawl.watch import Watch
from tests.support.clock import Clock
from tests.support.pretend_cluster import Models, PretendCluster, probed_of, usual
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.small_index import ANIMALS, make_index, put_model

REPOS = tuple(f"org/model-{i:02d}" for i in range(4))
GATED, BROKEN = "org/gated", "org/broken"
COPY = "org/the-copy"
WEIGHTS = {COPY: f"weights of {REPOS[0]}"}
TROUBLES = {
    GATED: Trouble(Reason.GATED, "ask them", refused=True),
    BROKEN: Trouble(Reason.BROKEN_WEIGHTS, "not all there"),
}

NOTHING = {"stored": 0, "copies": 0, "refused": 0, "failed": 0}


Fate = tuple[str, State, str | None, str | None]


@dataclass
class Outcome:
    """What a crawl came to.

    Attributes:
        now: Its counts.
        fates: Of every model: revision, state, reason, original.
        asked: Models that workers were asked to look at, to bring, to probe.
    """

    now: Snapshot
    fates: dict[str, Fate]
    asked: dict[str, list[str]]


@dataclass
class Counting(PretendCluster):
    """Knows what was asked of it; some models are not as they should be."""

    asked: dict[str, list[str]] = field(default_factory=dict)

    def ask(self, hand: Any, what: str, *arguments: Any) -> Any:
        if what in ("look", "bring", "probe"):
            self.asked.setdefault(what, []).append(arguments[0].repo)
        return super().ask(hand, what, *arguments)


def look(node: str, claim: Any) -> object | None:
    if claim.repo in TROUBLES:
        return TROUBLES[claim.repo]
    seen: Any = usual(node, "look", claim)
    return Seen(seen.repository, f"{WEIGHTS.get(claim.repo, seen.identity)}@{claim.revision}")


def hand_over(node: str, claim: Any) -> object:
    return probed_of(claim.repo if claim.revision == "r1" else f"{claim.repo} {claim.revision}")


@dataclass(frozen=True)
class At(Models):
    """A source of models at revisions that are told."""

    revisions: dict[str, str] = field(default_factory=dict)

    def pages(self, cursor: str | None, newest_first: bool) -> Iterator[Page]:
        for start in range(0, len(self.repos), 2):
            rest = self.repos[start + 2 :]
            page = [Listed(repo, self.revisions.get(repo, "r1")) for repo in self.repos[start : start + 2]]
            yield Page(page, str(start + 2) if rest else None)


def crawl(index: Path, home: Path, repos: tuple[str, ...] = REPOS, revisions: dict[str, str] | None = None) -> Outcome:
    """A crawl on a cluster that answers at once; all of it is real but for the workers."""
    (home / FILE).parent.mkdir(parents=True, exist_ok=True)
    watch, cluster = Watch(), Counting({"one": 2})
    cluster.scripts |= {"look": look, "hand_over": hand_over}
    fetching, limits = FetchOptions(10**9), Limits()
    setup = Setup(index, None, home / "cache", 10**9)
    source = At(repos, revisions=revisions or {})
    with IndexWriter(index) as writer, Journal(home / FILE, backoff=Backoff(0.001, longest_s=0.002)) as journal:
        kind = kinds.classifiers(writer, journal, watch, keep_gone=False)
        hire = fleet(cluster, journal, kind, FleetOptions(2), Size(4, 1, 2, 10**9), fetching, setup, limits, watch)
        daemon = Daemon(
            writer, journal, kind, source, Filters(), CrawlOptions(), fetching, setup, limits, watch, hire=hire
        )
        timer = threading.Timer(60.0, daemon.stop)  # a crawl that does not end fails, and does not hang
        timer.start()
        assert daemon.run() == 0
        assert timer.is_alive()
        timer.cancel()
        timer.join()
        live = [(repo, row) for repo in repos for row in journal.rows(repo) if row.state is not State.GONE]
        fates = {repo: (row.revision, row.state, row.reason, row.copy_of) for repo, row in live}
        return Outcome(watch.now(), fates, {what: sorted(some) for what, some in cluster.asked.items()})


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(staff, "LONGEST_S", 0.02)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("qdrant")) as made:
        yield made


@pytest.fixture
def index(tmp_path: Path) -> Path:
    make_index(tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def on_server(index: Path, addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBHOUND_DATA", str(index.parent / "data"))
    return to_server(index, addresses())


def records(index: Path) -> dict[str, Model]:
    with IndexWriter(index) as writer:
        return {model.repo: model for model in writer.store.models()}


@pytest.mark.parametrize("place", ["index", "on_server"])
def test_a_lost_journal_costs_no_download_and_no_probing(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    index: Path = request.getfixturevalue(place)
    repos = (*REPOS, COPY, GATED, BROKEN)
    first = crawl(index, tmp_path / "home", repos)
    assert len(first.asked["probe"]) == len(REPOS)
    assert dict(first.now.found) == NOTHING
    before = records(index)

    shutil.rmtree(tmp_path / "home")
    again = crawl(index, tmp_path / "home", repos)
    assert again.asked == {}
    assert again.fates == first.fates
    assert [fate[1] for fate in again.fates.values()].count(State.STORED) == len(REPOS) + 1
    assert sum(copy is not None for *_, copy in again.fates.values()) == 1
    assert dict(again.now.found) == {"stored": len(REPOS), "copies": 1, "refused": 1, "failed": 1}
    assert (again.now.stored, again.now.copies, again.now.outputs, again.now.bytes_fetched) == (0, 0, 0, 0)
    assert again.now.settled == len(repos)
    assert records(index) == before  # what it says of them has not changed

    # The journal has them for good: the next run does not even ask.
    third = crawl(index, tmp_path / "home", repos)
    assert (third.asked, dict(third.now.found), third.fates) == ({}, NOTHING, first.fates)


def test_only_what_the_index_holds_at_this_revision_is_taken_over(index: Path, tmp_path: Path) -> None:
    moved, removed, new = REPOS[1], REPOS[2], "org/new"
    crawl(index, tmp_path / "home")
    with IndexWriter(index) as writer:
        writer.remove_model(removed)
    again = crawl(index, tmp_path / "other", (*REPOS, new), {moved: "r2"})
    assert again.asked["probe"] == sorted([moved, removed, new])
    assert dict(again.now.found) == NOTHING | {"stored": len(REPOS) - 2}
    assert {repo: fate[:2] for repo, fate in again.fates.items()} == {
        repo: ("r2" if repo == moved else "r1", State.STORED) for repo in (*REPOS, new)
    }
    assert {repo: model.revision for repo, model in records(index).items()} == {
        repo: fate[0] for repo, fate in again.fates.items()
    }


def test_a_model_that_was_added_by_hand_is_not_probed_again(index: Path, tmp_path: Path) -> None:
    with IndexWriter(index) as writer:
        put_model(writer, REPOS[0], ANIMALS)
    outcome = crawl(index, tmp_path / "home")
    assert outcome.asked["look"] == sorted(REPOS[1:])
    assert outcome.now.found["stored"] == 1


def test_what_failed_for_a_reason_that_passes_is_tried(index: Path, tmp_path: Path) -> None:
    with IndexWriter(index) as writer:
        for repo, reason in ((REPOS[0], "network"), (REPOS[1], "wrong checksum")):
            writer.record(Model(repo=repo, revision="r1", state=ModelState.FAILED, reason=reason, detail="no answer"))
    outcome = crawl(index, tmp_path / "home")
    assert outcome.asked["probe"] == sorted(REPOS)
    assert set(outcome.fates.values()) == {("r1", State.STORED, None, None)}


@pytest.mark.parametrize("copy_first", [True, False])
def test_a_copy_whose_original_moved_on_is_probed_itself(index: Path, tmp_path: Path, copy_first: bool) -> None:
    first = crawl(index, tmp_path / "home", (*REPOS, COPY))
    (copy,) = (repo for repo, fate in first.fates.items() if fate[3] is not None)
    original = str(first.fates[copy][3])
    ends = (copy, original) if copy_first else (original, copy)
    again = crawl(index, tmp_path / "other", (ends[0], *REPOS[2:], ends[1]), {original: "r2"})
    assert again.asked["probe"] == sorted([copy, original])
    held = records(index)
    assert (held[copy].state, held[original].revision) == (ModelState.INDEXED, "r2")
    assert {again.fates[repo] for repo in ends} == {("r1", State.STORED, None, None), ("r2", State.STORED, None, None)}


def test_a_copy_whose_original_is_of_another_part_is_tried_when_that_has_gone(on_server: Path, tmp_path: Path) -> None:
    index = on_server
    first = crawl(index, tmp_path / "home", (*REPOS, COPY))
    (copy,) = (repo for repo, fate in first.fates.items() if fate[3] is not None)
    original = str(first.fates[copy][3])
    part = crawl(index, tmp_path / "part", (copy, REPOS[3]))
    assert part.asked == {}
    assert part.fates[copy][3] == original
    with IndexWriter(index) as writer:  # what the crawl of the other part does
        writer.remove_model(original)
    part = crawl(index, tmp_path / "part", (copy, REPOS[3]))
    assert part.asked["probe"] == [copy]
    assert part.fates[copy] == ("r1", State.STORED, None, None)
    assert records(index)[copy].state is ModelState.INDEXED


def test_outputs_that_are_not_all_there_are_made_again(on_server: Path, tmp_path: Path) -> None:
    """A writer on another machine may have been killed lately: its record is there, and what else?"""
    index = on_server
    crawl(index, tmp_path / "home", REPOS[:2])
    with IndexWriter(index) as writer:
        writer.store.delete_outputs(REPOS[0])
    again = crawl(index, tmp_path / "other", REPOS[:2])
    assert again.asked["probe"] == [REPOS[0]]
    with IndexWriter(index) as writer:
        table = writer.store.outputs(REPOS[0], "r1")
        assert table is not None and len(table) == records(index)[REPOS[0]].outputs


def test_old_records_of_a_server_are_asked_for_many_at_once(
    on_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = on_server
    crawl(index, tmp_path / "home")
    monkeypatch.setattr(adoption, "LATELY", timedelta(0))
    asked: list[int] = []
    real = ServerStore.records_of

    def records_of(store: ServerStore, repos: Sequence[str]) -> dict[str, Model]:
        asked.append(len(repos))
        return real(store, repos)

    monkeypatch.setattr(ServerStore, "records_of", records_of)
    for name in ("model", "change_model", "count_revision"):
        monkeypatch.setattr(ServerStore, name, None)
    again = crawl(index, tmp_path / "other")
    assert again.asked == {}
    assert sum(asked) == len(REPOS)
    assert len(asked) <= 3  # a page of the listing has two


def test_copies_of_what_was_found_are_found(index: Path, tmp_path: Path) -> None:
    with IndexWriter(index) as writer, Journal(tmp_path / "journal.sqlite") as journal:
        for seed, repo in enumerate(REPOS):
            put_model(writer, repo, ANIMALS, seed=seed)
        broken = REPOS[2]
        writer.store.delete_outputs(broken)
        journal.add_page(journal.begin_pass("hub", True), [(Listed(repo, "r1"), None) for repo in REPOS], None)
        now = Clock(5.0)
        adopter = Adopter(Desk(journal, None), journal, Holdings(writer), Watch(), clock=now)
        while adopter.run():
            pass
        drawn = {repo: sketch(table) for repo in REPOS if (table := writer.store.outputs(repo, "r1")) is not None}
        assert journal.similar(len(ANIMALS), drawn[REPOS[0]], 1e-6) == []
        for _ in range(10):
            adopter.sketch()
        for repo, numbers in drawn.items():
            assert journal.similar(len(ANIMALS), numbers, 1e-6) == [(repo, "r1")]
        assert set(drawn) == set(REPOS) - {broken}
        assert journal.unsketched(0) is None
        claim = journal.claim(frozenset())  # its outputs were lost: it is probed again
        assert claim is not None
        assert (claim.repo, claim.revision) == (broken, "r1")
        assert journal.claim(frozenset()) is None


def test_a_journal_of_before_is_read_and_gets_its_index(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        page = [(Listed(repo, "r1"), None) for repo in REPOS]
        journal.add_page(journal.begin_pass("hub", True), page, None)
        journal.adopt([Found(repo, "r1", State.STORED, 3) for repo in REPOS[:2]])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP INDEX found_in_index")
    with Journal(path, read_only=True) as journal:
        assert journal.adopted() == 2
    with Journal(path) as journal:
        steps = journal._database.read("SELECT 1 FROM sqlite_master WHERE name = 'found_in_index'")
        assert (journal.adopted(), len(steps)) == (2, 1)


def test_one_batch_comes_after_the_other_without_a_pause(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million models a thousand at a time: waiting between two would take hours."""
    monkeypatch.setattr(adoption, "BATCH", 2)
    monkeypatch.setattr(adoption, "LATELY", timedelta(0))
    repos = tuple(f"org/{i}" for i in range(5))
    with IndexWriter(index) as writer, Journal(tmp_path / "journal.sqlite") as journal:
        for repo in repos:
            put_model(writer, repo, ANIMALS)
        page = [(Listed(repo, "r1", modified=f"2026-01-0{i}"), None) for i, repo in enumerate((*repos, "org/new"))]
        journal.add_page(journal.begin_pass("hub", True), page, None)
        desk, watch = Desk(journal, None), Watch()
        adopter = Adopter(desk, journal, Holdings(writer), watch, clock=lambda: 5.0)
        assert desk.claim() is None  # before anything was looked at
        assert [adopter.run() for _ in range(5)] == [True, True, True, False, False]
        assert watch.now().found["stored"] == 5
        claim = desk.claim()
        assert claim is not None and claim.repo == "org/new"
        assert desk.claim() is None
