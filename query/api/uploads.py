"""The body of a request: JSON, or JSON beside images, checked and in a folder of its own while it is needed."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from engine.errors import HubhoundError
from query.api.admission import JSON_BYTES, hold_while
from query.api.errors import LOGGER, ApiError, ProblemKind, named_error, retry_after
from query.api.image_files import NO_ROOM, ImageLimits, clean_name, pixels_of, store_image
from query.api.strict_json import read_json

if TYPE_CHECKING:
    from query.api.settings import Settings

T = TypeVar("T", bound=BaseModel)

REQUEST_PART = "request"
"""Part of a multipart body that holds the JSON."""

IMAGES_PART = "images"
"""Parts of a multipart body that hold one image each."""

FOLDER_PREFIX = "hubhound-upload-"
"""Beginning of the names of the temporary folders."""

DECODING_THREADS = 2
"""Threads for uploads. Of their own, as they can keep them busy for long; large images are decoded one at a time."""

NO_ROOM_RETRY_S = 10.0
"""When a client whose upload found no room is told to come back, in seconds."""

NO_ROOM_LOG_S = 60.0
"""So often the log says at most that there is no room, in seconds."""

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_MOST_FIELDS = 8
_DECODING = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="hubhound-uploads")

log = logging.getLogger(LOGGER)


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """A body that was read.

    Attributes:
        body: The JSON.
        images: Files of the images, in the order they were sent; there until the context ends.
        names: What the client calls them, at most 255 characters each; text to show, not unique.
    """

    body: T
    images: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def shown(self) -> dict[str, str]:
        """The client's names by the paths of the files, as `to_problem` takes them."""
        return {str(path): name for path, name in zip(self.images, self.names, strict=True)}


@asynccontextmanager
async def read_body(request: Request, model: type[T], settings: Settings) -> AsyncIterator[Parsed[T]]:
    """Reads a body; its images exist until the context ends, however it ends.

    ``application/json`` is the body itself. ``multipart/form-data`` has it in the part ``request`` (``{}`` without)
    and images in parts ``images``. Errors of ours that leave the context name images as the client does.

    Args:
        request: From a client.
        model: Of the JSON.
        settings: For the limits.

    Yields:
        The body.

    Raises:
        ApiError: ``invalid-request``, ``too-large``, ``unsupported-media-type``; ``busy``: no room for the images.
        RequestValidationError: The JSON does not fit the model.
    """
    media_type, options = _media_type(request)
    if media_type == b"application/json":
        yield Parsed(read_json(await request.body(), model))
    elif media_type == b"multipart/form-data":
        with _room():
            form = await _form(request, options, settings.max_images)
        uploads = _Uploads(form)
        try:
            body = read_json(await _json_of(form), model)
            with _room():
                images, names = await uploads.store(settings)
            parsed = Parsed(body, images, names)
            try:
                yield parsed
            except HubhoundError as error:
                raise named_error(error, {**parsed.shown, uploads.folder: "the upload"}) from error
        finally:
            uploads.drop()
    else:
        raise ApiError(
            ProblemKind.UNSUPPORTED_MEDIA_TYPE,
            "send application/json, or multipart/form-data with a part 'request' of JSON and parts 'images' of files",
        )


async def read_json_body(request: Request, model: type[T]) -> T:
    """Reads a body that is ``application/json``.

    Args:
        request: From a client.
        model: Of the JSON.

    Raises:
        ApiError: ``invalid-request``, ``too-large``, ``unsupported-media-type``.
        RequestValidationError: It does not fit the model.
    """
    if _media_type(request)[0] != b"application/json":
        raise ApiError(ProblemKind.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    return read_json(await request.body(), model)


def _media_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    """What the body is said to be; compressed ones are refused."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(
            ProblemKind.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read: send it without Content-Encoding"
        )
    return parse_options_header(request.headers.get("content-type"))


class _Room:
    """When the log was told that there is no room: a full disk would fill it, too."""

    told_at = -NO_ROOM_LOG_S


@contextmanager
def _room() -> Iterator[None]:
    """Tells clients to come again where an upload cannot be stored; only to be used in the event loop's thread."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        if time.monotonic() - _Room.told_at >= NO_ROOM_LOG_S:
            _Room.told_at = time.monotonic()
            log.error("there is no room for uploads: %s", error)
        raise ApiError(
            ProblemKind.BUSY,
            "there is no room for uploads at the moment: come back later, or send fewer and smaller images",
            headers=retry_after(NO_ROOM_RETRY_S),
        ) from error


class _Parser(MultiPartParser):
    """Refuses a body without its end, whose last part was cut off and would otherwise only be missing."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_images: int) -> None:
        # The JSON may come as a file, too.
        limits = {"max_files": max_images + 1, "max_fields": _MOST_FIELDS, "max_part_size": JSON_BYTES}
        super().__init__(headers, self._to_the_end(stream), **limits)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The stream; raises within the parser, which closes its files then."""
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it ends before its last boundary")


class _Uploads:
    """The images of one request on disk."""

    def __init__(self, form: FormData) -> None:
        self._form = form
        self._directory: TemporaryDirectory[str] | None = None
        self._work: Future[tuple[Path, ...]] | None = None
        self._unwanted = Event()

    @property
    def folder(self) -> str:
        return self._directory.name if self._directory else "\0"

    async def store(self, settings: Settings) -> tuple[tuple[Path, ...], tuple[str, ...]]:
        files = [part for name, part in self._form.multi_items() if name == IMAGES_PART]
        sources = [part.file for part in files if isinstance(part, UploadFile)]
        if len(sources) < len(files):
            raise ApiError(ProblemKind.INVALID_REQUEST, "images are sent as files: parts 'images' with a filename")
        names = tuple(
            clean_name(_text(part.filename), position)
            for position, part in enumerate(part for part in files if isinstance(part, UploadFile))
        )
        if not sources:
            return (), ()
        limits = ImageLimits(int(settings.max_image_mb * 1e6), int(settings.max_image_megapixels * 1e6))
        self._directory = TemporaryDirectory(prefix=FOLDER_PREFIX)
        self._work = _DECODING.submit(self._stored, Path(self._directory.name), sources, names, limits)
        hold_while(self._work)
        return await asyncio.wrap_future(self._work), names

    def _stored(
        self, folder: Path, sources: Sequence[BinaryIO], names: Sequence[str], limits: ImageLimits
    ) -> tuple[Path, ...]:
        """Checks and writes the images, in a thread; stops between two of them when nobody waits any more."""
        pixels = 0
        for source, name in zip(sources, names, strict=True):
            if self._unwanted.is_set():
                return ()
            pixels += pixels_of(source, name, limits)
            if pixels > limits.max_pixels_together:
                raise ApiError(
                    ProblemKind.TOO_LARGE,
                    f"the images have more than {limits.max_pixels_together:,} pixels together: send fewer in one "
                    "request, or smaller ones",
                    max_pixels=limits.max_pixels_together,
                )
        paths: list[Path] = []
        for position, (source, name) in enumerate(zip(sources, names, strict=True)):
            if self._unwanted.is_set():
                break
            paths.append(store_image(source, folder, position, name, limits))
        return tuple(paths)

    def drop(self) -> None:
        """Removes everything, as soon as nobody writes any more: a thread that does cannot be stopped."""
        self._unwanted.set()
        if self._work is None or self._work.done():
            self._remove()
        else:
            self._work.add_done_callback(self._remove)

    def _remove(self, _: object = None) -> None:
        for _, part in self._form.multi_items():
            if isinstance(part, UploadFile):
                part.file.close()
        if self._directory is not None:
            try:
                self._directory.cleanup()
            except OSError as error:  # out of file descriptors, for one: the answer is what it was
                log.error("the folder of an upload could not be removed: %s", error)


async def _form(request: Request, options: Mapping[bytes, bytes], max_images: int) -> FormData:
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise _no_multipart("its Content-Type names no boundary of 1 to 70 letters, digits and '()+_,-./:=?")
    # latin-1 keeps every byte as it is: what is text here is UTF-8, and is read as such by us.
    header = f'multipart/form-data; charset=latin-1; boundary="{boundary.decode("ascii")}"'
    parser = _Parser(Headers({"content-type": header}), request.stream(), max_images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _told(error.message, max_images) from None
    try:
        _check_parts(form, max_images)
    except ApiError:
        _close(form)
        raise
    return form


def _check_parts(form: FormData, max_images: int) -> None:
    names = [name for name, _ in form.multi_items()]
    strange = [name for name in names if name not in {REQUEST_PART, IMAGES_PART}]
    if strange:
        raise _no_multipart(
            f"a part is called {clean_name(_text(strange[0]), 0)[:100]!r}; there are '{REQUEST_PART}' and "
            f"'{IMAGES_PART}'"
        )
    if names.count(REQUEST_PART) > 1:
        raise _no_multipart(f"the part '{REQUEST_PART}' comes {names.count(REQUEST_PART)} times")
    if names.count(IMAGES_PART) > max_images:
        raise _too_many(max_images)


async def _json_of(form: FormData) -> bytes:
    part = form.get(REQUEST_PART, "{}")
    if isinstance(part, str):
        return part.encode("latin-1")
    if (part.size or 0) > JSON_BYTES:
        raise ApiError(ProblemKind.TOO_LARGE, f"the part '{REQUEST_PART}' has more than {JSON_BYTES:,} bytes")
    return await part.read()


def _text(name: str | None) -> str | None:
    return None if name is None else name.encode("latin-1").decode("utf-8", errors="replace")


def _close(form: FormData) -> None:
    for _, part in form.multi_items():
        if isinstance(part, UploadFile):
            part.file.close()


def _told(message: str, max_images: int) -> ApiError:
    if message.startswith("Too many files"):
        return _too_many(max_images)
    if message.startswith("Part exceeded"):
        return ApiError(ProblemKind.TOO_LARGE, f"a part that is no file has more than {JSON_BYTES:,} bytes")
    return _no_multipart(message[:1].lower() + message[1:].rstrip("."))


def _too_many(max_images: int) -> ApiError:
    return ApiError(
        ProblemKind.TOO_LARGE, f"more than {max_images} images: send fewer in one request", max_images=max_images
    )


def _no_multipart(why: str) -> ApiError:
    return ApiError(ProblemKind.INVALID_REQUEST, f"the body is not the multipart/form-data that is read here: {why}")
