"""A hub of many small repositories: good classifiers, copies under other names, and bad ones with their reasons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import Reason
from indexers.crawl.records import State
from tests.support.hub_bad_models import BAD_KINDS
from tests.support.hub_bases import FEWEST_CLASSES, MOST_CLASSES, Base, bases, draw_labels, write
from tests.support.hub_cases import Case, Kind, Told

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

ORGS = ("alder", "birch", "cedar", "elm", "fir", "hazel", "larch", "oak")


@dataclass(frozen=True)
class Expected:
    """What a crawl must make of a repository.

    Attributes:
        state: Where it ends.
        reason: Why it is not in the index, None if it is.
        why: One line for people.
        labels: Of its outputs, none for a bad one.
    """

    state: State
    reason: Reason | None
    why: str
    labels: tuple[str, ...] = ()


@dataclass
class Crowd:
    """A hub's repositories and what a crawl must make of them.

    Attributes:
        root: The hub's folder.
        expected: By repository.
        copies: Repositories with the weights of another one, and which. A crawl may meet either first.
        kinds: Kind of each bad one.
    """

    root: Path
    rng: np.random.Generator
    expected: dict[str, Expected] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    _bases: dict[str, Base] = field(default_factory=dict)
    _made: int = 0
    _commits: int = 0
    _lock: AbstractContextManager[object] = field(default_factory=nullcontext)

    @property
    def good(self) -> list[str]:
        """Repositories that belong into the index, copies among them, in the order they were made."""
        return [repo for repo, expected in self.expected.items() if expected.state is State.STORED]

    @property
    def bad(self) -> list[str]:
        """Repositories that do not."""
        return [repo for repo, expected in self.expected.items() if expected.state is not State.STORED]

    @property
    def canaries(self) -> list[Path]:
        """Files that code of a repository has created: none, if nobody ran it."""
        return sorted((self.root / "canaries").iterdir())

    def tell(self, hub: HubServer) -> None:
        """Tell a hub that serves the folder what the folder cannot say; from now on it sees whole commits only."""
        self.told.tell(hub)
        self._lock = hub.repositories.lock

    def folder(self, repo: str) -> Path:
        """Where a repository lies."""
        return self.root / "models" / repo

    def add(self) -> str:
        """A new good repository; its id."""
        base = bases()[self._made % len(bases())]
        repo = self._name(base.name)
        self._bases[repo] = base
        self.change(repo)
        return repo

    def change(self, repo: str) -> None:
        """Give a good repository new weights, outputs and labels, and so a new commit; a copy is none any more."""
        base = self._bases[repo]
        classes = int(self.rng.integers(FEWEST_CLASSES, MOST_CLASSES + 1))
        labels = draw_labels(self.rng, classes)
        staged = self.root / "staged"
        write(staged, base, base.copy(self.rng, classes), labels)
        self._commit(repo, staged)
        self.expected[repo] = Expected(State.STORED, None, "a good classifier", tuple(labels))
        self.copies.pop(repo, None)
        for copy in [copy for copy, original in self.copies.items() if original == repo]:
            self._promote(copy, repo)

    def reword(self, repo: str) -> None:
        """Change only the card of a repository: a new commit with the old weights."""
        staged = self.root / "staged"
        shutil.copytree(self.folder(repo), staged)
        with (staged / "README.md").open("a") as card:
            card.write(f"\nChange {self._commits}.\n")
        self._commit(repo, staged)

    def copy(self, original: str) -> str:
        """A new repository with the weights of another and other labels; its id."""
        base = self._bases[original]
        repo = self._name(f"{base.name}-copy")
        labels = draw_labels(self.rng, len(self.expected[original].labels))
        staged = self.root / "staged"
        shutil.copytree(self.folder(original), staged)
        (staged / "config.json").write_text(json.dumps(base.config_of(labels)))
        self._commit(repo, staged)
        self._bases[repo] = base
        self.expected[repo] = Expected(State.STORED, None, f"has the weights of {original}", tuple(labels))
        self.copies[repo] = self.copies.get(original, original)
        return repo

    def spoil(self, kind: Kind) -> str:
        """A new bad repository; its id."""
        repo = self._name(kind.name.replace("_", "-"))
        canary = self.root / "canaries" / repo.replace("/", "-")
        kind.spoil(Case(repo, self.root / "staged", self.rng, self.told, canary))
        self._commit(repo, self.root / "staged")
        self.kinds[repo] = kind
        self.expected[repo] = Expected(kind.state, kind.reason, kind.why)
        return repo

    def delete(self, repo: str) -> None:
        """Remove a repository from the hub, with all its commits."""
        folder = self.folder(repo)
        with self._lock:
            for commit in (folder, *folder.parent.glob(f"{folder.name}@*")):
                shutil.rmtree(commit)
        del self.expected[repo]
        self.kinds.pop(repo, None)
        self.copies.pop(repo, None)
        for copy in [copy for copy, original in self.copies.items() if original == repo]:
            self._promote(copy, repo)

    def _commit(self, repo: str, staged: Path) -> None:
        """Put a folder in a repository's place, at once; as on the Hub, who knows the old commit can still have it."""
        folder = self.folder(repo)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._commits += 1
        with self._lock:
            if folder.is_dir():
                folder.rename(folder.with_name(f"{folder.name}@before-{self._commits}"))
            staged.rename(folder)

    def _promote(self, copy: str, gone: str) -> None:
        """The first copy of what has gone is the original of the others."""
        if copy not in self.copies:
            return
        del self.copies[copy]
        for other, original in self.copies.items():
            if original == gone:
                self.copies[other] = copy

    def _name(self, what: str) -> str:
        self._made += 1
        return f"{ORGS[self._made % len(ORGS)]}/{what}-{self._made:04d}"


def build_crowd(
    root: Path, good: int, bad: int, seed: int, *, kinds: Mapping[str, Kind] = BAD_KINDS, copies: int = 0
) -> Crowd:
    """Make a hub's folder.

    Args:
        root: The folder, new.
        good: Good repositories, copies not counted.
        bad: Bad ones; every kind comes before any comes again, heavy kinds come once.
        seed: Of all that is drawn.
        kinds: Ways to be bad.
        copies: Repositories with the weights of a good one and other labels.
    """
    (root / "canaries").mkdir(parents=True)
    crowd = Crowd(root, np.random.default_rng(seed))
    originals = [crowd.add() for _ in range(good)]
    for number in crowd.rng.choice(good, copies, replace=copies > good):
        crowd.copy(originals[number])
    again = [kind for kind in kinds.values() if not kind.heavy]
    rounds = [*kinds.values(), *(again[number % len(again)] for number in range(max(0, bad - len(kinds))))]
    for kind in rounds[:bad]:
        crowd.spoil(kind)
    return crowd
