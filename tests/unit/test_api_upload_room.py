"""Uploads and what they use up: threads, pixels, room on disk, descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from engine.errors import ProbeError
from query.api import image_files
from query.api.errors import LOGGER
from query.api.service import ASIDE_THREADS
from query.api.uploads import DECODING_THREADS, NO_ROOM_LOG_S, _Room
from tests.support.service import asking, small_app
from tests.unit.test_api_uploads import Held, app, ask_images, encoded, folder, folders, refused

__all__ = ["app", "folder"]


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(1000):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_uploads_that_are_decoded_hold_up_nothing_else(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the service has threads: new texts and lists of models use the others."""
    held = Held(monkeypatch)
    with asking(small_app(tmp_path / "zoo", request_timeout_s=20)) as asked:

        async def run() -> None:
            sent = [
                asyncio.create_task(asked.client.post("/v1/search", files=[("images", ("a.png", encoded()))]))
                for _ in range(ASIDE_THREADS + DECODING_THREADS)
            ]
            await until(lambda: len(held.names) == DECODING_THREADS)
            for text in ("owl", "lamp"):
                answer = await asked.client.post("/v1/search", json={"concepts": [text]})
                assert answer.status_code == 200
            assert (await asked.client.get("/v1/models")).status_code == 200
            assert not any(task.done() for task in sent)
            held.release.set()
            assert {(await task).status_code for task in sent} == {200}

        asked.run(run())
    assert folders(folder) == 0


def test_uploads_that_wait_for_a_thread_are_not_begun_when_they_are_given_up(
    app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [
                asyncio.create_task(client.post("/read", files=[("images", (f"{number}.png", encoded()))]))
                for number in range(DECODING_THREADS + 3)
            ]
            await until(lambda: folders(folder) == len(asked) and len(held.names) == DECODING_THREADS)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.sleep(0.05)
            assert folders(folder) == DECODING_THREADS
            held.release.set()
            await until(lambda: not folders(folder))

    asyncio.run(run())
    assert len(held.names) == DECODING_THREADS


def test_pixels_are_counted_over_all_images_before_one_is_decoded(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    held.release.set()
    monkeypatch.setattr(image_files, "TOGETHER", 2)
    large = encoded(size=(2000, 2000))  # 4 megapixels, as many as one may have; two of them are as many as all may
    assert ask_images(app, large, large).status_code == 200
    assert len(held.names) == 2
    answer = ask_images(app, large, large, encoded(size=(1, 1)))
    refused(answer, 413, "8,000,000 pixels together")
    assert answer.json()["max_pixels"] == 8_000_000
    assert len(held.names) == 2


@pytest.fixture
def _told_never(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log has not been told of anything; it hears here whatever a server of another test set up."""
    monkeypatch.setattr(_Room, "told_at", -NO_ROOM_LOG_S)
    logger = logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "disabled", False)
    yield


def no_room(answer: httpx.Response) -> None:
    refused(answer, 503, "no room for uploads")
    assert answer.json()["type"] == "urn:hubhound:problem:busy"
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.usefixtures("_told_never")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS])
@pytest.mark.parametrize(
    "where", ["image_files.shutil.copyfileobj", "image_files.open_image", "uploads.TemporaryDirectory"]
)
def test_without_room_clients_are_told_to_come_again(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str, number: int
) -> None:
    error = OSError(number, os.strerror(number))

    def full(*_: object, **__: object) -> None:
        if where.endswith("open_image"):
            raise ProbeError("the image is damaged: it cannot be opened") from error
        raise error

    monkeypatch.setattr(f"query.api.{where}", full)
    for _ in range(3):
        no_room(ask_images(app, encoded()))
    assert [record.getMessage() for record in caplog.records] == [f"there is no room for uploads: {error}"]
    monkeypatch.setattr(_Room, "told_at", time.monotonic() - NO_ROOM_LOG_S)
    no_room(ask_images(app, encoded()))
    assert len(caplog.records) == 2


@pytest.mark.usefixtures("_told_never")
def test_a_process_without_free_descriptors_calls_no_image_damaged(app: FastAPI) -> None:
    """The part is kept in memory up to a megabyte and then in a file, which cannot be opened here; nor can a folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    noise = encoded("BMP", (700, 700))
    taken: list[int] = []

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/read", files=[("images", ("a.bmp", noise))])  # whatever is opened only once
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                return await client.post("/read", files=[("images", ("a.bmp", noise))])
            finally:
                for descriptor in taken:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    no_room(asyncio.run(run()))
    assert ask_images(app, noise).status_code == 200
