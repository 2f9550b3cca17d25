"""The memory of embeddings: what it has in memory, what it reads from the file, what it forgets."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from engine.concepts import ConceptCache
from query.api.memory import ConceptMemory, Place, image_key
from query.search import Searcher
from tests.support.small_index import encode, encode_images, make_filled_index, vector, write_example


def some(*texts: str) -> dict[str, np.ndarray]:
    return {text: vector(text) for text in texts}


def test_answers_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "concepts.sqlite"
    memory, file = ConceptMemory(path, 10), ConceptCache(path)
    memory.put(some("cat", "dog"))
    file.put(some("owl"))
    for texts in (["cat"], ["owl", "cat", "lamp"], [], ["lamp"], ["dog", "dog"]):
        expected, found = file.get(texts), memory.get(texts)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[text], expected[text]) for text in expected)


def test_what_is_in_memory_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "concepts.sqlite"
    memory = ConceptMemory(path, 10)
    memory.put(some("cat"))
    ConceptCache(path).put(some("owl"))
    assert memory.missing(["owl", "cat", "owl", "lamp"]) == ["owl", "lamp"]
    memory.get(["owl"])
    path.unlink()
    assert set(memory.get(["cat", "owl", "lamp"])) == {"cat", "owl"}
    assert memory.missing(["cat", "owl"]) == []


def test_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    path = tmp_path / "concepts.sqlite"
    memory = ConceptMemory(path, 3)
    memory.put(some("a", "b", "c"))
    memory.get(["a"])
    memory.missing(["b"])  # asked for just now, too
    memory.put(some("d"))
    assert len(memory) == 3
    assert memory.missing(["a", "b", "c", "d"]) == ["c"]
    assert np.array_equal(memory.get(["c"])["c"], vector("c"))  # the file still has it


def test_kept_and_written_are_two_things(tmp_path: Path) -> None:
    memory = ConceptMemory(tmp_path / "concepts.sqlite", 10)
    memory.keep(some("cat"))
    assert not (tmp_path / "concepts.sqlite").exists()
    memory.write(some("dog"))
    assert memory.missing(["cat", "dog"]) == ["dog"]
    assert set(ConceptCache(tmp_path / "concepts.sqlite").get(["cat", "dog"])) == {"dog"}
    memory.write({})


def test_a_file_that_cannot_be_used_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "concepts.sqlite"
    path.write_bytes(b"this is no database" * 100)
    memory = ConceptMemory(path, 10)
    memory.put(some("cat"))
    assert set(memory.get(["cat", "dog"])) == {"cat"}


def test_many_threads(tmp_path: Path) -> None:
    memory = ConceptMemory(tmp_path / "concepts.sqlite", 50)
    texts = [f"concept {i}" for i in range(80)]
    vectors = some(*texts)
    memory.write(vectors)
    wrong: list[object] = []

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                asked = [texts[i] for i in rng.integers(0, 80, 3)]
                memory.missing(asked)
                memory.keep({asked[0]: vectors[asked[0]]})
                found = memory.get(asked)
                wrong.extend(t for t in asked if not np.array_equal(found.get(t, np.zeros(0)), vectors[t]))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(memory) == 50


def test_an_image_is_remembered_under_the_key_that_searches_use(tmp_path: Path) -> None:
    """Otherwise an image that is in memory would be embedded again by the thread that scans."""
    index = make_filled_index(tmp_path / "zoo")
    index.concepts = ConceptMemory(tmp_path / "zoo" / "concepts.sqlite", 10)
    path = write_example(tmp_path / "cat.png", "cat")
    from query.request import SearchRequest

    Searcher(index, encode=encode, encode_images=encode_images).search(SearchRequest(images=(path,)))
    key = image_key(path.read_bytes())
    assert index.concepts.missing([key]) == []
    assert key.endswith(hashlib.sha256(path.read_bytes()).hexdigest())
    with sqlite3.connect(tmp_path / "zoo" / "concepts.sqlite") as database:
        kept = {text for (text,) in database.execute("SELECT text FROM concepts")}
    database.close()
    assert key in kept


@pytest.mark.parametrize("text", ["", "cat", "\0image"])
def test_no_text_has_the_key_of_an_image(text: str) -> None:
    assert image_key(text.encode()) != text
    assert image_key(b"a") != image_key(b"b")


def test_an_index_that_came_to_lie_there_later_is_left_alone(tmp_path: Path) -> None:
    """It may have another encoder: neither are its embeddings ours, nor ours its."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    place = Place(folder)
    memory = ConceptMemory(folder / "concepts.sqlite", 10, place)
    ours, theirs = np.ones(3, np.float32), np.zeros(3, np.float32)
    memory.put({"cat": ours})
    folder.rename(tmp_path / "gone")
    memory.put({"dog": ours})
    assert not folder.exists()
    folder.mkdir()
    other = ConceptCache(folder / "concepts.sqlite")
    other.put({"bird": theirs})
    memory.put({"fish": ours})
    assert set(other.get(["cat", "dog", "bird", "fish"])) == {"bird"}
    assert "bird" not in memory.get(["bird"])
    assert set(memory.get(["cat", "dog", "fish"])) == {"cat", "dog", "fish"}  # in memory they stay
    place.renew()
    assert "bird" in memory.get(["bird"])
    memory.put({"owl": ours})
    assert "owl" in other.get(["owl"])
