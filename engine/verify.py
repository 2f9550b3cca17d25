"""Whether an index is whole: everything that can be checked without running a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.calibration import calibrate
from engine.errors import HubhoundError
from engine.index import Index
from engine.knowledge import Knowledge
from engine.remote import open_store
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot, split_copies
from engine.store.knowledge import Known
from engine.tasks import task_images

_TOLERANCE = 1e-4


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Checks files, probes, store, responses, copies, tasks and snapshot of an index against each other.

    Args:
        folder: Of the index; an embedded store is locked meanwhile.
        progress: Called with (models done, models in all).

    Returns:
        One line a problem; empty if all is well.

    Raises:
        IndexMissingError: There is no index.
        IndexLockedError: Another process is writing.
    """
    index = Index(folder)
    problems: list[str] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except (HubhoundError, OSError) as error:
            problems.append(str(error))

    attempt(index.probes)
    attempt(lambda: index.probe_embeddings)
    attempt(index.background)
    snapshot: Snapshot | None = None
    try:
        snapshot = index.current_snapshot()
    except HubhoundError as error:
        problems.append(str(error))
    if problems and index.remote is None and not (folder / "store").is_dir():
        return problems
    with open_store(folder) as store:
        records = store.models()
        copies, lost = split_copies(records)
        problems += [
            f"{copy.repo}: a copy of {copy.copy_of}@{copy.copied_revision}, which is not in the index: add it again"
            for copy in lost
        ]
        models = [model for model in records if model.state is ModelState.INDEXED]
        for done, model in enumerate(models):
            table = store.outputs(model.repo, model.revision)
            count = 0 if table is None else len(table)
            if count != model.outputs:
                problems.append(f"{model.repo}: {count} outputs in the store instead of {model.outputs}: add it again")
            elif table is not None and model.calibration == index.manifest.background.fingerprint:
                sample = slice(0, 8)
                constants = calibrate(table.idx[sample], table.z[sample], table.anchor[sample], index.background())
                if np.abs(constants.h - table.calibration.h[sample]).max() > _TOLERANCE:
                    problems.append(f"{model.repo}: its constants are not those of the background: run index calibrate")
            else:
                problems.append(f"{model.repo}: calibrated with another background: run index calibrate")
            if index.manifest.responses == "keep" and not index.responses.has(model.repo, model.revision):
                problems.append(f"{model.repo}: its responses are missing: index rebuild would stop there")
            if progress:
                progress(done + 1, len(models))
        known = store.knowledge()
        stored, claimed = store.count_outputs(), sum(model.outputs for model in models)
        if stored != claimed:
            problems.append(f"the store has {stored - claimed} outputs of no model: left by a killed run, add it again")
    problems += _about_tasks(folder, known)
    shown = ((), {}) if snapshot is None else (snapshot.models, snapshot.copies)
    if _revisions(*shown) != _revisions(models, copies):
        problems.append("the snapshot is not that of the store: run hubhound index snapshot")
    return problems


def _revisions(models: Sequence[Model], copies: Mapping[str, Sequence[Model]]) -> set[tuple[str, str, str | None]]:
    """What a search can show: repository, revision, and of a copy its original."""
    some = [copy for own in copies.values() for copy in own]
    return {(model.repo, model.revision, model.copy_of) for model in (*models, *some)}


def _about_tasks(folder: Path, known: Sequence[Known]) -> list[str]:
    """What is wrong with the samples of tasks, with profiles of other samples, and with what queries read of them."""
    problems: list[str] = []
    stored = Knowledge.of(known)
    for task in stored.tasks:
        try:
            task_images(folder, task)
        except HubhoundError as error:
            problems.append(str(error))
    stale: dict[str, int] = {}
    for profile in stored.profiles:
        sample = stored.task(profile.task)
        if sample is None or sample.fingerprint != profile.task_fingerprint:
            stale[profile.model] = stale.get(profile.model, 0) + 1
    problems += [
        f"{model}: {count} of its profiles are of samples that were replaced: run hubhound profile {model}"
        for model, count in stale.items()
    ]
    try:
        shown = Knowledge.read(folder)
    except HubhoundError as error:
        return [*problems, str(error)]
    if any(getattr(shown, kind) != getattr(stored, kind) for kind in ("tasks", "profiles", "performance")):
        problems.append("what queries read about tasks is not that of the store: run hubhound index snapshot")
    return problems
