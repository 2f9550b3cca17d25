"""The questions of an evaluation: from a file, or one for each class that the truth knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.concepts import clean_concept
from engine.errors import ConceptError, InputError
from query.evaluate.inputfiles import class_id, named, read_csv, read_json_input
from query.evaluate.tally import ALL
from query.evaluate.truth import Truth
from query.evaluate.zoo import Query, Zoo

MARKS = ("seen", "unseen")
"""The groups of queries whose class has a labelled probe, and of the others."""


def read_queries(path: Path) -> tuple[Query, ...]:
    """Reads queries from a file.

    Args:
        path: ``.csv`` with the columns ``text``, ``class`` and, if wanted, ``groups`` (several with ``;`` between
            them); any other name: JSON, a list of ``{"text": ..., "class": ..., "groups": [...]}``.

    Raises:
        InputError: It is missing, empty or has an entry of another form; the message says where.
    """
    made = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    if not made:
        raise InputError(f"the queries file {path} is empty: write one text and its class a query")
    return made


def derive_queries(truth: Truth) -> tuple[Query, ...]:
    """One query for each class: the first synonym of the label that most of its outputs carry.

    A class that no output with a label carries alone takes the label of the outputs that carry it among others; one
    without any label is left out.

    Returns:
        In the order of the classes, numbers by their value.

    Raises:
        InputError: No output of known class has a label.
    """
    alone: dict[str, Counter[str]] = {}
    shared: dict[str, Counter[str]] = {}
    for outputs in truth.models.values():
        for known in outputs.values():
            text = " ".join((known.label or "").split(",")[0].split())
            for cls in known.classes if text else ():
                votes = alone if len(known.classes) == 1 else shared
                votes.setdefault(cls, Counter())[text] += 1
    best = shared | alone
    if not best:
        raise InputError(f"the truth file {truth.path} has no label to ask with: add labels, or give --queries FILE")
    return tuple(Query(best[cls].most_common(1)[0][0], cls) for cls in sorted(best, key=_by_value))


def answerable(queries: Sequence[Query], zoos: Mapping[str, Zoo]) -> tuple[tuple[Query, ...], tuple[Query, ...]]:
    """Parts the queries that every zoo has a right answer to from the others.

    Args:
        queries: At least one.
        zoos: By the name of their index, for the error.

    Returns:
        Those that can be answered, and the rest.

    Raises:
        InputError: None can be answered.
    """
    known = [frozenset().union(*zoo.classes) for zoo in zoos.values()]
    kept = tuple(query for query in queries if all(query.cls in classes for classes in known))
    if not kept:
        classes = list(dict.fromkeys(query.cls for query in queries))
        raise InputError(
            f"no output of {' and '.join(zoos)} is of the class of any query ({named(classes)}): "
            "classes must be written as in the truth file"
        )
    found = set(kept)
    return kept, tuple(query for query in queries if query not in found)


def grouped_by_seen(queries: Iterable[Query]) -> bool:
    """Whether some queries are marked as seen or unseen."""
    return any(mark in query.groups for query in queries for mark in MARKS)


def group_by_seen(queries: Iterable[Query], seen: frozenset[str]) -> tuple[Query, ...]:
    """Adds the group ``seen`` to queries whose class has a labelled probe, ``unseen`` to the others."""
    seen_mark, unseen_mark = MARKS
    return tuple(
        replace(
            query,
            groups=(*(g for g in query.groups if g not in MARKS), seen_mark if query.cls in seen else unseen_mark),
        )
        for query in queries
    )


def _by_value(cls: str) -> tuple[int, int, str]:
    digits = cls.lstrip("0")  # ordered by length, then as text: by value, however long
    return (0, len(digits), digits) if cls.isascii() and cls.isdigit() else (1, 0, cls)


def _read_json(path: Path) -> tuple[Query, ...]:
    value = read_json_input(path, "queries file")
    if not isinstance(value, list):
        raise InputError(f'the queries file {path} must be a list of {{"text": ..., "class": ...}}')
    made = []
    for place, entry in enumerate(value):
        where = f"the queries file {path}, entry {place + 1}"
        groups = entry.get("groups", []) if isinstance(entry, dict) else None
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise InputError(f'{where}: it must be {{"text": ..., "class": ..., "groups": ["..."]}}')
        made.append(_query(entry.get("text"), entry.get("class"), groups, where))
    return tuple(made)


def _read_csv(path: Path) -> tuple[Query, ...]:
    rows = read_csv(path, "queries file", ("text", "class"))
    return tuple(
        _query(row["text"], row["class"], (row.get("groups") or "").split(";"), f"the queries file {path}, line {line}")
        for line, row in rows
    )


def _query(text: object, cls: object, groups: Iterable[str], where: str) -> Query:
    made = class_id(cls)
    if not isinstance(text, str) or made is None:
        raise InputError(f"{where}: it needs a text and a class")
    try:
        cleaned = clean_concept(text)
    except ConceptError as error:
        raise InputError(f"{where}: {error}") from error
    names = dict.fromkeys(group.strip() for group in groups)
    return Query(cleaned, made, tuple(name for name in names if name and name != ALL))
