"""The encoder's thread: what waits at the same time is encoded together, and one bad text is no harm to others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.descriptors import FloatArray
from engine.errors import ConceptError, EncoderError, IndexMismatchError, InputError
from query.api import batches
from query.api.batches import TextBatches
from query.api.memory import ConceptMemory
from tests.support.small_index import D, PretendEncoder, encode, see, vector, write_example


class Scripted(PretendEncoder):
    """Counts its calls, knows no word with zz, and works only while it is let."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.threads: set[int] = set()
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Semaphore(0)

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        assert templates == ("{}",)
        self.calls.append(tuple(texts))
        self.threads.add(threading.get_ident())
        self.began.release()
        assert self.free.wait(10)
        for text in texts:
            if "zz" in text:
                raise ConceptError(f"the encoder's vocabulary knows no part of {text!r}", text)
        return encode(texts)


@pytest.fixture
def encoder() -> Scripted:
    return Scripted()


@pytest.fixture
def memory(tmp_path: Path) -> ConceptMemory:
    return ConceptMemory(tmp_path / "concepts.sqlite", 1000)


Batches = Callable[..., TextBatches]


@pytest.fixture
def make(encoder: Scripted, memory: ConceptMemory) -> Batches:
    def made(load: Callable[[], Scripted] | None = None, most: int = 64, **options: object) -> TextBatches:
        return TextBatches(load or (lambda: encoder), "pretend", ("{}",), memory, most, **options)  # type: ignore[arg-type]

    return made


def run(one: TextBatches, work: Callable[[], Awaitable[None]]) -> None:
    one.start()
    try:
        asyncio.run(asyncio.wait_for(work(), 20))
    finally:
        one.stop()


async def begun(encoder: Scripted, count: int = 1) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(encoder.began.acquire, True, 5)


def test_what_waits_together_is_encoded_together(encoder: Scripted, memory: ConceptMemory, make: Batches) -> None:
    told: list[int] = []
    one = make(told=told.append)

    async def work() -> None:
        encoder.free.clear()
        first = asyncio.create_task(one.embed(["first"]))
        await begun(encoder)
        waiting = [asyncio.create_task(one.embed([f"text {i}", "shared"])) for i in range(20)]
        await asyncio.sleep(0.05)
        encoder.free.set()
        await asyncio.gather(first, *waiting)

    run(one, work)
    assert [len(call) for call in encoder.calls] == [1, 21]  # "shared" once
    assert told == [1, 21]
    assert memory.missing([f"text {i}" for i in range(20)]) == []
    assert np.array_equal(memory.get(["text 7"])["text 7"], vector("text 7"))
    assert len(encoder.threads) == 1
    assert encoder.threads != {threading.get_ident()}


def test_no_more_at_once_than_the_limit(encoder: Scripted, make: Batches) -> None:
    one = make(most=8)

    async def work() -> None:
        encoder.free.clear()
        first = asyncio.create_task(one.embed(["first"]))
        await begun(encoder)
        waiting = [asyncio.create_task(one.embed([f"{i} a", f"{i} b", f"{i} c"])) for i in range(5)]
        large = asyncio.create_task(one.embed([f"large {i}" for i in range(20)]))
        await asyncio.sleep(0.05)
        encoder.free.set()
        await asyncio.gather(first, *waiting, large)

    run(one, work)
    # Requests are not cut apart: two of three texts are 6, three would be 9; one larger than the limit goes alone.
    assert [len(call) for call in encoder.calls] == [1, 6, 6, 3, 20]


def test_a_bad_text_fails_its_own_request_only(encoder: Scripted, memory: ConceptMemory, make: Batches) -> None:
    one = make()
    ended: list[object] = []

    async def work() -> None:
        encoder.free.clear()
        first = asyncio.create_task(one.embed(["first"]))
        await begun(encoder)
        asked = (["cat"], ["dog", "zz"], ["owl"], ["y zz"])
        waiting = [asyncio.create_task(one.embed(texts)) for texts in asked]
        await asyncio.sleep(0.05)
        encoder.free.set()
        await first
        ended.extend(await asyncio.gather(*waiting, return_exceptions=True))

    run(one, work)
    assert ended[0] is None
    assert ended[2] is None
    assert isinstance(ended[1], ConceptError)
    assert ended[1].concept == "zz"
    assert isinstance(ended[3], ConceptError)
    assert ended[3].concept == "y zz"
    assert memory.missing(["cat", "dog", "owl", "zz"]) == ["zz"]  # dog was fine


def test_texts_that_became_known_while_they_waited_are_not_encoded_again(encoder: Scripted, make: Batches) -> None:
    one = make(most=1)

    async def work() -> None:
        await asyncio.gather(*(one.embed(["same"]) for _ in range(5)))

    run(one, work)
    assert encoder.calls == [("same",)]


def test_background_work_comes_in_pieces_and_lets_requests_pass(encoder: Scripted, make: Batches) -> None:
    one = make(most=4)
    phrases = [f"phrase {i}" for i in range(20)]
    found: list[FloatArray] = []

    async def work() -> None:
        encoder.free.clear()
        slow = asyncio.create_task(asyncio.to_thread(lambda: found.append(one.encode(phrases))))
        await begun(encoder)
        quick = asyncio.create_task(one.embed(["urgent"]))
        await asyncio.sleep(0.05)
        encoder.free.set()
        await asyncio.gather(slow, quick)

    run(one, work)
    assert encoder.calls[:2] == [tuple(phrases[:4]), ("urgent",)]
    assert [len(call) for call in encoder.calls] == [4, 1, 4, 4, 4, 4]
    assert np.array_equal(found[0], encode(phrases))


def test_background_work_with_a_bad_text_says_so(make: Batches, memory: ConceptMemory) -> None:
    one = make()
    one.start()
    with pytest.raises(ConceptError, match="knows no part of 'zz'"):
        one.encode(["cat", "zz"])
    assert one.encode(["cat"]).shape == (1, D)
    assert memory.missing(["cat"]) == ["cat"]  # it is the index that remembers these
    one.stop()


def test_images_too(make: Batches, tmp_path: Path) -> None:
    paths = [write_example(tmp_path / f"{i}.png", "cat", i) for i in range(3)]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    one = make()
    one.start()
    expected = np.stack([see(Image.open(path)) for path in paths])
    assert np.array_equal(one.encode_images(paths), expected)
    with pytest.raises(InputError, match=r"bad\.png"):
        one.encode_images([paths[0], tmp_path / "bad.png"])
    assert np.array_equal(one.encode_images(paths[:1]), expected[:1])
    one.stop()


@pytest.mark.parametrize("blocking", [True, False], ids=["encode_images", "see"])
def test_images_come_in_pieces_and_let_texts_pass(
    encoder: Scripted, make: Batches, tmp_path: Path, blocking: bool
) -> None:
    paths = [write_example(tmp_path / f"{i}.png", "cat", i) for i in range(10)]
    one, done = make(), []

    def encode_images(images: Iterable[Image.Image], count: int) -> FloatArray:
        some = list(images)
        assert len(some) == count
        encoder.calls.append(("image",) * count)
        encoder.began.release()
        assert encoder.free.wait(10)
        return np.stack([see(image) for image in some])

    encoder.encode_images = encode_images  # type: ignore[method-assign]

    async def work() -> None:
        encoder.free.clear()
        asked = asyncio.to_thread(one.encode_images, paths) if blocking else one.see(paths)
        slow = asyncio.create_task(asked)
        await begun(encoder)
        quick = asyncio.create_task(one.embed(["urgent"]))
        await asyncio.sleep(0.05)
        encoder.free.set()
        done.append(await slow)
        await quick

    run(one, work)
    assert encoder.calls == [("image",) * 4, ("urgent",), ("image",) * 4, ("image",) * 2]
    assert np.array_equal(done[0], np.stack([see(Image.open(path)) for path in paths]))


def test_the_pieces_behind_a_bad_image_are_left(encoder: Scripted, make: Batches, tmp_path: Path) -> None:
    paths = [write_example(tmp_path / f"{i}.png", "cat", i) for i in range(30)]
    paths[1].write_bytes(b"no image")
    one, counts = make(), []
    original = encoder.encode_images

    def counting(images: Iterable[Image.Image], count: int) -> FloatArray:
        counts.append(count)
        time.sleep(0.1)
        return original(images, count)

    encoder.encode_images = counting  # type: ignore[method-assign]

    async def work() -> None:
        with pytest.raises(InputError, match=r"1\.png"):
            await one.see(paths)
        await one.embed(["then"])

    run(one, work)
    assert counts in ([4], [4, 4])  # the next may have begun


def test_loaded_once_however_many_ask(encoder: Scripted, make: Batches) -> None:
    loads: list[int] = []

    def load() -> Scripted:
        loads.append(threading.get_ident())
        time.sleep(0.05)
        return encoder

    one = make(load)

    async def work() -> None:
        assert not one.loaded
        await asyncio.gather(one.preload(), *(one.embed([f"text {i}"]) for i in range(10)), one.preload())
        assert one.loaded

    run(one, work)
    assert len(loads) == 1
    assert {*loads} == encoder.threads


@pytest.mark.parametrize(
    "failure", [EncoderError("gone", "pretend"), IndexMismatchError("another", "encoder", 1, 2), MemoryError("full")]
)
def test_an_encoder_that_cannot_be_loaded_is_told_and_tried_again_later(
    failure: Exception, encoder: Scripted, make: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def load() -> Scripted:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise failure
        return encoder

    monkeypatch.setattr(batches, "RETRY_S", 0.3)
    one = make(load)

    async def work() -> None:
        for _ in range(5):  # told at once, without another try
            with pytest.raises(EncoderError, match=str(failure)):
                await one.embed(["cat"])
        assert len(tries) == 1
        await asyncio.sleep(0.35)
        await one.embed(["cat"])

    run(one, work)
    assert len(tries) == 2
    assert encoder.calls == [("cat",)]


def test_a_request_that_was_given_up_is_not_encoded(encoder: Scripted, memory: ConceptMemory, make: Batches) -> None:
    one = make()

    async def work() -> None:
        encoder.free.clear()
        first = asyncio.create_task(one.embed(["first"]))
        await begun(encoder)
        given_up = asyncio.create_task(one.embed(["given up"]))
        await asyncio.sleep(0.02)
        given_up.cancel()
        first.cancel()  # is being encoded: goes on, and is remembered
        await asyncio.gather(first, given_up, return_exceptions=True)
        encoder.free.set()
        await one.embed(["last"])

    run(one, work)
    assert encoder.calls == [("first",), ("last",)]
    assert memory.missing(["first", "given up", "last"]) == ["given up"]


def test_the_end_leaves_nobody_waiting(encoder: Scripted, make: Batches) -> None:
    one = make()

    async def work() -> None:
        encoder.free.clear()
        first = asyncio.create_task(one.embed(["first"]))
        await begun(encoder)
        second = asyncio.create_task(one.embed(["second"]))
        await asyncio.sleep(0.02)
        one.stop()
        with pytest.raises(asyncio.CancelledError):
            await second
        with pytest.raises(EncoderError, match="the service is ending"):
            await one.embed(["third"])
        encoder.free.set()
        await first

    run(one, work)
    assert encoder.calls == [("first",)]
