"""The driver of a fleet: real journal, index and daemon; the cluster is pretended, so that its workers can be lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.errors import HubhoundError, Reason
from engine.schema import ModelState
from engine.writer import IndexWriter
from indexers.crawl import kinds
from indexers.crawl.backoff import Backoff
from indexers.crawl.daemon import CrawlOptions, Daemon
from indexers.crawl.filters import Filters
from indexers.crawl.fleet import staff
from indexers.crawl.fleet.errands import ANSWERS
from indexers.crawl.fleet.gathering import FleetOptions, fleet
from indexers.crawl.fleet.orders import Answered, Present, Seen, Trouble, Unfit
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.local_crew import Size
from indexers.crawl.porter import FetchOptions
from indexers.crawl.records import State
from indexers.crawl.watch import Watch
from tests.support.crawling import history, models_of
from tests.support.pretend_cluster import Models, PretendCluster, repository_of, usual
from tests.support.small_index import make_index

REPOS = tuple(f"org/model-{i:02d}" for i in range(9))


@dataclass
class Run:
    """A crawl on a pretended cluster."""

    daemon: Daemon
    journal: Journal
    watch: Watch
    index: Path

    def to_the_end(self, each: Callable[[], None] = lambda: None) -> int:
        timer = threading.Timer(30.0, self.daemon.stop)  # a crawl that does not end fails, and does not hang
        timer.start()
        code = self.daemon.run(lambda _: each())
        assert timer.is_alive()
        timer.cancel()
        timer.join()
        return code

    def state(self, repo: str) -> State:
        (row,) = self.journal.rows(repo)
        return row.state


@contextmanager
def crawl(
    folder: Path, cluster: PretendCluster, *, workers: int | None = None, limit: int | None = None, prefetch: int = 2
) -> Iterator[Run]:
    index = folder / "zoo"
    if not index.exists():
        make_index(index)
        (index / "crawl").mkdir()
    watch, filters = Watch(), Filters()
    fetching, limits = FetchOptions(10**9), Limits()
    setup = Setup(index, None, folder / "cache", 10**9)
    with IndexWriter(index) as writer, Journal(index / FILE, backoff=Backoff(0.001, longest_s=0.002)) as journal:
        kind = kinds.classifiers(writer, journal, watch, keep_gone=False)
        size = Size(4, 1, prefetch, 10**9)
        hire = fleet(cluster, journal, kind, FleetOptions(workers), size, fetching, setup, limits, watch)
        options = CrawlOptions(limit=limit)
        made = Daemon(writer, journal, kind, Models(REPOS), filters, options, fetching, setup, limits, watch, hire=hire)
        yield Run(made, journal, watch, index)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(staff, "LONGEST_S", 0.02)


def test_all_models_are_stored_and_nodes_get_the_images_once(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 2, "two": 1})
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
    assert {repo for repo, model in models_of(run.index).items() if model.state is ModelState.INDEXED} == set(REPOS)
    assert sorted(repo for repo, _ in cluster.probed) == sorted(REPOS)
    assert {node for _, node in cluster.probed} == {"one", "two"}
    assert cluster.supplied == {"one": cluster.shared, "two": cluster.shared}
    assert cluster.closed
    assert run.watch.now().stored == len(REPOS)
    assert run.watch.now().stages["probe"].count == len(REPOS)
    assert run.watch.now().in_hand == ()


def test_what_a_lost_worker_had_in_hand_is_tried_again_elsewhere(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1, "two": 1})
    begun: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()

    def probe(node: str, claim: Any, job: object) -> object | None:
        if (claim.repo, node) not in seen:
            seen.add((claim.repo, node))
            begun.append((claim.repo, node))
        return None if node == "one" else usual(node, "probe", claim, job)

    brought: set[str] = set()

    def bring(node: str, claim: Any) -> object:
        if node == "one":
            brought.add(claim.repo)
        return usual(node, "bring", claim)

    cluster.scripts |= {"probe": probe, "bring": bring}

    def lose() -> None:
        if "one" in cluster.room and len(brought) == 3 and len(cluster.probed) >= 3:
            cluster.lose("one")

    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end(lose) == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
        (victim,) = [repo for repo, node in begun if node == "one"]
        events = [(event.state, event.reason) for event in run.journal.history(victim)]
        assert (State.LISTED, Reason.CRASHED.value) in events
        # What it had fetched, and not begun to probe, does not count as tried.
        put_back = [repo for repo in REPOS for e in run.journal.history(repo) if e.detail == "put back unfinished"]
        assert {*put_back, victim} == brought
        assert all(run.journal.rows(repo)[0].attempts == 1 for repo in put_back)
    assert Counter(repo for repo, _ in begun) == Counter(REPOS) + Counter([victim])
    assert history(run.index).probings == len(REPOS) + 1
    assert history(run.index).probed_again == ()


def test_a_model_shuns_the_node_where_its_worker_was_lost(tmp_path: Path) -> None:
    """The process of a worker is lost, not its node: another worker comes there, and does not get that model again."""
    cluster = PretendCluster({"one": 1, "two": 1})
    cluster.scripts["look"] = lambda node, claim: None if waits(node) else usual(node, "look", claim)
    victims: list[str] = []
    killed: list[str] = []

    def waits(node: str) -> bool:
        # The other node has its hands full until the new worker of this one has probed what it could get.
        return node == "two" and len(cluster.probed) < 3

    def probe(node: str, claim: Any, job: object) -> object | None:
        if node == "one" and not victims:
            victims.append(claim.repo)
        return None if node == "one" and not killed else usual(node, "probe", claim, job)

    cluster.scripts["probe"] = probe

    def kill() -> None:
        if victims and not killed and "two" in cluster.where.values():
            killed.append("one")
            cluster.kill("one")

    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end(kill) == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
    assert [there for repo, there in cluster.probed if repo == victims[0]] == ["two"]
    assert [there for _, there in cluster.probed[:3]] == ["one"] * 3


def test_a_model_that_ends_every_worker_fails(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1, "two": 1})
    bad = REPOS[3]
    times: list[str] = []

    def probe(node: str, claim: Any, job: object) -> object | None:
        if claim.repo == bad:
            times.append(node)
            return Unfit("the disk is full")
        return usual(node, "probe", claim, job)

    cluster.scripts["probe"] = probe
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        (row,) = run.journal.rows(bad)
        assert (row.state, row.reason) == (State.FAILED, Reason.CRASHED.value)
        assert "the disk is full" in (row.detail or "")
        assert all(run.state(repo) is State.STORED for repo in REPOS if repo != bad)


def test_nodes_that_come_later_are_used(tmp_path: Path) -> None:
    cluster = PretendCluster({})

    def come() -> None:
        if not cluster.room and run.journal.queue().due == len(REPOS):
            cluster.room["one"] = 1
        if len(cluster.probed) >= 3:
            cluster.room["two"] = 1

    def probe(node: str, claim: Any, job: object) -> object | None:
        # The first waits for the second, so that its coming does not depend on who is quicker.
        late = node == "one" and len(cluster.probed) >= 4 and not any(there == "two" for _, there in cluster.probed)
        return None if late else usual(node, "probe", claim, job)

    cluster.scripts["probe"] = probe
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end(come) == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
    assert {node for _, node in cluster.probed} == {"one", "two"}


def test_answers_wait_with_their_workers_while_there_is_no_room_for_them(tmp_path: Path) -> None:
    """One answer fills what may be on the way: there is never a second, and a worker that keeps two probes no third."""
    cluster = PretendCluster({"one": 1, "two": 1}, answers_bytes=1)
    way: list[str] = []
    held: Counter[str] = Counter()

    def probe(node: str, claim: Any, job: object) -> Answered:
        held[node] += 1
        assert held[node] <= ANSWERS
        reply = usual(node, "probe", claim, job)
        assert isinstance(reply, Answered)
        return reply

    def take(self: PretendCluster, answer: Any) -> object:
        ticket = self._open[answer]
        if ticket.what == "hand_over":
            held[self.where[ticket.hand]] -= 1
            way.remove(ticket.arguments[0].repo)
        return real_take(self, answer)

    def ask(self: PretendCluster, hand: Any, what: str, *arguments: Any) -> Any:
        if what == "hand_over":
            way.append(arguments[0].repo)
            assert len(way) == 1
        return real_ask(self, hand, what, *arguments)

    real_take, real_ask = PretendCluster.take, PretendCluster.ask
    cluster.take = take.__get__(cluster)  # type: ignore[method-assign]
    cluster.ask = ask.__get__(cluster)  # type: ignore[method-assign]
    counted: dict[str, Answered] = {}

    def once(node: str, claim: Any, job: object) -> Answered:
        if claim.repo not in counted:
            counted[claim.repo] = probe(node, claim, job)
        return counted[claim.repo]

    cluster.scripts["probe"] = once
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)


def test_models_with_the_same_weights_are_probed_once(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1, "two": 1})
    same = set(REPOS[:5])

    def look(node: str, claim: Any) -> Seen:
        return Seen(repository_of(claim), "the same" if claim.repo in same else claim.repo)

    left: set[str] = set()
    cluster.scripts |= {"look": look, "leave": lambda node, claim: left.add(claim.repo) or 0}
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        rows = [run.journal.rows(repo)[0] for repo in same]
    assert all(row.state is State.STORED for row in rows)
    assert sum(row.copy_of is None for row in rows) == 1
    assert len([repo for repo, _ in cluster.probed if repo in same]) == 1
    assert left
    assert left < same  # those that waited for it


def test_what_workers_say_of_models_goes_to_the_journal(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1})
    said = {
        ("look", REPOS[0]): Trouble(Reason.GATED, "ask them", refused=True),
        ("bring", REPOS[1]): Trouble(Reason.BROKEN_WEIGHTS, "garbage"),
        ("probe", REPOS[2]): Trouble(Reason.TIMED_OUT, "too slow"),
        ("probe", REPOS[3]): Trouble(Reason.RUN_FAILED, "an error of ours", where="x.py:1"),
    }
    for what in ("look", "bring", "probe"):
        cluster.scripts[what] = lambda node, claim, *rest, what=what: said.get(
            (what, claim.repo), usual(node, what, claim, *rest)
        )
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        found = {repo: (row.state, row.reason) for repo in REPOS for row in run.journal.rows(repo)}
    assert found[REPOS[0]] == (State.REFUSED, "gated")
    assert found[REPOS[1]] == (State.FAILED, "broken weights")
    assert found[REPOS[2]] == (State.FAILED, "took too long")
    assert found[REPOS[3]] == (State.FAILED, "failed while running")
    assert all(found[repo] == (State.STORED, None) for repo in REPOS[4:])


def test_a_worker_that_is_lost_while_it_fetches_costs_an_attempt(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1, "two": 1})
    hung: list[str] = []

    def bring(node: str, claim: Any) -> object | None:
        if node == "one" and claim.repo not in hung:
            hung.append(claim.repo)
        return None if node == "one" else usual(node, "bring", claim)

    cluster.scripts["bring"] = bring

    def lose() -> None:
        if hung and "one" in cluster.room:
            cluster.lose("one")

    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end(lose) == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
        reasons = {event.reason for event in run.journal.history(hung[0])}
    assert Reason.NETWORK.value in reasons


def test_the_limit_counts_models_that_were_tried_and_not_those_put_back(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1, "two": 1})
    lost: list[int] = []

    def lose() -> None:
        if len(cluster.probed) >= 2 and not lost:
            lost.append(1)
            cluster.lose("one")

    with crawl(tmp_path, cluster, limit=6) as run:
        assert run.to_the_end(lose) == 0
        counts = run.journal.counts()
    assert 6 - 3 <= counts[State.STORED] <= 6  # at most one was being probed and two fetched
    assert sum(counts.values()) == len(REPOS)


def test_as_many_workers_as_were_asked_for(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 5, "two": 5})
    most: list[int] = []
    with crawl(tmp_path, cluster, workers=3) as run:
        assert run.to_the_end(lambda: most.append(len(cluster.where))) == 0
    assert max(most) == 3


def test_where_no_worker_can_begin_the_crawl_ends_with_one_line(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1})
    cluster.scripts["begin"] = lambda node: Unfit("no such device")
    with (
        crawl(tmp_path, cluster) as run,
        pytest.raises(HubhoundError, match=r"^no worker on a pretended cluster can begin: no such device$"),
    ):
        run.to_the_end()
    assert cluster.closed


def test_one_bad_node_does_not_stop_the_others(tmp_path: Path) -> None:
    cluster = PretendCluster({"bad": 1, "good": 1})
    cluster.scripts["begin"] = lambda node: Unfit("no such device") if node == "bad" else usual(node, "begin")
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
    assert {node for _, node in cluster.probed} == {"good"}


def test_workers_of_a_node_wait_for_the_one_that_has_the_images_and_take_over_when_it_is_lost(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 2})
    first: list[object] = []

    def unpack(node: str, piece: object, is_first: bool, is_last: bool) -> object | None:
        if not first:
            first.append(piece)
        return None if not lost else True

    lost: list[int] = []
    cluster.scripts["unpack"] = unpack

    def lose() -> None:
        if first and not lost:
            assert cluster.supplied == {}
            lost.append(1)
            cluster.kill("one")

    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end(lose) == 0
        assert all(run.state(repo) is State.STORED for repo in REPOS)
    assert cluster.supplied["one"] == cluster.shared


def test_the_cluster_that_is_gone_ends_the_crawl_and_loses_nothing(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1})
    answers: list[str] = []

    def hand_over(node: str, claim: Any) -> object:
        answers.append(claim.repo)
        return HubhoundError("the Ray cluster is gone") if len(answers) > 5 else usual(node, "hand_over", claim)

    cluster.scripts["hand_over"] = hand_over
    with crawl(tmp_path, cluster) as run, pytest.raises(HubhoundError, match="is gone"):
        run.to_the_end()
    with crawl(tmp_path, PretendCluster({"two": 1})) as again:
        assert again.to_the_end() == 0
        assert all(again.state(repo) is State.STORED for repo in REPOS)
    assert history(again.index).probed_again == ()


def test_a_stop_lets_those_that_are_probed_finish_and_puts_back_the_rest(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1})
    told: list[str] = []

    def probe(node: str, claim: Any, job: object) -> object | None:
        if not told:
            told.append(claim.repo)
            run.daemon.stop()
        return usual(node, "probe", claim, job)

    cluster.scripts["probe"] = probe
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
        counts = run.journal.counts()
        assert run.state(told[0]) is State.STORED
    assert counts[State.STORED] == 1
    assert counts[State.LISTED] == len(REPOS) - 1


def test_a_node_that_has_the_images_from_before_is_not_sent_them(tmp_path: Path) -> None:
    cluster = PretendCluster({"one": 1})
    cluster.scripts["engage"] = lambda node, *rest: Present(node, node, True)
    with crawl(tmp_path, cluster) as run:
        assert run.to_the_end() == 0
    assert cluster.shared == 0
