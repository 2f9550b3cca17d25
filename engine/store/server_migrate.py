"""Bringing an index on a server up to the format of this version; also what mends one.

Format 1 had neither sequence numbers of models nor holders and labelled of outputs. All of them follow from the
records, so that a migration reads no vectors and runs no model. Being killed in the middle costs nothing: the format
is written last, and running it again goes on. Nobody may write with the older version meanwhile.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine.errors import IndexMissingError
from engine.schema import ModelState
from engine.store import records
from engine.store.patience import Pace, Patience, patience_with
from engine.store.points import LABELLED, SEQ, plain_payload
from engine.store.server_client import Collections
from engine.store.server_config import FORMAT, OUR_MARK, read_metadata
from engine.store.server_models import ModelRecords

_PAGE = 1000


def migrate(
    client: QdrantClient,
    name: str,
    patience: Patience | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Gives an index the format of this version. One that has it gets what is missing or wrong: indexes, holders.

    Args:
        client: Of the server.
        name: Of the index.
        patience: With the server, None for what the environment says.
        progress: Called with (models done, models to do).

    Returns:
        The format that was found.

    Raises:
        IndexMissingError: There is no such index.
        IndexMismatchError: A newer version made it.
        StoreError: The collections are another project's, or the server refused or did not answer.
    """
    patience = patience or patience_with(client, name)
    on = Collections(client, name, patience)
    if not on.exists("models"):
        raise IndexMissingError(f"{patience.where}/{name}")
    metadata = on.metadata("models")
    facts = read_metadata(metadata, name, patience.where)
    for part in ("outputs", "models", "profiles"):
        if on.exists(part):
            on.index_payload(part)
            if part != "models":
                on.set_metadata(part, {OUR_MARK: part})
    _label(on)
    _number(on, progress)
    identity = facts.identity or str(uuid.uuid4())
    fresh = {OUR_MARK: "models", "format": FORMAT, "identity": identity, **dataclasses.asdict(facts.layout)}
    if {key: metadata.get(key) for key in fresh} != fresh:
        on.set_metadata("models", fresh)
    return facts.format


def _label(on: Collections) -> None:
    """Says of every output whether it has a label."""
    pace = Pace(_PAGE)
    unknown = qm.Filter(must=[qm.IsEmptyCondition(is_empty=qm.PayloadField(key=LABELLED))])
    waiting: list[tuple[str, bool]] = []
    for record in on.scroll("outputs", unknown, [records.LABEL], False, Pace(_PAGE)):
        waiting.append((str(record.id), (record.payload or {}).get(records.LABEL) is not None))
        if len(waiting) == _PAGE:
            on.patience.each("write to", waiting, pace, lambda some: _set_labelled(on, some))
            waiting = []
    on.patience.each("write to", waiting, pace, lambda some: _set_labelled(on, some))


def _set_labelled(on: Collections, some: Sequence[tuple[str, bool]]) -> None:
    for labelled in (True, False):
        ids: list[Any] = [point_id for point_id, has in some if has == labelled]
        if ids:
            on.client.set_payload(on.of("outputs"), {LABELLED: labelled}, points=ids, wait=True)


def _number(on: Collections, progress: Callable[[int, int], None] | None) -> None:
    """Numbers the models that have no number, and writes the holders of the others anew."""
    models = ModelRecords(on)
    total = models.count()
    unnumbered: dict[str, dict[str, Any]] = {}
    others: list[str] = []
    done = 0

    def write() -> None:
        nonlocal done
        models.write(unnumbered)
        models.set_holders(others)
        done += len(unnumbered) + len(others)
        unnumbered.clear()
        others.clear()
        if progress:
            progress(done, max(done, total))

    for record in on.scroll("models", None, True, False, Pace(_PAGE)):
        payload = record.payload or {}
        if SEQ not in payload:
            unnumbered[payload[records.REPO]] = plain_payload(payload)
        elif payload.get("state") == ModelState.INDEXED.value:
            others.append(payload[records.REPO])
        if len(unnumbered) + len(others) >= _PAGE:
            write()
    write()
