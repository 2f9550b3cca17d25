"""The tally of an evaluation: ranks of every task, method and seed in, tables out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import mean, median, stdev

import numpy as np

from query.evaluate.metrics import Ranks, half_coverage, hit_at, mean_reciprocal_rank
from query.evaluate.results import Figure, Row, Table
from query.evaluate.scorers import Rows
from query.evaluate.zoo import Query

ALL = "all"
"""The group of all queries."""

TIMED = 20
"""How many single queries are timed."""


class Tally:
    """Collects what the methods reached.

    Args:
        groups: The groups to report beside ``all``, in order.
    """

    def __init__(self, groups: Iterable[str]) -> None:
        self._groups = (ALL, *groups)
        self._seen: dict[tuple[str, str, str], list[dict[str, float]]] = {}
        self._queries: dict[tuple[str, str, str], list[int]] = {}
        self._milliseconds: dict[tuple[str, str], float] = {}

    def add(
        self, task: str, method: str, ranks: Ranks, groups: Sequence[Collection[str]], top: Rows | None = None
    ) -> None:
        """Adds one seed's ranks; a group without queries is left out.

        Args:
            task: Of which task; tables and rows come in the order in which they are first added.
            method: Of which method.
            ranks: From 1, 0 for not found, ``[q]``.
            groups: The groups of each query, q entries.
            top: The first answer to each query, where its hubness is to be reported.
        """
        for group in self._groups:
            chosen = np.asarray([group == ALL or group in own for own in groups], dtype=np.bool_)
            if not chosen.any():
                continue
            some = ranks[chosen]
            figures = {"hit@1": hit_at(some, 1), "hit@5": hit_at(some, 5), "mrr": mean_reciprocal_rank(some)}
            if top is not None:
                figures["half-coverage"] = float(half_coverage(top[chosen]))
            self._seen.setdefault((task, method, group), []).append(figures)
            self._queries.setdefault((task, method, group), []).append(int(chosen.sum()))

    def time(self, task: str, method: str, ask: Callable[[int], object], count: int) -> float:
        """Times single queries of one task with one method; the first is asked once more before.

        Args:
            task: Of which task.
            method: Of which method.
            ask: Answers query i.
            count: How many queries there are, >= 1; at most ``TIMED`` are asked.

        Returns:
            The median in milliseconds.
        """
        ask(0)
        taken = []
        for i in range(min(count, TIMED)):
            started = time.perf_counter()
            ask(i)
            taken.append(time.perf_counter() - started)
        self._milliseconds[task, method] = round(1000 * median(taken), 4)
        return self._milliseconds[task, method]

    def tables(self) -> tuple[Table, ...]:
        """One table a task; figures and numbers of queries are means over the seeds that have such queries."""
        rows: dict[str, list[Row]] = {}
        for (task, method, group), seeds in self._seen.items():
            figures = {name: _figure([seed[name] for seed in seeds]) for name in seeds[0]}
            rows.setdefault(task, []).append(
                Row(
                    method=method,
                    group=group,
                    queries=round(mean(self._queries[task, method, group])),
                    figures=figures,
                    milliseconds=self._milliseconds.get((task, method)),
                )
            )
        return tuple(Table(task=task, rows=tuple(own)) for task, own in rows.items())


def groups_of(queries: Iterable[Query]) -> tuple[str, ...]:
    """Every group of some queries, by first appearance."""
    return tuple(dict.fromkeys(group for query in queries for group in query.groups if group != ALL))


def _figure(values: Sequence[float]) -> Figure:
    return Figure(mean=mean(values), sd=stdev(values) if len(values) > 1 else None)
