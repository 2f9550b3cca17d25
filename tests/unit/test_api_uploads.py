"""Bodies with images: what is taken, what is refused, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict

from engine.errors import ProbeError
from engine.probes import open_image
from query.api.errors import install
from query.api.image_files import ImageLimits, clean_name, store_image
from query.api.settings import Settings
from query.api.uploads import FOLDER_PREFIX, read_body

LIMITS = ImageLimits(2_000_000, 4_000_000)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    texts: list[str] = []
    k: int = 10
    weight: float = 0.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, empty before each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


@pytest.fixture
def app(folder: Path) -> Iterator[FastAPI]:
    app = FastAPI()
    install(app)
    app.state.fail = None
    settings = Settings(index=folder, max_images=4, max_image_mb=2, max_image_megapixels=4)

    @app.post("/read")
    async def read(request: Request) -> dict[str, Any]:
        async with read_body(request, Body, settings) as parsed:
            assert len(parsed.images) == len(parsed.names)
            if app.state.fail:
                raise app.state.fail(parsed)
            opened = [open_image(path) for path in parsed.images]
            return {
                "body": parsed.body.model_dump(),
                "names": parsed.names,
                "sizes": [image.size for image in opened],
                "files": [path.name for path in parsed.images],
                "folders": len({path.parent for path in parsed.images}),
            }

    yield app
    assert list(folder.iterdir()) == []  # whatever was sent


def ask(app: FastAPI, **sent: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/read", **sent)

    return asyncio.run(run())


def encoded(kind: str = "PNG", size: tuple[int, int] = (30, 20), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, options.pop("colour", 7)).save(buffer, kind, **options)
    return buffer.getvalue()


def ask_images(app: FastAPI, *images: bytes, name: str = "a.png") -> httpx.Response:
    return ask(app, files=[("images", (name, image)) for image in images])


def refused(answer: httpx.Response, status: int, *words: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    for word in words:
        assert word in detail
    assert FOLDER_PREFIX not in detail
    return detail


# --- JSON ---


def test_json_is_the_body(app: FastAPI) -> None:
    answer = ask(app, json={"texts": ["@/etc/passwd", "naïve 犬 🐕"], "k": 3})
    assert answer.json()["body"] == {"texts": ["@/etc/passwd", "naïve 犬 🐕"], "k": 3, "weight": 0.0}
    assert ask(app, content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b'{"k": NaN}', 400),
        (b'{"weight": Infinity}', 400),
        (b'{"weight": -Infinity}', 400),
        (b'{"weight": 1e999}', 400),
        (b'{"k": 1, "k": 2}', 400),
        (b'{"texts": ["\xff\xfe"]}', 400),
        (b'{"texts": ["\xed\xa0\x80"]}', 400),
        (b'{"texts": ["\\ud800"]}', 400),
        (b'{"\\udfff": 1}', 400),
        (b'{"texts": ["a\\u0000b"]}', 400),
        (b'{"texts": ["a\x00b"]}', 400),
        (b'{"k": ' + b"9" * 5000 + b"}", 400),
        (b'{"k": ' + b"9" * 4000 + b"}", 200),
        (b"[" * 100_000, 400),
        (b'{"texts":' * 100_000, 400),
        (b'{"texts": ' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b'{"texts": ' + b"[" * 20 + b"]" * 20 + b"}", 422),
        (b"\xef\xbb\xbf{}", 400),
        ('{"k": 1}'.encode("utf-16"), 400),
        (b'{"k": 1} {"k": 2}', 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"k": "many"}', 422),
        (b'{"texts": [null]}', 422),
        (b'{"unknown": 1}', 422),
        (b'{"texts": ["\\ud83d\\udc15"]}', 200),
    ],
    ids=lambda given: repr(given)[:50],
)
def test_json_is_read_strictly_alone_and_beside_images(app: FastAPI, content: bytes, status: int) -> None:
    alone = ask(app, content=content, headers={"Content-Type": "application/json"})
    beside = ask(app, files=[("request", (None, content)), ("images", ("a.png", encoded()))])
    for answer in (alone, beside):
        assert answer.status_code == status, answer.text
        assert (answer.headers["content-type"] == "application/problem+json") == (status != 200)
    assert alone.json().get("type") == beside.json().get("type")


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", "application/jsonp", "\x7f"],
)
def test_other_media_types_are_refused(app: FastAPI, media_type: str) -> None:
    refused(ask(app, content=b"{}", headers={"Content-Type": media_type}), 415, "application/json")


def test_compressed_bodies_are_refused(app: FastAPI) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused(ask(app, content=b"{}", headers=headers), 415, "Content-Encoding")


# --- multipart ---


def test_images_come_in_order_with_their_names_and_the_json(app: FastAPI) -> None:
    files = [
        ("images", ("b.jpg", encoded("JPEG", (40, 10)))),
        ("request", (None, json.dumps({"texts": ["犬"], "k": 2}), "application/json")),
        ("images", ("ünïcode 犬.webp", encoded("WEBP", (11, 12)))),
    ]
    assert ask(app, files=files).json() == {
        "body": {"texts": ["犬"], "k": 2, "weight": 0.0},
        "names": ["b.jpg", "ünïcode 犬.webp"],
        "sizes": [[40, 10], [11, 12]],
        "files": ["000.jpg", "001.webp"],
        "folders": 1,
    }


def test_the_json_may_be_left_out_or_be_a_file(app: FastAPI) -> None:
    assert ask_images(app, encoded()).json()["body"]["k"] == 10
    assert ask(app, files=[("request", ("r.json", b'{"k": 4}'))]).json()["body"]["k"] == 4


@pytest.mark.parametrize(
    "files",
    [
        [("other", (None, b"x"))],
        [("image", ("a.png", b"x"))],
        [("request", (None, b"{}")), ("request", (None, b"{}"))],
        [("images", (None, b"no file"))],
    ],
    ids=["unknown field", "unknown file", "request twice", "an image that is a field"],
)
def test_other_parts_are_refused(app: FastAPI, files: list[Any]) -> None:
    refused(ask(app, files=files), 400)


PART = b'--B\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nxx\r\n'
FORM = "multipart/form-data; boundary=B"


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("multipart/form-data", PART + b"--B--\r\n"),
        ("multipart/form-data; boundary=", PART + b"--B--\r\n"),
        ("multipart/form-data; boundary=" + "b" * 71, PART + b"--B--\r\n"),
        ('multipart/form-data; boundary="\u00ff"', PART + b"--B--\r\n"),
        ("multipart/form-data; boundary=C", PART + b"--B--\r\n"),
        (FORM, b""),
        (FORM, b"nothing of the kind"),
        (FORM, PART),
        (FORM, PART[:-4]),
        (FORM, b"--B\r\n\r\nxx\r\n--B--\r\n"),
        (FORM, b"--B\r\nContent-Disposition: form-data\r\n\r\nxx\r\n--B--\r\n"),
        (FORM, b"--B\r\n" + b"X: y\r\n" * 1000 + PART[5:] + b"--B--\r\n"),
        (FORM, b"--B\r\nX-" + b"x" * 100_000 + b": y\r\n" + PART[5:] + b"--B--\r\n"),
        (FORM, b"--B\r\nX: " + b"y" * 100_000 + b"\r\n" + PART[5:] + b"--B--\r\n"),
        (FORM, b"--B\r\n\x00\xff: y\r\n" + PART[5:] + b"--B--\r\n"),
        (FORM, b'--B\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nxx\r\n--B--\r\n'),
        ("multipart/form-data; charset=punycode; boundary=B", PART + b"--B--\r\n"),
        ("multipart/form-data; charset=\x00; boundary=B", PART + b"--B--\r\n"),
    ],
    ids=range(18),
)
def test_what_is_no_multipart_is_refused(app: FastAPI, media_type: str, content: bytes) -> None:
    headers = {b"Content-Type": media_type.encode("latin-1")}
    refused(ask(app, content=content, headers=headers), 400)  # type: ignore[arg-type]


def test_too_many_and_too_large_parts(app: FastAPI) -> None:
    small = encoded(size=(4, 4))
    assert ask_images(app, *[small] * 4).status_code == 200
    refused(ask_images(app, *[small] * 5), 413, "more than 4 images")
    refused(ask_images(app, *[small] * 300), 413, "more than 4 images")
    refused(ask(app, files=[("images", (None, b"x"))] * 300), 400, "too many fields")
    refused(ask(app, files=[("request", (None, b" " * 1_000_001))]), 413, "1,000,000 bytes")
    refused(ask(app, files=[("request", ("r", b" " * 1_000_001))]), 413, "1,000,000 bytes")
    refused(ask_images(app, encoded() + b"\0" * 2_000_000, name="fat.png"), 413, "'fat.png'", "2,000,000")


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\0b\x1b[31m\r\n.png", "ab[31m.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("x" * 10_000, "x" * 255),
        ("", "image 3"),
        ("\u200b\u2066\n", "image 3"),
        ("\ud800.png", ".png"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        (None, "image 3"),
    ],
)
def test_names_are_text(sent: str | None, shown: str) -> None:
    assert clean_name(sent, 2) == shown


def test_tricky_names_reach_no_path(app: FastAPI) -> None:
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x\\y.png",
        "a" * 3000,
        "\u202egnp.a",
        "%00%2e%2e%2f",
        'q".png',
    ):
        answer = ask_images(app, encoded(), name=name).json()
        assert answer["files"] == ["000.png"]
        assert "\u202e" not in answer["names"][0]
        assert len(answer["names"][0]) <= 255


def test_errors_behind_name_the_upload_and_not_its_path(app: FastAPI) -> None:
    app.state.fail = lambda parsed: ProbeError(f"the image {parsed.images[1]} is strange", parsed.images[1])
    files = [("images", ("cat.png", encoded())), ("images", ("dog.png", encoded()))]
    assert refused(ask(app, files=files), 400) == "the image dog.png is strange"
    app.state.fail = lambda parsed: ProbeError(f"nothing in {parsed.images[0].parent} is any good", None)
    assert refused(ask(app, files=files), 400) == "nothing in the upload is any good"
    app.state.fail = lambda parsed: ZeroDivisionError(str(parsed.images))
    refused(ask(app, files=files), 500)


def test_one_bad_image_among_good_ones_is_named(app: FastAPI) -> None:
    files = [
        ("images", (name, data)) for name, data in (("a.png", encoded()), ("b.jpg", b"text"), ("c.png", encoded()))
    ]
    refused(ask(app, files=files), 400, "'b.jpg'", "not an image")
    assert ask(app, files=files).json()["image"] == "b.jpg"


# --- the folder ---


def folders(folder: Path) -> int:
    return len(list(folder.iterdir()))


class Held:
    """Images are decoded when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.release = threading.Event()
        self.names: list[str] = []
        monkeypatch.setattr("query.api.uploads.store_image", self)

    def __call__(self, source: Any, folder: Path, position: int, name: str, limits: ImageLimits) -> Path:
        self.names.append(name)
        self.began.set()
        self.release.wait(10)
        return store_image(source, folder, position, name, limits)


def test_the_folder_outlives_a_cancelled_request_only_until_its_thread_is_done(
    app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that writes cannot be stopped: what it still writes must not stay behind. It does not begin another."""
    held = Held(monkeypatch)
    sent = [("images", (name, encoded())) for name in ("a.png", "b.png", "c.png")]

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = asyncio.create_task(client.post("/read", files=sent))
            await asyncio.to_thread(held.began.wait, 5)
            assert folders(folder) == 1
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert asked.cancelled()
            assert folders(folder) == 1
            held.release.set()
            for _ in range(200):
                if not folders(folder):
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the folder is still there")

    asyncio.run(run())
    assert held.names == ["a.png"]


def test_the_folder_goes_when_the_request_is_cancelled_in_the_middle_of_its_work(folder: Path) -> None:
    app = FastAPI()
    seen = []
    reached = asyncio.Event()

    @app.post("/read")
    async def read(request: Request) -> None:
        async with read_body(request, Body, Settings(index=folder)) as parsed:
            seen.append(parsed.images[0].exists())
            reached.set()
            await asyncio.sleep(60)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = asyncio.create_task(client.post("/read", files=[("images", ("a.png", encoded()))]))
            await asyncio.wait_for(reached.wait(), 5)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(run())
    assert seen == [True]
    assert list(folder.iterdir()) == []
