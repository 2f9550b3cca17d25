"""Making the candidates of an index on a server: fit a code, fill the collection, measure what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.calibration import Background, calibrate, imagenet21k_names
from engine.descriptors import ConceptDescriptors
from engine.errors import IndexUnusableError, InputError
from engine.index import Index
from engine.index_files import IndexFile
from engine.joint import FEWEST_CONCEPTS, RANK, fit, take
from engine.joint_recall import (
    CODE_FILE,
    DEPTHS,
    FOLDER,
    OVERSAMPLING,
    RECALL_FILE,
    ExactTop,
    JointRecall,
    Key,
    Storage,
    measured,
)
from engine.outputs import FloatArray, OutputTable
from engine.remote import Remote
from engine.schema import Model, ModelState
from engine.store.joint import JointCollection, drop_joint, need_joint, open_joint
from engine.store.server import ServerStore

SAMPLE = 20_000
"""Outputs that a code is fitted to."""

SAMPLE_MODELS = 1_000
"""Models that they come from, if there are so many."""

CONCEPTS = 2_000
"""Concepts that it is fitted to, beside the background; more for an encoder of more than 667 dimensions."""

HELD_OUT = 100
"""Concepts that recall is measured with."""

WRITERS_LOOK_S = 35.0
"""In that time every writer has seen that there are candidates and puts new outputs in itself."""

_AT_ONCE = 4_000  # outputs encoded and written at once
_NAMES = 100  # embedded at once
_MODELS = 100  # looked at together

Progress = Callable[[str, str], Callable[[float, float], None]]
"""``(description, unit) -> advance(done, total)``."""

Encode = Callable[[Sequence[str]], FloatArray]


@dataclass(frozen=True)
class MakingSettings:
    """How candidates are made.

    Attributes:
        rank: Of the code.
        concepts: How many it is fitted to beside the background; None for as many as the encoder needs.
        held_out: How many recall is measured with, >= 1.
        oversampling: Candidates for each hit that is wanted, >= 1.
        storage: Numbers that are compared.
        seed: Of every draw.
        build_timeout_s: How long the server may take to build the graph.
    """

    rank: int = RANK
    concepts: int | None = None
    held_out: int = HELD_OUT
    oversampling: float = OVERSAMPLING
    storage: Storage = "float16"
    seed: int = 0
    build_timeout_s: float = 24 * 3600.0


def make_candidates(
    folder: Path,
    settings: MakingSettings,
    progress: Progress | None = None,
    encode: Encode | None = None,
) -> JointRecall:
    """Makes, measures and publishes the candidates of an index on a server, in place of those it has.

    While it runs there are none. Models that are added meanwhile are put in at the end. A background that is changed
    meanwhile ends it: the vectors would be of the one before.

    Args:
        folder: In which the index is worked with.
        settings: How.
        progress: Makes progress bars.
        encode: Embeds texts; by default the index's encoder is loaded.

    Raises:
        InputError: The index is no index on a server, or has too few names or outputs to fit and measure.
        IndexUnusableError: The index is empty, or its background was changed meanwhile.
        StoreError: The server refused or did not answer.
        OSError: The folder cannot be written.
    """
    index = Index(folder)
    remote = _remote(folder)
    bar = progress or (lambda description, unit: lambda done, total: None)
    store = remote.store
    since = store.newest()
    models = [model for model in store.models() if model.state is ModelState.INDEXED and model.outputs]
    if not models:
        raise IndexUnusableError(f"the index {remote.address} is empty: add models first")
    background = index.background()
    held_out, fitted = draw_names(index, background.names, settings)
    texts = _embed(index, [*held_out, *fitted], encode, bar("embedding names", "names"))
    asked = index.describe(texts[: len(held_out)], background)
    known = ConceptDescriptors.join([index.describe(texts[len(held_out) :], background), background.concepts])
    fingerprint = index.manifest.background.fingerprint
    exact = Calibrated(background, {model.repo: model for model in models})
    sample = list(sample_outputs(store, models, settings.seed, bar("reading a sample", "outputs"), exact))
    code = fit(sample, known, store.layout, fingerprint, settings.rank)
    joint = JointCollection.create(store, code, settings.storage)
    top = ExactTop(asked, max(DEPTHS), code.method)
    filled = _fill(joint, models, exact, top, bar("encoding", "models"))
    in_graph = joint.wait(settings.build_timeout_s, bar("waiting for the graph", "outputs"))
    vectors = code.encode_concepts(asked)

    def ask(c: int, limit: int, breadth: int) -> list[Key]:
        return [(hit.repo, hit.revision, hit.output) for hit in joint.candidates(vectors[c], limit, breadth)]

    breadth, tried = measured(top.best(), ask, settings.oversampling)
    recall = JointRecall(
        code=code.fingerprint,
        storage=settings.storage,
        outputs=joint.count(),
        in_graph=in_graph,
        overlong=joint.overlong,
        concepts=len(held_out),
        oversampling=settings.oversampling,
        breadth=breadth,
        recall=tried[breadth],
        by_breadth={str(one): shares for one, shares in tried.items()},
    )
    (folder / FOLDER).mkdir(exist_ok=True)
    code.save(folder / CODE_FILE)
    recall.write(folder)
    remote.publish([IndexFile(CODE_FILE, "core"), IndexFile(RECALL_FILE, "core")])
    joint.joined.mark(filled)
    catch_up(joint, since, background)  # what was written while the graph was built
    now = store.newest()
    remote.refresh()
    if Index(folder).manifest.background.fingerprint != fingerprint:
        drop_candidates(folder)
        raise IndexUnusableError(
            f"the background of {remote.address} was changed while candidates were made for the one before: run again"
        )
    joint.complete(recall)
    if now != since:  # somebody is writing, and may not have seen yet that there are candidates
        time.sleep(WRITERS_LOOK_S)
    catch_up(joint, now, background)
    return recall


class Calibrated:
    """Gives outputs the constants of one background where those on the server are of another.

    Args:
        background: The background.
        models: Records of the outputs' models, by repository.
    """

    def __init__(self, background: Background, models: Mapping[str, Model]) -> None:
        self._background = background
        self._fingerprint = background.fingerprint
        self._models = models

    def __call__(self, table: OutputTable) -> OutputTable:
        """The outputs of a model with those constants."""
        if table.calibrated_with(self._fingerprint, self._models[table.repo].calibration):
            return table
        constants = calibrate(table.idx, table.z, table.anchor, self._background)
        return table.with_calibration(constants, self._fingerprint)


def catch_up(joint: JointCollection, since: int, background: Background) -> int:
    """Puts in and takes out what has changed since a number of the store's.

    Args:
        joint: The candidates.
        since: The number.
        background: That they are made with.

    Returns:
        How many models had changed.

    Raises:
        StoreError: The server refused or did not answer.
    """
    changed = 0
    for change in joint.store.changes(since):
        model = change.model
        if model is not None and model.state is ModelState.INDEXED:
            _bring(joint, [model], background)
            joint.remove(model.repo, model.revision)
        else:
            joint.remove(change.repo)
        changed += 1
    return changed


def has_candidates(folder: Path) -> bool:
    """Whether an index on a server has candidates that fit it.

    Raises:
        InputError: The index is no index on a server.
        StoreError: The server refused or did not answer.
    """
    background = Index(folder).manifest.background.fingerprint
    return open_joint(folder, _remote(folder).store, background) is not None


def _bring(joint: JointCollection, models: Sequence[Model], background: Background) -> int:
    """Puts in what outputs of some models are missing, and says that they are there; how many were missing."""
    there = joint.holdings(repos=[model.repo for model in models])
    short = {m.repo: m for m in models if there[m.repo, m.revision] < m.outputs}
    exact, missing = Calibrated(background, short), 0
    for table in joint.store.iter_outputs(list(short.values())):
        joint.put_encoded([(table, joint.code.encode_outputs(exact(table)))])
        missing += len(table) - there[table.repo, table.revision]
        if len(table) == short[table.repo].outputs:  # else some are gone, and readers leave the model out
            del short[table.repo]
    joint.joined.mark([(model.repo, model.revision) for model in models if model.repo not in short])
    return missing


def update_candidates(folder: Path, progress: Progress | None = None) -> tuple[int, int]:
    """Puts in what outputs the candidates of an index miss, and takes out those that no model's record claims.

    It reads what is missing; everything there is only if their numbers differ after that.

    Args:
        folder: In which the index is worked with.
        progress: Makes progress bars.

    Returns:
        How many outputs were missing, and how many were of models that are gone or were replaced.

    Raises:
        InputError: There are no candidates that fit the index.
        StoreError: The server refused or did not answer.
    """
    index = Index(folder)
    store = _remote(folder).store
    background = index.background()
    joint = need_joint(folder, store, background.fingerprint)
    bar = progress or (lambda description, unit: lambda done, total: None)
    advance, done = bar("adding", "models"), 0
    waiting = list(joint.joined.missing_models())
    missing = stale = 0
    for start in range(0, len(waiting), _MODELS):
        missing += _bring(joint, waiting[start : start + _MODELS], background)
        done = min(start + _MODELS, len(waiting))
        advance(done, len(waiting))
    models = {(m.repo, m.revision): m for m in store.models() if m.state is ModelState.INDEXED}
    if joint.count() != sum(model.outputs for model in models.values()):
        there = joint.holdings(bar("reading what there is", "outputs"))
        lost = [model for key, model in models.items() if there[key] < model.outputs]
        for start in range(0, len(lost), _MODELS):
            missing += _bring(joint, lost[start : start + _MODELS], background)
        for repo, revision in there.keys() - models.keys():
            joint.remove_revision(repo, revision)
            stale += there[repo, revision]
    return missing, stale


def candidates_now(folder: Path) -> tuple[int, int]:
    """How many outputs the candidates of an index have at present, and how many of them are in the graph.

    Raises:
        InputError: There are no candidates that fit the index.
        StoreError: The server refused or did not answer.
    """
    joint = need_joint(folder, _remote(folder).store, Index(folder).manifest.background.fingerprint)
    return joint.count(), joint.in_graph()


def drop_candidates(folder: Path) -> bool:
    """Removes the candidates of an index on a server; whether there were any.

    Raises:
        InputError: The index is no index on a server.
        StoreError: The server refused or did not answer.
    """
    remote = _remote(folder)
    there = drop_joint(remote.store)
    remote.shelf.remove([CODE_FILE, RECALL_FILE])
    for name in (RECALL_FILE, CODE_FILE):
        (folder / name).unlink(missing_ok=True)
    return there


def draw_names(index: Index, background: Sequence[str], settings: MakingSettings) -> tuple[list[str], list[str]]:
    """Class names of ImageNet-21k to measure with, and others to fit to; none of either is in the background.

    Raises:
        InputError: There are not enough.
    """
    barred = {name.casefold() for name in background}
    names = [name for name in imagenet21k_names() if name.casefold() not in barred]
    enough = max(CONCEPTS, 3 * index.manifest.encoder.dimension)
    wanted = enough if settings.concepts is None else settings.concepts
    if settings.held_out + wanted > len(names) or settings.held_out < 1 or wanted < FEWEST_CONCEPTS:
        raise InputError(
            f"{wanted} concepts to fit to and {settings.held_out} to measure with: at least {FEWEST_CONCEPTS} and 1, "
            f"together at most {len(names)}"
        )
    order = np.random.default_rng(settings.seed).permutation(len(names))
    drawn = [names[i] for i in order[: settings.held_out + wanted]]
    return drawn[: settings.held_out], drawn[settings.held_out :]


def sample_outputs(
    store: ServerStore,
    models: Sequence[Model],
    seed: int,
    advance: Callable[[float, float], None],
    exact: Callable[[OutputTable], OutputTable],
) -> Iterator[OutputTable]:
    """Some thousand outputs of many models, of each at most so many that all can give some."""
    rng = np.random.default_rng(seed)
    chosen = [models[i] for i in rng.permutation(len(models))[:SAMPLE_MODELS]]
    of_each = max(20, -(-SAMPLE // len(chosen)))
    total = 0
    for table in store.iter_outputs(chosen):
        some = np.sort(rng.permutation(len(table))[:of_each]).astype(np.intp)
        total += len(some)
        advance(min(total, SAMPLE), SAMPLE)
        yield exact(take(table, some))
        if total >= SAMPLE:
            return


def _embed(
    index: Index, names: Sequence[str], encode: Encode | None, advance: Callable[[float, float], None]
) -> FloatArray:
    """Embeddings of many names, remembered as they are made; the encoder is loaded once, if at all."""
    encoder: list[Encode] = [] if encode is None else [encode]

    def new(texts: Sequence[str]) -> FloatArray:
        if not encoder:
            loaded = index.load_encoder("auto")
            encoder.append(lambda some: loaded.encode_texts(some, index.manifest.encoder.templates))
        return encoder[0](texts)

    parts = []
    for start in range(0, len(names), _NAMES):
        parts.append(index.embed(names[start : start + _NAMES], new))
        advance(min(start + _NAMES, len(names)), len(names))
    return np.concatenate(parts)


def _fill(
    joint: JointCollection,
    models: Sequence[Model],
    exact: Callable[[OutputTable], OutputTable],
    top: ExactTop,
    advance: Callable[[float, float], None],
) -> list[tuple[str, str]]:
    """Writes all outputs and compares them exactly; the models, by repository and revision, that were whole."""
    whole: list[tuple[str, str]] = []
    waiting: list[tuple[OutputTable, FloatArray]] = []
    outputs = {model.repo: model.outputs for model in models}
    for done, table in enumerate(map(exact, joint.store.iter_outputs(models)), 1):
        top.add(table)
        waiting.append((table, joint.code.encode_outputs(table)))
        if sum(len(one) for one, _ in waiting) >= _AT_ONCE:
            joint.put_encoded(waiting)
            waiting = []
        if len(table) == outputs[table.repo]:
            whole.append((table.repo, table.revision))
        advance(done, len(models))
    joint.put_encoded(waiting)
    return whole


def _remote(folder: Path) -> Remote:
    remote = Remote.of(folder)
    if remote is None:
        raise InputError(
            f"the index {folder} is a folder: candidates are for an index on a Qdrant server, all others are searched "
            "exactly"
        )
    return remote
