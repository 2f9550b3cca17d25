"""The journal against a slow model of its rules, under random sequences of operations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from indexers.crawl.backoff import Backoff
from indexers.crawl.journal import Journal
from indexers.crawl.records import Listed, Refusal
from tests.support.output_tables import fast_folder

UNDER_WAY = ("fetching", "fetched", "probing")
ATTEMPTS = 3
START = 1_000_000.0

Key = tuple[str, str]


class Half(random.Random):
    def random(self) -> float:
        return 0.5


@dataclass
class Entry:
    """A row as the rules have it."""

    order: int
    state: str
    modified: str | None
    reason: str | None = None
    hand: bool = False
    attempts: int = 0
    next_try: float = 0.0
    outputs: int | None = None
    copy_of: str | None = None
    weights: str | None = None

    def reset(self, state: str, reason: str | None = None) -> None:
        self.state, self.reason = state, reason
        self.outputs = self.copy_of = self.weights = None

    def list_again(self, now: float, attempts: int = 0) -> None:
        self.reset("listed")
        self.attempts, self.next_try = attempts, now


@dataclass
class Rules:
    """What the journal has to do, written down without a thought for speed or crashes."""

    now: float = START
    rows: dict[Key, Entry] = field(default_factory=dict)

    def of(self, repo: str) -> dict[Key, Entry]:
        return {key: row for key, row in self.rows.items() if key[0] == repo}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def page(self, entries: list[tuple[str, str, str | None, str | None]]) -> list[int]:
        counts = [0, 0, 0, 0]
        for repo, revision, modified, refusal in entries:
            family, row = self.of(repo), self.rows.get((repo, revision))
            for key, other in family.items():
                if key[1] != revision and other.state in ("listed", "failed", "refused"):
                    other.reset("gone", "replaced")
            target = "refused" if refusal else "listed"
            if row is None:
                self.rows[repo, revision] = Entry(len(self.rows), target, modified, refusal)
                counts[3 if refusal else 1 if family else 0] += 1
                continue
            row.modified = modified or row.modified
            by_filter = row.state == "refused" and row.attempts == 0
            if row.state == "gone" or (row.state == "listed" and refusal) or (by_filter and not refusal):
                row.reset(target, refusal)
                row.attempts, row.next_try = 0, 0.0
                counts[3 if refusal else 1] += 1
            elif by_filter:
                row.reason = refusal
                counts[3] += 1
            else:
                counts[2] += 1
        return counts

    def claim(self) -> Key | None:
        taken = {key[0] for key, row in self.rows.items() if row.hand}
        due = [
            (row.next_try == 0, row.next_try, [-ord(c) for c in row.modified or "\0"], row.order, key)
            for key, row in self.rows.items()
            if row.state == "listed" and row.next_try <= self.now and key[0] not in taken
        ]
        if not due:
            return None
        key = min(due)[-1]
        self.rows[key].state, self.rows[key].reason = "fetching", None
        self.rows[key].hand, self.rows[key].attempts = True, self.rows[key].attempts + 1
        return key

    def advance(self, key: Key, before: str, after: str, weights: str | None = None) -> bool:
        row = self.rows[key]
        if row.hand and row.state not in UNDER_WAY:
            return False
        if row.state != before:
            raise ValueError
        row.state, row.reason = after, None
        row.weights = weights if after == "fetched" else row.weights
        return True

    def held(self, key: Key) -> Entry:
        if not self.rows[key].hand:
            raise ValueError
        return self.rows[key]

    def free_copies(self, repo: str) -> list[str]:
        copies = sorted(k for k, r in self.rows.items() if r.state == "stored" and r.copy_of == repo and k[0] != repo)
        for key in copies:
            self.rows[key].list_again(self.now)
        return [key[0] for key in copies]

    def stored(self, key: Key, outputs: int, copy_of: str | None) -> list[str]:
        if copy_of == key[0]:
            raise ValueError
        row = self.held(key)
        former = [other for k, other in self.of(key[0]).items() if k != key and other.state == "stored"]
        row.state, row.reason, row.hand, row.outputs, row.copy_of = "stored", None, False, outputs, copy_of
        again = []
        for other in former:
            other.state, other.reason = "gone", "replaced"
        if any(copy_of or row.weights is None or row.weights != other.weights for other in former):
            again += self.free_copies(key[0])
        originals = self.of(copy_of) if copy_of else {}
        if copy_of and originals and not any(other.state == "stored" for other in originals.values()):
            again += self.free_copies(copy_of)
        return again

    def end(self, key: Key, state: str, reason: str) -> None:
        row = self.held(key)
        row.hand = False
        if row.state in UNDER_WAY:
            row.reset(state, reason)
            self.make_way(key)

    def put_back(self, key: Key, attempts: int, next_try: float, reason: str | None) -> bool:
        row = self.held(key)
        row.hand = False
        if row.state not in UNDER_WAY:
            return False
        row.list_again(next_try, attempts)
        row.reason = reason
        return not self.make_way(key)

    def make_way(self, key: Key) -> bool:
        others = [other for k, other in self.of(key[0]).items() if k != key]
        if any(other.state in ("listed", "failed", "refused") for other in others):
            self.rows[key].state, self.rows[key].reason = "gone", "replaced"
            return True
        return False

    def failed(self, key: Key, passing: bool) -> float | None:
        attempts = self.held(key).attempts
        if not passing or attempts >= ATTEMPTS:
            self.end(key, "failed", "broken")
            return None
        next_try = self.now + 0.5 * 10 * 2 ** (max(1, attempts) - 1)
        return next_try if self.put_back(key, attempts, next_try, "broken") else None

    def release(self, key: Key) -> None:
        self.put_back(key, max(0, self.held(key).attempts - 1), self.now, None)

    def gone(self, repo: str) -> list[str]:
        for row in self.of(repo).values():
            if row.state != "gone":
                row.state, row.reason = "gone", "deleted"
        return self.free_copies(repo)

    def recover(self, held: dict[Key, str | None]) -> tuple[int, int]:
        hands = sorted((row.order, key) for key, row in self.rows.items() if row.hand)
        for _, key in sorted(hands, key=lambda hand: held.get(hand[1]) is not None):
            row = self.rows[key]
            attempts = row.attempts - (row.state == "fetched")
            if key in held:
                self.stored(key, 7, held[key])
            elif row.state in UNDER_WAY and attempts >= ATTEMPTS:
                self.end(key, "failed", "crashed")
            else:
                self.put_back(key, attempts, self.now, None)
        there = sum(key in held for _, key in hands)
        return there, len(hands) - there

    def retry(self, reason: str | None, repo: str | None) -> int:
        count = 0
        for key, row in self.rows.items():
            waits = row.state in ("failed", "refused") or (row.state == "listed" and row.next_try > self.now)
            if waits and reason in (None, row.reason) and repo in (None, key[0]):
                row.list_again(self.now)
                count += 1
        return count


REPOS = ("o/a", "o/b", "o/c")
WEIGHTS = (None, "w1", "w2")
FREQUENCIES = {
    "page": 6, "claim": 8, "fetched": 3, "probing": 2, "stored": 3, "through": 4, "refused": 1, "failed": 4, "gone": 1,
    "release": 2, "recover": 1, "retry": 1, "wait": 4, "reopen": 1,
}  # fmt: skip


def draw(dice: random.Random, rules: Rules) -> tuple[str, list[Any]]:
    """One operation; nine of ten of those on a revision are on one in hand, so that they are mostly possible."""

    def key() -> Key:
        return dice.choice(REPOS), dice.choice(("1", "2"))

    def copy_of(repo: str | None = None) -> str | None:
        return dice.choice((None, None, *(other for other in REPOS if other != repo)))

    hands = [known for known, row in rules.rows.items() if row.hand]
    target = dice.choice(hands) if hands and dice.random() < 0.9 else key()
    name = dice.choices(list(FREQUENCIES), list(FREQUENCIES.values()))[0]
    values: dict[str, list[Any]] = {
        "page": [
            [
                (
                    *key(),
                    dice.choice((None, "2026-01", "2026-02")),
                    dice.choice((None,) * 5 + ("not asked for", "too large")),
                )
                for _ in range(dice.randint(1, 2))
            ]
        ],
        "fetched": [target, dice.choice(WEIGHTS)],
        "probing": [target],
        "stored": [target, dice.randint(1, 3), copy_of()],
        "through": [target, dice.choice(WEIGHTS), copy_of(target[0])],
        "refused": [target],
        "failed": [target, dice.random() < 0.7],
        "gone": [dice.choice(REPOS)],
        "release": [target],
        "recover": [{known: copy_of(known[0]) for known in hands if dice.random() < 0.6}],
        "retry": [dice.choice((None, None, "broken", "crashed")), dice.choice((None, *REPOS))],
        "wait": [dice.choice((1.0, 6.0, 50.0))],
    }
    return name, values.get(name, [])


class Pair:
    """The journal and the rules, told the same."""

    def __init__(self, path: Path) -> None:
        self.path, self.rules = path, Rules()
        self.open()

    def open(self) -> None:
        backoff = Backoff(base_s=10, factor=2, longest_s=3600, attempts=ATTEMPTS)
        self.journal = Journal(self.path, clock=lambda: self.rules.now, backoff=backoff, rng=Half())

    def both(self, name: str, values: list[Any]) -> tuple[Any, Any]:
        """What the journal and the rules answer."""
        journal, rules = self.journal, self.rules
        calls = {
            "page": (lambda: self.page(values[0]), lambda: rules.page(values[0])),
            "claim": (self.claim, rules.claim),
            "fetched": (
                lambda: journal.fetched(*values[0], size_bytes=1, weights=values[1], seconds=0.5),
                lambda: rules.advance(values[0], "fetching", "fetched", values[1]),
            ),
            "probing": (lambda: journal.probing(*values[0]), lambda: rules.advance(values[0], "fetched", "probing")),
            "stored": (
                lambda: journal.stored(*values[0], outputs=values[1], copy_of=values[2]),
                lambda: rules.stored(*values),
            ),
            "refused": (
                lambda: journal.refused(*values[0], "broken", "x"),
                lambda: rules.end(values[0], "refused", "broken"),
            ),
            "failed": (
                lambda: journal.failed(*values[0], "broken", "x", passing=values[1]),
                lambda: rules.failed(*values),
            ),
            "gone": (lambda: journal.gone(values[0], "deleted", "x"), lambda: rules.gone(values[0])),
            "release": (lambda: journal.release(*values[0]), lambda: rules.release(values[0])),
            "recover": (lambda: self.recover(values[0]), lambda: rules.recover(values[0])),
            "retry": (lambda: journal.retry(*values), lambda: rules.retry(*values)),
            "wait": (lambda: None, lambda: rules.wait(values[0])),
            "reopen": (self.reopen, lambda: None),
        }
        ours, theirs = calls[name]
        return answer_of(ours), answer_of(theirs)

    def steps(self, name: str, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        """An operation, taken apart."""
        if name != "through":
            yield name, values
            return
        target, weights, copy_of = values
        yield "fetched", [target, weights]
        if copy_of is None:
            yield "probing", [target]
        yield "stored", [target, 2, copy_of]

    def page(self, entries: list[tuple[str, str, str | None, str | None]]) -> list[int]:
        page = [
            (Listed(repo, revision, modified=modified), Refusal(refusal, "x") if refusal else None)
            for repo, revision, modified, refusal in entries
        ]
        found = self.journal.add_page(self.journal.begin_pass("hub", True), page, "next")
        return [found.new, found.changed, found.known, found.refused]

    def claim(self) -> Key | None:
        claim = self.journal.claim()
        return (claim.repo, claim.revision) if claim else None

    def recover(self, held: dict[Key, str | None]) -> tuple[int, int]:
        index = {key: (7, copy) for key, copy in held.items()}
        return self.journal.recover(lambda repo, revision: index.get((repo, revision)))

    def reopen(self) -> None:
        self.journal.close()
        self.open()

    def compare(self) -> None:
        rows = self.journal._database.read(
            "SELECT repo, revision, state, in_hand, reason, attempts, next_try, outputs, copy_of FROM revisions"
        )
        found = {(row[0], row[1]): row[2:] for row in rows}
        wanted = {
            key: (row.state, row.hand, row.reason, row.attempts, row.next_try, row.outputs, row.copy_of)
            for key, row in self.rules.rows.items()
        }
        assert found == wanted
        assert sum(self.journal.counts().values()) == len(wanted)


def answer_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ValueError, KeyError):  # the rules know no row that was never listed
        return "impossible"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_operations_follow_the_rules(seed: int) -> None:
    dice = random.Random(seed)
    with TemporaryDirectory() as near, fast_folder(Path(near)) as folder:
        pair = Pair(folder / "journal.sqlite")
        try:
            for _ in range(250):
                for name, values in pair.steps(*draw(dice, pair.rules)):
                    ours, theirs = pair.both(name, values)
                    assert ours == theirs, (name, values)
                    pair.compare()
        finally:
            pair.journal.close()
