"""What the index holds, as routes tell it: lists of models, one model, outputs, the index itself."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from engine.errors import InputError
from engine.knowledge import Knowledge
from engine.schema import Model, Performance, Profile, Record
from engine.snapshot import Snapshot
from query.api.errors import ApiError, ProblemKind
from query.api.generations import Generation
from query.api.names import NamesState
from query.description import DescribeAnswer, FoundName
from query.filters import Condition, Filter
from query.lookup import find_outputs, find_record, near_models
from query.usage import is_hub_id

NO_STORE = {"Cache-Control": "no-store"}

_SELECTIONS = 16  # of models, by filter, that are remembered for the next page


class Facts(Record):
    """What is known of the model behind an output."""

    library: str | None
    licence: str | None
    parameters: int | None
    architecture: str | None
    input_size: tuple[int, int] | None = Field(description="Height and width in pixels.")
    downloads: int | None
    likes: int | None
    tags: tuple[str, ...]
    url: str | None = Field(description="Its page on the Hub; null where its id cannot be one of the Hub's.")


class ListedModel(Model):
    """A model with its copies."""

    copies: tuple[str, ...] = Field(description="Repositories with the same model.")


class ModelList(Record):
    """Models and copies by their ids."""

    models: tuple[ListedModel, ...]
    next: str | None = Field(description="What to ask after for the next page; null on the last.")
    total: int = Field(description="Models on all pages.")


class ModelPage(Record):
    """Everything that is known of one model."""

    model: Model | None = Field(description="null where the index only has profiles of it.")
    copies: tuple[str, ...] = Field(description="Other repositories with the same model.")
    copy_of: str | None = Field(description="The original whose outputs these are.")
    facts: Facts | None
    describe: DescribeAnswer | None = Field(
        description="As `hubhound describe --format json`; without names while they are not to be had."
    )
    names: NamesState
    profiles: tuple[Profile, ...] = Field(description="Its conductance by task.")
    performance: tuple[Performance, ...]


class OutputFacts(Record):
    """One output, what it recognises, and its model."""

    model: str
    output: int
    label: str | None = Field(description="As the model declares it.")
    agrees: bool | None = Field(description="As in `hubhound describe`; null while names are not to be had.")
    concepts: tuple[FoundName, ...] = Field(description="Found names, best first.")
    facts: Facts


class OutputsAnswer(Record):
    """Outputs in the order in which they were asked for."""

    outputs: tuple[OutputFacts, ...]
    names: NamesState


def facts_of(model: Model, hub_url: str) -> Facts:
    """What is known of a model.

    Args:
        model: Its record; of a copy the copy's own.
        hub_url: Of the hub that it is linked to.
    """
    return Facts(
        library=model.library,
        licence=model.licence,
        parameters=model.parameters,
        architecture=model.architecture,
        input_size=model.input_size,
        downloads=model.downloads,
        likes=model.likes,
        tags=model.tags,
        url=f"{hub_url.rstrip('/')}/{model.repo}" if is_hub_id(model.repo) else None,
    )


class Found:
    """A model by the name that a client gave; the name is only ever compared.

    Args:
        snapshot: None before the first generation.
        knowledge: What is known about tasks.
        name: ``org/name``, ``org/name@revision``, or a vision-language model's.

    Attributes:
        name: As given.
        record: Its own, None where the index only has profiles of it.
        original: The record of the model whose rows it has.
        rows: Of its outputs.

    Raises:
        ApiError: Neither has it; the detail names models that are called nearly the same.
    """

    def __init__(self, snapshot: Snapshot | None, knowledge: Knowledge, name: str) -> None:
        self.name = name
        self.profiles = knowledge.profiles_of(name)
        self.performance = tuple(record for record in knowledge.performance if record.model == name)
        self.record: Model | None = None
        self.original: Model | None = None
        self.rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.copies: tuple[str, ...] = ()
        if snapshot is not None and name.partition("@")[0] in snapshot.places:
            try:
                place, self.record = find_record(snapshot, name)
            except InputError as error:  # another revision
                raise ApiError(ProblemKind.MODEL_NOT_FOUND, str(error)) from error
            self.original = snapshot.models[place]
            self.rows = np.arange(snapshot.starts[place], snapshot.starts[place + 1])
            self.copies = tuple(
                copy.repo for copy in snapshot.copies.get(self.original.repo, ()) if copy.repo != self.record.repo
            )
        elif not self.profiles and not self.performance:
            raise unknown_model(snapshot, knowledge, name)

    @property
    def copy_of(self) -> str | None:
        """The original, of a copy."""
        return self.original.repo if self.original and self.original is not self.record else None

    def rows_of(self, snapshot: Snapshot | None, outputs: Sequence[int] | None) -> npt.NDArray[np.int64]:
        """Rows of some of its outputs, each once, in the order given.

        Args:
            snapshot: The one that it was found in.
            outputs: Positions in its answer; None for all.

        Raises:
            ApiError: It has no such output.
        """
        if outputs is None:
            return self.rows
        if snapshot is None or self.original is None:
            raise ApiError(
                ProblemKind.OUTPUT_NOT_FOUND, f"the index has profiles of {self.name}, but none of its outputs"
            )
        numbers = snapshot.output[self.rows].astype(np.int64)
        try:
            chosen = find_outputs(outputs, self.name, numbers, self.original.left_out)
        except InputError as error:
            raise ApiError(ProblemKind.OUTPUT_NOT_FOUND, str(error)) from error
        return np.asarray(self.rows[chosen])


def unknown_model(snapshot: Snapshot | None, knowledge: Knowledge, name: str) -> ApiError:
    """The error for a model that is nowhere; blocks for as long as it takes to look for near names."""
    near = [] if snapshot is None else near_models(snapshot, name.partition("@")[0])
    near += [known for known in knowledge.models() if name.casefold() in known.casefold()]
    near = list(dict.fromkeys(near))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "GET /v1/models lists what is there"
    return ApiError(ProblemKind.MODEL_NOT_FOUND, f"the model {name[:200]} is not in the index: {hint}", near=near)


class Listing:
    """The models and copies of a snapshot by their ids, filtered and in pages.

    Args:
        snapshot: The snapshot.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._filter = Filter(snapshot)
        self._selections: OrderedDict[tuple[tuple[Condition, ...], str], list[str]] = OrderedDict()
        self._lock = Lock()

    def page(self, limit: int, after: str | None, where: tuple[Condition, ...], text: str) -> ModelList:
        """One page.

        Args:
            limit: Most models on it, >= 1.
            after: The id that it begins behind, whether there is such a model or not; None for the beginning.
            where: Conditions, as those of a search.
            text: What ids must contain, whatever the case; "" for all.
        """
        names = self._selected(where, text.casefold())
        start = 0 if after is None else bisect_right(names, after)
        chosen = names[start : start + limit]
        return ModelList(
            models=tuple(map(self._listed, chosen)),
            next=chosen[-1] if start + limit < len(names) else None,
            total=len(names),
        )

    def _listed(self, name: str) -> ListedModel:
        _, record = self._snapshot.places[name]
        copies = tuple(copy.repo for copy in self._snapshot.copies.get(name, ()))
        return ListedModel.model_construct(**record.__dict__, copies=copies)

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._snapshot.places)

    def _selected(self, where: tuple[Condition, ...], text: str) -> list[str]:
        if not where and not text:
            return self._names
        with self._lock:
            key = where, text
            if key not in self._selections:
                names = self._passing(where) if where else self._names
                self._selections[key] = [name for name in names if text in name.casefold()] if text else names
                if len(self._selections) > _SELECTIONS:
                    self._selections.popitem(last=False)
            self._selections.move_to_end(key)
            return self._selections[key]

    def _passing(self, where: tuple[Condition, ...]) -> list[str]:
        allowed = self._filter.allowed(where)
        places: npt.NDArray[np.bool_] = np.ones(len(self._snapshot.models), np.bool_)
        if allowed.rows is not None and any(condition.key == "label" for condition in where):
            before = np.concatenate([[0], np.cumsum(allowed.rows)])[self._snapshot.starts]
            places = np.diff(before) > 0
        return sorted(record.repo for place in np.nonzero(places)[0].tolist() for record in allowed.holders(place))


class Catalogue:
    """What routes remember of the generations that answer."""

    def __init__(self) -> None:
        self._listing: tuple[Generation, Listing] | None = None
        self._lock = Lock()

    def listing(self, generation: Generation) -> Listing:
        """The list of a generation's models, made once."""
        with self._lock:
            if self._listing is None or self._listing[0] is not generation:
                self._listing = generation, Listing(generation.searcher.snapshot)
            return self._listing[1]


def catalogue_of(request: Request) -> Catalogue:
    """The catalogue of the app that a request was made to; a FastAPI dependency."""
    state = request.app.state
    if not hasattr(state, "catalogue"):
        state.catalogue = Catalogue()
    catalogue: Catalogue = state.catalogue
    return catalogue


def answer(value: object) -> Response:
    """An answer as UTF-8 JSON, the command line's.

    Args:
        value: Plain values, or something with fields, all of which are told.
    """
    plain: Any = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    # What a stranger wrote may hold half a character.
    content = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return Response(content, media_type="application/json", headers=NO_STORE)
