"""The tasks of an evaluation: what is asked of the scores of one method, and which answers are right.

``output``: a text finds an output. ``model``: a text finds a model, by its best output. ``naming``: an output finds its
text. ``lists``: several texts find a model that covers them all. ``images``: example images find an output.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.coverage_margins import damped
from engine.descriptors import FloatArray
from query.evaluate.metrics import Ranks, average_precision, first_hit_ranks
from query.evaluate.scorers import best_places
from query.evaluate.zoo import Query, Zoo

TASKS = ("output", "model", "naming", "lists", "images")

LIST_SIZES = (3, 10)
"""Fewest and most concepts of a list."""

DEPTH = 20
"""How far down lists and quality are looked at: a list whose first right model comes later counts as not found."""

_TURNS = 10  # queries of one class by images

_BLOCK = 8_000_000  # elements of one block of scores

Rows = npt.NDArray[np.int64]


def rows_of_classes(zoo: Zoo) -> dict[str, Rows]:
    """The outputs that stand for each class, ascending."""
    rows: dict[str, list[int]] = {}
    for row, classes in enumerate(zoo.classes):
        for cls in classes:
            rows.setdefault(cls, []).append(row)
    return {cls: np.asarray(found, dtype=np.int64) for cls, found in rows.items()}


def _blocks(count: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def output_ranks(scores: npt.NDArray[np.floating], right: Sequence[Rows]) -> Ranks:
    """Rank of the best right output for each query.

    Args:
        scores: ``[q, L]``.
        right: The right outputs of each query.

    Returns:
        int64 ``[q]``, from 1; 0 for a query without a right output.
    """
    ranks = np.zeros(len(scores), np.int64)
    for block in _blocks(len(scores), scores.shape[1]):
        marked = np.zeros(scores[block].shape, np.bool_)
        for i, rows in enumerate(right[block]):
            marked[i, rows] = True
        ranks[block] = first_hit_ranks(scores[block], marked)
    return ranks


def model_maxima(scores: FloatArray, starts: Rows) -> FloatArray:
    """The score of each model's best output.

    Args:
        scores: ``[q, L]``.
        starts: First row of each model and, last, L: ``[models + 1]``.

    Returns:
        float32 ``[q, models]``; -inf for a model without outputs.
    """
    out = np.full((len(scores), len(starts) - 1), -np.inf, np.float32)
    filled = np.nonzero(np.diff(starts))[0]
    if len(filled):
        out[:, filled] = np.maximum.reduceat(scores, starts[filled], axis=1)
    return out


def model_ranks(scores: FloatArray, right: Sequence[Rows], zoo: Zoo) -> Ranks:
    """Rank of the best right model for each query: one that has a right output, whichever of its outputs scored.

    Args:
        scores: ``[q, L]``.
        right: The right outputs of each query.
        zoo: Whose outputs they are.

    Returns:
        int64 ``[q]``, from 1; 0 for a query without a right output.
    """
    model_of = zoo.model_of
    return output_ranks(model_maxima(scores, zoo.starts), [model_of[rows] for rows in right])


@dataclass(frozen=True)
class Words:
    """The texts that outputs are named with: those of the queries, each once.

    Attributes:
        first: Position of the first query with each text, int64 ``[w]``.
        of_class: By class the words that are right for it.
        groups: Of each word: those of all queries with that text.
    """

    first: Rows
    of_class: Mapping[str, tuple[int, ...]]
    groups: tuple[frozenset[str], ...]


def words_of(queries: Sequence[Query]) -> Words:
    """The words of some queries; two queries of one text and different classes make one word that is right for both."""
    places: dict[str, int] = {}
    first: list[int] = []
    groups: list[set[str]] = []
    of_class: dict[str, dict[int, None]] = {}
    for i, query in enumerate(queries):
        word = places.setdefault(query.text, len(first))
        if word == len(first):
            first.append(i)
            groups.append(set())
        groups[word].update(query.groups)
        of_class.setdefault(query.cls, {})[word] = None
    return Words(
        np.asarray(first, dtype=np.int64),
        {cls: tuple(words) for cls, words in of_class.items()},
        tuple(frozenset(group) for group in groups),
    )


@dataclass(frozen=True)
class Named:
    """The outputs that can be named.

    Attributes:
        rows: Outputs with a class that a word stands for, int64 ``[a]``.
        right: The acceptable words of each.
        groups: Of each: those of its acceptable words.
    """

    rows: Rows
    right: tuple[Rows, ...]
    groups: tuple[frozenset[str], ...]


def nameable(zoo: Zoo, words: Words) -> Named:
    """The outputs with at least one known class that is among the queries'."""
    rows, right, groups = [], [], []
    for row, classes in enumerate(zoo.classes):
        found = sorted({word for cls in classes for word in words.of_class.get(cls, ())})
        if found:
            rows.append(row)
            right.append(np.asarray(found, dtype=np.int64))
            groups.append(frozenset().union(*(words.groups[word] for word in found)))
    return Named(np.asarray(rows, dtype=np.int64), tuple(right), tuple(groups))


def naming_ranks(scores: FloatArray, words: Words, named: Named, *, calibrate_words: bool = False) -> Ranks:
    """Rank of the best acceptable word for each nameable output, among all words.

    Args:
        scores: Of every query and output, ``[q, L]``.
        words: The words of the queries.
        named: Which outputs, and which words are right.
        calibrate_words: Take from each word its mean over all outputs and divide by its standard deviation over them,
            so that a word which lies near everything does not win everywhere.

    Returns:
        int64 ``[a]``, from 1.
    """
    mean, std = np.zeros(len(words.first)), np.ones(len(words.first))
    if calibrate_words:
        mean = np.asarray([scores[i].mean(dtype=np.float64) for i in words.first])
        std = np.asarray([max(scores[i].std(dtype=np.float64), 1e-12) for i in words.first])
    ranks = np.zeros(len(named.rows), np.int64)
    for block in _blocks(len(named.rows), len(scores)):
        columns = scores[np.ix_(words.first, named.rows[block])].T
        ranks[block] = output_ranks((columns - mean) / std, named.right[block])
    return ranks


@dataclass(frozen=True)
class ConceptList:
    """Several concepts that one model is to cover.

    Attributes:
        queries: Positions of the queries, 3 to 10 of them, all of different classes.
        models: The models that have all of their classes, as places in ``Zoo.models``.
    """

    queries: tuple[int, ...]
    models: frozenset[int]


def draw_lists(zoo: Zoo, queries: Sequence[Query], count: int, seed: int) -> tuple[ConceptList, ...]:
    """Draws lists of concepts that occur together: a model, how many, then as many of its classes.

    Args:
        zoo: The models; those with fewer than three classes among the queries' are not drawn.
        queries: What a class may be asked with; one is drawn where a class has several.
        count: How many lists.
        seed: Of the draw.

    Returns:
        As many lists, or none where no model has three of the classes.
    """
    asked: dict[str, list[int]] = {}
    for i, query in enumerate(queries):
        asked.setdefault(query.cls, []).append(i)
    classes_of = [
        frozenset().union(*zoo.classes[start:stop]) & asked.keys()
        for start, stop in zip(zoo.starts[:-1].tolist(), zoo.starts[1:].tolist(), strict=True)
    ]
    # A model with fewer outputs than concepts cannot give each an output of its own.
    most = np.minimum([len(classes) for classes in classes_of], np.diff(zoo.starts)).clip(max=LIST_SIZES[1])
    models = np.nonzero(most >= LIST_SIZES[0])[0]
    if not len(models):
        return ()
    rng = np.random.default_rng([seed, 3])
    lists = []
    for _ in range(count):
        model = int(rng.choice(models))
        size = int(rng.integers(LIST_SIZES[0], most[model] + 1))
        classes = sorted(classes_of[model])
        drawn = [classes[i] for i in rng.choice(len(classes), size, replace=False)]
        chosen = tuple(int(rng.choice(asked[cls])) for cls in drawn)
        lists.append(ConceptList(chosen, frozenset(m for m, has in enumerate(classes_of) if has.issuperset(drawn))))
    return tuple(lists)


def assign(scores: FloatArray) -> tuple[npt.NDArray[np.int64], float]:
    """The best assignment of distinct outputs to concepts.

    Args:
        scores: ``[m, outputs]``, at least as many outputs as concepts.

    Returns:
        The output of each concept, int64 ``[m]``, and the mean of their scores.
    """
    from scipy.optimize import linear_sum_assignment

    columns = scores.argmax(axis=1)
    if len(set(columns.tolist())) < len(columns):
        columns = linear_sum_assignment(scores, maximize=True)[1]
    return columns.astype(np.int64), float(scores[np.arange(len(scores)), columns].mean(dtype=np.float64))


def best_models(scores: npt.NDArray[np.floating], starts: Rows, k: int) -> tuple[Rows, npt.NDArray[np.float64]]:
    """The k models that cover several concepts best, each by its best assignment of distinct outputs.

    The mean of a model's independent maxima bounds its assignment from above: models are visited by descending bound
    until it falls below the k-th best assignment, so the answer is exact.

    Args:
        scores: Of m concepts and all outputs, ``[m, L]``.
        starts: First row of each model and, last, L.
        k: How many models, >= 1.

    Returns:
        Models and their mean scores, best first, equal ones by place; models with fewer outputs than concepts are left
        out.
    """
    bound = model_maxima(scores, starts).mean(axis=0, dtype=np.float64)
    able = np.nonzero(np.diff(starts) >= len(scores))[0]
    found: list[tuple[float, int]] = []  # a heap, the worst of the best first
    for model in able[np.argsort(-bound[able], kind="stable")].tolist():
        # The slack is for the rounding of two means of the same numbers.
        if len(found) == k and bound[model] < found[0][0] - 1e-9 * (1 + abs(found[0][0])):
            break
        value = assign(scores[:, starts[model] : starts[model + 1]])[1]
        if len(found) < k:
            heapq.heappush(found, (value, -model))
        else:
            heapq.heappushpop(found, (value, -model))
    ranked = sorted(found, reverse=True)
    return np.asarray([-model for _, model in ranked], dtype=np.int64), np.asarray([value for value, _ in ranked])


def list_ranks(scores: FloatArray, lists: Sequence[ConceptList], starts: Rows, ceiling: float = np.inf) -> Ranks:
    """Rank of the first model that has all classes of each list.

    Args:
        scores: Of all queries and outputs, ``[q, L]``.
        lists: What is asked.
        starts: First row of each model and, last, L.
        ceiling: Above this a score counts a hundredth (``engine.coverage.top_models``).

    Returns:
        int64, from 1; 0 where it is not among the first ``DEPTH``.
    """
    ranks = np.zeros(len(lists), np.int64)
    for i, asked in enumerate(lists):
        models, _ = best_models(damped(scores[list(asked.queries)], ceiling), starts, DEPTH)
        ranks[i] = next((place + 1 for place, model in enumerate(models.tolist()) if model in asked.models), 0)
    return ranks


def draw_image_queries(
    vectors: FloatArray,
    classes: Sequence[str],
    wanted: Sequence[str],
    count: int,
    seed: int,
) -> tuple[tuple[str, ...], FloatArray]:
    """Concepts from example images: the mean of the normalised embeddings of some images of a class.

    A class is asked for as often as it has so many images that no earlier query of it had, at most 10 times.

    Args:
        vectors: Normalised embeddings of the images, ``[m, d]``.
        classes: Their classes.
        wanted: The classes to ask for, in order.
        count: Images a query.
        seed: Of the draw.

    Returns:
        The class of each query, and the concepts, float32 ``[c, d]``.
    """
    of_class: dict[str, list[int]] = {}
    for i, cls in enumerate(classes):
        of_class.setdefault(cls, []).append(i)
    rng = np.random.default_rng([seed, 4])
    asked: list[str] = []
    means = []
    for cls in dict.fromkeys(wanted):
        members = rng.permutation(of_class.get(cls, []))
        for turn in range(min(len(members) // count, _TURNS)):
            asked.append(cls)
            chosen = members[turn * count : (turn + 1) * count].astype(np.intp)
            means.append(vectors[chosen].mean(axis=0, dtype=np.float64))
    return tuple(asked), np.asarray(means, dtype=np.float32).reshape(len(asked), vectors.shape[1])


def quality_curve(
    scores: FloatArray, classes: Sequence[str], zoo: Zoo, labelled: Rows, labels: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Whether better outputs come first: PR-AUC of the retrieved output against its rank.

    For each query the average precision of the retrieved output's responses over the labelled probes, those of the
    query's class being the right ones; figure 7 of the ProbeLog paper.

    Args:
        scores: ``[q, L]``.
        classes: Of the queries.
        zoo: The outputs.
        labelled: Positions of the labelled probes.
        labels: Their classes.

    Returns:
        float64, one entry a rank, at most ``DEPTH``: mean over the queries whose class has a labelled probe; empty
        without any.
    """
    own = np.asarray(labels, dtype=object)
    curves = []
    for block in _blocks(len(scores), scores.shape[1]):
        found = best_places(scores[block], DEPTH)
        for cls, rows in zip(classes[block], found, strict=True):
            right = np.asarray(own == cls, dtype=np.bool_)
            if right.any():
                curves.append(average_precision(zoo.responses[rows][:, labelled], right))
    return np.mean(curves, axis=0) if curves else np.zeros(0)
