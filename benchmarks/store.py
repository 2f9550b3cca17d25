"""Speed and size of the embedded store, against the disk itself.

    python benchmarks/store.py [--small] [--dimension 384] [--folder DIR]

Writes models of 1000 outputs each (r = 50 of 4000 probes), reads them back, searches, and says what each byte on disk
is for. The peer is the physical limit: the same bytes written to a file, with an fsync for every model. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.outputs import Calibration, OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore

PROBES, TOP_R, OUTPUTS = 4000, 50, 1000
REVISION = "3f9b1c7e5a2d4680bace13579f02468ace135791"
WORDS = (
    "great white shark",
    "golden retriever",
    "fire engine",
    "park bench",
    "espresso maker",
    "Chesapeake Bay",
    "lake",
)

USES = {
    "vector_storage-global": "dense vector (a / q, -g / q)",
    "vector_index-global": "dense index (none is built)",
    "vector_storage-local": "sparse vector as written",
    "vector_index-local": "sparse index: dimension -> outputs",
    "payload_storage": "payload: whose, label, exact numbers",
    "payload_index": "index of the payload by model",
    "id_tracker": "point ids and versions",
    "mutable_id_tracker": "point ids and versions",
    "wal": "write-ahead log kept for the next run",
    "models": "model records, with their own log",
}


def make_table(number: int, dimension: int) -> OutputTable:
    """Outputs that look like real ones: normal responses, labels of a few words, long repository names."""
    g = np.random.default_rng(number)
    responses = g.standard_normal((OUTPUTS, PROBES), np.float32)
    idx = np.argpartition(-responses, TOP_R, axis=1)[:, :TOP_R]
    z = np.take_along_axis(responses, idx, axis=1)
    order = np.argsort(-z, axis=1, kind="stable")
    constants = {name: g.uniform(5, 9, OUTPUTS) for name in ("h_uniform", "h")}
    constants |= {name: g.uniform(0.05, 1.5, OUTPUTS) for name in ("s", "g", "q", "g_white", "q_white", "prior")}
    return OutputTable(
        repo=f"timm/vit_base_patch16_224.augreg_in21k_ft_{number}",
        revision=REVISION,
        output=np.arange(OUTPUTS, dtype=np.int64),
        labels=tuple(", ".join(g.choice(WORDS, 2)) for _ in range(OUTPUTS)),
        mean=g.standard_normal(OUTPUTS),
        std=g.uniform(0.5, 2, OUTPUTS),
        idx=np.take_along_axis(idx, order, axis=1).astype(np.uint16),
        z=np.take_along_axis(z, order, axis=1),
        anchor=g.standard_normal((OUTPUTS, dimension), np.float32) * 0.05,
        calibration=Calibration(**{name: values.astype(np.float32) for name, values in constants.items()}),
    )


def raw_bytes(table: OutputTable) -> bytes:
    """The same numbers and names, packed."""
    arrays = (table.mean, table.std, table.idx, table.z, table.anchor, *vars(table.calibration).values())
    return b"".join(array.tobytes() for array in arrays) + "\n".join(map(str, table.labels)).encode()


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bytes_by_use(path: Path) -> Counter[str]:
    """Disk blocks by what they are for, in bytes (the files are sparse: their lengths mean nothing)."""
    found: Counter[str] = Counter()
    for file in path.rglob("*"):
        if file.is_file():
            parts = file.relative_to(path).parts
            name = (
                "models" if parts[0] == "models" else parts[3] if "segments" in parts else parts[1] if parts[1:] else ""
            )
            use = next((use for prefix, use in USES.items() if name.startswith(prefix)), "the rest")
            found[use] += file.stat().st_blocks * 512
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="6 models instead of 60")
    parser.add_argument("--models", type=int, help="how many models")
    parser.add_argument("--dimension", type=int, default=384, help="of the encoder")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    models = options.models or (6 if options.small else 60)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), models, options.dimension)


def run(folder: Path, models: int, dimension: int) -> None:
    """Writes, optimises, reads and searches a store of that many models; prints what it took."""
    layout = StoreLayout(PROBES, TOP_R, dimension)
    total = models * OUTPUTS
    figures: dict[str, object] = {"outputs": total, "dimension": dimension}
    flushed = models // 3  # the last ones
    seconds: dict[str, list[float]] = {"table": [], "cpu": [], "record": [], "flush": [], "raw": [], "encode": []}
    print(f"{models} models of {OUTPUTS} outputs, r = {TOP_R}, d = {dimension}, in {folder}")

    store = EdgeStore.create(folder / "store", layout)
    raw = (folder / "raw").open("wb")
    raw_size = 0
    for number in range(models):
        table = make_table(number, dimension)
        model = Model(repo=table.repo, revision=REVISION, library="timm", outputs=OUTPUTS, tags=("image", "timm"))
        packed = raw_bytes(table)
        raw_size += len(packed)
        seconds["raw"].append(timed(lambda: (raw.write(packed), raw.flush(), os.fsync(raw.fileno()))))  # noqa: B023
        seconds["encode"].append(timed(lambda: list(records.output_points(table, layout))))  # noqa: B023
        cpu = time.process_time()
        seconds["table"].append(timed(lambda: store.upsert_outputs(table)))  # noqa: B023
        seconds["cpu"].append(time.process_time() - cpu)
        seconds["record"].append(timed(lambda: store.upsert_model(model)))  # noqa: B023
        if number >= models - flushed:
            seconds["flush"].append(seconds["table"][-1] + seconds["record"][-1] + timed(store.flush))
    raw.close()
    written = [table + record for table, record in zip(seconds["table"], seconds["record"], strict=True)]
    write = sum(written[: models - flushed]) * models / (models - flushed)
    durable = sum(seconds["flush"]) * models / flushed
    figures["outputs_per_s"] = round(total / write)
    figures["outputs_per_s_median"] = round(OUTPUTS / statistics.median(seconds["table"]))
    figures["outputs_per_cpu_s"] = round(total / sum(seconds["cpu"]))
    figures["outputs_per_s_flushed"] = round(total / durable)
    figures["ratio_to_raw_write"] = round(write / sum(seconds["raw"]), 1)
    figures["ratio_to_raw_write_flushed"] = round(durable / sum(seconds["raw"]), 1)
    print(f"write      {total / write:10,.0f} outputs/s, acknowledged: survives a kill")
    print(f"           {total / durable:10,.0f} outputs/s with a flush after every model: survives a power cut")
    print(f"           {figures['outputs_per_cpu_s']:10,} outputs per second of processor time (on a busy machine)")
    print(f"           {total / sum(seconds['encode']):10,.0f} outputs/s for making the records alone")
    print(
        f"raw file   {total / sum(seconds['raw']):10,.0f} outputs/s, {raw_size / total:,.0f} bytes each, fsync a model"
    )
    ratios = figures["ratio_to_raw_write"], figures["ratio_to_raw_write_flushed"]
    print(f"           the store takes {ratios[0]} times as long, {ratios[1]} times when flushed")

    figures["optimize_s"] = round(timed(store.optimize), 2)
    store.close()
    figures["open_s"] = round(timed(lambda: EdgeStore.open(folder / "store").close()), 3)
    uses = bytes_by_use(folder / "store")
    size = sum(uses.values()) / total
    budget = 2500 + 4 * dimension
    figures |= {"bytes_per_output": round(size), "budget_bytes": budget}
    figures["bytes"] = {use: round(value / total, 1) for use, value in uses.most_common()}
    print(f"optimise   {figures['optimize_s']:10} s, then open and close {figures['open_s']} s")
    print(f"on disk    {size:10,.0f} bytes an output; the budget is 2,500 + 4 d = {budget:,}")
    for use, value in uses.most_common():
        print(f"           {value / total:10,.1f} {use}")

    with EdgeStore.open(folder / "store") as store:
        one = statistics.median(timed(lambda m=m: store.outputs(m.repo, REVISION)) for m in store.models()[:5])
        read = timed(lambda: sum(len(table) for table in store.iter_outputs(store.models())))
        g = np.random.default_rng(1)
        local = records.local_query(g.standard_normal(PROBES), 0.0)
        dense = records.global_query(g.standard_normal(dimension))
        query_local = [timed(lambda: store.query_local(*local, 100)) for _ in range(10)]
        query_global = [timed(lambda: store.query_global(dense, 100)) for _ in range(10)]
    figures["read_outputs_per_s"] = round(total / read)
    figures["read_one_model_ms"] = round(one * 1e3, 1)
    figures["query_local_ms"] = round(statistics.median(query_local) * 1e3, 1)
    figures["query_global_ms"] = round(statistics.median(query_global) * 1e3, 1)
    print(f"read back  {total / read:10,.0f} outputs/s; one model of {OUTPUTS} in {figures['read_one_model_ms']} ms")
    print(
        f"search     {figures['query_local_ms']:10} ms local part, {figures['query_global_ms']} ms global part, top 100"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
