"""Hiring: as many workers as were asked for or as there is room for, new ones for those that are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from engine.errors import HubhoundError
from indexers.crawl import log
from indexers.crawl.fleet.cluster import Cluster, LostError
from indexers.crawl.fleet.errands import Hire, Roster
from indexers.crawl.fleet.orders import Orders, Present, Unfit

LOOK_EVERY_S = 2.0
"""Between two looks whether nodes have come or gone."""

LONGEST_S = 60.0
"""Longest wait before a worker is hired in the place of one that could not begin."""

FRUITLESS = 3
"""So many workers in a row that could not begin, and none that could: the crawl ends."""

_FAREWELL_S = 5.0


class Staff:
    """Hires and dismisses; used by the thread of its crew.

    Args:
        cluster: Where the workers are.
        roster: Of the workers.
        orders: What each is told.
        wanted: So many, None for as many as there is room for.
        pieces: Reads the images that models are shown.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        cluster: Cluster,
        roster: Roster,
        orders: Orders,
        wanted: int | None,
        pieces: Callable[[], Iterable[object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._roster = roster
        self._orders = orders
        self._wanted = wanted
        self._pieces = pieces
        self._clock = clock
        self._shared: list[Any] | None = None
        self._due = self._hire_after = 0.0
        self._failures = 0
        self._ever_able = False
        self._waiting = False
        self._supplied: dict[str, Hire] = {}
        self._patient: dict[str, list[Hire]] = {}
        self.asked: dict[Hashable, tuple[Hire, str, int]] = {}
        """Answers that are waited for: whose, to what, and the number of the piece."""

    def look(self) -> list[tuple[Hire, str]]:
        """Hires whom there is room for; now and then.

        Returns:
            Who has to go, and why.

        Raises:
            HubhoundError: The cluster is gone.
        """
        now = self._clock()
        if now < self._due:
            return []
        self._due = now + LOOK_EVERY_S
        places = self._cluster.places()
        target = places if self._wanted is None else self._wanted
        have = len(self._roster.hires)
        if now >= self._hire_after:
            for _ in range(target - have):
                hire = Hire(self._cluster.hire(self._orders))
                self._roster.hires[hire.hand] = hire
                self.asked[self._cluster.engaged(hire.hand)] = (hire, "engage", 0)
        if self._waiting != (not places):
            self._waiting = not places
            if self._waiting:
                log.warning("no room for workers", cluster=self._cluster.name, detail="it waits for nodes")
        not_come = [hire for hire in self._roster.hires.values() if not hire.node]
        too_many = max(0, have - target)
        return [(hire, "") for hire in not_come[:too_many]]

    def hear(self, answer: Hashable) -> tuple[Hire, str] | None:
        """A worker on its way to work has answered.

        Args:
            answer: One of ``asked``.

        Returns:
            The worker and a reason, if it has to go.

        Raises:
            HubhoundError: No worker can begin.
        """
        hire, what, number = self.asked.pop(answer)
        try:
            reply = self._cluster.take(answer)
        except LostError as lost:
            return hire, lost.detail
        if isinstance(reply, Unfit):
            return hire, reply.detail
        match what:
            case "engage" | "arrive":
                if isinstance(reply, Present):
                    self._arrived(hire, reply)
            case "unpack":
                self._supply(hire, number + 1)
            case "begin":
                self._begun(hire)
            case _:
                return hire, "it has ended"
        return None

    def lose(self, hire: Hire, detail: str) -> None:
        """A worker is off the roster.

        Args:
            hire: Who.
            detail: Why, for a person; "" for one that has never come.

        Raises:
            HubhoundError: No worker can begin.
        """
        del self._roster.hires[hire.hand]
        for answer in [answer for answer, entry in self.asked.items() if entry[0] is hire]:
            del self.asked[answer]
        self._cluster.dismiss(hire.hand)
        self._due = 0.0
        if self._supplied.get(hire.node) is hire:
            del self._supplied[hire.node]
            self._call(hire.node)
        if not detail:
            return
        log.warning("worker lost", node=hire.host or None, detail=detail, workers=len(self._roster.able))
        if hire.able:
            return
        self._failures += 1
        self._hire_after = self._clock() + min(LONGEST_S, 2.0 ** min(self._failures - 1, 10))
        if not self._ever_able and self._failures >= FRUITLESS:
            raise HubhoundError(f"no worker on {self._cluster.name} can begin: {detail}")

    def dismiss_all(self) -> None:
        """Lets all workers tidy up and go."""
        hires = list(self._roster.hires.values())
        farewells = {self._cluster.ask(hire.hand, "close") for hire in hires if hire.node}
        deadline = time.monotonic() + _FAREWELL_S
        while farewells and (left_s := deadline - time.monotonic()) > 0:
            farewells -= set(self._cluster.wait(list(farewells), left_s))
        for hire in hires:
            self._cluster.dismiss(hire.hand)
        self._roster.hires.clear()
        self.asked.clear()

    def _arrived(self, hire: Hire, present: Present) -> None:
        hire.node, hire.host = present.node, present.host
        if present.has_images:
            self._ask(hire, "begin")
        elif hire.node in self._supplied:
            self._patient.setdefault(hire.node, []).append(hire)
        else:
            self._supplied[hire.node] = hire
            self._supply(hire, 0)

    def _supply(self, hire: Hire, number: int) -> None:
        if self._shared is None:
            self._shared = [self._cluster.share(piece) for piece in self._pieces()]
        if number == len(self._shared):
            del self._supplied[hire.node]
            self._ask(hire, "begin")
            self._call(hire.node)
            return
        answer = self._cluster.ask(
            hire.hand, "unpack", self._shared[number], number == 0, number == len(self._shared) - 1
        )
        self.asked[answer] = (hire, "unpack", number)

    def _call(self, node: str) -> None:
        """Those who have waited for another one's images look for them again."""
        for hire in self._patient.pop(node, []):
            if hire.hand in self._roster.hires:
                self._ask(hire, "arrive")

    def _begun(self, hire: Hire) -> None:
        hire.able = self._ever_able = True
        self._failures = 0
        self._hire_after = 0.0
        self._ask(hire, "stay")
        log.event("worker joined", node=hire.host, workers=len(self._roster.able))

    def _ask(self, hire: Hire, what: str) -> None:
        self.asked[self._cluster.ask(hire.hand, what)] = (hire, what, 0)
