"""What a store keeps of an output and of a model, and how it is read back: pure functions, the same for every store.

One output becomes one point:

========== ======================== ================================================================================
part       name                     what it is for
========== ======================== ================================================================================
id                                  UUIDv5 of ``repo@revision#output``: writing it again changes nothing
sparse     ``local``                the scaled linear form of the local part, to search by (float32, lossy)
dense      ``global``               ``(a / q, -g / q)``, to search by; the anchor a is read back from it. For
                                    ``whitened`` q and g are the whitened ones and the prior is added to ``-g / q``
payload    ``repo``, ``revision``,  whose output it is
           ``output``
payload    ``label``                as declared; left out where there is none
payload    ``exact``                base64 of mean, std, the calibration constants, the kept probes and their z, bit for
                                    bit (little-endian, :func:`exact_dtype`)
========== ======================== ================================================================================

The numbers of ``exact`` are not JSON numbers, because a float64 does not survive Qdrant's JSON (one in five comes back
one unit in the last place off), because 448 characters are less than their decimal digits, and because handing a field
to the engine costs more time than encoding the whole.

**The scaled linear form.** With weights w, hubness h and scale s of a method, the truncated distance d of an output to
a concept obeys ``h² - d² = sum_i 2 z_c[i] (w z)[i] - z_c[i]² w[i] + (h² - sum w z²)``, an inner product. Divided by
``c = 2 h s`` and extended by the dimension ``s / 2h``, whose query value is ``t²``, it becomes a score for which::

    score > t   <=>   (h - d) / s > t        for every t <= h / s

because both say ``h² - d² > t s (2h - t s)``. (Above h / s no output has such a margin, while the score may still
exceed t.) The methods differ in w, h and s only, see :func:`local_constants`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.distance import check_method, weights
from engine.errors import IndexMismatchError
from engine.outputs import MIXED, Calibration, FloatArray, OutputTable
from engine.schema import Model, output_point_id
from engine.store.base import StoreHit, StoreLayout

LOCAL = "local"
"""Name of the sparse vector."""
GLOBAL = "global"
"""Name of the dense vector."""
REPO = "repo"
REVISION = "revision"
OUTPUT = "output"
LABEL = "label"
EXACT = "exact"
BACKGROUND = "background"
"""On a server, of an output: fingerprint of the background behind its constants, where it is known."""
COPY_OF = "copy_of"
"""Field of a model's payload (``Model.copy_of``)."""
HIT_FIELDS = [REPO, REVISION, OUTPUT]
"""Payload fields that a :class:`StoreHit` is made of."""
TABLE_FIELDS = [OUTPUT, LABEL, EXACT]
"""Payload fields that an :class:`OutputTable` of a known model is read back from."""

ROW_FIELDS = [REPO, REVISION, *TABLE_FIELDS, BACKGROUND]
"""Payload fields that outputs of any models are read back from."""
_CONSTANTS = ("h_uniform", "h", "s", "g", "q", "g_white", "q_white", "prior")

Float64Array = npt.NDArray[np.float64]


class OutputPoint(NamedTuple):
    """One output as it is handed to a store: plain Python lists, which both engines take fastest."""

    id: str
    indices: list[int]
    values: list[float]
    dense: list[float]
    payload: dict[str, Any]


class StoredOutput(NamedTuple):
    """One output as it comes back from a store: the payload's :data:`TABLE_FIELDS` and the dense vector."""

    payload: Mapping[str, Any]
    dense: list[float]


def exact_dtype(top_r: int) -> np.dtype[np.void]:
    """The packed little-endian record of everything that is kept bit for bit: 48 + 6 r bytes."""
    constants = [(name, "<f4") for name in _CONSTANTS]
    return np.dtype([("mean", "<f8"), ("std", "<f8"), *constants, ("idx", "<u2", (top_r,)), ("z", "<f4", (top_r,))])


def check_table(table: OutputTable, layout: StoreLayout) -> None:
    """Refuses outputs that were not made for this store.

    Args:
        table: Outputs about to be written.
        layout: Of the store.

    Raises:
        IndexMismatchError: Another r, another dimension, or probes that the store's probe set does not have.
        ValueError: A number is NaN or infinite, or a scale or a top response is not positive: a store would accept it
            and every later answer would be wrong.
    """
    found = {"top_r": table.z.shape[1], "dimension": table.anchor.shape[1]}
    for part, value in found.items():
        expected = getattr(layout, part)
        if value != expected:
            message = (
                f"the outputs of {table.repo} have {part} {value}, this index has {expected}: use one index for each"
            )
            raise IndexMismatchError(message, part, expected, value)
    if len(table) and int(table.idx.max()) >= layout.probes:
        last = int(table.idx.max())
        message = f"the outputs of {table.repo} refer to probe {last}, this index has {layout.probes} probes"
        raise IndexMismatchError(message, "probes", layout.probes, last + 1)
    constants = table.calibration
    numbers = (table.mean, table.std, table.z, table.anchor, *(getattr(constants, name) for name in _CONSTANTS))
    positive = (constants.h_uniform, constants.h, constants.s, constants.q, constants.q_white, table.z[:, 0])
    if not all(np.isfinite(a).all() for a in numbers) or not all((a > 0).all() for a in positive):
        raise ValueError(
            f"the outputs of {table.repo} hold a number that is NaN or infinite, or a scale or top z that is not > 0"
        )


def local_constants(calibration: Calibration, method: str) -> tuple[Float64Array, Float64Array]:
    """Hubness h and scale s by which a method turns a distance into a margin ``(h - d) / s``.

    Args:
        calibration: Of m outputs.
        method: ``dual`` and ``whitened`` divide by the scale; ``weighted`` and ``probelog`` do not (s = 1), and
            ``probelog`` takes the hubness of the unweighted distance.

    Returns:
        h and s, float64 ``[m]`` each.
    """
    if method in {"dual", "whitened"}:
        return calibration.h.astype(np.float64), calibration.s.astype(np.float64)
    hubness = calibration.h_uniform if method == "probelog" else calibration.h
    return hubness.astype(np.float64), np.ones(len(hubness))


def local_documents(table: OutputTable, layout: StoreLayout) -> tuple[npt.NDArray[np.uint32], FloatArray]:
    """The scaled linear form of each output, with ascending dimensions.

    Args:
        table: m outputs.
        layout: Of the store: n and the method.

    Returns:
        Dimensions uint32 ``[m, 2r + 2]`` and values float32 ``[m, 2r + 2]``: ``w z / c`` at i, ``w / c`` at n + i for
        each kept probe i, ``(h² - sum w z²) / c`` at 2n and ``s / 2h`` at 2n + 1, with ``c = 2 h s``.
    """
    n = layout.probes
    w = weights(table.z, check_method(layout.method)).astype(np.float64)
    h, s = local_constants(table.calibration, layout.method)
    c = (2 * h * s)[:, None]
    z = table.z.astype(np.float64)
    offset = (h[:, None] ** 2 - (w * z**2).sum(axis=1, keepdims=True)) / c
    extra = (s / (2 * h))[:, None]
    order = np.argsort(table.idx, axis=1)
    probes = np.take_along_axis(table.idx, order, axis=1).astype(np.uint32)
    tail = np.broadcast_to(np.array([2 * n, 2 * n + 1], np.uint32), (len(table), 2))
    linear = np.take_along_axis(w * z / c, order, axis=1)
    square = np.take_along_axis(w / c, order, axis=1)
    dimensions = np.concatenate([probes, probes + np.uint32(n), tail], axis=1)
    return dimensions, np.concatenate([linear, square, offset, extra], axis=1).astype(np.float32)


def local_query(z_c: npt.NDArray[np.floating[Any]], threshold: float) -> tuple[npt.NDArray[np.uint32], FloatArray]:
    """The sparse query whose inner product with an output's scaled linear form is the score of the module's docstring.

    Args:
        z_c: Standardised similarities of the concept to all n probes ``[n]``.
        threshold: t, the margin above which the score is exact; 0 asks which outputs are closer than their background.

    Returns:
        Dimensions uint32 and values float32: ``2 z_c[i]`` at i, ``-z_c[i]²`` at n + i, 1 at 2n, ``t²`` at 2n + 1,
        without those that are 0.
    """
    z = z_c.astype(np.float64)
    values = np.concatenate([2 * z, -(z**2), [1.0, threshold**2]]).astype(np.float32)
    (dimensions,) = np.nonzero(values)
    return dimensions.astype(np.uint32), values[dimensions]


def global_scale(calibration: Calibration, method: str) -> FloatArray:
    """What the store divides an anchor by: q, or q_white for ``whitened``, float32 ``[m]``."""
    return calibration.q_white if method == "whitened" else calibration.q


def global_documents(table: OutputTable, method: str) -> FloatArray:
    """The global part of each output, float32 ``[m, d + 1]``.

    ``(a / q, -g / q)``; for ``whitened`` ``(a / q_white, -g_white / q_white + prior)``.
    """
    constants = table.calibration
    q = global_scale(constants, method).astype(np.float64)[:, None]
    if method == "whitened":
        offset = constants.prior.astype(np.float64)[:, None] - constants.g_white.astype(np.float64)[:, None] / q
    else:
        offset = -constants.g.astype(np.float64)[:, None] / q
    return np.concatenate([table.anchor / q, offset], axis=1).astype(np.float32)


def global_query(direction: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """The dense query whose inner product with an output's global part is its global evidence.

    Args:
        direction: Of the concept, ``t / sigma``, or ``u / tau`` for ``whitened``, float ``[d]``
            (``ConceptDescriptors.directions``).

    Returns:
        The direction and 1, float32 ``[d + 1]``.
    """
    return np.append(direction.astype(np.float64), 1.0).astype(np.float32)


def output_points(table: OutputTable, layout: StoreLayout, rows: slice = slice(None)) -> Iterator[OutputPoint]:
    """The points of some of a table's outputs.

    Args:
        table: Outputs of one model, checked with :func:`check_table`.
        layout: Of the store.
        rows: Which outputs; all unless told.

    Yields:
        One point an output, in the order of the table. Dimensions of probes without weight are left out.
    """
    part = _rows(table, rows)
    dimensions, values = local_documents(part, layout)
    dense = global_documents(part, layout.method).tolist()
    exact = _exact(part)
    linear = 2 * layout.top_r  # the two dimensions after these stay, even when they are 0
    complete = (values[:, :linear] != 0).all(axis=1)
    for i, output in enumerate(part.output.tolist()):
        row, numbers = dimensions[i], values[i]
        if not complete[i]:
            keep = numbers != 0
            keep[linear:] = True
            row, numbers = row[keep], numbers[keep]
        payload = {REPO: part.repo, REVISION: part.revision, OUTPUT: output, EXACT: exact[i]}
        label = part.labels[i]
        if label is not None:
            payload[LABEL] = label.encode("utf-8", "replace").decode()  # JSON from the Hub may hold lone surrogates
        point_id = output_point_id(part.repo, part.revision, output)
        yield OutputPoint(point_id, row.tolist(), numbers.tolist(), dense[i], payload)


def output_table(repo: str, revision: str, stored: Iterable[StoredOutput], layout: StoreLayout) -> OutputTable | None:
    """The outputs of one model as they were written, from their points in any order.

    Everything is bit for bit what was written except the anchor: it is the dense vector times its scale, two
    roundings to float32, which is 2^-23 of each component at most (1.2e-7, relative).

    Args:
        repo: Whose outputs they are.
        revision: Of the model.
        stored: Their points.
        layout: Of the store.

    Returns:
        The table by ascending output, None if there are no points. Points without dense vectors give a table whose
        anchors have no columns.

    Raises:
        ValueError: A point is not what this module wrote.
    """
    points = sorted(stored, key=lambda point: int(point.payload[OUTPUT]))
    if not points:
        return None
    record = exact_dtype(layout.top_r)
    raw = [binascii.a2b_base64(point.payload[EXACT]) for point in points]
    if any(len(row) != record.itemsize for row in raw):
        raise ValueError(f"an output of {repo}@{revision} is not a record with top_r {layout.top_r}")
    exact = np.frombuffer(b"".join(raw), dtype=record)
    calibration = Calibration(**{name: exact[name].astype(np.float32) for name in _CONSTANTS})
    scale = global_scale(calibration, layout.method).astype(np.float64)
    dense = np.array([point.dense for point in points], dtype=np.float32)
    anchor = (dense[:, :-1].astype(np.float64) * scale[:, None]).astype(np.float32)
    return OutputTable(
        repo=repo,
        revision=revision,
        output=np.array([int(point.payload[OUTPUT]) for point in points], dtype=np.int64),
        labels=tuple(point.payload.get(LABEL) for point in points),
        mean=exact["mean"].astype(np.float64),
        std=exact["std"].astype(np.float64),
        idx=exact["idx"].astype(np.uint16),
        z=exact["z"].astype(np.float32),
        anchor=anchor,
        calibration=calibration,
        background=_background(points),
    )


def _background(points: Iterable[StoredOutput]) -> str | None:
    """What the points say of the background behind their constants; see ``OutputTable.background``."""
    found = {point.payload.get(BACKGROUND) for point in points}
    return found.pop() if len(found) == 1 else MIXED


def output_tables(stored: Iterable[StoredOutput], layout: StoreLayout) -> list[OutputTable]:
    """The outputs of several models, from points with :data:`ROW_FIELDS` in any order.

    Returns:
        A table a model and revision, ordered by them; see :func:`output_table`.
    """
    groups: dict[tuple[str, str], list[StoredOutput]] = {}
    for point in stored:
        groups.setdefault((point.payload[REPO], point.payload[REVISION]), []).append(point)
    made = (output_table(*names, points, layout) for names, points in sorted(groups.items(), key=lambda item: item[0]))
    return [table for table in made if table is not None]


def model_payload(model: Model) -> dict[str, Any]:
    """A model's record as a JSON object; what is None is left out."""
    payload: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return payload


def model_record(payload: Mapping[str, Any]) -> Model:
    """A model's record from what :func:`model_payload` made of it."""
    return Model.model_validate(dict(payload))


def model_point_id(repo: str) -> str:
    """The id of a repository's model record."""
    return Model(repo=repo, revision="").point_id


def just_below(threshold: float) -> float:
    """The greatest float32 below a threshold.

    Whether a score that equals the threshold passes differs between engines; so those are asked for, and compared here.
    """
    return float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))


def hit_ids(found: Iterable[StoreHit]) -> list[str]:
    """The ids of the outputs that hits name, in their order."""
    return [output_point_id(hit.repo, hit.revision, hit.output) for hit in found]


def hits(scored: Iterable[tuple[Mapping[str, Any], float]]) -> list[StoreHit]:
    """Candidates from payloads and scores: by descending score, equal ones by repository, revision and output."""
    found = [StoreHit(p[REPO], p[REVISION], int(p[OUTPUT]), float(score)) for p, score in scored]
    return sorted(found, key=lambda hit: (-hit.score, hit.repo, hit.revision, hit.output))


def _rows(table: OutputTable, rows: slice) -> OutputTable:
    return OutputTable(
        repo=table.repo,
        revision=table.revision,
        output=table.output[rows],
        labels=table.labels[rows],
        mean=table.mean[rows],
        std=table.std[rows],
        idx=table.idx[rows],
        z=table.z[rows],
        anchor=table.anchor[rows],
        calibration=table.calibration.take(rows),
        background=table.background,
    )


def _exact(table: OutputTable) -> list[str]:
    records = np.empty(len(table), dtype=exact_dtype(table.z.shape[1]))
    for name in ("mean", "std", "idx", "z"):
        records[name] = getattr(table, name)
    for name in _CONSTANTS:
        records[name] = getattr(table.calibration, name)
    return [binascii.b2a_base64(record.tobytes(), newline=False).decode("ascii") for record in records]
