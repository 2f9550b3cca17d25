"""Found names in the service: the command line's names, prepared in the background, remembered, never in the way."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.concepts import ConceptCache
from engine.descriptors import FloatArray
from engine.errors import ConceptError, EncoderError, InputError
from engine.index import Index
from engine.writer import IndexWriter
from query.api import names as names_module
from query.api import phrases as phrases_module
from query.api.generations import Generation
from query.api.names import Names
from query.api.settings import Settings
from query.describe import Describer, DescribeRequest
from query.description import OutputNames
from query.search import Searcher
from tests.support.small_index import ANIMALS, THINGS, encode, make_index, put_model

WORDS = (*ANIMALS, *THINGS, *(f"word {i}" for i in range(60)))
MANY = tuple(f"word {i}" for i in range(40))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """81 outputs of three models, one with wrong labels, one without."""
    folder = tmp_path_factory.mktemp("names") / "zoo"
    make_index(folder)
    with IndexWriter(folder) as writer:
        put_model(writer, "org/right", MANY, seed=1)
        put_model(writer, "org/wrong", [*MANY[:34]], labels=[*MANY[1:34], MANY[0]], seed=2)
        put_model(writer, "zoo/silent", [*ANIMALS, *THINGS], labels=[None] * 7, seed=3)
        writer.finish()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that remembers no embeddings yet."""
    return shutil.copytree(original, tmp_path / "zoo")


class Encoder:
    """Counts what it is asked; waits where it is told to, knows no part of words with zz."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.go = threading.Event()
        self.go.set()
        self.broken = False

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        assert self.go.wait(20)
        self.asked.append(tuple(texts))
        if self.broken:
            raise EncoderError("the encoder cannot be loaded from /root/models/x", "x")
        for text in texts:
            if "zz" in text:
                raise ConceptError(f"knows no part of {text!r}", text)
        return encode(texts)

    @property
    def texts(self) -> list[str]:
        return [text for texts in self.asked for text in texts]


async def aside(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


def generation_of(folder: Path) -> Generation:
    index = Index(folder)
    searcher = Searcher(index)
    return Generation(index, searcher, searcher.snapshot.number)


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Names]]:
    made: list[tuple[Names, Any]] = []

    def new(encoder: Encoder, vocabulary: Sequence[str] = WORDS, run: Any = aside, **settings: Any) -> Names:
        path = tmp_path / "words.txt"
        path.write_text("\n".join(vocabulary), encoding="utf-8")
        names = Names(Settings(**{"index": folder, "vocabulary": path, **settings}), encoder, run)
        made.append((names, encoder))
        return names

    yield new
    for names, encoder in made:
        names.stop()
        encoder.go.set()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def ready(names: Names, generation: Generation) -> Names:
    names.start(generation.index)
    until(lambda: names.state.state == "ready")
    return names


def all_described(folder: Path, k: int = 3) -> list[OutputNames]:
    """What the command line says of every output, in the order of the snapshot's rows."""
    describer = Describer(Index(folder), WORDS, encode)
    return [
        output
        for model in ("org/right", "org/wrong", "zoo/silent")
        for output in describer.describe(model, DescribeRequest(k)).outputs
    ]


def assert_same(found: Sequence[OutputNames], expected: Sequence[OutputNames]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.output, a.label, a.agrees) == (b.output, b.label, b.agrees)
        assert [c.name for c in a.concepts] == [c.name for c in b.concepts]
        assert [c.margin for c in a.concepts] == pytest.approx([c.margin for c in b.concepts], abs=1e-5)
        assert [c.score for c in a.concepts] == pytest.approx([c.score for c in b.concepts], abs=1e-4)


def test_names_of_any_rows_are_those_of_the_command_line(folder: Path, make: Callable[..., Names]) -> None:
    generation, expected = generation_of(folder), all_described(folder)
    names = ready(make(Encoder()), generation)
    rows = [70, 3, 80, 41, 0, 3]
    found = asyncio.run(names.of_rows(generation, rows, 3))
    assert_same(found, [expected[row] for row in rows])
    assert {output.agrees for output in expected} == {True, False, None}
    one = asyncio.run(names.of_rows(generation, [41], 1))[0]
    assert [c.name for c in one.concepts] == [expected[41].concepts[0].name]
    whole = asyncio.run(names.of_rows(generation, range(81), 3))
    assert_same(whole, expected)


def test_nothing_begins_before_names_are_wanted(folder: Path, make: Callable[..., Names]) -> None:
    encoder, generation = Encoder(), generation_of(folder)
    encoder.go.clear()
    others = set(threading.enumerate())
    names = make(encoder)
    assert names.state.model_dump() == {"state": "preparing", "done": 0, "total": len(WORDS), "why": None}
    plain = asyncio.run(names.of_rows(generation, [0, 74], 0))
    assert [(output.output, output.label, output.concepts) for output in plain] == [(0, "word 0", ()), (0, None, ())]
    time.sleep(0.05)
    assert not encoder.asked
    assert not {thread for thread in threading.enumerate() if thread.name == "hubhound-names"} - others
    early = asyncio.run(names.of_rows(generation, [0], 3))  # this begins it, and does not wait
    assert early[0].label == "word 0"
    assert early[0].concepts == ()
    assert early[0].agrees is None
    encoder.go.set()
    until(lambda: names.state.state == "ready")
    assert names.state.done == names.state.total == names.vocabulary == len(WORDS)
    assert asyncio.run(names.of_rows(generation, [0], 3))[0].concepts[0].name == "word 0"


def test_names_that_are_switched_off(folder: Path, make: Callable[..., Names]) -> None:
    encoder, generation = Encoder(), generation_of(folder)
    names = make(encoder, names=False)
    found = asyncio.run(names.of_rows(generation, [5], 3))
    assert (found[0].label, found[0].concepts) == ("word 5", ())
    assert names.state.state == "off"
    assert not encoder.asked


def test_the_vocabulary_is_embedded_in_small_pieces_and_once_per_index(
    folder: Path, make: Callable[..., Names]
) -> None:
    encoder, generation = Encoder(), generation_of(folder)
    seen = []
    names = make(encoder)
    original = encoder.__call__

    def watching(texts: Sequence[str]) -> FloatArray:
        seen.append(names.state.done)
        return original(texts)

    names._phrases._encode = watching
    ready(names, generation)
    assert max(map(len, encoder.asked)) <= phrases_module.PIECE
    assert sorted(encoder.texts) == sorted(WORDS)
    assert seen == sorted(seen)
    assert seen[0] == 0 < seen[-1] < len(WORDS)
    again = Encoder()
    ready(make(again), generation)
    assert not again.asked
    assert set(ConceptCache(folder / "concepts.sqlite").get(WORDS)) == set(WORDS)


def test_a_preparation_that_was_ended_goes_on_where_it_was(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, generation = Encoder(), generation_of(folder)
    names = make(encoder)
    original, left = encoder.__call__, threading.Semaphore(2)

    def stopping(texts: Sequence[str]) -> FloatArray:
        if not left.acquire(blocking=False):
            names.stop()
        return original(texts)

    names._phrases._encode = stopping
    names.start(generation.index)
    thread = names._phrases._thread
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
    assert names.state.state == "preparing"
    done = set(encoder.texts)
    assert len(done) == 3 * phrases_module.PIECE
    again = Encoder()
    ready(make(again), generation)
    assert set(again.texts) == set(WORDS) - done


def test_an_encoder_that_cannot_be_loaded(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, generation = Encoder(), generation_of(folder)
    encoder.broken = True
    names = make(encoder)
    names.start(generation.index)
    until(lambda: names.state.state == "failed")
    assert "cannot be loaded" in (names.state.why or "")
    assert "/root" not in (names.state.why or "")
    found = asyncio.run(names.of_rows(generation, [5], 3))
    assert found[0].concepts == ()
    assert len(encoder.asked) == 1  # a moment ago: not tried again
    encoder.broken = False
    monkeypatch.setattr(names_module, "_RETRY_S", 0.0)
    ready(names, generation)


def test_phrases_that_the_encoder_does_not_know_are_left_out(folder: Path, make: Callable[..., Names]) -> None:
    generation = generation_of(folder)
    names = ready(make(Encoder(), [*WORDS[:20], "zz top", *WORDS[20:], "pizzza"]), generation)
    assert names.state.done == names.state.total == len(WORDS)
    assert_same(asyncio.run(names.of_rows(generation, [3, 44], 2)), [all_described(folder, 2)[row] for row in (3, 44)])
    hopeless = make(Encoder(), ["zz 1", "zz 2", "word 1"])
    hopeless.start(generation.index)
    until(lambda: hopeless.state.state == "failed")
    assert "fewer than 2 phrases" in (hopeless.state.why or "")


def test_a_vocabulary_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    for vocabulary in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError):
            Names(Settings(index=folder, vocabulary=vocabulary), Encoder(), aside)
    Names(Settings(index=folder, vocabulary=tmp_path / "none.txt", names=False), Encoder(), aside)


def test_what_was_named_is_remembered_within_a_bound(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    async def counting(function: Callable[..., Any], generation: Generation, rows: list[int], k: int) -> Any:
        asked.append(rows)
        return await aside(function, generation, rows, k)

    generation = generation_of(folder)
    names = ready(make(Encoder(), run=counting), generation)
    first = asyncio.run(names.of_rows(generation, [1, 2, 3], 2))
    assert asyncio.run(names.of_rows(generation, [3, 1, 2], 2)) == [first[2], first[0], first[1]]
    assert asked == [[1, 2, 3]]
    asyncio.run(names.of_rows(generation, [2, 4], 2))
    asyncio.run(names.of_rows(generation, [2], 1))  # another number of names
    assert asked == [[1, 2, 3], [4], [2]]
    monkeypatch.setattr(names_module, "REMEMBERED", 3)
    asyncio.run(names.of_rows(generation, [5], 2))
    asyncio.run(names.of_rows(generation, [6], 2))
    assert len(names._known) <= 5
    asked.clear()
    asyncio.run(names.of_rows(generation, [6], 2))
    assert not asked


def test_two_that_ask_for_the_same_model_at_once_name_it_once(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    at_once = 0

    async def counting(function: Callable[..., Any], generation: Generation, rows: list[int], k: int) -> Any:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        asked.extend(rows)
        await asyncio.sleep(0.01)
        try:
            return await aside(function, generation, rows, k)
        finally:
            at_once -= 1

    generation = generation_of(folder)
    monkeypatch.setattr(names_module, "_CHUNK", 16)
    names = ready(make(Encoder(), run=counting), generation)

    async def both() -> list[list[OutputNames]]:
        return await asyncio.gather(*(names.of_rows(generation, range(40), 1) for _ in range(3)))

    first, *others = asyncio.run(both())
    assert all(other == first for other in others)
    assert asked == list(range(40))


def test_a_request_that_is_given_up_leaves_nobody_naming_beside_it(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, lock = threading.Event(), threading.Lock()
    asked: list[list[int]] = []
    at_once: list[bool] = []

    def slow(names: Names, generation: Generation, rows: list[int], k: int) -> Any:
        at_once.append(not lock.acquire(blocking=False))
        asked.append(rows)
        assert go.wait(20)
        lock.release()
        return original(names, generation, rows, k)

    original = Names._name
    generation = generation_of(folder)
    names = ready(make(Encoder()), generation)
    monkeypatch.setattr(Names, "_name", slow)

    async def work() -> list[OutputNames]:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(names.of_rows(generation, [1, 2], 1), 0.05)
        assert asked == [[1, 2]]
        last = asyncio.create_task(names.of_rows(generation, [1, 2, 3], 1))
        await asyncio.sleep(0.05)
        assert asked == [[1, 2]]
        go.set()
        return await last

    assert [output.concepts[0].name for output in asyncio.run(work())] == ["word 1", "word 2", "word 3"]
    assert asked == [[1, 2], [3]]  # what nobody waited for any more is remembered
    assert at_once == [False, False]


def test_a_new_generation_has_names_of_its_own_without_the_encoder(folder: Path, make: Callable[..., Names]) -> None:
    encoder, old = Encoder(), generation_of(folder)
    names = ready(make(encoder), old)
    before = asyncio.run(names.of_rows(old, range(81), 3))
    with IndexWriter(folder) as writer:
        put_model(writer, "a/new", [*THINGS], seed=9)
        put_model(writer, "org/wrong", MANY[:34], revision="r2", seed=5)
        writer.finish()
    new = generation_of(folder)
    assert new.number > old.number
    encoder.asked.clear()
    found = asyncio.run(names.of_rows(new, range(84), 3))
    assert not set(encoder.texts) & set(WORDS)
    fresh = Describer(Index(folder), WORDS, encode)
    expected = [
        output
        for model in ("a/new", "org/right", "org/wrong", "zoo/silent")
        for output in fresh.describe(model, DescribeRequest(3)).outputs
    ]
    assert_same(found, expected)
    assert found[3].concepts[0].score != before[0].concepts[0].score  # org/right, measured against other outputs
    # A request that began with the old generation is answered from that.
    assert asyncio.run(names.of_rows(old, range(81), 3)) == before


def test_many_new_labels_are_judged_later_and_names_come_at_once(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels in other words than the vocabulary's: 40 phrases that nobody has embedded yet."""
    with IndexWriter(folder) as writer:
        labels = [f"a {name} of sorts" for name in MANY]
        put_model(writer, "a/verbose", MANY, labels=labels, seed=1)
        writer.finish()
    monkeypatch.setattr(names_module, "AT_ONCE", 5)
    encoder, generation = Encoder(), generation_of(folder)
    names = ready(make(encoder), generation)
    few = asyncio.run(names.of_rows(generation, [0, 1], 1))  # few: judged while the request waits
    assert all(output.agrees is not None for output in few)
    encoder.asked.clear()
    encoder.go.clear()
    early = asyncio.run(names.of_rows(generation, range(40), 1))
    assert [output.concepts[0].name for output in early] == list(MANY)
    assert [output.agrees is None for output in early] == [False] * 2 + [True] * 38
    encoder.go.set()
    until(lambda: len(encoder.texts) == 38)
    assert max(map(len, encoder.asked)) <= phrases_module.PIECE
    until(lambda: not names._phrases._wanted)
    late = asyncio.run(names.of_rows(generation, range(40), 1))
    expected = Describer(Index(folder), WORDS, encode).describe("a/verbose", DescribeRequest(1)).outputs
    assert_same(late, expected)
    assert len(encoder.texts) == 38  # nothing is embedded twice


def test_labels_that_the_encoder_does_not_know_hold_nobody_up(
    folder: Path, make: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexWriter(folder) as writer:
        put_model(writer, "a/foreign", MANY[:10], labels=[f"zz {name}" for name in MANY[:10]], seed=1)
        writer.finish()
    monkeypatch.setattr(names_module, "AT_ONCE", 2)
    encoder, generation = Encoder(), generation_of(folder)
    names = ready(make(encoder), generation)
    asyncio.run(names.of_rows(generation, range(10), 1))
    until(lambda: not names._phrases._wanted)
    asked = len(encoder.asked)
    late = asyncio.run(names.of_rows(generation, range(10), 1))
    assert {output.agrees for output in late} == {None}
    assert len(encoder.asked) == asked
    assert asyncio.run(names.of_rows(generation, range(10), 1)) == late


def test_no_more_labels_wait_than_are_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(phrases_module, "MOST_WANTED", 10)
    phrases = phrases_module.Phrases(tmp_path / "concepts.sqlite", WORDS, encode)
    phrases.want(f"label {i}" for i in range(25))
    assert len(phrases._wanted) == 10
