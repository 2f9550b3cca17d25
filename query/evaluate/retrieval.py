"""The evaluation of retrieval: every task with every method, over several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from engine.calibration import BACKGROUND_SIZE, NEAREST, Background, draw_background
from engine.descriptors import ConceptDescriptors, FloatArray, concept_descriptors
from engine.errors import InputError
from query.evaluate.labelled import ImageLabels, LabelledImages, seen_classes
from query.evaluate.methods import DIVISIVE, Setting, Workbench, check_name
from query.evaluate.metrics import coverage
from query.evaluate.queries import MARKS, group_by_seen, grouped_by_seen
from query.evaluate.results import Curve, RetrievalReport
from query.evaluate.scorers import Rows, Scorer, WpmiScorer, best_outputs, best_places, score_all, some_concepts
from query.evaluate.tally import TIMED, Tally, groups_of
from query.evaluate.tasks import (
    TASKS,
    best_models,
    draw_image_queries,
    draw_lists,
    list_ranks,
    model_maxima,
    model_ranks,
    nameable,
    naming_ranks,
    output_ranks,
    quality_curve,
    rows_of_classes,
    words_of,
)
from query.evaluate.zoo import Query, Zoo

Embed = Callable[[Sequence[str]], FloatArray]
"""Embeds texts, ``[texts, d]``."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being done)."""

CEILING = 4.0
"""Concept lists are also ranked with this ceiling on the margins of ``whitened``."""

_SHOWN = 5  # answers of a timed query


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of an evaluation.

    Attributes:
        methods: Names of ``METHODS``, in the order of the rows.
        r: Kept probes.
        k: Nearest background concepts that make the hubness.
        background: How many background concepts.
        seeds: Each draws background, probe subset, lists and images anew.
        probes: Evaluate over so many of the probes, drawn by the seed; None for all.
        lists: How many concept lists.
        image_counts: Images of one image query.
        tasks: Some of ``TASKS``.
    """

    methods: tuple[str, ...]
    r: int = 50
    k: int = NEAREST
    background: int = BACKGROUND_SIZE
    seeds: tuple[int, ...] = (0,)
    probes: int | None = None
    lists: int = 500
    image_counts: tuple[int, ...] = (1, 5, 10)
    tasks: tuple[str, ...] = TASKS


def check_settings(settings: Settings, n: int) -> None:
    """Refuses settings that cannot be evaluated.

    Args:
        settings: The settings.
        n: How many probes the zoo has.

    Raises:
        InputError: A method or task is unknown, or a number is out of range; the message says which.
    """
    for name in settings.methods:
        check_name(name)
    for task in settings.tasks:
        if task not in TASKS:
            raise InputError(f"task {task!r} is unknown: use some of {', '.join(TASKS)}")
    if not settings.methods or not settings.tasks or not settings.seeds:
        raise InputError("an evaluation needs at least one method, one task and one seed")
    if min(settings.seeds) < 0:
        raise InputError(f"seed {min(settings.seeds)}: a seed is 0 or larger")
    probes = n if settings.probes is None else settings.probes
    if not 2 <= probes <= n:
        raise InputError(f"{probes} probes: there are {n}, take 2 to {n} of them")
    if not 1 <= settings.r <= probes:
        raise InputError(f"top r is {settings.r}: it must lie between 1 and the number of probes, {probes}")
    if not 1 <= settings.k < settings.background:
        raise InputError(
            f"k = {settings.k} with a background of {settings.background}: k must lie between 1 and the size of the "
            "background less 1"
        )
    if settings.lists < 1 or min(settings.image_counts, default=1) < 1:
        raise InputError("lists and image counts: ask for at least one")


def draw_from_pool(pool: Sequence[str], count: int, seed: int, without: Sequence[str] = ()) -> tuple[str, ...]:
    """A background from names of the caller's.

    Args:
        pool: The names; double ones count once.
        count: How many to draw.
        seed: Of the draw.
        without: Names that must not occur (case is ignored).

    Raises:
        InputError: There are fewer names than asked for.
    """
    barred = {name.casefold() for name in without}
    names = [name for name in dict.fromkeys(pool) if name.casefold() not in barred]
    if count > len(names):
        raise InputError(f"a background of {count} phrases: the pool has only {len(names)} that are not queries")
    return tuple(names[i] for i in np.random.default_rng(seed).choice(len(names), count, replace=False))


def check_case(zoo: Zoo, queries: Sequence[Query], settings: Settings, pool: Sequence[str] | None = None) -> None:
    """Refuses what cannot be evaluated; quick, as nothing is embedded. The arguments are those of ``evaluate``.

    Raises:
        InputError: See ``check_settings``; no query has a right answer; or there are too few background names.
    """
    check_settings(settings, zoo.responses.shape[1])
    asked = _answered(queries, rows_of_classes(zoo))
    _draw_names(settings, settings.seeds[0], asked, pool)


def _answered(queries: Sequence[Query], of_class: Mapping[str, Rows]) -> tuple[Query, ...]:
    found = tuple(query for query in queries if query.cls in of_class)
    if not found:
        raise InputError("no query has a right answer: no output is known to stand for any of their classes")
    return found


def _draw_names(settings: Settings, seed: int, queries: Sequence[Query], pool: Sequence[str] | None) -> tuple[str, ...]:
    draw = settings.background, seed, [query.text for query in queries]
    return draw_background(*draw) if pool is None else draw_from_pool(pool, *draw)


def evaluate(
    zoo: Zoo,
    queries: Sequence[Query],
    embed: Embed,
    settings: Settings,
    images: ImageLabels | None = None,
    pool: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    curves: bool = True,
) -> RetrievalReport:
    """Asks every task with every method.

    Curves and times are those of the first seed. Queries whose class no output stands for are not asked. Queries in the
    groups seen and unseen are parted anew for every seed where images are given: seen is a class with a labelled image
    among the probes that are used.

    Args:
        zoo: The outputs and what they stand for.
        queries: What is asked.
        embed: The encoder behind the zoo's probes.
        settings: Everything else that decides the numbers.
        images: For seen and unseen, the quality curve and, ``LabelledImages`` only, image queries. Those that are no
            probes are the image queries; if all are, half of the probes are held out, and the image queries are asked
            of the zoo with the other half.
        pool: Names to draw the background from; by default the class names of ImageNet-21k.
        progress: Called before every method and at the end.
        curves: Whether to measure hubness and quality curves, too.

    Returns:
        The report. ``settings["notes"]`` says what was left out and why.

    Raises:
        InputError: A setting is out of range, or no query has a right answer.
    """
    started = time.perf_counter()
    check_settings(settings, zoo.responses.shape[1])
    run = _Run(zoo, queries, embed, settings, images, pool, progress, curves)
    for seed in settings.seeds:
        run.seed(seed)
    run.step("done")
    return RetrievalReport(
        settings=run.described(),
        tables=run.tally.tables(),
        hubness=tuple(run.hubness),
        quality=tuple(run.quality),
        seconds=round(time.perf_counter() - started, 3),
    )


class _Run:
    """One evaluation under way; see ``evaluate``."""

    def __init__(
        self,
        zoo: Zoo,
        queries: Sequence[Query],
        embed: Embed,
        settings: Settings,
        images: ImageLabels | None,
        pool: Sequence[str] | None,
        progress: Progress | None,
        curves: bool,
    ) -> None:
        of_class = rows_of_classes(zoo)
        self.queries = _answered(queries, of_class)
        self.notes: dict[str, None] = {}  # a set in order
        if len(self.queries) < len(queries):
            self.notes[f"{len(queries) - len(self.queries)} queries not asked: no output stands for their class"] = None
        self.zoo, self.embed, self.settings, self.images, self.pool = zoo, embed, settings, images, pool
        self.of_class = of_class
        self.right = [of_class[query.cls] for query in self.queries]
        self.methods = tuple(dict.fromkeys(settings.methods))
        self.curves = curves
        self._by_seen = images is not None and grouped_by_seen(self.queries)
        self.tally = Tally(dict.fromkeys((*groups_of(self.queries), *(MARKS if self._by_seen else ()))))
        self.hubness: list[Curve] = []
        self.quality: list[Curve] = []
        self._progress = progress
        self._with_texts = bool(set(settings.tasks) - {"images"})
        self._with_images = "images" in settings.tasks and isinstance(images, LabelledImages)
        if "images" in settings.tasks and not self._with_images:
            if not self._with_texts:
                raise InputError("image queries need images whose class is known: give some, or choose other tasks")
            self.notes["image queries left out: no labelled images were given"] = None
        self._steps = len(settings.seeds) * len(self.methods) * (self._with_texts + self._with_images)
        self._done = -1
        self.vectors = embed([query.text for query in self.queries])

    def step(self, description: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._steps, description)

    def described(self) -> dict[str, object]:
        encoded: dict[str, object] = {name: _plain(value) for name, value in asdict(self.settings).items()}
        return encoded | {
            "outputs": len(self.zoo),
            "models": len(self.zoo.models),
            "zoo_probes": self.zoo.responses.shape[1],
            "queries": len(self.queries),
            "background_from": "ImageNet-21k" if self.pool is None else f"a pool of {len(self.pool)} names",
            "notes": list(self.notes),
        }

    def seed(self, seed: int) -> None:
        """Everything of one seed."""
        n = self.zoo.responses.shape[1]
        chosen = np.arange(n)
        if self.settings.probes is not None:
            chosen = np.sort(np.random.default_rng([seed, 1]).choice(n, self.settings.probes, replace=False))
        queries = self.queries
        if self.images is not None and self._by_seen:
            queries = group_by_seen(queries, seen_classes(self.images, chosen))
        names = _draw_names(self.settings, seed, queries, self.pool)
        background = self.embed(names)
        zoo = self.zoo if self.settings.probes is None else self.zoo.with_probes(chosen)
        bench = self._bench(zoo, names, background)
        if self._with_texts:
            self._texts(bench, queries, chosen, seed)
        if isinstance(self.images, LabelledImages) and self._with_images:
            self._images(bench, self.images, queries, names, background, chosen, seed)

    def _bench(self, zoo: Zoo, names: tuple[str, ...], vectors: FloatArray) -> Workbench:
        background = Background.describe(names, vectors, zoo.probes, self.settings.k)
        concepts = concept_descriptors(self.vectors, zoo.probes, background.whitening)
        return Workbench(zoo, background, Setting(self.settings.r, self.settings.k), concepts)

    def _texts(self, bench: Workbench, queries: Sequence[Query], chosen: Rows, seed: int) -> None:
        """The tasks whose questions are texts."""
        concepts = concept_descriptors(self.vectors, bench.zoo.probes, bench.background.whitening)
        zoo, tasks, first = bench.zoo, self.settings.tasks, seed == self.settings.seeds[0]
        groups = [query.groups for query in queries]
        words = words_of(queries)
        named = nameable(zoo, words)
        lists = draw_lists(zoo, queries, self.settings.lists, seed) if "lists" in tasks else ()
        if "lists" in tasks and not lists:
            self.notes["concept lists left out: no model has three of the classes"] = None
        of_lists = [frozenset.intersection(*(frozenset(groups[q]) for q in asked.queries)) for asked in lists]
        for method in self.methods:
            self.step(f"{method}, seed {seed}: texts")
            scorer = bench.scorer(method)
            scores = score_all(scorer, concepts, len(zoo))
            if "output" in tasks:
                top = scores.argmax(axis=1)
                self.tally.add("output", method, output_ranks(scores, self.right), groups, top)
                if first and self.curves:
                    self.hubness.append(_curve(method, coverage(top)))
            if "model" in tasks:
                self.tally.add("model", method, model_ranks(scores, self.right, zoo), groups)
            if "naming" in tasks:
                self.tally.add("naming", method, naming_ranks(scores, words, named), named.groups)
                ranks = naming_ranks(scores, words, named, calibrate_words=True)
                self.tally.add("naming", f"{method}, words calibrated", ranks, named.groups)
            if lists:
                self.tally.add("lists", method, list_ranks(scores, lists, zoo.starts), of_lists)
                if method.removesuffix(DIVISIVE) == "whitened":  # the others' margins are on other scales
                    ranks = list_ranks(scores, lists, zoo.starts, CEILING)
                    self.tally.add("lists", f"{method}, ceiling {CEILING:g}", ranks, of_lists)
            if first:
                self._quality(method, scores, zoo, chosen)
                asked = [np.asarray(one.queries) for one in lists]
                self._time_texts(method, scorer, concepts, zoo, words.first, named.rows, asked)

    def _quality(self, method: str, scores: FloatArray, zoo: Zoo, chosen: Rows) -> None:
        if self.images is None or not self.curves or "output" not in self.settings.tasks:
            return
        positions = self._positions(self.images, chosen)
        is_probe = positions >= 0
        labels = [cls for cls, there in zip(self.images.classes, is_probe, strict=True) if there]
        curve = quality_curve(scores, [query.cls for query in self.queries], zoo, positions[is_probe], labels)
        if len(curve):
            self.quality.append(_curve(method, curve))

    def _positions(self, images: ImageLabels, chosen: Rows) -> Rows:
        """Where the labelled images stand among the chosen probes; -1 for those that are not there."""
        places = np.full(self.zoo.responses.shape[1] + 1, -1, np.int64)  # the last one is what -1 points to
        places[chosen] = np.arange(len(chosen))
        return np.asarray(places[images.probe])

    def _time_texts(
        self,
        method: str,
        scorer: Scorer,
        concepts: ConceptDescriptors,
        zoo: Zoo,
        words: Rows,
        named: Rows,
        lists: Sequence[Rows],
    ) -> None:
        tasks, single = self.settings.tasks, _spread(len(concepts))
        one = [some_concepts(concepts, slice(i, i + 1)) for i in single]
        if "output" in tasks:
            self._time_outputs("output", method, scorer, concepts)
        if "model" in tasks:
            self.tally.time(
                "model", method, lambda i: best_places(model_maxima(scorer(one[i]), zoo.starts), _SHOWN), len(one)
            )
        if "naming" in tasks:
            spoken, outputs = some_concepts(concepts, words), named[_spread(len(named))]
            for name in (method, f"{method}, words calibrated"):  # the word's constants are known beforehand
                self.tally.time(
                    "naming", name, lambda i: best_places(scorer(spoken, outputs[i : i + 1]).T, _SHOWN), len(outputs)
                )
        if lists:
            asked = [some_concepts(concepts, lists[i]) for i in _spread(len(lists))]
            self.tally.time("lists", method, lambda i: best_models(scorer(asked[i]), zoo.starts, _SHOWN), len(asked))

    def _images(
        self,
        bench: Workbench,
        images: LabelledImages,
        queries: Sequence[Query],
        names: tuple[str, ...],
        background: FloatArray,
        chosen: Rows,
        seed: int,
    ) -> None:
        """Image queries."""
        positions = self._positions(images, chosen)
        free = positions < 0
        held_out = not free.any()
        if held_out:
            n = len(chosen)
            rest = np.sort(np.random.default_rng([seed, 2]).permutation(n)[: n - n // 2])
            bench = self._bench(bench.zoo.with_probes(rest), names, background)
            free = ~np.isin(positions, rest)
            self.notes["image queries: all labelled images are probes, half of the probes were held out"] = None
        classes = [cls for cls, usable in zip(images.classes, free, strict=True) if usable]
        wanted = [query.cls for query in queries]
        # With probes held out, "seen" and the like no longer hold.
        own = {query.cls: () if held_out else query.groups for query in queries}
        questions: list[tuple[str, tuple[str, ...], ConceptDescriptors]] = []
        for count in self.settings.image_counts:
            found, vectors = draw_image_queries(images.vectors[free], classes, wanted, count, seed)
            if found:
                concepts = concept_descriptors(vectors, bench.zoo.probes, bench.background.whitening)
                questions.append((f"images-{count}", found, concepts))
            else:
                self.notes[f"image queries of {count} left out: no class has so many images that are no probes"] = None
        for method in self.methods:
            self.step(f"{method}, seed {seed}: images")
            made = bench.scorer(method)
            for task, found, concepts in questions:
                scorer = made.within(concepts) if isinstance(made, WpmiScorer) else made
                scores = score_all(scorer, concepts, len(bench.zoo))
                ranks = output_ranks(scores, [self.of_class[cls] for cls in found])
                self.tally.add(task, method, ranks, [own[cls] for cls in found], scores.argmax(axis=1))
                if seed == self.settings.seeds[0]:
                    self._time_outputs(task, method, scorer, concepts)

    def _time_outputs(self, task: str, method: str, scorer: Scorer, concepts: ConceptDescriptors) -> None:
        one = [some_concepts(concepts, slice(i, i + 1)) for i in _spread(len(concepts))]
        self.tally.time(task, method, lambda i: best_outputs(scorer, one[i], _SHOWN), len(one))


def _spread(count: int) -> npt.NDArray[np.int64]:
    """At most ``TIMED`` places, evenly spread over so many."""
    return np.unique(np.linspace(0, count - 1, min(count, TIMED)).astype(np.int64))


def _curve(method: str, y: npt.NDArray[np.float64]) -> Curve:
    return Curve(method=method, x=tuple(float(i + 1) for i in range(len(y))), y=tuple(y.tolist()))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
