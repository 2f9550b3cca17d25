"""Thumbnails of probes: small enough for a page, made once, remembered within a bound of bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image

from engine.errors import ProbeError
from engine.index import Index
from engine.probes import hash_file, open_image
from query.api.errors import ApiError, ProblemKind

SMALLEST_PX = 32
LARGEST_PX = 512

MEDIA_TYPE = "image/webp"

KEPT_BYTES = 32 * 2**20
"""Thumbnails that are remembered."""

_QUALITY = 82
_VERSION = 1  # of how a thumbnail is made: part of its name, because clients keep them for a year


@dataclass(frozen=True)
class Thumbnail:
    """One thumbnail.

    Attributes:
        etag: Names its content, with the quotes of the header.
        content: WebP.
    """

    etag: str
    content: bytes


class Thumbnails:
    """Makes thumbnails; several threads may.

    Args:
        kept_bytes: Most bytes that are remembered; those not asked for for longest go first.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._most = kept_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._checked: dict[tuple[Path, str], tuple[int, int, int]] = {}
        self._lock = Lock()

    def etag(self, index: Index, probe: int, size_px: int) -> str:
        """The name of a thumbnail's content; no image is opened for it.

        Args:
            index: Whose probe it is.
            probe: Its position.
            size_px: Longer side, brought into 32..512.

        Raises:
            ApiError: There is no such probe.
        """
        sha256 = _probe(index, probe)[1]
        name = f"{_VERSION} {sha256} {_clamped(size_px)}"
        return f'"{hashlib.sha256(name.encode()).hexdigest()[:32]}"'

    def get(self, index: Index, probe: int, size_px: int) -> Thumbnail:
        """A probe, fitted into a square, its shape kept; never larger than the image itself. Blocks.

        Args:
            index: Whose probe it is.
            probe: Its position.
            size_px: Longer side, brought into 32..512.

        Raises:
            ApiError: There is no such probe, or its image is gone, damaged, or another one now.
        """
        file, sha256 = _probe(index, probe)
        etag = self.etag(index, probe, size_px)
        with self._lock:
            content = self._kept.get(etag)
            if content is not None:
                self._kept.move_to_end(etag)
                return Thumbnail(etag, content)
        path = index.probe_folder / file
        try:
            self._check(path, sha256, probe)
            image = open_image(path)
        except (OSError, ProbeError) as error:
            raise ApiError(
                ProblemKind.PROBE_NOT_FOUND,
                f"the image of probe {probe} can no longer be read: put the index's probe images back where they were",
            ) from error
        image.thumbnail((_clamped(size_px), _clamped(size_px)), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=4)
        content = buffer.getvalue()
        self._keep(etag, content)
        return Thumbnail(etag, content)

    def _check(self, path: Path, sha256: str, probe: int) -> None:
        """Looks whether a file is the one that was indexed; read again only when it has changed."""
        now = path.stat()
        seen = now.st_mtime_ns, now.st_size, now.st_ino
        if self._checked.get((path, sha256)) == seen:
            return
        if hash_file(path) != sha256:
            raise ApiError(
                ProblemKind.PROBE_NOT_FOUND,
                f"the image of probe {probe} has changed since the index was made, so it is not shown: "
                "put the original back",
            )
        self._checked[path, sha256] = seen

    def _keep(self, etag: str, content: bytes) -> None:
        with self._lock:
            if etag in self._kept:
                return
            self._kept[etag] = content
            self._kept_bytes += len(content)
            while self._kept_bytes > self._most:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def _clamped(size_px: int) -> int:
    return min(max(size_px, SMALLEST_PX), LARGEST_PX)


def _probe(index: Index, probe: int) -> tuple[str, str]:
    files = index.probe_files
    if not 0 <= probe < len(files):
        raise ApiError(
            ProblemKind.PROBE_NOT_FOUND, f"there is no probe {probe}: the index has probes 0 to {len(files) - 1}"
        )
    return files[probe]
