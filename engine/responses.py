"""The archive of full responses: what lets an index be made again without running a model.

One ``.npy`` file a model: standardised responses of its outputs over all probes, float16 ``[m, n]``, in the order of
the outputs. Means and standard deviations stand with the outputs in the store, so the raw responses can be had back to
about three digits of a standard deviation (2 n bytes an output: 8 KB at n = 4000). Those of an index on a server lie
there, and a copy is here where they have been read.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.errors import IndexDamagedError
from engine.files import read_array, write_array, write_atomic
from engine.outputs import OutputTable

if TYPE_CHECKING:
    from engine.remote import Remote

FOLDER = "responses"


class ResponseArchive:
    """The folder of responses of one index.

    Args:
        folder: Made when the first file is written.
        remote: The server that has them, if they are not here.
    """

    def __init__(self, folder: Path, remote: Remote | None = None) -> None:
        self._folder = folder
        self._remote = remote

    def path(self, repo: str, revision: str) -> Path:
        """Where a model's responses lie or would lie.

        Raises:
            IndexDamagedError: The names, which may come from a server, lead elsewhere.
        """
        name = f"{repo.replace('/', '--')}@{revision}.npy"
        if "/" in name or "\0" in name or name.startswith("."):
            raise IndexDamagedError(
                f"the model {repo!r} has the revision {revision!r}, which none can have", self._folder
            )
        return self._folder / name

    def write(self, table: OutputTable, responses: npt.NDArray[np.floating]) -> None:
        """Keeps the responses of the outputs of a table.

        Args:
            table: m outputs.
            responses: Of all the model's outputs, ``[n, outputs]``.

        Raises:
            OSError: They cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        z = (responses[:, table.output].T - table.mean[:, None]) / table.std[:, None]
        write_array(self.path(table.repo, table.revision), z.astype(np.float16))
        self._publish(table.repo, table.revision)

    def has(self, repo: str, revision: str) -> bool:
        """Whether a model's responses were kept."""
        if self._remote is not None:
            return self._remote.shelf.entry(f"{FOLDER}/{self.path(repo, revision).name}") is not None
        return self.path(repo, revision).exists()

    def read(self, repo: str, revision: str) -> npt.NDArray[np.float16] | None:
        """Standardised responses ``[m, n]``, memory-mapped; None where they were not kept."""
        path = self.path(repo, revision)
        self._fetch(path)
        return read_array(path).astype(np.float16, copy=False) if path.exists() else None

    def copy(self, other: ResponseArchive, repo: str, revision: str) -> None:
        """Takes a model's responses over from another archive as they are.

        Raises:
            OSError: They are missing or cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        source = other.path(repo, revision)
        other._fetch(source)

        def write(file: IO[bytes]) -> None:
            with source.open("rb") as content:
                shutil.copyfileobj(content, file)

        write_atomic(self.path(repo, revision), write)
        self._publish(repo, revision)

    def remove(self, repo: str, revision: str, before: int | None = None) -> None:
        """Removes a model's responses; it is no error if there are none.

        Args:
            repo: Its id.
            revision: Its revision.
            before: On a server, only if they were written before the change of a model with this number.
        """
        path = self.path(repo, revision)
        if self._remote is not None:
            self._remote.shelf.remove([f"{FOLDER}/{path.name}"], before)
        path.unlink(missing_ok=True)

    def remove_others(self, repo: str, keep_revision: str | None) -> None:
        """Removes a repository's responses, except those of one revision."""
        if self._remote is not None:
            owner = f"{FOLDER}/{repo.replace('/', '--')}"
            kept = f"{FOLDER}/{self.path(repo, keep_revision or '').name}"
            self._remote.shelf.remove([path for path in self._remote.shelf.entries([FOLDER], owner) if path != kept])
        if not self._folder.is_dir():
            return
        prefix, keep = f"{repo.replace('/', '--')}@", self.path(repo, keep_revision or "").name
        for path in self._folder.iterdir():
            if path.name.startswith(prefix) and path.name != keep:
                path.unlink(missing_ok=True)

    def _publish(self, repo: str, revision: str) -> None:
        if self._remote is not None:
            path = self.path(repo, revision)
            self._remote.shelf.put([(f"{FOLDER}/{path.name}", "responses", path)], stamped=True)
            path.unlink()  # a crawl would fill the disk with what it never reads

    def _fetch(self, path: Path) -> None:
        if self._remote is not None and not path.exists():
            entry = self._remote.shelf.entry(f"{FOLDER}/{path.name}")
            if entry is not None:
                self._remote.shelf.fetch([entry], lambda _: path)
