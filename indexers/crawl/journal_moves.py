"""The changes of state that the journal knows, each within a transaction of its caller."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from indexers.crawl.journal_schema import STAGES
from indexers.crawl.records import UNDER_WAY, State

REPLACED = "replaced"
"""Reason of a revision that is gone because its repository has another one now."""

CLEARED: Mapping[str, None] = dict.fromkeys(
    ("size_bytes", "weights", "outputs", "copy_of", "sketch_a", "sketch_b", "stored_at", *(f"{s}_s" for s in STAGES))
)
"""The columns that an attempt fills, as they are before it."""

_DETAIL_LENGTH = 500
_BEFORE = {State.FETCHED: State.FETCHING, State.PROBING: State.FETCHED}


@dataclass(frozen=True)
class Row:
    """What decides how the state of a revision can change.

    Attributes:
        id: Of its row.
        repo: Id.
        revision: Commit or content hash.
        state: Now.
        in_hand: Whether somebody claimed it and has not said how it ended; it may have been found gone meanwhile.
        attempts: Begun so far.
    """

    id: int
    repo: str
    revision: str
    state: State
    in_hand: bool
    attempts: int

    def check_in_hand(self, after: State) -> None:
        """Raises ValueError unless somebody has it in hand, who wants it to become ``after``."""
        if not self.in_hand:
            raise ValueError(f"{self.repo}@{self.revision} is {self.state}, not in hand: it cannot become {after}")


def find(connection: sqlite3.Connection, repo: str, revision: str) -> Row:
    """The row of a revision.

    Raises:
        ValueError: If it was never listed.
    """
    found = connection.execute(
        "SELECT id, state, in_hand, attempts FROM revisions WHERE repo = ? AND revision = ?", (repo, revision)
    ).fetchone()
    if found is None:
        raise ValueError(f"{repo}@{revision} was never listed")
    return Row(found[0], repo, revision, State(found[1]), bool(found[2]), found[3])


def enter(
    connection: sqlite3.Connection,
    now: float,
    row: int,
    state: State,
    reason: str | None = None,
    detail: str | None = None,
    values: Mapping[str, object] | None = None,
) -> None:
    """Changes the state of one row and notes it among the events.

    Args:
        connection: Within a transaction.
        now: Seconds since 1970.
        row: Its ``id``.
        state: The new one.
        reason: Why.
        detail: One line for a person; cut to 500 characters.
        values: Further columns; names of columns, never a stranger's text.
    """
    detail = one_line(detail)
    columns = {"state": state.value, "reason": reason, "detail": detail, "changed_at": now, **(values or {})}
    changes = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE revisions SET {changes} WHERE id = ?", (*columns.values(), row))  # noqa: S608
    note_event(connection, now, row, state, reason, detail)


def note_event(
    connection: sqlite3.Connection, now: float, row: int, state: State, reason: str | None, detail: str | None
) -> None:
    """Notes that a row is in a state now."""
    connection.execute(
        "INSERT INTO events (at, row, state, reason, detail, pid) VALUES (?, ?, ?, ?, ?, ?)",
        (now, row, state.value, reason, detail, os.getpid()),
    )


def one_line(text: str | None) -> str | None:
    """A text as the journal keeps it: one line of at most 500 characters that UTF-8 can hold."""
    if text is None:
        return None
    return " ".join(text.split())[:_DETAIL_LENGTH].encode("utf-8", "replace").decode()


def advance(connection: sqlite3.Connection, now: float, row: Row, after: State, values: Mapping[str, object]) -> bool:
    """From one stage to the next; False, and nothing changes, if it was found gone while it was in hand.

    Raises:
        ValueError: If it is not in the stage before.
    """
    if row.in_hand and row.state not in UNDER_WAY:
        return False
    if row.state is not _BEFORE[after]:
        raise ValueError(f"{row.repo}@{row.revision} is {row.state} and cannot become {after}")
    enter(connection, now, row.id, after, values=values)
    return True


def store(connection: sqlite3.Connection, now: float, row: Row, values: Mapping[str, object]) -> list[str]:
    """It is in the index, and no other revision of its repository is; returns the copies that are listed again."""
    weights = connection.execute("SELECT weights FROM revisions WHERE id = ?", (row.id,)).fetchone()[0]
    # The plus keeps SQLite from going through all that is stored in search of one repository's.
    former = connection.execute(
        "SELECT id, weights FROM revisions WHERE repo = ? AND id <> ? AND +state = 'stored'", (row.repo, row.id)
    ).fetchall()
    enter(connection, now, row.id, State.STORED, values={**values, "in_hand": 0, "stored_at": now})
    for old, _ in former:
        enter(connection, now, old, State.GONE, REPLACED, f"by {row.revision}")
    again = []
    copy_of = values["copy_of"]
    # Copies stay where their original only moved on: the same weights, and still an original.
    if former and not (copy_of is None and weights is not None and all(other == weights for _, other in former)):
        again += free_copies(connection, now, row.repo)
    if not former:  # what was found in the index as its copy is the copy of a revision that was never listed here
        again += free_copies(connection, now, row.repo, "AND stored_at IS NULL")
    if isinstance(copy_of, str):
        states = connection.execute("SELECT DISTINCT state FROM revisions WHERE repo = ?", (copy_of,)).fetchall()
        if states and (State.STORED,) not in states:
            again += free_copies(connection, now, copy_of)
    return again


def end(connection: sqlite3.Connection, now: float, row: Row, state: State, reason: str, detail: str) -> None:
    """An attempt ends for good, unless the revision was found gone meanwhile."""
    if row.state in UNDER_WAY:
        enter(connection, now, row.id, state, reason, detail, {**CLEARED, "in_hand": 0})
        _make_way(connection, now, row)
    else:
        _lay_down(connection, row)


def put_back(
    connection: sqlite3.Connection,
    now: float,
    row: Row,
    attempts: int,
    reason: str | None,
    detail: str | None,
    next_try: float,
) -> bool:
    """Lists again what was in hand; False if it was found gone, or another revision listed, meanwhile."""
    if row.state not in UNDER_WAY:
        _lay_down(connection, row)
        return False
    values = {**CLEARED, "in_hand": 0, "attempts": attempts, "next_try": next_try}
    enter(connection, now, row.id, State.LISTED, reason, detail, values)
    return not _make_way(connection, now, row)


def free_copies(connection: sqlite3.Connection, now: float, repo: str, which: str = "") -> list[str]:
    """Lists again what is stored as copies of a repository, due at once; returns their repositories by name.

    Args:
        connection: Within a transaction.
        now: Seconds since 1970.
        repo: The original.
        which: Only those; a condition of SQL, never a stranger's text.
    """
    copies = connection.execute(
        f"SELECT id, repo FROM revisions WHERE +state = 'stored' AND copy_of = ? AND repo <> ? {which} "  # noqa: S608
        "ORDER BY repo",
        (repo, repo),
    ).fetchall()
    for row, _ in copies:
        values = {**CLEARED, "attempts": 0, "next_try": now}
        enter(connection, now, row, State.LISTED, None, f"was a copy of {repo}", values)
    return [name for _, name in copies]


def whole(value: int, least: int) -> int:
    """The number, at least so large; ValueError otherwise."""
    if value < least:
        raise ValueError(f"{value} where {least} is the least: a failed reading is no result")
    return int(value)


def measured(value: float) -> float:
    """The duration in seconds; ValueError if it is none."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} is no duration")
    return float(value)


def finite(value: float) -> float:
    """The number; ValueError if it is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{value} in a sketch: a failed reading is no result")
    return float(value)


def stage_columns(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage as columns; ValueError for what is no stage or no duration."""
    unknown = set(seconds) - set(STAGES)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no stages, there are {', '.join(STAGES)}")
    return {f"{stage}_s": measured(value) for stage, value in seconds.items()}


def _make_way(connection: sqlite3.Connection, now: float, row: Row) -> bool:
    """Whether a revision listed while this one was in hand has taken its place; then this one is gone."""
    newer = connection.execute(
        "SELECT revision FROM revisions WHERE repo = ? AND id <> ? AND +state IN ('listed', 'failed', 'refused')",
        (row.repo, row.id),
    ).fetchone()
    if newer is not None:
        enter(connection, now, row.id, State.GONE, REPLACED, f"by {newer[0]}")
    return newer is not None


def _lay_down(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute("UPDATE revisions SET in_hand = 0 WHERE id = ?", (row.id,))
