"""How fast is one exact query over every output, against the memory it reads and against other ways to compute it?

    python benchmarks/scan.py [--small]

Synthetic outputs that respond as outputs do: 2000 directions of meaning in a 512-dimensional space, each output the
similarity of one direction to 4000 probes plus noise of the same strength, described and calibrated by the real code;
larger sizes have varied copies. A query is a direction with noise. One thread, best of many runs taken in turn with a
plain sum of the very bytes that the scan must read.

Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # every peer has one thread; read when numpy is imported

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numba
import numpy as np

from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise, output_descriptors
from engine.distance import Method, weights
from engine.outputs import OutputTable
from engine.scan import ScanArrays, pack, top_k

D, N, R, MEANINGS = 512, 4_000, 50, 2_000
QUERIES = 8


@numba.njit(fastmath=True)
def plain_sum(words: np.ndarray) -> np.uint64:
    """Reads every byte once, as fast as one thread can."""
    total = np.uint64(0)
    for i in range(words.shape[0]):
        total += words[i]
    return total


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="20,000 outputs only.")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    meanings = normalise(rng.standard_normal((MEANINGS, D)))
    probes = normalise(rng.standard_normal((N, D)) + 1)  # images have much in common: a mean direction
    background = Background.describe(tuple(map(str, range(500))), rng.standard_normal((500, D)), probes, 10)
    base, table = outputs(10_000 if options.small else 40_000, rng, meanings, probes, background)
    queries = concept_descriptors(
        meanings[rng.integers(0, MEANINGS, QUERIES)] + 0.8 * normalise(rng.standard_normal((QUERIES, D))),
        probes,
        background.whitening,
    )
    figures: dict[str, object] = {"n": {}}
    for rows in (20_000,) if options.small else (85_000, 1_000_000):
        arrays = grown(base, rows, rng)
        entry: dict[str, dict[str, float]] = {}
        print(f"\n{rows:,} outputs, one query, one thread{'':12}{'ms':>9}{'to memory':>12}{'to numpy':>12}")
        for name, method in (
            ("local", "weighted"),
            ("probelog", "probelog"),
            ("dual", "dual"),
            ("whitened", "whitened"),
        ):
            entry[name] = measured(arrays, queries, method)  # type: ignore[arg-type]
            e = entry[name]
            print(f"  {name:40}{e['ms']:9.2f}{e['ratio_to_memory']:12.2f}{e['ratio_to_numpy']:12.3f}")
        others(arrays, queries, entry)
        figures["n"][str(rows)] = entry  # type: ignore[index]
        if rows == 85_000 or options.small:
            embedded(table, queries, rows, entry)
        del arrays
    figures["bytes_scanned"] = base.bytes_scanned("whitened")
    places = {field.name: getattr(base, field.name) for field in fields(ScanArrays)}
    stored = {name: c.itemsize * int(np.prod(c.shape[1:], dtype=np.int64)) for name, c in places.items()}
    stored |= {"output": 4, "label": 4}  # which output it is, and the number of its label
    figures["bytes_stored"] = sum(stored.values())
    print(f"\nbytes an output: {figures['bytes_scanned']} read by a whitened query, {figures['bytes_stored']} stored")
    print("  " + ", ".join(f"{name} {size}" for name, size in stored.items()))
    print(json.dumps(figures))


def outputs(
    count: int, rng: np.random.Generator, meanings: np.ndarray, probes: np.ndarray, background: Background
) -> tuple[ScanArrays, OutputTable]:
    """Outputs made by the real code from synthetic responses."""
    parts, tables = [], []
    for start in range(0, count, 5_000):
        size = min(5_000, count - start)
        signal = meanings[rng.integers(0, MEANINGS, size)] @ probes.T
        signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
        made = output_descriptors((signal + rng.standard_normal(signal.shape, dtype=np.float32)).T, probes, R)
        constants = calibrate(made.idx, made.z, made.anchor, background)
        parts.append(pack(made.idx, made.z, made.anchor, constants))
        tables.append(
            OutputTable(
                f"org/m{start}",
                "r",
                made.output,
                (None,) * size,
                made.mean,
                made.std,
                made.idx,
                made.z,
                made.anchor,
                constants,
            )
        )
    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(ScanArrays)}
    return ScanArrays(**joined), tables[0]


def grown(base: ScanArrays, rows: int, rng: np.random.Generator) -> ScanArrays:
    """More outputs: varied copies, so that no two are equal."""
    pick = rng.permutation(np.arange(rows) % len(base))
    arrays = ScanArrays(**{f.name: getattr(base, f.name)[pick] for f in fields(ScanArrays)})
    factor = rng.uniform(0.9, 1.1, (rows, 1)).astype(np.float32)
    change = rng.uniform(0.97, 1.03, rows).astype(np.float32)
    return replace(
        arrays,
        head_z=arrays.head_z * factor,
        tail_z=arrays.tail_z * factor,
        h=arrays.h * change,
        g=arrays.g * change,
        g_white=arrays.g_white * change,
    )


def best_of(runs: int, *calls: Callable[[], object]) -> list[float]:
    """Shortest seconds of each call, taken in turn."""
    best = [np.inf] * len(calls)
    for call in calls:
        call()
    for _ in range(runs):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - started)
    return best


def measured(arrays: ScanArrays, queries: ConceptDescriptors, method: Method) -> dict[str, float]:
    """The scan against the sum and against numpy: mean over the queries of the best times."""
    words = [
        part.reshape(-1).view(np.uint8)[: part.nbytes // 8 * 8].view(np.uint64) for part in scanned(arrays, method)
    ]
    runs = 40 if len(arrays) < 200_000 else 8
    times = []
    for i in range(QUERIES):
        one = queries.take(i)
        scan, memory = best_of(
            runs,
            lambda one=one: top_k(arrays, one, 10, method, threads=1, kernel="numba"),
            lambda: [plain_sum(part) for part in words],
        )
        times.append((scan, memory))
    one = queries.take(0)
    (plain,) = best_of(2, lambda: top_k(arrays, one, 10, method, threads=1, kernel="numpy"))
    (ten,) = best_of(2, lambda: top_k(arrays, queries, 10, method, threads=1, kernel="numba"))
    scan, memory = (float(np.mean(column)) for column in zip(*times, strict=True))
    return {
        "ms": round(scan * 1e3, 3),
        "ratio_to_memory": round(scan / memory, 3),
        "memory_ms": round(memory * 1e3, 3),
        "worst_query_ratio": round(max(s / m for s, m in times), 3),
        "ratio_to_numpy": round(scan / plain, 4),
        f"ms_{QUERIES}_queries_in_one_call": round(ten * 1e3, 2),
    }


def scanned(arrays: ScanArrays, method: Method) -> list[np.ndarray]:
    """The columns that a scan reads."""
    parts = [arrays.head_idx, arrays.head_z, arrays.tail_idx, arrays.tail_z]
    terms = arrays.terms(method)
    parts += [array for array in terms if len(array)]
    if len(terms.q):
        parts += [arrays.code, arrays.scale, arrays.error]
    return parts


def others(arrays: ScanArrays, queries: ConceptDescriptors, entry: dict[str, dict[str, float]]) -> None:
    """The same work by scipy's sparse product (local) and a BLAS product over float32 anchors (global)."""
    import scipy.sparse

    rows = len(arrays)
    idx, z = arrays.kept(slice(None))
    w = weights(z, "weighted")
    indices = np.concatenate([idx, idx.astype(np.int32) + N], axis=1).astype(np.int32)
    matrix = scipy.sparse.csr_matrix(
        (np.concatenate([w * z, w], axis=1).ravel(), indices.ravel(), np.arange(rows + 1) * 2 * R), (rows, 2 * N)
    )
    query = np.concatenate([2 * queries.z[0], -(queries.z[0] ** 2)])
    (sparse,) = best_of(3, lambda: matrix @ query)
    anchors = arrays.code.astype(np.float32)
    (dense,) = best_of(3, lambda: anchors @ queries.t[0])
    entry["local"]["ratio_to_scipy_csr"] = round(entry["local"]["ms"] / 1e3 / sparse, 4)
    entry["dual"]["ratio_to_blas_anchors"] = round(entry["dual"]["ms"] / 1e3 / dense, 4)
    print(f"  scipy CSR product, local part alone     {sparse * 1e3:9.2f} ms, no top k")
    print(f"  BLAS product, float32 anchors alone     {dense * 1e3:9.2f} ms, no top k")


def embedded(table: OutputTable, queries: ConceptDescriptors, rows: int, entry: dict[str, dict[str, float]]) -> None:
    """The embedded engine's own sparse and dense queries, per output, on one model of 5,000 outputs."""
    from engine.store.base import StoreLayout
    from engine.store.edge import EdgeStore
    from engine.store.records import global_query, local_query

    copies = 10
    with (
        tempfile.TemporaryDirectory() as folder,
        EdgeStore.create(Path(folder) / "store", StoreLayout(N, R, D)) as store,
    ):
        for i in range(copies):
            store.upsert_outputs(replace(table, repo=f"org/copy{i}"))
        store.optimize()
        indices, values = local_query(queries.z[0], 0.0)
        local, world = best_of(
            5,
            lambda: store.query_local(indices, values, 10),
            lambda: store.query_global(global_query(queries.directions(True)[0]), 10),
        )
    per_output = 1e3 / (copies * len(table))
    entry["local"]["ratio_to_edge"] = round(entry["local"]["ms"] / rows / (local * per_output), 4)
    entry["dual"]["ratio_to_edge"] = round(entry["dual"]["ms"] / rows / ((local + world) * per_output), 4)
    print(
        f"  embedded engine, {copies * len(table):,} outputs: sparse {local * 1e3:.1f} ms, dense {world * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()
