"""Reranking of search by DCD: of the models that recognise a concept, which one covers these very images?

Concept search says what an output recognises. The images that were searched by say more: how a model's blocks respond
to them, beside how they respond where the model is known to work. For a model with profiles and known performance that
is its predicted rank (:mod:`query.recommend`); for a plain classifier the divergence D(target -> home) to its **home
profile**, its conductance on the probes to which its matched outputs respond most.

Figures of one kind are standardised over the candidates and fused with the margin, standardised likewise::

    score = (1 - weight) z(margin) - weight z(divergence or predicted rank)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.errors import HubhoundError, InputError
from engine.index import Index
from engine.snapshot import Snapshot
from engine.transfer import divergence
from indexers.profiler import ImageFile
from query.answers import Hit, ModelHit, Rerank, Reranked, Result, SearchAnswer
from query.lookup import find_model
from query.recommend import RecommendRequest, choose, rank, read_target
from query.targets import TargetProfiler

Float64Array = npt.NDArray[np.float64]

WEIGHT = 0.0
"""Share of the conductance in the score unless told; see docs/measurements.md for why."""
TOP = 10
"""Candidates that are reranked unless told."""
HOME_PROBES = 5
"""Probes of each matched output that make a home profile."""
N_STEPS = 10
"""Steps of the path for classifiers without profiles: enough for an order, a fifth of the time."""
TARGETS = 5
"""Images of the target that are looked at: every one costs a pass through every candidate."""


@dataclass(frozen=True)
class RerankSettings:
    """How hits are reranked.

    Attributes:
        weight: Share of the conductance in the score, 0..1; 0 leaves the order as it is.
        top: Hits that are looked at, at least 1.
    """

    weight: float = WEIGHT
    top: int = TOP

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"--rerank-weight {self.weight:g}: it must lie between 0 and 1")
        if self.top < 1:
            raise InputError(f"--rerank-top {self.top}: rerank at least one hit")


@dataclass(frozen=True)
class _Figure:
    """What conductance says of one hit."""

    divergence: float | None = None
    predicted_rank: float | None = None
    reason: str | None = None


class Reranker:
    """Reorders the hits of a search by images.

    Args:
        index: The index.
        snapshot: The generation that was searched, or a newer one; what that has no more gets no figure.
        profiler: Shows images to models.
        settings: How.
    """

    def __init__(
        self, index: Index, snapshot: Snapshot, profiler: TargetProfiler, settings: RerankSettings | None = None
    ) -> None:
        self._index = index
        self._snapshot = snapshot
        self._profiler = profiler
        self._settings = settings or RerankSettings()
        self._cache = ConductanceCache(index.folder / FILE)

    def rerank(self, answer: SearchAnswer, images: Sequence[Path], k: int) -> SearchAnswer:
        """The answer with its hits in the fused order, and what changed.

        A model that cannot be profiled keeps a neutral figure, and the reason is told.

        Args:
            answer: To a question by images; as many hits as are to be reranked.
            images: The images.
            k: Hits that are wanted.

        Raises:
            InputError: An image cannot be read.
        """
        target = read_target(images)[:TARGETS]
        predicted, failed = self._predicted(answer, target)
        results, reports = [], []
        for result in answer.results:
            hits = result.hits[: self._settings.top]
            figures = self._figures(hits, target, predicted, failed)
            scores = self._scores(hits, figures)
            order = list(range(len(hits)))
            if self._settings.weight > 0:
                order.sort(key=lambda i: -scores[i])
            moved = [hits[i].model_copy(update={"rank": place}) for place, i in enumerate(order, start=1)]
            rest = [
                hit.model_copy(update={"rank": place})
                for place, hit in enumerate(result.hits[len(hits) :], start=len(hits) + 1)
            ]
            results.append(Result(query=result.query, hits=tuple([*moved, *rest][:k])))
            reports += [_report(hits[i], place, figures[i], scores[i]) for place, i in enumerate(order, start=1)]
        rerank = Rerank(method="dcd", weight=self._settings.weight, images=len(target), hits=tuple(reports))
        return answer.model_copy(update={"results": tuple(results), "rerank": rerank})

    def _predicted(self, answer: SearchAnswer, target: Sequence[ImageFile]) -> tuple[dict[str, float], dict[str, str]]:
        """Predicted ranks of those hits whose models have profiles and known performance, and who could not be run."""
        knowledge = self._index.knowledge()
        known = set(knowledge.models())
        names = tuple(
            dict.fromkeys(hit.model for result in answer.results for hit in result.hits if hit.model in known)
        )
        if not names:
            return {}, {}
        request = RecommendRequest(tuple(image.path for image in target), names, k=len(names))
        try:
            candidates, _ = choose(str(self._index.folder), knowledge, request)
        except InputError:
            return {}, {}
        found: dict[str, float] = {}
        failed: dict[str, str] = {}
        for candidate in candidates:
            try:
                profile = self._profiler(candidate, target)
            except HubhoundError as error:
                failed[candidate.model] = str(error)
                continue
            found |= {one.model: one.predicted_rank for one in rank([candidate], [profile], request).ranking}
        return found, failed

    def _figures(
        self,
        hits: Sequence[Hit | ModelHit],
        target: Sequence[ImageFile],
        predicted: Mapping[str, float],
        failed: Mapping[str, str],
    ) -> list[_Figure]:
        """A figure a hit; every model is loaded once at most."""
        homes = [[] if hit.model in predicted else self._home(hit) for hit in hits]
        rows: dict[str, dict[str, Float64Array]] = {}
        reasons = dict(failed)
        done = {*predicted, *failed}
        for model in dict.fromkeys(hit.model for hit in hits if hit.model not in done):
            own = [place for place, hit in enumerate(hits) if hit.model == model]
            images = [*target, *(image for place in own for image in homes[place])]
            first = hits[own[0]]
            try:
                found = self._profiler.images(model, images, self._known(first), first.revision)
            except HubhoundError as error:
                reasons[model] = str(error)
                continue
            rows[model] = {image.sha256: row for image, row in zip(images, found.rows, strict=True)}
        figures = []
        for hit, home in zip(hits, homes, strict=True):
            if hit.model in predicted:
                figures.append(_Figure(predicted_rank=predicted[hit.model]))
            elif hit.model in reasons or not home:
                figures.append(_Figure(reason=reasons.get(hit.model, "none of its outputs was matched")))
            else:
                v, own_v = (_mean(rows[hit.model], images) for images in (target, home))
                figures.append(_Figure(divergence=float(divergence(v, own_v[None])[0])))
        return figures

    def _known(self, hit: Hit | ModelHit) -> ProfileKey | None:
        """What is known of a classifier's blocks, so that images seen before need no loading."""
        return self._cache.only_key(hit.model, hit.revision, N_STEPS)

    def _home(self, hit: Hit | ModelHit) -> list[ImageFile]:
        """The probes to which the matched outputs respond most."""
        if hit.model not in self._snapshot.places:  # a newer generation than the one that was searched
            return []
        outputs = [hit.output] if isinstance(hit, Hit) else [m.output for m in hit.outputs if m.output is not None]
        place = find_model(self._snapshot, hit.model)
        start, stop = self._snapshot.starts[place : place + 2].tolist()
        rows = start + np.nonzero(np.isin(self._snapshot.output[start:stop], outputs))[0]
        idx, z = self._snapshot.arrays.kept(rows)
        order = np.argsort(-z, axis=1, kind="stable")[:, :HOME_PROBES]
        probes = dict.fromkeys(np.take_along_axis(idx, order, axis=1).ravel().tolist())
        files, folder = self._index.probe_files, self._index.probe_folder
        return [ImageFile(folder / files[i][0], files[i][1]) for i in probes]

    def _scores(self, hits: Sequence[Hit | ModelHit], figures: Sequence[_Figure]) -> list[float]:
        weight = self._settings.weight
        margins = _standardised([_margin(hit) for hit in hits])
        by_rank = _standardised([figure.predicted_rank for figure in figures])
        by_divergence = _standardised([figure.divergence for figure in figures])
        fused: list[float] = ((1 - weight) * margins - weight * (by_rank + by_divergence)).tolist()
        return fused


def _margin(hit: Hit | ModelHit) -> float:
    """What the search ordered its hits by."""
    return hit.score if isinstance(hit, ModelHit) and hit.score is not None else hit.margin


def _mean(rows: Mapping[str, Float64Array], images: Sequence[ImageFile]) -> Float64Array:
    return np.asarray(np.mean([rows[image.sha256] for image in images], axis=0), np.float64)


def _standardised(values: Sequence[float | None]) -> Float64Array:
    """(value - mean) / std over those that are known, 0 for the others and where all are equal."""
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    there = ~np.isnan(known)
    found = np.zeros(len(known))
    if there.any():
        spread = known[there].std()
        if spread > 0:
            found[there] = (known[there] - known[there].mean()) / spread
    return found


def _report(hit: Hit | ModelHit, place: int, figure: _Figure, score: float) -> Reranked:
    facts = {
        "output": hit.output if isinstance(hit, Hit) else None,
        "divergence": figure.divergence,
        "predicted_rank": figure.predicted_rank,
        "reason": figure.reason,
    }
    return Reranked(
        model=hit.model,
        was=hit.rank,
        rank=place,
        margin=hit.margin,
        score=round(score, 6),
        **{name: value for name, value in facts.items() if value is not None},
    )
