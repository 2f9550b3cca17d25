"""Backing an index up into one file, and reading it from there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.backup_file import CONTENTS, FORMAT, HEAD, BackupReader, BackupWriter, Place, pack_points, unpack_points
from engine.copy_report import CopyReport
from engine.copy_source import (
    CopySource,
    Progress,
    SourceFile,
    manifest_from,
    manifest_hash,
    outputs_of,
    responses_path,
    store_bytes,
    unsynced,
)
from engine.copy_stores import FolderSource
from engine.copy_target import require_room
from engine.copying import ROUNDS, check_same, groups, read_content, short_error
from engine.errors import IndexDamagedError, InputError
from engine.index_files import MANIFEST
from engine.manifest import Manifest
from engine.store.base import StoredPoint, StoreLayout
from engine.store.content import Content, IndexContent, content_of, files_content

_POINTS = 10_000
"""Records of models or tasks in one member."""


class BackupSource(CopySource):
    """A backup to be restored; the whole file is checked when it is opened.

    Args:
        path: The file.
        progress: Called with (bytes done, bytes in all, what is being done).

    Raises:
        InputError: It is no backup.
        IndexMismatchError: Another version made it.
        IndexDamagedError: It was cut short or altered.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.name = str(path)
        self._reader = BackupReader(path, progress)
        contents = self._reader.contents
        self.layout = StoreLayout(**contents["layout"])
        self.with_probes = bool(contents["with_probes"])
        self._files = {
            path: (SourceFile(path, group, size, sha256), Place(offset, size))
            for path, group, size, sha256, offset in contents["files"]
        }
        self._members = [Place(offset, size) for offset, size, _ in contents["outputs"]]
        self._places = {repo: i for i, (_, _, repos) in enumerate(contents["outputs"]) for repo in repos}
        self._last: tuple[int, list[StoredPoint]] | None = None

    @property
    def promised(self) -> dict[str, Any]:
        """See :meth:`CopySource.promised`."""
        return dict(self._reader.end["content"])

    @property
    def made_at(self) -> str:
        """When the backup was begun, ISO 8601."""
        return str(self._reader.head.get("created_at"))

    def manifest(self) -> Manifest:
        """See :meth:`CopySource.manifest`."""
        return manifest_from(self._reader.read(Place(*self._reader.contents["manifest"])))

    def copied_manifest(self) -> Manifest:
        """See :meth:`CopySource.copied_manifest`: it was made when the backup was."""
        return self.manifest()

    def models(self) -> dict[str, StoredPoint]:
        """See :meth:`CopySource.models`."""
        found = {point.payload["repo"]: point for point in self._points("models")}
        return dict(sorted(found.items()))

    def outputs(self, models: Sequence[StoredPoint]) -> Iterator[StoredPoint]:
        """See :meth:`CopySource.outputs`."""
        wanted: dict[int, dict[str, str]] = {}
        for model in models:
            repo = model.payload["repo"]
            if repo in self._places:
                wanted.setdefault(self._places[repo], {})[repo] = model.payload["revision"]
        for member, revisions in sorted(wanted.items()):
            for point in self._member(member):
                if revisions.get(point.payload["repo"]) == point.payload["revision"]:
                    yield point

    def knowledge(self) -> Iterator[StoredPoint]:
        """See :meth:`CopySource.knowledge`."""
        return self._points("profiles")

    def files(self) -> list[SourceFile]:
        """See :meth:`CopySource.files`."""
        return [file for file, _ in self._files.values() if file.group != "responses"]

    def responses(self, models: Sequence[StoredPoint]) -> list[SourceFile]:
        """See :meth:`CopySource.responses`."""
        paths = map(responses_path, models)
        return [self._files[path][0] for path in paths if path in self._files]

    def fetch(self, files: Sequence[SourceFile], place: Callable[[str], Path]) -> dict[str, str]:
        """See :meth:`CopySource.fetch`."""
        hashes = {}
        for file in files:
            target, where = place(file.path), self._files[file.path][1]
            target.parent.mkdir(parents=True, exist_ok=True)

            with unsynced(target) as content:
                hashes[file.path] = self._reader.copy(where, content.write)
            if hashes[file.path] != file.sha256:
                raise IndexDamagedError(f"{file.path} in the backup {self.name} is not what it should be", self.name)
        return hashes

    def hash_of(self, file: SourceFile) -> str:
        """See :meth:`CopySource.hash_of`."""
        return file.sha256 or ""

    @property
    def expected_bytes(self) -> int:
        """See :meth:`CopySource.expected_bytes`."""
        return store_bytes(self.layout, int(self.promised["outputs"]["count"]))

    def close(self) -> None:
        """See :meth:`CopySource.close`."""
        self._reader.close()

    def _member(self, number: int) -> list[StoredPoint]:
        if self._last is None or self._last[0] != number:
            self._last = number, self._unpacked(self._members[number])
        return self._last[1]

    def _points(self, part: str) -> Iterator[StoredPoint]:
        for offset, size in self._reader.contents[part]:
            yield from self._unpacked(Place(offset, size))

    def _unpacked(self, place: Place) -> list[StoredPoint]:
        try:
            return unpack_points(self._reader.read(place))
        except ValueError as error:
            raise IndexDamagedError(f"the backup {self.name} is damaged: {error}", self.name) from error


def backup_index(source: CopySource, file: Path, progress: Progress | None = None) -> CopyReport:
    """Writes an index into one file, reads it back and compares; the file appears whole or not at all.

    Args:
        source: The index.
        file: Must not exist. It grows under its name with ``.part``, which the next run begins anew.
        progress: Called with (done, total, what is being done).

    Returns:
        What the backup holds.

    Raises:
        InputError: The file exists.
        IndexDamagedError: The index is not whole.
        IndexMismatchError: What was read back is not what was written.
        StoreError: There is no room on the disk, or the store cannot be read.
        OSError: The file cannot be written.
    """
    if file.exists():
        raise InputError(f"{file} exists: choose another name, or remove it first")
    require_room(file.parent, source)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as out:
            report = _Backup(source, BackupWriter(out), progress or (lambda *_: None), str(file)).run()
            out.flush()
            os.fsync(out.fileno())
        with BackupSource(part, progress) as made:
            check_same(report.content, read_content(made, progress), f"the backup {part}")
        part.replace(file)
        _sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return report


class _Backup:
    def __init__(self, source: CopySource, writer: BackupWriter, progress: Progress, target: str) -> None:
        self._source = source
        self._writer = writer
        self._progress = progress
        self._report = CopyReport(source.name, target, IndexContent(source.layout))
        self._members: list[tuple[int, int, list[str]]] = []
        self._read: dict[str, tuple[StoredPoint, Content]] = {}
        self._files: dict[str, tuple[str, str, int, str, int]] = {}  # of several with one path the last counts

    def run(self) -> CopyReport:
        source, writer, report = self._source, self._writer, self._report
        program = f"hubhound {importlib.metadata.version('hubhound')}"
        head = {"format": FORMAT, "program": program, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
        writer.add(HEAD, json.dumps({**head, "from": source.name}).encode())
        models = self._outputs()
        for model in models.values():
            report.content.outputs.include(self._read[model.payload["repo"]][1])
        report.content.models = content_of(models.values())
        for _ in range(ROUNDS):
            version = source.files_version()
            manifest = source.copied_manifest()
            knowledge = list(source.knowledge())
            wanted = self._rest() | {responses_path(model) for model in models.values()}
            if source.files_version() == version:
                break
        else:
            report.settled = False
        report.content.profiles = content_of(knowledge)
        places = {
            "models": self._records("models", list(models.values())),
            "profiles": self._records("profiles", knowledge),
        }
        entries = [entry for path, entry in self._files.items() if path in wanted]
        where = writer.add(f"index/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
        report.content.files = files_content({path: sha256 for path, _, _, sha256, _ in entries})
        report.content.files.add_file(MANIFEST, manifest_hash(manifest))
        contents = {
            "layout": asdict(source.layout),
            "with_probes": source.with_probes,
            "outputs": self._members,
            **places,
            "files": entries,
            "manifest": where,
        }
        writer.end(report.content.to_json(), writer.add(CONTENTS, json.dumps(contents).encode()))
        return report

    def _outputs(self) -> dict[str, StoredPoint]:
        """Writes outputs in rounds, as a copy does; of a model that was written twice the last counts."""
        source, report = self._source, self._report
        for _ in range(ROUNDS):
            version = source.version()
            models = source.models()
            due = [model for repo, model in models.items() if self._written(repo) != model.payload]
            report.rounds += 1
            short = self._round(due, version)
            report.settled = source.version() == version
            if report.settled:
                break
        if short:
            raise short_error(source.name, short)
        return models

    def _written(self, repo: str) -> dict[str, Any] | None:
        return self._read[repo][0].payload if repo in self._read else None

    def _rest(self) -> set[str]:
        """Writes the files that belong to no model; those that are there from an earlier round are left alone."""
        files = self._source.files()
        for done, file in enumerate(files):
            if file.sha256 is None or file.path not in self._files or self._files[file.path][3] != file.sha256:
                self._file(file)
            self._progress(done + 1, len(files), "backing up files")
        return {file.path for file in files}

    def _round(self, due: Sequence[StoredPoint], version: object) -> list[str]:
        short = []
        total, done = sum(map(outputs_of, due)), 0
        for group in groups(due):
            try:  # responses first, as in a copy
                for file in self._source.responses(group):
                    self._file(file)
            except IndexDamagedError:
                if self._source.version() == version:
                    raise
                short += [model.payload["repo"] for model in group]
                continue
            points = list(self._source.outputs(group))
            contents = {model.payload["repo"]: Content() for model in group}
            for point in points:
                contents[point.payload["repo"]].add(point)
            whole = {
                model.payload["repo"]: model
                for model in group
                if contents[model.payload["repo"]].count == outputs_of(model)
            }
            short += [repo for repo in contents if repo not in whole]
            self._read.update({repo: (model, contents[repo]) for repo, model in whole.items()})
            kept = [point for point in points if point.payload["repo"] in whole]
            if kept:
                name = f"outputs/{len(self._members) + 1:06d}.parquet"
                self._members.append((*self._writer.add(name, pack_points(kept)), sorted(whole)))
            self._report.copied += len(whole)
            done += sum(map(outputs_of, group))
            self._progress(done, total, "backing up outputs")
        return short

    def _records(self, part: str, points: list[StoredPoint]) -> list[Place]:
        return [
            self._writer.add(f"{part}/{start // _POINTS + 1:06d}.parquet", pack_points(points[start : start + _POINTS]))
            for start in range(0, len(points), _POINTS)
        ]

    def _file(self, file: SourceFile) -> None:
        name = f"index/{file.path}"
        if isinstance(self._source, FolderSource):
            place, sha256 = self._writer.add_file(name, self._source.local(file))
            self._source.check(file, sha256)
        else:
            with tempfile.TemporaryDirectory(prefix="hubhound-backup-") as scratch:
                here = Path(scratch) / "file"
                self._source.fetch([file], lambda _: here)
                place, sha256 = self._writer.add_file(name, here)
        self._files[file.path] = (file.path, file.group, place.size_bytes, sha256, place.offset)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
