"""The part of an index's writer that keeps what is known about tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.index import Index
from engine.index_files import index_files
from engine.knowledge import FILE, Knowledge
from engine.remote import Remote
from engine.schema import Performance, Profile, Task
from engine.store.base import DescriptorStore
from engine.store.knowledge import Known

EXPORT_SHARE = 0.05
"""Of the time may go into snapshots and exports while models are being added."""


class KnowledgeWriter:
    """Writes tasks, profiles and performance; see :class:`engine.writer.IndexWriter`, which is one.

    Attributes:
        index: The index.
        store: Its store, open for writing.
    """

    index: Index
    store: DescriptorStore
    _remote: Remote | None
    _export_due = 0.0

    def put_task(self, task: Task) -> None:
        """Writes a task's record; its images are :mod:`engine.tasks`' business, but for bringing them to a server."""
        self.publish_task(task.name)
        self.put_known([task])

    def publish_task(self, name: str) -> None:
        """Brings the images of a task to the server, if the index is on one."""
        if self._remote is not None:
            own = [file for file in index_files(self.index.folder, ["tasks"]) if file.path.startswith(f"tasks/{name}/")]
            there = self._remote.shelf.entries(["tasks"], f"tasks/{name}")
            self._remote.publish(own)
            self._remote.shelf.remove(sorted(set(there) - {file.path for file in own}))

    def put_profiles(self, profiles: Sequence[Profile]) -> None:
        """Writes profiles, each in place of the model's former one on that task."""
        self.put_known(profiles)

    def put_performance(self, performance: Sequence[Performance]) -> None:
        """Writes known performance, each in place of the model's former value on that task."""
        self.put_known(performance)

    def remove_task(self, name: str) -> None:
        """Removes a task's record and its profiles; performance stays."""
        with self._knowing():
            self.store.delete_task(name)

    def drop_performance(self, model: str | None = None, task: str | None = None) -> None:
        """Removes what is known of one model, of one task, of one model on one task, or of all."""
        with self._knowing():
            self.store.delete_performance(model, task)

    def drop_profiles(self, model: str) -> None:
        """Removes all profiles of a model."""
        with self._knowing():
            self.store.delete_profiles(model)

    def export_knowledge(self, force: bool = True) -> Knowledge | None:
        """Writes what queries read about tasks: everything put since, and by runs that were killed before they did.

        Args:
            force: Always; otherwise only if something changed and exports have taken less than a twentieth of the time
                lately.

        Returns:
            What was written, None if nothing was due.
        """
        if not force and (not self._export_needed() or time.monotonic() < self._export_due):
            return None
        started = time.monotonic()
        self.store.flush()  # as with a snapshot
        knowledge = Knowledge.of(self.store.knowledge())
        if knowledge != Knowledge() or (self.index.folder / FILE).exists():
            knowledge.write(self.index.folder)
        self._knowledge_marker.unlink(missing_ok=True)
        self._export_due = time.monotonic() + (time.monotonic() - started) / EXPORT_SHARE
        return knowledge

    @property
    def _knowledge_marker(self) -> Path:
        return self.index.folder / "knowledge.due"

    def _export_needed(self) -> bool:
        return self._knowledge_marker.exists() or not (self.index.folder / FILE).exists()

    def put_known(self, records: Sequence[Known]) -> None:
        """Writes tasks, profiles and performance, each in place of the former one."""
        with self._knowing():
            self.store.upsert_knowledge(records)

    @contextmanager
    def _knowing(self) -> Iterator[None]:
        """Says before a change of what is known about tasks, and on a server after it too, that readers must look."""
        self._knowledge_marker.touch()  # before the store changes: a kill in between costs one needless export
        if self._remote is not None:
            self._remote.touch_knowledge()
        yield
        if self._remote is not None:
            self._remote.touch_knowledge()
