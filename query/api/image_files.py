"""Images as strangers send them: looked at before they are decoded, decoded once before anything relies on them."""

from __future__ import annotations

import errno
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import ProbeError
from engine.probes import FORMATS, open_image
from query.api.errors import ApiError, ProblemKind

ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".png", "TIFF": ".png"}
"""Of the files that are written, by the format that was sent. GIF and TIFF are written as PNG, first frame only."""

NAME_CHARACTERS = 255
"""Longest name of an upload that is kept."""

TOGETHER = 8
"""All images of a request may have so often the pixels of one: 32 photographs of a telephone."""

MOST_OBLONG = 50
"""How often the shorter side may fit into the longer: encoders scale the shorter one to theirs, the other with it."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS})
"""Numbers of errors of the system that are no fault of what was sent: nothing more can be stored, or opened."""

_ACCEPTED = (*FORMATS, "GIF", "TIFF")
_SHOWN = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_IN_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_LARGE_PIXELS = 16_000_000
_LARGE = Lock()


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_bytes: Largest file.
        max_pixels: Largest product of width and height.
    """

    max_bytes: int
    max_pixels: int

    @property
    def max_pixels_together(self) -> int:
        """Most pixels of all images of one request."""
        return TOGETHER * self.max_pixels


def clean_name(name: str | None, position: int) -> str:
    """The client's name of an upload as text to show; never used as a path.

    Args:
        name: Anything. Control characters and those that turn the direction of writing are removed.
        position: Of the upload, from 0; names those that have no name.
    """
    kept = "".join(
        c for c in (name or "")[: 4 * NAME_CHARACTERS] if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    )
    return kept.strip()[:NAME_CHARACTERS] or f"image {position + 1}"


def pixels_of(source: BinaryIO, name: str, limits: ImageLimits) -> int:
    """Checks what an image says of itself, and decodes nothing.

    Args:
        source: The file as it was sent.
        name: The client's name, for messages.
        limits: What it may be.

    Returns:
        Width times height.

    Raises:
        ApiError: ``invalid-request``: it is empty, of another format or damaged. ``too-large``.
        OSError: One of `NO_ROOM`.
    """
    with _checked(source, name, limits) as image:
        return image.width * image.height


def store_image(source: BinaryIO, folder: Path, position: int, name: str, limits: ImageLimits) -> Path:
    """Checks an image and writes it where ``engine.probes.open_image`` can read it.

    Args:
        source: The file as it was sent, at its beginning.
        folder: Where to.
        position: Of the upload, from 0; it names the file.
        name: The client's name, for messages.
        limits: What it may be.

    Returns:
        The file: the bytes as they were sent, or a PNG of the first frame of a GIF or TIFF.

    Raises:
        ApiError: ``invalid-request``: it is empty, of another format or damaged. ``too-large``.
        OSError: One of `NO_ROOM`.
    """
    with _checked(source, name, limits) as image:
        path = folder / f"{position:03d}{ENDINGS[image.format or '']}"
        if image.width * image.height > _LARGE_PIXELS:
            with _LARGE:  # several at once would need gigabytes
                return _write(source, image, path)
        return _write(source, image, path)


@contextmanager
def _checked(source: BinaryIO, name: str, limits: ImageLimits) -> Iterator[Image.Image]:
    """An image that is not decoded yet; what goes wrong with it until the context ends is the client's fault."""
    size = source.seek(0, 2)
    source.seek(0)
    if size == 0:
        raise _refused(name, "is empty: 0 bytes came")
    if size > limits.max_bytes:
        raise _too_large(name, f"has {size:,} bytes; an image may have {limits.max_bytes:,}")
    try:
        with Image.open(source, formats=_ACCEPTED) as image:
            pixels = image.width * image.height
            if pixels > limits.max_pixels:
                raise _too_large(
                    name, f"has {image.width:,} x {image.height:,} pixels; an image may have {limits.max_pixels:,}"
                )
            shorter, longer = sorted(image.size)
            if longer > MOST_OBLONG * shorter:
                raise _refused(
                    name,
                    f"has {image.width:,} x {image.height:,} pixels: one side may be {MOST_OBLONG} times the other",
                )
            yield image
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, f"has more pixels than is safe; an image may have {limits.max_pixels:,}") from None
    except UnidentifiedImageError:
        raise _refused(name, f"is not an image that can be read: {_SHOWN}") from None
    except ProbeError as error:
        _raise_no_room(error.__cause__)
        raise _refused(name, "is damaged: not all of it can be read") from None
    except Exception as error:  # decoders raise nearly anything on what somebody has broken on purpose
        _raise_no_room(error)
        raise _refused(name, f"is damaged: it cannot be read ({type(error).__name__})") from None


def _raise_no_room(error: BaseException | None) -> None:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise error


def _write(source: BinaryIO, image: Image.Image, path: Path) -> Path:
    if image.format in {"GIF", "TIFF"}:
        _first_frame(image).save(path, "PNG", compress_level=1)
    else:
        source.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
    open_image(path)
    return path


def _first_frame(image: Image.Image) -> Image.Image:
    """As a PNG can hold it, turned as its EXIF says, which the PNG then does not say again."""
    image.load()
    turned = ImageOps.exif_transpose(image)
    for leftover in ("exif", "icc_profile", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(leftover, None)
    if turned.mode.startswith("I;16"):
        return turned.convert("I").convert("I;16")
    if turned.mode in {"I", "F"}:
        raise ValueError("pixels of 32 bits")
    return turned if turned.mode in _IN_PNG else turned.convert("RGB")


def _refused(name: str, what: str) -> ApiError:
    return ApiError(ProblemKind.INVALID_REQUEST, f"the image {name!r} {what}", image=name)


def _too_large(name: str, what: str) -> ApiError:
    return ApiError(ProblemKind.TOO_LARGE, f"the image {name!r} {what}", image=name)
