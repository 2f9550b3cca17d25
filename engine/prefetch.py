"""Candidates from a store's own vector search, and the certificate that the best of all outputs are among them.

A margin is the sum of two parts, ``local + global``, and a store orders its outputs by either: by the global part
exactly (a plain inner product), by the local one above any threshold t exactly (:mod:`engine.store.records`). So:

1. The K outputs with the largest global part are fetched; g is the least of theirs. Every other output has
   ``global <= g``.
2. With M the k-th best margin so far, ``t = M - g``: the outputs whose local part is above t are fetched. If fewer came
   back than were asked for, these are all, and every other output has ``local <= t``.
   (Above its h / s an output has no margin, yet may have a score: :func:`threshold_query` asks with a lower t for
   the same outputs and few others.)
3. An output in neither list has a margin of at most ``t + g = M``: it cannot be among the k best. The answer is
   **certified**. Otherwise twice as many are fetched, up to a limit.

(Fagin's threshold algorithm with sorted access to one list and threshold access to the other.) The scores of a store
are float32, so t is lowered by ``SLACK``. Methods without a global part have g = 0.

Outputs that no model's record claims (of a revision that was replaced, or of a model that was removed) are dropped
after they were fetched. They take places in both lists and loosen the bounds, but bounds they stay: what is true of all
outputs is true of those that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.descriptors import ConceptDescriptors
from engine.distance import Method, check_method, weights
from engine.outputs import FloatArray, OutputTable
from engine.scan import exact_margins, pack
from engine.schema import Model, ModelState
from engine.store.base import StoreFilter, StoreHit, StoreLayout
from engine.store.records import global_query, local_constants, local_query

FIRST = 128
"""Outputs fetched by each part in the first round at least: on real models this certifies nearly every top 10."""

PER_HIT = 5
"""Outputs fetched by each part in the first round for each hit that is wanted."""

MOST = 16_384
"""Outputs fetched by each part at most, unless told."""

SLACK = 2e-3
"""How much a margin of a store's float32 scores may be off. On 85,306 outputs of real models (800 probes, r = 50,
d = 384) either part was off by 1e-5 at most, in the worst order of addition. The error grows with h / s, which was
below 20 there and would have to be above a thousand for this to be too little; h is at most about the root of the
number of probes."""

EASE = 0.6
"""Share of a threshold that a query asks with; see ``threshold_query``. With 1, three of a hundred concepts on 85,306
outputs of real models had 1,900 to 7,500 outputs above their thresholds that were none; with 0.6 none had more than
74."""

Key = tuple[str, str, int]
"""An output: repository, revision, place in the model's answer."""

Allowed = Callable[[Mapping[str, Model]], set[str]]
"""Which of some models may be found, by their records."""


class CandidateStore(Protocol):
    """What is asked of a store; see :class:`engine.store.server.ServerStore`."""

    layout: StoreLayout

    def query_local(
        self,
        indices: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        limit: int,
        threshold: float | None = None,
        where: StoreFilter | None = None,
    ) -> list[StoreHit]:
        """Outputs with the largest scores of the local part, only those above a threshold."""

    def query_global(
        self, vector: npt.NDArray[np.float32], limit: int, where: StoreFilter | None = None
    ) -> list[StoreHit]:
        """Outputs with the largest global parts."""

    def global_scores(self, hits: Sequence[StoreHit], vector: npt.NDArray[np.float32]) -> FloatArray:
        """Global parts of known outputs, in their order; -inf for one that is gone."""

    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """Those outputs, one table a model; ones that are gone are left out."""

    def records_of(self, repos: Sequence[str]) -> dict[str, Model]:
        """The records of those repositories that have one."""


class Candidates(NamedTuple):
    """What a prefetch found.

    Attributes:
        near: Every output that can be among the k best of those that were looked at, best first; scores are estimates
            of the margin, off by ``SLACK`` at most.
        certified: Whether no other output of the store can be among the k best.
        looked_at: Outputs that were fetched, whether they count or not.
        rounds: How often both parts were asked for more.
    """

    near: tuple[StoreHit, ...]
    certified: bool
    looked_at: int
    rounds: int


@dataclass(frozen=True)
class Finished:
    """The best of some candidates.

    Attributes:
        hits: Best first, equal ones by repository and output; the score is the exact margin, bit for bit the scan's.
        tables: Everything about these outputs and those that come close, one table a model, by repository.
    """

    hits: tuple[StoreHit, ...]
    tables: tuple[OutputTable, ...]


class Prefetch:
    """Candidates of one state of a store. It remembers records and outputs, so make a new one for another state.

    Args:
        store: The store.
        where: Which outputs may be found; None for all. A store may let through some more.
        allowed: Of the models whose outputs ``where`` lets through, those that may be found; None for all.
        most: Outputs fetched by each part at most, >= 1; ``MOST`` unless told.

    Attributes:
        dropped: Outputs that were found and do not count.
    """

    def __init__(
        self,
        store: CandidateStore,
        where: StoreFilter | None = None,
        allowed: Allowed | None = None,
        most: int | None = None,
    ) -> None:
        self._store = store
        self._where = where
        self._allowed = allowed
        self._most = most or MOST
        self._method: Method = check_method(store.layout.method)
        self._records: dict[str, Model | None] = {}
        self._rows: dict[Key, tuple[OutputTable, int]] = {}
        self.dropped: set[Key] = set()

    def records(self) -> dict[str, Model]:
        """The records of the models that were looked at and may be found, by repository."""
        return {repo: record for repo, record in self._records.items() if record is not None}

    def candidates(self, concepts: ConceptDescriptors, c: int, k: int) -> Candidates:
        """The outputs that can be among the k best for a concept, widened until that is certain or they are too many.

        Args:
            concepts: Concepts over the probes of the store.
            c: Which of them.
            k: Hits wanted, >= 1.

        Raises:
            StoreError: The store does not answer.
        """
        search = _Search(concepts, c, self._vector(concepts, c))
        limit, rounds = min(max(FIRST, PER_HIT * k), self._most), 1
        # Where a share of the threshold lets too many through, none of it does not, and the other way round.
        while not (certified := self._widen(search, k, limit, EASE * (rounds % 2))) and limit < self._most:
            limit, rounds = min(2 * limit, self._most), rounds + 1
        return Candidates(_near(search.margins, k), certified, len(search.seen), rounds)

    def near(self, hits: Sequence[StoreHit], concepts: ConceptDescriptors, c: int, k: int) -> tuple[StoreHit, ...]:
        """Of some outputs those that can be among the k best, best first; scores are estimates of the margin.

        Args:
            hits: Outputs, each once; their scores are not used. Those that no record claims are dropped.
            concepts: Concepts over the probes of the store.
            c: Which of them.
            k: Hits wanted, >= 1.

        Raises:
            StoreError: The store does not answer.
        """
        search = _Search(concepts, c, self._vector(concepts, c))
        self._look(search, hits, {})
        return _near(search.margins, k)

    def finish(self, hits: Sequence[StoreHit], concepts: ConceptDescriptors, c: int, k: int) -> Finished:
        """The k best of some outputs, exactly; see :meth:`near`. Only the anchors of those near the top are fetched.

        Raises:
            StoreError: The store does not answer.
        """
        tables = self._store.rows(self.near(hits, concepts, c, k))
        exact: list[StoreHit] = []
        for table in tables:
            arrays = pack(table.idx, table.z, table.anchor, table.calibration)
            margin = exact_margins(arrays, np.arange(len(table)), concepts, c, self._method)
            exact += [StoreHit(*key, score) for key, score in zip(_keys(table), margin.tolist(), strict=True)]
        exact.sort(key=lambda hit: (-hit.score, hit.repo, hit.output))
        return Finished(tuple(exact[:k]), tuple(tables))

    def _widen(self, search: _Search, k: int, limit: int, ease: float) -> bool:
        """Looks at the best by each part; whether no other output can be among the k best."""
        g = 0.0
        if search.vector is not None:
            dense = self._store.query_global(search.vector, limit, self._where)
            self._look(search, dense, {_key(hit): hit.score for hit in dense})
            if len(dense) < limit:
                return True  # there are no others
            g = dense[-1].score
        best = _kth(search.margins.values(), k)
        if search.vector is None or best is None:  # no threshold yet: those that are closer than their background
            loose = self._store.query_local(*local_query(search.z, 0.0), limit, None, self._where)
            self._look(search, loose, {})
            if len(loose) < limit:
                return True
            best = _kth(search.margins.values(), k)
            if best is None:
                return False
        t = best - g - SLACK
        indices, values, least = threshold_query(search.z, t, ease)
        above = self._store.query_local(indices, values, limit, least, self._where)
        self._look(search, above, {})
        return len(above) < limit

    def _look(self, search: _Search, hits: Sequence[StoreHit], known: Mapping[Key, float]) -> None:
        """Estimates the margins of outputs that were not looked at yet; drops those that no record claims.

        Args:
            search: What is searched for.
            hits: Outputs.
            known: Global parts that are known already.
        """
        new = [hit for hit in hits if _key(hit) not in search.seen]
        search.seen.update(map(_key, new))
        self._fetch_records({hit.repo for hit in new})
        live = [hit for hit in new if self._counts(hit)]
        self.dropped.update({_key(hit) for hit in new} - {_key(hit) for hit in live})
        self._fetch_rows(live)
        live = [hit for hit in live if _key(hit) in self._rows]  # the others are gone meanwhile
        if not live:
            return
        margins = self._local(live, search.z)
        if search.vector is not None:
            unknown = [hit for hit in live if _key(hit) not in known]
            scores = self._store.global_scores(unknown, search.vector).tolist() if unknown else []
            asked = {_key(hit): score for hit, score in zip(unknown, scores, strict=True)}
            margins = margins + np.array([known.get(_key(hit), asked.get(_key(hit), 0.0)) for hit in live])
        search.margins.update({_key(hit): m for hit, m in zip(live, margins.tolist(), strict=True) if np.isfinite(m)})

    def _fetch_records(self, repos: Iterable[str]) -> None:
        new = sorted(set(repos) - self._records.keys())
        if not new:
            return
        found = self._store.records_of(new)
        indexed = {repo: record for repo, record in found.items() if record.state is ModelState.INDEXED}
        passing = set(indexed) if self._allowed is None else self._allowed(indexed)
        self._records.update({repo: indexed.get(repo) if repo in passing else None for repo in new})

    def _counts(self, hit: StoreHit) -> bool:
        record = self._records[hit.repo]
        return record is not None and record.revision == hit.revision

    def _fetch_rows(self, hits: Sequence[StoreHit]) -> None:
        new = [hit for hit in hits if _key(hit) not in self._rows]
        if new:
            for table in self._store.rows(new, anchors=False):
                self._rows.update({key: (table, i) for i, key in enumerate(_keys(table))})

    def _local(self, hits: Sequence[StoreHit], z_c: FloatArray) -> npt.NDArray[np.float64]:
        """Local parts of the margins of outputs whose rows are here, from the exact numbers, ``[hits]``."""
        rows = [self._rows[_key(hit)] for hit in hits]
        idx, z = np.stack([t.idx[i] for t, i in rows]), np.stack([t.z[i] for t, i in rows])
        constants = [local_constants(t.calibration.take(slice(i, i + 1)), self._method) for t, i in rows]
        h, s = (np.concatenate(column) for column in zip(*constants, strict=True))
        gap = z.astype(np.float64) - z_c[idx]
        return np.asarray((h - np.sqrt((weights(z, self._method) * gap * gap).sum(axis=1))) / s)

    def _vector(self, concepts: ConceptDescriptors, c: int) -> FloatArray | None:
        """The dense query for a concept; None for methods without a global part."""
        if self._method not in {"dual", "whitened"}:
            return None
        return global_query(concepts.take(c).directions(self._method == "whitened")[0])


def threshold_query(z_c: FloatArray, t: float, ease: float = EASE) -> tuple[npt.NDArray[np.uint32], FloatArray, float]:
    """A sparse query, and a score above which every output is whose local part of the margin is above t.

    With the query value t the scores above t are exactly those outputs, but for outputs with h / s < t: they cannot
    have such a margin, and when t is large many have such a score (:mod:`engine.store.records`). With a lower value
    ``u = ease t`` an output with the margin m has the score ``u + (m - u) (1 - (m + u) s / 2h)``. As m <= h / s, that
    is at least ``u + (m - u)² / 2m``, which grows with m: all margins above t have scores above ``u + (t - u)² / 2t``.
    Outputs with h / s from ``ease² t`` to t have none; others with margins a little below t do.

    Args:
        z_c: Standardised similarities of the concept to all n probes ``[n]``.
        t: The threshold; the query asks for one that is not above 0 as it is, for which there are no such outputs.
        ease: From 0, which outputs with h / s < t never pass, to 1.

    Returns:
        Dimensions, values and the score.
    """
    u = ease * t if t > 0 else t
    return *local_query(z_c, u), u + (t - u) ** 2 / (2 * t) if t > 0 else t


def finish(
    store: CandidateStore, hits: Sequence[StoreHit], concepts: ConceptDescriptors, c: int, method: Method, k: int
) -> Finished:
    """The k best of some candidates of any origin, exactly; see :meth:`Prefetch.finish`.

    Raises:
        StoreError: The store does not answer.
        ValueError: The vectors of the store serve another method.
    """
    if method != store.layout.method:
        raise ValueError(f"the vectors of the store serve {store.layout.method}, not {method}")
    return Prefetch(store).finish(hits, concepts, c, k)


class _Search:
    """What is known so far about one concept: outputs looked at, and estimated margins of those that count."""

    def __init__(self, concepts: ConceptDescriptors, c: int, vector: FloatArray | None) -> None:
        self.z: FloatArray = concepts.z[c]
        self.vector = vector
        self.seen: set[Key] = set()
        self.margins: dict[Key, float] = {}


def _key(hit: StoreHit) -> Key:
    return hit.repo, hit.revision, hit.output


def _keys(table: OutputTable) -> list[Key]:
    return [(table.repo, table.revision, output) for output in table.output.tolist()]


def _kth(margins: Iterable[float], k: int) -> float | None:
    """The k-th largest; None if there are fewer."""
    found = np.fromiter(margins, np.float64)
    return float(np.partition(found, len(found) - k)[len(found) - k]) if len(found) >= k else None


def _near(margins: Mapping[Key, float], k: int) -> tuple[StoreHit, ...]:
    """Those whose margin can be among the k largest, by estimates that are off by the slack at most."""
    best = _kth(margins.values(), k)
    least = -np.inf if best is None else best - 2 * SLACK
    near = [StoreHit(*key, margin) for key, margin in margins.items() if margin >= least]
    return tuple(sorted(near, key=lambda hit: (-hit.score, hit.repo, hit.output)))
