"""Vocabularies: what is in them, and embedding them once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.calibration import draw_background, imagenet21k_names
from engine.concepts import ConceptCache
from engine.descriptors import FloatArray
from engine.errors import ConceptError, InputError
from engine.index import Index
from query.vocabulary import (
    CHUNK,
    clean_vocabulary,
    default_vocabulary,
    embed_vocabulary,
    encoder_once,
    label_phrases,
    read_vocabulary,
)
from tests.support.small_index import PretendEncoder, encode, make_index, vector


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("vocabulary") / "zoo")


def test_default_is_the_names_that_backgrounds_are_drawn_from() -> None:
    names = default_vocabulary()
    assert names == imagenet21k_names()
    assert 19_000 < len(names) < 21_842
    assert len(set(names)) == len(names)
    assert {"tench", "golden retriever", "school bus"} <= set(names)
    assert not [name for name in names if "," in name]  # first synonyms only
    assert set(draw_background(50, seed=3)) < set(names)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("golden  retriever\n\n bus \nbus\ngolden retriever\nowl\n")
    assert read_vocabulary(file) == ("golden retriever", "bus", "owl")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "has 0"),
        (b"cat\n cat\n", "has 1"),
        (b"cat\n" + b"x" * 2_000, "2000 characters"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, part: str) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        read_vocabulary(file)
    assert "words.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_phrases_are_refused() -> None:
    with pytest.raises(ConceptError, match="empty"):
        clean_vocabulary(["cat", " "])


def test_embedding_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    names = [f"word {i}" for i in range(CHUNK + 100)]
    asked: list[str] = []

    def stops(texts: Sequence[str]) -> FloatArray:
        if asked:
            raise KeyboardInterrupt
        asked.extend(texts)
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        embed_vocabulary(index, names, stops)
    assert asked == names[:CHUNK]

    def goes_on(texts: Sequence[str]) -> FloatArray:
        asked.extend(texts)
        return encode(texts)

    told: list[tuple[int, int]] = []
    vectors = embed_vocabulary(index, names, goes_on, lambda done, total: told.append((done, total)))
    assert asked == names
    assert told == [(CHUNK, CHUNK + 100), (CHUNK + 100, CHUNK + 100)]
    np.testing.assert_array_equal(vectors, np.stack([vector(name) for name in names]))
    assert embed_vocabulary(index, names, goes_on).tobytes() == vectors.tobytes()
    assert asked == names


def test_the_encoder_is_loaded_once_and_only_for_something_new(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(_: Index, device: str = "cpu") -> PretendEncoder:
        loaded.append(device)
        return PretendEncoder()

    monkeypatch.setattr(Index, "load_encoder", load)
    names = [f"phrase {i}" for i in range(2 * CHUNK + 1)]
    first = embed_vocabulary(index, names)
    assert len(loaded) == 1
    np.testing.assert_array_equal(embed_vocabulary(index, names), first)
    assert len(loaded) == 1
    encode_it = encoder_once(index)
    assert len(loaded) == 1
    np.testing.assert_array_equal(encode_it(["a"]), encode(["a"]))
    encode_it(["b"])
    assert len(loaded) == 2


def test_an_index_that_cannot_be_written_to_is_embedded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path / "zoo")
    monkeypatch.setattr(ConceptCache, "put", lambda *_: None)
    names = ["cat", "dog", "cat"]
    np.testing.assert_array_equal(embed_vocabulary(index, names, encode), encode(names))


@pytest.mark.parametrize(
    ("label", "phrases"),
    [
        (None, ()),
        ("LABEL_3", ()),
        ("class 12", ()),
        ("17", ()),
        ("x1", ()),
        ("tench", ("tench",)),
        ("golden_retriever", ("golden retriever",)),
        ("tench, Tinca tinca", ("tench, Tinca tinca", "tench")),
        (
            "Cyanocitta cristata (Blue Jay)",
            ("Cyanocitta cristata (Blue Jay)", "Cyanocitta cristata", "Blue Jay"),
        ),
        ("犬と猫", ("犬と猫",)),
        ("y" * 1_001, ()),
    ],
)
def test_what_a_label_may_mean(label: str | None, phrases: tuple[str, ...]) -> None:
    assert label_phrases(label) == phrases
