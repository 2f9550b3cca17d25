"""The journal's part on listings: passes over a source, what they saw, and where they go on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError
from indexers.crawl.journal_moves import CLEARED, REPLACED, enter, note_event, one_line
from indexers.crawl.journal_report import Questions
from indexers.crawl.records import Listed, Refusal, State
from indexers.loaders.base import Metadata

LISTED_COLUMNS = (
    "repo, revision, folder, modified, listed_bytes, parameters, gated, licence, tags, downloads, likes, library"
)
"""What ``listed_of`` reads, in its order."""

_SUPERSEDED = (State.LISTED, State.FAILED, State.REFUSED)
_BATCH = 500
_MAX_INTEGER = 2**63 - 1
_MAX_TAGS_LENGTH = 2000


@dataclass(frozen=True)
class Pass:
    """One way through the listing of a source, as it was when it was begun or resumed.

    Attributes:
        number: Of all passes of the journal.
        source: The source's name.
        full: Whether it goes to the end, rather than to what was seen before.
        cursor: Where to go on, None for the beginning.
        entries: Seen so far.
        newest: Largest ``modified`` of its first page, None before that.
        resumed: Whether it had been begun before.
        ended: Whether its last page was read already, and only its end is missing.
    """

    number: int
    source: str
    full: bool
    cursor: str | None
    entries: int
    newest: str | None
    resumed: bool
    ended: bool = False


@dataclass(frozen=True)
class PageResult:
    """What became of a page's entries; each counts once.

    Attributes:
        new: Of repositories never seen before.
        changed: To be fetched now, of known repositories: another revision, one that was gone, or was filtered out.
        known: Nothing to do.
        refused: By the filter.
    """

    new: int = 0
    changed: int = 0
    known: int = 0
    refused: int = 0


class Passes(Questions):
    """A journal as far as it is about listing."""

    def begin_pass(self, source: str, full: bool) -> Pass:
        """Resumes the unfinished pass of a source and kind, else begins one."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO sources (name) VALUES (?)", (source,))
            owner = _source(connection, source)
            found = connection.execute(
                "SELECT number, cursor, entries, newest, ended FROM passes "
                "WHERE source = ? AND full = ? AND finished_at IS NULL ORDER BY number DESC LIMIT 1",
                (owner, full),
            ).fetchone()
            if found is not None:
                number, cursor, entries, newest, ended = found
                return Pass(number, source, full, cursor, entries, newest, resumed=True, ended=bool(ended))
            number = connection.execute(
                "INSERT INTO passes (source, full, started_at) VALUES (?, ?, ?)", (owner, full, self._clock())
            ).lastrowid
            return Pass(int(number or 0), source, full, None, 0, None, resumed=False)

    def add_page(self, p: Pass, entries: Sequence[tuple[Listed, Refusal | None]], cursor: str | None) -> PageResult:
        """Takes in one page, and where the next one is, in one transaction.

        A revision that was seen before keeps its state, except that what was gone is listed again, and that what waits,
        or was refused when it was listed, follows the filter as it is now. Other revisions of the repository that are
        not stored or under way are gone.

        Args:
            p: The pass.
            entries: With the filter's refusal, None for those to be fetched.
            cursor: Of the next page, None if this is the last one.

        Raises:
            InputError: If a name is no text that UTF-8 can hold.
        """
        counts = {"new": 0, "changed": 0, "known": 0, "refused": 0}
        with self._database.transaction() as connection:
            owner, newest = _pass(connection, p)
            now = self._clock()
            for listed, refusal in entries:
                counts[_see(connection, p, owner, now, listed, refusal)] += 1
            if newest is None:
                # Later pages must not raise it: what changed behind the pass's back would never be listed.
                newest = max((listed.modified for listed, _ in entries if listed.modified), default=None)
            connection.execute(
                "UPDATE passes SET cursor = ?, entries = entries + ?, newest = ?, ended = ? WHERE number = ?",
                (cursor, len(entries), newest, cursor is None, p.number),
            )
        return PageResult(**counts)

    def note_newest(self, p: Pass, newest: str) -> None:
        """Remembers the largest ``modified`` of a pass's first page, of what is not in the crawl too; the first counts.

        Without it the journal takes that of the first page with an entry of the crawl, which may be read after a
        change elsewhere.
        """
        with self._database.transaction() as connection:
            connection.execute("UPDATE passes SET newest = ? WHERE number = ? AND newest IS NULL", (newest, p.number))

    def set_cursor(self, p: Pass, cursor: str | None) -> None:
        """Remembers where the pass goes on."""
        with self._database.transaction() as connection:
            _pass(connection, p)
            connection.execute("UPDATE passes SET cursor = ? WHERE number = ?", (cursor, p.number))

    def restart_pass(self, p: Pass) -> Pass:
        """Begins the same pass again from its first page; its cursor has expired.

        Its ``newest`` stays: going back further than needed costs requests, going back too little loses changes.
        """
        with self._database.transaction() as connection:
            _, newest = _pass(connection, p)
            connection.execute("UPDATE passes SET cursor = NULL, entries = 0, ended = 0 WHERE number = ?", (p.number,))
        return Pass(p.number, p.source, p.full, None, 0, newest, resumed=True)

    def finish_pass(self, p: Pass) -> None:
        """The pass is complete: its ``newest`` becomes the source's watermark unless that is newer.

        Raises:
            ValueError: If it is finished already.
        """
        with self._database.transaction() as connection:
            owner, newest = _pass(connection, p)
            done = connection.execute(
                "UPDATE passes SET finished_at = ?, cursor = NULL WHERE number = ? AND finished_at IS NULL",
                (self._clock(), p.number),
            )
            if done.rowcount != 1:
                raise ValueError(f"pass {p.number} is finished already")
            connection.execute(
                "UPDATE sources SET watermark = ? WHERE id = ? AND coalesce(watermark, '') < ?", (newest, owner, newest)
            )

    def watermark(self, source: str) -> str | None:
        """Largest ``modified`` up to which nothing of a source was missed, None before its first finished pass."""
        found = self._database.read("SELECT watermark FROM sources WHERE name = ?", (source,))
        return found[0][0] if found else None

    def last_full(self, source: str) -> float | None:
        """When the last full pass of a source was finished, None if none was; seconds since 1970."""
        found = self._database.read(
            "SELECT max(finished_at) FROM passes JOIN sources ON sources.id = source WHERE name = ? AND full", (source,)
        )
        return found[0][0] if found else None

    def unseen(self, p: Pass) -> Iterator[tuple[str, str]]:
        """Revisions (repo, revision) of the pass's source, not gone, whose repositories a full pass did not see.

        A repository that was seen at another revision is there: its older revision goes when the new one is stored. The
        rows are read in small batches, and may be changed meanwhile.
        """
        top = self._database.read("SELECT max(id) FROM revisions")[0][0] or 0
        last = 0
        while rows := self._database.read(
            "SELECT id, repo, revision FROM revisions AS r WHERE id > ? AND id <= ? AND state <> 'gone' "
            "AND full_pass IS NOT ? AND source = (SELECT id FROM sources WHERE name = ?) AND NOT EXISTS "
            "(SELECT 1 FROM revisions AS other WHERE other.repo = r.repo AND other.full_pass = ?) ORDER BY id LIMIT ?",
            (last, top, p.number, p.source, p.number, _BATCH),
        ):
            last = rows[-1][0]
            yield from ((repo, revision) for _, repo, revision in rows)


def listed_of(row: Sequence[Any]) -> Listed:
    """What a listing said, from the columns ``LISTED_COLUMNS``."""
    repo, revision, folder, modified, size_bytes, parameters, gated, licence, tags, downloads, likes, library = row
    metadata = Metadata(licence, tuple(json.loads(tags)) if tags else (), downloads, likes, library)
    place = Path(folder) if folder is not None else None
    return Listed(repo, revision, place, modified, size_bytes, parameters, bool(gated), metadata)


def _see(
    connection: sqlite3.Connection, p: Pass, owner: int, now: float, listed: Listed, refusal: Refusal | None
) -> str:
    """Takes in one entry; returns the name of the count that it adds to."""
    for name in (listed.repo, listed.revision):
        if not name or not name.isprintable():  # a lone surrogate is not printable either
            raise InputError(f"{name!r} cannot be the name of a repository or revision")
    rows = connection.execute(
        "SELECT id, revision, state, attempts FROM revisions WHERE repo = ?", (listed.repo,)
    ).fetchall()
    known = None
    for row, revision, state, attempts in rows:
        if revision == listed.revision:
            known = (row, State(state), attempts)
        elif state in _SUPERSEDED:
            enter(connection, now, row, State.GONE, REPLACED, f"by {listed.revision}", CLEARED)
    said = _columns(listed)
    target = State.LISTED if refusal is None else State.REFUSED
    reason, detail = (None, None) if refusal is None else (refusal.reason, one_line(refusal.detail))
    if known is None:
        columns = {
            "repo": listed.repo, "revision": listed.revision, "source": owner,
            "full_pass": p.number if p.full else None, "state": target.value, "reason": reason, "detail": detail,
            "listed_at": now, "changed_at": now, **said,
        }  # fmt: skip
        places = ", ".join("?" * len(columns))
        made = connection.execute(
            f"INSERT INTO revisions ({', '.join(columns)}) VALUES ({places})",  # noqa: S608
            tuple(columns.values()),
        ).lastrowid
        note_event(connection, now, int(made or 0), target, reason, detail)
        return "refused" if refusal else ("changed" if rows else "new")
    row, state, attempts = known
    changes = ", ".join(f"{name} = coalesce(?, {name})" for name in said)
    connection.execute(
        f"UPDATE revisions SET source = ?, full_pass = coalesce(?, full_pass), {changes} WHERE id = ?",  # noqa: S608
        (owner, p.number if p.full else None, *said.values(), row),
    )
    # Whether a refusal came from a filter, which may have changed, is told by the attempts: afterwards there is one.
    filtered = state is State.REFUSED and attempts == 0
    if state is State.GONE or (filtered and refusal is None) or (state is State.LISTED and refusal is not None):
        again = {**CLEARED, "attempts": 0, "next_try": 0.0}
        enter(connection, now, row, target, reason, detail, again)
        return "refused" if refusal else "changed"
    if filtered:
        connection.execute("UPDATE revisions SET reason = ?, detail = ? WHERE id = ?", (reason, detail, row))
    return "refused" if filtered else "known"


def _columns(listed: Listed) -> dict[str, object]:
    """What a listing says besides the names; it is a stranger's, and kept short."""
    said = listed.metadata
    room, tags = _MAX_TAGS_LENGTH, []
    for tag in said.tags:
        room -= len(tag) + 4  # quotes, comma and space
        if room < 0:
            break
        tags.append(tag)
    return {
        "modified": one_line(listed.modified),
        "folder": str(listed.folder) if listed.folder is not None else None,
        "listed_bytes": _integer(listed.size_bytes),
        "parameters": _integer(listed.parameters),
        "gated": listed.gated,
        "licence": one_line(said.licence),
        "library": one_line(said.library),
        "tags": json.dumps(tags) if tags else None,
        "downloads": _integer(said.downloads),
        "likes": _integer(said.likes),
    }


def _integer(value: int | None) -> int | None:
    return None if value is None else max(-_MAX_INTEGER, min(_MAX_INTEGER, value))


def _source(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute("SELECT id FROM sources WHERE name = ?", (name,)).fetchone()[0])


def _pass(connection: sqlite3.Connection, p: Pass) -> tuple[int, str | None]:
    """The source and ``newest`` of a pass."""
    found = connection.execute("SELECT source, newest FROM passes WHERE number = ?", (p.number,)).fetchone()
    if found is None:
        raise ValueError(f"there is no pass {p.number}")
    return int(found[0]), found[1]
