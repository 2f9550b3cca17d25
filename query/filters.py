"""Conditions on models and outputs, as ``--where KEY=VALUE`` gives them; they cost no exactness."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.schema import Model
from engine.snapshot import Snapshot

TEXT_KEYS: dict[str, Callable[[Model], str | None]] = {
    "model": lambda model: model.repo,
    "library": lambda model: model.library,
    "licence": lambda model: model.licence,
    "architecture": lambda model: model.architecture,
}
"""Compared without regard to case; ``*`` and ``?`` stand for any characters."""

KEYS = (*TEXT_KEYS, "max-parameters", "min-downloads", "label")
"""Every key there is."""

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        key: One of ``KEYS``.
        value: As given.
    """

    key: str
    value: str


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions from ``KEY=VALUE`` texts.

    Raises:
        InputError: A text has no ``=``, an unknown key or a value that does not fit.
    """
    conditions = []
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower().replace("_", "-").replace("license", "licence")
        value = value.strip()
        if not equals or key not in KEYS or not value:
            raise InputError(f"--where {text!r}: use KEY=VALUE with KEY one of {', '.join(KEYS)}")
        if key in {"max-parameters", "min-downloads"}:
            read_number(text, value)
        if key == "label" and value.lower() not in {"yes", "no"}:
            raise InputError(f"--where {text!r}: label=yes finds outputs with a declared label, label=no those without")
        conditions.append(Condition(key, value))
    return tuple(conditions)


@dataclass(frozen=True)
class Allowed:
    """What satisfies the conditions of a search.

    Attributes:
        rows: Outputs, bool ``[L]``; None for all of them.
        holders: By the place of a model: itself and its copies, as far as they satisfy the conditions; the model first,
            then the copies by their ids. Empty if none does.
    """

    rows: npt.NDArray[np.bool_] | None
    holders: Callable[[int], tuple[Model, ...]]


class Filter:
    """Which outputs of a snapshot satisfy conditions, by the facts of the models that have them.

    Copies of a model have its outputs, and facts of their own: an output is allowed if any of its models satisfies all
    conditions. Facts are put into columns when they are first asked for, so keep a filter as long as its snapshot.

    Args:
        snapshot: The snapshot.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._texts: dict[str, tuple[tuple[str | None, ...], npt.NDArray[np.int64]]] = {}
        self._numerics: dict[str, npt.NDArray[np.float64]] = {}

    def allowed(self, conditions: Sequence[Condition]) -> Allowed:
        """What satisfies conditions: all keys must hold, of one key's values any."""
        if not conditions:
            return Allowed(None, self._holders)
        by_key: dict[str, list[str]] = {}
        for condition in conditions:
            by_key.setdefault(condition.key, []).append(condition.value)
        snapshot = self._snapshot
        wanted = {value.lower() for value in by_key.pop("label", [])}
        passing = np.ones(len(self._records), np.bool_)
        for key, values in by_key.items():
            passing &= np.logical_or.reduce([self._holds(key, value) for value in values])
        models = np.logical_or.reduceat(passing, self._first[:-1]) if len(passing) else passing
        rows = np.repeat(models, np.diff(snapshot.starts))
        if len(wanted) == 1:
            rows &= (snapshot.label >= 0) == (wanted == {"yes"})

        def holders(place: int) -> tuple[Model, ...]:
            start = int(self._first[place])
            return tuple(model for i, model in enumerate(self._holders(place), start) if passing[i])

        return Allowed(rows, holders)

    def _holders(self, place: int) -> tuple[Model, ...]:
        model = self._snapshot.models[place]
        return (model, *self._snapshot.copies.get(model.repo, ()))

    @cached_property
    def _records(self) -> tuple[Model, ...]:
        """Each model followed by its copies."""
        return tuple(record for place in range(len(self._snapshot.models)) for record in self._holders(place))

    @cached_property
    def _first(self) -> npt.NDArray[np.int64]:
        """Where each model stands among the records and, last, their number, ``[models + 1]``."""
        counts = [1 + len(self._snapshot.copies.get(model.repo, ())) for model in self._snapshot.models]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _holds(self, key: str, value: str) -> npt.NDArray[np.bool_]:
        """Which records satisfy one condition."""
        if key in TEXT_KEYS:
            distinct, number = self._text(key)
            fits = re.compile(translate(value.lower())).match
            return np.array([own is not None and fits(own) is not None for own in distinct], np.bool_)[number]
        own, limit = self._numeric(key), read_number(key, value)  # unknown ones are nan, neither above nor below
        return own <= limit if key == "max-parameters" else own >= limit

    def _text(self, key: str) -> tuple[tuple[str | None, ...], npt.NDArray[np.int64]]:
        """Distinct values in lower case, of which there are few, and each record's place among them."""
        if key not in self._texts:
            places: dict[str | None, int] = {}
            values = (TEXT_KEYS[key](record) for record in self._records)
            own = [places.setdefault(value and value.lower(), len(places)) for value in values]
            self._texts[key] = tuple(places), np.asarray(own, np.int64)
        return self._texts[key]

    def _numeric(self, key: str) -> npt.NDArray[np.float64]:
        if key not in self._numerics:
            values = [r.parameters if key == "max-parameters" else r.downloads for r in self._records]
            self._numerics[key] = np.array([np.nan if value is None else value for value in values], np.float64)
        return self._numerics[key]


def read_number(text: str, value: str) -> float:
    """The number that a condition compares with: 5000000, 5e6 or 5M.

    Args:
        text: The condition, for the error.
        value: What stands after ``=``.

    Raises:
        InputError: It is none.
    """
    unit = _UNITS.get(value[-1].lower())
    try:
        found = float(value[:-1] if unit else value) * (unit or 1)
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        raise InputError(f"--where {text!r}: {value!r} is not a number (5000000, 5e6 and 5M are)")
    return found
