"""What ``hubhound search --rerank`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.errors import InputError
from query.cli.output import Advance

if TYPE_CHECKING:
    from engine.index import Index
    from engine.snapshot import Snapshot
    from indexers.towers import TowerSource
    from query.answers import Rerank, SearchAnswer
    from query.request import SearchRequest
    from query.rerank import RerankSettings


@dataclass(frozen=True)
class Reranking:
    """A reranking that was asked for.

    Attributes:
        settings: How hits are reranked.
        folders: Where models are, by their names.
    """

    settings: RerankSettings
    folders: dict[str, TowerSource]

    @classmethod
    def of(
        cls,
        method: str | None,
        weight: float | None,
        top: int | None,
        folders: Sequence[str],
        request: SearchRequest,
    ) -> Reranking:
        """What the options ask for.

        Raises:
            InputError: They make no sense together, or a folder holds no model.
        """
        from indexers.towers import expand_towers
        from query.rerank import TOP, WEIGHT, RerankSettings

        if method is None:
            raise InputError("--rerank-weight, --rerank-top and --models say how to rerank: add --rerank dcd")
        if not request.images:
            raise InputError("--rerank dcd compares what models make of your images: give some with --images")
        if request.evidence != "probes":
            raise InputError(
                f"--rerank dcd weighs conductance against the margin, --evidence {request.evidence} orders by labels, "
                "too: use one of them"
            )
        settings = RerankSettings(WEIGHT if weight is None else weight, TOP if top is None else top)
        found = expand_towers(folders) if folders else []
        return cls(settings, {source.name: source for source in found})

    def widened(self, request: SearchRequest) -> SearchRequest:
        """The request for as many hits as are to be reranked."""
        return replace(request, k=max(request.k, self.settings.top))

    def apply(
        self, index: Index, snapshot: Snapshot, answer: SearchAnswer, request: SearchRequest, bar: Advance
    ) -> SearchAnswer:
        """The answer in its new order."""
        from indexers.profiler import ProfileSettings
        from query.rerank import N_STEPS, Reranker
        from query.targets import TargetProfiler

        def tell(model: str, what: str, done: float, total: float) -> None:
            bar(done, total, f"{model}: {what}")

        profiler = TargetProfiler(index, "auto", ProfileSettings(n_steps=N_STEPS), self.folders, tell)
        return Reranker(index, snapshot, profiler, self.settings).rerank(answer, request.images, request.k)


def summary(rerank: Rerank) -> str:
    """One line on what reranking did."""
    moved = sum(hit.was != hit.rank for hit in rerank.hits)
    without = [hit for hit in rerank.hits if hit.reason]
    line = f"{moved} of {len(rerank.hits)} hits moved by conductance, weight {rerank.weight:g}"
    if rerank.weight == 0:
        line += " (the default: on real models it did not help; --rerank-weight gives it a say)"
    if without:
        line += f"; it says nothing of {len(without)}, the first is {without[0].model} ({without[0].reason})"
    return line
