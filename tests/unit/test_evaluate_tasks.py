"""The tasks of an evaluation, on zoos small enough to be worked out by hand."""

from itertools import permutations

import numpy as np
import pytest

from engine.descriptors import normalise
from query.evaluate import tasks
from query.evaluate.metrics import average_precision
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
from query.evaluate.zoo import Query
from tests.support.small_zoo import N, bare, make_world


@pytest.fixture(scope="module")
def world():
    return make_world()


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


def test_a_ceiling_keeps_one_superb_concept_from_winning():
    """Two models of three outputs, three concepts: by the mean the first is better, it lacks one concept."""
    zoo = bare([0, 3, 6], [{"a"}, {"b"}, {"x"}, {"a"}, {"b"}, {"c"}])
    scores = np.array([[20.0, 0, -1, 5, 0, 0], [0, 5, 0, 0, 5, 0], [0, 0, -3, 0, 0, 4]], np.float32)
    asked = [ConceptList((0, 1, 2), frozenset({1}))]
    assert list_ranks(scores, asked, zoo.starts).tolist() == [2]  # 22 / 3 against 14 / 3
    assert list_ranks(scores, asked, zoo.starts, 4.0).tolist() == [1]  # 5.17 / 3 against 12.02 / 3


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
