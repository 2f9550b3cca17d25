"""Where every model is that a fleet has in hand, and who gets the next one."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from indexers.crawl.fetching import Fetched
from indexers.crawl.journal import Claim
from indexers.crawl.stages import InProcess

Key = tuple[str, str]

ANSWERS = 2
"""So many answers may wait with a worker; it gets nothing to probe meanwhile."""


class Stage(Enum):
    """How far a model has come with its worker."""

    LOOKED_AT = "looked at"
    FETCHED = "fetched"  # is being
    READY = "waiting to be probed"
    PROBED = "probed"  # is being
    ANSWERED = "waiting to be stored"
    HANDED_OVER = "handed over"  # is being


FETCHING = (Stage.LOOKED_AT, Stage.FETCHED)
UNFINISHED = (*FETCHING, Stage.READY, Stage.PROBED)


@dataclass(eq=False)
class Errand:
    """A model that a worker has.

    Attributes:
        claim: As the journal handed it out.
        stage: How far it is.
        began: When, by the performance counter.
        identity: Of its weights, once it was looked at.
        fetched: What is here, once it is.
        process: Tells those who watch, while it is being probed.
        size_bytes: Of the answer.
    """

    claim: Claim
    stage: Stage = Stage.LOOKED_AT
    began: float = field(default_factory=time.perf_counter)
    identity: str | None = None
    fetched: Fetched | None = None
    process: InProcess | None = None
    size_bytes: int = 0


@dataclass(eq=False)
class Hire:
    """A worker.

    Attributes:
        hand: What the cluster calls it.
        node: Id of its node, once it has come there.
        host: Name of its node.
        able: It can be given models.
        children: Processes that it has started, as far as is known.
        errands: Models that it has, the longest first.
    """

    hand: Hashable
    node: str = ""
    host: str = ""
    able: bool = False
    children: int = 0
    errands: dict[Key, Errand] = field(default_factory=dict)

    def in_stages(self, *stages: Stage) -> list[Errand]:
        """Its models in certain stages; may be asked from any thread."""
        return [errand for errand in list(self.errands.values()) if errand.stage in stages]


class Roster:
    """All workers.

    Args:
        ahead: Models that a worker has beside the one that it probes.
        fetchers: Models that a worker fetches at once.
    """

    def __init__(self, ahead: int, fetchers: int) -> None:
        self._ahead = ahead
        self._fetchers = fetchers
        self.hires: dict[Hashable, Hire] = {}
        """By what the cluster calls them."""
        self._lost_on: dict[Key, str] = {}

    def __iter__(self) -> Iterator[Errand]:
        return (errand for hire in self.hires.values() for errand in hire.errands.values())

    @property
    def able(self) -> list[Hire]:
        """Those that can be given models."""
        return [hire for hire in self.hires.values() if hire.able]

    def has_room(self) -> bool:
        """Whether anybody can take one more."""
        return any(self._has_room(hire) for hire in self.hires.values())

    def choose(self, claim: Claim) -> Hire | None:
        """Who gets a model: the one that has the fewest, and not where its last worker was lost, if it can be helped.

        Args:
            claim: The model.

        Returns:
            None to wait until another one has room.
        """
        shunned = self._lost_on.get(key_of(claim))
        elsewhere = [hire for hire in self.able if hire.node != shunned]
        free = [hire for hire in elsewhere or self.able if self._has_room(hire)]
        return min(free, key=lambda hire: len(hire.in_stages(*UNFINISHED)), default=None)

    def lost(self, errand: Errand, node: str) -> None:
        """A model's worker was lost while it was at work on it."""
        self._lost_on[key_of(errand.claim)] = node

    def settled(self, claim: Claim) -> None:
        """A model has come to an end."""
        self._lost_on.pop(key_of(claim), None)

    def next_probe(self, hire: Hire) -> Errand | None:
        """What a worker is to probe now, None if nothing."""
        if not hire.able or hire.in_stages(Stage.PROBED):
            return None
        if len(hire.in_stages(Stage.ANSWERED, Stage.HANDED_OVER)) >= ANSWERS:
            return None
        return next(iter(hire.in_stages(Stage.READY)), None)

    def _has_room(self, hire: Hire) -> bool:
        return (
            hire.able
            and len(hire.in_stages(*UNFINISHED)) <= self._ahead
            and len(hire.in_stages(*FETCHING)) < self._fetchers
        )


def key_of(claim: Claim) -> Key:
    """Tells a model from others."""
    return claim.repo, claim.revision
