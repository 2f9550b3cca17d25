"""Does reranking by conductance move right outputs up? Search by one photograph on real models.

    python benchmarks/rerank.py --realhub FOLDER --work DIR [--queries 40] [--small]

FOLDER holds classifiers in Hub layout with ``labels.json``, an open_clip encoder and labelled photographs. Every other
photograph is a probe, the others are questions: each asks for outputs that recognise its class, which no probe shows.
The ten best hits are reranked with weights of the conductance from 0 to 1; the divergences are computed once and
remembered in DIR, so that an interrupted run goes on.

Prints for each weight the share of questions with a right output first, the mean reciprocal rank of the first right
output, the mean average precision of the right ones, and Kendall's tau between the order of the right outputs and the
accuracy of their models on photographs (does the better model come up?). As its last line one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the command line sets before torch is loaded

import numpy as np
from scipy.stats import kendalltau

from engine.index import Index
from indexers.profiler import ProfileSettings
from indexers.towers import expand_towers
from query.answers import Reranked
from query.request import SearchRequest
from query.rerank import N_STEPS, TOP, Reranker, RerankSettings
from query.search import Searcher
from query.targets import TargetProfiler

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ACCURACY = {  # top-1 in per cent on 1000 photographs, as the folder's README states it
    "timm/tf_efficientnet_lite2.in1k": 89.0,
    "timm/tf_efficientnet_lite0.in1k": 87.5,
    "google/mobilenet_v2_1.0_224": 87.2,
    "google/mobilenet_v1_0.75_192": 78.9,
    "google/mobilenet_v1_0.25_128": 44.9,
}


def main() -> None:
    """Asks, reranks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--realhub", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the index and what is computed are kept")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--small", action="store_true", help="three questions")
    given = parser.parse_args()
    count = 3 if given.small else given.queries
    with (given.realhub / "images.csv").open(newline="", encoding="utf-8") as file:
        photographs = [(given.realhub / row["file"], int(row["class_index"])) for row in csv.DictReader(file)]
    photographs.sort()
    index = make_index(given.realhub, given.work, [path for path, _ in photographs[::2]])
    labels = json.loads((given.realhub / "labels.json").read_text(encoding="utf-8"))
    truth = {(repo, row["index"]): row["imagenet_class"] for repo, rows in labels.items() for row in rows}
    questions = photographs[1::2]
    np.random.default_rng(0).shuffle(questions)  # type: ignore[arg-type]
    asked = []
    searcher = Searcher(index)
    folders = {source.name: source for source in expand_towers([str(given.realhub / "models")])}
    profiler = TargetProfiler(index, "auto", ProfileSettings(n_steps=N_STEPS), folders)
    reranker = Reranker(index, searcher.snapshot, profiler, RerankSettings(0.0, TOP))
    for done, (path, concept) in enumerate(questions[:count], start=1):
        request = SearchRequest(images=(path,), k=TOP)
        answer = reranker.rerank(searcher.search(request), request.images, TOP)
        assert answer.rerank is not None
        right = [truth.get((hit.model, hit.output or 0)) == concept for hit in answer.rerank.hits]
        asked.append((answer.rerank.hits, np.array(right)))
        print(f"{done} of {count} questions", file=sys.stderr)
    table = {weight: figures(asked, weight) for weight in WEIGHTS}
    print(f"{len(asked)} questions by one photograph, the {TOP} best of {answer.searched:,} outputs reranked")
    print("weight   right first   reciprocal rank   average precision   tau with accuracy")
    for weight, row in table.items():
        print(f"{weight:6.1f}   {row['first']:11.3f}   {row['mrr']:15.3f}   {row['map']:17.3f}   {row['tau']:17.3f}")
    print(json.dumps({"questions": len(asked), "weights": {str(weight): row for weight, row in table.items()}}))


def make_index(realhub: Path, work: Path, probes: list[Path]) -> Index:
    """The index of all models over some of the photographs, made if it is not there."""
    folder = work / "index"
    if not (folder / "manifest.json").exists():
        images = work / "probes"
        images.mkdir(parents=True, exist_ok=True)
        for path in probes:
            (images / path.name).unlink(missing_ok=True)
            (images / path.name).symlink_to(path.resolve())
        encoder = f"open_clip:local-dir:{realhub / 'encoder'}"
        run("index", "create", "--index", folder, "--probes", images, "--encoder", encoder)
    run("index", "add", "--index", folder, realhub / "models", "--cache", work / "cache")
    return Index(folder)


def run(*arguments: str | Path) -> None:
    """One command of hubhound."""
    command = [Path(sys.executable).with_name("hubhound"), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def figures(asked: list[tuple[tuple[Reranked, ...], np.ndarray]], weight: float) -> dict[str, float]:
    """What comes of one weight."""
    first, reciprocal, precision, agreement = [], [], [], []
    for hits, right in asked:
        margins = standardised([hit.margin for hit in hits])
        apart = standardised([hit.divergence for hit in hits])
        order = np.argsort(-((1 - weight) * margins - weight * apart), kind="stable")
        found = right[order]
        first.append(float(found[0]))
        if not found.any():
            continue
        reciprocal.append(1 / (1 + np.argmax(found)))
        precision.append(float(((found.cumsum() / np.arange(1, len(found) + 1)) * found).sum() / found.sum()))
        quality = [ACCURACY[hits[i].model] for i in order[found] if hits[i].model in ACCURACY]
        if len(quality) > 2:
            agreement.append(float(kendalltau(range(len(quality), 0, -1), quality).statistic))
    return {
        "first": float(np.mean(first)),
        "mrr": float(np.mean(reciprocal)),
        "map": float(np.mean(precision)),
        "tau": float(np.mean(agreement)),
    }


def standardised(values: list[float | None]) -> np.ndarray:
    """(value - mean) / std over those that are known, 0 for the others."""
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    there = ~np.isnan(known)
    found = np.zeros(len(known))
    if there.any() and known[there].std() > 0:
        found[there] = (known[there] - known[there].mean()) / known[there].std()
    return found


if __name__ == "__main__":
    main()
