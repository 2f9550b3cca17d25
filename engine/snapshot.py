"""Snapshots: what a query reads, as flat memory-mapped arrays, one immutable generation after another.

A snapshot is a cache of the store in the form that the scan wants. It lies beside the store::

    snapshots/CURRENT               name of the current generation, switched atomically
    snapshots/gen-000007/*.npy      the arrays of ScanArrays, and which output of which model each row is
    snapshots/gen-000007/meta.json  counts, models and their copies, labels, the background behind the constants

A reader needs no lock: it opens the current generation and keeps it, also when a newer one has replaced it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from engine.errors import IndexDamagedError
from engine.files import new_folder, read_array, read_json, write_array, write_atomic, write_json
from engine.outputs import OutputTable, empty_table
from engine.scan import ScanArrays, pack
from engine.schema import Model, ModelState, output_point_id
from engine.store.base import StoreLayout

_ARRAYS = tuple(field.name for field in fields(ScanArrays))
_KEEP = 2  # generations: the current one, and the one before for readers that are just opening it


class OutputSource(Protocol):
    """Where the outputs of models are read from: a store."""

    layout: StoreLayout

    def iter_outputs(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        """The outputs of models, in the order given; models without outputs are skipped."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """One generation, opened for reading.

    Attributes:
        folder: Where it lies.
        number: Of the generation, from 1.
        background: Fingerprint of the background behind its constants.
        models: In the order of their rows, by repository id.
        starts: First row of each model and, last, the number of rows: int64 ``[models + 1]``.
        arrays: What is scanned.
        output: Position of each row in its model's answer, int32 ``[L]``.
        label: Each row's place in ``labels``, -1 for none, int32 ``[L]``.
        labels: Distinct declared labels.
        copies: The copies of each model that has some, by its repository id, in the order of theirs.
        source: How far a snapshot of an index on a server has followed it (``catching_up.Seen``); None for others.
        note: Why it may be older than the index, for people; None where nothing is known of it.
    """

    folder: Path
    number: int
    background: str
    models: tuple[Model, ...]
    starts: npt.NDArray[np.int64]
    arrays: ScanArrays
    output: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    labels: tuple[str, ...]
    copies: Mapping[str, tuple[Model, ...]] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.output)

    @cached_property
    def places(self) -> Mapping[str, tuple[int, Model]]:
        """Every model and every copy by its repository id: the place of the model whose rows it has, and its record."""
        own = {model.repo: (place, model) for place, model in enumerate(self.models)}
        return own | {
            copy.repo: (own[original][0], copy) for original, copies in self.copies.items() for copy in copies
        }

    @classmethod
    def open(cls, root: Path) -> Self | None:
        """The current generation of an index, None if none was written yet.

        Args:
            root: The folder ``snapshots``.

        Raises:
            IndexDamagedError: A file is missing, cut short or of another shape.
        """
        for attempt in range(5):
            name = _current(root)
            if name is None:
                return None
            try:
                return cls._read(root / name)
            except IndexDamagedError:
                # The generation may have been replaced and removed between the two steps: then CURRENT has moved on.
                if attempt == 4 or _current(root) == name:
                    raise
        raise AssertionError  # pragma: no cover

    @classmethod
    def _read(cls, folder: Path) -> Self:
        meta = read_json(folder / "meta.json")
        try:
            models = tuple(Model.model_validate(model) for model in meta["models"])  # type: ignore[index]
            number, background = int(meta["number"]), str(meta["background"])  # type: ignore[index]
            starts = np.asarray(meta["starts"], dtype=np.int64)  # type: ignore[index]
            labels = tuple(meta["labels"])  # type: ignore[index]
            copied = meta.get("copies", [])  # type: ignore[attr-defined]  # there are none in snapshots of old
            source = meta.get("source")  # type: ignore[attr-defined]
            copies, lost = split_copies([*models, *(Model.model_validate(model) for model in copied)])
            if lost:
                raise ValueError(f"{lost[0].repo} is a copy of nothing")
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise IndexDamagedError(
                f"the snapshot {folder} is damaged: run 'hubhound index snapshot'", folder
            ) from error
        columns: dict[str, Any] = {name: read_array(folder / f"{name}.npy") for name in _ARRAYS}
        output, label = read_array(folder / "output.npy"), read_array(folder / "label.npy")
        rows = int(starts[-1])
        for name, column in {**columns, "output": output, "label": label}.items():
            if len(column) != rows:
                raise IndexDamagedError(
                    f"the snapshot file {folder / name}.npy has {len(column)} rows instead of {rows}: "
                    "run 'hubhound index snapshot'",
                    folder,
                )
        return cls(
            folder,
            number,
            background,
            models,
            starts,
            ScanArrays(**columns),
            output,  # type: ignore[arg-type]
            label,  # type: ignore[arg-type]
            labels,
            copies,
            source,
        )

    def place_of(self, row: int) -> int:
        """The place among ``models`` of the one that a row belongs to."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def model_of(self, row: int) -> Model:
        """The model that a row belongs to."""
        return self.models[self.place_of(row)]

    def label_of(self, row: int) -> str | None:
        """The declared label of a row."""
        place = int(self.label[row])
        return None if place < 0 else self.labels[place]

    def point_id(self, row: int) -> str:
        """The id of a row's output in the store; it follows from the names and is not stored."""
        model = self.model_of(row)
        return output_point_id(model.repo, model.revision, int(self.output[row]))

    def bytes_per_output(self) -> dict[str, int]:
        """Bytes that each file spends on one output."""
        columns = {name: getattr(self.arrays, name) for name in _ARRAYS}
        columns |= {"output": self.output, "label": self.label}
        return {name: c.itemsize * int(np.prod(c.shape[1:], dtype=np.int64)) for name, c in columns.items()}


def split_copies(models: Iterable[Model]) -> tuple[dict[str, tuple[Model, ...]], list[Model]]:
    """The copies among models, by whether their original is among them too.

    Args:
        models: Records of every state, in any order.

    Returns:
        Copies of indexed models, by the original's id, each list by their ids; and those whose original is not indexed
        at the revision that they equal.
    """
    models = sorted(models, key=lambda model: model.repo)
    revisions = {model.repo: model.revision for model in models if model.state is ModelState.INDEXED}
    found: dict[str, list[Model]] = {}
    lost = []
    for model in models:
        if model.copy_of is None:
            continue
        if model.copied_revision is not None and revisions.get(model.copy_of) == model.copied_revision:
            found.setdefault(model.copy_of, []).append(model)
        else:
            lost.append(model)
    return {original: tuple(copies) for original, copies in found.items()}, lost


def write_snapshot(
    root: Path,
    store: OutputSource,
    models: Sequence[Model],
    background: str,
    previous: Snapshot | None = None,
    copies: Mapping[str, tuple[Model, ...]] | None = None,
    *,
    changed: frozenset[str] = frozenset(),
    source: Callable[[Sequence[Model]], Mapping[str, object]] | None = None,
) -> Snapshot:
    """Writes the next generation and makes it current.

    Args:
        root: The folder ``snapshots``.
        store: Where outputs are read from that the previous generation does not have.
        models: The indexed models; put into the order of their ids.
        background: Fingerprint of the background behind the store's constants.
        previous: A generation whose rows are copied where model, revision and background are the same.
        copies: Of these models, by the original's id; see ``split_copies``.
        changed: Ids of models whose rows are read from the store whatever the previous generation has.
        source: Makes what stands in ``Snapshot.source`` of the models whose outputs are not as many as their records
            say; they and their copies are left out. Without it one of them is an error.

    Returns:
        The new generation.

    Raises:
        IndexDamagedError: Outputs of a model are missing, and there is no ``source``.
        OSError: It cannot be written; the current generation stays.
    """
    models = sorted(models, key=lambda model: model.repo)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".gen-*"):  # of a writer that was killed; there is only one writer at a time
        shutil.rmtree(leftover, ignore_errors=True)
    number = max((int(path.name[4:]) for path in root.glob("gen-*")), default=0) + 1
    target = root / f"gen-{number:06d}"
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    label_places: dict[str, int] = {}
    starts = [0]
    whole: list[Model] = []
    incomplete: list[Model] = []
    left_out = None if source is None else incomplete
    for model, arrays, output, labels in _parts(store, models, background, previous, changed, left_out):
        whole.append(model)
        for name in _ARRAYS:
            columns.setdefault(name, []).append(getattr(arrays, name))
        columns.setdefault("output", []).append(output)
        places = [-1 if label is None else label_places.setdefault(label, len(label_places)) for label in labels]
        columns.setdefault("label", []).append(np.asarray(places, dtype=np.int32))
        starts.append(starts[-1] + len(output))
    with new_folder(target) as folder:
        for name in (*_ARRAYS, "output", "label"):
            write_array(folder / f"{name}.npy", _joined(name, columns.get(name, []), store))
        meta = {
            "number": number,
            "background": background,
            "models": [model.model_dump(mode="json") for model in whole],
            "starts": starts,
            "labels": list(label_places),
            "copies": [
                copy.model_dump(mode="json", exclude_none=True)
                for model in whole
                for copy in (copies or {}).get(model.repo, ())
            ],
        }
        if source is not None:
            meta["source"] = dict(source(incomplete))
        write_json(folder / "meta.json", meta)
    write_atomic(root / "CURRENT", lambda file: file.write(target.name.encode()))
    for old in sorted(root.glob("gen-*"))[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    written = Snapshot.open(root)
    if written is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(root))
    return written


def _parts(
    store: OutputSource,
    models: Sequence[Model],
    background: str,
    previous: Snapshot | None,
    changed: frozenset[str],
    left_out: list[Model] | None,
) -> Iterator[tuple[Model, ScanArrays, npt.NDArray[np.int32], list[str | None]]]:
    known: dict[tuple[str, str, int], slice] = {}
    if previous is not None and previous.background == background:
        for i, model in enumerate(previous.models):
            rows = slice(int(previous.starts[i]), int(previous.starts[i + 1]))
            if model.repo not in changed:
                known[model.repo, model.revision, rows.stop - rows.start] = rows
    keys = [(model.repo, model.revision, model.outputs) for model in models]
    tables = store.iter_outputs([model for model, key in zip(models, keys, strict=True) if key not in known])
    waiting = next(tables, None)
    for model, key in zip(models, keys, strict=True):
        if previous is not None and key in known:
            rows = known[key]
            arrays = ScanArrays(**{name: getattr(previous.arrays, name)[rows] for name in _ARRAYS})
            labels = [previous.label_of(row) for row in range(rows.start, rows.stop)]
            yield model, arrays, previous.output[rows], labels
            continue
        table = empty_table(model.repo, model.revision, store.layout.top_r, store.layout.dimension)
        if waiting is not None and (waiting.repo, waiting.revision) == key[:2]:
            table, waiting = waiting, next(tables, None)
        if len(table) != model.outputs:
            if left_out is not None:
                left_out.append(model)
                continue
            raise IndexDamagedError(
                f"{model.repo} should have {model.outputs} outputs, the store has {len(table)}: add it again",
                model.repo,
            )
        yield (
            model,
            pack(table.idx, table.z, table.anchor, table.calibration),
            table.output.astype(np.int32),
            list(table.labels),
        )


def _joined(name: str, parts: list[npt.NDArray[np.generic]], store: OutputSource) -> npt.NDArray[np.generic]:
    if parts:
        return np.concatenate(parts)
    if name in {"output", "label"}:
        return np.zeros(0, np.int32)
    table = empty_table("", "", store.layout.top_r, store.layout.dimension)
    empty: npt.NDArray[np.generic] = getattr(pack(table.idx, table.z, table.anchor, table.calibration), name)
    return empty


def _current(root: Path) -> str | None:
    try:
        name = (root / "CURRENT").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise IndexDamagedError(f"the file {root / 'CURRENT'} cannot be read: {error}", root) from error
    if not name.startswith("gen-") or "/" in name:
        raise IndexDamagedError(f"the file {root / 'CURRENT'} is damaged: run 'hubhound index snapshot'", root)
    return name
