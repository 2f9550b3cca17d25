"""The journal under kill -9: every change of state that it acknowledged is there afterwards, in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexers.crawl.backoff import Backoff
from indexers.crawl.journal import Journal
from indexers.crawl.records import UNDER_WAY, Listed
from tests.support.output_tables import fast_folder

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 10
BACKOFF = Backoff(base_s=0.001, longest_s=0.01, attempts=3)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def change_for_ever(path: str, seed: str) -> None:
    """The child: lists, claims and ends at random; after each call a line per change that it has made."""
    dice = random.Random(int(seed))
    with Journal(Path(path), backoff=BACKOFF) as journal:
        journal.recover(lambda repo, revision: None)
        hands: list[tuple[str, str]] = []
        p = journal.begin_pass("hub", True)
        number = p.entries
        say("ready")
        while True:
            throw = dice.random()
            if throw < 0.04:
                page = [(Listed(f"o/{number + i}", "r"), None) for i in range(dice.randint(1, 20))]
                number += len(page)
                journal.add_page(p, page, f"cursor {number}")
                say("page", number, *[f"{listed.repo}:listed" for listed, _ in page])
                continue
            if throw < 0.4 or not hands:
                claim = journal.claim()
                if claim is not None:
                    hands.append((claim.repo, claim.revision))
                    say("change", f"{claim.repo}:fetching")
                continue
            it = hands[dice.randrange(len(hands))]
            state = next(row.state for row in journal.rows(it[0]))
            if throw < 0.5:
                next_try = journal.failed(*it, "network", "reset", passing=True)
                after = "failed" if next_try is None else "listed"
            elif throw < 0.6:
                journal.refused(*it, "gated", "ask")
                after = "refused"
            elif state == "fetching":
                journal.fetched(*it, size_bytes=1, weights=None, seconds=0.0)
                after = "fetched"
            elif state == "fetched":
                journal.probing(*it)
                after = "probing"
            else:
                journal.stored(*it, outputs=3)
                after = "stored"
            if after not in UNDER_WAY:
                hands.remove(it)
            say("change", f"{it[0]}:{after}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


def test_what_was_acknowledged_survives_a_kill(folder: Path) -> None:
    path = folder / "crawl" / "journal.sqlite"
    Journal(path).close()
    moments = random.Random(7)
    changes = 0
    for seed in range(ROUNDS):
        with Journal(path, read_only=True) as journal:
            before = remembered(journal)
        child = subprocess.Popen(
            [sys.executable, __file__, str(path), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        end = threading.Timer(moments.uniform(0.0, 0.4), os.kill, (child.pid, signal.SIGKILL))
        end.start()
        lines += child.stdout.readlines()
        assert child.wait(timeout=30) == -signal.SIGKILL
        child.stdout.close()
        assert lines.pop(0) == "ready\n"
        reported: dict[str, list[str]] = defaultdict(list)
        pages = 0
        for line in lines:
            if line.endswith("\n"):  # the last one may have been cut
                kind, *words = line.split()
                if kind == "page":
                    pages = int(words.pop(0))
                for word in words:
                    repo, _, state = word.partition(":")
                    reported[repo].append(state)
                    changes += 1
        with Journal(path, read_only=True) as journal:  # as `crawl status` finds it after the kill
            after = remembered(journal)
            seen = journal.sources()[0].entries
        with Journal(path) as journal:
            assert remembered(journal) == after
            p = journal.begin_pass("hub", True)
            assert p.resumed and p.entries == seen >= pages and p.cursor in (None, f"cursor {p.entries}")
            assert sum(journal.counts().values()) == p.entries == len(after)
            now = dict(journal._database.read("SELECT repo, state FROM revisions"))
            assert now == {repo: states[-1] for repo, states in after.items()}  # what is so is what last happened
            in_hand = {repo for repo, _, _ in journal.under_way()}
            assert in_hand == {repo for repo, states in after.items() if states[-1] in UNDER_WAY}
        unreported = 0
        for repo, states in after.items():
            news = states[len(before.get(repo, [])) :]
            said = reported.pop(repo, [])
            if before.get(repo, ["-"])[-1] in UNDER_WAY:  # the child put it back at first
                assert news.pop(0) in ("listed", "failed")
            assert news[: len(said)] == said, "acknowledged and lost"
            unreported += len(news) > len(said)
            assert len(news) <= len(said) + 1
        assert not reported
        # One call may have been done and not yet have been reported; a page is many changes, but of new models.
        assert unreported <= 1 or seen > pages
    assert changes > 500


def remembered(journal: Journal) -> dict[str, list[str]]:
    """Every change of state of each model, in order."""
    rows = journal._database.read(
        "SELECT repo, events.state FROM events JOIN revisions ON revisions.id = row ORDER BY events.id"
    )
    found: dict[str, list[str]] = defaultdict(list)
    for repo, state in rows:
        found[repo].append(state)
    return dict(found)


if __name__ == "__main__":
    change_for_ever(*sys.argv[1:])
