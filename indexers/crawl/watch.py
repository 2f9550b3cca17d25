"""What a crawl does, counted: as many numbers after weeks as after a minute."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate

from indexers.crawl.standing import BUCKETS_S, FOUND, GAUGES, STAGES, InHand, Snapshot, StageTime

SLOT_S = 10.0
SLOTS = 60
"""The recent rates are of the last 60 slots of 10 s, the current one included: of the last 590 to 600 seconds."""

OTHER = "other"
"""What reasons beyond the ``MAX_REASONS``-th are counted under, so that a stranger's text cannot fill the memory."""

MAX_REASONS = 100
_MAX_TEXT = 300
_MAX_IN_HAND = 1000
_SHORTEST_S = 1.0  # the first blink of a run makes no rate of thousands a minute

_MODELS, _SETTLED, _OUTPUTS, _BYTES = range(4)
_STAGE_COLUMNS = 4  # from here on: seconds and count of each stage
_COLUMNS = _STAGE_COLUMNS + 2 * len(STAGES)


class Watch:
    """Counts what a crawl does; cheap, and safe to call from every thread and from a signal handler.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # of the kind that a signal handler of its holder can take
        self._began = clock()
        self._recent = _Recent()
        self._new = self._known = self._filtered = 0
        self._pass_entries = 0
        self._pass_total: int | None = None
        self._stored = self._copies = self._outputs = self._gone = self._children = self._bytes = 0
        self._found = dict.fromkeys(FOUND, 0)
        self._refused: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._retried: dict[str, int] = {}
        self._retry_wait_s = 0.0
        self._troubles = 0
        self._trouble: str | None = None
        self._stored_at: float | None = None
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._buckets = {stage: [0] * (len(BUCKETS_S) + 1) for stage in STAGES}
        self._in_hand: dict[tuple[str, str], float] = {}
        self._gauges: dict[str, float] = {}

    def listing_began(self, entries: int = 0) -> None:
        """A pass over the source begins, or goes on where an earlier run left it.

        Args:
            entries: That it brought before.
        """
        with self._lock:
            self._pass_entries, self._pass_total = entries, None

    def listing_ended(self) -> None:
        """The pass has brought everything: from now on the total is known."""
        with self._lock:
            self._pass_total = self._pass_entries

    def listed(self, new: int, known: int, refused: int, total: int | None) -> None:
        """A page came in.

        Args:
            new: Revisions not seen before.
            known: Revisions seen before.
            refused: Entries that a filter refused; ``refused`` is not called for them.
            total: Entries of the whole pass, those of earlier pages and runs included; None while not known.
        """
        with self._lock:
            self._new += new
            self._known += known
            self._filtered += refused
            self._pass_entries += new + known + refused
            if total is not None:
                self._pass_total = total
            self._trouble = None

    def listing_trouble(self, detail: str) -> None:
        """A page did not come and will be asked for again.

        Args:
            detail: One line for a person.
        """
        with self._lock:
            self._troubles += 1
            self._trouble = detail[:_MAX_TEXT]

    def started(self, stage: str, repo: str) -> None:
        """A stage has begun with a model.

        Args:
            stage: One of ``STAGES``.
            repo: Its id.

        Raises:
            ValueError: There is no such stage.
        """
        _check(stage, STAGES)
        with self._lock:
            self._in_hand[(stage, repo[:_MAX_TEXT])] = self._clock()
            while len(self._in_hand) > _MAX_IN_HAND:
                self._in_hand.pop(next(iter(self._in_hand)))

    def ended(self, stage: str, repo: str, seconds: float) -> None:
        """A stage is through with a model, however that ended.

        Args:
            stage: One of ``STAGES``.
            repo: Its id.
            seconds: What it took, without waiting for a turn.

        Raises:
            ValueError: There is no such stage.
        """
        _check(stage, STAGES)
        with self._lock:
            self._in_hand.pop((stage, repo[:_MAX_TEXT]), None)
            self._seconds[stage] += seconds
            self._buckets[stage][bisect_left(BUCKETS_S, seconds)] += 1
            row = self._recent.row(self._elapsed())
            column = _STAGE_COLUMNS + 2 * STAGES.index(stage)
            row[column] += seconds
            row[column + 1] += 1

    def dropped(self, stage: str, repo: str) -> None:
        """A stage no longer has a model in hand, and took no time that would count; harmless if it had not.

        Args:
            stage: One of ``STAGES``.
            repo: Its id.
        """
        with self._lock:
            self._in_hand.pop((stage, repo[:_MAX_TEXT]), None)

    def fetched(self, size_bytes: int) -> None:
        """Bytes were downloaded."""
        with self._lock:
            self._bytes += size_bytes
            self._recent.row(self._elapsed())[_BYTES] += size_bytes

    def stored(self, outputs: int, copy: bool) -> None:
        """A model is in the index.

        Args:
            outputs: That it has.
            copy: It was linked to a model with the same weights, so that its outputs were not written again.
        """
        with self._lock:
            elapsed = self._elapsed()
            row = self._recent.row(elapsed)
            row[_MODELS] += 1
            row[_SETTLED] += 1
            self._stored_at = elapsed
            if copy:
                self._copies += 1
            else:
                self._stored += 1
                self._outputs += outputs
                row[_OUTPUTS] += outputs

    def found(self, counts: Mapping[str, int]) -> None:
        """Models were found in the index, and nothing has to be done about them.

        Args:
            counts: By what the index says, of ``FOUND``.

        Raises:
            ValueError: It can say no such thing.
        """
        with self._lock:
            for name, count in counts.items():
                _check(name, FOUND)
                self._found[name] += count
                self._recent.row(self._elapsed())[_SETTLED] += count

    def refused(self, reason: str) -> None:
        """A model that was listed will not be tried (again)."""
        self._settle(self._refused, reason)

    def failed(self, reason: str) -> None:
        """A model failed for good."""
        self._settle(self._failed, reason)

    def retried(self, reason: str, wait_s: float) -> None:
        """A model failed in a way that can pass and will be tried again.

        Args:
            reason: The kind of failure.
            wait_s: Seconds until then.
        """
        with self._lock:
            _count(self._retried, reason)
            self._retry_wait_s += wait_s

    def gone(self) -> None:
        """A model has left the source."""
        with self._lock:
            self._gone += 1

    def child_born(self) -> None:
        """A child process was started."""
        with self._lock:
            self._children += 1

    def gauge(self, name: str, value: float) -> None:
        """Remembers a level.

        Args:
            name: One of ``GAUGES``.
            value: As measured just now.

        Raises:
            ValueError: There is no such level.
        """
        _check(name, GAUGES)
        with self._lock:
            self._gauges[name] = value

    def now(self) -> Snapshot:
        """How the crawl stands, all of it at one moment."""
        with self._lock:
            clock = self._clock()
            elapsed = clock - self._began
            sums, span_s = self._recent.sums(elapsed)
            whole_s = max(elapsed, _SHORTEST_S)
            stored = self._stored + self._copies
            settled = stored + sum(sum(some.values()) for some in (self._found, self._refused, self._failed))
            remaining = self._remaining()
            left = remaining * span_s / sums[_SETTLED] if remaining and sums[_SETTLED] else None
            in_hand = sorted(self._in_hand.items(), key=lambda item: item[1])
            return Snapshot(
                uptime_s=elapsed,
                listed=self._new + self._known + self._filtered,
                new=self._new,
                known=self._known,
                filtered=self._filtered,
                stored=self._stored,
                copies=self._copies,
                found=dict(self._found),
                outputs=self._outputs,
                refused=dict(self._refused),
                failed=dict(self._failed),
                retried=dict(self._retried),
                retry_wait_s=self._retry_wait_s,
                gone=self._gone,
                listing_troubles=self._troubles,
                listing_trouble=self._trouble,
                bytes_fetched=self._bytes,
                children=self._children,
                models_per_min=60 * sums[_MODELS] / span_s,
                outputs_per_min=60 * sums[_OUTPUTS] / span_s,
                bytes_per_s=sums[_BYTES] / span_s,
                models_per_min_overall=60 * stored / whole_s,
                outputs_per_min_overall=60 * self._outputs / whole_s,
                stages={stage: self._stage(stage, sums) for stage in STAGES},
                in_hand=tuple(InHand(stage, repo, clock - since) for (stage, repo), since in in_hand),
                gauges=dict(self._gauges),
                remaining=remaining,
                share_done=None if remaining is None or not settled + remaining else settled / (settled + remaining),
                seconds_left=0.0 if remaining == 0 else left,
                since_stored_s=None if self._stored_at is None else elapsed - self._stored_at,
            )

    def _settle(self, counts: dict[str, int], reason: str) -> None:
        with self._lock:
            _count(counts, reason)
            self._recent.row(self._elapsed())[_SETTLED] += 1

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _stage(self, stage: str, sums: list[float]) -> StageTime:
        column = _STAGE_COLUMNS + 2 * STAGES.index(stage)
        recent = sums[column] / sums[column + 1] if sums[column + 1] else None
        buckets = tuple(accumulate(self._buckets[stage]))
        return StageTime(buckets[-1], self._seconds[stage], recent, buckets)

    def _remaining(self) -> int | None:
        """Models that wait or are in hand, and those that the rest of the listing will bring at the rate it has."""
        if self._pass_total is None:
            return None
        to_come = max(0, self._pass_total - self._pass_entries)
        listed = self._new + self._known + self._filtered
        share_new = self._new / listed if listed else 1.0
        models = {repo for stage, repo in self._in_hand if stage != "list"}
        return round(to_come * share_new) + int(self._gauges.get("queue", 0)) + len(models)


class _Recent:
    """Sums over the last ``SLOTS`` slots of ``SLOT_S`` seconds: a ring of rows, each the sums of one slot."""

    def __init__(self) -> None:
        self._rows = [[0.0] * _COLUMNS for _ in range(SLOTS)]
        self._last = 0

    def row(self, elapsed_s: float) -> list[float]:
        """The sums of the slot that a moment falls into; slots that have passed out of the ring are forgotten."""
        slot = max(int(elapsed_s // SLOT_S), self._last)
        for passed in range(max(self._last + 1, slot - SLOTS + 1), slot + 1):
            self._rows[passed % SLOTS] = [0.0] * _COLUMNS
        self._last = slot
        return self._rows[slot % SLOTS]

    def sums(self, elapsed_s: float) -> tuple[list[float], float]:
        """Sums of all columns, and the seconds that they are of."""
        self.row(elapsed_s)
        oldest_s = max(0, self._last - SLOTS + 1) * SLOT_S
        return [sum(column) for column in zip(*self._rows, strict=True)], max(elapsed_s - oldest_s, _SHORTEST_S)


def _check(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"{name!r} is not one of {', '.join(names)}")


def _count(counts: dict[str, int], reason: str) -> None:
    name = str(reason)[:_MAX_TEXT]
    if name not in counts:
        # Half a surrogate pair could not be written as UTF-8 by whoever reports it.
        name = name.encode("utf-8", "backslashreplace").decode() if len(counts) < MAX_REASONS else OTHER
    counts[name] = counts.get(name, 0) + 1
