"""Found names of outputs: the vocabulary is embedded in the background, what was found is remembered."""

from __future__ import annotations

import time
from asyncio import Lock, create_task, shield
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from engine.concepts import clean_concept
from engine.errors import InputError
from engine.index import Index, Texts
from engine.schema import Record
from query.api.generations import Generation
from query.api.memory import Place
from query.api.phrases import Phrases
from query.api.settings import Settings
from query.describe import Describer
from query.description import OutputNames
from query.vocabulary import label_phrases, read_vocabulary

MOST_K = 10
"""Most names of one output."""

REMEMBERED = 50_000
"""Outputs whose names are remembered; about 1 KB each."""

KEPT_BYTES = 512 * 2**20
"""The vocabulary's descriptors are kept in memory if they take no more: 64 MB for 20,000 phrases and 800 probes."""

AT_ONCE = 40
"""So many new phrases of labels are embedded while a request waits; with more it is answered before."""

_CHUNK = 512  # outputs named at once: others may come in between
_RETRY_S = 30.0

State = Literal["ready", "preparing", "off", "failed"]

Aside = Callable[..., Awaitable[list[tuple[OutputNames, bool]]]]
"""Runs a function in another thread: ``Service.aside``."""

_Key = tuple[int, int, int]  # serial of the generation, row, k


class NamesState(Record):
    """Whether found names are to be had."""

    state: State = Field(description="preparing: the vocabulary is being embedded, or will be when names are wanted.")
    done: int = Field(description="Phrases of the vocabulary that are embedded.")
    total: int = Field(description="Phrases of the vocabulary; 0 before it is known.")
    why: str | None = Field(default=None, description="Of a failure.")


class Names:
    """Names outputs for the routes, from the event loop.

    Args:
        settings: Whether names are wanted, and the vocabulary.
        encode: Embeds texts that no request waits for; blocks.
        aside: Runs a function in another thread.
        place: The index's folder; by default as it is now.

    Raises:
        InputError: The vocabulary's file cannot be used.
    """

    def __init__(self, settings: Settings, encode: Texts, aside: Aside, place: Place | None = None) -> None:
        self._on = settings.names
        given = read_vocabulary(settings.vocabulary) if settings.names and settings.vocabulary else None
        self._phrases = Phrases(settings.index / "concepts.sqlite", given, encode, place)
        self._aside = aside
        self._one = Lock()
        self._describer: tuple[Generation, Describer] | None = None
        self._known: OrderedDict[_Key, OutputNames] = OrderedDict()

    @property
    def state(self) -> NamesState:
        """Whether names are to be had."""
        phrases = self._phrases
        if not self._on:
            return NamesState(state="off", done=0, total=0)
        if phrases.prepared is not None:
            return NamesState(state="ready", done=self.vocabulary, total=self.vocabulary)
        why = phrases.failure[1] if phrases.failure else None
        return NamesState(state="failed" if why else "preparing", done=phrases.done, total=phrases.total, why=why)

    @property
    def vocabulary(self) -> int:
        """Phrases that outputs are compared with; 0 before they are ready."""
        return len(self._phrases.prepared.phrases) if self._phrases.prepared else 0

    def start(self, index: Index) -> None:
        """Begins to embed the vocabulary, unless that is done, under way, not wanted, or has failed a moment ago.

        Args:
            index: Whose vocabulary it is to be; the service has one.
        """
        failure = self._phrases.failure
        if self._on and not (failure and time.monotonic() - failure[0] < _RETRY_S):
            self._phrases.start()

    def stop(self) -> None:
        """Ends the preparation after what it is doing; what was embedded is remembered."""
        self._phrases.stop()

    async def of_rows(self, generation: Generation, rows: Sequence[int], k: int) -> list[OutputNames]:
        """What some outputs recognise; without names, only their labels, while they are not to be had.

        Where many labels have to be embedded to judge whether they agree, that is left open and done in the background.

        Args:
            generation: The rows are those of its snapshot.
            rows: Of outputs of any models.
            k: Names of each, 0..10.
        """
        if k > 0:
            self.start(generation.index)
        if k == 0 or self._phrases.prepared is None:
            return [_unnamed(generation, row) for row in rows]
        found: dict[int, OutputNames] = {}
        for part in _parts(rows):
            if self._look_up(found, generation, part, k):
                await self._one.acquire()
                # A task that gives it back: when the request is given up, the thread goes on, and nobody else begins.
                found |= await shield(create_task(self._found(generation, part, k)))
        return [found[row] for row in rows]

    async def _found(self, generation: Generation, rows: Sequence[int], k: int) -> dict[int, OutputNames]:
        """Names of rows, which are remembered; the lock is taken, and given back."""
        found: dict[int, OutputNames] = {}
        try:
            missing = self._look_up(found, generation, rows, k)  # others may have found some of them meanwhile
            named = await self._aside(self._name, generation, missing, k) if missing else []
            for row, (names, whole) in zip(missing, named, strict=True):
                found[row] = names
                if whole:
                    self._remember((generation.serial, row, k), names)
        finally:
            self._one.release()
        return found

    def _look_up(self, found: dict[int, OutputNames], generation: Generation, rows: Sequence[int], k: int) -> list[int]:
        """Takes what is remembered; returns the rows that are not."""
        missing = []
        for row in rows:
            names = self._known.get((generation.serial, row, k))
            if names is None:
                missing.append(row)
            else:
                self._known.move_to_end((generation.serial, row, k))
                found[row] = names
        return missing

    def _remember(self, key: _Key, names: OutputNames) -> None:
        self._known[key] = names
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _name(self, generation: Generation, rows: list[int], k: int) -> list[tuple[OutputNames, bool]]:
        """Names for rows, and whether their labels were judged; runs in another thread, one call at a time."""
        describer, waiting = self._describer_of(generation), self._without_labels(generation, rows)
        judged = [row for row in rows if row not in waiting]
        named: dict[int, OutputNames] = {}
        for some, judge in ((judged, True), (sorted(waiting), False)):
            if some:
                own = describer.name_rows(np.asarray(some, np.int64), k, judge=judge)
                named |= dict(zip(some, own, strict=True))
        return [(named[row], row not in waiting) for row in rows]

    def _without_labels(self, generation: Generation, rows: Sequence[int]) -> set[int]:
        """The rows that are named before anything is said about their labels, whose phrases are embedded later."""
        snapshot = generation.searcher.snapshot
        wanted = {row: tuple(map(clean_concept, label_phrases(snapshot.label_of(row)))) for row in rows}
        texts = list(dict.fromkeys(text for some in wanted.values() for text in some))
        known = generation.index.concepts.get(texts)
        new = {text for text in texts if text not in known and text not in self._phrases.unknown}
        if len(new) <= AT_ONCE:
            return set()
        self._phrases.want(new)
        return {row for row, some in wanted.items() if not new.isdisjoint(some)}

    def _describer_of(self, generation: Generation) -> Describer:
        if self._describer is not None and self._describer[0] is generation:
            return self._describer[1]
        prepared, snapshot = self._phrases.prepared, generation.searcher.snapshot
        if prepared is None:
            raise InputError("the vocabulary is not embedded yet: ask again later")
        probes = generation.index.manifest.probes.fingerprint
        if self._describer is None or self._describer[0].index.manifest.probes.fingerprint != probes:
            describer = Describer(
                generation.index,
                prepared.phrases,
                self._phrases.encode,
                snapshot=snapshot,
                vectors=prepared.vectors,
                keep_bytes=KEPT_BYTES,
            )
        else:
            describer = self._describer[1].renewed(generation.index, snapshot)
        self._describer = generation, describer
        return describer


def _unnamed(generation: Generation, row: int) -> OutputNames:
    snapshot = generation.searcher.snapshot
    return OutputNames(output=int(snapshot.output[row]), label=snapshot.label_of(row), agrees=None, concepts=())


def _parts(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    distinct = list(dict.fromkeys(rows))
    for start in range(0, len(distinct), _CHUNK):
        yield distinct[start : start + _CHUNK]
