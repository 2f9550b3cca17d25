"""What are declared labels worth, right, missing or wrong: as a second witness of search, as something to be doubted?

    python benchmarks/labels.py --index INDEX --truth FILE --images CSV [--no-describe]

INDEX holds models with right labels; FILE and CSV are those of ``hubhound eval retrieval``. Its labels are taken away
from all models, from every other one, or a fifth of each model's is shuffled, in memory; then every class is searched
for by the probes alone, by the labels alone and by both. Last, how many right labels does ``hubhound describe`` mark as
disagreeing, and how many of those that were all shuffled within their model? (This embeds the default vocabulary, which
takes minutes the first time.)

Prints tables and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.index import Index
from engine.scan import exact_margins
from query.describe import Describer, DescribeRequest
from query.evaluate.embedding import LazyEncoder
from query.evaluate.labelled import read_images, seen_classes
from query.evaluate.queries import derive_queries
from query.evaluate.truth import read_truth
from query.labels import LabelWitness
from query.search import Searcher


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("index", "truth", "images"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--no-describe", action="store_true")
    options = parser.parse_args()
    for path in (options.index, options.truth, options.images):
        if not path.exists():
            sys.exit(f"labels.py: {path} does not exist")
    index, truth = Index(options.index), read_truth(options.truth)
    with tempfile.TemporaryDirectory() as folder:  # what is remembered about made-up labels must not reach the index
        copy = Path(shutil.copytree(options.index, Path(folder) / "index"))
        figures: dict[str, object] = witness(Index(copy), truth, LazyEncoder(index), options.images)
    if not options.no_describe:
        figures["describe"] = doubted(index, truth)
    print(json.dumps(figures))


def witness(index: Index, truth, encoder: LazyEncoder, images: Path) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """Hit rates by each witness."""
    searcher = Searcher(index)
    snapshot, method = searcher.snapshot, index.manifest.method
    queries = derive_queries(truth)
    seen = seen_classes(read_images(images, index, encoder.images))
    concepts = index.describe(index.embed([query.text for query in queries]), searcher.background)
    rows = np.arange(len(snapshot))
    known = [truth.models.get(snapshot.model_of(row).repo, {}).get(int(snapshot.output[row])) for row in rows.tolist()]
    right = np.array([[one is not None and query.cls in one.classes for one in known] for query in queries])
    is_seen = np.array([query.cls in seen for query in queries])
    margin = np.stack([exact_margins(snapshot.arrays, rows, concepts, c, method) for c in range(len(queries))])
    labels, rng = np.asarray(snapshot.label).copy(), np.random.default_rng(0)
    none, half, shuffled = np.full_like(labels, -1), labels.copy(), labels.copy()
    for i in range(len(snapshot.models)):
        own = np.arange(snapshot.starts[i], snapshot.starts[i + 1])
        half[own] = -1 if i % 2 == 0 else half[own]
        some = rng.choice(own, len(own) // 5, replace=False)
        shuffled[some] = rng.permutation(shuffled[some])
    found: dict[str, object] = {}
    print(f"{'text to output, top-1 / top-5 in per cent':52}{'seen':>16}{'unseen':>16}")
    for name, label in (("right", labels), ("none", none), ("half of the models", half), ("a fifth wrong", shuffled)):
        judge = LabelWitness(index, replace(snapshot, label=label), searcher.background, method)
        said = [judge.margins(concepts.t[c]) for c in range(len(queries))]
        alone = np.stack([np.where(np.isnan(one.margin), -1e6, one.margin) for one in said])
        both = margin + np.stack([one.bonus for one in said])
        entry = {"probes": hits(margin, right, is_seen), "both": hits(both, right, is_seen)}
        if name != "none":
            entry["labels"] = hits(alone + 1e-9 * margin, right, is_seen)
        for witness_name, rates in entry.items():
            cells = "".join(f"{first:8.1f} / {fifth:5.1f}" for first, fifth in rates.values())
            print(f"  labels {name:24} evidence {witness_name:9}{cells}", flush=True)
        found[name] = entry
    return found


def hits(score: np.ndarray, right: np.ndarray, seen: np.ndarray) -> dict[str, list[float]]:
    """Hit at 1 and 5, seen and unseen."""
    best = np.argsort(-score, axis=1, kind="stable")[:, :5]
    found = np.take_along_axis(right, best, axis=1)
    return {
        group: [round(100 * float(part[:, 0].mean()), 1), round(100 * float(part.any(axis=1).mean()), 1)]
        for group, part in (("seen", found[seen]), ("unseen", found[~seen]))
    }


def doubted(index: Index, truth) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    """Per model the share of right labels, and of shuffled ones, that are marked as disagreeing; in per cent."""
    describer = Describer(index, None)
    request, rng = DescribeRequest(k=1), np.random.default_rng(1)
    found = {}
    print("\nmarked as disagreeing, per cent                       right labels    shuffled")
    snapshot = index.snapshot()
    for place, model in enumerate(snapshot.models):
        known = truth.models.get(model.repo, {})
        archived = index.responses.read(model.repo, model.revision)
        if not known or archived is None:
            continue
        output = snapshot.output[snapshot.starts[place] : snapshot.starts[place + 1]].tolist()
        labels = tuple(known[i].label if i in known else None for i in output)
        wrong = tuple(labels[i] for i in rng.permutation(len(labels)))
        responses = archived.astype(np.float32).T
        shares = []
        for own in (labels, wrong):
            table = describer.outputs_of(model.repo, model.revision, own, responses)
            answer = describer.describe_outputs(table, request)
            judged = [output.agrees for output in answer.outputs if output.agrees is not None]
            shares.append(round(100 * judged.count(False) / max(len(judged), 1), 1))
        found[model.repo] = shares
        print(f"  {model.repo:50}{shares[0]:14.1f}{shares[1]:12.1f}", flush=True)
    return found


if __name__ == "__main__":
    main()
