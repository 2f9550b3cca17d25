"""The tasks of an evaluation, the evaluation itself and sweeps, on zoos small enough to be worked out by hand."""

from itertools import permutations

import numpy as np
import pytest

from engine.descriptors import normalise
from engine.errors import InputError
from query.evaluate import retrieval, tasks
from query.evaluate.labelled import ImageLabels, LabelledImages
from query.evaluate.metrics import average_precision
from query.evaluate.queries import group_by_seen
from query.evaluate.results import RetrievalReport, SweepReport
from query.evaluate.retrieval import Settings, draw_from_pool, evaluate
from query.evaluate.sweeps import Case, sweep, sweep_over
from query.evaluate.tally import Tally
from query.evaluate.tasks import (
    ConceptList,
    assign,
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
from tests.support.small_index import D, encode, vector

N = 60
CLASSES = tuple(f"class {i}" for i in range(12))
POOL = tuple(f"pool {i}" for i in range(200))


def make_zoo(responses, probes, starts, classes):
    centred = responses - responses.mean(axis=1, keepdims=True)
    outputs = len(responses)
    return Zoo(
        (centred / centred.std(axis=1, keepdims=True)).astype(np.float32),
        probes,
        tuple(f"org/{i}" for i in range(len(starts) - 1)),
        np.asarray(starts, np.int64),
        np.arange(outputs),
        (None,) * outputs,
        tuple(frozenset(own) for own in classes),
    )


def bare(starts, classes):
    rng = np.random.default_rng(0)
    return make_zoo(rng.standard_normal((len(classes), 5)), np.eye(5, dtype=np.float32), starts, classes)


@pytest.fixture(scope="module")
def world():
    """Three models that respond to the very concepts they stand for, with some noise; labelled probes."""
    rng = np.random.default_rng(5)
    labels = tuple(CLASSES[i % 8] for i in range(N))  # the other four classes have no probe
    probes = normalise(np.stack([vector(cls) for cls in labels]) + 0.25 * rng.standard_normal((N, D)))
    owned = [*CLASSES, *CLASSES[:6], *CLASSES[4:]]
    directions = np.stack([vector(cls) for cls in owned])
    responses = directions @ probes.T + 0.5 * rng.standard_normal((len(owned), N))
    zoo = make_zoo(responses, probes, [0, 12, 18, 26], [{cls} for cls in owned])
    queries = tuple(Query(cls, cls, ("seen",) if i < 8 else ("unseen",)) for i, cls in enumerate(CLASSES))
    return zoo, queries, labels


def usual(**changes):
    return Settings(**{"methods": ("probelog",), "r": 10, "k": 3, "background": 20, "lists": 10} | changes)


def figures(report, task, method, group="all"):
    table = next(table for table in report.tables if table.task == task)
    return next(row for row in table.rows if (row.method, row.group) == (method, group))


def hits(report, task="output", method="probelog", group="all"):
    return figures(report, task, method, group).figures["mrr"].mean


# ---- tasks


def test_text_to_output_takes_any_acceptable_output():
    zoo = bare([0, 2, 4], [{"a", "b"}, {"b"}, set(), {"c", "a"}])
    of_class = rows_of_classes(zoo)
    assert {cls: rows.tolist() for cls, rows in of_class.items()} == {"a": [0, 3], "b": [0, 1], "c": [3]}
    scores = np.array([[1, 2, 4, 3], [1, 2, 4, 3], [9, 8, 7, 6]], dtype=np.float32)
    assert output_ranks(scores, [of_class["a"], of_class["b"], of_class["c"]]).tolist() == [2, 3, 4]


def test_text_to_model_counts_a_model_that_has_the_class():
    zoo = bare([0, 2, 2, 4], [{"a"}, {"b"}, {"c"}, set()])  # the second model has no outputs
    of_class = rows_of_classes(zoo)
    scores = np.array([[1, 5, 4, 0], [0, 0, 3, 4]], dtype=np.float32)
    assert model_maxima(scores, zoo.starts).tolist() == [[5, -np.inf, 4], [0, -np.inf, 4]]
    # For "a" the model wins by its output of "b", as a user who only sees models would find it.
    assert model_ranks(scores, [of_class["a"], of_class["a"]], zoo).tolist() == [1, 2]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((9, 30)).astype(np.float32)
    right = [np.sort(rng.choice(30, 3, replace=False)) for _ in range(9)]
    whole = output_ranks(scores, right)
    monkeypatch.setattr(tasks, "_BLOCK", 70)
    assert output_ranks(scores, right).tolist() == whole.tolist()
    assert len(set(whole.tolist())) > 3


def test_naming_ranks_words_not_queries():
    queries = (
        Query("crane", "bird", ("x",)),
        Query("crane", "machine", ("y",)),
        Query("dog", "dog"),
        Query("cat", "cat"),
    )
    words = words_of(queries)
    assert words.first.tolist() == [0, 2, 3]
    assert words.groups[0] == {"x", "y"}
    zoo = bare([0, 4], [{"machine"}, {"dog", "cat"}, {"unasked"}, {"bird"}])
    named = nameable(zoo, words)
    assert named.rows.tolist() == [0, 1, 3]
    assert [rows.tolist() for rows in named.right] == [[0], [1, 2], [0]]
    assert named.groups == ({"x", "y"}, frozenset(), {"x", "y"})
    scores = np.array([[1, 9, 0, 1], [1, 9, 0, 1], [2, 3, 0, 3], [0, 4, 0, 2]], dtype=np.float32)
    # Output 0: dog 2, crane 1; output 1: crane 9, cat 4; output 3: dog 3, cat 2, crane 1.
    assert naming_ranks(scores, words, named).tolist() == [2, 2, 3]


def test_calibrated_words_are_standardised_over_all_outputs():
    rng = np.random.default_rng(2)
    queries = tuple(Query(cls, cls) for cls in "abcde")
    zoo = bare([0, 7], [{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, set(), set()])
    words = words_of(queries)
    named = nameable(zoo, words)
    scores = (rng.standard_normal((5, 7)) * [[1], [5], [1], [2], [1]] + [[0], [9], [0], [0], [3]]).astype(np.float32)
    expected = []
    for row in range(5):
        z = [(scores[w, row] - scores[w].mean()) / scores[w].std() for w in range(5)]
        expected.append(1 + sum(value > z[row] for value in z))
    assert naming_ranks(scores, words, named, calibrate_words=True).tolist() == expected
    assert naming_ranks(scores, words, named).tolist() != expected


def brute_force(scores):
    m, outputs = scores.shape
    return max(sum(scores[i, p[i]] for i in range(m)) / m for p in permutations(range(outputs), m))


def test_assignment_agrees_with_brute_force():
    rng = np.random.default_rng(4)
    crowded = 0
    for _ in range(60):
        m = int(rng.integers(1, 5))
        scores = rng.standard_normal((m, int(rng.integers(m, 7)))).astype(np.float32)
        scores[:, 0] += 1  # several concepts want the same output
        columns, value = assign(scores)
        assert len(set(columns.tolist())) == m
        assert value == pytest.approx(brute_force(scores.astype(np.float64)), abs=1e-6)
        crowded += len(set(scores.argmax(axis=1).tolist())) < m
    assert crowded > 20


def test_best_models_agree_with_assigning_every_model(monkeypatch):
    rng = np.random.default_rng(6)
    solved = []
    monkeypatch.setattr(tasks, "assign", lambda scores: solved.append(1) or assign(scores))
    tried = 0
    for _ in range(30):
        sizes = rng.integers(0, 7, 25)
        starts = np.r_[0, np.cumsum(sizes)]
        scores = rng.standard_normal((3, starts[-1])).astype(np.float32)
        values = {m: brute_force(scores[:, starts[m] : starts[m + 1]]) for m in range(25) if sizes[m] >= 3}
        expected = sorted(values, key=lambda m: (-values[m], m))
        tried += len(values)
        models, means = best_models(scores, starts, 4)
        assert models.tolist() == expected[:4]
        assert means == pytest.approx([values[m] for m in expected[:4]], abs=1e-6)
    assert len(solved) < tried / 2  # the bound saves most of the work


def test_best_models_of_equal_scores_come_in_order():
    assert best_models(np.zeros((2, 10), np.float32), np.array([0, 3, 4, 7, 10]), 2)[0].tolist() == [0, 2]
    assert best_models(np.zeros((4, 6), np.float32), np.array([0, 3, 6]), 2)[0].tolist() == []


def test_list_ranks_find_the_first_model_with_all_classes():
    zoo = bare([0, 3, 6, 9], [{"a"}, {"b"}, {"c"}, {"a"}, {"b"}, {"x"}, {"a"}, {"b"}, {"c"}])
    queries = tuple(Query(cls, cls) for cls in "abc")
    lists = draw_lists(zoo, queries, 5, 0)
    assert all(sorted(one.queries) == [0, 1, 2] and one.models == {0, 2} for one in lists)
    scores = np.array(
        [[1, 0, 0, 3, 0, 0, 2, 0, 0], [0, 1, 0, 0, 3, 0, 0, 2, 0], [0, 0, 1, 0, 0, 3, 0, 0, 2]], np.float32
    )
    assert list_ranks(scores, lists, zoo.starts).tolist() == [2] * 5  # the second model wins, but has no "c"


def test_lists_are_drawn_from_classes_that_occur_together(world):
    zoo, queries, _ = world
    lists = draw_lists(zoo, queries, 200, 3)
    owned = [set().union(*zoo.classes[a:b]) for a, b in ((0, 12), (12, 18), (18, 26))]
    for one in lists:
        classes = {queries[q].cls for q in one.queries}
        assert len(classes) == len(one.queries)
        assert one.models == {m for m, has in enumerate(owned) if classes <= has}
        assert one.models
    assert {len(one.queries) for one in lists} == set(range(3, 11))
    assert lists == draw_lists(zoo, queries, 200, 3)
    assert lists != draw_lists(zoo, queries, 200, 4)
    assert draw_lists(bare([0, 2], [{"a", "b", "c"}, {"d"}]), [Query(c, c) for c in "abcd"], 5, 0) == ()


def test_image_queries_are_means_of_images_of_a_class():
    vectors = normalise(np.arange(1, 13).reshape(6, 2))
    classes = ("a", "b", "a", "b", "a", "c")
    asked, means = draw_image_queries(vectors, classes, ["c", "b", "a", "a", "z"], 2, 0)
    assert asked == ("b", "a")
    assert means[0] == pytest.approx(vectors[[1, 3]].mean(axis=0), abs=1e-6)
    pairs = [vectors[list(pair)].mean(axis=0) for pair in ((0, 2), (0, 4), (2, 4))]
    assert any(np.allclose(means[1], pair, atol=1e-6) for pair in pairs)
    asked, means = draw_image_queries(vectors, classes, ["a", "b"], 1, 0)  # as often as there are other images
    assert asked == ("a", "a", "a", "b", "b")
    assert sorted(map(tuple, means.round(5).tolist())) == sorted(map(tuple, vectors[:5].round(5).tolist()))
    many = np.repeat(vectors[:1], 25, axis=0)
    assert len(draw_image_queries(many, ["a"] * 25, ["a"], 1, 0)[0]) == 10
    assert len(draw_image_queries(many, ["a"] * 25, ["a"], 10, 0)[0]) == 2
    asked, means = draw_image_queries(vectors, classes, ["a"], 4, 0)
    assert asked == ()
    assert means.shape == (0, 2)


def test_quality_curve_by_its_definition(world):
    zoo, queries, labels = world
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(queries), len(zoo))).astype(np.float32)
    classes = [query.cls for query in queries]
    curve = quality_curve(scores, classes, zoo, np.arange(N), labels)
    expected = np.zeros(tasks.DEPTH)
    for c in range(8):
        right = np.array([label == classes[c] for label in labels])
        for place, row in enumerate(np.argsort(-scores[c])[: tasks.DEPTH]):
            expected[place] += average_precision(zoo.responses[row][None], right)[0] / 8
    assert curve == pytest.approx(expected)
    assert len(quality_curve(scores[8:], classes[8:], zoo, np.arange(N), labels)) == 0


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


# ---- sweeps


@pytest.mark.parametrize(
    ("parameter", "values"), [("r", (1, 10)), ("probes", (15, 60)), ("background", (3, 50)), ("k", (1, 15))]
)
def test_each_point_of_a_sweep_is_an_evaluation(world, parameter, values):
    zoo, queries, _ = world
    settings = usual(seeds=(0, 1), k=2, tasks=("output", "model"))
    report = sweep(parameter, values, zoo, queries, encode, settings, pool=POOL)
    assert (report.parameter, [point.value for point in report.points]) == (parameter, [str(v) for v in values])
    for value, point in zip(values, report.points, strict=True):
        alone = evaluate(zoo, queries, encode, usual(**{"seeds": (0, 1), "k": 2, parameter: value}), pool=POOL)
        assert [row.figures for row in point.rows] == [row.figures for row in alone.tables[0].rows]
    assert report.settings[parameter] == list(values)
    assert report.settings["seeds"] == [0, 1]
    assert SweepReport.model_validate_json(report.model_dump_json()) == report


def test_a_background_smaller_than_k_takes_fewer_neighbours(world):
    zoo, queries, _ = world
    report = sweep("background", (2, 5, 50), zoo, queries, encode, usual(k=10), pool=POOL)
    assert report.settings["k"] == [1, 4, 10]


def test_sweep_over_cases(world):
    zoo, queries, _ = world
    steps = []
    cases = [
        Case("photographs", zoo, encode, usual()),
        Case("half", zoo.with_probes(np.arange(30)), encode, usual()),
        Case("nonsense", zoo, lambda texts: encode([text[::-1] for text in texts]), usual()),
    ]
    report = sweep_over(cases, queries, "probes", "", POOL, lambda *step: steps.append(step))
    assert [point.value for point in report.points] == ["photographs", "half", "nonsense"]
    found = [point.rows[0].figures["mrr"].mean for point in report.points]
    assert found[2] < min(found[:2])
    assert report.settings["zoo_probes"] == [60, 30, 60]
    assert [done for done, _, _ in steps] == [0, 1, 1, 2, 2, 3]
    assert {total for _, total, _ in steps} == {3}


def test_a_sweep_over_probes_parts_the_queries_at_every_point(world):
    zoo, queries, labels = world
    images = ImageLabels(labels, np.arange(N))
    settings = usual(r=1, seeds=(0, 1))
    report = sweep("probes", (4, 60), zoo, queries, encode, settings, pool=POOL, images=images)
    few, all_of_them = ({row.group: row.queries for row in point.rows} for point in report.points)
    assert few["seen"] <= 4  # as many probes
    assert few["seen"] + few["unseen"] in (12, 13)
    assert all_of_them == {"all": 12, "seen": 8, "unseen": 4}


def test_every_case_has_probes_of_its_own(world):
    zoo, queries, labels = world
    half = np.arange(4)
    cases = [
        Case("all", zoo, encode, usual(), ImageLabels(labels, np.arange(N))),
        Case("few", zoo.with_probes(half), encode, usual(r=2), ImageLabels(labels[:4], half)),
        Case("none", zoo, encode, usual(), ImageLabels(labels, np.full(N, -1))),
        Case("as marked", zoo, encode, usual()),
    ]
    report = sweep_over(cases, queries, "probes", "", POOL)
    counts = [{row.group: row.queries for row in point.rows} for point in report.points]
    assert counts == [
        {"all": 12, "seen": 8, "unseen": 4},
        {"all": 12, "seen": 4, "unseen": 8},
        {"all": 12, "unseen": 12},
        {"all": 12, "seen": 8, "unseen": 4},
    ]


def test_no_case_is_measured_if_one_cannot_be(world):
    zoo, queries, _ = world

    def refuse(texts):
        pytest.fail("evaluated")

    good = Case("good", zoo, refuse, usual())
    unknown = make_zoo(zoo.responses, zoo.probes, zoo.starts, [set()] * 26)
    for wrong, message in (
        (Case("r", zoo, refuse, usual(r=61)), "top r is 61"),
        (Case("half", zoo.with_probes(np.arange(5)), refuse, usual()), "top r is 10: .* 5"),
        (Case("pool", zoo, refuse, usual(background=201)), "the pool has only 200"),
        (Case("truth", unknown, refuse, usual()), "no query has a right answer"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_over([good, wrong], queries, "r", "", POOL)


def test_what_cannot_be_swept(world):
    zoo, queries, _ = world
    with pytest.raises(InputError, match="'speed' cannot be swept: use one of r, probes, background, k"):
        sweep("speed", (1,), zoo, queries, encode, usual(), pool=POOL)
    with pytest.raises(InputError, match="a sweep of r needs at least one value"):
        sweep("r", (), zoo, queries, encode, usual(), pool=POOL)
    with pytest.raises(InputError, match="top r is 61"):
        sweep("r", (5, 61), zoo, queries, lambda texts: pytest.fail("evaluated"), usual(), pool=POOL)


def test_a_ceiling_keeps_one_superb_concept_from_winning():
    """Two models of three outputs, three concepts: by the mean the first is better, it lacks one concept."""
    zoo = bare([0, 3, 6], [{"a"}, {"b"}, {"x"}, {"a"}, {"b"}, {"c"}])
    scores = np.array([[20.0, 0, -1, 5, 0, 0], [0, 5, 0, 0, 5, 0], [0, 0, -3, 0, 0, 4]], np.float32)
    asked = [ConceptList((0, 1, 2), frozenset({1}))]
    assert list_ranks(scores, asked, zoo.starts).tolist() == [2]  # 22 / 3 against 14 / 3
    assert list_ranks(scores, asked, zoo.starts, 4.0).tolist() == [1]  # 5.17 / 3 against 12.02 / 3
