"""Storing: what the index and the journal keep of a model that was probed, refused, found to be a copy, or is gone.

The index is always written first and the journal after it: a journal that says *stored* is never ahead of the index,
and what a kill between the two leaves is found in the index when the crawl begins again.
"""

from __future__ import annotations

import time

from engine.errors import Reason
from engine.outputs import OutputTable
from engine.schema import Model, ModelState
from engine.similarity import REACH, same_responses, sketch
from engine.writer import IndexWriter
from indexers.crawl import log
from indexers.crawl.fetching import Fetched, KnownWeights
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.keeper import Keeper, rounded
from indexers.crawl.records import Probed
from indexers.crawl.watch import Watch
from indexers.keeping import describe_answers
from indexers.loaders.base import Metadata

SAME = 1e-3
"""Two models answer the same if their responses differ by no more than this, in standard deviations."""

_OPTIMISE_EVERY = 200_000
"""Outputs between two optimisations of the store."""


class Storekeeper(Keeper[Probed]):
    """Writes to index and journal; used by one thread.

    Args:
        writer: The index.
        journal: Of the crawl.
        watch: Counts.
        keep_gone: Leave models in the index that the hub no longer has.
    """

    def __init__(self, writer: IndexWriter, journal: Journal, watch: Watch, *, keep_gone: bool) -> None:
        super().__init__(journal, watch)
        self._writer = writer
        self._keep_gone = keep_gone
        self._since_optimised = 0

    def recover(self) -> tuple[int, int]:
        """Puts in order what a run that was killed had in hand.

        Returns:
            How many models turned out to be in the index already, and how many begin again.
        """
        held = 0
        under_way = [
            (repo, revision, self._writer.store.model(repo)) for repo, revision, _ in self._journal.under_way()
        ]
        # Originals first: a copy is stored only where its original is.
        for repo, revision, known in sorted(
            under_way, key=lambda item: item[2] is not None and item[2].copy_of is not None
        ):
            if known is None or known.revision != revision:
                continue
            if known.state is ModelState.INDEXED:
                table = self._writer.store.outputs(repo, revision)
                if table is not None and len(table) == known.outputs:
                    self._writer.complete(known)
                    self._journal.stored(repo, revision, outputs=known.outputs, sketch=sketch(table))
                    held += 1
            elif known.copy_of is not None:
                original = self._writer.store.model(known.copy_of)
                if original is not None and original.revision == known.copied_revision:
                    self._writer.complete(known)
                    self._journal.stored(repo, revision, outputs=original.outputs, copy_of=original.repo)
                    held += 1
        _, released = self._journal.recover(lambda _repo, _revision: None)
        return held, released

    def publish(self, *, force: bool) -> None:
        """See `Keeper`; forcing it does not optimise the store, which can take longer than a signal waits."""
        if not force or self._writer.dirty:
            self._writer.snapshot(force=force)

    def done(self, fetched: Fetched, found: Probed) -> None:
        """Stores what a model answered, or finds that another one answers the same.

        Raises:
            ModelFailedError: None of its outputs carries information.
            StoreError: The index cannot be written.
            OSError: Likewise.
        """
        started = time.perf_counter()
        claim, metadata = fetched.claim, _metadata(fetched.claim, fetched.repository.metadata)
        facts = _facts(claim, metadata).model_copy(
            update={
                "library": found.library,
                "architecture": found.architecture,
                "parameters": found.parameters,
                "input_size": found.input_size,
                "probabilities": found.probabilities,
            }
        )
        model, table = describe_answers(self._writer, facts, found.labels, found.responses)
        drawn = sketch(table)
        seconds = dict(found.seconds)
        original = self._same(table, drawn)
        if original is not None:
            self._copy(model, original, len(table), seconds, started)
            return
        keep = self._writer.index.manifest.responses == "keep"
        self._writer.put(model, table, found.responses if keep else None)
        seconds["store"] = time.perf_counter() - started
        self._journal.stored(claim.repo, claim.revision, outputs=len(table), sketch=drawn, seconds=seconds)
        self._watch.ended("store", claim.repo, seconds["store"])
        self._watch.stored(len(table), copy=False)
        log.event("stored", model=claim.repo, revision=claim.revision, outputs=len(table), **rounded(seconds))
        self._since_optimised += len(table)
        if self._since_optimised >= _OPTIMISE_EVERY:
            self._writer.store.optimize()
            self._since_optimised = 0

    def copied(self, known: KnownWeights) -> None:
        """Links a model to the one whose weights it has; if that has gone meanwhile, it is for another turn."""
        started = time.perf_counter()
        claim, (original, revision) = known.claim, known.original
        there = self._writer.store.model(original)
        if there is None or there.state is not ModelState.INDEXED or there.revision != revision:
            # The index has been changed beside the journal: what is not there is nobody's original.
            self._journal.gone(original, Reason.MISSING.value, "the index does not have it any more")
            self._journal.release(claim.repo, claim.revision)
            return
        model = _facts(claim, _metadata(claim, known.found.metadata)).model_copy(
            update={
                "library": there.library,
                "architecture": there.architecture,
                "parameters": there.parameters,
                "input_size": there.input_size,
                "probabilities": there.probabilities,
            }
        )
        self._copy(model, original, there.outputs, {}, started)

    def gone(self, repo: str, detail: str) -> None:
        """A model has left the source: its outputs leave the results, its copies begin again."""
        if not self._keep_gone:
            self._writer.remove_model(repo)
        freed = self._journal.gone(repo, Reason.MISSING.value, detail, keep_copies=self._keep_gone)
        self._watch.gone()
        log.event("gone", model=repo, detail=detail, copies=len(freed))

    def _copy(self, model: Model, original: str, outputs: int, seconds: dict[str, float], started: float) -> None:
        self._writer.put_copy(
            model.model_copy(
                update={
                    "state": ModelState.COPY,
                    "copy_of": original,
                    "outputs": 0,
                    "left_out": (),
                    "calibration": None,
                }
            )
        )
        seconds["store"] = time.perf_counter() - started
        self._journal.stored(model.repo, model.revision, outputs=outputs, copy_of=original, seconds=seconds)
        self._watch.ended("store", model.repo, seconds["store"])
        self._watch.stored(0, copy=True)
        log.event("stored", model=model.repo, revision=model.revision, copy_of=original)

    def _same(self, table: OutputTable, drawn: tuple[float, float]) -> str | None:
        for repo, revision in self._journal.similar(len(table), drawn, REACH * SAME):
            if repo == table.repo:
                continue
            known = self._writer.store.model(repo)
            if known is None or known.state is not ModelState.INDEXED or known.revision != revision:
                continue
            other = self._writer.store.outputs(repo, revision)
            if other is not None and same_responses(table, other, SAME):
                return repo
        return None

    def _record(self, claim: Claim, state: ModelState, reason: str, detail: str) -> None:
        self._writer.record(Model(repo=claim.repo, revision=claim.revision, state=state, reason=reason, detail=detail))


def _facts(claim: Claim, metadata: Metadata) -> Model:
    return Model(
        repo=claim.repo,
        revision=claim.revision,
        licence=metadata.licence,
        tags=metadata.tags,
        downloads=metadata.downloads,
        likes=metadata.likes,
    )


def _metadata(claim: Claim, found: Metadata) -> Metadata:
    # The listing is older, and may say less.
    return found if found != Metadata() else claim.listed.metadata
