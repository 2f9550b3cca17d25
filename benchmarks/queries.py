"""How long does one query of each kind take? Warm, on one index, against a plain numpy form of the same answer.

    python benchmarks/queries.py --index INDEX [--queries 20]

INDEX may be one that ``hubhound eval make-hub`` made. Texts are the index's own labels, images its probes; texts and
images are embedded before the clock starts, for that is the encoder's time. The numpy form computes every margin by the
engine's readable reference and sorts; it is given for single concepts.

Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.distance import margins
from engine.index import Index
from engine.scan import decode_anchors
from query.filters import parse_conditions
from query.request import SearchRequest
from query.search import Searcher


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=20)
    options = parser.parse_args()
    if not options.index.is_dir():
        sys.exit(f"queries.py: {options.index} does not exist")
    index = Index(options.index)
    searcher = Searcher(index, kernel="numba")
    snapshot = searcher.snapshot
    rng = np.random.default_rng(0)
    texts = [label.split(",")[0] for label in snapshot.labels]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    probes = [index.probe_folder / file for file, _ in index.probe_files]
    count = options.queries
    some = [tuple(texts[(5 * i + j) % len(texts)] for j in range(5)) for i in range(count)]
    rows = rng.integers(0, len(snapshot), count)
    outputs = [f"{snapshot.model_of(row).repo}#{snapshot.output[row]}" for row in rows.tolist()]
    models = [snapshot.model_of(row).repo for row in rows.tolist()]
    library = parse_conditions([f"library={snapshot.models[0].library}"])
    kinds: dict[str, Callable[[int], SearchRequest]] = {
        "text": lambda i: SearchRequest((some[i][0],)),
        "text, filtered": lambda i: SearchRequest((some[i][0],), where=library),
        "text, explained": lambda i: SearchRequest((some[i][0],), explain=True),
        "text, method probelog": lambda i: SearchRequest((some[i][0],), method="probelog"),
        "five texts": lambda i: SearchRequest(some[i]),
        "text, probes and labels": lambda i: SearchRequest((some[i][0],), evidence="both"),
        "five images": lambda i: SearchRequest(images=tuple(probes[5 * i % len(probes) :][:5])),
        "text and an image": lambda i: SearchRequest((some[i][0],), images=(probes[i],)),
        "like an output": lambda i: SearchRequest(like=outputs[i]),
        "list of three, one model": lambda i: SearchRequest(some[i][:3], level="model"),
        "list of five, one model": lambda i: SearchRequest(some[i], level="model"),
        "list of five, any": lambda i: SearchRequest(some[i], level="model", require="any"),
        "like a model": lambda i: SearchRequest(like=models[i], level="model"),
    }
    figures: dict[str, dict[str, float]] = {}
    print(f"{len(snapshot):,} outputs of {len(snapshot.models):,} models{'':14}{'question ms':>12}{'answer ms':>12}")
    for name, make in kinds.items():
        searcher.search(make(0))
        asked, answered = [], []
        for i in range(count):
            request = make(i)
            searcher.ask(request)  # embeds what is new
            started = time.perf_counter()
            questions = searcher.ask(request)
            between = time.perf_counter()
            searcher.answer(request, questions)
            asked.append(between - started)
            answered.append(time.perf_counter() - between)
        figures[name] = {
            "question_ms": round(1e3 * float(np.median(asked)), 2),
            "answer_ms": round(1e3 * float(np.median(answered)), 2),
            "worst_answer_ms": round(1e3 * max(answered), 2),
        }
        print(f"  {name:40}{figures[name]['question_ms']:12.2f}{figures[name]['answer_ms']:12.2f}", flush=True)
    arrays = snapshot.arrays
    every = np.arange(len(snapshot))
    anchors = decode_anchors(arrays, every).astype(np.float32)
    question = searcher.ask(SearchRequest((texts[0],)))[0]
    started = time.perf_counter()
    plain = margins(*arrays.kept(every), anchors, arrays.constants(every), question.concepts, index.manifest.method)
    np.argsort(-plain[0])[:10]
    seconds = time.perf_counter() - started
    figures["text"]["ratio_to_numpy"] = round(figures["text"]["answer_ms"] / 1e3 / seconds, 4)
    print(f"  the plain numpy form of a text query: {1e3 * seconds:.0f} ms")
    print(json.dumps({"outputs": len(snapshot), "models": len(snapshot.models), "kinds": figures}))


if __name__ == "__main__":
    main()
