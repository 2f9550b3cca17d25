"""The images that models are shown, on their way to the nodes: each node gets them once, not with every model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import HubhoundError, IndexDamagedError
from engine.index import Index
from engine.manifest import Manifest
from engine.schema import Task
from indexers.crawl.messages import ProfileJob, Shown
from indexers.hub import sha256_of
from indexers.loaders.layout import escapes

PIECE_BYTES = 64 * 2**20
"""Images go in pieces of about this size, so that no node needs room in memory for all of them at once."""

_PROBES = "probes"
_TASKS = "tasks"


@dataclass(frozen=True)
class Piece:
    """Some files.

    Attributes:
        names: Of the files, as paths relative to the folder they go to.
        ends: Where each of them ends in ``content``.
        content: All bytes, uint8 ``[ends[-1]]``.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    content: npt.NDArray[np.uint8]


class Parcel:
    """A folder that stands for an index where models are shown its images.

    Args:
        manifest: Of the index.
        listed: Content of the index's list of probes.
        files: Where each file is, by the path that it has in the folder.
        hashes: SHA-256 of their contents, in this order.
    """

    def __init__(
        self, manifest: Manifest, listed: Sequence[Mapping[str, str]], files: Mapping[str, Path], hashes: Sequence[str]
    ) -> None:
        own = manifest.model_copy(update={"probes": manifest.probes.model_copy(update={"folder": None})})
        self._manifest = own.model_dump(mode="json")
        self._listed = [dict(entry) for entry in listed]
        self._files = dict(files)
        text = json.dumps([self._manifest, self._listed, list(files), list(hashes)], sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:24]
        """Names the contents."""

    @classmethod
    def of_probes(cls, index: Index, folder: Path | None) -> Parcel:
        """The probes of an index.

        Args:
            index: The index.
            folder: Where the images are now, None for where the index says.

        Raises:
            ProbeError: An image is missing.
            IndexMismatchError: An image has changed.
        """
        probes = index.probes(folder)
        listed = [{"file": probe.file, "sha256": probe.sha256} for probe in probes.probes]
        files = {f"{_PROBES}/{probe.file}": probes.folder / probe.file for probe in probes.probes}
        return cls(index.manifest, listed, files, [probe.sha256 for probe in probes.probes])

    @classmethod
    def of_tasks(cls, index: Index, tasks: Sequence[Task]) -> Parcel:
        """The samples of an index's tasks.

        Args:
            index: The index.
            tasks: Their records.
        """
        files, hashes = dict[str, Path](), list[str]()
        for task in tasks:
            for image in task.images:
                name = f"{_TASKS}/{task.name}/{image.file}"
                files[name] = index.folder / name
                hashes.append(image.sha256)
        return cls(index.manifest, [], files, hashes)

    def pieces(self, size_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
        """Reads all files; at least one piece, which may be empty.

        Args:
            size_bytes: About so large, and no larger unless it is a single file.

        Raises:
            IndexDamagedError: A file cannot be read.
        """
        small = {"manifest.json": self._manifest, "probes.json": self._listed}
        names, parts, total = list[str](), list[bytes](), 0
        for name, value in small.items():
            names.append(name)
            parts.append(json.dumps(value).encode())
        total = sum(map(len, parts))
        for name, path in self._files.items():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise IndexDamagedError(f"the image {path} cannot be read: {error.strerror or error}", path) from error
            if parts and total + len(content) > size_bytes:
                yield _piece(names, parts)
                names, parts, total = [], [], 0
            names.append(name)
            parts.append(content)
            total += len(content)
        yield _piece(names, parts)


def _piece(names: Sequence[str], parts: Sequence[bytes]) -> Piece:
    ends = tuple(int(end) for end in np.cumsum([len(part) for part in parts], dtype=np.int64))
    return Piece(tuple(names), ends, np.frombuffer(b"".join(parts), np.uint8))


def unpack(piece: Piece, folder: Path) -> None:
    """Writes the files of a piece.

    Args:
        piece: As `Parcel.pieces` made it.
        folder: Where they go.

    Raises:
        HubhoundError: A name would lead out of the folder.
        OSError: They cannot be written.
    """
    start = 0
    for name, end in zip(piece.names, piece.ends, strict=True):
        if escapes(folder, name):
            raise HubhoundError(f"the image {name!r} of the index lies outside its folder: add its images again")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(piece.content[start:end].tobytes())
        start = end


def images_below(index: Path, job: ProfileJob) -> ProfileJob:
    """A job whose images are named by their paths below the folder of the index.

    Args:
        index: Absolute path of the folder.
        job: With absolute paths.
    """
    tasks = {
        task: tuple(
            image.model_copy(update={"path": Path(image.path).relative_to(index).as_posix()}) for image in sample
        )
        for task, sample in job.tasks.items()
    }
    return job.model_copy(update={"tasks": tasks})


def images_in(folder: Path, job: ProfileJob) -> ProfileJob:
    """The reverse: a job whose images lie in a folder.

    Args:
        folder: Where they are.
        job: As ``images_below`` makes it.
    """
    return _moved(job, lambda path: str(folder / path))


def _moved(job: ProfileJob, move: Callable[[str], str]) -> ProfileJob:
    tasks = {
        task: tuple(image.model_copy(update={"path": move(image.path)}) for image in sample)
        for task, sample in job.tasks.items()
    }
    return job.model_copy(update={"tasks": tasks})


def check_samples(samples: Mapping[str, Sequence[Shown]]) -> None:
    """Looks whether images of tasks are what they were.

    Args:
        samples: By task.

    Raises:
        HubhoundError: One is not.
    """
    for shown in (image for sample in samples.values() for image in sample):
        try:
            same = sha256_of(Path(shown.path)) == shown.sha256
        except OSError:
            same = False
        if not same:
            raise HubhoundError(f"the image {shown.path} has changed or is gone: remove its folder, it is made again")
