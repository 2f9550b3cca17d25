"""Does the search of a Qdrant server find what a scan finds? Candidates, certificates and times of both, side by side.

    python benchmarks/server.py --index INDEX [--realhub FOLDER] [--url URL] [--concepts 100]
    python benchmarks/server.py --small

The outputs of INDEX, an embedded one (it is copied, not changed), are written to a server: the one at URL, else the
tests' stand-in, which speaks Qdrant's protocol over the embedded engine in a process of its own, so that its times are
not those of a real server. Then the same concepts are asked of both engines: class names of FOLDER (``images.csv``)
whether the index has seen them or not, else labels of the index. ``--small`` makes an index of numbers.

Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.index import Index
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore, connect
from engine.writer import IndexWriter
from query.answers import Result, ServedAnswer
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.support.qdrant_server import standin
from tests.support.small_index import encode, make_index, put_model

HITS = (10, 100)
"""Hits that are asked for."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--realhub", type=Path, default=Path(__file__).parents[2] / "shared" / "realhub")
    parser.add_argument("--url", help="of a Qdrant server; a collection is made there and removed")
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="an index of 400 invented outputs, ten concepts")
    options = parser.parse_args()
    if not options.small and (options.index is None or not options.index.is_dir()):
        sys.exit(f"server.py: --index {options.index}: there is no such folder")
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory()))
        if options.small:
            index, names, embed = small_index(work / "zoo"), [f"word {i}" for i in range(10)], encode
        else:
            shutil.copytree(options.index, work / "zoo")
            index, embed = Index(work / "zoo"), None
            names = class_names(options.realhub, index, options.concepts)
        index.embed(names, embed)
        url = options.url or held.enter_context(standin(work / "server")).url
        with filled(index, url) as store:
            try:
                measure(index, store, names, options.url or "stand-in")
            finally:
                store.destroy()


def small_index(folder: Path) -> Index:
    """Forty invented models of ten outputs."""
    make_index(folder)
    with IndexWriter(folder) as writer:
        for m in range(40):
            put_model(writer, f"org/m{m}", [f"word {(7 * m + 3 * i) % 53}" for i in range(10)], seed=m)
        writer.finish()
    return Index(folder)


def class_names(realhub: Path, index: Index, count: int) -> list[str]:
    """Class names to ask for, drawn from those of the photographs or from the labels."""
    names = [label.split(",")[0] for label in index.snapshot().labels]
    if (realhub / "images.csv").is_file():
        with (realhub / "images.csv").open(newline="") as file:
            names = [row["label"].split(",")[0] for row in csv.DictReader(file)]
    names = sorted({" ".join(name.split()) for name in names})
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))[:count]]


def filled(index: Index, url: str) -> ServerStore:
    """A store on a server with what the index holds."""
    with EdgeStore.open(index.folder / "store") as embedded:
        store = ServerStore.create(connect(url), f"benchmark_{uuid.uuid4().hex[:12]}", embedded.layout)
        models = embedded.models()
        started = time.perf_counter()
        for table in embedded.iter_outputs([model for model in models if model.outputs]):
            store.upsert_outputs(table)
        for model in models:
            store.upsert_model(model)
    took = time.perf_counter() - started
    print(f"{store.count_outputs():,} outputs of {len(models):,} models written to the server in {took:.0f} s")
    return store


def measure(index: Index, store: ServerStore, names: list[str], server: str) -> None:
    """Asks both engines and prints what they find."""
    requests = [0]

    def counted(*_: object) -> None:
        requests[0] += 1

    http(store).event_hooks = {"request": [counted]}
    scan, served = Searcher(index), ServedSearcher(index, store)
    print(f"{len(names):<14} concepts  same  certified           candidates  rounds  requests  server ms  scan ms")
    figures: dict[str, Any] = {"outputs": store.count_outputs(), "server": server, "concepts": len(names)}
    for k in HITS:
        scan.search(SearchRequest((names[0],), k))
        served.search(SearchRequest((names[0],), k))
        found: list[ServedAnswer] = []
        scanned_ms, same, identical, requests[0] = [], 0, 0, 0
        for name in names:
            request = SearchRequest((name,), k)
            questions = scan.ask(request)
            expected = scan.answer(request, questions)
            found.append(served.answer(request, questions))
            scanned_ms.append(1e3 * expected.seconds)
            same += outputs(expected.results) == outputs(found[-1].results)
            identical += expected.results == found[-1].results
        candidates = [answer.candidates for answer in found]
        figures[str(k)] = row = {
            "same_hits": same,
            "identical": identical,  # margins, percentiles and evidence to the last digit
            "certified": sum(answer.exact for answer in found),
            "candidates": {"median": float(np.median(candidates)), "max": max(candidates)},
            "rounds_max": max(answer.rounds for answer in found),
            "requests_per_search": round(requests[0] / len(names), 1),
            "ms": percentiles([1e3 * answer.seconds for answer in found]),
            "scan_ms": percentiles(scanned_ms),
        }
        shown = f"{row['candidates']['median']:.0f}, at most {max(candidates)}"
        print(
            f"  the best {k:<6}{same:>10}{row['certified']:>11}{shown:>21}{row['rounds_max']:>8}"
            f"{row['requests_per_search']:>10}{row['ms']['p50']:>11}{row['scan_ms']['p50']:>9}"
        )
    print(json.dumps(figures))


def http(store: ServerStore) -> Any:
    """The HTTP client below the client of a server."""
    return store.client._client.http.client._client


def outputs(results: tuple[Result, ...]) -> list[tuple[str, int]]:
    """Which outputs were found, in order."""
    return [(hit.model, hit.output) for result in results for hit in result.outputs]


def percentiles(values: list[float]) -> dict[str, float]:
    """Half and 99 in a hundred are below."""
    return {name: round(float(np.percentile(values, at)), 1) for name, at in (("p50", 50), ("p99", 99))}


if __name__ == "__main__":
    main()
