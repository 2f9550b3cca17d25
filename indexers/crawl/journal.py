"""What is known about every revision that a crawl has met, and what is due: a SQLite file, see docs/journal.md.

A change of state is one transaction, written after the fact it names. Killing the process loses none that was
acknowledged; what it had in hand is found with ``recover``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import Reason
from indexers.crawl.backoff import Backoff
from indexers.crawl.journal_adoption import Adoptions
from indexers.crawl.journal_moves import (
    CLEARED,
    advance,
    end,
    enter,
    find,
    finite,
    free_copies,
    measured,
    put_back,
    stage_columns,
    store,
    whole,
)
from indexers.crawl.journal_passes import LISTED_COLUMNS, PageResult, Pass, listed_of
from indexers.crawl.records import UNDER_WAY, Listed, State

__all__ = ["FILE", "Claim", "Journal", "PageResult", "Pass"]

FILE = Path("crawl") / "journal.sqlite"
"""Where the journal lies in an index's folder."""

_PRUNE_BATCH = 20_000


@dataclass(frozen=True)
class Claim:
    """A revision that the caller has in hand now, and nobody else.

    Attributes:
        repo: Id, ``org/name``.
        revision: Commit or content hash.
        folder: Where it lies, None for a model on the Hub.
        attempts: This one included.
        listed: What the listing said.
    """

    repo: str
    revision: str
    folder: Path | None
    attempts: int
    listed: Listed


class Journal(Adoptions):
    """The journal of a crawl; safe to use from several threads, and from several processes at once.

    Args:
        path: The file; made unless ``read_only``.
        clock: Seconds since 1970.
        read_only: Nothing will be written.
        backoff: When what failed and may pass is tried again.
        rng: Where the jitter comes from.

    Raises:
        InputError: If it is to be read and is not there, or was written by a newer version.
        IndexDamagedError: If it is damaged, or no journal.
        StoreError: If it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(path, clock=clock, read_only=read_only)
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()  # noqa: S311

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    # -- work ---------------------------------------------------------------------------------------------------------

    def claim(self, looked: Container[int] | None = None) -> Claim | None:
        """Takes the next revision that is due, None if none is.

        First what was tried before or put back, the longest due first, then what was not, the last modified first; no
        revision of a repository of which another one is in hand.

        Args:
            looked: Rows (``untried``) that the index does not hold: of what was never tried only these are taken, and
                nothing where the next is none of them. None for all.
        """
        with self._database.transaction() as connection:
            now = self._clock()
            found = None
            for due in ("next_try > 0 AND next_try <= ?", "next_try = 0 AND ? >= 0"):
                found = connection.execute(
                    f"SELECT id, attempts, {LISTED_COLUMNS} FROM revisions AS r INDEXED BY due "  # noqa: S608
                    f"WHERE state = 'listed' AND {due} "
                    "AND NOT EXISTS (SELECT 1 FROM revisions AS h WHERE h.repo = r.repo AND h.in_hand = 1) "
                    "ORDER BY next_try, modified DESC, id LIMIT 1",
                    (now,),
                ).fetchone()
                if found is not None:
                    break
            if found is None:
                return None
            row, attempts, *columns = found
            if looked is not None and due.startswith("next_try = 0") and row not in looked:
                return None
            enter(connection, now, row, State.FETCHING, values={"in_hand": 1, "attempts": attempts + 1})
        listed = listed_of(columns)
        return Claim(listed.repo, listed.revision, listed.folder, attempts + 1, listed)

    def fetched(self, repo: str, revision: str, *, size_bytes: int, weights: str | None, seconds: float) -> bool:
        """Its files are here.

        Args:
            repo: Id.
            revision: Commit or content hash.
            size_bytes: Of what was fetched.
            weights: Names weights and config, for duplicates; None where it is not known.
            seconds: That it took.

        Returns:
            False if it was found gone meanwhile; say how it ended all the same.

        Raises:
            ValueError: If it is not being fetched, or a number is none.
        """
        values = {"size_bytes": whole(size_bytes, 0), "weights": weights, "fetch_s": measured(seconds)}
        with self._database.transaction() as connection:
            return advance(connection, self._clock(), find(connection, repo, revision), State.FETCHED, values)

    def probing(self, repo: str, revision: str) -> bool:
        """It is being loaded and probed; returns as ``fetched`` does.

        Raises:
            ValueError: If it has not been fetched.
        """
        with self._database.transaction() as connection:
            return advance(connection, self._clock(), find(connection, repo, revision), State.PROBING, {})

    def stored(
        self,
        repo: str,
        revision: str,
        *,
        outputs: int,
        copy_of: str | None = None,
        sketch: tuple[float, float] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> list[str]:
        """It is in the index now; other stored revisions of its repository are gone with that.

        Args:
            repo: Id.
            revision: Commit or content hash.
            outputs: How many the index has of it (of its original, for a copy), at least 1.
            copy_of: The repository that it is a copy of, None if it is stored itself.
            sketch: Two numbers that copies share nearly, for ``similar``.
            seconds: By stage, those of ``STAGES`` that it took.

        Returns:
            Repositories listed again, to be probed themselves: copies of a former revision with other weights; or this
            one, if its original is gone meanwhile.

        Raises:
            ValueError: If it was not in hand, or a number is none.
        """
        if copy_of == repo:
            raise ValueError(f"{repo} cannot be a copy of itself")
        values: dict[str, object] = {"outputs": whole(outputs, 1), "copy_of": copy_of}
        values |= stage_columns(seconds or {})
        if sketch is not None:
            values |= {"sketch_a": finite(sketch[0]), "sketch_b": finite(sketch[1])}
        with self._database.transaction() as connection:
            row = find(connection, repo, revision)
            row.check_in_hand(State.STORED)
            return store(connection, self._clock(), row, values)

    def refused(self, repo: str, revision: str, reason: str, detail: str) -> None:
        """We decline it, for good.

        Raises:
            ValueError: If it was not in hand.
        """
        with self._database.transaction() as connection:
            row = find(connection, repo, revision)
            row.check_in_hand(State.REFUSED)
            end(connection, self._clock(), row, State.REFUSED, reason, detail)

    def failed(
        self,
        repo: str,
        revision: str,
        reason: str,
        detail: str,
        *,
        passing: bool,
        retry_after_s: float | None = None,
    ) -> float | None:
        """It was tried and did not work.

        Args:
            repo: Id.
            revision: Commit or content hash.
            reason: One of ``Reason``'s values.
            detail: One line for a person.
            passing: Whether another try may work; then it is listed again unless it had all its attempts.
            retry_after_s: No earlier than in so many seconds, as the server asked.

        Returns:
            When it is tried again, in seconds since 1970; None if it is not.

        Raises:
            ValueError: If it was not in hand.
        """
        with self._database.transaction() as connection:
            row = find(connection, repo, revision)
            row.check_in_hand(State.FAILED)
            now = self._clock()
            if not passing or row.attempts >= self._backoff.attempts:
                end(connection, now, row, State.FAILED, reason, detail)
                return None
            next_try = now + self._backoff.wait_s(max(1, row.attempts), retry_after_s, self._rng)
            return next_try if put_back(connection, now, row, row.attempts, reason, detail, next_try) else None

    @property
    def attempts(self) -> int:
        """After as many attempts a failure is for good."""
        return self._backoff.attempts

    def put_back(self, limit: int = 10_000) -> list[tuple[str, str]]:
        """Revisions (repo, revision) that were begun and wait for another try, the longest due first."""
        rows = self._database.read(
            "SELECT repo, revision FROM revisions WHERE state = 'listed' AND next_try > 0 ORDER BY next_try LIMIT ?",
            (limit,),
        )
        return [(repo, revision) for repo, revision in rows]

    def gone(self, repo: str, reason: str, detail: str, *, keep_copies: bool = False) -> list[str]:
        """The repository is not there any more: all its revisions are gone.

        Whoever has one in hand says how it ended nevertheless; if that is ``stored`` then it is stored, for it is in
        the index, until the next full pass misses it.

        Args:
            repo: Id.
            reason: One of ``Reason``'s values.
            detail: One line for a person.
            keep_copies: Its copies stay what they are, for the index keeps it.

        Returns:
            Repositories that were stored as copies of it and are listed again, to be probed themselves.
        """
        with self._database.transaction() as connection:
            now = self._clock()
            rows = connection.execute(
                "SELECT id FROM revisions WHERE repo = ? AND +state <> 'gone'", (repo,)
            ).fetchall()
            for (row,) in rows:
                enter(connection, now, row, State.GONE, reason, detail)
            return [] if keep_copies else free_copies(connection, now, repo)

    def release(self, repo: str, revision: str) -> None:
        """Puts back what was in hand; the attempt does not count.

        Raises:
            ValueError: If it was not in hand.
        """
        with self._database.transaction() as connection:
            row = find(connection, repo, revision)
            row.check_in_hand(State.LISTED)
            now = self._clock()
            put_back(connection, now, row, max(0, row.attempts - 1), None, "put back unfinished", now)

    def under_way(self) -> list[tuple[str, str, State]]:
        """What is in hand: repo, revision, state; the state of one found gone meanwhile is not among UNDER_WAY."""
        rows = self._database.read(
            "SELECT repo, revision, state FROM revisions INDEXED BY in_hand WHERE in_hand = 1 ORDER BY id"
        )
        return [(repo, revision, State(state)) for repo, revision, state in rows]

    def recover(self, held: Callable[[str, str], tuple[int, str | None] | None]) -> tuple[int, int]:
        """Sorts out what a process had in hand when it was killed; to be called while nothing is in hand.

        What the index holds becomes stored. The rest is listed again, due at once: with the attempt counted, unless
        it only lay waiting between stages; if it had all its attempts it failed, for it may be what ends the process.

        Args:
            held: (repo, revision) -> (outputs, repository that it is a copy of) if the index has it, else None.

        Returns:
            How many became stored, and how many did not.
        """
        found = [(repo, revision, held(repo, revision)) for repo, revision, _ in self.under_way()]
        found.sort(key=lambda row: row[2] is not None and row[2][1] is not None)  # originals before their copies
        stored = released = 0
        with self._database.transaction() as connection:
            now = self._clock()
            for repo, revision, there in found:
                row = find(connection, repo, revision)
                if there is not None:
                    outputs, copy_of = there
                    store(connection, now, row, {"outputs": whole(outputs, 1), "copy_of": copy_of})
                    stored += 1
                    continue
                released += 1
                attempts = row.attempts - (row.state is State.FETCHED)
                if row.state in UNDER_WAY and attempts >= self._backoff.attempts:
                    detail = f"the crawl ended {attempts} times while it was in hand, at last {row.state}"
                    end(connection, now, row, State.FAILED, Reason.CRASHED.value, detail)
                else:
                    put_back(connection, now, row, attempts, None, "the crawl was killed", now)
        return stored, released

    def retry(self, reason: str | None = None, repo: str | None = None) -> int:
        """Puts failed and refused revisions back, due at once with no attempt counted, and ends the wait of others.

        Args:
            reason: Only those with this reason; None for any.
            repo: Only those of this repository; None for all.

        Returns:
            How many.
        """
        with self._database.transaction() as connection:
            now = self._clock()
            which = "AND (? IS NULL OR reason = ?)"
            # The plus keeps SQLite from going through all that failed in search of one repository's.
            rows = connection.execute(
                f"SELECT id FROM revisions WHERE repo = ? AND (+state IN ('failed', 'refused') "  # noqa: S608
                f"OR (+state = 'listed' AND next_try > ?)) {which}"
                if repo is not None
                else f"SELECT id FROM revisions WHERE ? IS NULL AND (state IN ('failed', 'refused') "  # noqa: S608
                f"OR (state = 'listed' AND reason IS NOT NULL AND next_try > ?)) {which}",
                (repo, now, reason, reason),
            ).fetchall()
            for (row,) in rows:
                values = {**CLEARED, "attempts": 0, "next_try": now}
                enter(connection, now, row, State.LISTED, None, "put back by hand", values)
        return len(rows)

    def prune(self, older_than_s: float) -> int:
        """Forgets events from more than so many seconds ago, in small transactions; returns how many."""
        before, dropped, last = self._clock() - older_than_s, 0, 0
        top = self._database.read("SELECT max(id) FROM events")[0][0] or 0
        while last < top:
            with self._database.transaction() as connection:
                dropped += connection.execute(
                    "DELETE FROM events WHERE id > ? AND id <= ? AND at < ?", (last, last + _PRUNE_BATCH, before)
                ).rowcount
            last += _PRUNE_BATCH
        return dropped

    # -- duplicates ---------------------------------------------------------------------------------------------------

    def with_weights(self, key: str) -> tuple[str, str] | None:
        """The first revision (repo, revision) stored as an original with these weights, None if there is none."""
        rows = self._database.read(
            "SELECT repo, revision FROM revisions WHERE state = 'stored' AND copy_of IS NULL AND weights = ? "
            "ORDER BY stored_at, id LIMIT 1",
            (key,),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def similar(self, outputs: int, sketch: tuple[float, float], tolerance: float) -> list[tuple[str, str]]:
        """Revisions (repo, revision) stored as originals that may have the same responses, the oldest first.

        Args:
            outputs: As many they have.
            sketch: Two finite numbers.
            tolerance: Both numbers may differ by this times ``max(1, |number|)``.
        """
        (a, b), (room_a, room_b) = sketch, [tolerance * max(1.0, abs(finite(value))) for value in sketch]
        rows = self._database.read(
            "SELECT repo, revision FROM revisions WHERE state = 'stored' AND copy_of IS NULL AND sketch_a IS NOT NULL "
            "AND outputs = ? AND sketch_a BETWEEN ? AND ? AND sketch_b BETWEEN ? AND ? ORDER BY stored_at, id",
            (outputs, a - room_a, a + room_a, b - room_b, b + room_b),
        )
        return [(repo, revision) for repo, revision in rows]

    def copies_of(self, repo: str) -> list[str]:
        """Repositories stored as copies of this one, by name."""
        rows = self._database.read(
            "SELECT DISTINCT repo FROM revisions WHERE state = 'stored' AND copy_of = ? ORDER BY repo", (repo,)
        )
        return [row[0] for row in rows]
