"""What a contact sheet shows: the strongest probes, the nearest phrase of the background, and whose they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.distance import METHODS, Method, margins
from engine.index import Index
from engine.scan import decode_anchors
from query.contact_sheet import ROW, Panel, write_contact_sheet
from query.panels import panels
from query.request import SearchRequest
from query.search import Searcher
from tests.support.small_index import encode, encode_images, make_filled_index, write_example


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_filled_index(tmp_path_factory.mktemp("x") / "zoo")


def drawn(index: Index, request: SearchRequest, method: Method = "whitened") -> tuple[Searcher, list[Panel]]:
    searcher = Searcher(index, encode, encode_images=encode_images)
    questions = searcher.ask(request)
    answer = searcher.answer(request, questions)
    return searcher, panels(index, searcher.snapshot, searcher.background, method, questions, answer)


def row_of(searcher: Searcher, model: str, output: int) -> int:
    snapshot = searcher.snapshot
    places = [(snapshot.model_of(row).repo, int(snapshot.output[row])) for row in range(len(snapshot))]
    return places.index((model, output))


def nearest(searcher: Searcher, row: int, method: Method) -> int:
    """The background phrase with the largest margin, one by one."""
    arrays, rows = searcher.snapshot.arrays, np.array([row])
    idx, z = arrays.kept(rows)
    anchor = decode_anchors(arrays, rows).astype(np.float32)
    concepts = searcher.background.concepts
    values = [
        float(margins(idx, z, anchor, arrays.constants(rows), concepts.take(b), method)[0, 0])
        for b in range(len(concepts))
    ]
    return values.index(max(values))


def check_tiles(searcher: Searcher, panel: Panel, row: int, similarity: np.ndarray, b: int) -> None:
    (idx,), (z,) = searcher.snapshot.arrays.kept(np.array([row]))
    strongest = sorted(range(len(idx)), key=lambda i: -z[i])[:ROW]
    assert [tile.image.name for tile in panel.tiles] == [f"{idx[i]:03d}.png" for i in strongest]
    assert all(tile.image.is_file() for tile in panel.tiles)
    np.testing.assert_allclose([tile.response for tile in panel.tiles], z[strongest], rtol=1e-6)
    np.testing.assert_allclose([tile.concept for tile in panel.tiles], similarity[idx[strongest]], rtol=1e-6)
    background = searcher.background.concepts.z[b][idx[strongest]]
    np.testing.assert_allclose([tile.background for tile in panel.tiles], background, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_each_hit_has_a_panel_with_the_nearest_phrase_and_the_strongest_probes(index: Index, method: Method) -> None:
    request = SearchRequest(("cat", "lamp"), 4, method)
    searcher, made = drawn(index, request, method)
    answer = searcher.search(request)
    hits = [(hit, question) for question, result in enumerate(answer.results) for hit in result.outputs]
    questions = searcher.ask(request)
    assert len(made) == len(hits) == 8
    named = set()
    for panel, (hit, question) in zip(made, hits, strict=True):
        row = row_of(searcher, hit.model, hit.output)
        b = nearest(searcher, row, method)
        assert panel.background_name == f"background {b}"
        assert panel.concept == ("cat", "lamp")[question]
        assert panel.title == f"{hit.rank}. {hit.model} #{hit.output} {hit.label or ''}".rstrip()
        assert panel.subtitle == f"margin {hit.margin:.2f}, percentile {hit.percentile:.1f}%"
        check_tiles(searcher, panel, row, questions[question].concepts.z[0], b)
        named.add(b)
    assert len(named) > 1


def test_a_model_has_a_panel_for_each_concept_it_covers(index: Index) -> None:
    request = SearchRequest(("lamp", "owl", "zebra"), 2, level="model", require="any")
    searcher, made = drawn(index, request)
    hits = searcher.search(request).results[0].models
    concepts = searcher.ask(request)[0].concepts
    matched = [(hit, c, m) for hit in hits for c, m in enumerate(hit.outputs) if m.output is not None]
    assert len(made) == len(matched) < 6
    for panel, (hit, c, m) in zip(made, matched, strict=True):
        assert m.output is not None
        assert panel.title == f"{hit.rank}. {hit.model} #{m.output} {m.label or ''}".rstrip()
        assert panel.subtitle == f"for {m.concept}: margin {m.margin:.2f}"
        assert panel.concept == m.concept == request.concepts[c]
        row = row_of(searcher, hit.model, m.output)
        check_tiles(searcher, panel, row, concepts.z[c], nearest(searcher, row, "whitened"))


def test_outputs_like_one_and_images_have_names(index: Index, tmp_path: Path) -> None:
    _, made = drawn(index, SearchRequest(like="zoo/both#0", k=1))
    assert [(panel.title, panel.concept) for panel in made] == [("1. org/animals #0 cat", "#0")]
    _, made = drawn(index, SearchRequest(like="org/animals#0", k=1))
    assert [(panel.title, panel.concept) for panel in made] == [("1. zoo/both #0", "cat")]
    image = write_example(tmp_path / "a.png", "owl")
    _, made = drawn(index, SearchRequest(("owl",), 1, images=(image,)))
    assert [panel.concept for panel in made] == ["owl and 1 image"]


def test_a_few_kept_probes_make_a_few_tiles(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo", top_r=3)
    _, made = drawn(index, SearchRequest(("cat",), 1))
    assert [len(panel.tiles) for panel in made] == [3]
    assert {tile.image.parent for tile in made[0].tiles} == {tmp_path / "images"}


def test_no_hits_make_no_panels_but_a_picture(index: Index, tmp_path: Path) -> None:
    _, made = drawn(index, SearchRequest(tuple(f"concept {i}" for i in range(9)), level="model"))
    assert made == []
    write_contact_sheet(tmp_path / "empty.png", made, "nothing")
    with Image.open(tmp_path / "empty.png") as picture:
        assert picture.width > 100


def test_a_sheet_stays_small_however_much_was_found(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher(index, encode)
    request = SearchRequest(like="zoo/both", level="model", k=2)
    questions = searcher.ask(request)
    answer = searcher.answer(request, questions)

    def count() -> int:
        return len(panels(index, searcher.snapshot, searcher.background, "whitened", questions, answer))

    found = sum(matched.output is not None for hit in answer.results[0].models for matched in hit.outputs)
    assert count() == found > 4
    monkeypatch.setattr("query.panels.OF_A_MODEL", 2)
    assert count() == 4
    monkeypatch.setattr("query.panels.MOST", 3)
    assert count() == 3
