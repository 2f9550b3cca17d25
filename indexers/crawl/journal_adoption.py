"""The journal's part on what the index holds already: no attempt of ours brought it there.

A journal that was lost, or that a new part of the models begins, knows nothing of what was stored before. What the
index is found to hold enters its end without having been claimed: ``stored`` without an attempt, without a time and
without seconds, so that no rate counts it; ``refused`` and ``failed`` with the one attempt that somebody has made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from indexers.crawl.journal_moves import CLEARED, REPLACED, enter, finite, free_copies, one_line, whole
from indexers.crawl.journal_passes import Passes
from indexers.crawl.records import Found, State

IN_THE_INDEX = "found in the index"
"""The detail of what was not our work."""

_MOST_DETAIL = 460
"""Characters of a detail that leave room for ``IN_THE_INDEX``."""


class Waiting(NamedTuple):
    """A revision that was listed and never tried."""

    row: int
    repo: str
    revision: str


class Adoptions(Passes):
    """A journal as far as it takes over what the index holds."""

    def untried(self, limit: int) -> list[Waiting]:
        """The next revisions to be claimed that were never tried, in their order.

        Args:
            limit: At most so many.
        """
        rows = self._database.read(
            "SELECT id, repo, revision FROM revisions AS r INDEXED BY due WHERE state = 'listed' AND next_try = 0 "
            "AND NOT EXISTS (SELECT 1 FROM revisions AS h WHERE h.repo = r.repo AND h.in_hand = 1) "
            "ORDER BY modified DESC, id LIMIT ?",
            (limit,),
        )
        return [Waiting(*row) for row in rows]

    def adopt(self, found: Sequence[Found]) -> list[Found]:
        """Takes over what the index holds, in one transaction and in the order given.

        Left as they are: revisions that are not listed, or were tried before; those of a repository that somebody has
        in hand; and copies whose original this journal has otherwise than the index.

        Args:
            found: Originals before their copies.

        Returns:
            What was taken over.
        """
        adopted = []
        with self._database.transaction() as connection:
            now = self._clock()
            for one in found:
                if self._adopt(connection, now, one):
                    adopted.append(one)
        return adopted

    def adopted(self) -> int:
        """Revisions that are stored and were found in the index."""
        there = self._database.read("SELECT 1 FROM sqlite_master WHERE name = 'found_in_index'")
        index = "INDEXED BY found_in_index" if there else ""  # which a journal of before lacks until it is written to
        counted = f"SELECT count(*) FROM revisions {index} WHERE id > 0 AND state = 'stored' AND stored_at IS NULL"  # noqa: S608
        return int(self._database.read(counted)[0][0])

    def unsketched(self, after: int) -> Waiting | None:
        """The next original that was found in the index and has no sketch yet.

        Args:
            after: Only rows beyond this one.
        """
        rows = self._database.read(
            "SELECT id, repo, revision FROM revisions INDEXED BY found_in_index WHERE state = 'stored' "
            "AND stored_at IS NULL AND id > ? AND copy_of IS NULL AND sketch_a IS NULL ORDER BY id LIMIT 1",
            (after,),
        )
        return Waiting(*rows[0]) if rows else None

    def note_sketch(self, row: int, sketch: tuple[float, float]) -> None:
        """Notes two numbers of the responses of what was found in the index, if it is stored still."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE revisions SET sketch_a = ?, sketch_b = ? WHERE id = ? AND +state = 'stored'",
                (finite(sketch[0]), finite(sketch[1]), row),
            )

    def foreign_copies(self, batch: int) -> Iterator[list[tuple[str, str, str]]]:
        """Copies (repo, revision, original) that are stored and whose original is not, some at a time.

        Their original is of another part or another crawl, which does not tell this journal when it goes.

        Args:
            batch: So many at a time.
        """
        last: tuple[str, int] = ("", 0)
        while rows := self._database.read(
            "SELECT id, repo, revision, copy_of FROM revisions AS c INDEXED BY copies WHERE copy_of IS NOT NULL "
            "AND (copy_of, id) > (?, ?) AND state = 'stored' AND NOT EXISTS "
            "(SELECT 1 FROM revisions AS o WHERE o.repo = c.copy_of AND +o.state = 'stored') "
            "ORDER BY copy_of, id LIMIT ?",
            (*last, batch),
        ):
            last = (rows[-1][3], rows[-1][0])
            yield [(repo, revision, original) for _, repo, revision, original in rows]

    def list_copy_again(self, repo: str, revision: str, original: str) -> bool:
        """Lists a stored copy again, due at once, for its original has left the index; False if it is none any more."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT id FROM revisions WHERE repo = ? AND revision = ? AND +state = 'stored' AND copy_of = ?",
                (repo, revision, original),
            ).fetchone()
            if row is None:
                return False
            now = self._clock()
            values = {**CLEARED, "attempts": 0, "next_try": now}
            enter(connection, now, row[0], State.LISTED, None, f"was a copy of {original}", values)
        return True

    def list_found_again(self, row: int) -> bool:
        """Lists what was found in the index again, due at once, for its outputs are not there; False if it is not."""
        with self._database.transaction() as connection:
            found = (
                "SELECT id FROM revisions WHERE id = ? AND +state = 'stored' AND stored_at IS NULL AND copy_of IS NULL"
            )
            if connection.execute(found, (row,)).fetchone() is None:
                return False
            now = self._clock()
            values = {**CLEARED, "attempts": 0, "next_try": now}
            enter(connection, now, row, State.LISTED, None, "its outputs are not in the index", values)
        return True

    @staticmethod
    def _adopt(connection: sqlite3.Connection, now: float, found: Found) -> bool:
        row = connection.execute(
            "SELECT id FROM revisions AS r WHERE repo = ? AND revision = ? AND +state = 'listed' AND next_try = 0 "
            "AND NOT EXISTS (SELECT 1 FROM revisions AS h WHERE h.repo = r.repo AND h.in_hand = 1)",
            (found.repo, found.revision),
        ).fetchone()
        if row is None or (found.copy_of is not None and not _original_stands(connection, found)):
            return False
        if found.state is not State.STORED:
            detail = f"{(one_line(found.detail) or '')[:_MOST_DETAIL]} ({IN_THE_INDEX})".strip()
            enter(connection, now, row[0], found.state, found.reason, detail, {"attempts": 1})
            return True
        former = connection.execute(
            "SELECT id FROM revisions WHERE repo = ? AND id <> ? AND +state = 'stored'", (found.repo, row[0])
        ).fetchall()
        values = {**CLEARED, "outputs": whole(found.outputs, 1), "copy_of": found.copy_of}
        enter(connection, now, row[0], State.STORED, None, IN_THE_INDEX, values)
        for (old,) in former:
            enter(connection, now, old, State.GONE, REPLACED, f"by {found.revision}")
        if former:
            free_copies(connection, now, found.repo)
        return True


def _original_stands(connection: sqlite3.Connection, copy: Found) -> bool:
    """Whether what the journal knows of a copy's original, if it knows anything, is what the index says."""
    rows = connection.execute(
        "SELECT revision, state, copy_of FROM revisions WHERE repo = ? AND +state <> 'gone'", (copy.copy_of,)
    ).fetchall()
    return not rows or (copy.copied_revision, State.STORED.value, None) in rows
