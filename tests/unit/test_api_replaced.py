"""An index that is made again, or deleted, under a service that answers from it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.concepts import ConceptCache
from engine.errors import IndexDamagedError
from engine.index import Index, IndexSettings
from engine.probes import read_folder
from engine.schema import Model
from engine.writer import IndexWriter
from query.api.generations import Generation
from query.api.names import Names
from query.api.settings import Settings
from query.describe import Describer, DescribeRequest
from query.search import Searcher
from tests.support.service import Asked, asking, small_app
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    PretendEncoder,
    answers,
    encode,
    make_filled_index,
    make_index,
    probe_embeddings,
    put_model,
    vector,
    write_probe_images,
)

WORDS = (*ANIMALS, *THINGS, *(f"word {i}" for i in range(20)))


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def opened(folder: Path) -> Generation:
    index = Index(folder)
    searcher = Searcher(index, encode=encode)
    return Generation(index, searcher, searcher.snapshot.number)


def described(folder: Path, model: str) -> list[list[tuple[str, float]]]:
    """What the command line finds."""
    answer = Describer(Index(folder), WORDS, encode).describe(model, DescribeRequest(2))
    return [[(concept.name, pytest.approx(concept.margin, abs=1e-5)) for concept in o.concepts] for o in answer.outputs]


def other_probes(folder: Path) -> Path:
    """An index over 60 probes instead of 80, with the same encoder and background, and one model."""
    images = write_probe_images(folder.parent / "other-images", 60)
    names = tuple(f"background {i}" for i in range(60))
    settings = IndexSettings(20, "whitened", "keep", ("{}",), names, "test", 10)
    Index.create(folder, read_folder(images), probe_embeddings(60), PretendEncoder(), settings)  # type: ignore[arg-type]
    with IndexWriter(folder) as writer:
        table, left_out = writer.describe("org/animals", "r1", ANIMALS, answers(ANIMALS, seed=7)[:60])
        fields = {"repo": "org/animals", "revision": "r1", "outputs": len(table), "left_out": left_out}
        writer.put(Model.model_validate(fields), table, answers(ANIMALS, seed=7)[:60])
        writer.finish()
    return folder


def test_names_of_an_index_that_was_made_again(tmp_path: Path) -> None:
    """It begins at generation 1 again; the rows are those of other outputs."""
    old, new, words = tmp_path / "zoo", tmp_path / "again" / "zoo", tmp_path / "words.txt"
    make_filled_index(old)
    make_index(new)
    with IndexWriter(new) as writer:
        put_model(writer, "org/animals", ANIMALS[::-1], seed=8)
        writer.finish()
    before, after = described(old, "org/animals"), described(new, "org/animals")
    assert before != after
    words.write_text("\n".join(WORDS))

    def named(service: Asked) -> list[list[tuple[str, float]]]:
        asked = [f"org/animals#{i}" for i in range(4)]
        outputs = service.post("/v1/outputs", {"outputs": asked, "names": 2}).json()["outputs"]
        return [[(concept["name"], concept["margin"]) for concept in output["concepts"]] for output in outputs]

    with asking(small_app(old, names=True, vocabulary=words, refresh_s=0.02)) as service:
        until(lambda: named(service)[0])
        assert named(service) == before
        first = service.app.state.service.generation
        old.rename(tmp_path / "gone")
        new.rename(old)
        until(lambda: service.app.state.service.generation is not first)
        assert service.app.state.service.generation_number == first.number == 1
        assert named(service) == after


def test_generations_are_told_apart_whatever_their_numbers(tmp_path: Path) -> None:
    make_filled_index(tmp_path / "zoo")
    made = [opened(tmp_path / "zoo") for _ in range(3)]
    assert [generation.number for generation in made] == [1, 1, 1]
    assert made[0].serial < made[1].serial < made[2].serial


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS))

    async def aside(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    def embed(texts: Sequence[str]) -> Any:
        return encode(texts)

    made = Names(Settings(index=tmp_path / "zoo", vocabulary=words), embed, aside)
    yield made
    made.stop()


def test_names_over_other_probes_with_the_same_background(tmp_path: Path, names: Names) -> None:
    make_filled_index(tmp_path / "zoo")
    first, second = opened(tmp_path / "zoo"), opened(other_probes(tmp_path / "other"))
    assert first.searcher.snapshot.background == second.searcher.snapshot.background
    names.start(first.index)
    until(lambda: names.state.state == "ready")
    for generation in (first, second, first):
        found = asyncio.run(names.of_rows(generation, range(4), 2))
        told = [[(concept.name, concept.margin) for concept in output.concepts] for output in found]
        assert told == described(generation.index.folder, "org/animals")


def test_a_deleted_index_goes_on_answering_and_does_not_come_back(tmp_path: Path) -> None:
    folder, gone = tmp_path / "zoo", tmp_path / "gone"
    body = {"concepts": ["cat", "something new"], "explain": True, "k": 2}
    with asking(small_app(folder, refresh_s=0.02)) as service:
        folder.rename(gone)
        answer = service.post("/v1/search", body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"][0]["hits"][0]["probes"]) > 0
        assert service.get("/v1/probes/3/image").status_code == 200
        for evidence in ("labels", "both"):
            assert service.post("/v1/search", {**body, "evidence": evidence}).status_code == 200
        assert not folder.exists()
        gone.rename(folder)
        assert service.post("/v1/search", {**body, "evidence": "both", "method": "dual"}).status_code == 200
        assert len(list((folder / "labels").iterdir())) == 1


def test_the_next_index_does_not_lend_the_old_one_its_probes(tmp_path: Path) -> None:
    """Its files may be there before it is taken over."""
    folder, body = tmp_path / "zoo", {"concepts": ["cat"], "explain": True}
    with asking(small_app(folder)) as service:
        expected = service.post("/v1/search", body).json()
    with asking(small_app(folder)) as service:
        (folder / "probes.json").write_text((folder / "probes.json").read_text().replace(".png", ".jpg"))
        found = service.post("/v1/search", body).json()
    assert found["results"] == expected["results"]


def test_a_generation_whose_probes_are_damaged_is_not_taken_over(tmp_path: Path) -> None:
    make_filled_index(tmp_path / "zoo")
    opened(tmp_path / "zoo").warm()
    for text in ("[]", "{", '[{"file": "a.png"}]'):
        (tmp_path / "zoo" / "probes.json").write_text(text)
        with pytest.raises(IndexDamagedError, match=r"probes\.json"):
            opened(tmp_path / "zoo").warm()


def test_embeddings_are_not_kept_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    cache = ConceptCache(tmp_path / "zoo" / "concepts.sqlite")
    cache.put({"cat": vector("cat")})
    assert list(tmp_path.iterdir()) == []
    assert cache.get(["cat"]) == {}
    (tmp_path / "zoo").mkdir()
    cache.put({"cat": vector("cat")})
    shutil.rmtree(tmp_path / "zoo")
    cache.put({"cat": vector("cat")})
    assert list(tmp_path.iterdir()) == []
