"""How many of the exact best outputs does a graph over one short vector an output find, at what size and speed?

    python benchmarks/candidates.py [--small] [--index FOLDER] [--outputs 100000] [--folder DIR] [--only NAME...]

With --index the outputs of an embedded index (such as 'hubhound eval make-hub' derives) and names that are not in its
background; its encoder is loaded. Without, drawn outputs: directions of meaning with noise, described by the real code.
The graph is that of the embedded Qdrant engine. Peers in the same run: the plain inner product graph over
the same numbers without centring, metric and equal norms; the code's own order without a graph, which is the most that
any graph can find; and the exact scan.

Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import qdrant_edge as qe

from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise, output_descriptors
from engine.index import Index
from engine.joint import JointCode, fit
from engine.joint_making import MakingSettings, draw_names
from engine.joint_recall import candidates_wanted
from engine.outputs import Calibration, OutputTable
from engine.scan import pack, top_k
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from engine.store.joint import BUILD_BREADTH, LINKS, QUANTILE
from engine.store.shard import folder_bytes

OVERSAMPLINGS, BREADTHS, DEPTHS = (1, 2, 5, 10), (512, 1024, 2048, 4096), (10, 100)
SAMPLE = 20_000


class Hub(NamedTuple):
    """Outputs, and concepts to fit to and to ask for."""

    tables: list[OutputTable]
    fitted: ConceptDescriptors
    asked: ConceptDescriptors
    layout: StoreLayout


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="5,000 drawn outputs.")
    parser.add_argument("--index", type=Path, help="An embedded index; nobody else may have it open.")
    parser.add_argument("--outputs", type=int, default=100_000, help="How many of its outputs at most.")
    parser.add_argument("--folder", type=Path, help="Where the graphs are built; by default a temporary folder.")
    parser.add_argument("--only", nargs="*", help="Some of: float32 float16 int8 plain.")
    options = parser.parse_args()
    hub = of_index(options.index, options.outputs) if options.index else drawn(5_000 if options.small else 50_000)
    started = time.perf_counter()
    code = fit(sample(hub.tables), hub.fitted, hub.layout, "")
    fit_s = time.perf_counter() - started
    started = time.perf_counter()
    vectors = np.concatenate([code.encode_outputs(table) for table in hub.tables])
    encode_s = time.perf_counter() - started
    queries = code.encode_concepts(hub.asked)
    started = time.perf_counter()
    best = exact(hub)
    scan_ms = 1000 * (time.perf_counter() - started) / len(queries)
    figures: dict[str, object] = {
        "outputs": len(vectors),
        "concepts": len(queries),
        "dimensions": code.size,
        "threshold": round(code.threshold, 3),
        "fit_s": round(fit_s, 1),
        "encode_us": round(1e6 * encode_s / len(vectors), 1),
        "scan_ms": round(scan_ms, 2),
        "code": recalls(np.argsort(-(queries @ vectors.T), axis=1), best),
    }
    print(
        f"{len(vectors):,} outputs of {len(hub.tables):,} models, {len(queries)} held-out concepts, {code.size} numbers"
    )
    print(f"fitted in {fit_s:.1f} s, encoded in {figures['encode_us']} us an output, exact scan {scan_ms:.1f} ms")
    print(f"{'':24}{'recall of the best 10':>34}{'of the best 100':>36}")
    print(f"{'oversampling':24}" + 2 * "".join(f"{o:>8}" for o in OVERSAMPLINGS) + f"{'ms':>8}")
    show("order of the code", figures["code"])
    wanted = options.only or ["float32", "float16", "int8", "plain"]
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for name in wanted:
            used, asked = plain(code, vectors, queries) if name == "plain" else (vectors, code.as_long(queries))
            figures[name] = graph(Path(scratch) / name, name, used, asked, best)
    print(json.dumps(figures))


def of_index(folder: Path, outputs: int) -> Hub:
    """Outputs of an index; its names are those that 'hubhound index candidates' would draw."""
    index = Index(folder)
    snapshot, background = index.snapshot(), index.background()
    held_out, fitted = draw_names(index, background.names, MakingSettings())
    encoder = index.load_encoder()
    texts = index.embed([*held_out, *fitted], lambda t: encoder.encode_texts(t, index.manifest.encoder.templates))
    asked = index.describe(texts[: len(held_out)], background)
    known = ConceptDescriptors.join([index.describe(texts[len(held_out) :], background), background.concepts])
    tables, total = [], 0
    with EdgeStore.open(folder / "store") as store:
        layout = store.layout
        for table in store.iter_outputs(snapshot.models):
            tables.append(table)
            total += len(table)
            if total >= outputs:
                break
    return Hub(tables, known, asked, layout)


def drawn(outputs: int, d: int = 128, n: int = 1000, r: int = 50) -> Hub:
    """Outputs that respond as outputs do, of models of 100 outputs each."""
    rng = np.random.default_rng(0)
    meanings = normalise(rng.standard_normal((2_000, d)))
    probes = normalise(rng.standard_normal((n, d)) + 1)
    background = Background.describe(tuple(map(str, range(500))), rng.standard_normal((500, d)), probes, 10)
    tables = []
    for number in range(outputs // 100):
        similarity = probes @ meanings[rng.integers(0, len(meanings), 100)].T
        z = (similarity - similarity.mean(axis=0)) / similarity.std(axis=0)
        made = output_descriptors(2 * z + rng.standard_normal(z.shape), probes, r, "divisive")
        constants = calibrate(made.idx, made.z, made.anchor, background)
        labels = (None,) * len(made.output)
        columns = (made.output, labels, made.mean, made.std, made.idx, made.z, made.anchor, constants)
        tables.append(OutputTable(f"drawn/{number}", "1", *columns))
    near = meanings[rng.integers(0, len(meanings), 1_100)] + 0.8 * normalise(rng.standard_normal((1_100, d)))
    concepts = [concept_descriptors(part, probes, background.whitening) for part in (near[:1000], near[1000:])]
    return Hub(tables, concepts[0], concepts[1], StoreLayout(n, r, d))


def sample(tables: Sequence[OutputTable]) -> list[OutputTable]:
    """Whole models, drawn until there are 20,000 outputs."""
    order = np.random.default_rng(0).permutation(len(tables))
    chosen: list[OutputTable] = []
    for i in order:
        if sum(map(len, chosen)) >= SAMPLE:
            break
        chosen.append(tables[i])
    return chosen


def exact(hub: Hub) -> list[np.ndarray]:
    """Rows of the best 100 outputs for each concept, by the exact scan."""
    columns = [np.concatenate([getattr(table, name) for table in hub.tables]) for name in ("idx", "z", "anchor")]
    constants = {
        field.name: np.concatenate([getattr(table.calibration, field.name) for table in hub.tables])
        for field in fields(Calibration)
    }
    arrays = pack(*columns, Calibration(**constants))
    found = top_k(arrays, hub.asked, max(DEPTHS), hub.layout.method)  # type: ignore[arg-type]
    return [rows for rows, _ in found]


def plain(code: JointCode, vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same products from vectors as they come: not centred, in their own metric, of their own norms."""
    documents = ((vectors @ code.rotation.T)[:, :-1] + code.centre) @ code.backward
    return documents.astype(np.float32), ((queries @ code.rotation.T)[:, :-1] @ code.forward).astype(np.float32)


def recalls(ranked: Sequence[np.ndarray] | np.ndarray, best: list[np.ndarray]) -> dict[str, list[float]]:
    """Recall at every depth by oversampling."""
    return {
        str(k): [
            round(
                float(
                    np.mean(
                        [
                            np.isin(true[:k], rows[: candidates_wanted(k, o)]).mean()
                            for rows, true in zip(ranked, best, strict=True)
                        ]
                    )
                ),
                4,
            )
            for o in OVERSAMPLINGS
        ]
        for k in DEPTHS
    }


def graph(
    folder: Path, name: str, vectors: np.ndarray, queries: np.ndarray, best: list[np.ndarray]
) -> dict[str, object]:
    """Builds a graph and asks it."""
    folder.mkdir(parents=True)
    quantized = None
    if name == "int8":
        quantized = qe.ScalarQuantizationConfig(type=qe.ScalarType.Int8, quantile=QUANTILE, memory=qe.Memory.Pinned)
    params = qe.EdgeVectorParams(
        size=vectors.shape[1],
        distance=qe.Distance.Dot,
        datatype=qe.VectorStorageDatatype.Float16 if name in {"float16", "int8"} else qe.VectorStorageDatatype.Float32,
        hnsw_config=qe.HnswIndexConfig(LINKS, BUILD_BREADTH, full_scan_threshold=10),
        quantization_config=quantized,
    )
    optimizers = qe.EdgeOptimizersConfig(indexing_threshold=1000, default_segment_number=1, max_segment_size=1 << 30)
    shard = qe.EdgeShard.load(str(folder), qe.EdgeConfig(vectors={"joint": params}, optimizers=optimizers))
    started = time.perf_counter()
    for at in range(0, len(vectors), 2_000):
        rows = vectors[at : at + 2_000].tolist()
        points = [qe.Point(id=at + i, vector={"joint": row}, payload={}) for i, row in enumerate(rows)]
        shard.update(qe.UpdateOperation.upsert_points(points))
    written = time.perf_counter()
    shard.optimize()
    built = time.perf_counter()
    shard.flush()
    entry: dict[str, object] = {
        "write_s": round(written - started, 1),
        "build_s": round(built - written, 1),
        "indexed": shard.info().indexed_vectors_count,
        "breadth": {},
    }
    limit = candidates_wanted(max(DEPTHS), max(OVERSAMPLINGS))
    for breadth in BREADTHS:
        ranked, ms = [], []
        for query in queries.tolist():
            request = qe.QueryRequest(
                limit=limit,
                query=qe.Query.Nearest(query, using="joint"),
                params=qe.SearchParams(hnsw_ef=max(breadth, limit)),
            )
            before = time.perf_counter()
            found = shard.query(request)
            ms.append(1000 * (time.perf_counter() - before))
            ranked.append(np.array([hit.id for hit in found]))
        shares = {**recalls(ranked, best), "ms": round(float(np.median(ms)), 2)}
        entry["breadth"][str(breadth)] = shares  # type: ignore[index]
        show(f"{name}, breadth {breadth}", shares)
    shard.close()
    entry["bytes"] = round(folder_bytes(folder) / len(vectors))
    print(f"  {name}: {entry['bytes']} bytes an output on disk, built in {entry['build_s']} s")
    shutil.rmtree(folder)
    return entry


def show(name: str, shares: object) -> None:
    """One line of the table."""
    assert isinstance(shares, dict)
    numbers = "".join(f"{share:8.4f}" for k in DEPTHS for share in shares[str(k)])
    print(f"{name:24}{numbers}" + (f"{shares['ms']:8.2f}" if "ms" in shares else ""), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
