"""One dense vector an output that stands for both parts of its margin, so that a graph (HNSW) finds candidates.

A margin is ``(h - d) / s + a . y + offset``, y the concept's direction. Its first term is nearly linear: with the
threshold t of :mod:`engine.store.records` it is ``x . phi + const`` but for ``(s / 2h) (m² - t²)``, where m is the
term's value, x the output's sparse document (2r numbers of 2n) and ``phi = [2 z_c; -z_c²]``. t is baked in: the median
of m among the best outputs, where the linear form should be right. The code shortens ``x . phi`` in two steps:

1. **Regression.** phi is mostly a linear function of y (of its first half exactly so where y is ``t / sigma``):
   ``phi = mean + (y - start) slope + rest``. What this says of x costs no dimension: ``x slope^T`` is added to the
   anchor, ``x . mean`` to the offset, both exact for every output.
2. **Low rank.** Only ``x . rest`` is approximated. The best k numbers are those that keep the products of the outputs
   and concepts *as they occur*: ``G = X R^T`` over a sample of both (columns centred: what all outputs share moves no
   order) has the singular vectors V, an output is encoded by ``x (R^T V)``, and a concept by the least squares solution
   over the sample. No other k linear functions of the outputs come closer to G in the square mean (Eckart and Young).

The vectors ``v = (anchor', code, offset')`` and ``q = (y, code_c, 1)`` have the right products, but a graph compares
outputs with each other. Three more steps make them navigable; none changes the order of the products:

3. **Centring**: the mean of v is subtracted.
4. **Metric**: v is multiplied with ``C^(1/2)`` and q with ``C^(-1/2)``, ``C = E[q q^T]`` over the concepts. Then
   ``|v - v'|² = E[(q . v - q . v')²]``: two outputs are near each other if concepts tell them apart little.
5. **Equal norms**: ``sqrt(R² - |v|²)`` is appended to v and 0 to q (Bachrach et al. 2014): all v then lie on a sphere,
   where the largest product is the nearest neighbour. Without it the graph leads to the longest vectors.

An output that is added later and is longer than R gets 0 in that place: its products stay right, and it is a little too
often visited. How many there are is counted.

At last both are **rotated** at random, which changes no product and no length, and makes all numbers of a vector about
equally large: else 8 bits would be spent on the few that are.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.sparse import csr_matrix, vstack

from engine.descriptors import ConceptDescriptors
from engine.distance import Method, check_method, correlations, distances
from engine.errors import IndexDamagedError, InputError
from engine.files import write_atomic
from engine.outputs import FloatArray, OutputTable
from engine.store.base import StoreLayout
from engine.store.records import global_documents, local_constants, local_documents

RANK = 128
"""Dimensions of the low-rank part."""

FEWEST_CONCEPTS = 50
"""With fewer there is nothing to be learnt from."""

HEADROOM = 1.05
"""R, as a share of the longest vector of the sample."""

_BEST = 20  # outputs of the sample that are the best for a concept
_LOOKED_AT = 64  # concepts that the threshold is chosen by
_RIDGE = 1e-3  # of the mean variance of a direction
_FLOOR = 1e-3  # of the median eigenvalue of C: below, concepts do not vary, and C^(-1/2) would be noise
_BLOCK = 4_096  # outputs encoded at once

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class JointCode:
    """A fitted code; n probes, d dimensions of the encoder, rank k, ``D = d + k + 1``.

    Attributes:
        method: Whose margins it stands for.
        background: Fingerprint of the background behind the constants of the outputs.
        top_r: Kept probes per output.
        threshold: t, a local margin.
        radius: R.
        mean: Of phi, ``[2n]``.
        start: Mean direction of a concept ``[d]``.
        slope: ``[d, 2n]``.
        basis: Encodes outputs, ``[2n, k]``.
        solver: Encodes what the regression leaves of phi, ``[k, 2n]``.
        forward: ``C^(1/2)``, ``[D, D]``.
        backward: ``C^(-1/2)``, ``[D, D]``.
        centre: Mean of the outputs after ``forward``, ``[D]``.
        rotation: Orthogonal, ``[D + 1, D + 1]``.
    """

    method: Method
    background: str
    top_r: int
    threshold: float
    radius: float
    mean: FloatArray
    start: FloatArray
    slope: FloatArray
    basis: FloatArray
    solver: FloatArray
    forward: FloatArray
    backward: FloatArray
    centre: FloatArray
    rotation: FloatArray

    @property
    def size(self) -> int:
        """Length of a vector, D + 1."""
        return len(self.centre) + 1

    @property
    def rank(self) -> int:
        """Of the low-rank part, k."""
        return int(self.basis.shape[1])

    @cached_property
    def layout(self) -> StoreLayout:
        """Of the outputs that it encodes."""
        return StoreLayout(len(self.mean) // 2, self.top_r, len(self.start), self.method)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything in it."""
        digest = hashlib.sha256()
        for name, value in self._values().items():
            digest.update(f"{name}{value.dtype}{value.shape}".encode() + value.tobytes())
        return digest.hexdigest()

    def encode_outputs(self, table: OutputTable) -> FloatArray:
        """Vectors of outputs.

        Args:
            table: m outputs, made with the index's probes and background.

        Returns:
            float32 ``[m, size]``, of length R or longer.
        """
        parts = [np.zeros((0, self.size), np.float32)]
        for part in _blocks(table):
            vectors = _documents(part, self.layout, self.threshold).through(self._projection, self._forward)
            vectors -= self.centre
            rest = self.radius**2 - (vectors**2).sum(axis=1, keepdims=True)
            level = np.concatenate([vectors, np.sqrt(np.maximum(rest, 0))], axis=1)
            parts.append((level @ self._rotation).astype(np.float32))
        return np.concatenate(parts)

    def overlong(self, vectors: FloatArray) -> int:
        """How many of some outputs' vectors are longer than R."""
        return int((np.linalg.norm(vectors, axis=1) > self.radius * (1 + 1e-4)).sum())

    def encode_concepts(self, concepts: ConceptDescriptors) -> FloatArray:
        """Vectors of concepts, whose products with those of outputs have the order of the margins, nearly.

        Returns:
            float32 ``[c, size]``.
        """
        q = self._queries(concepts) @ self.backward.astype(np.float64)
        return np.asarray(q @ self._rotation[:-1], dtype=np.float32)

    def as_long(self, queries: FloatArray) -> FloatArray:
        """Vectors of concepts brought to the length R, which changes no order.

        Numbers of 8 bits are those of the outputs' range: longer queries would be cut off.
        """
        lengths = np.linalg.norm(queries, axis=-1, keepdims=True)
        return np.asarray(queries * (self.radius / np.maximum(lengths, 1e-30)), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Writes it atomically.

        Raises:
            OSError: It cannot be written.
        """
        values = self._values()
        write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **values))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it.

        Raises:
            IndexDamagedError: It is missing or damaged.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                values: dict[str, Any] = {field.name: file[field.name] for field in fields(cls)}
            values |= {"method": check_method(str(values["method"])), "background": str(values["background"])}
            values |= {"top_r": int(values["top_r"])}
            code = cls(**values | {name: float(values[name]) for name in ("threshold", "radius")})
            code._check()
        except (OSError, ValueError, KeyError, EOFError, TypeError, InputError, zipfile.BadZipFile) as error:
            message = f"the index file {path} cannot be read: {error}: make it again with 'hubhound index candidates'"
            raise IndexDamagedError(" ".join(message.split()), path) from error
        return code

    def _check(self) -> None:
        n2, d, k, size = len(self.mean), len(self.start), self.basis.shape[-1], len(self.centre)
        shapes = {
            "slope": (d, n2),
            "basis": (n2, k),
            "solver": (k, n2),
            "forward": (size,) * 2,
            "backward": (size,) * 2,
        }
        if size != d + k + 1 or any(getattr(self, name).shape != shape for name, shape in shapes.items()):
            raise ValueError("its arrays do not fit each other")

    def _values(self) -> dict[str, npt.NDArray[Any]]:
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @cached_property
    def _forward(self) -> Float64Array:
        return self.forward.astype(np.float64)

    @cached_property
    def _rotation(self) -> Float64Array:
        return self.rotation.astype(np.float64)

    @cached_property
    def _projection(self) -> Float64Array:
        """From an output's sparse document to its vector, ``[2n, D]``."""
        d = len(self.start)
        constant = self.mean - self.start.astype(np.float64) @ self.slope
        return np.asarray(
            self.slope.T @ self._forward[:d] + self.basis @ self._forward[d:-1] + constant[:, None] * self._forward[-1]
        )

    def _queries(self, concepts: ConceptDescriptors) -> Float64Array:
        y = concepts.directions(self.method == "whitened")
        rest = _phi(concepts) - self.mean - (y - self.start) @ self.slope.astype(np.float64)
        return np.concatenate([y, rest @ self.solver.T.astype(np.float64), np.ones((len(y), 1))], axis=1)


def fit(
    tables: Sequence[OutputTable],
    concepts: ConceptDescriptors,
    layout: StoreLayout,
    background: str,
    rank: int = RANK,
) -> JointCode:
    """Fits a code to a sample of outputs and of concepts.

    Args:
        tables: The outputs, some thousands, of many models.
        concepts: Some thousands; more than the encoder has dimensions, else the regression explains little.
        layout: Of the outputs' store.
        background: Fingerprint of the background behind their constants.
        rank: k; less where the sample has not as many independent directions.

    Raises:
        InputError: There are no outputs or too few concepts.
    """
    method = check_method(layout.method)
    if not sum(map(len, tables)) or len(concepts) < FEWEST_CONCEPTS:
        raise InputError(
            f"a code cannot be fitted to {sum(map(len, tables))} outputs and {len(concepts)} concepts: "
            f"there must be outputs, and {FEWEST_CONCEPTS} concepts"
        )
    threshold = _threshold(tables, concepts, method)
    parts = [_documents(part, layout, threshold) for table in tables for part in _blocks(table)]
    x = vstack([part.sparse for part in parts], format="csr")
    phi, y = _phi(concepts), concepts.directions(method == "whitened")
    mean, start = phi.mean(axis=0), y.mean(axis=0)
    centred = y - start
    ridge = _RIDGE * len(y) * centred.var(axis=0).mean() * np.eye(y.shape[1])
    slope = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (phi - mean))
    rest = phi - mean - centred @ slope
    basis, solver = _low_rank(x, rest, rank)
    q = np.concatenate([y, rest @ solver.T, np.ones((len(y), 1))], axis=1)
    forward, backward = _metric(q)
    d, k = len(start), basis.shape[1]
    constant = mean - start @ slope
    projection = slope.T @ forward[:d] + basis @ forward[d : d + k] + constant[:, None] * forward[-1]
    v = np.concatenate([part.through(projection, forward) for part in parts])
    centre = v.mean(axis=0)
    radius = HEADROOM * float(np.linalg.norm(v - centre, axis=1).max())
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(centre) + 1,) * 2))
    arrays = (mean, start, slope, basis, solver, forward, backward, centre, rotation)
    return JointCode(method, background, layout.top_r, threshold, radius, *(a.astype(np.float32) for a in arrays))


def take(table: OutputTable, rows: slice | npt.NDArray[np.intp]) -> OutputTable:
    """Some of a table's outputs.

    Args:
        table: Outputs of one model.
        rows: Which, ascending.
    """
    labels = table.labels[rows] if isinstance(rows, slice) else tuple(table.labels[row] for row in rows.tolist())
    names = ("output", "mean", "std", "idx", "z", "anchor")
    columns: dict[str, Any] = {name: getattr(table, name)[rows] for name in names}
    return replace(table, labels=labels, calibration=table.calibration.take(rows), **columns)


@dataclass(frozen=True)
class _Documents:
    """What margins are linear in: sparse ``[m, 2n]``, anchors over their scale ``[m, d]`` and offsets ``[m]``."""

    sparse: csr_matrix
    anchor: Float64Array
    offset: Float64Array

    def through(self, projection: Float64Array, forward: Float64Array) -> Float64Array:
        """Vectors ``[m, D]``, before they are centred."""
        linear = self.sparse @ projection + self.anchor @ forward[: self.anchor.shape[1]]
        return np.asarray(linear + self.offset[:, None] * forward[-1])


def _blocks(table: OutputTable) -> Iterator[OutputTable]:
    for start in range(0, len(table), _BLOCK):
        yield take(table, slice(start, start + _BLOCK))


def _documents(table: OutputTable, layout: StoreLayout, threshold: float) -> _Documents:
    dimensions, values = local_documents(table, layout)
    linear = 2 * layout.top_r
    m = len(table)
    bounds = np.arange(0, m * linear + 1, linear)
    shape = (m, 2 * layout.probes)
    sparse = csr_matrix((values[:, :linear].ravel().astype(np.float64), dimensions[:, :linear].ravel(), bounds), shape)
    offset = values[:, linear].astype(np.float64) + threshold**2 * values[:, linear + 1]
    if layout.method in {"dual", "whitened"}:
        dense = global_documents(table, layout.method).astype(np.float64)
        return _Documents(sparse, dense[:, :-1], offset + dense[:, -1])
    return _Documents(sparse, np.zeros((m, layout.dimension)), offset)


def _phi(concepts: ConceptDescriptors) -> Float64Array:
    z = concepts.z.astype(np.float64)
    return np.concatenate([2 * z, -(z**2)], axis=1)


def _threshold(tables: Sequence[OutputTable], concepts: ConceptDescriptors, method: Method) -> float:
    """Median local margin of the best outputs of the sample for some concepts, >= 0."""
    some = np.unique(np.linspace(0, len(concepts) - 1, _LOOKED_AT).astype(int))
    white = None if concepts.white is None else concepts.white[some]
    asked = ConceptDescriptors(concepts.t[some], concepts.z[some], concepts.sigma[some], white)
    local, margin = [], []
    for table in tables:
        h, s = local_constants(table.calibration, method)
        own = (h - distances(table.idx, table.z, asked.z, method)) / s
        local.append(own)
        margin.append(own + _global(table, asked, method))
    locals_, margins = np.concatenate(local, axis=1), np.concatenate(margin, axis=1)
    best = np.argsort(-margins, axis=1, kind="stable")[:, :_BEST]
    return max(0.0, float(np.median(np.take_along_axis(locals_, best, axis=1))))


def _global(table: OutputTable, concepts: ConceptDescriptors, method: Method) -> Float64Array:
    constants = table.calibration
    if method == "whitened":
        white = correlations(table.anchor, concepts, True).astype(np.float64)
        return np.asarray((white - constants.g_white) / constants.q_white + constants.prior)
    if method == "dual":
        return np.asarray((correlations(table.anchor, concepts).astype(np.float64) - constants.g) / constants.q)
    return np.zeros((len(concepts), len(table)))


def _low_rank(x: csr_matrix, rest: Float64Array, rank: int) -> tuple[Float64Array, Float64Array]:
    """The best k linear functions of outputs, ``[2n, k]``, and of concepts, ``[k, 2n]``, for the products x . rest."""
    mean = np.asarray(x.mean(axis=0)).ravel()
    products = (x @ rest.T - rest @ mean).astype(np.float32)
    gram = (products.T @ products).astype(np.float64)
    rank = min(rank, len(gram))
    values, vectors = eigh(gram, subset_by_index=(len(gram) - rank, len(gram) - 1))
    kept = values > 1e-7 * max(float(values[-1]), 1e-30)
    basis = rest.T @ vectors[:, kept]
    codes = x @ basis - mean @ basis
    crossed = (x.T @ codes).T - codes.sum(axis=0)[:, None] * mean
    squares = codes.T @ codes
    ridge = 1e-9 * np.trace(squares) / max(1, len(squares)) * np.eye(len(squares))
    return basis, np.linalg.solve(squares + ridge, crossed)


def _metric(q: Float64Array) -> tuple[Float64Array, Float64Array]:
    """``C^(1/2)`` and ``C^(-1/2)`` of concepts, eigenvalues no smaller than the floor."""
    values, vectors = eigh(q.T @ q / len(q))
    roots = np.sqrt(np.maximum(values, _FLOOR * np.median(values)))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
