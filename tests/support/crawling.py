"""Crawls as a user starts them, and what they leave behind compared with what the hub held."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from engine.errors import InputError
from engine.index import Index
from engine.schema import Model, ModelState
from engine.store.edge import EdgeStore
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import State
from query.request import SearchRequest
from query.search import Searcher
from tests.support.hub_crowd import Crowd
from tests.support.small_index import encode

QUICK = ("--retry-wait", "0.05s", "--retries", "30")
"""Faults of a test pass at once."""


@dataclass
class Crawl:
    """How to crawl a hub into an index.

    Attributes:
        url: Of the hub.
        index: Folder of the index.
        cache: Of preprocessed probes.
        options: More of the command line.
        environment: More of it.
    """

    url: str
    index: Path
    cache: Path
    options: tuple[str, ...] = QUICK
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, *options: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts the command; its standard error goes to a file."""
        command = [sys.executable, "-c", "from query.cli.main import main; main()", "crawl", "--index", str(self.index)]
        command += ["--cache", str(self.cache), "--format", "json", *self.options, *options]
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.cache / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            **self.environment,
        }
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            environment.pop(name, None)
        with (log or self.index.parent / "crawl.log").open("ab") as stream:
            return subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, cwd=Path(__file__).parents[2]
            )

    def run(self, *options: str, timeout_s: float = 600, log: Path | None = None) -> int:
        """Runs the command to its end; its exit status."""
        process = self.start(*options, log=log)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()

    def follow_until(self, done: Callable[[Journal], bool], *options: str, timeout_s: float = 300) -> int:
        """Follows the hub until the journal is as it should be, then asks the crawl to end; its exit status."""
        process = self.start("--follow", *options)
        try:
            wait_for(self.index, done, timeout_s, process)
            process.send_signal(signal.SIGTERM)
            return process.wait(60)
        finally:
            process.kill()
            process.wait()


def wait_for(
    index: Path, done: Callable[[Journal], bool], timeout_s: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Waits until a journal is as it should be."""
    deadline = time.monotonic() + timeout_s
    while True:
        if (index / FILE).exists():
            with suppress(InputError), Journal(index / FILE, read_only=True) as journal:  # it may be just being made
                if done(journal):
                    return
        assert process is None or process.poll() is None, "the crawl has ended"
        assert time.monotonic() < deadline, "the journal did not become as it should be"
        time.sleep(0.2)


def settled(crowd: Crowd, revisions: Mapping[str, str]) -> Callable[[Journal], bool]:
    """Whether a journal has dealt with everything that a hub holds, and knows what it no longer holds."""

    def done(journal: Journal) -> bool:
        counts = journal.counts()
        if any(counts[state] for state in (State.LISTED, State.FETCHING, State.FETCHED, State.PROBING)):
            return False
        live = {
            (repo, row.revision) for repo in crowd.good for row in journal.rows(repo) if row.state is not State.GONE
        }
        return live == {(repo, revisions[repo]) for repo in crowd.good} and counts[State.STORED] == len(crowd.good)

    return done


def models_of(index: Path) -> dict[str, Model]:
    """The records of an index, by repository."""
    with EdgeStore.open(index / "store") as store:
        return {model.repo: model for model in store.models()}


def mistakes(index: Path, crowd: Crowd, revisions: Mapping[str, str]) -> list[str]:
    """Where an index and its journal differ from what a crawl of a hub must come to.

    Args:
        index: Folder of the index.
        crowd: What the hub holds.
        revisions: Newest commit by repository.
    """
    return [*_journal_mistakes(index, crowd, revisions), *_index_mistakes(index, crowd, revisions)]


def _journal_mistakes(index: Path, crowd: Crowd, revisions: Mapping[str, str]) -> list[str]:
    found = []
    with Journal(index / FILE, read_only=True) as journal:
        for repo, expected in crowd.expected.items():
            rows = [row for row in journal.rows(repo) if row.state is not State.GONE]
            reason = expected.reason.value if expected.reason else None
            if len(rows) != 1 or (rows[0].state, rows[0].reason) != (expected.state, reason):
                found.append(f"{repo}: {[(r.state.value, r.reason, r.detail) for r in rows]}, not {expected}")
            elif expected.state is State.STORED and rows[0].revision != revisions[repo]:
                found.append(f"{repo}: {rows[0].revision}, not {revisions[repo]}")
        counts = journal.counts()
    total = sum(count for state, count in counts.items() if state is not State.GONE)
    if total != len(crowd.expected):
        found.append(f"the journal has {total} models, the hub {len(crowd.expected)}")
    return found


def _index_mistakes(index: Path, crowd: Crowd, revisions: Mapping[str, str]) -> list[str]:
    found, own = [], 0
    models = models_of(index)
    indexed = {repo for repo, model in models.items() if model.state in {ModelState.INDEXED, ModelState.COPY}}
    if indexed != set(crowd.good):
        found.append(f"the index and not the hub has {sorted(indexed ^ set(crowd.good))}, or the other way round")
    for repo in indexed & set(crowd.good):
        model = models[repo]
        if model.revision != revisions[repo]:
            found.append(f"{repo}: the index has {model.revision}")
        if model.state is ModelState.COPY:
            if len({crowd.copies.get(name or "", name) for name in (repo, model.copy_of)}) != 1:
                found.append(f"{repo} is no copy of {model.copy_of}")
            continue
        own += model.outputs
        if model.outputs != len(crowd.expected[repo].labels):
            found.append(f"{repo} has {model.outputs} outputs, not {len(crowd.expected[repo].labels)}")
    families = Counter(crowd.copies.get(repo, repo) for repo in indexed if models[repo].state is ModelState.INDEXED)
    found += [f"{repo} is in the index {count} times" for repo, count in families.items() if count != 1]
    with EdgeStore.open(index / "store") as store:
        outputs = store.count_outputs()
    snapshot = Index(index).snapshot()
    if not outputs == own == len(snapshot):
        found.append(f"the store has {outputs} outputs, its models {own}, the snapshot {len(snapshot)}")
    return found


CONCEPTS = tuple(f"concept {i}" for i in range(12))


def hits(index: Path, crowd: Crowd, k: int = 50) -> list[list[tuple[str, int, float]]]:
    """What searches find: for each of some concepts the family that a model belongs to, its output and its margin.

    A family is a model with its copies: which of them a crawl meets first is a matter of chance.
    """
    answer = Searcher(Index(index), encode).search(SearchRequest(CONCEPTS, k))
    return [
        [(crowd.copies.get(hit.model, hit.model), hit.output, hit.margin) for hit in result.hits]
        for result in answer.results
    ]


def same_hits(
    found: list[list[tuple[str, int, float]]], expected: list[list[tuple[str, int, float]]], tolerance: float = 1e-3
) -> bool:
    """Whether two indexes answer alike: the same outputs in the same order, as far as margins tell them apart.

    Two runs of one model differ by float noise, as batches and threads do, and its margins by up to the tolerance.
    """
    for one, other in zip(found, expected, strict=True):
        if len(one) != len(other):
            return False
        margins = {(family, output): margin for family, output, margin in other}
        last = other[-1][2] + tolerance if other else 0.0
        for rank, (family, output, margin) in enumerate(one):
            there = margins.get((family, output))
            if abs(margin - other[rank][2]) > tolerance:
                return False
            if margin > last if there is None else abs(margin - there) > tolerance:
                return False
    return True


@dataclass(frozen=True)
class History:
    """What the events of a journal say about the work that was done.

    Attributes:
        probings: How often a model was begun to be probed.
        stored: Models that were finished.
        probed_again: Revisions that were probed although they had been finished before.
    """

    probings: int
    stored: int
    probed_again: tuple[str, ...]


def history(index: Path) -> History:
    """Reads what happened to every revision that a crawl has met."""
    probings, stored, again = 0, 0, []
    with closing(sqlite3.connect(index / FILE)) as database:
        repos = [row[0] for row in database.execute("SELECT DISTINCT repo FROM revisions ORDER BY repo")]
    with Journal(index / FILE, read_only=True) as journal:
        for repo in repos:
            finished: set[str] = set()
            for event in journal.history(repo):
                if event.state is State.STORED:
                    finished.add(event.revision)
                    stored += 1
                elif event.state is State.GONE:
                    finished.discard(event.revision)
                elif event.state is State.LISTED and (event.reason or "").startswith("was a copy"):
                    finished.discard(event.revision)  # its original has left: it is to be probed itself now
                elif event.state is State.PROBING:
                    probings += 1
                    if event.revision in finished:
                        again.append(f"{repo}@{event.revision}")
    return History(probings, stored, tuple(again))


TARGETS = ("parent", "child", "both")


def kill_some(process: subprocess.Popen[bytes], target: str, rng: np.random.Generator) -> bool:
    """Kills a crawl with SIGKILL: its own process, one of those it started, or all; whether it has to be restarted."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return True
    victims = []
    if target in {"child", "both"} and children:
        victims = [children[int(rng.integers(len(children)))]] if target == "child" else children
    if target in {"parent", "both"}:
        victims = [psutil.Process(process.pid), *victims]
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    if target == "child":
        return False
    process.wait(30)
    return True


def crawl_with_kills(crawl: Crawl, kills: int, seed: int, pause_s: tuple[float, float] = (0.1, 3.0)) -> list[str]:
    """Crawls to the end, being killed at random moments and begun again each time; what was killed, in order."""
    rng = np.random.default_rng(seed)
    done: list[str] = []
    process = crawl.start("--once")
    try:
        while len(done) < kills:
            wait_for_work(crawl.index, process)
            try:
                process.wait(float(rng.uniform(*pause_s)))
            except subprocess.TimeoutExpired:
                target = TARGETS[len(done) % 3]
                done.append(target)
                if kill_some(process, target, rng):
                    process = crawl.start("--once")
                continue
            break  # it came to its end before all the kills
        assert process.wait(600) == 0, "the last crawl did not end well"
    finally:
        process.kill()
        process.wait()
    return done


def wait_for_work(index: Path, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    """Waits until this very process has begun to probe a model: then a kill hurts most."""
    begun = "SELECT 1 FROM events WHERE pid = ? AND state = 'probing' LIMIT 1"
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        uri = f"file:{index / FILE}?mode=ro"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(uri, uri=True)) as database:
            if database.execute(begun, (process.pid,)).fetchone():
                return
        time.sleep(0.05)
