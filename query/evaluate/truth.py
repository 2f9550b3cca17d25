"""The truth: which class each output of a model stands for, from a file, laid over the responses of an index.

The file is JSON, by repository the outputs that something is known about::

    {"org/name": [{"index": 0, "label": "tench, Tinca tinca", "imagenet_class": 0},
                  {"index": 1, "label": "hound", "classes": ["beagle", "basset"]},
                  {"index": 2, "label": "background", "class": null}]}

The class of an output stands under ``class`` or ``imagenet_class``, several acceptable ones under ``classes``; null is
unknown. Classes are texts or whole numbers, and the number 7 is the same class as the text "7".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.descriptors import FloatArray
from engine.errors import IndexUnusableError, InputError
from engine.files import write_json
from engine.index import Index
from engine.schema import Model
from engine.snapshot import Snapshot
from query.evaluate.inputfiles import class_id, named, read_json_input
from query.evaluate.zoo import Zoo

_KEYS = ("class", "imagenet_class")
_CHUNK = 512  # outputs standardised at once: bounds the float64 copies


@dataclass(frozen=True)
class Known:
    """What is known about one output.

    Attributes:
        label: Its name in the truth file, which need not be the declared one.
        classes: The classes that it stands for; empty where that is unknown.
    """

    label: str | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """What is known about the outputs of some models.

    Attributes:
        path: The file, for errors.
        models: By repository and by position in the model's answer.
    """

    path: Path
    models: Mapping[str, Mapping[int, Known]]

    @property
    def names(self) -> tuple[str, ...]:
        """Every synonym of every label, in order: what a background to calibrate against must not contain."""
        labels = (known.label for outputs in self.models.values() for known in outputs.values() if known.label)
        parts = (part.strip() for label in labels for part in label.split(","))
        return tuple(dict.fromkeys(part for part in parts if part))


def read_truth(path: Path) -> Truth:
    """Reads a truth file.

    Raises:
        InputError: It is missing, not JSON, empty or has an entry of another form; the message says where.
    """
    value = read_json_input(path, "truth file")
    if not isinstance(value, dict) or not all(isinstance(entries, list) for entries in value.values()):
        raise InputError(f'the truth file {path} must be {{"org/name": [{{"index": 0, "class": ...}}, ...], ...}}')
    models = {repo: _read_model(path, repo, entries) for repo, entries in value.items()}
    if not any(known.classes for outputs in models.values() for known in outputs.values()):
        raise InputError(f"the truth file {path} knows the class of no output: nothing can be measured with it")
    return Truth(path, models)


def write_truth(path: Path, models: Mapping[str, Mapping[int, Known]]) -> None:
    """Writes a truth file atomically; ``read_truth`` gives the same back.

    Raises:
        OSError: It cannot be written.
    """
    write_json(path, {repo: [_entry(i, known) for i, known in sorted(m.items())] for repo, m in models.items()})


def read_zoo(index: Index, truth: Truth, progress: Callable[[int, int], None] | None = None) -> Zoo:
    """The full responses of an index's models together with what is known about them.

    Args:
        index: With the responses of all its models kept.
        truth: May know only some of the models; the others are left out, for nobody knows whether their answers are
            right.
        progress: Called with (models done, models in all).

    Returns:
        The outputs in the order of the index's snapshot.

    Raises:
        InputError: The truth names a model or an output that is not in the index.
        IndexUnusableError: The responses of a model were not kept, or the index is empty.
    """
    snapshot = index.snapshot()
    check_names(index, snapshot, truth)
    places = [i for i, model in enumerate(snapshot.models) if model.repo in truth.models]
    spans = [(int(snapshot.starts[i]), int(snapshot.starts[i + 1])) for i in places]
    starts = np.concatenate([[0], np.cumsum([stop - start for start, stop in spans])]).astype(np.int64)
    rows = np.concatenate([np.arange(start, stop) for start, stop in spans]) if spans else np.zeros(0, np.int64)
    responses = np.empty((len(rows), index.manifest.probes.count), np.float32)
    classes: list[frozenset[str]] = []
    nothing = Known(None, ())
    for done, place in enumerate(places):
        own = slice(int(starts[done]), int(starts[done + 1]))
        model = snapshot.models[place]
        if own.stop > own.start:
            responses[own] = _standardised(archived_responses(index, model))
        known = truth.models[model.repo]
        classes += [frozenset(known.get(output, nothing).classes) for output in snapshot.output[rows[own]].tolist()]
        if progress:
            progress(done + 1, len(places))
    return Zoo(
        responses,
        np.asarray(index.probe_embeddings),
        tuple(snapshot.models[place].repo for place in places),
        starts,
        snapshot.output[rows].astype(np.int64),
        tuple(snapshot.label_of(row) for row in rows.tolist()),
        tuple(classes),
    )


def _read_model(path: Path, repo: str, entries: Sequence[object]) -> dict[int, Known]:
    outputs: dict[int, Known] = {}
    for place, entry in enumerate(entries):
        where = f"the truth file {path}: {repo}, entry {place + 1}"
        if not isinstance(entry, dict):
            raise InputError(f'{where}: it must be {{"index": 0, "label": ..., "class": ...}}')
        output, label = entry.get("index"), entry.get("label")
        if not isinstance(output, int) or isinstance(output, bool) or output < 0:
            raise InputError(f"{where}: its index must be a whole number from 0, not {json.dumps(output)}")
        if label is not None and not isinstance(label, str):
            raise InputError(f"{where}: its label must be a text or null, not {json.dumps(label)}")
        if output in outputs:
            raise InputError(f"{where}: the output {output} stands there twice; give several classes as classes")
        outputs[output] = Known(label, _classes(entry, where))
    return outputs


def _classes(entry: Mapping[str, object], where: str) -> tuple[str, ...]:
    given = [key for key in (*_KEYS, "classes") if key in entry]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InputError(f"{where}: its class must stand under class, classes or imagenet_class (it has {found})")
    value = entry[given[0]]
    if given[0] == "classes" and not isinstance(value, list):
        raise InputError(f"{where}: classes must be a list, not {json.dumps(value)}")
    listed = value if isinstance(value, list) and given[0] == "classes" else [] if value is None else [value]
    made = [class_id(item) for item in listed]
    if None in made:
        raise InputError(f"{where}: a class must be a text or a whole number, not {json.dumps(value)}")
    return tuple(dict.fromkeys(item for item in made if item is not None))


def _entry(output: int, known: Known) -> dict[str, object]:
    if len(known.classes) > 1:
        return {"index": output, "label": known.label, "classes": list(known.classes)}
    return {"index": output, "label": known.label, "class": known.classes[0] if known.classes else None}


def check_names(index: Index, snapshot: Snapshot, truth: Truth) -> None:
    """Refuses a truth that belongs to another index: a figure over half of it would look like a result.

    Args:
        index: For the error.
        snapshot: Of the index.
        truth: May know less than the index has.

    Raises:
        InputError: The truth names a model or an output that is not in the index.
    """
    places = {model.repo: i for i, model in enumerate(snapshot.models)}
    strangers = [repo for repo in truth.models if repo not in places]
    if strangers:
        raise InputError(
            f"the truth file {truth.path} names {len(strangers)} model(s) that are not in the index {index.folder}: "
            f"{named(strangers)}; add them (hubhound index add) or take them out of the file"
        )
    missing = []
    for repo, outputs in truth.models.items():
        i = places[repo]
        there = set(snapshot.output[int(snapshot.starts[i]) : int(snapshot.starts[i + 1])].tolist())
        # An output without information is in the model, only not in the index.
        there |= {left_out.output for left_out in snapshot.models[i].left_out}
        missing += [f"{repo}#{output}" for output in outputs if output not in there]
    if missing:
        raise InputError(
            f"the truth file {truth.path} names {len(missing)} output(s) that do not exist: {named(missing)}; "
            "positions count from 0, take these out of the file"
        )


def archived_responses(index: Index, model: Model) -> npt.NDArray[np.float16]:
    """Standardised responses of a model's outputs, float16 ``[m, n]``, memory-mapped, in the order of the snapshot.

    Raises:
        IndexUnusableError: They were not kept, or are not those of the model's outputs.
    """
    archived = index.responses.read(model.repo, model.revision)
    if archived is None:
        raise IndexUnusableError(
            f"the index {index.folder} kept no responses of {model.repo}: an evaluation needs an index made with "
            "--responses keep"
        )
    expected = (model.outputs, index.manifest.probes.count)
    if archived.shape != expected:
        raise IndexUnusableError(
            f"the responses of {model.repo} have the shape {archived.shape} instead of {expected}: add the model again"
        )
    return archived


def _standardised(archived: npt.NDArray[np.float16]) -> FloatArray:
    """Float16 has moved mean and standard deviation a little; set right here."""
    rows = np.empty(archived.shape, np.float32)
    for start in range(0, len(archived), _CHUNK):
        z = archived[start : start + _CHUNK].astype(np.float64)
        z -= z.mean(axis=1, keepdims=True)
        rows[start : start + _CHUNK] = z / np.maximum(z.std(axis=1, keepdims=True), 1e-12)
    return rows
