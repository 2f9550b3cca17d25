"""A cluster whose workers do at once what they are asked, until they are told otherwise; and crawls on it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import HubhoundError
from indexers.crawl.fleet.cluster import LostError
from indexers.crawl.fleet.orders import Able, Answered, Here, Orders, Present, Seen
from indexers.crawl.fleet.parcel import Piece
from indexers.crawl.journal import Claim
from indexers.crawl.listing import Page
from indexers.crawl.records import Listed, Probed
from indexers.loaders.base import Metadata, Repository
from tests.support.small_index import answers

Reply = Callable[..., object]


@dataclass
class Ticket:
    """Something that was asked."""

    hand: int
    what: str
    arguments: tuple[Any, ...]


@dataclass
class PretendCluster:
    """See `indexers.crawl.fleet.cluster.Cluster`.

    Attributes:
        room: Workers that each node has room for.
        scripts: What is answered in place of the usual, by what is asked; called with node and arguments, None for: not
            yet.
        answers_bytes: As of `Cluster`.
    """

    room: dict[str, int]
    scripts: dict[str, Reply] = field(default_factory=dict)
    answers_bytes: int = 10**9
    name: str = "a pretended cluster"
    where: dict[int, str] = field(default_factory=dict)
    supplied: Counter[str] = field(default_factory=Counter)
    probed: list[tuple[str, str]] = field(default_factory=list)
    on_the_way: int = 0
    most_on_the_way: int = 0
    shared: int = 0
    closed: bool = False
    _open: dict[int, Ticket] = field(default_factory=dict)
    _hired: dict[int, int] = field(default_factory=dict)
    _gone: set[int] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def places(self) -> int:
        return sum(self.room.values())

    def hire(self, orders: Orders) -> Hashable:
        hand = next(self._numbers)
        self._hired[hand] = self.ask(hand, "engage", orders)  # type: ignore[assignment]
        return hand

    def engaged(self, hand: Any) -> Hashable:
        return self._hired.pop(hand)

    def ask(self, hand: Any, what: str, *arguments: Any) -> Hashable:
        ticket = next(self._numbers)
        self._open[ticket] = Ticket(hand, what, arguments)
        return ticket

    def share(self, value: object) -> Any:
        self.shared += 1
        return value

    def wait(self, answers: Collection[Any], timeout_s: float) -> list[Hashable]:
        for hand, ticket in [(ticket.hand, ticket) for ticket in self._open.values() if ticket.what == "engage"]:
            if hand not in self.where and hand not in self._gone:
                node = next((node for node, room in self.room.items() if self._count(node) < room), None)
                if node is not None:
                    self.where[hand] = node
                    ticket.arguments = (node,)
        done = [answer for answer in answers if self._reply(self._open[answer]) is not None]
        if not done:
            time.sleep(min(timeout_s, 0.002))
        return list(done)

    def take(self, answer: Any) -> object:
        ticket = self._open.pop(answer)
        if ticket.hand in self._gone:
            raise LostError("its node is gone")
        reply = self._reply(ticket)
        if ticket.what == "probe":
            self.probed.append((ticket.arguments[0].repo, self.where[ticket.hand]))
        if ticket.what == "unpack":
            self.supplied[self.where[ticket.hand]] += 1
        if isinstance(reply, HubhoundError):
            raise reply
        return reply

    def dismiss(self, hand: Any) -> None:
        self._gone.add(hand)
        self.where.pop(hand, None)

    def close(self) -> None:
        self.closed = True

    def lose(self, node: str) -> None:
        """A node is gone, with all its workers."""
        del self.room[node]
        self.kill(node)

    def kill(self, node: str) -> None:
        """The workers of a node are gone."""
        self._gone |= {hand for hand, there in self.where.items() if there == node}
        self.where = {hand: there for hand, there in self.where.items() if there != node}

    def _count(self, node: str) -> int:
        return sum(there == node for there in self.where.values())

    def _reply(self, ticket: Ticket) -> object | None:
        if ticket.hand in self._gone:
            return True
        if ticket.hand not in self.where:
            return None
        node, what, arguments = self.where[ticket.hand], ticket.what, ticket.arguments
        if what in self.scripts:
            return self.scripts[what](node, *arguments)
        return usual(node, what, *arguments, supplied=self.supplied)


def usual(node: str, what: str, *arguments: Any, supplied: Collection[str] = ()) -> object | None:
    """What a worker answers."""
    claim: Any = arguments[0] if arguments else None
    usually: dict[str, Callable[[], object | None]] = {
        "engage": lambda: Present(node, node, node in supplied),
        "arrive": lambda: Present(node, node, node in supplied),
        "begin": Able,
        "stay": lambda: None,
        "unpack": lambda: isinstance(claim, Piece),
        "look": lambda: Seen(repository_of(claim), f"weights of {claim.repo}"),
        "bring": lambda: Here(repository_of(claim), 1000),
        "probe": lambda: Answered(probed_of(claim.repo).responses.nbytes, 1, ("walls",), ("a moat",)),
        "hand_over": lambda: probed_of(claim.repo),
    }
    return usually[what]() if what in usually else 0


def repository_of(claim: Claim) -> Repository:
    return Repository(claim.repo, claim.revision, Path("/elsewhere") / claim.repo, Metadata())


def probed_of(repo: str) -> Probed:
    """What a model answers, each another thing."""
    concepts = [f"{repo} {i}" for i in range(random.Random(repo).randint(2, 6))]
    responses = answers(concepts, seed=sum(repo.encode()))
    responses.setflags(write=False)  # as it comes from an object store
    seconds = {"load": 0.0, "decode": 0.0, "probe": 0.0}
    return Probed("timm", "net", 10, (8, 8), tuple(concepts), np.asarray(responses), False, seconds, 1000)


@dataclass(frozen=True)
class Models:
    """A source of models.

    Attributes:
        repos: All of them.
    """

    repos: tuple[str, ...]
    name: str = "models"
    follows: bool = False
    absence: str = "it is not there"

    def pages(self, cursor: str | None, newest_first: bool) -> Iterator[Page]:
        yield Page([Listed(repo, "r1") for repo in self.repos], None)

    def check(self, repo: str) -> Listed | None:
        return Listed(repo, "r1") if repo in self.repos else None
