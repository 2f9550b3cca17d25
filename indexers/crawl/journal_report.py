"""The questions that people ask a journal; all of them only read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from indexers.crawl.journal_schema import STAGES, Database
from indexers.crawl.records import State

_STAGE_COLUMNS = ", ".join(f"{stage}_s" for stage in STAGES)
_STAGE_MEANS = ", ".join(f"avg({stage}_s)" for stage in STAGES)
_TROUBLES = "state IN ('failed', 'refused') OR (state = 'listed' AND reason IS NOT NULL)"


@dataclass(frozen=True)
class Failure:
    """Revisions that failed, were refused, or wait after a failure, for one reason.

    Attributes:
        state: ``failed``, ``refused``, or ``listed`` for those that are tried again.
        reason: One of ``engine.errors.Reason``'s values.
        count: How many.
        repo: One of them.
        detail: What was found there.
    """

    state: State
    reason: str
    count: int
    repo: str
    detail: str | None


@dataclass(frozen=True)
class Rates:
    """How fast revisions were stored.

    Attributes:
        span_s: Time that it is over, in seconds.
        models: Stored in it.
        copies: How many of these are copies of others.
        outputs: Of those that are no copies.
        size_bytes: Fetched for them.
        models_per_min: All of them.
        outputs_per_min: Of those that are no copies.
        seconds: Mean by stage, None for a stage that none of them went through.
    """

    span_s: float
    models: int
    copies: int
    outputs: int
    size_bytes: int
    models_per_min: float
    outputs_per_min: float
    seconds: Mapping[str, float | None]


@dataclass(frozen=True)
class Queue:
    """What waits.

    Attributes:
        due: To be fetched now.
        waiting: For a next try later on.
        oldest_s: For how long the oldest of those that are due is, in seconds; None if none is.
        next_try_s: Until the first of those that wait is due, in seconds; None if none waits.
    """

    due: int
    waiting: int
    oldest_s: float | None
    next_try_s: float | None


@dataclass(frozen=True)
class Event:
    """One change of state.

    Attributes:
        at: Seconds since 1970.
        revision: Commit or content hash.
        state: That was entered.
        reason: Why, if there was one.
        detail: One line for a person.
        pid: Of the process that made it.
    """

    at: float
    revision: str
    state: State
    reason: str | None
    detail: str | None
    pid: int


@dataclass(frozen=True)
class Row:
    """What the journal knows about a revision.

    Attributes:
        revision: Commit or content hash.
        source: That listed it last.
        state: Now.
        in_hand: Whether a process is at it, or was when it was killed.
        reason: Of the state, if there is one.
        detail: One line for a person.
        attempts: Begun so far.
        next_try: When it is due, in seconds since 1970; 0 for at once.
        listed_at: When it was first listed, in seconds since 1970.
        changed_at: When its state changed last.
        size_bytes: Fetched, None before that.
        outputs: In the index, None before that.
        copy_of: The repository that it is a copy of.
        seconds: By stage, those that are known.
    """

    revision: str
    source: str
    state: State
    in_hand: bool
    reason: str | None
    detail: str | None
    attempts: int
    next_try: float
    listed_at: float
    changed_at: float
    size_bytes: int | None
    outputs: int | None
    copy_of: str | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class SourceState:
    """How far the listing of a source is.

    Attributes:
        name: Of the source.
        watermark: Largest ``modified`` up to which nothing was missed.
        last_full: When its last full pass was finished, in seconds since 1970.
        unfinished: The kind of the pass that is not finished, ``full`` or ``follow``; None if there is none.
        entries: That it has seen so far, 0 if there is none.
        started_at: When it was begun.
    """

    name: str
    watermark: str | None
    last_full: float | None
    unfinished: str | None
    entries: int
    started_at: float | None


class Questions:
    """A journal as far as it is read.

    Args:
        path: The journal's file.
        clock: Seconds since 1970.
        read_only: Whether nothing will be written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, read_only: bool = False) -> None:
        self._database = Database(path, read_only)
        self._clock = clock

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self._database.path

    def now(self) -> float:
        """Seconds since 1970, as the journal counts them."""
        return self._clock()

    def counts(self) -> dict[State, int]:
        """Revisions by state, every state named."""
        found = self._database.read("SELECT state, count(*) FROM revisions GROUP BY state")
        return dict.fromkeys(State, 0) | {State(state): count for state, count in found}

    def failures(self) -> list[Failure]:
        """What failed, was refused or is tried again, by state and reason, the most frequent first."""
        found = self._database.read(
            f"SELECT grouped.state, grouped.reason, n, repo, detail FROM "  # noqa: S608
            f"(SELECT state, reason, count(*) AS n, min(id) AS first FROM revisions WHERE {_TROUBLES} "
            "GROUP BY state, reason) AS grouped JOIN revisions ON revisions.id = first ORDER BY n DESC, 1, 2"
        )
        return [Failure(State(state), reason, count, repo, detail) for state, reason, count, repo, detail in found]

    def reasons(self) -> list[str]:
        """The reasons that ``retry`` can be given now, by name."""
        return sorted({failure.reason for failure in self.failures()})

    def rates(self, window_s: float | None = None) -> Rates:
        """How fast revisions were stored.

        Args:
            window_s: In the last so many seconds, or since the crawl's beginning if that is less; None for all of it.
        """
        begun = self._database.read("SELECT min(started_at) FROM passes")[0][0]
        now = self._clock()
        age_s = max(0.0, now - begun) if begun is not None else 0.0
        span_s = age_s if window_s is None else min(window_s, age_s)
        models, originals, outputs, size_bytes, *means = self._database.read(
            f"SELECT count(*), count(*) FILTER (WHERE copy_of IS NULL), sum(outputs) FILTER (WHERE copy_of IS NULL), "  # noqa: S608
            f"sum(size_bytes), {_STAGE_MEANS} FROM revisions WHERE stored_at IS NOT NULL AND stored_at > ?",
            (now - span_s if window_s is not None else -1.0,),
        )[0]
        per_min = 60 / span_s if span_s > 0 else 0.0
        outputs, size_bytes = outputs or 0, size_bytes or 0
        seconds = dict(zip(STAGES, means, strict=True))
        return Rates(
            span_s, models, models - originals, outputs, size_bytes, models * per_min, outputs * per_min, seconds
        )

    def queue(self) -> Queue:
        """What waits."""
        now = self._clock()
        # What was never tried is due at 0, and has waited since it was listed.
        listed = "FROM revisions INDEXED BY due WHERE state = 'listed' AND next_try"
        (new, since_new), (back, since_back), (waiting, first) = self._database.read(
            f"SELECT count(*), min(changed_at) {listed} = 0 UNION ALL "
            f"SELECT count(*), min(next_try) {listed} > 0 AND next_try <= ? UNION ALL "
            f"SELECT count(*), min(next_try) {listed} > ?",
            (now, now),
        )
        since = [moment for moment in (since_new, since_back) if moment is not None]
        oldest_s = max(0.0, now - min(since)) if since else None
        return Queue(new + back, waiting, oldest_s, first - now if first is not None else None)

    def history(self, repo: str) -> list[Event]:
        """Every change of state of a repository's revisions that is still remembered, the oldest first."""
        found = self._database.read(
            "SELECT at, revision, events.state, events.reason, events.detail, pid FROM revisions "
            "JOIN events ON events.row = revisions.id WHERE repo = ? ORDER BY events.id",
            (repo,),
        )
        return [Event(at, rev, State(state), reason, detail, pid) for at, rev, state, reason, detail, pid in found]

    def rows(self, repo: str) -> list[Row]:
        """What is known about a repository's revisions, the first listed first."""
        found = self._database.read(
            "SELECT revision, name, state, in_hand, reason, detail, attempts, next_try, listed_at, changed_at, "  # noqa: S608
            f"size_bytes, outputs, copy_of, {_STAGE_COLUMNS} FROM revisions JOIN sources ON sources.id = source "
            "WHERE repo = ? ORDER BY revisions.id",
            (repo,),
        )
        rows = []
        for found_row in found:
            revision, source, state, in_hand, reason, detail, attempts, next_try = found_row[:8]
            listed_at, changed_at, size_bytes, outputs, copy_of, *stages = found_row[8:]
            seconds = {stage: value for stage, value in zip(STAGES, stages, strict=True) if value is not None}
            times = (attempts, next_try, listed_at, changed_at)
            facts = (size_bytes, outputs, copy_of, seconds)
            rows.append(Row(revision, source, State(state), bool(in_hand), reason, detail, *times, *facts))
        return rows

    def sources(self) -> list[SourceState]:
        """Every source that was ever listed, by name."""
        found = self._database.read(
            "SELECT name, watermark, (SELECT max(finished_at) FROM passes WHERE source = sources.id AND full), "
            "full, entries, started_at FROM sources LEFT JOIN passes ON number = (SELECT max(number) FROM passes "
            "WHERE source = sources.id AND finished_at IS NULL) ORDER BY name"
        )
        return [
            SourceState(
                name, watermark, last, None if full is None else "full" if full else "follow", entries or 0, started
            )
            for name, watermark, last, full, entries, started in found
        ]
