"""A large hub without large compute: models derived from real ones by restricting them to some of their outputs.

Where a derived model answers logits, the responses of its outputs are those of the real model; where it answers
probabilities, the outputs compete in a softmax of their own, which is what a model trained on these classes alone would
do to them. So thousands of models of known meaning come from the responses of a few, and no model is run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.descriptors import centred_log_probabilities
from engine.errors import IndexUnusableError, InputError
from engine.files import new_folder, write_array, write_json
from engine.index import Index, refuse_occupied, write_background
from engine.manifest import write_manifest
from engine.outputs import OutputTable
from engine.schema import Model
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from engine.writer import IndexWriter
from query.evaluate.truth import Known, Truth, archived_responses, check_names, write_truth

TRUTH_FILE = "truth.json"
"""Where a derived index has its truth, in its folder."""

MOST_NOISE = 1_000_000
"""Largest noise: far below, nothing of a response is left; far above, responses are no longer finite."""

_TABLES = 64  # source models whose outputs are kept in memory at once


@dataclass(frozen=True)
class HubSettings:
    """How a hub is derived.

    Attributes:
        models: How many, at least 1.
        seed: Of every draw; model i depends on the seed and i alone, so a larger hub begins with the smaller one.
        min_classes: Smallest number of outputs of a model, at least 2.
        max_classes: Largest; a real model with fewer gives fewer.
        noise: Standard deviation of the Gaussian noise on the responses, as a share of that of each output,
            0..``MOST_NOISE``.
        probabilities: Share of the models that answer probabilities, 0..1; those derived from a model that does always
            do.
    """

    models: int
    seed: int = 0
    min_classes: int = 15
    max_classes: int = 200
    noise: float = 0.0
    probabilities: float = 0.5

    def __post_init__(self) -> None:
        if self.models < 1:
            raise InputError(f"{self.models} models: a hub needs at least one")
        if not 2 <= self.min_classes <= self.max_classes:
            raise InputError(
                f"{self.min_classes} to {self.max_classes} classes a model: at least 2, and not more than the largest"
            )
        if not 0 <= self.noise <= MOST_NOISE or not 0 <= self.probabilities <= 1:
            raise InputError(
                f"noise {self.noise} and probabilities {self.probabilities}: noise lies between 0 and {MOST_NOISE:,}, "
                "probabilities are a share from 0 to 1"
            )


@dataclass(frozen=True)
class Derivation:
    """One derived model before it is made.

    Attributes:
        repo: Its id.
        source: The real model.
        rows: Which of the source's outputs it has, places among those in the index, int64 ``[m]``, ascending.
        probabilities: Whether it answers probabilities.
        noise: See ``HubSettings``.
        seed: Of its noise.
    """

    repo: str
    source: Model
    rows: npt.NDArray[np.int64]
    probabilities: bool
    noise: float
    seed: tuple[int, ...] = field(repr=False)

    @property
    def revision(self) -> str:
        """A hash of what the model is made from, 40 hexadecimal digits."""
        parts = (self.source.repo, self.source.revision, self.rows.tolist(), self.probabilities, self.noise, self.seed)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


@dataclass(frozen=True)
class MadeHub:
    """What was made.

    Attributes:
        models: How many.
        outputs: Usable ones of all of them.
        known: Those of known class.
        skipped: Models that were left out, as none of their outputs is usable.
    """

    models: int
    outputs: int
    known: int
    skipped: int


def plan(sources: Sequence[Model], settings: HubSettings) -> tuple[Derivation, ...]:
    """Draws the models of a hub.

    The number m of outputs of a model is drawn with a density proportional to m^-1.5: as on a hub, small models are the
    rule. The mean is about the geometric mean of the bounds, 55 for 15 to 200.

    Args:
        sources: The real models; those with fewer outputs than the smallest number of classes are passed over.
        settings: How.

    Raises:
        InputError: No model has enough outputs.
    """
    usable = [model for model in sources if model.outputs >= settings.min_classes]
    if not usable:
        most = max((model.outputs for model in sources), default=0)
        raise InputError(
            f"no model has {settings.min_classes} outputs (the largest has {most}): "
            "derive from an index of larger models, or lower --min-classes"
        )
    width = max(5, len(str(settings.models)))
    low, high = settings.min_classes**-0.5, (settings.max_classes + 1) ** -0.5
    made = []
    for i in range(settings.models):
        rng = np.random.default_rng((settings.seed, i))
        source = usable[int(rng.integers(len(usable)))]
        drawn = int((low + rng.random() * (high - low)) ** -2)
        count = min(max(drawn, settings.min_classes), settings.max_classes, source.outputs)
        rows = np.sort(rng.choice(source.outputs, size=count, replace=False)).astype(np.int64)
        probabilities = bool(rng.random() < settings.probabilities) or source.probabilities
        repo = f"derived/{i + 1:0{width}}-{source.repo.rpartition('/')[2]}"
        made.append(Derivation(repo, source, rows, probabilities, settings.noise, (settings.seed, i, 1)))
    return tuple(made)


def derived_responses(
    derivation: Derivation, z: npt.NDArray[np.floating], mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]
) -> npt.NDArray[np.floating]:
    """What a derived model answers to every probe.

    Args:
        derivation: The model.
        z: Standardised responses of its outputs in the source, ``[m, n]``.
        mean: Their means, ``[m]``.
        std: Their standard deviations, ``[m]``.

    Returns:
        Raw responses with noise, or, of a model that answers probabilities, the centred logs of the softmax over its
        own outputs, ``[n, m]``.
    """
    values = np.asarray(z, dtype=np.float64)
    if derivation.noise:
        values = values + derivation.noise * np.random.default_rng(derivation.seed).standard_normal(values.shape)
    answers = (values * std[:, None] + mean[:, None]).T
    if not derivation.probabilities:
        return answers
    powers = np.exp(answers - answers.max(axis=1, keepdims=True))
    return centred_log_probabilities((powers / powers.sum(axis=1, keepdims=True)).astype(np.float32))


def make_hub(
    source: Path,
    truth: Truth,
    target: Path,
    settings: HubSettings,
    progress: Callable[[int, int], None] | None = None,
) -> MadeHub:
    """Makes an index of derived models, with their truth in ``truth.json``; it appears whole or not at all.

    Probes, encoder, background and everything else are those of the source; the encoder is not loaded.

    Args:
        source: An index with responses; its store is locked meanwhile and not changed.
        truth: About its outputs.
        target: Folder of the new index; must not exist, or be empty.
        settings: How.
        progress: Called with (models done, models in all).

    Raises:
        InputError: The target is occupied, a setting is out of range, the truth is not that of the source, or no model
            has a usable output.
        IndexUnusableError: The source is empty or kept no responses.
        OSError: The index cannot be written.
    """
    refuse_occupied(target)
    old = Index(source)
    snapshot = old.snapshot()
    check_names(old, snapshot, truth)
    derivations = plan(snapshot.models, settings)
    known: dict[str, dict[int, Known]] = {}
    outputs, meant = 0, 0
    with new_folder(target) as new, EdgeStore.open(source / "store") as store:

        @lru_cache(maxsize=_TABLES)
        def source_of(model: Model) -> tuple[OutputTable, npt.NDArray[np.float16]]:
            table = store.outputs(model.repo, model.revision)
            if table is None or len(table) != model.outputs:
                raise IndexUnusableError(
                    f"{source}: {model.repo} has changed since the last snapshot: run 'hubhound index snapshot'"
                )
            return table, archived_responses(old, model)

        _copy_frame(old, new)
        with IndexWriter(new) as writer:
            for done, derivation in enumerate(derivations):
                table, archived = source_of(derivation.source)
                rows = derivation.rows
                values = derived_responses(derivation, archived[rows], table.mean[rows], table.std[rows])
                labels = tuple(table.labels[row] for row in rows)
                made, left_out = writer.describe(derivation.repo, derivation.revision, labels, values)
                if len(made):
                    record = _record(derivation).model_copy(update={"outputs": len(made), "left_out": left_out})
                    writer.put(record, made, values)
                    outputs += len(made)
                    about = truth.models.get(derivation.source.repo, {})
                    places = enumerate(table.output[rows].tolist())
                    own = {i: about[output] for i, output in places if output in about}
                    meant += sum(bool(own[i].classes) for i in made.output.tolist() if i in own)
                    known[derivation.repo] = own
                if progress:
                    progress(done + 1, len(derivations))
            if not known:
                raise InputError(
                    f"no output of {len(derivations)} derived models is usable: derive with less noise, or more models"
                )
            writer.finish()
        write_truth(new / TRUTH_FILE, known)
    return MadeHub(len(known), outputs, meant, len(derivations) - len(known))


def _record(derivation: Derivation) -> Model:
    source = derivation.source
    return source.model_copy(
        update={
            "repo": derivation.repo,
            "revision": derivation.revision,
            "tags": (*source.tags, "derived", f"derived from {source.repo}@{source.revision}"),
            "downloads": None,
            "likes": None,
            "probabilities": derivation.probabilities,
            "calibration": None,
            "indexed_at": datetime.now(UTC),
        }
    )


def _copy_frame(old: Index, new: Path) -> None:
    """Everything of an index but its models."""
    manifest = old.manifest
    if manifest.probes.folder is None:
        shutil.copytree(old.probe_folder, new / "probes")
    _copy_texts(old.folder / "concepts.sqlite", new / "concepts.sqlite")
    write_json(new / "probes.json", [{"file": file, "sha256": sha256} for file, sha256 in old.probe_files])
    write_array(new / "probe_embeddings.npy", np.asarray(old.probe_embeddings))
    write_background(new, old.background())
    layout = StoreLayout(manifest.probes.count, manifest.top_r, manifest.encoder.dimension, manifest.method)
    EdgeStore.create(new / "store", layout).close()
    update = {"created_at": datetime.now(UTC), "responses": "keep"}
    write_manifest(new, manifest.model_copy(update=update))


def _copy_texts(source: Path, target: Path) -> None:
    """The memory of texts as it is at one moment, as a search may be writing to it; losing it costs only time."""
    if not source.is_file():
        return
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    except sqlite3.Error:
        target.unlink(missing_ok=True)
