"""Conditions on models and outputs, as ``--where KEY=VALUE`` gives them; they cost no exactness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
            _number(text, value)
        if key == "label" and value.lower() not in {"yes", "no"}:
            raise InputError(f"--where {text!r}: label=yes finds outputs with a declared label, label=no those without")
        conditions.append(Condition(key, value))
    return tuple(conditions)


def allowed_rows(snapshot: Snapshot, conditions: Sequence[Condition]) -> npt.NDArray[np.bool_] | None:
    """Which outputs satisfy the conditions: all keys must hold, of one key's values any.

    Returns:
        bool ``[L]``, or None if there is no condition.
    """
    if not conditions:
        return None
    by_key: dict[str, list[str]] = {}
    for condition in conditions:
        by_key.setdefault(condition.key, []).append(condition.value)
    mask = np.zeros(len(snapshot), np.bool_)
    for i, model in enumerate(snapshot.models):
        if all(any(_holds(model, key, value) for value in values) for key, values in by_key.items()):
            mask[snapshot.starts[i] : snapshot.starts[i + 1]] = True
    wanted = {value.lower() for value in by_key.get("label", [])}
    if len(wanted) == 1:
        mask &= (snapshot.label >= 0) == (wanted == {"yes"})
    return mask


def _holds(model: Model, key: str, value: str) -> bool:
    if key in TEXT_KEYS:
        own = TEXT_KEYS[key](model)
        return own is not None and fnmatchcase(own.lower(), value.lower())
    if key == "max-parameters":
        return model.parameters is not None and model.parameters <= _number(key, value)
    if key == "min-downloads":
        return model.downloads is not None and model.downloads >= _number(key, value)
    return True  # labels are looked at output by output


def _number(text: str, value: str) -> float:
    unit = _UNITS.get(value[-1].lower())
    try:
        number = float(value[:-1] if unit else value) * (unit or 1)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"--where {text!r}: {value!r} is not a number (5000000, 5e6 and 5M are)")
    return number
