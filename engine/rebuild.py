"""Making an index again from archived responses, with another r, method, background or encoder, and no model run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.conductance_cache import FILE
from engine.errors import IndexUnusableError
from engine.index import Index
from engine.remote import open_store
from engine.schema import ModelState
from engine.snapshot import split_copies
from engine.store.base import DescriptorStore
from engine.tasks import TASKS
from engine.writer import IndexWriter


def rebuild(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Fills a new, empty index with the models and copies of another one made with the same probes.

    The archive holds float16, so descriptors differ from freshly probed ones in about the fourth digit.

    Args:
        source: The index to read; an embedded one is locked meanwhile. It is not changed.
        target: The index to fill, made by ``Index.create``; finished models are skipped, so it can be run again.
        progress: Called with (models done, models in all).

    Returns:
        How many models were filled in.

    Raises:
        IndexUnusableError: The source kept no responses of a model.
        IndexMismatchError: The probes are not the same.
    """
    old = Index(source)
    filled = 0
    with open_store(source) as store, IndexWriter(target) as writer:
        new = writer.index
        new.manifest.check_probes(old.manifest.probes.fingerprint, str(source))
        models = sorted(store.models(), key=lambda model: model.copy_of is not None)  # a copy needs its original there
        lost = {model.repo for model in split_copies(models)[1]}
        present = {m.repo: m.revision for m in writer.store.models() if m.state is ModelState.INDEXED}
        for done, model in enumerate(models):
            if model.copy_of is not None and model.repo not in lost:
                writer.put_copy(model)
            elif model.state is not ModelState.INDEXED:
                writer.record(model)
            elif present.get(model.repo) != model.revision:
                table = store.outputs(model.repo, model.revision)
                archived = old.responses.read(model.repo, model.revision)
                if table is None or archived is None or len(archived) != len(table):
                    raise IndexUnusableError(
                        f"the index {source} kept no responses of {model.repo}: make it with --responses keep, "
                        "or add the models to a new index"
                    )
                responses = (archived.astype(np.float64) * table.std[:, None] + table.mean[:, None]).T
                made, _ = writer.describe(model.repo, model.revision, table.labels, responses)
                made = replace(made, output=table.output[made.output])
                if new.manifest.responses == "keep":  # before the record, which says that the model is complete
                    new.responses.copy(old.responses, model.repo, model.revision)
                writer.put(model.model_copy(update={"outputs": len(made)}), made, None)
                filled += 1
            if progress:
                progress(done + 1, len(models))
        _take_over_tasks(old, target, store, writer)
        writer.finish()
    return filled


def _take_over_tasks(old: Index, target: Path, store: DescriptorStore, writer: IndexWriter) -> None:
    """Tasks, profiles and performance depend on nothing that a rebuilt index has of its own."""
    known = store.knowledge()
    if not known:
        return
    if old.remote is not None:
        old.remote.fetch("tasks")
    tasks = old.folder / TASKS
    if tasks.is_dir():  # before the records, which say that the images are there
        shutil.copytree(tasks, target / TASKS, dirs_exist_ok=True)
        for name in sorted(folder.name for folder in tasks.iterdir()):
            writer.publish_task(name)
    writer.put_known(known)
    remembered = old.folder / FILE
    if remembered.exists() and not (target / FILE).exists():
        shutil.copy2(remembered, target / FILE)
