"""The one process that changes an index."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from engine.calibration import Background, calibrate
from engine.descriptors import output_descriptors
from engine.errors import IndexLockedError, IndexMismatchError
from engine.index import Index, background_part, write_background
from engine.knowledge_writer import EXPORT_SHARE, KnowledgeWriter
from engine.manifest import read_manifest, write_manifest
from engine.outputs import OutputTable
from engine.recalibration import Recalibration
from engine.remote import open_store
from engine.schema import LeftOut, Model, ModelState
from engine.shared_model import SharedModel
from engine.similarity import same_responses
from engine.snapshot import Snapshot, split_copies, write_snapshot
from engine.store.base import DescriptorStore, Shared

if TYPE_CHECKING:
    from engine.store.joint import JointCollection

_LOOK_S = 30.0
"""How often the manifest of an index on a server is looked at."""


class IndexWriter(KnowledgeWriter):
    """An index opened for writing: holds the lock of an embedded store until it is closed.

    A server has no lock, and several may write to an index there: to different models at the same time, to the same
    one as well, since what they write of it is the same. Snapshots are then the readers' own (``catching_up``), so a
    writer makes one only when it is told to.

    Args:
        folder: Of the index.

    Raises:
        IndexLockedError: Another process is writing.
        StoreError: The store cannot be opened.
        IndexMismatchError: Store and manifest do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.index = Index(folder)
        try:
            self.store: DescriptorStore = open_store(folder)
        except IndexLockedError as error:
            raise IndexLockedError(folder) from error
        layout, manifest = self.store.layout, self.index.manifest
        if (layout.probes, layout.top_r) != (manifest.probes.count, manifest.top_r):
            self.store.close()
            raise IndexMismatchError(
                f"the store in {folder} was made with {layout.probes} probes and r = {layout.top_r}, "
                f"the manifest says {manifest.probes.count} and {manifest.top_r}: restore the one that belongs there",
                "store",
                (manifest.probes.count, manifest.top_r),
                (layout.probes, layout.top_r),
            )
        self._remote = self.index.remote
        self._background: Background | None = None
        self._looked = time.monotonic()
        self._due = 0.0
        self._dirty = False
        self._joint = self._open_joint()
        self._put_lately: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.store.close()

    @property
    def background(self) -> Background:
        """The background of the manifest, loaded once."""
        if self._background is None:
            self._background = self.index.background()
        return self._background

    def _open_joint(self) -> JointCollection | None:
        """The graph of candidates, if the index has one: what is written must get there, too."""
        if self._remote is None:
            return None
        from engine.store.joint import open_joint

        return open_joint(self.index.folder, self.store, self.index.manifest.background.fingerprint)

    def describe(
        self, repo: str, revision: str, labels: tuple[str | None, ...], responses: npt.NDArray[np.floating]
    ) -> tuple[OutputTable, tuple[LeftOut, ...]]:
        """The calibrated outputs of one model.

        Args:
            repo: Its id.
            revision: Its revision.
            labels: One per output.
            responses: Logits, or what stands for them, over the index's probes, ``[n, outputs]``.

        Returns:
            The usable outputs, and those left out with the reason.
        """
        self._look()
        index = self.index
        manifest = index.manifest
        d = output_descriptors(responses, index.probe_embeddings, manifest.top_r, manifest.normalisation)
        table = OutputTable(
            repo,
            revision,
            d.output,
            tuple(labels[i] for i in d.output),
            d.mean,
            d.std,
            d.idx,
            d.z,
            d.anchor,
            calibrate(d.idx, d.z, d.anchor, self.background),
            manifest.background.fingerprint,
        )
        return table, d.left_out

    def _look(self) -> None:
        """Takes over a background and candidates that others have given an index on a server since."""
        if self._remote is None or time.monotonic() < self._looked + _LOOK_S:
            return
        self._remote.refresh()
        manifest = read_manifest(self.index.folder)  # which another process here may have brought up to date before
        if manifest.background.fingerprint != self.index.manifest.background.fingerprint:
            self.index.manifest = manifest
            self._background = None
            for repo in self._put_lately:  # with the background of before, after others thought that they were through
                self._recalibration().of(repo)
        self._put_lately.clear()
        self._joint = self._open_joint()
        self._looked = time.monotonic()

    def put(self, model: Model, table: OutputTable, responses: npt.NDArray[np.floating] | None) -> None:
        """Makes a model part of the index, in place of any other revision of it.

        The order makes it safe to be killed anywhere: responses and outputs first, which nobody looks at yet; then the
        model's record, which makes them count and the old ones not; then the old ones go. Its copies, if it has any,
        stay its copies if it answers as before; else nobody sees them until they are put again (``copies``).

        Args:
            model: Its record; ``outputs`` must be the length of the table.
            table: Its outputs.
            responses: ``[n, outputs]`` to archive, None to keep nothing.

        Raises:
            StoreError: The store cannot be written; the model is as it was before.
            OSError: The archive cannot be written.
        """
        self._check()
        self._put_outputs(table, responses)
        self._dirty = True
        for copy in self._followers(model.repo, table):  # before the record: a put that is repeated mends them
            self.store.upsert_model(copy.model_copy(update={"copied_revision": model.revision}))
        calibration = table.background or self.index.manifest.background.fingerprint
        record = model.model_copy(update={"calibration": calibration})
        if isinstance(self.store, Shared):
            self._put_lately.add(model.repo)
            mine = SharedModel(self.store, model.repo)
            before = mine.put(record, lambda: self._put_outputs(table, responses))
            if self._joint is not None:
                self._joint.claim(table)
            self._removed(model.repo, *mine.clear(before, record.revision))
        else:
            self.store.upsert_model(record)
            self._remove_outputs(model.repo, keep_revision=model.revision)

    def _put_outputs(self, table: OutputTable, responses: npt.NDArray[np.floating] | None) -> None:
        if len(table):
            self.store.upsert_outputs(table)
            if self._joint is not None:
                self._joint.put(table)
        if responses is not None:  # after the outputs: whoever may remove them may remove those, which is noticed
            self.index.responses.write(table, responses)

    def _check(self) -> None:
        if self._remote is not None:
            self._remote.check()

    def _removed(self, repo: str, before: int, revisions: Iterable[str]) -> None:
        """Removes what else was written of revisions, whose outputs are gone, before a change with a number."""
        for revision in revisions:
            self.index.responses.remove(repo, revision, before)
            if self._joint is not None:
                self._joint.remove_revision(repo, revision)

    def put_copy(self, model: Model) -> None:
        """Makes a model part of the index that answers as another one does; it gets no outputs, and loses those it had.

        Copies that it had itself become its original's if they answer the same; else nobody sees them until they are
        put again. Then comes its record, from which on its former outputs do not count, and then they go.

        Args:
            model: Its record, with state ``copy`` and the original's id in ``copy_of``.

        Raises:
            ValueError: It is no copy or has outputs, or its original is not in the index as a model of its own (at the
                revision ``copied_revision``, where that is given).
            StoreError: The store cannot be written.
        """
        if model.copy_of is None:
            raise ValueError(f"{model.repo} is not a copy of anything")
        original = self.store.model(model.copy_of)
        if original is None or original.state is not ModelState.INDEXED:
            raise ValueError(f"{model.repo} is a copy of {model.copy_of}, which is not in the index with its outputs")
        if model.copied_revision not in {None, original.revision}:
            raise ValueError(
                f"{model.repo} is a copy of {model.copy_of}@{model.copied_revision}, the index has {original.revision}"
            )
        update = {"copy_of": original.repo, "copied_revision": original.revision}
        # Checked again, unlike model_copy: a record that cannot be read back would make the whole store unreadable.
        record = Model.model_validate(model.model_dump() | update)
        self._dirty = True
        self._check()
        for copy in self._followers(model.repo, self.store.outputs(original.repo, original.revision)):
            self.store.upsert_model(copy.model_copy(update=update))
        if isinstance(self.store, Shared):
            written = self.store.write_model(record)
            self._removed(model.repo, *SharedModel(self.store, model.repo).clear(written.before))
        else:
            self.store.upsert_model(record)
            self._remove_outputs(model.repo)

    def remove_model(self, repo: str) -> None:
        """Takes a model out of the index: its record first, so that its outputs stop to count, then these.

        Its copies keep their records, and nobody sees them until they are put again (``copies``). Removing what is not
        there does nothing, except for leftovers of a removal that was interrupted.

        Raises:
            StoreError: The store cannot be written.
        """
        self._dirty = True
        self._check()
        if isinstance(self.store, Shared):
            written = self.store.remove_model(repo)
            self._removed(repo, *SharedModel(self.store, repo).clear(written.before))
        else:
            self.store.delete_model(repo)
            self._remove_outputs(repo)

    def copies(self, repo: str) -> list[Model]:
        """The records of the copies of a model, also of one that is no longer there or has changed since."""
        return self.store.copies(repo)

    def lost_copies(self) -> list[Model]:
        """The copies that nobody sees: their original is not in the index at the revision that they equal."""
        return split_copies(self.store.models())[1]

    def record(self, model: Model) -> None:
        """Records a model that could not be indexed; one whose outputs or original are in the index stays as it is."""

        def unless_found(current: Model | None) -> Model | None:
            return model if current is None or not self._counts(current) else None

        if isinstance(self.store, Shared):
            self.store.change_model(model.repo, unless_found)
        elif unless_found(self.store.model(model.repo)) is not None:
            self.store.upsert_model(model)

    def _counts(self, model: Model) -> bool:
        """Whether a model can be found: by its own outputs or by its original's."""
        if model.copy_of is None:
            return model.state is ModelState.INDEXED
        original = self.store.model(model.copy_of)
        return not split_copies([model, *([original] if original else [])])[1]

    def _followers(self, repo: str, table: OutputTable | None) -> list[Model]:
        """The copies of a model as it stands in the index, if it answers as another table does."""
        current = self.store.model(repo)
        if current is None or current.state is not ModelState.INDEXED or table is None:
            return []
        copies = [copy for copy in self.store.copies(repo) if copy.copied_revision == current.revision]
        if not copies:
            return []
        old = self.store.outputs(repo, current.revision)
        return copies if old is not None and same_responses(old, table) else []

    def complete(self, model: Model) -> None:
        """Ends what a writer that was killed has done of a model, up to its record at least.

        Args:
            model: Its record, as it stands.

        Raises:
            StoreError: The store cannot be written.
        """
        if isinstance(self.store, Shared):  # nobody acknowledged it: readers may be past its number
            self.store.change_model(model.repo, lambda now: now if now == model else None)
            self._removed(model.repo, *SharedModel(self.store, model.repo).clear(None))
        else:
            self._remove_outputs(model.repo, model.revision if model.copy_of is None else None)

    def remove_leftover(self, repo: str, revision: str) -> bool:
        """Removes the outputs and responses of a revision that no record names; whether that is still so.

        Raises:
            StoreError: The store cannot be written.
        """
        standing = self.store.model(repo)
        named = standing.revision if standing is not None and standing.state is ModelState.INDEXED else None
        if named == revision:
            return False
        if isinstance(self.store, Shared):
            number, gone = SharedModel(self.store, repo).clear_all(revision)
            self._removed(repo, number, gone)
            return revision in gone
        self._remove_outputs(repo, named)
        return True

    def _remove_outputs(self, repo: str, keep_revision: str | None = None) -> None:
        self.store.delete_outputs(repo, keep_revision)
        if self._joint is not None:
            self._joint.remove(repo, keep_revision)
        self.index.responses.remove_others(repo, keep_revision)

    def snapshot(self, force: bool = True) -> Snapshot | None:
        """Writes a snapshot of everything indexed so far.

        Args:
            force: Always, and what is known about tasks with it; otherwise only if something changed and snapshots have
                taken less than a twentieth of the time lately.

        Returns:
            The snapshot, None if none was due.
        """
        if not force and (self._remote is not None or not self._dirty or time.monotonic() < self._due):
            return None
        started = time.monotonic()
        if force:
            self.export_knowledge()
        if self._remote is not None:
            return self.index.current_snapshot()
        self.recalibrate()
        self.store.flush()  # a snapshot must not outlive, in a power cut, the outputs that it was made from
        root = self.index.folder / "snapshots"
        models = self.store.models()
        indexed = [model for model in models if model.state is ModelState.INDEXED]
        copies, _ = split_copies(models)
        fingerprint = self.index.manifest.background.fingerprint
        snapshot = write_snapshot(root, self.store, indexed, fingerprint, Snapshot.open(root), copies)
        self._dirty = False
        self._due = time.monotonic() + (time.monotonic() - started) / EXPORT_SHARE
        return snapshot

    @property
    def dirty(self) -> bool:
        """Whether something has changed since the last snapshot."""
        return self._dirty

    def set_background(self, background: Background, source: str) -> None:
        """Changes what outputs are calibrated against; ``recalibrate`` and ``snapshot`` make it take effect."""
        write_background(self.index.folder, background)
        part = background_part(background, source)
        manifest = self.index.manifest.model_copy(update={"background": part})
        write_manifest(self.index.folder, manifest)
        if self._remote is not None:
            self._remote.publish_core()
        self.index.manifest = manifest
        self._background = background
        self._joint = self._open_joint()

    def recalibrate(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Computes the constants of every model whose constants were made with another background.

        Runs no model. Being killed in the middle costs nothing: the next one goes on.

        Args:
            progress: Called with (models done, models to do).

        Returns:
            How many models were recalibrated.

        Raises:
            IndexMismatchError: The index is on a server and has been given another background meanwhile.
            StoreError: The store cannot be written.
        """
        done = self._recalibration().run(progress)
        self._dirty = self._dirty or done > 0
        return done

    def _recalibration(self) -> Recalibration:
        return Recalibration(self.index, self.store, self.background)

    def finish(self) -> None:
        """Ends a run: snapshot and export if anything changed, optimised store, no leftovers."""
        if self._remote is not None:
            if self._knowledge_marker.exists():
                self.export_knowledge()
            self._looked -= _LOOK_S
            self._look()
            self._recalibration().mend()
            self.store.optimize()
            self._dirty = False
            return
        if self._dirty or Snapshot.open(self.index.folder / "snapshots") is None:
            self.snapshot()
        if self._export_needed():
            self.export_knowledge()
        self.store.optimize()
        snapshot = Snapshot.open(self.index.folder / "snapshots")
        keep = {self.index.manifest.background.fingerprint[:16], snapshot.background[:16] if snapshot else ""}
        for folder in (self.index.folder / "background").iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)
