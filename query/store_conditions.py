"""Conditions of a search as a Qdrant server applies them, and as they are checked on what it lets through."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate

from engine.schema import Model
from engine.store.base import StoreFilter
from query.filters import TEXT_KEYS, Condition, read_number

Values = Callable[[str], list[str] | None]
"""The distinct values of a field of the models on a server, in lower case; None if they are too many to list."""


class UnresolvedError(Exception):
    """A wildcard cannot be resolved: too many values could match it.

    Args:
        condition: The condition.
    """

    def __init__(self, condition: Condition) -> None:
        super().__init__(f"{condition.key}={condition.value}")
        self.condition = condition


def store_filter(conditions: Sequence[Condition], values: Values) -> StoreFilter | None:
    """The conditions for a server; wildcards become the values that match them.

    Args:
        conditions: All keys must hold, of one key's values any.
        values: What a wildcard may stand for.

    Returns:
        The filter; None if nothing can satisfy the conditions.

    Raises:
        UnresolvedError: A wildcard cannot be resolved.
    """
    texts: dict[str, tuple[str, ...]] = {}
    for key in TEXT_KEYS:
        given = [condition for condition in conditions if condition.key == key]
        if given:
            texts[key] = tuple(dict.fromkeys(text for one in given for text in _matching(one, values)))
            if not texts[key]:
                return None
    most = [read_number(c.key, c.value) for c in conditions if c.key == "max-parameters"]
    fewest = [read_number(c.key, c.value) for c in conditions if c.key == "min-downloads"]
    labels = {c.value.lower() for c in conditions if c.key == "label"}
    return StoreFilter(
        texts,
        max(most, default=None),
        min(fewest, default=None),
        labels == {"yes"} if len(labels) == 1 else None,
    )


def satisfies(where: StoreFilter, holders: Iterable[Model]) -> bool:
    """Whether one of the models that have an output satisfies all conditions on models."""
    return any(_holds(where, model) for model in holders)


def _holds(where: StoreFilter, model: Model) -> bool:
    for key, allowed in where.texts.items():
        text = TEXT_KEYS[key](model)
        if text is None or text.lower() not in allowed:
            return False
    if where.max_parameters is not None and (model.parameters is None or model.parameters > where.max_parameters):
        return False
    return where.min_downloads is None or (model.downloads is not None and model.downloads >= where.min_downloads)


def _matching(condition: Condition, values: Values) -> list[str]:
    pattern = condition.value.lower()
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    known = values(condition.key)
    if known is None:
        raise UnresolvedError(condition)
    fits = re.compile(translate(pattern)).match
    return [value for value in known if fits(value)]
