"""How many of the best outputs are among a graph's candidates: measured against the exact scan, and kept.

The concepts are ones that the code was not fitted to and that are not in the background. For each the k best outputs of
the whole index are found exactly; recall at k is the share of them, on average, that is among the candidates that a
search for k hits asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from engine.descriptors import ConceptDescriptors
from engine.distance import Method
from engine.errors import IndexDamagedError
from engine.files import read_json, write_json
from engine.outputs import Calibration, OutputTable
from engine.scan import pack, top_k
from engine.schema import Record

FOLDER = "joint"
"""Of an index: what belongs to candidates."""
CODE_FILE = "joint/code.npz"
RECALL_FILE = "joint/recall.json"

NEEDED = 0.99
"""Recall from which candidates may stand for a search over everything."""

DEPTHS = (10, 100)
"""k for which recall is measured."""

LEAST = 100
"""Candidates asked for at least."""

OVERSAMPLING = 5
"""Candidates asked for each hit that is wanted, unless chosen otherwise."""

BREADTHS = (512, 1024, 2048, 4096)
"""How many outputs the graph keeps in hand while it is searched (``hnsw_ef``); the first that is enough is used."""

Key = tuple[str, str, int]
"""An output: repository, revision, place in the model's answer."""

Ask = Callable[[int, int, int], Sequence[Key]]
"""Candidates for a concept: ``(concept, how many, breadth)``."""

Storage = Literal["float32", "float16", "int8"]

_BATCH = 20_000  # outputs compared at once


def candidates_wanted(k: int, oversampling: float) -> int:
    """How many candidates a search for k hits asks for."""
    return max(LEAST, int(np.ceil(k * oversampling)))


class JointRecall(Record):
    """What was measured when candidates were made."""

    format: Literal[1] = 1
    code: str = Field(description="Fingerprint of the code.")
    storage: Storage = Field(description="Numbers that the graph compares.")
    outputs: int = Field(ge=0, description="In the collection.")
    in_graph: int = Field(ge=0, description="Of these, those that the graph has; the others are compared one by one.")
    overlong: int = Field(ge=0, description="Of these, those longer than the code expects.")
    concepts: int = Field(ge=1, description="Held-out ones that were asked.")
    oversampling: float = Field(gt=0, description="Candidates asked for each hit.")
    breadth: int = Field(ge=1, description="hnsw_ef of every search.")
    recall: dict[str, float] = Field(description="By k, at that oversampling and breadth.")
    by_breadth: dict[str, dict[str, float]] = Field(description="The same at every breadth that was tried.")
    measured_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def sufficient(self) -> bool:
        """Whether recall is 0.99 at every k that was measured."""
        return bool(self.recall) and min(self.recall.values()) >= NEEDED

    @classmethod
    def read(cls, folder: Path) -> JointRecall | None:
        """Of an index; None if no candidates were made.

        Raises:
            IndexDamagedError: The file cannot be read.
        """
        path = folder / RECALL_FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            message = f"the index file {path} is damaged: make it again with 'hubhound index candidates'"
            raise IndexDamagedError(message, path) from error

    def write(self, folder: Path) -> None:
        """Puts it into an index's folder.

        Raises:
            OSError: It cannot be written.
        """
        write_json(folder / RECALL_FILE, self.model_dump(mode="json"))


class ExactTop:
    """The exact best outputs for some concepts, from tables that come one after another.

    Args:
        concepts: c concepts.
        k: How many for each.
        method: Of the margins.
    """

    def __init__(self, concepts: ConceptDescriptors, k: int, method: Method) -> None:
        self._concepts = concepts
        self._k = k
        self._method = method
        self._best: list[list[tuple[float, Key]]] = [[] for _ in range(len(concepts))]
        self._waiting: list[OutputTable] = []

    def add(self, table: OutputTable) -> None:
        """Compares the outputs of one more model, now or with some others."""
        if len(table):
            self._waiting.append(table)
        if sum(map(len, self._waiting)) >= _BATCH:
            self._compare()

    def best(self) -> list[list[Key]]:
        """The best of all so far, best first, equal ones by name; one list a concept."""
        self._compare()
        return [[key for _, key in some] for some in self._best]

    def _compare(self) -> None:
        if not self._waiting:
            return
        tables, self._waiting = self._waiting, []
        keys = [(table.repo, table.revision, output) for table in tables for output in table.output.tolist()]
        idx, z, anchor = (np.concatenate([getattr(t, name) for t in tables]) for name in ("idx", "z", "anchor"))
        constants = {
            field.name: np.concatenate([getattr(table.calibration, field.name) for table in tables])
            for field in fields(Calibration)
        }
        arrays = pack(idx, z, anchor, Calibration(**constants))
        found = top_k(arrays, self._concepts, self._k, self._method, threads=1)
        for c, (rows, margins) in enumerate(found):
            new = [(margin, keys[row]) for row, margin in zip(rows.tolist(), margins.tolist(), strict=True)]
            self._best[c] = sorted([*self._best[c], *new], key=lambda one: (-one[0], one[1]))[: self._k]


def measure(best: Sequence[Sequence[Key]], ask: Ask, oversampling: float, breadth: int) -> dict[str, float]:
    """Recall at every depth that there are outputs for.

    Args:
        best: The exact best outputs, one list a concept, at least as many as the largest depth where there are so many.
        ask: Finds candidates.
        oversampling: Candidates asked for each hit.
        breadth: Of the search.

    Returns:
        By k, a share from 0 to 1, rounded down to a ten-thousandth.
    """
    recall = {}
    for k in DEPTHS:
        wanted = candidates_wanted(k, oversampling)
        shares = []
        for c, true in enumerate(best):
            if true:
                found = set(ask(c, wanted, breadth))
                shares.append(sum(key in found for key in true[:k]) / len(true[:k]))
        if shares:
            recall[str(k)] = float(np.floor(np.mean(shares) * 10_000) / 10_000)
    return recall


def measured(
    best: Sequence[Sequence[Key]], ask: Ask, oversampling: float
) -> tuple[int, Mapping[int, dict[str, float]]]:
    """The least breadth whose recall is enough, or the largest; and recall at all that were tried."""
    tried: dict[int, dict[str, float]] = {}
    for breadth in BREADTHS:
        tried[breadth] = measure(best, ask, oversampling, breadth)
        if tried[breadth] and min(tried[breadth].values()) >= NEEDED:
            break
    return max(tried), tried
