"""The records of models on a server: numbered in the order of their changes, and repeated on their outputs.

**Sequence numbers.** Whoever keeps a copy of the index asks for the changes since the largest number it has seen. So no
record may appear under a number that somebody may already have passed. A writer therefore

1. asks for the newest number and takes a greater one, not below its clock in microseconds;
2. writes the record, unless the one there has a number as great (then another writer was quicker, or this very request
   comes late, after it was given up and repeated);
3. looks whether its number is now the newest. If another writer's is as great, it takes a greater one and begins again.

Once step 3 has found it the newest, nobody had seen a greater number before the record was there, and everybody who
asks later gets it. A writer that is killed before that has not acknowledged anything: its caller repeats the write,
under a new number. ``NAME_models`` has one shard, whatever the others have: the order of its changes is one.

A model that is removed leaves a record that only says so.

**Changes of one record** (:meth:`ModelRecords.change`) are written only over the record that they were made from, so
that no two writers undo each other's.

**Holders.** Every output repeats the facts of its model and of the copies of that, so that the server can limit a
search by them. They are never too few: what widens them is written before the record that makes it true, what narrows
them after it. A kill in between leaves holders too many, which those who look at the records drop. Two writers of
copies of one model do not lose each other's: after writing, each compares with the records and writes again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qdrant_client import models as qm

from engine.errors import StoreError
from engine.schema import Model, ModelState
from engine.store import records
from engine.store.base import Written
from engine.store.holders import Holders, as_if, holders_of, originals
from engine.store.patience import Pace
from engine.store.points import CALIBRATION, HOLDERS, JOINED, REMOVED, SEQ, STATE, plain_payload
from engine.store.server_client import Collections, equals

_PAGE = 1000
_BATCH = 256
"""Models written under one check."""
_MOST_HOSTS = 100_000
"""Originals of the models of one batch, whose outputs are told."""
_ATTEMPTS = 200
"""Numbers that a writer tries before it says that others are in the way."""

_MAJORITY = qm.ReadConsistencyType.MAJORITY
"""Of replicas, when reading what the next write depends on."""

Payload = Mapping[str, Any] | None
"""What is to be written of a model: as ``records.model_payload`` makes it, None to say that it is gone."""

LEAVE: Mapping[str, Any] = {}
"""Nothing is to be written."""


@dataclass(frozen=True)
class Change:
    """What became of one model.

    Attributes:
        seq: Number of the change, greater than those of all earlier ones.
        repo: Of the model.
        model: Its record; None if it was removed.
    """

    seq: int
    repo: str
    model: Model | None


class ModelRecords:
    """The models of one index on a server.

    Args:
        collections: Of the index.
    """

    def __init__(self, collections: Collections) -> None:
        self._on = collections
        self._pace = Pace(_PAGE)
        self._write_pace = Pace(_BATCH)

    def newest(self) -> int:
        """The largest number of a change, 0 if there is none."""
        found = self._on.patience.call("read", lambda: self._ordered(1, qm.Direction.DESC, None))
        return found[0][0] if found else 0

    def stamp(self) -> int:
        """A number for outputs that are written now: greater than those of all changes that came before."""
        return max(time.time_ns() // 1000, self.newest() + 1)

    def standing(self, repo: str) -> tuple[Model | None, int]:
        """See :meth:`Shared.standing`."""
        payload = self._payload(repo)
        return _model(payload), int(payload.get(SEQ) or 0)

    def changes(self, since: int) -> Iterator[Change]:
        """The models that changed since, by ascending number.

        A model that changes meanwhile may come twice; the later one counts.

        Args:
            since: A number; only changes with greater ones.
        """

        def page(size: int) -> tuple[list[Change], bool]:
            found = self._ordered(size, qm.Direction.ASC, qm.Range(gt=last))
            return [_change(seq, payload) for seq, payload in found], len(found) == size

        last = since
        for change in self._on.patience.pages("read", self._pace, page):
            last = change.seq
            yield change

    def scroll(self, where: qm.Filter | None = None) -> Iterator[Model]:
        """The records that a filter selects, all for None, without those of removed models."""
        for record in self._on.scroll("models", _present(where), True, False, self._pace):
            yield records.model_record(plain_payload(record.payload))

    def of(self, repos: Iterable[str]) -> dict[str, Model]:
        """The records of some repositories, without those that have none."""
        ids = [records.model_point_id(repo) for repo in dict.fromkeys(repos)]
        found = self._on.retrieve("models", ids, self._pace, with_payload=True, consistency=_MAJORITY)
        there = [one.payload or {} for one in found if not (one.payload or {}).get(REMOVED)]
        models = [records.model_record(plain_payload(payload)) for payload in there]
        return {model.repo: model for model in models}

    def copies_of(self, repos: Iterable[str]) -> dict[str, tuple[Model, ...]]:
        """The records that name some repositories as their original, by original and id; those without are left out."""
        wanted = list(dict.fromkeys(repos))
        copies: dict[str, list[Model]] = {}
        for start in range(0, len(wanted), _PAGE):
            any_of = qm.MatchAny(any=wanted[start : start + _PAGE])
            for model in self.scroll(qm.Filter(must=[qm.FieldCondition(key=records.COPY_OF, match=any_of)])):
                copies.setdefault(str(model.copy_of), []).append(model)
        return {repo: tuple(sorted(some, key=lambda model: model.repo)) for repo, some in copies.items()}

    def count(self) -> int:
        """Number of records, without those of removed models."""
        return self._on.count("models", _present(None))

    def count_shown(self) -> int:
        """Number of models that are indexed or copies of others."""
        shown = qm.MatchAny(any=[ModelState.INDEXED.value, ModelState.COPY.value])
        return self._on.count("models", _present(qm.Filter(must=[qm.FieldCondition(key=STATE, match=shown)])))

    def calibrated_otherwise(self, fingerprint: str) -> bool:
        """Whether a model with outputs names another calibration than this one."""
        mine = equals(CALIBRATION, fingerprint)
        where = qm.Filter(must=[equals(STATE, ModelState.INDEXED.value)], must_not=[mine, *_gone()])
        name = self._on.of("models")
        found, _ = self._on.patience.call(
            "read", lambda: self._on.client.scroll(name, where, limit=1, with_payload=False)
        )
        return bool(found)

    def holders_of(self, repos: Iterable[str]) -> dict[str, tuple[str, Holders]]:
        """Revision and holders of the models that have outputs, as the records have it."""
        wanted = list(dict.fromkeys(repos))
        return holders_of(wanted, self.of(wanted), self.copies_of(wanted))

    def write(self, payloads: Mapping[str, Payload]) -> None:
        """Writes records, each in place of what its repository has; acknowledged when it returns.

        Args:
            payloads: By repository.
        """
        repos = list(payloads)
        for start in range(0, len(repos), _BATCH):
            part = {repo: payloads[repo] for repo in repos[start : start + _BATCH]}
            self._write(part, self.of(part), lambda part=part: self._number(part))  # type: ignore[misc]

    def change(self, repo: str, change: Callable[[Model | None], Payload]) -> Written:
        """Writes one record in view of the one that is there; acknowledged when it returns.

        Args:
            repo: Of the model.
            change: Given the record that is there, what is to be written in its place, or :data:`LEAVE`. It is called
                again if another writer was quicker.
        """
        for attempt in range(_ATTEMPTS):
            there = self._payload(repo)
            before, number = _model(there), int(there.get(SEQ) or 0)
            made = change(before)
            if made is not None and not made:
                return Written(before, number, 0)
            if made is not None and JOINED in there and before is not None and before.revision == made["revision"]:
                made = {**made, JOINED: there[JOINED]}
            seq = 0

            def write(made: Payload = made, number: int = number) -> None:
                nonlocal seq
                seq = self._replace(repo, made, number)

            self._write({repo: made}, {} if before is None else {repo: before}, write)
            if seq:
                return Written(before, number, seq)
            _pause(attempt)
        raise self._crowded()

    def _write(self, payloads: Mapping[str, Payload], before: Mapping[str, Model], write: Callable[[], None]) -> None:
        """Writes records, with the holders of outputs as they must be at all times.

        Args:
            payloads: By repository.
            before: The records that are there.
            write: Writes the payloads.
        """
        written = {repo: _model(payload) for repo, payload in payloads.items()}
        hosts = {*written, *originals(before.values()), *originals(model for model in written.values() if model)}
        hosts |= self._naming(written)
        known = {**before, **self.of(hosts - set(written))}
        copies = self.copies_of(hosts)
        old = holders_of(hosts, known, copies)
        new = holders_of(hosts, *as_if(known, copies, written))
        wide = {
            repo: (revision, [*made, *(one for one in old[repo][1] if one not in made)])
            if repo in old and old[repo][0] == revision
            else (revision, made)
            for repo, (revision, made) in new.items()
        }
        self._set_holders(wide)
        write()
        for _ in range(_ATTEMPTS):
            now = self.holders_of(hosts)
            changed = {repo: made for repo, made in now.items() if wide.get(repo) != made}
            if not changed:
                return
            self._set_holders(changed)
            wide = wide | changed
        raise self._crowded()

    def mend(self, repo: str) -> None:
        """Takes a repository that has no record out of the holders where a removal that was killed has left it."""
        self.set_holders(self._naming([repo]))

    def _naming(self, repos: Iterable[str]) -> set[str]:
        """The models whose outputs name some repositories as holders, themselves perhaps among them.

        Those of the records are not enough: a write that was killed after the record has left others.
        """
        field = f"{HOLDERS}[].model"
        names = qm.FieldCondition(key=field, match=qm.MatchAny(any=sorted({repo.lower() for repo in repos})))
        name = self._on.of("outputs")
        answer = self._on.patience.call(
            "read",
            lambda: self._on.client.facet(
                name, records.REPO, facet_filter=qm.Filter(must=[names]), limit=_MOST_HOSTS, exact=True
            ),
        )
        return {str(hit.value) for hit in answer.hits}

    def set_holders(self, repos: Iterable[str]) -> None:
        """Writes the holders of some models' outputs anew, as the records have it."""
        wanted = list(dict.fromkeys(repos))
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            made = self.holders_of(part)
            for _ in range(_ATTEMPTS):
                self._set_holders(made)
                now = self.holders_of(part)
                made = {repo: one for repo, one in now.items() if made.get(repo) != one}
                if not made:
                    break

    def _set_holders(self, holders: Mapping[str, tuple[str, Holders]]) -> None:
        operations = [
            qm.SetPayloadOperation(
                set_payload=qm.SetPayload(
                    payload={HOLDERS: made},
                    filter=qm.Filter(must=[equals(records.REPO, repo), equals(records.REVISION, revision)]),
                )
            )
            for repo, (revision, made) in holders.items()
        ]
        name = self._on.of("outputs")
        self._on.patience.each(
            "write to",
            operations,
            self._write_pace,
            lambda part: self._on.client.batch_update_points(name, list(part), wait=True),
        )

    def _number(self, payloads: Mapping[str, Payload]) -> None:
        """Writes records under numbers that nobody has passed; see the module's docstring."""
        waiting = dict(payloads)
        newest = self.newest()
        for attempt in range(_ATTEMPTS):
            first = max(time.time_ns() // 1000, newest + 1)
            numbers = {repo: first + i for i, repo in enumerate(waiting)}
            self._put(waiting, numbers, qm.Range(lt=first))
            seen = self._seen(len(waiting) + 1, first)
            mine = {payload["repo"]: seq for seq, payload in seen if numbers.get(payload["repo"]) == seq}
            newest = max((seq for seq, payload in seen if mine.get(payload["repo"]) != seq), default=0)
            waiting = {repo: payload for repo, payload in waiting.items() if mine.get(repo, 0) <= newest}
            if not waiting:
                return
            newest = max(newest, first)
            _pause(attempt)
        raise self._crowded()

    def _replace(self, repo: str, payload: Payload, number: int) -> int:
        """As :meth:`_number` with one record, only in place of that with a number (0: where there is none).

        Returns:
            Its own number; 0 if another record is there.
        """
        mine = 0
        newest = self.newest()
        for attempt in range(_ATTEMPTS):
            first = max(time.time_ns() // 1000, newest + 1)
            self._put({repo: payload}, {repo: first}, qm.Range(lte=mine or number))
            seen = [(seq, payload["repo"]) for seq, payload in self._seen(2, first)]
            newest = max((seq for seq, whose in seen if (seq, whose) != (first, repo)), default=0)
            if seen and not newest:
                return first
            if int(self._payload(repo).get(SEQ) or 0) != first:
                return mine  # replaced by now, if it was there before: it was seen, and what replaced it will be
            mine = first
            _pause(attempt)
        raise self._crowded()

    def _put(self, payloads: Mapping[str, Payload], numbers: Mapping[str, int], over: qm.Range) -> None:
        """Writes records under numbers where there is none or one whose number is in a range."""
        points = [
            qm.PointStruct(
                id=records.model_point_id(repo),
                vector={},
                payload={SEQ: numbers[repo], **({"repo": repo, REMOVED: True} if made is None else made)},
            )
            for repo, made in payloads.items()
        ]
        older = qm.Filter(
            should=[
                qm.FieldCondition(key=SEQ, range=over),
                qm.IsEmptyCondition(is_empty=qm.PayloadField(key=SEQ)),
            ]
        )
        self._on.put("models", points, self._write_pace, update_filter=older)

    def _payload(self, repo: str) -> dict[str, Any]:
        """Everything that is there of a repository's record, also of one that only says that it is gone."""
        ids = [records.model_point_id(repo)]
        found = self._on.retrieve("models", ids, self._pace, with_payload=True, consistency=_MAJORITY)
        return dict(found[0].payload or {}) if found else {}

    def _seen(self, limit: int, first: int) -> list[tuple[int, dict[str, Any]]]:
        """The newest numbers from a first one on, with their payloads."""
        return self._on.patience.call("read", lambda: self._ordered(limit, qm.Direction.DESC, qm.Range(gte=first)))

    def _ordered(self, limit: int, direction: qm.Direction, seq: qm.Range | None) -> list[tuple[int, dict[str, Any]]]:
        """Numbers and payloads by number; one try."""
        where = None if seq is None else qm.Filter(must=[qm.FieldCondition(key=SEQ, range=seq)])
        order = qm.OrderBy(key=SEQ, direction=direction)
        name = self._on.of("models")
        found, _ = self._on.client.scroll(
            name, where, limit=limit, order_by=order, with_payload=True, consistency=_MAJORITY
        )
        return [(int((one.payload or {})[SEQ]), one.payload or {}) for one in found]

    def _crowded(self) -> StoreError:
        where = self._on.patience.where
        return StoreError(f"too many others write to the index {self._on.name} at {where}: run again", where)


def _model(payload: Payload) -> Model | None:
    gone = not payload or payload.get(REMOVED)
    return None if gone else records.model_record(plain_payload(payload))


def _pause(attempt: int) -> None:
    """Lets those who write at the same time fall out of step."""
    time.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))  # noqa: S311


def _change(seq: int, payload: Mapping[str, Any]) -> Change:
    plain = plain_payload(payload)
    return Change(seq, plain["repo"], _model(payload))


def _present(where: qm.Filter | None) -> qm.Filter:
    return qm.Filter(must=where.must if where else None, must_not=_gone())


def _gone() -> list[qm.Condition]:
    return [qm.FieldCondition(key=REMOVED, match=qm.MatchValue(value=True))]
