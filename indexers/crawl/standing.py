"""How a crawl stands at one moment: what it has done, what it has in hand and how fast it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("list", "fetch", "load", "decode", "probe", "store")
"""What the seconds of a crawl are spent on; ``list`` counts passes, the others models."""

GAUGES = ("queue", "disk_bytes", "memory_bytes", "fds")
"""Levels that the daemon measures: models that wait (listed, waiting for another try, or fetched and not yet probed),
bytes of the downloads on disk, resident bytes of the daemon, its open file descriptors."""

FOUND = ("stored", "copies", "refused", "failed")
"""What an index can say of a model that was listed."""

BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper edges in seconds by which the times of a stage are counted; a last bucket has no edge."""


@dataclass(frozen=True)
class StageTime:
    """What one stage took.

    Attributes:
        count: How often it ended.
        seconds: In all.
        recent_mean_s: Mean over the last ten minutes, None where it did not end in them.
        buckets: How often it took at most the ``BUCKETS_S``, cumulative; the last entry is ``count``.
    """

    count: int
    seconds: float
    recent_mean_s: float | None
    buckets: tuple[int, ...]

    @property
    def mean_s(self) -> float | None:
        """Mean over the whole run, None where it never ended."""
        return self.seconds / self.count if self.count else None


@dataclass(frozen=True)
class InHand:
    """A model that a stage is at work on.

    Attributes:
        stage: One of ``STAGES``.
        repo: Its id; in ``list`` the name of the source.
        seconds: Since when.
    """

    stage: str
    repo: str
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """How a crawl stands at one moment; everything counts from the start of the run.

    Attributes:
        uptime_s: Seconds since the start of the run.
        listed: Entries that listings brought: ``new + known + filtered``.
        new: Of these, revisions that had not been seen before.
        known: Of these, revisions that had been seen.
        filtered: Of these, refused by a filter before anything was fetched.
        stored: Models that were probed and stored.
        copies: Models that were linked to one with the same weights.
        found: Models that the index was found to hold, or to say why not, so that nothing of them was fetched: by what
            it says, each of ``FOUND``. They are in none of the other counts.
        outputs: Of the models stored; copies add none.
        refused: Models refused after they were listed, by reason.
        failed: Models that failed for good, by reason.
        retried: Tries that failed and will be made again, by reason.
        retry_wait_s: Seconds that those tries were put off by, in all.
        gone: Models that left the source.
        listing_troubles: How often a listing had to be asked again.
        listing_trouble: The latest trouble, None once a page has come in since.
        bytes_fetched: Bytes downloaded.
        children: Child processes started.
        models_per_min: Models that came into the index (copies too) per minute of the last ten.
        outputs_per_min: Outputs stored per minute of the last ten.
        bytes_per_s: Bytes fetched per second of the last ten minutes.
        models_per_min_overall: As ``models_per_min``, over the whole run.
        outputs_per_min_overall: As ``outputs_per_min``, over the whole run.
        stages: Times per stage, every one of ``STAGES``.
        in_hand: What the stages are at work on, the longest first.
        gauges: Levels as last measured; those never measured are absent.
        remaining: Models still to come to an end, as far as can be told; None while the total is not known.
        share_done: Of this run's models, 0 to 1; None while the total is not known or where there are none.
        seconds_left: At the recent rate at which models come to an end, whatever the end; None where not known.
        since_stored_s: Seconds since a model came into the index, None where none has.
    """

    uptime_s: float
    listed: int
    new: int
    known: int
    filtered: int
    stored: int
    copies: int
    found: Mapping[str, int]
    outputs: int
    refused: Mapping[str, int]
    failed: Mapping[str, int]
    retried: Mapping[str, int]
    retry_wait_s: float
    gone: int
    listing_troubles: int
    listing_trouble: str | None
    bytes_fetched: int
    children: int
    models_per_min: float
    outputs_per_min: float
    bytes_per_s: float
    models_per_min_overall: float
    outputs_per_min_overall: float
    stages: Mapping[str, StageTime]
    in_hand: tuple[InHand, ...]
    gauges: Mapping[str, float]
    remaining: int | None
    share_done: float | None
    seconds_left: float | None
    since_stored_s: float | None

    @property
    def queue(self) -> int | None:
        """Models that wait, None before that was measured."""
        return int(self.gauges["queue"]) if "queue" in self.gauges else None

    @property
    def settled(self) -> int:
        """Models that came to an end in this run: stored, copies, found in the index, refused or failed."""
        ended = self.stored + self.copies + sum(self.refused.values()) + sum(self.failed.values())
        return ended + sum(self.found.values())

    def counts(self) -> dict[str, int]:
        """The counts that every report of a crawl gives, by name."""
        return {
            "listed": self.listed,
            "new": self.new,
            "known": self.known,
            "filtered": self.filtered,
            "stored": self.stored,
            "copies": self.copies,
            "found": sum(self.found.values()),
            "outputs": self.outputs,
            "refused": sum(self.refused.values()),
            "failed": sum(self.failed.values()),
            "retried": sum(self.retried.values()),
            "gone": self.gone,
            "bytes_fetched": self.bytes_fetched,
            "children": self.children,
        }

    def rates(self) -> dict[str, float | None]:
        """The rates that every report of a crawl gives, by name."""
        return {
            "models_per_min": round(self.models_per_min, 3),
            "outputs_per_min": round(self.outputs_per_min, 3),
            "bytes_per_s": round(self.bytes_per_s, 1),
            "models_per_min_overall": round(self.models_per_min_overall, 3),
            "outputs_per_min_overall": round(self.outputs_per_min_overall, 3),
            "share_done": None if self.share_done is None else round(self.share_done, 4),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
        }
