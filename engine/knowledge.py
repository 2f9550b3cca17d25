"""What is known about tasks, as queries read it: without the store's lock, from one file.

``knowledge.json`` is a cache of the store's tasks, profiles and performance; the writer makes it again from the store
(:meth:`engine.writer.IndexWriter.export_knowledge`). Records are what the store keeps (:mod:`engine.store.knowledge`),
except that the names of blocks, which are the same in all profiles of a model, are listed once and referred to by
number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from engine.errors import IndexDamagedError
from engine.files import write_atomic
from engine.schema import Performance, Profile, Task
from engine.store.knowledge import Known, known_payload, known_record

FILE = "knowledge.json"
"""Name of the file in an index's folder."""

_FORMAT = 1


@dataclass(frozen=True)
class Knowledge:
    """Everything that is known about tasks.

    Attributes:
        tasks: By name.
        profiles: By model and task.
        performance: By model and task.
    """

    tasks: tuple[Task, ...] = ()
    profiles: tuple[Profile, ...] = ()
    performance: tuple[Performance, ...] = ()

    @classmethod
    def of(cls, records: Iterable[Known]) -> Self:
        """Sorts records by kind, in the order given."""
        tasks: list[Task] = []
        profiles: list[Profile] = []
        performance: list[Performance] = []
        for record in records:
            if isinstance(record, Task):
                tasks.append(record)
            elif isinstance(record, Profile):
                profiles.append(record)
            else:
                performance.append(record)
        return cls(tuple(tasks), tuple(profiles), tuple(performance))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What the writer last exported; nothing if there is no file.

        Args:
            folder: Of the index.

        Raises:
            IndexDamagedError: The file cannot be read.
        """
        path = folder / FILE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise _damaged(path, folder, error.strerror or str(error)) from error
        try:
            return cls.of(_records(json.loads(text)))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _damaged(path, folder, str(error).splitlines()[0]) from error

    def write(self, folder: Path) -> None:
        """Writes the file; readers see the old one or the new one.

        Args:
            folder: Of the index.

        Raises:
            OSError: It cannot be written.
        """
        blocks: dict[tuple[str, ...], int] = {}
        payloads = []
        records: tuple[Known, ...] = (*self.tasks, *self.profiles, *self.performance)
        for record in records:
            payload = known_payload(record)
            if isinstance(record, Profile):
                payload["blocks"] = blocks.setdefault(record.blocks, len(blocks))
            payloads.append(payload)
        value = {"format": _FORMAT, "blocks": list(blocks), "records": payloads}
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        write_atomic(folder / FILE, lambda file: file.write(text))

    @cached_property
    def _by_task(self) -> dict[str, Task]:
        return {task.name: task for task in self.tasks}

    @cached_property
    def _by_model(self) -> dict[str, tuple[Profile, ...]]:
        found: dict[str, list[Profile]] = {}
        for profile in self.profiles:
            found.setdefault(profile.model, []).append(profile)
        return {model: tuple(profiles) for model, profiles in found.items()}

    def task(self, name: str) -> Task | None:
        """The task of a name, None if there is none."""
        return self._by_task.get(name)

    def profiles_of(self, model: str) -> tuple[Profile, ...]:
        """The profiles of one model by task; none if it has none."""
        return self._by_model.get(model, ())

    def models(self) -> tuple[str, ...]:
        """The models that have a profile, by name."""
        return tuple(sorted(self._by_model))


def _records(value: Any) -> Iterable[Known]:
    if value["format"] != _FORMAT:
        raise ValueError(f"it has the format {value['format']}, this version reads {_FORMAT}")
    blocks = [tuple(names) for names in value["blocks"]]
    for payload in value["records"]:
        if "blocks" in payload:
            payload["blocks"] = blocks[payload["blocks"]]
        yield known_record(payload)


def _damaged(path: Path, folder: Path, why: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"the index file {path} cannot be read: {why}: 'hubhound index snapshot --index {folder}' makes it again", path
    )
