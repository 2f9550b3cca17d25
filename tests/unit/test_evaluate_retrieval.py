"""An evaluation as a whole: its settings, seeds and groups, and the tally that adds them up."""

import numpy as np
import pytest

from engine.descriptors import normalise
from engine.errors import InputError
from query.evaluate import retrieval
from query.evaluate.labelled import ImageLabels, LabelledImages
from query.evaluate.queries import group_by_seen
from query.evaluate.results import RetrievalReport
from query.evaluate.retrieval import draw_from_pool, evaluate
from query.evaluate.tally import Tally
from query.evaluate.zoo import Query
from tests.support.small_index import D, encode, vector
from tests.support.small_zoo import CLASSES, POOL, N, make_world, make_zoo, usual


@pytest.fixture(scope="module")
def world():
    return make_world()


def figures(report, task, method, group="all"):
    table = next(table for table in report.tables if table.task == task)
    return next(row for row in table.rows if (row.method, row.group) == (method, group))


def hits(report, task="output", method="probelog", group="all"):
    return figures(report, task, method, group).figures["mrr"].mean


# ---- the tally


def test_tally_means_and_deviations_over_seeds():
    tally = Tally(("g",))
    groups = [("g",), (), ("g",)]
    tally.add("output", "m", np.array([1, 2, 6]), groups, np.array([4, 4, 5]))
    tally.add("output", "m", np.array([1, 1, 1]), groups, np.array([4, 5, 6]))
    table = tally.tables()[0]
    everything, group = table.rows
    assert (everything.group, everything.queries, group.group, group.queries) == ("all", 3, "g", 2)
    assert everything.figures["hit@1"].mean == pytest.approx((1 / 3 + 1) / 2)
    assert everything.figures["hit@1"].sd == pytest.approx(abs(1 - 1 / 3) / 2**0.5)
    assert group.figures["hit@5"].mean == pytest.approx(0.75)
    assert everything.figures["half-coverage"].mean == pytest.approx(1.5)
    assert everything.milliseconds is None


# ---- the evaluation


@pytest.fixture(scope="module")
def labelled(world):
    """Every probe, and five other images of five classes."""
    zoo, _, labels = world
    rng = np.random.default_rng(8)
    free = tuple(cls for cls in CLASSES[:5] for _ in range(5))
    vectors = normalise(np.stack([vector(cls) for cls in free]) + 0.1 * rng.standard_normal((25, D)))
    return LabelledImages((*labels, *free), np.r_[np.arange(N), np.full(25, -1)], np.concatenate([zoo.probes, vectors]))


def test_evaluate_every_task(world, labelled):
    zoo, queries, _ = world
    seen = []
    report = evaluate(
        zoo,
        queries,
        encode,
        usual(methods=("probelog", "truncated", "soft-wpmi"), image_counts=(1, 5, 6), seeds=(0, 1)),
        images=labelled,
        pool=POOL,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert [table.task for table in report.tables] == ["output", "model", "naming", "lists", "images-1", "images-5"]
    assert 0.7 < hits(report, group="unseen") < hits(report) < hits(report, group="seen")
    assert hits(report, method="truncated") < hits(report)
    output = figures(report, "output", "probelog")
    assert output.queries == 12
    assert figures(report, "output", "probelog", "unseen").queries == 4
    assert set(output.figures) == {"hit@1", "hit@5", "mrr", "half-coverage"}
    assert output.figures["hit@1"].sd is not None
    assert output.milliseconds is not None
    assert output.milliseconds > 0
    names = {row.method for row in report.tables[2].rows}
    assert names == {f"{m}{end}" for m in ("probelog", "truncated", "soft-wpmi") for end in ("", ", words calibrated")}
    assert figures(report, "naming", "probelog").queries == 26
    assert figures(report, "lists", "probelog").queries == 10
    assert figures(report, "images-5", "probelog").queries == 5
    assert hits(report, "images-5") == 1
    assert [curve.method for curve in report.hubness] == ["probelog", "truncated", "soft-wpmi"]
    assert report.hubness[0].y[-1] == 1
    assert [curve.method for curve in report.quality] == ["probelog", "truncated", "soft-wpmi"]
    assert report.settings["notes"] == ["image queries of 6 left out: no class has so many images that are no probes"]
    assert [done for done, _, _ in seen] == list(range(13))
    assert {total for _, total, _ in seen} == {12}
    assert RetrievalReport.model_validate_json(report.model_dump_json()) == report


def test_evaluate_output_agrees_with_the_tasks_by_hand(world, monkeypatch):
    """The scores are given: what is reported must be what the definitions say of them."""
    zoo, queries, _ = world
    fixed = np.random.default_rng(3).standard_normal((12, 26)).astype(np.float32)
    monkeypatch.setattr(retrieval, "score_all", lambda scorer, concepts, outputs: fixed)
    report = evaluate(zoo, queries, encode, usual(methods=("cosine",), tasks=("output",)), pool=POOL)
    ranks = [
        min(1 + int((fixed[c] > fixed[c, row]).sum()) for row in range(26) if query.cls in zoo.classes[row])
        for c, query in enumerate(queries)
    ]
    row = figures(report, "output", "cosine", "unseen")
    assert row.figures["hit@1"].mean == np.mean([rank == 1 for rank in ranks[8:]])
    assert row.figures["hit@5"].mean == np.mean([rank <= 5 for rank in ranks[8:]])
    assert row.figures["mrr"].mean == pytest.approx(np.mean([1 / rank for rank in ranks[8:]]))


def marked_ranks(zoo, queries, monkeypatch):
    """Scores that are given: the rank of each query is known, and the positions of the probes of every seed."""
    fixed = np.random.default_rng(3).standard_normal((12, 26)).astype(np.float32)
    monkeypatch.setattr(retrieval, "score_all", lambda scorer, concepts, outputs: fixed)
    used, make = [], retrieval.Workbench
    places = {row.tobytes(): i for i, row in enumerate(zoo.probes)}

    def remember(own, *rest):
        used.append([places[row.tobytes()] for row in own.probes])
        return make(own, *rest)

    monkeypatch.setattr(retrieval, "Workbench", remember)
    ranks = [
        min(1 + int((fixed[c] > fixed[c, row]).sum()) for row in range(26) if query.cls in zoo.classes[row])
        for c, query in enumerate(queries)
    ]
    return ranks, used


def test_seen_is_what_has_a_labelled_probe_among_those_used(world, monkeypatch):
    zoo, queries, labels = world
    ranks, used = marked_ranks(zoo, queries, monkeypatch)
    seeds = (0, 1, 2, 3)
    settings = usual(methods=("cosine",), tasks=("output", "naming"), probes=6, r=3, seeds=seeds)
    report = evaluate(zoo, queries, encode, settings, images=ImageLabels(labels, np.arange(N)), pool=POOL)
    assert len(used) == 4
    seen = [{labels[place] for place in places} for places in used]
    assert len({len(classes) for classes in seen}) > 1  # of another number in another seed
    for group, takes in (("seen", True), ("unseen", False)):
        own = [[r for r, q in zip(ranks, queries, strict=True) if (q.cls in classes) is takes] for classes in seen]
        row = figures(report, "output", "cosine", group)
        assert row.queries == round(sum(map(len, own)) / 4)
        assert row.figures["mrr"].mean == pytest.approx(np.mean([np.mean([1 / r for r in part]) for part in own]))
        assert row.figures["hit@5"].mean == pytest.approx(np.mean([np.mean([r <= 5 for r in part]) for part in own]))
        outputs = [sum(bool(classes & has) is takes for has in zoo.classes) for classes in seen]
        assert figures(report, "naming", "cosine", group).queries == round(sum(outputs) / 4)


def test_a_group_that_is_empty_for_a_seed_is_left_out_of_the_mean(world, monkeypatch):
    zoo, queries, _ = world
    ranks, used = marked_ranks(zoo, queries, monkeypatch)
    settings = usual(methods=("cosine",), tasks=("output",), probes=20, seeds=tuple(range(6)))
    images = ImageLabels(("class 2",), np.array([0]))
    # However the queries come marked, both groups are there.
    unseen = group_by_seen(queries, frozenset())
    report = evaluate(zoo, unseen, encode, settings, images=images, pool=POOL)
    there = [0 in places for places in used]
    assert 0 < sum(there) < 6
    row = figures(report, "output", "cosine", "seen")
    assert row.queries == 1
    assert row.figures["mrr"].mean == pytest.approx(1 / ranks[2])
    row = figures(report, "output", "cosine", "unseen")
    assert row.queries == round(12 - sum(there) / 6)


def test_queries_that_are_not_marked_stay_as_they_are(world):
    zoo, queries, labels = world
    plain = [Query(query.text, query.cls, ("mine",)) for query in queries]
    settings = usual(tasks=("output",), probes=20)
    report = evaluate(zoo, plain, encode, settings, images=ImageLabels(labels, np.arange(N)), pool=POOL)
    assert {row.group for row in report.tables[0].rows} == {"all", "mine"}
    report = evaluate(zoo, queries, encode, settings, pool=POOL)  # without images the marks hold
    assert figures(report, "output", "probelog", "seen").queries == 8


def test_labels_alone_are_no_image_queries(world):
    zoo, queries, labels = world
    images = ImageLabels(labels, np.arange(N))
    report = evaluate(zoo, queries, encode, usual(tasks=("output", "images")), images=images, pool=POOL)
    assert [table.task for table in report.tables] == ["output"]
    assert report.settings["notes"] == ["image queries left out: no labelled images were given"]
    assert len(report.quality) == 1
    with pytest.raises(InputError, match="need images whose class is known"):
        evaluate(zoo, queries, encode, usual(tasks=("images",)), images=images, pool=POOL)
    report = evaluate(zoo, queries, encode, usual(tasks=("output",)), images=images, pool=POOL, curves=False)
    assert (report.quality, report.hubness) == ((), ())


@pytest.mark.parametrize("method", ["probelog", "probelog+divisive", "wpmi", "all-probes"])
def test_labelled_probes_are_held_out_for_image_queries(world, method):
    zoo, queries, labels = world
    images = LabelledImages(labels, np.arange(N), zoo.probes)
    settings = usual(methods=(method,), tasks=("output", "images"), image_counts=(1,))
    report = evaluate(zoo, queries, encode, settings, images=images, pool=POOL)
    row = figures(report, "images-1", method)
    assert 8 < row.queries <= 10 * 8
    assert {r.group for table in report.tables for r in table.rows if table.task == "images-1"} == {"all"}
    assert any("half of the probes were held out" in note for note in report.settings["notes"])
    assert hits(report, "images-1", method) > 0.4  # by chance about 0.2
    assert len(report.quality[0].y) == 20
    assert report.quality[0].y[0] > report.quality[0].y[-1]


def test_image_queries_are_never_probes(world, monkeypatch):
    zoo, queries, labels = world
    drawn, benches = [], []
    draw, make = retrieval.draw_image_queries, retrieval.Workbench
    monkeypatch.setattr(retrieval, "draw_image_queries", lambda *given: drawn.append(given[0]) or draw(*given))
    monkeypatch.setattr(retrieval, "Workbench", lambda *given: benches.append(given[0]) or make(*given))
    images = LabelledImages(labels, np.arange(N), zoo.probes)
    for probes, used, free in ((None, 30, 30), (40, 40, 20)):
        settings = usual(tasks=("images",), image_counts=(1,), probes=probes)
        evaluate(zoo, queries, encode, settings, images=images, pool=POOL)
        probed, asked = {row.tobytes() for row in benches[-1].probes}, {row.tobytes() for row in drawn[-1]}
        assert (len(probed), len(asked), len(probed & asked)) == (used, free, 0)
        assert benches[-1].responses.mean(axis=1) == pytest.approx(np.zeros(26), abs=1e-5)


def test_a_probe_subset_frees_the_other_images(world):
    zoo, queries, labels = world
    images = LabelledImages(labels, np.arange(N), zoo.probes)
    settings = usual(tasks=("images",), image_counts=(1,), probes=40)
    report = evaluate(zoo, queries, encode, settings, images=images, pool=POOL)
    assert report.settings["notes"] == []
    assert figures(report, "images-1", "probelog", "seen").queries == figures(report, "images-1", "probelog").queries
    # Of class 0 alone the probe is used or not, and the other images are its queries.
    alone = LabelledImages(("class 0",) * 5, np.array([0, -1, -1, -1, -1]), zoo.probes[:40:8])
    groups = set()
    for seed in range(6):
        settings = usual(tasks=("images",), image_counts=(1,), probes=20, seeds=(seed,))
        report = evaluate(zoo, queries, encode, settings, images=alone, pool=POOL)
        groups.add(frozenset((row.group, row.queries) for row in report.tables[0].rows))
    assert groups == {frozenset({("all", 4), ("seen", 4)}), frozenset({("all", 5), ("unseen", 5)})}


@pytest.mark.parametrize(
    "changes", [{"r": 2}, {"k": 15}, {"background": 60}, {"seeds": (5,)}, {"probes": 12}], ids=lambda c: next(iter(c))
)
def test_every_setting_changes_the_scores(world, changes, monkeypatch):
    zoo, queries, _ = world
    seen = []
    ranks = retrieval.output_ranks
    monkeypatch.setattr(retrieval, "output_ranks", lambda scores, right: seen.append(scores) or ranks(scores, right))
    for settings in (usual(tasks=("output",)), usual(tasks=("output",)), usual(tasks=("output",), **changes)):
        evaluate(zoo, queries, encode, settings, pool=POOL)
    assert (seen[0] == seen[1]).all()
    assert not np.allclose(seen[0], seen[2])


def test_the_background_holds_no_query(world, monkeypatch):
    zoo, queries, _ = world
    embedded = []

    def remember(texts):
        embedded.append(tuple(texts))
        return encode(texts)

    pool = (*(cls.upper() for cls in CLASSES), *POOL[:20])
    evaluate(zoo, queries, remember, usual(tasks=("output",), seeds=(0, 1)), pool=pool)
    assert embedded[0] == CLASSES
    assert [set(names) for names in embedded[1:]] == [set(POOL[:20])] * 2
    assert embedded[1] != embedded[2]
    # Without a pool the names are drawn from ImageNet-21k.
    monkeypatch.setattr(retrieval, "draw_background", lambda *draw: (str(draw[:2]), *draw[2], *POOL[:7]))
    evaluate(zoo, queries, remember, usual(tasks=("output",), seeds=(4,)))
    assert embedded[4] == ("(20, 4)", *CLASSES, *POOL[:7])
    assert draw_from_pool(POOL, 9, 0) != draw_from_pool(POOL, 9, 1)


def test_queries_without_an_answer_are_not_asked(world):
    zoo, queries, _ = world
    report = evaluate(zoo, (*queries, Query("yeti", "yeti")), encode, usual(tasks=("output",)), pool=POOL)
    assert figures(report, "output", "probelog").queries == 12
    assert report.settings["notes"] == ["1 queries not asked: no output stands for their class"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("probelog", "guess")}, "method 'guess' is unknown"),
        ({"methods": ()}, "at least one method"),
        ({"tasks": ("output", "dance")}, "task 'dance' is unknown"),
        ({"seeds": ()}, "one seed"),
        ({"seeds": (-1,)}, "seed -1"),
        ({"probes": 61}, "61 probes: there are 60"),
        ({"probes": 1}, "1 probes"),
        ({"r": 0}, "top r is 0"),
        ({"r": 30, "probes": 29}, "top r is 30: .* 29"),
        ({"k": 20}, "k = 20 with a background of 20"),
        ({"lists": 0}, "at least one"),
        ({"image_counts": (0,)}, "at least one"),
        ({"background": 300}, "a background of 300 phrases: the pool has only 200"),
        ({"tasks": ("images",)}, "need images whose class is known"),
    ],
)
def test_what_cannot_be_evaluated(world, changes, message):
    zoo, queries, _ = world
    with pytest.raises(InputError, match=message):
        evaluate(zoo, queries, encode, usual(**changes), pool=POOL)


def test_no_query_with_an_answer(world):
    zoo, _, _ = world
    with pytest.raises(InputError, match="no query has a right answer"):
        evaluate(zoo, [Query("yeti", "yeti")], encode, usual(), pool=POOL)


def test_tasks_that_cannot_be_asked_are_noted():
    probes = normalise(np.random.default_rng(0).standard_normal((N, D)))
    responses = np.stack([vector("a"), vector("b")]) @ probes.T
    zoo = make_zoo(responses, probes, [0, 2], [{"a"}, {"b"}])
    report = evaluate(zoo, [Query("a", "a"), Query("b", "b")], encode, usual(), pool=POOL)
    assert report.settings["notes"] == [
        "image queries left out: no labelled images were given",
        "concept lists left out: no model has three of the classes",
    ]
    assert [table.task for table in report.tables] == ["output", "model", "naming"]
