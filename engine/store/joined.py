"""Which models of an index on a server have vectors in its collection of candidates.

A model's record on the server names, in the field ``joined``, the collection that has the vectors of this very
revision. It is set after they are there, and a record that is written anew keeps it only where the revision stays. So
one request tells how many models are missing, whoever wrote them: a crawl that did not know of the candidates yet, or
one that worked while the index had another background, for which no candidates were kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from qdrant_client import models as qm

from engine.schema import Model, ModelState
from engine.store import records
from engine.store.patience import Pace
from engine.store.points import JOINED, REMOVED, STATE, plain_payload
from engine.store.server_client import Collections, equal_all, equals

_PART = "models"
_AT_ONCE = 256  # records marked in a request
_PAGE = 1000


class JoinedModels:
    """The models that one collection of candidates has.

    Args:
        on: The collections of the index.
        made: Identity of that collection.
    """

    def __init__(self, on: Collections, made: str) -> None:
        self._on = on
        self._made = made
        self._pace = Pace(_AT_ONCE)
        self._page = Pace(_PAGE)

    def index(self) -> None:
        """Has the server index the field, without which counting would read every record.

        Raises:
            StoreError: The server refused or did not answer.
        """
        name, field = self._on.of(_PART), qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            self._on.patience.call(
                "create", lambda: self._on.client.create_payload_index(name, JOINED, field, wait=True)
            )

    def mark(self, models: Sequence[tuple[str, str]]) -> None:
        """Says of models, by repository and revision, that their vectors are there; of other revisions nothing.

        Raises:
            StoreError: The server refused or did not answer.
        """
        operations = [
            _setting(self._made, equal_all({records.REPO: repo, records.REVISION: revision}))
            for repo, revision in models
        ]
        name = self._on.of(_PART)
        self._on.patience.each(
            "write to",
            operations,
            self._pace,
            lambda part: self._on.client.batch_update_points(name, list(part), wait=True),
        )

    def unmark(self, where: qm.Filter) -> None:
        """Says of the models that a filter selects that their vectors are not there.

        Raises:
            StoreError: The server refused or did not answer.
        """
        name = self._on.of(_PART)
        self._on.patience.call(
            "write to", lambda: self._on.client.batch_update_points(name, [_setting("", where)], wait=True)
        )

    def missing(self) -> int:
        """How many models of the index have no vectors there.

        Raises:
            StoreError: The server refused or did not answer.
        """
        return self._on.count(_PART, self._unmarked())

    def missing_models(self) -> Iterator[Model]:
        """Their records.

        Raises:
            StoreError: The server refused or did not answer.
        """
        for record in self._on.scroll(_PART, self._unmarked(), True, False, self._page):
            yield records.model_record(plain_payload(record.payload))

    def share(self) -> float:
        """The share of the index's models that have vectors there, 0..1.

        Raises:
            StoreError: The server refused or did not answer.
        """
        missing = self.missing()
        return 1 - missing / max(missing, self._on.count(_PART, _indexed())) if missing else 1.0

    def _unmarked(self) -> qm.Filter:
        return _indexed(equals(JOINED, self._made))


def _setting(made: str, where: qm.Filter) -> qm.SetPayloadOperation:
    return qm.SetPayloadOperation(set_payload=qm.SetPayload(payload={JOINED: made}, filter=where))


def _indexed(*without: qm.Condition) -> qm.Filter:
    """Records of models that have outputs and do not fulfil some conditions."""
    gone = qm.FieldCondition(key=REMOVED, match=qm.MatchValue(value=True))
    return qm.Filter(must=[equals(STATE, ModelState.INDEXED.value)], must_not=[gone, *without])
