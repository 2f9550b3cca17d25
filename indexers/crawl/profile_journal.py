"""The journal of a crawl of vision-language models: what was profiled may have to be profiled again for a new task."""

from __future__ import annotations

from pathlib import Path

from indexers.crawl.journal import Journal
from indexers.crawl.journal_moves import CLEARED, enter
from indexers.crawl.records import UNDER_WAY, State

HOME = "vlms"
"""Folder in an index's folder that has what the index's folder has for a crawl of classifiers: a folder ``crawl``.

The two crawls have a journal each, because the same repository can be refused by one and stored by the other.
"""


class ProfileJournal(Journal):
    """A journal that can list again what is stored."""

    def stored_models(self) -> list[tuple[str, str, Path | None]]:
        """What is stored: repository, revision, and its folder, None for a model on the Hub."""
        rows = self._database.read("SELECT repo, revision, folder FROM revisions WHERE state = 'stored' ORDER BY id")
        return [(repo, revision, Path(folder) if folder is not None else None) for repo, revision, folder in rows]

    def folder_of(self, repo: str) -> Path | None:
        """Where a repository lies, as it was listed last; None for one on the Hub."""
        rows = self._database.read("SELECT folder FROM revisions WHERE repo = ? ORDER BY id DESC LIMIT 1", (repo,))
        return Path(rows[0][0]) if rows and rows[0][0] is not None else None

    def list_again(self, repo: str, detail: str) -> bool:
        """Lists what is stored of a repository again, due at once; its other copies stay.

        Args:
            repo: Id.
            detail: Why, one line.

        Returns:
            False if nothing is stored of it, or another revision is listed or under way, which will take its place.
        """
        waiting = {State.LISTED, *UNDER_WAY}
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT id, state FROM revisions WHERE repo = ?", (repo,)).fetchall()
            stored = [row for row, state in rows if state == State.STORED]
            if not stored or any(State(state) in waiting for _, state in rows):
                return False
            now = self._clock()
            for row in stored:
                enter(connection, now, row, State.LISTED, None, detail, {**CLEARED, "attempts": 0, "next_try": now})
        return True
