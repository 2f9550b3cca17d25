"""What an index holds of the models that a listing names: asked before anything of them is fetched.

A record of the index's store was made with the index's probes, its r and its descriptors, or the index would not have
been opened: a repository that is there at the revision that the listing names needs no probing, whoever probed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from engine.schema import Model, ModelState
from engine.similarity import sketch
from engine.store.base import Shared
from engine.writer import IndexWriter
from indexers.crawl.keeper import PASSING
from indexers.crawl.records import Found, State

_ENDED = {ModelState.FAILED: State.FAILED, ModelState.REFUSED: State.REFUSED}
_FOR_ANOTHER_TIME = frozenset(reason.value for reason in PASSING)


class NotWholeError(Exception):
    """Outputs of a model are lost: a part of the store was put back, or a replica went."""


@runtime_checkable
class _ByMany(Protocol):
    def records_of(self, repos: Sequence[str]) -> dict[str, Model]:
        """The records of some repositories in few requests."""


class Holdings:
    """The models of an index; used by one thread.

    Args:
        writer: Of the index.
    """

    def __init__(self, writer: IndexWriter) -> None:
        self._writer = writer
        self._store = writer.store

    def of(self, wanted: Iterable[tuple[str, str]]) -> list[tuple[Found, Model]]:
        """What has become of some revisions, as the index has it.

        A copy comes with its original before it, whether that was asked for or not. What failed for a reason that
        passes is not among them: it may work this time.

        Args:
            wanted: Repositories with the revisions that are listed.

        Returns:
            With the records, those that the index knows at these revisions.
        """
        asked = {repo: revision for repo, revision in wanted}
        there = self._records(asked)
        there |= self._records({m.copy_of for m in there.values() if m.copy_of is not None} - set(there))
        originals, others = [], []
        for repo, revision in asked.items():
            model = there.get(repo)
            if model is None or model.revision != revision:
                continue
            if model.state is ModelState.COPY:
                original = there.get(model.copy_of or "")
                if original is not None and _is_original(original, model):
                    originals.append((_stored(original), original))
                    copied = {"copy_of": original.repo, "copied_revision": original.revision}
                    others.append((Found(repo, revision, State.STORED, original.outputs, **copied), model))
            elif model.state is ModelState.INDEXED and model.outputs:
                originals.append((_stored(model), model))
            elif model.state in _ENDED and model.reason and model.reason not in _FOR_ANOTHER_TIME:
                ended = Found(repo, revision, _ENDED[model.state], reason=model.reason, detail=model.detail)
                others.append((ended, model))
        return [*{found.repo: (found, model) for found, model in originals}.values(), *others]

    def confirm(self, found: Found, model: Model) -> bool:
        """Whether what a writer may just have been killed at is there with all its outputs; ends what that had begun.

        Raises:
            StoreError: The store cannot be read or written.
        """
        store = self._store
        own = found.state is State.STORED and found.copy_of is None
        if own and isinstance(store, Shared) and store.count_revision(model.repo, model.revision) < model.outputs:
            return False
        if found.state is State.STORED:
            self._writer.complete(model)
        return True

    def sketch(self, repo: str, revision: str) -> tuple[float, float] | None:
        """Two numbers by which copies of a model are found; None if it has none.

        Raises:
            NotWholeError: The index names the revision, but does not have its outputs.
        """
        table = self._store.outputs(repo, revision)
        now = self._store.model(repo)
        if now is None or now.revision != revision or now.state is not ModelState.INDEXED:
            return None  # it has been replaced meanwhile
        if table is None or len(table) != now.outputs:
            raise NotWholeError(repo)
        drawn = sketch(table)
        return drawn if all(map(math.isfinite, drawn)) else None

    def lost(self, copies: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Those of some copies (repository, revision, original) that nobody sees: their original is gone or another."""
        there = self._records({name for repo, _, original in copies for name in (repo, original)})
        lost = []
        for repo, revision, name in copies:
            model, original = there.get(repo), there.get(name)
            if model is None or (model.revision, model.copy_of) != (revision, name):
                continue
            if original is None or not _is_original(original, model):
                lost.append((repo, revision, name))
        return lost

    def _records(self, repos: Iterable[str]) -> dict[str, Model]:
        wanted = sorted(repos)
        if isinstance(self._store, _ByMany):
            return self._store.records_of(wanted) if wanted else {}
        found = ((repo, self._store.model(repo)) for repo in wanted)
        return {repo: model for repo, model in found if model is not None}


def _stored(model: Model) -> Found:
    return Found(model.repo, model.revision, State.STORED, model.outputs)


def _is_original(model: Model, copy: Model) -> bool:
    return model.state is ModelState.INDEXED and model.outputs > 0 and model.revision == copy.copied_revision
