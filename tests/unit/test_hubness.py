"""Hubness of an index: against counting by hand, and by the rules of its curve."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engine.distance import METHODS, Method
from engine.index import Index
from engine.scan import exact_margins
from engine.writer import IndexWriter
from query import hubness as module
from query.hubness import hubness
from tests.support.small_index import make_index, put_model

WORDS = tuple(f"word {i}" for i in range(40))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("hubness") / "zoo"
    make_index(folder)
    with IndexWriter(folder) as writer:
        put_model(writer, "org/a", WORDS, seed=1)
        put_model(writer, "org/b", WORDS[:25], seed=2)
        writer.finish()
    return Index(folder)


def counted(index: Index, method: Method, k: int) -> list[int]:
    """How often each output that is found is found, the most frequent first, from every margin there is."""
    snapshot = index.snapshot()
    background = index.background(snapshot.background)
    found: Counter[int] = Counter()
    rows = np.arange(len(snapshot))
    for c in range(len(background.concepts)):
        margins = exact_margins(snapshot.arrays, rows, background.concepts, c, method)
        found.update(sorted(range(len(rows)), key=lambda row, m=margins: (-m[row], row))[:k])
    return sorted(found.values(), reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_counting_every_answer_gives(index: Index, method: Method) -> None:
    snapshot = index.snapshot()
    found = hubness(snapshot, index.background(snapshot.background), method, k=4)
    counts = counted(index, method, 4)
    answers = 60 * 4
    assert sum(counts) == answers
    total, half = 0, 0
    while total * 2 < answers:
        total += counts[half]
        half += 1
    assert (found.k, found.concepts, found.outputs, found.half) == (4, 60, 65, half)
    shares = np.cumsum(counts) / answers
    expected = [(0.0, 0.0)] + [(round((i + 1) / 65, 6), round(float(share), 6)) for i, share in enumerate(shares)]
    if expected[-1] != (1.0, 1.0):
        expected.append((1.0, 1.0))
    np.testing.assert_allclose(found.curve, expected)


def test_the_curve_rises_and_has_at_most_101_points(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = index.snapshot()
    background = index.background(snapshot.background)
    monkeypatch.setattr(module, "POINTS", 11)
    found = hubness(snapshot, background, "whitened", k=10)
    monkeypatch.undo()
    whole = hubness(snapshot, background, "whitened", k=10)
    assert len(found.curve) <= 11 < len(whole.curve) <= 101
    assert set(found.curve) <= set(whole.curve)
    for curve in (found.curve, whole.curve):
        assert curve[0] == (0.0, 0.0)
        assert curve[-1] == (1.0, 1.0)
        assert (np.diff(np.array(curve), axis=0) >= 0).all()


def test_more_answers_are_asked_than_there_are_outputs(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    with IndexWriter(tmp_path / "zoo") as writer:
        put_model(writer, "org/few", WORDS[:3])
        writer.finish()
    index = Index(tmp_path / "zoo")
    snapshot = index.snapshot()
    found = hubness(snapshot, index.background(snapshot.background), "whitened")
    # Every question has all three for an answer, so each gives a third.
    assert found.k == 3
    assert found.half == 2
    assert list(found.curve) == [(0.0, 0.0), (0.333333, 0.333333), (0.666667, 0.666667), (1.0, 1.0)]


def test_concepts_are_asked_in_blocks(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = index.snapshot()
    background = index.background(snapshot.background)
    whole = hubness(snapshot, background, "whitened")
    monkeypatch.setattr(module, "_CONCEPTS", 7)
    assert hubness(snapshot, background, "whitened") == whole
