"""Whether an index is whole: everything that can be checked without running a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.calibration import calibrate
from engine.errors import HubhoundError
from engine.index import Index
from engine.knowledge import Knowledge
from engine.leftovers import find_leftovers, kept_responses, remove_forgotten
from engine.outputs import OutputTable
from engine.remote import open_store
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot, split_copies
from engine.store.base import DescriptorStore, Shared
from engine.store.knowledge import Known
from engine.tasks import task_images
from engine.writer import IndexWriter

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
        snapshot = index.current_snapshot(insist=True)
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
        counted = 0
        for done, model in enumerate(models):
            table = store.outputs(model.repo, model.revision)
            counted += 0 if table is None else len(table)
            problems += _about_model(index, model, table)
            if progress:
                progress(done + 1, len(models))
        problems += _about_candidates(index, store)
        known = store.knowledge()
        left = store.count_outputs() - counted
        if left > 0:
            problems.append(
                f"the store has {left} outputs of no model: left by a killed run, index verify --repair removes them"
            )
    problems += _about_tasks(folder, known)
    shown = ((), {}) if snapshot is None else (snapshot.models, snapshot.copies)
    if _revisions(*shown) != _revisions(models, copies):
        mend = "index snapshot" if index.remote is None else "index verify --repair"
        problems.append(f"the snapshot is not that of the store: run hubhound {mend}")
    return problems


def _about_model(index: Index, model: Model, table: OutputTable | None) -> Iterator[str]:
    """What is wrong with the outputs of a model: their number, their constants, their responses."""
    fingerprint = index.manifest.background.fingerprint
    count = 0 if table is None else len(table)
    if count != model.outputs:
        yield f"{model.repo}: {count} outputs in the store instead of {model.outputs}: add it again"
    elif table is None:
        pass  # there is nothing of it
    elif {table.background or fingerprint, model.calibration} != {fingerprint}:
        yield f"{model.repo}: calibrated with another background: index verify --repair mends it"
    else:
        sample = slice(0, 8)
        constants = calibrate(table.idx[sample], table.z[sample], table.anchor[sample], index.background())
        if np.abs(constants.h - table.calibration.h[sample]).max() > _TOLERANCE:
            yield f"{model.repo}: its constants are not those of the background: run index calibrate"
    if index.manifest.responses == "keep" and not index.responses.has(model.repo, model.revision):
        yield f"{model.repo}: its responses are missing: index rebuild would stop there"


def _about_candidates(index: Index, store: DescriptorStore) -> Iterator[str]:
    if index.remote is None:
        return
    from engine.store.joint import open_joint

    joint = open_joint(index.folder, store, index.manifest.background.fingerprint)
    missing = 0 if joint is None else joint.joined.missing()
    if missing:
        yield f"{missing} models are not among the candidates: run hubhound index candidates"


def repair(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Mends what can be mended without running a model: leftovers of killed runs, constants of another background.

    Others may write to an index on a server meanwhile: what they may have in hand is left alone.

    Args:
        folder: Of the index; an embedded store is locked meanwhile.
        progress: Called with (models done, models to do).

    Returns:
        One line a thing that was mended or left alone.

    Raises:
        IndexMissingError: There is no index.
        IndexLockedError: Another process is writing.
        IndexMismatchError: The index has been given another background meanwhile.
        StoreError: The store cannot be written.
        OSError: A file cannot be removed.
    """
    done: list[str] = []
    with IndexWriter(folder) as writer:
        before = writer.store.stamp() if isinstance(writer.store, Shared) else None
        kept = kept_responses(writer.index)
        leftovers = find_leftovers(writer.store, writer.store.models())
        for leftover in leftovers:
            what = f"{leftover.repo}@{leftover.revision}: {leftover.outputs} outputs that no record names"
            if leftover.fresh or not writer.remove_leftover(leftover.repo, leftover.revision):
                done.append(f"{what} are left alone: somebody may be putting them, repair again in ten minutes")
            else:
                done.append(f"{what} are removed")
        if removed := remove_forgotten(writer.index, kept, writer.store.models(), leftovers, before):
            done.append(f"responses of {removed} revision(s) that no record names are removed")
        if calibrated := writer.recalibrate(progress):
            done.append(f"{calibrated} model(s) are calibrated with the background of the index")
        behind = _behind(writer)
        if behind and isinstance(writer.store, Shared):
            for repo in behind:  # under a new number every machine reads it
                writer.store.change_model(repo, lambda model: model)
            done.append(f"{len(behind)} model(s) that snapshots have otherwise are shown to all machines again")
        elif behind:
            writer.snapshot()
            done.append("the snapshot is that of the store again")
        writer.finish()
    return done


def _behind(writer: IndexWriter) -> list[str]:
    """The models that the snapshot, if it can be read, does not show as the store has them."""
    snapshot = writer.index.current_snapshot(insist=True)
    records = writer.store.models()
    shown = ((), {}) if snapshot is None else (snapshot.models, snapshot.copies)
    indexed = [model for model in records if model.state is ModelState.INDEXED]
    differing = _revisions(*shown) ^ _revisions(indexed, split_copies(records)[0])
    return sorted({repo for repo, _, _ in differing})


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
