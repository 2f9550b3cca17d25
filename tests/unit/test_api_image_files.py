"""Images as strangers send them."""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.probes import open_image
from query.api.errors import ApiError
from query.api.image_files import ImageLimits, store_image
from tests.unit.test_api_uploads import encoded

LIMITS = ImageLimits(2_000_000, 4_000_000)


def test_what_is_accepted_is_what_the_engine_reads(tmp_path: Path) -> None:
    """Bytes that the engine reads itself arrive unchanged, so that they are the same image everywhere."""
    for kind, ending in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("BMP", ".bmp")):
        sent = encoded(kind)
        path = store_image(io.BytesIO(sent), tmp_path, 3, "x", LIMITS)
        assert path == tmp_path / f"003{ending}"
        assert path.read_bytes() == sent


@pytest.mark.parametrize(
    ("kind", "mode", "colour", "expected"),
    [
        ("GIF", "P", 0, None),
        ("GIF", "RGB", (200, 10, 20), (200, 10, 20)),
        ("TIFF", "RGB", (200, 10, 20), (200, 10, 20)),
        ("TIFF", "CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("TIFF", "L", 77, (77, 77, 77)),
        ("TIFF", "1", 1, (255, 255, 255)),
        ("TIFF", "I;16", 25_700, (100, 100, 100)),
        ("TIFF", "RGBA", (200, 10, 20, 0), (255, 255, 255)),
        ("TIFF", "LAB", (128, 128, 128), None),
        ("PNG", "I;16", 25_700, (100, 100, 100)),
        ("PNG", "LA", (77, 255), (77, 77, 77)),
        ("PNG", "P", 0, None),
        ("JPEG", "CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("JPEG", "L", 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, kind: str, mode: str, colour: Any, expected: Any) -> None:
    sent = encoded(kind, mode=mode, colour=colour)
    image = open_image(store_image(io.BytesIO(sent), tmp_path, 0, "x", LIMITS))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    if expected:
        assert np.allclose(np.asarray(image)[5, 5], expected, atol=2)


@pytest.mark.parametrize(("size", "fits"), [((1, 50), True), ((1, 51), False), ((510, 10), False), ((500, 10), True)])
def test_long_thin_images_are_refused_before_they_are_decoded(
    tmp_path: Path, size: tuple[int, int], fits: bool
) -> None:
    """An encoder that scales the shorter side to 224 pixels would make gigabytes of them."""
    sent = io.BytesIO()
    Image.new("RGB", size).save(sent, "PNG")
    if fits:
        assert store_image(sent, tmp_path, 0, "x", LIMITS).exists()
        return
    broken = sent.getvalue()[:-14]  # a decoder would say that it is damaged
    with pytest.raises(ApiError, match="one side may be 50 times the other"):
        store_image(io.BytesIO(broken), tmp_path, 0, "x", LIMITS)
    assert not list(tmp_path.iterdir())


def test_a_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
    image.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        buffer = io.BytesIO()
        image.save(buffer, kind, transparency=0)
        opened = open_image(store_image(io.BytesIO(buffer.getvalue()), tmp_path, 0, "x", LIMITS))
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((4, 4)) == (200, 0, 0)


def test_a_turned_tiff_is_turned_once(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    image.putpixel((0, 0), (255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo={274: 6})  # to be shown turned by 90 degrees clockwise
    opened = open_image(store_image(io.BytesIO(buffer.getvalue()), tmp_path, 0, "x", LIMITS))
    assert opened.size == (20, 30)
    assert opened.getpixel((19, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_only_the_first_of_thousands_of_frames_is_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"GIF": _gif_of, "TIFF": _tiff_of}[kind](10_000) if kind in {"GIF", "TIFF"} else _saved(kind, 200)
    sought: list[int] = []
    for module, name in (("Gif", "GifImageFile"), ("Tiff", "TiffImageFile"), ("WebP", "WebPImageFile")):
        plugin = getattr(importlib.import_module(f"PIL.{module}ImagePlugin"), name)
        monkeypatch.setattr(plugin, "seek", lambda _, frame: sought.append(frame))
    image = open_image(store_image(io.BytesIO(sent), tmp_path, 0, "x", LIMITS))
    assert image.size == (2, 2)
    assert np.allclose(np.asarray(image)[0, 0], (250, 0, 0), atol=20)
    assert sought == []


def _saved(kind: str, frames: int) -> bytes:
    """Red, and then blue and red in turn."""
    red, blue = Image.new("RGB", (2, 2), (250, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 250))
    buffer = io.BytesIO()
    red.save(buffer, kind, save_all=True, append_images=[blue, red] * (frames // 2), duration=10)
    return buffer.getvalue()


def _gif_of(frames: int) -> bytes:
    """Frames of 2 x 2 pixels, red and then blue."""

    def frame(colour: int) -> bytes:  # LZW: clear before each pixel, so that codes keep their 3 bits
        codes = (4, colour, 4, colour, 4, colour, 4, colour, 5)
        packed = sum(code << (3 * place) for place, code in enumerate(codes))
        return b",\0\0\0\0\2\0\2\0\0\2\4" + packed.to_bytes(4, "little") + b"\0"

    colours = b"\0\0\0" + b"\xfa\0\0" + b"\0\0\xfa" + b"\0\0\0"
    return b"GIF89a\2\0\2\0\x81\0\0" + colours + frame(1) + frame(2) * (frames - 1) + b";"


def _tiff_of(frames: int) -> bytes:
    """Pages of 2 x 2 pixels that share their pixels, red, written by hand."""
    content = bytearray(b"II*\0" + struct.pack("<I", 0)) + b"\xfa\0\0" * 4 + struct.pack("<3H", 8, 8, 8)
    place = 4
    for _ in range(frames):
        content[place : place + 4] = struct.pack("<I", len(content))
        tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 20), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
        tags += [(277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 12)]
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        place = len(content)
        content += b"\0\0\0\0"
    return bytes(content)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


EXIF = (
    b"II*\0"
    + struct.pack("<IH", 8, 20_000)
    + b"".join(struct.pack("<HHII", tag + 1, 7, 240_000, 0) for tag in range(20_000))
)
"""20,000 tags that each claim the same 240,000 bytes."""

BOMB = png_of(50_000, 50_000, zlib.compress(b"\0" * 1_000_000))
JPEG = encoded("JPEG", (300, 200))

HOSTILE = {
    "empty": (b"", 400),
    "bomb": (BOMB, 413),
    "a little over the limit": (png_of(2001, 2000, zlib.compress(b"\0" * 2002 * 2000, 9)), 413),
    "90 megapixels": (png_of(30_000, 3000, zlib.compress(b"\0" * 1000)), 413),
    "2 ** 31 wide": (png_of(2**31 - 1, 1, zlib.compress(b"\0")), 413),
    "no pixels": (png_of(0, 10, zlib.compress(b"\0")), 400),
    "gif bomb": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", 413),
    "bmp bomb": (b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 1, 1, 0, 0), 413),
    "webp with a huge canvas": (
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\xff\xff\xff" * 2,
        413,
    ),
    "text": (b"This is no photograph.\n" * 100, 400),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 400),
    "html": (b"<!doctype html><script>alert(1)</script>", 400),
    "pdf": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", 400),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n", 400),
    "ppm": (b"P6 2 2 255\n" + b"\0" * 12, 400),
    "ico": (b"\0\0\1\0\1\0\1\1\0\0\1\0\x18\0" + struct.pack("<II", 40, 22) + b"\0" * 40, 400),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], 400),
    "jpeg of a head": (JPEG[:20], 400),
    "truncated png": (encoded(size=(300, 200), colour=(1, 2, 3))[:-40], 400),
    "truncated webp": (encoded("WEBP", (300, 200))[:-20], 400),
    "truncated gif": (encoded("GIF", (300, 200))[:-30], 400),
    "truncated tiff": (encoded("TIFF", (300, 200))[:500], 400),
    "broken png data": (png_of(30, 20, b"not deflate"), 400),
    "png with a wrong sum": (encoded()[:-20] + b"\0\0\0\0" + encoded()[-16:], 400),
    "a zip behind a png head": (b"\x89PNG\r\n\x1a\n" + b"PK\3\4" * 100, 400),
    "a text chunk that inflates": (
        png_of(4, 4, zlib.compress(b"\0" * 20), _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 50_000_000, 9))),
        400,
    ),
    "tiff of floats": (encoded("TIFF", mode="F", colour=0.5), 400),
    "tiff that points to itself": (b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8), 400),
    "exif of gigabytes in png": (png_of(4, 4, zlib.compress(b"\0" * 20), _chunk(b"eXIf", EXIF)), 400),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_the_clients_fault(tmp_path: Path, case: str) -> None:
    sent, status = HOSTILE[case]
    with pytest.raises(ApiError) as caught:
        store_image(io.BytesIO(sent), tmp_path, 0, "x.jpg", LIMITS)
    assert caught.value.kind.status == status
    assert "'x.jpg'" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


def test_random_damage_is_never_ours(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    good = [encoded(kind, (40, 30)) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    refused = 0
    for number in range(300):
        sent = np.frombuffer(good[number % len(good)], dtype=np.uint8).copy()
        sent[generator.integers(0, len(sent), size=6)] = generator.integers(0, 256, size=6)
        try:
            path = store_image(io.BytesIO(sent.tobytes()), tmp_path, 0, "broken", LIMITS)
        except ApiError as error:
            assert error.kind.status in {400, 413}
            refused += 1
        else:
            open_image(path)
    assert 0 < refused < 300
