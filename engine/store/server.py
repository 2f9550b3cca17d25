"""The store on a Qdrant server or cluster: the same records as the embedded one, in three collections.

``NAME_outputs`` has a point an output (:mod:`engine.store.records`), ``NAME_models`` a point a model
(:mod:`engine.store.server_models`), ``NAME_profiles`` a point a task, profile or performance
(:mod:`engine.store.knowledge`); how they are made stands in :mod:`engine.store.server_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine.errors import HubhoundError, IndexMismatchError, IndexMissingError, StoreError, one_line
from engine.outputs import OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.address import connect
from engine.store.base import DescriptorStore, Part, StoredPoint, StoreFilter, StoreHit, StoreLayout, Written
from engine.store.knowledge import Known
from engine.store.patience import Pace, Patience, patience_with
from engine.store.points import CALIBRATION, REMOVED, check_points, plain_payload, stored_output
from engine.store.server_client import Collections
from engine.store.server_config import (
    FORMAT,
    OUR_MARK,
    PARTS,
    ServerChoices,
    StoreFacts,
    new_metadata,
    outputs_options,
    plain_options,
    read_metadata,
)
from engine.store.server_knowledge import KnowledgePoints
from engine.store.server_models import LEAVE, Change, ModelRecords, Payload
from engine.store.server_outputs import Held, OutputPoints
from engine.store.server_query import OutputQueries, server_filter

__all__ = ["Change", "ServerChoices", "ServerStore", "connect"]

T = TypeVar("T")

_PAGE = 1000
"""Records in one answer at best."""


class ServerStore(DescriptorStore):
    """The store on a server; made by :meth:`create` or :meth:`open`. It closes its client.

    Several may write at once: the points of one model are the same whoever writes them, and the records of models are
    numbered so that no change escapes who follows them (:mod:`engine.store.server_models`).

    Args:
        client: Of the server.
        name: Prefix of its collections.
        facts: What the metadata say.
        patience: With the server.
    """

    def __init__(self, client: QdrantClient, name: str, facts: StoreFacts, patience: Patience) -> None:
        self.layout = facts.layout
        self.identity = facts.identity
        self.client = client
        self.name = name
        self._patience = patience
        self._on = Collections(client, name, patience)
        self._records = ModelRecords(self._on)
        self._outputs = OutputPoints(self._on, facts.layout, self._records)
        self._queries = OutputQueries(self._on, facts.layout)
        self._known = KnowledgePoints(self._on)
        self._page = Pace(_PAGE)

    @classmethod
    def create(
        cls,
        client: QdrantClient,
        name: str,
        layout: StoreLayout,
        choices: ServerChoices | None = None,
        patience: Patience | None = None,
    ) -> Self:
        """Makes the collections of an empty store.

        Args:
            client: Of the server.
            name: Prefix of the collections.
            layout: What its vectors are made of.
            choices: How they are spread over a cluster.
            patience: With the server, None for what the environment says.

        Raises:
            StoreError: There is such a store already, a collection of that name is another project's, or the server
                refused or did not answer.
        """
        patience = patience or patience_with(client, name)
        choices = choices or ServerChoices()
        choices.check(patience.where)
        on = Collections(client, name, patience)
        if on.exists("models", "create"):
            read_metadata(on.metadata("models", "create"), name, patience.where)
            raise on.taken()
        if not on.remove_leftover("outputs", layout.dimension + 1):
            made = on.create("outputs", outputs_options(layout), choices, {OUR_MARK: "outputs"})
            if made and not on.metadata("outputs", "create"):
                patience.call("create", lambda: client.delete_collection(on.of("outputs")))
                raise StoreError(
                    f"the Qdrant server at {patience.where} is too old: it must be 1.16 or newer", patience.where
                )
        else:
            on.index_payload("outputs")
        for part in ("profiles", "files", "joint"):
            on.remove_leftover(part)
        metadata = new_metadata(layout)
        on.create("models", plain_options(), _one_shard(choices), metadata)
        facts = read_metadata(on.metadata("models", "create"), name, patience.where)
        if facts.identity != metadata["identity"]:  # another creation was quicker
            raise on.taken()
        return cls(client, name, facts, patience)

    @classmethod
    def open(cls, client: QdrantClient, name: str, patience: Patience | None = None) -> Self:
        """Opens a store.

        Args:
            client: Of the server.
            name: Prefix of the collections.
            patience: With the server, None for what the environment says.

        Raises:
            IndexMissingError: There is no such store.
            IndexMismatchError: Another version of the code made it.
            StoreError: The collections are another project's, or the server refused or did not answer.
        """
        patience = patience or patience_with(client, name)
        on = Collections(client, name, patience)
        if not on.exists("models"):
            raise IndexMissingError(f"{patience.where}/{name}")
        facts = read_metadata(on.metadata("models"), name, patience.where)
        if facts.format != FORMAT:
            message = (
                f"the index {name} at {patience.where} has format {facts.format}, this version needs {FORMAT}: "
                "run 'hubhound index migrate --index' with its address"
            )
            raise IndexMismatchError(message, "store format", FORMAT, facts.format)
        on.index_payload("models")  # what a creation that was killed at the very end left to do
        return cls(client, name, facts, patience)

    def identity_now(self) -> str:
        """Identity of the store that has this name now: another one if it was deleted and made again since."""
        return str(self._on.metadata("models", "read").get("identity") or "")

    def destroy(self) -> None:
        """Deletes all collections of the index from the server, whatever they hold; those of others stay."""
        for part in PARTS:
            self._on.delete(part)

    def call(self, doing: str, request: Callable[[], T]) -> T:
        """The answer to a request of one's own to this server, repeated until there is one.

        Args:
            doing: What is being done, to read as "cannot DOING the index NAME at URL".
            request: Uses :attr:`client`; it may be executed any number of times.

        Raises:
            StoreError: It was refused, or failed for longer than the deadline; one line.
        """
        return self._patience.call(doing, request)

    def upsert_outputs(self, table: OutputTable) -> None:
        """See :meth:`DescriptorStore.upsert_outputs`.

        Outputs that are written again keep their holders, if the model's record is there already.
        """
        try:
            records.check_table(table, self.layout)
        except ValueError as error:
            raise StoreError(f"cannot write to the index {self.name}: {one_line(str(error))}", self._where) from error
        self._outputs.write(table)

    def upsert_model(self, model: Model) -> None:
        """See :meth:`DescriptorStore.upsert_model`."""
        self.write_model(model)

    def write_model(self, model: Model) -> Written:
        """See :meth:`Shared.write_model`."""
        return self._records.change(model.repo, lambda _: records.model_payload(model))

    def change_model(self, repo: str, change: Callable[[Model | None], Model | None]) -> Written:
        """See :meth:`Shared.change_model`."""

        def payload(before: Model | None) -> Payload:
            after = change(before)
            return LEAVE if after is None else records.model_payload(after)

        return self._records.change(repo, payload)

    def remove_model(self, repo: str) -> Written:
        """See :meth:`Shared.remove_model`."""
        return self._records.change(
            repo, lambda before: LEAVE if before is None and not self._outputs.any_of(repo) else None
        )

    def standing(self, repo: str) -> tuple[Model | None, int]:
        """See :meth:`Shared.standing`."""
        return self._records.standing(repo)

    def stamp(self) -> int:
        """See :meth:`Shared.stamp`."""
        return self._records.stamp()

    def models(self) -> list[Model]:
        """See :meth:`DescriptorStore.models`."""
        return sorted(self._records.scroll(), key=lambda model: model.repo)

    def model(self, repo: str) -> Model | None:
        """See :meth:`DescriptorStore.model`."""
        return self._records.of([repo]).get(repo)

    def records_of(self, repos: Sequence[str]) -> dict[str, Model]:
        """The records of some repositories in few requests, without those that have none."""
        return self._records.of(repos)

    def copies(self, repo: str) -> list[Model]:
        """See :meth:`DescriptorStore.copies`."""
        return list(self._records.copies_of([repo]).get(repo, ()))

    def copies_of(self, repos: Sequence[str]) -> dict[str, tuple[Model, ...]]:
        """The records that name some repositories as their original, by original; those without are left out."""
        return self._records.copies_of(repos)

    def calibrated_otherwise(self, fingerprint: str) -> bool:
        """Whether a model that counts has outputs whose constants were made with another background.

        Args:
            fingerprint: Of the background.
        """
        return self._records.calibrated_otherwise(fingerprint) or bool(self.mixed(fingerprint))

    def mixed(self, fingerprint: str) -> list[Model]:
        """See :meth:`Shared.mixed`."""
        return self._outputs.mixed(fingerprint)

    def count_shown(self) -> int:
        """Number of models that are indexed or copies of others."""
        return self._records.count_shown()

    def newest(self) -> int:
        """The largest number of a change, 0 if nothing ever was written."""
        return self._records.newest()

    def changes(self, since: int) -> Iterator[Change]:
        """The models that changed since a number, by ascending number; see :class:`Change`."""
        return self._records.changes(since)

    def outputs(self, repo: str, revision: str) -> OutputTable | None:
        """See :meth:`DescriptorStore.outputs`."""
        return next(self._queries.outputs_of([Model(repo=repo, revision=revision)]), None)

    def outputs_of(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        """The outputs of many models in few requests, one table a model in the order given.

        Models whose revision is gone are left out.
        """
        return self._queries.outputs_of(models)

    def iter_outputs(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        """See :meth:`DescriptorStore.iter_outputs`."""
        return self._queries.outputs_of(models)

    def delete_outputs(self, repo: str, keep_revision: str | None = None) -> None:
        """See :meth:`DescriptorStore.delete_outputs`."""
        self._outputs.clear(repo, keep_revision, None)

    def clear(self, repo: str, keep_revision: str | None, before: int) -> None:
        """See :meth:`Shared.clear`."""
        self._outputs.clear(repo, keep_revision, before)

    def count_revision(self, repo: str, revision: str, since: int = 0) -> int:
        """See :meth:`Shared.count_revision`."""
        return self._outputs.count_revision(repo, revision, since)

    def held(self, progress: Callable[[int], None] | None = None) -> dict[tuple[str, str], Held]:
        """How many outputs there are of which revisions; see :meth:`OutputPoints.held`."""
        return self._outputs.held(progress)

    def delete_model(self, repo: str) -> None:
        """See :meth:`DescriptorStore.delete_model`. A record stays that says that the model is gone."""
        if not self.remove_model(repo).seq:
            self._records.mend(repo)

    def count_outputs(self, where: StoreFilter | None = None) -> int:
        """See :meth:`DescriptorStore.count_outputs`; ``where`` counts the outputs that satisfy conditions."""
        return self._on.count("outputs", server_filter(where))

    def count(self, part: Part) -> int:
        """See :meth:`DescriptorStore.count`."""
        if part == "models":
            return self._records.count()
        return self._on.count(part) if part != "profiles" or self._on.exists(part, "read") else 0

    def stored(self, part: Part, after: str | None = None, repos: Sequence[str] | None = None) -> Iterator[StoredPoint]:
        """See :meth:`DescriptorStore.stored`."""
        if part == "profiles" and not self._on.exists(part, "read"):
            return
        where = None
        wrong: dict[str | None, set[str]] = {}
        if repos is not None:
            where = qm.Filter(must=[qm.FieldCondition(key=records.REPO, match=qm.MatchAny(any=list(repos)))])
        for record in self._on.scroll(part, where, True, part == "outputs", self._page, after):
            if part == "outputs":
                vectors: Any = record.vector
                local = vectors[records.LOCAL]
                yield stored_output(
                    str(record.id), record.payload, local.indices, local.values, vectors[records.GLOBAL]
                )
            elif not (record.payload or {}).get(REMOVED):
                payload = plain_payload(record.payload)
                if part == "models" and (claimed := payload.get(CALIBRATION)) is not None:
                    if claimed not in wrong:
                        wrong[claimed] = {model.repo for model in self.mixed(claimed)}
                    if payload[records.REPO] in wrong[claimed]:  # a copy of its outputs does not say it any more
                        del payload[CALIBRATION]
                yield StoredPoint(str(record.id), payload, [], [], [])

    def restore(self, part: Part, points: Sequence[StoredPoint]) -> None:
        """See :meth:`DescriptorStore.restore`."""
        if not points:
            return
        check_points(part, points, self._where)
        if part == "models":
            self._records.write({point.payload["repo"]: point.payload for point in points})
        elif part == "profiles":
            self._known.restore(points)
        else:
            self._outputs.restore(points)

    def upsert_knowledge(self, records: Sequence[Known]) -> None:
        """See :meth:`DescriptorStore.upsert_knowledge`."""
        self._known.write(records)

    def _knowledge(self, where: Mapping[str, str]) -> list[Known]:
        return self._known.read(where)

    def _delete_knowledge(self, where: Mapping[str, str]) -> None:
        self._known.remove(where)

    def query_local(
        self,
        indices: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        limit: int,
        threshold: float | None = None,
        where: StoreFilter | None = None,
    ) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_local`; ``where`` limits it to outputs that satisfy conditions."""
        query = qm.SparseVector(indices=indices.tolist(), values=values.tolist())
        return self._queries.query(query, records.LOCAL, limit, threshold, where)

    def query_global(
        self, vector: npt.NDArray[np.float32], limit: int, where: StoreFilter | None = None
    ) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_global`; ``where`` limits it to outputs that satisfy conditions."""
        return self._queries.query(vector.tolist(), records.GLOBAL, limit, where=where)

    def global_scores(self, hits: Sequence[StoreHit], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See :meth:`DescriptorStore.global_scores`."""
        return self._queries.global_scores(hits, vector)

    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """See :meth:`DescriptorStore.rows`."""
        return self._queries.rows(hits, anchors)

    def distinct(self, field: str, limit: int = 10_000) -> list[str] | None:
        """The values, in lower case and in order, that holders of outputs have in a field.

        Args:
            field: ``model``, ``library``, ``licence`` or ``architecture``.
            limit: Most values.

        Returns:
            The values, including any of outputs that no longer count; None if there are more than the limit.
        """
        return self._queries.distinct(field, limit)

    def optimize(self) -> None:
        """Nothing to do: a server optimises on its own."""

    def flush(self) -> None:
        """Nothing to do: a server acknowledges what is in its log, and flushes on its own."""

    def close(self) -> None:
        """Closes the client."""
        try:
            self.client.close()
        except HubhoundError:
            raise
        except Exception as error:
            raise StoreError(f"cannot close the index {self.name}: {one_line(str(error))}", self._where) from error

    @property
    def _where(self) -> str:
        return self._patience.where


def _one_shard(choices: ServerChoices) -> ServerChoices:
    """Of the models: one shard, so that their changes have one order, written to most of its copies."""
    return ServerChoices(1, choices.replicas, max(choices.write_consistency, choices.replicas // 2 + 1))
