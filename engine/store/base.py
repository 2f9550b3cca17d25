"""The interface that every store has, and the layout of its records."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.outputs import OutputTable
from engine.schema import Model, Performance, Profile, Task
from engine.store.knowledge import KIND, MODEL, NAME, PERFORMANCE_KIND, PROFILE_KIND, TASK, TASK_KIND, Known


@dataclass(frozen=True)
class StoreLayout:
    """What the vectors of a store are made of; fixed when the store is created.

    Attributes:
        probes: n, the number of probes; sparse dimensions are 0..2n+1.
        top_r: r, kept probes per output.
        dimension: d, the encoder's; the dense vector has d + 1.
        method: The default method, which the vectors serve (``distance.METHODS``).
    """

    probes: int
    top_r: int
    dimension: int
    method: str = "whitened"


@dataclass(frozen=True)
class StoreHit:
    """One answer of a store's own index: a candidate, not a calibrated result."""

    repo: str
    revision: str
    output: int
    score: float


Part = Literal["outputs", "models", "profiles"]
"""The collections of a store."""


class StoredPoint(NamedTuple):
    """A record as it lies in a store, to be copied verbatim.

    Attributes:
        id: A UUID.
        payload: JSON, without what a server adds to search by (``points.SERVER_FIELDS``).
        indices: Dimensions of the sparse vector, ascending; of outputs only, like the next two.
        values: Its values, each a float32.
        dense: The dense vector, each a float32.
    """

    id: str
    payload: dict[str, Any]
    indices: list[int]
    values: list[float]
    dense: list[float]


@dataclass(frozen=True)
class StoreFilter:
    """Conditions that a server applies: an output is allowed if one of its holders satisfies all of them.

    The holders of an output are its model and the copies of that. While facts of models change, a server may let
    through an output too many, never one too few: look at the records of what it answers.

    Attributes:
        texts: Allowed values in lower case by field, any of them: ``model``, ``library``, ``licence``,
            ``architecture``.
        max_parameters: Most parameters; models whose number is unknown are not allowed. None: no condition.
        min_downloads: Fewest downloads; likewise.
        labelled: Outputs with a declared label, or those without. None: no condition.
    """

    texts: Mapping[str, tuple[str, ...]]
    max_parameters: float | None = None
    min_downloads: float | None = None
    labelled: bool | None = None


@dataclass(frozen=True)
class Written:
    """What a write to a model's record did in a store that several write to at once.

    Attributes:
        before: The record that it replaced or left as it was, None if there was none.
        replaced: Number of that one, or of the removal that is there instead; 0 if there was neither.
        seq: Number of the record that was written, 0 if none was.
    """

    before: Model | None
    replaced: int
    seq: int


@runtime_checkable
class Shared(Protocol):
    """A store that several write to at once.

    Every change of a model's record has a number, and every output one that is greater than those of all changes before
    it was written. Two rules keep the outputs of every model that counts where they are, whoever writes what and when:

    * Outputs are removed only by who has seen a record of their model that does not name their revision, and only if
      they were written before that record.
    * Who writes a record makes sure that its outputs were written after the record that it replaces, and writes them
      again if not.
    """

    def stamp(self) -> int:
        """A number for what is written now, greater than those of all changes before."""

    def write_model(self, model: Model) -> Written:
        """Writes a model's record, replacing any other revision's; acknowledged when it returns."""

    def change_model(self, repo: str, change: Callable[[Model | None], Model | None]) -> Written:
        """Writes a model's record in view of the one that is there: nobody else's comes in between.

        Args:
            repo: Of the model.
            change: Given the record, None if there is none: the one to be written, or None to leave it as it is. It is
                called again if another writer was quicker.
        """

    def remove_model(self, repo: str) -> Written:
        """Says that a model is gone; does nothing if there is neither a record nor any output of it."""

    def standing(self, repo: str) -> tuple[Model | None, int]:
        """A repository's record and its number; None and the number of its removal, or 0 if it was never there."""

    def count_revision(self, repo: str, revision: str, since: int = 0) -> int:
        """Number of a repository's outputs of one revision that were written after the change with a number."""

    def clear(self, repo: str, keep_revision: str | None, before: int) -> None:
        """Removes a repository's outputs that were written before the change with a number, but for one revision's."""

    def mixed(self, fingerprint: str) -> list[Model]:
        """The models whose records name a background, while some of their outputs have constants of another one."""


class DescriptorStore(abc.ABC):
    """Keeps models, their outputs and what is known about tasks durably: what is acknowledged survives a kill.

    Outputs and models are separate collections. An output counts only if its model's record names the same revision:
    writing outputs first and the model's record last makes a replacement visible at once, and an interrupted one
    invisible.

    Tasks, profiles and known performance are a third collection (:mod:`engine.store.knowledge`). It is made when the
    first of them is written; until then there is nothing to be read.
    """

    layout: StoreLayout

    @abc.abstractmethod
    def upsert_outputs(self, table: OutputTable) -> None:
        """Writes the outputs of one model; acknowledged when it returns. Writing them again changes nothing.

        Raises:
            IndexMismatchError: They were made with another r, encoder dimension or probe set than the layout's.
        """

    @abc.abstractmethod
    def upsert_model(self, model: Model) -> None:
        """Writes a model's record, replacing any other revision's; acknowledged when it returns."""

    @abc.abstractmethod
    def models(self) -> list[Model]:
        """All model records, ordered by repository id."""

    @abc.abstractmethod
    def model(self, repo: str) -> Model | None:
        """The record of one repository, None if there is none."""

    @abc.abstractmethod
    def copies(self, repo: str) -> list[Model]:
        """The records that name a repository as their original, ordered by id, whether it is there or not."""

    @abc.abstractmethod
    def outputs(self, repo: str, revision: str) -> OutputTable | None:
        """The outputs of one model, by ascending output; None if there are none.

        Bit for bit what was written, except the anchor, which the store keeps divided by a scale: each component is
        within a relative 1e-6 (two roundings to float32).
        """

    def iter_outputs(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        """The outputs of many models, one table a model in the order given; models without outputs are skipped."""
        for model in models:
            table = self.outputs(model.repo, model.revision)
            if table is not None:
                yield table

    @abc.abstractmethod
    def delete_outputs(self, repo: str, keep_revision: str | None = None) -> None:
        """Removes a repository's outputs, except those of one revision."""

    @abc.abstractmethod
    def delete_model(self, repo: str) -> None:
        """Removes a repository's record."""

    @abc.abstractmethod
    def count_outputs(self) -> int:
        """Number of outputs stored, including any that no model's record claims."""

    @abc.abstractmethod
    def count(self, part: Part) -> int:
        """Number of records that :meth:`stored` would yield."""

    @abc.abstractmethod
    def stored(self, part: Part, after: str | None = None, repos: Sequence[str] | None = None) -> Iterator[StoredPoint]:
        """The records of one collection as they are, by ascending id.

        What a server adds to search by is left out, so that two stores with the same content yield the same.

        Args:
            part: Which collection.
            after: Only ids greater than this one.
            repos: Only records of these repositories, of outputs and models; None for all.
        """

    @abc.abstractmethod
    def restore(self, part: Part, points: Sequence[StoredPoint]) -> None:
        """Writes what :meth:`stored` of this or another store yielded, verbatim; acknowledged when it returns.

        Writing it again changes nothing. Write outputs before models, as when indexing.

        Raises:
            StoreError: It cannot be written, or a point is not of that part.
        """

    @abc.abstractmethod
    def upsert_knowledge(self, records: Sequence[Known]) -> None:
        """Writes tasks, profiles and performance, each in place of what has its id; acknowledged when it returns.

        They come back bit for bit. To copy a store's knowledge, write the other's :meth:`knowledge`.
        """

    def knowledge(self) -> list[Known]:
        """All tasks by name, then all profiles and all performance by model and task."""
        return self._knowledge({})

    def tasks(self) -> list[Task]:
        """All tasks by name."""
        return [record for record in self._knowledge({KIND: TASK_KIND}) if isinstance(record, Task)]

    def profiles(self, model: str | None = None, task: str | None = None) -> list[Profile]:
        """The profiles by model and task: of one model, on one task, or all.

        Args:
            model: As it was named.
            task: Name of the task.
        """
        given = {field: value for field, value in {MODEL: model, TASK: task}.items() if value is not None}
        found = self._knowledge({KIND: PROFILE_KIND, **given})
        return [record for record in found if isinstance(record, Profile)]

    def performance(self) -> list[Performance]:
        """All known performance by model and task."""
        return [record for record in self._knowledge({KIND: PERFORMANCE_KIND}) if isinstance(record, Performance)]

    def delete_task(self, name: str) -> None:
        """Removes a task and its profiles; performance stays, it does not depend on the sample."""
        # The profiles first: a kill in between leaves a task without profiles, not profiles of nothing.
        self._delete_knowledge({KIND: PROFILE_KIND, TASK: name})
        self._delete_knowledge({KIND: TASK_KIND, NAME: name})

    def delete_profiles(self, model: str) -> None:
        """Removes the profiles of one model."""
        self._delete_knowledge({KIND: PROFILE_KIND, MODEL: model})

    def delete_performance(self, model: str | None = None, task: str | None = None) -> None:
        """Removes what is known of one model, of one task, of one model on one task, or of all."""
        where = {MODEL: model, TASK: task}
        self._delete_knowledge({KIND: PERFORMANCE_KIND, **{key: value for key, value in where.items() if value}})

    @abc.abstractmethod
    def _knowledge(self, where: Mapping[str, str]) -> list[Known]:
        """The records whose payload fields have these values, in ``known_order``."""

    @abc.abstractmethod
    def _delete_knowledge(self, where: Mapping[str, str]) -> None:
        """Removes the records whose payload fields have these values."""

    @abc.abstractmethod
    def query_local(
        self,
        indices: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        limit: int,
        threshold: float | None = None,
    ) -> list[StoreHit]:
        """Largest inner products of a sparse query with the scaled linear form (the local part).

        Args:
            indices: Dimensions of the query (``records.local_query``).
            values: Their values.
            limit: Most hits.
            threshold: Only scores above it, None for all. Scores are float32 and so is the comparison: an output whose
                margin is within rounding (1e-4) of the threshold may be on either side of it.
        """

    @abc.abstractmethod
    def query_global(self, vector: npt.NDArray[np.float32], limit: int) -> list[StoreHit]:
        """Largest inner products of a dense query ``[d + 1]`` with ``records.global_documents`` (the global part)."""

    @abc.abstractmethod
    def global_scores(self, hits: Sequence[StoreHit], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The scores that :meth:`query_global` gives known outputs, float32, in the order of the hits.

        An output that is no longer there has the score -inf.
        """

    @abc.abstractmethod
    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """Some outputs as they were written, as :meth:`outputs` reads them back.

        Args:
            hits: Which outputs; those that are no longer there are left out.
            anchors: Read the anchors, too; without them the tables' ``anchor`` is ``[m, 0]``.

        Returns:
            A table a model and revision, ordered by them, with its outputs ascending.
        """

    @abc.abstractmethod
    def optimize(self) -> None:
        """Merges segments and builds indexes; may take long, changes no answer.

        Meant for the end of a run, and every few hundred thousand outputs of a long one.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Brings everything acknowledged to the disk, so that a power cut cannot take it back either."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flushes and releases the store; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
