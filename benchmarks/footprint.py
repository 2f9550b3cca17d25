"""What one output costs beside running its model: processor time to describe it, memory of the engine that holds it.

    python benchmarks/footprint.py [--small] [--dimension 512]

The constants of ``hubhound plan`` that no other benchmark gives. *Describe*: processor time for descriptors (divisive
normalisation) and calibration of models of 1000 outputs over 4000 probes, r = 50, 500 background phrases. *Memory*: two
stores of different size are opened in processes of their own and searched, the dense part whole (exact, no graph) and
by sparse queries; the difference by the difference in outputs is what an output takes. *Own* is memory that cannot be
given back, *files* pages of mapped files, which the system drops when it must. Times are processor time of all threads,
the least of ten.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from store import OUTPUTS, PROBES, REVISION, TOP_R, make_table

from engine.calibration import Background, calibrate
from engine.descriptors import normalise, output_descriptors
from engine.schema import Model
from engine.store import records
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="Stores of 2,000 and 4,000 outputs.")
    parser.add_argument("--dimension", type=int, default=512, help="Of the encoder.")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(options.look)))
        return
    figures: dict[str, object] = {"describe_ms": describe(options.dimension, 2 if options.small else 5)}
    print(f"describe and calibrate   {figures['describe_ms']} ms of processor time an output")
    few, many = (2, 4) if options.small else (60, 160)  # beyond 40,000 the engine keeps outputs on disk
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for models in (few, many):
            place = Path(folder) / str(models)
            fill(place, models, options.dimension)
            command = [sys.executable, __file__, "--look", str(place)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[models] = json.loads(done.stdout.splitlines()[-1])
            print(f"{models * OUTPUTS:9,} outputs: {found[models]}")
    for key in found[few]:
        slope = (found[many][key] - found[few][key]) / ((many - few) * OUTPUTS)
        figures[f"{key}_per_output"] = round(slope, 6 if key.endswith("_ms") else 1)
        print(f"{key:24} {figures[f'{key}_per_output']} an output")
    print(json.dumps(figures))


def describe(dimension: int, rounds: int) -> float:
    """Milliseconds of processor time for one output."""
    g = np.random.default_rng(0)
    probes = normalise(g.standard_normal((PROBES, dimension)))
    background = Background.describe([f"phrase {i}" for i in range(500)], g.standard_normal((500, dimension)), probes)
    took = []
    for _ in range(rounds):
        responses = g.standard_normal((PROBES, OUTPUTS), np.float32)
        started = time.process_time()
        found = output_descriptors(responses, probes, TOP_R, "divisive")
        calibrate(found.idx, found.z, found.anchor, background)
        took.append(time.process_time() - started)
    return round(min(took) / OUTPUTS * 1e3, 3)


def fill(place: Path, models: int, dimension: int) -> None:
    """Makes a store of that many models."""
    with EdgeStore.create(place, StoreLayout(PROBES, TOP_R, dimension)) as store:
        for number in range(models):
            table = make_table(number, dimension)
            store.upsert_outputs(table)
            store.upsert_model(Model(repo=table.repo, revision=REVISION, library="timm", outputs=OUTPUTS))
        store.optimize()


def look(place: Path) -> dict[str, float]:
    """Memory and times of a process that searches a store."""
    g = np.random.default_rng(1)
    with EdgeStore.open(place) as store:
        dense = records.global_query(g.standard_normal(store.layout.dimension))
        sparse = records.local_query(g.standard_normal(PROBES), 0.0)
        times: dict[str, list[float]] = {"dense_ms": [], "sparse_ms": []}
        for _ in range(10):
            started = time.process_time()
            store.query_global(dense, 100)
            half = time.process_time()
            store.query_local(*sparse, 100)
            times["dense_ms"].append(1e3 * (half - started))
            times["sparse_ms"].append(1e3 * (time.process_time() - half))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {key: int(status[name].split()[0]) for key, name in (("own", "RssAnon"), ("files", "RssFile"))}
    return {
        "own_bytes": kilobytes["own"] * 1024,
        "files_bytes": kilobytes["files"] * 1024,
        **{key: round(min(values), 3) for key, values in times.items()},
    }


if __name__ == "__main__":
    main()
