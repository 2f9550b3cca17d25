"""One model of an index that several write to: nobody's outputs go that a record counts on."""

from __future__ import annotations

from collections.abc import Callable

from engine.schema import Model, ModelState
from engine.store.base import Shared


class SharedModel:
    """Writes the record of one model and removes what it replaces, by the rules of :class:`engine.store.base.Shared`.

    Args:
        store: Of the index.
        repo: Of the model.
    """

    def __init__(self, store: Shared, repo: str) -> None:
        self._store = store
        self._repo = repo

    def put(self, record: Model, again: Callable[[], None]) -> Model | None:
        """Writes the record of outputs that were written before.

        Args:
            record: Of the model.
            again: Writes the outputs once more: somebody has removed them, or may be about to, who has seen another
                record since they were written.

        Returns:
            The record that was replaced.
        """
        written = self._store.write_model(record)
        if self._store.count_revision(self._repo, record.revision, written.replaced) < record.outputs:
            again()
            # Under a new number: readers may have seen the record without its outputs.
            if not self._store.change_model(self._repo, lambda now: now if _names(now, record.revision) else None).seq:
                self.clear_all()  # another record stands by now: what was written again came after it
        return written.before

    def clear(self, before: Model | None, revision: str | None = None) -> tuple[int, set[str]]:
        """Removes the outputs of all revisions but that of the record that stands by now.

        Those that somebody has written since, and is about to write a record for, stay.

        Args:
            before: The record that was replaced.
            revision: Of the record that replaced it, if it has outputs.

        Returns:
            The number of the record that stands; those of the two revisions that are gone: what was written before
            that number may go.
        """
        now, number = self._store.standing(self._repo)
        standing = now.revision if now is not None and now.state is ModelState.INDEXED else None
        self._store.clear(self._repo, standing, number)
        gone = {revision, before.revision if before is not None else None} - {None, standing}
        return number, {str(one) for one in gone}

    def clear_all(self, revision: str | None = None) -> tuple[int, set[str]]:
        """As :meth:`clear`, also what was written after the record that stands: that gets a new number."""
        if not self._store.change_model(self._repo, lambda now: now).seq:
            self._store.remove_model(self._repo)
        return self.clear(None, revision)


def _names(model: Model | None, revision: str) -> bool:
    return model is not None and model.state is ModelState.INDEXED and model.revision == revision
