"""Models of an index and their outputs, by what people type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.schema import LeftOut, Model
from engine.snapshot import Snapshot

_COMPARED = 2_000  # ids with which an unknown one is compared letter by letter: some tenths of a second
_LONGEST = 200  # characters of it that are


def find_model(snapshot: Snapshot, model: str) -> int:
    """The place of a model among those of a snapshot; of a copy, its original's.

    Args:
        snapshot: Of the index.
        model: ``org/name`` or ``org/name@revision``; a commit may be shortened to 7 digits or more.

    Raises:
        InputError: It is not there; the message names models that are called nearly the same.
    """
    return find_record(snapshot, model)[0]


def find_record(snapshot: Snapshot, model: str) -> tuple[int, Model]:
    """The place of a model's outputs, and the record that has its name: its own, or that of a copy.

    Args:
        snapshot: Of the index.
        model: As with ``find_model``.

    Raises:
        InputError: As with ``find_model``.
    """
    repo, _, revision = model.partition("@")
    if found := snapshot.places.get(repo):
        known = found[1].revision
        if revision in {"", known} or (len(revision) >= 7 and known.startswith(revision)):
            return found
        raise InputError(f"the index has {repo} at revision {known}, not {revision}: ask for that one")
    near = near_models(snapshot, repo)
    hint = f"did you mean {' or '.join(near)}?" if near else "'hubhound index models' shows what is there"
    raise InputError(f"the model {model} is not in the index: {hint}")


def near_models(snapshot: Snapshot, repo: str) -> list[str]:
    """Ids in the index that are written nearly like an unknown one, at most three, the nearest first.

    Of a large index only ids that share a part with it are compared letter by letter.
    """
    folded = {known.casefold(): known for known in snapshot.places}
    asked = repo.casefold()[:_LONGEST]
    org, _, tail = asked.rpartition("/")
    # A name without its org or with another one, or a part of a name.
    same = [name for name in folded if name.rpartition("/")[2] == tail]
    part = [name for name in folded if len(tail) >= 3 and tail in name]
    compared: Iterable[str] = folded
    if len(folded) > _COMPARED:
        compared = part or _sharing(folded, (tail[: len(tail) // 2], tail[len(tail) // 2 :], org))
    close = difflib.get_close_matches(asked, islice(compared, _COMPARED), n=3, cutoff=0.6)
    return [folded[name] for name in dict.fromkeys([*same, *close, *part])][:3]


def _sharing(names: Iterable[str], parts: Sequence[str]) -> list[str]:
    """The names that hold the first part that any holds; parts of less than 3 characters say nothing."""
    for part in parts:
        if len(part) >= 3 and (sharing := [name for name in names if part in name]):
            return sharing
    return []


def find_outputs(
    wanted: Sequence[int] | None, repo: str, output: npt.NDArray[np.int64], left_out: Sequence[LeftOut] = ()
) -> npt.NDArray[np.intp]:
    """Rows of the outputs that are asked for, each once, in the order asked.

    Args:
        wanted: Positions in the model's answer; None for all.
        repo: The model, for the error.
        output: Positions of the rows, ``[m]``.
        left_out: Outputs that carry no information, for the error.

    Raises:
        InputError: One is not there.
    """
    if wanted is None:
        return np.arange(len(output))
    places = {int(number): row for row, number in enumerate(output)}
    reasons = {entry.output: entry.reason for entry in left_out}
    for number in wanted:
        if number in reasons:
            raise InputError(f"output {number} of {repo} was left out of the index: its answers are {reasons[number]}")
        if number not in places:
            span = f"outputs {output.min()} to {output.max()}" if len(output) else "no outputs"
            raise InputError(f"{repo} has no output {number}: it has {span}")
    return np.asarray([places[number] for number in dict.fromkeys(wanted)], dtype=np.intp)
