"""The crew of a cluster: one thread here gives models to workers there, and hears what becomes of them.

::

    desk --claim--> look --(is it a copy?)--> bring --> ready --> probe --> answered --> hand over --> desk

Each arrow after the first is a question to one worker; a worker fetches some models while it probes one. What a worker
has in hand when it is lost goes back to the journal.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, cast

from engine.errors import ModelFailedError, Reason
from indexers.crawl import log
from indexers.crawl.desk import IDLE_S, Desk, Returned, Troubled
from indexers.crawl.fetching import Fetched, KnownWeights, known_weights
from indexers.crawl.fleet.cluster import Cluster, LostError
from indexers.crawl.fleet.errands import FETCHING, Errand, Hire, Key, Roster, Stage, key_of
from indexers.crawl.fleet.orders import Answered, Here, Seen, Trouble, Unfit
from indexers.crawl.fleet.staff import Staff
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.messages import ProfileJob
from indexers.crawl.records import Probed, Profiled
from indexers.crawl.stages import InProcess
from indexers.crawl.watch import Watch

_TICK_S = 0.1
AT_ONCE = 4
"""Answers on the way or on the desk."""

_UNDER_WAY = (Stage.PROBED, Stage.ANSWERED, Stage.HANDED_OVER)


class FleetCrew:
    """See `indexers.crawl.crew.Crew`.

    Args:
        desk: Where models come from.
        journal: Of the crawl.
        cluster: Where the workers are.
        staff: Hires them.
        roster: Of the workers.
        watch: Counts what happens.
        job: What a fetched model is asked, with paths of images below the index; None for a classifier.
    """

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        cluster: Cluster,
        staff: Staff,
        roster: Roster,
        watch: Watch,
        job: Callable[[Fetched], ProfileJob | None],
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._cluster = cluster
        self._staff = staff
        self._roster = roster
        self._watch = watch
        self._job = job
        self._asked: dict[Hashable, tuple[Hire, Errand, str]] = {}
        self._kept: list[Claim] = []  # nobody has room for them where they should be
        self._on_the_way: dict[Key, int] = {}
        self._laid_down: deque[tuple[str, Claim]] = deque()
        self._files: dict[Key, Hire] = {}
        self._tidying: dict[Hashable, tuple[Hire, Key]] = {}
        self._used_bytes: dict[Hashable, int] = {}
        self._claim_after = 0.0
        self._told: set[str] = set()
        self._cut = threading.Event()
        self._thread = desk.thread("fleet", self._run)

    def start(self) -> None:
        """See `Crew`."""
        self._thread.start()

    @property
    def probing(self) -> bool:
        """See `Crew`."""
        return self._thread.is_alive()

    def cut(self, until: float) -> None:
        """See `Crew`."""
        self._cut.set()
        self._thread.join(max(0.0, until - time.monotonic()))

    @property
    def ready(self) -> int:
        """See `Crew`."""
        return sum(len(hire.in_stages(Stage.READY)) for hire in list(self._roster.hires.values()))

    @property
    def used_bytes(self) -> int:
        """See `Crew`; on all nodes, as far as workers have said."""
        return sum(list(self._used_bytes.values()))

    def forget(self, claim: Claim) -> None:
        """See `Crew`."""
        self._laid_down.append(("forget", claim))

    def drop(self, claim: Claim) -> None:
        """See `Crew`."""
        self._laid_down.append(("drop", claim))

    def leave(self, claim: Claim) -> None:
        """See `Crew`."""
        self._laid_down.append(("leave", claim))

    def close(self) -> None:
        """See `Crew`."""
        if self._thread.is_alive():  # it asks the cluster something and gets no answer
            self._cluster.close()
            return
        self._staff.dismiss_all()
        self._cluster.close()

    # --- the thread

    def _run(self) -> None:
        stop = self._desk.stop
        while not self._cut.is_set():
            self._lay_down()
            if not stop.is_set():
                for hire, detail in self._staff.look():
                    self._lose(hire, detail)
                self._give_out()
                self._start_probes()
            elif not any(errand.stage in _UNDER_WAY for errand in self._roster):
                return
            self._collect()
            waiting = [*self._asked, *self._tidying, *self._staff.asked]
            for answer in self._cluster.wait(waiting, _TICK_S) if waiting else ():
                self._hear(answer)
            if not waiting:
                self._cut.wait(_TICK_S)

    def _hear(self, answer: Hashable) -> None:
        if answer in self._tidying:
            self._hear_tidied(answer)
        elif answer in self._asked:
            hire, errand, what = self._asked.pop(answer)
            try:
                reply = self._cluster.take(answer)
            except LostError as lost:
                self._lose(hire, lost.detail)
                return
            if isinstance(reply, Unfit):
                self._lose(hire, reply.detail)
            elif isinstance(reply, Trouble):
                self._trouble(hire, errand, reply)
            else:
                self._went_well(hire, errand, what, reply)
        elif answer in self._staff.asked:
            lost_now = self._staff.hear(answer)
            if lost_now is not None:
                self._lose(*lost_now)

    def _went_well(self, hire: Hire, errand: Errand, what: str, reply: object) -> None:
        match what:
            case "look":
                self._seen(hire, errand, cast(Seen, reply))
            case "bring":
                self._brought(errand, cast(Here, reply))
            case "probe":
                self._answered(hire, errand, cast(Answered, reply))
            case _:
                self._handed_over(hire, errand, cast(Probed | Profiled, reply))

    def _ask(self, hire: Hire, errand: Errand, what: str, *arguments: Any) -> None:
        answer = self._cluster.ask(hire.hand, what, errand.claim, *arguments)
        self._asked[answer] = (hire, errand, what)

    # --- a model's way

    def _give_out(self) -> None:
        now = time.monotonic()
        busy = {key for _, key in self._tidying.values()}
        for claim in self._kept[:]:
            if key_of(claim) not in busy and self._give(claim):
                self._kept.remove(claim)
        while len(self._kept) < len(self._roster.hires) and self._roster.has_room():
            if self._desk.pause_s > 0 or now < self._claim_after:
                return
            taken = self._desk.claim()
            if taken is None:
                self._claim_after = now + IDLE_S
                return
            self._lay_down()  # what was laid down before it was put back
            busy = {key for _, key in self._tidying.values()}
            if key_of(taken) in busy or not self._give(taken):
                self._kept.append(taken)

    def _give(self, claim: Claim) -> bool:
        hire = self._roster.choose(claim)
        if hire is None:
            return False
        errand = Errand(claim)
        hire.errands[key_of(claim)] = errand
        self._files[key_of(claim)] = hire
        self._watch.started("fetch", claim.repo)
        self._ask(hire, errand, "look")
        return True

    def _seen(self, hire: Hire, errand: Errand, seen: Seen) -> None:
        claim = errand.claim
        errand.identity = seen.identity
        known = known_weights(self._journal, self._desk.in_hand, claim, seen.identity, seen.repository)
        if known is True and not self._desk.stop.is_set():
            errand.stage = Stage.FETCHED
            self._ask(hire, errand, "bring")
            return
        self._end(hire, errand)
        if isinstance(known, KnownWeights):
            self._desk.put(known)
        elif known is False:
            self.leave(claim)  # until it is known what becomes of the one with the same weights

    def _brought(self, errand: Errand, here: Here) -> None:
        claim, seconds = errand.claim, time.perf_counter() - errand.began
        self._journal.fetched(
            claim.repo, claim.revision, size_bytes=here.size_bytes, weights=errand.identity, seconds=seconds
        )
        if claim.folder is None:
            self._watch.fetched(here.size_bytes)
        self._watch.ended("fetch", claim.repo, seconds)
        errand.fetched = Fetched(claim, here.repository, errand.identity, here.size_bytes, seconds)
        errand.stage = Stage.READY

    def _start_probes(self) -> None:
        for hire in list(self._roster.hires.values()):
            errand = self._roster.next_probe(hire)
            if errand is None or errand.fetched is None:
                continue
            claim = errand.claim
            job = self._job(errand.fetched)
            self._journal.probing(claim.repo, claim.revision)
            errand.stage = Stage.PROBED
            errand.process = InProcess(self._watch, claim.repo)
            self._ask(hire, errand, "probe", None if job is None else job.model_dump_json())

    def _answered(self, hire: Hire, errand: Errand, answered: Answered) -> None:
        errand.stage = Stage.ANSWERED
        errand.size_bytes = answered.size_bytes
        for _ in range(answered.children - hire.children):
            self._watch.child_born()
        hire.children = answered.children
        layers = f"{answered.within} {answered.without}"
        if layers not in self._told:  # nodes can differ
            self._told.add(layers)
            without = ", ".join(answered.without) or None
            log.event("models run", within=", ".join(answered.within), without=without, node=hire.host)

    def _collect(self) -> None:
        """Has answers handed over, as many as there is room for: what waits with a worker takes no one else's."""
        for hire in list(self._roster.hires.values()):
            for errand in hire.in_stages(Stage.ANSWERED):
                sizes = self._on_the_way.values()
                full = len(sizes) >= AT_ONCE or sum(sizes) + errand.size_bytes > self._cluster.answers_bytes
                if sizes and full:
                    return
                self._on_the_way[key_of(errand.claim)] = errand.size_bytes
                errand.stage = Stage.HANDED_OVER
                self._ask(hire, errand, "hand_over")

    def _handed_over(self, hire: Hire, errand: Errand, found: Probed | Profiled) -> None:
        if errand.process is not None:
            errand.process.end(found.seconds)
        del hire.errands[key_of(errand.claim)]
        if errand.fetched is not None:
            self._desk.put((errand.fetched, found))

    def _trouble(self, hire: Hire, errand: Errand, trouble: Trouble) -> None:
        if trouble.retry_after_s:
            self._desk.pause(trouble.retry_after_s)
        self._end(hire, errand)
        self._desk.put(Troubled(errand.claim, trouble.error(errand.claim)))

    def _end(self, hire: Hire, errand: Errand) -> None:
        """Before it has answered."""
        hire.errands.pop(key_of(errand.claim), None)
        self._on_the_way.pop(key_of(errand.claim), None)
        if errand.stage in FETCHING:
            self._watch.ended("fetch", errand.claim.repo, time.perf_counter() - errand.began)
        elif errand.process is not None:
            errand.process.fail()

    # --- what is left behind

    def _lose(self, hire: Hire, detail: str) -> None:
        """A worker is gone, or has to go: what it had in hand is tried again, what waited was never begun."""
        if hire.hand not in self._roster.hires:
            return
        self._asked = {answer: entry for answer, entry in self._asked.items() if entry[0] is not hire}
        self._tidying = {answer: entry for answer, entry in self._tidying.items() if entry[0] is not hire}
        self._used_bytes.pop(hire.hand, None)
        self._staff.lose(hire, detail)
        for errand in list(hire.errands.values()):
            claim, stage = errand.claim, errand.stage
            self._end(hire, errand)
            if stage in FETCHING:
                self._desk.put(Troubled(claim, _lost(claim, Reason.NETWORK, f"fetched: {detail}")))
            elif stage is Stage.PROBED:
                self._roster.lost(errand, hire.node)
                self._desk.put(Troubled(claim, _lost(claim, Reason.CRASHED, f"probed: {detail}")))
            else:
                self._desk.put(Returned(claim))

    def _lay_down(self) -> None:
        while self._laid_down:
            what, claim = self._laid_down.popleft()
            key = key_of(claim)
            self._on_the_way.pop(key, None)
            hire = self._files.get(key) if what == "leave" else self._files.pop(key, None)
            if what != "leave":
                self._roster.settled(claim)
            if hire is not None and hire.hand in self._roster.hires and key not in hire.errands:
                self._tidying[self._cluster.ask(hire.hand, what, claim)] = (hire, key)

    def _hear_tidied(self, answer: Hashable) -> None:
        hire, _ = self._tidying.pop(answer)
        try:
            reply = self._cluster.take(answer)
        except LostError as lost:
            self._lose(hire, lost.detail)
            return
        if isinstance(reply, int):
            self._used_bytes[hire.hand] = reply


def _lost(claim: Claim, reason: Reason, detail: str) -> ModelFailedError:
    return ModelFailedError(reason, f"its worker was lost while it was {detail}", claim.repo, claim.revision)
