"""Does search find the right outputs of real models? Text to output, on classifiers and photographs with known classes.

    python benchmarks/realhub.py --realhub FOLDER [--small]

FOLDER holds models in Hub layout, photographs, an open_clip encoder, ``labels.json`` (per repository a list of
``{index, label, imagenet_class}``) and ``images.csv`` (``file, wnid, label, class_index``). The queries are the 1000
ImageNet class names, first synonym each; a hit is an output whose ``imagenet_class`` is the query's. Classes with a
photograph among the probes are *seen*, the others *unseen*. The background has none of the queries; since another draw
of it moves the unseen by a point or two, the figures are also given as means over several draws. The index is made
without normalisation, as the ProbeLog paper has it; *divisive* rows are what an index is by default.

Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the command line sets before torch is loaded

import argparse
import csv
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from engine.calibration import Background, calibrate, draw_background
from engine.concepts import DEFAULT_TEMPLATES
from engine.creation import create_index
from engine.descriptors import (
    ConceptDescriptors,
    centred_log_probabilities,
    concept_descriptors,
    output_descriptors,
)
from engine.distance import METHODS, Method
from engine.index import Index, IndexSettings
from engine.outputs import Calibration
from engine.scan import ScanArrays, pack, top_k
from engine.schema import ModelState
from engine.throughput import pick_device
from engine.writer import IndexWriter
from indexers.adding import AddOptions, add_model
from indexers.pixels import PixelCache
from indexers.prober import Prober, Responses
from indexers.probing import here
from indexers.sources import expand

ONE_TEMPLATE = ("a photo of a {}",)
TEMPLATES = {"one": ONE_TEMPLATE, "five": DEFAULT_TEMPLATES}
GROUPS = ("all", "seen", "unseen")
DRAWS = 5
R = 50


class RecordingProber(Prober):
    """Keeps what every model answered, so that the plain form can be computed from it."""

    answers: dict[str, np.ndarray]

    def probe(self, model, *callbacks) -> Responses:  # noqa: D102
        responses = super().probe(model, *callbacks)
        self.answers[model.repo] = responses.values
        return responses


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--realhub", type=Path, default=Path(__file__).parents[2] / "shared" / "realhub")
    parser.add_argument("--work", type=Path, help="Keep the index and the responses here and use them again.")
    parser.add_argument("--small", action="store_true", help="Two models only.")
    options = parser.parse_args()
    if not options.realhub.is_dir():
        sys.exit(f"realhub.py: {options.realhub} does not exist")
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        measure(options.realhub, options.work, options.small)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(options.realhub, Path(folder), options.small)


def measure(realhub: Path, work: Path, small: bool) -> None:
    """Indexes the models and prints what search finds."""
    names, truth, seen = read_truth(realhub)
    index, answers = build(realhub, work, names, small)
    encoder = index.load_encoder()
    probes = np.asarray(index.probe_embeddings)
    embedded = {key: encoder.encode_texts(names, templates) for key, templates in TEMPLATES.items()}
    described = {"one": index.describe(embedded["one"])}
    classes = rows_of(index, truth)
    barred = barred_names(realhub, names)

    @functools.cache
    def background(seed: int, key: str) -> Background:
        drawn = draw_background(500, seed, barred)
        return Background.describe(drawn, encoder.encode_texts(drawn, TEMPLATES[key]), probes)

    figures: dict[str, object] = {}
    for method in METHODS:  # the index itself: its own background, one template
        figures[method] = hit_rates(index.snapshot().arrays, described["one"], method, classes, seen)
    divisive = normalised(index, answers, probes)
    own = pack(*divisive, calibrate(*divisive, index.background()))
    figures["without normalisation"] = {"whitened": figures["whitened"]}
    figures["whitened"] = hit_rates(own, described["one"], "whitened", classes, seen)
    shown = {"whitened, divisive (the default)": figures["whitened"], **{m: figures[m] for m in METHODS[1:]}}
    print_table("the index itself, one draw of the background", shown)

    responses = np.concatenate([answers[model.repo] for model in index.snapshot().models], axis=1)
    draws: dict[str, list[dict[str, list[float]]]] = {}
    kept = {r: output_descriptors(responses, probes, r) for r in (R, 10, len(probes))}
    for seed in range(1 if small else DRAWS):
        for label, key, r, methods in (
            ("one template", "one", R, METHODS),
            ("five templates", "five", R, METHODS),
            ("r = 10", "one", 10, ("probelog",)),
            ("all probes", "one", len(probes), ("probelog",)),
        ):
            made = kept[r]
            constants = calibrate(made.idx, made.z, made.anchor, background(seed, key))
            arrays = pack(made.idx, made.z, made.anchor, constants)
            concepts = concept_descriptors(embedded[key], probes, background(seed, key).whitening)
            for method in methods:
                result = hit_rates(arrays, concepts, method, classes, seen)
                draws.setdefault(f"{method}, {label}", []).append(result)
            if r == R:
                arrays = pack(*divisive, calibrate(*divisive, background(seed, key)))
                result = hit_rates(arrays, concepts, "whitened", classes, seen)
                draws.setdefault(f"whitened, divisive, {label}", []).append(result)
    spread = {label: summary(results) for label, results in draws.items()}
    for label, r in (("truncated, uncalibrated", R), ("all probes, uncalibrated", len(probes))):
        made = kept[r]
        zero = np.zeros(len(made.output), np.float32)
        constants = Calibration(zero, zero, zero + 1, zero, zero + 1, zero, zero + 1, zero)
        arrays = pack(made.idx, made.z, made.anchor, constants)
        spread[label] = hit_rates(arrays, described["one"], "probelog", classes, seen)
    print_table(f"mean of {DRAWS} draws of the background", spread)
    figures["mean_of_draws"] = spread
    figures["sd_of_draws"] = {label: summary(results, np.std) for label, results in draws.items()}

    worst = plain_form_difference(index, answers, described["one"])
    figures["margins_max_abs_diff"] = worst
    print(
        f"\nlargest difference of a margin to the plain float64 form, every output x 100 concepts: {worst:.1e}",
        flush=True,
    )
    forms = probability_forms(index, answers, probes, background(0, "one"), described["one"], classes, seen)
    print_table("models as if they answered probabilities, dual", forms)
    figures["probabilities"] = forms
    started = time.perf_counter()
    top_k(own, described["one"], 10, "whitened")
    figures["seconds_1000_queries"] = round(time.perf_counter() - started, 3)
    print(json.dumps(figures))


def print_table(title: str, results: Mapping[str, object]) -> None:
    """Hit rates for people."""
    print(f"\n{title:50}{'all':>14}{'seen':>14}{'unseen':>14}")
    for label, result in results.items():
        row: dict[str, list[float]] = result  # type: ignore[assignment]
        print(f"  {label:48}" + "".join(f"{f'{row[k][0]:.1f} / {row[k][1]:.1f}':>14}" for k in GROUPS), flush=True)


def summary(results: list[dict[str, list[float]]], of: Callable[..., np.floating] = np.mean) -> dict[str, list[float]]:
    """Mean or deviation over the draws."""
    return {key: [round(float(of([r[key][i] for r in results])), 2) for i in (0, 1)] for key in GROUPS}


def barred_names(realhub: Path, names: list[str]) -> list[str]:
    """The queries and their synonyms, which must not be in the background."""
    labels = json.loads((realhub / "labels.json").read_text())
    return [*names, *{part.strip() for entries in labels.values() for e in entries for part in e["label"].split(",")}]


def read_truth(realhub: Path) -> tuple[list[str], dict[str, dict[int, int]], np.ndarray]:
    """Class names, per repository the class of each output, and which classes have a photograph."""
    labels = json.loads((realhub / "labels.json").read_text())
    names: dict[int, str] = {}
    truth: dict[str, dict[int, int]] = {}
    for repo, entries in labels.items():
        truth[repo] = {e["index"]: e["imagenet_class"] for e in entries if e["imagenet_class"] is not None}
        names |= {e["imagenet_class"]: e["label"].split(",")[0] for e in entries if e["imagenet_class"] is not None}
    seen = np.zeros(len(names), np.bool_)
    with (realhub / "images.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            seen[int(row["class_index"])] = True
    return [names[i] for i in range(len(names))], truth, seen


def build(realhub: Path, work: Path, names: list[str], small: bool) -> tuple[Index, dict[str, np.ndarray]]:
    """Indexes the models, or opens what an earlier run left."""
    folder, kept = work / "index", work / "answers.npz"
    if folder.exists() and kept.exists():
        with np.load(kept) as stored:
            return Index(folder), {key: stored[key] for key in stored.files}
    background = draw_background(500, seed=0, without=barred_names(realhub, names))
    settings = IndexSettings(
        R, "whitened", "keep", ONE_TEMPLATE, background, "imagenet21k without the queries", 10, "none"
    )
    started = time.perf_counter()
    create_index(folder, str(realhub / "images"), f"open_clip:local-dir:{realhub / 'encoder'}", settings, device="cpu")
    print(f"index created in {time.perf_counter() - started:.0f} s")
    sources = expand([str(realhub / "models")])
    if small:
        sources = [s for s in sources if s.repo in {"timm/tf_efficientnet_lite0.in1k", "google/mobilenet_v1_0.25_128"}]
    with IndexWriter(folder) as writer:
        prober = RecordingProber(writer.index.probes(), PixelCache(work / "pixels"), pick_device("cpu"))
        prober.answers = {}
        for source in sources:
            outcome = add_model(writer, here(prober), source, AddOptions(4 * 10**9))
            times = ", ".join(f"{stage} {value:.1f} s" for stage, value in outcome.seconds.items())
            print(f"{source.repo}: {outcome.outputs} outputs, {times}")
            if outcome.state is not ModelState.INDEXED:
                sys.exit(f"realhub.py: {source.repo}: {outcome.detail}")
        writer.finish()
    np.savez(kept, **prober.answers)
    return Index(folder), prober.answers


def rows_of(index: Index, truth: dict[str, dict[int, int]]) -> np.ndarray:
    """The class of every row of the snapshot, -1 for none."""
    snapshot = index.snapshot()
    classes = np.full(len(snapshot), -1)
    for i, model in enumerate(snapshot.models):
        for row in range(int(snapshot.starts[i]), int(snapshot.starts[i + 1])):
            classes[row] = truth.get(model.repo, {}).get(int(snapshot.output[row]), -1)
    return classes


def hit_rates(
    arrays: ScanArrays, concepts: ConceptDescriptors, method: Method, classes: np.ndarray, seen: np.ndarray
) -> dict[str, list[float]]:
    """Hit at 1 and at 5 in per cent, query i being right on rows of class i."""
    best = np.stack([rows for rows, _ in top_k(arrays, concepts, 5, method)])
    right = classes[best] == np.arange(len(best))[:, None]
    groups = dict(zip(GROUPS, (np.ones_like(seen), seen, ~seen), strict=True))
    return {
        key: [round(100 * float(right[g, 0].mean()), 2), round(100 * float(right[g].any(axis=1).mean()), 2)]
        for key, g in groups.items()
    }


def plain_form_difference(index: Index, answers: dict[str, np.ndarray], concepts: ConceptDescriptors) -> float:
    """Largest difference between the index's margins and those computed plainly in float64 from the raw responses."""
    chosen = np.random.default_rng(0).choice(len(concepts), 100, replace=False)
    snapshot, background = index.snapshot(), index.background()
    p = index.probe_embeddings.astype(np.float64)

    def standard(rows: np.ndarray) -> np.ndarray:
        return (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)

    u = whitening_of(p, background.concepts.t.astype(np.float64))
    white_c, white_b = standard(concepts.t[chosen] @ u @ p.T), standard(background.concepts.t @ u @ p.T)
    z_c = standard(concepts.t[chosen].astype(np.float64) @ p.T)
    z_b = standard(background.concepts.t.astype(np.float64) @ p.T)
    few = index.describe(concepts.t[chosen])
    worst = 0.0
    for i, model in enumerate(snapshot.models):
        rows = slice(int(snapshot.starts[i]), int(snapshot.starts[i + 1]))
        z = standard(answers[model.repo][:, snapshot.output[rows]].T.astype(np.float64))
        kept = np.argsort(-z, axis=1, kind="stable")[:, :R]
        z_kept = np.take_along_axis(z, kept, axis=1)
        rho = {"dual": (z_c @ z.T / len(p), z_b @ z.T / len(p))}
        rho["whitened"] = (white_c @ z.T / len(p), white_b @ z.T / len(p))
        got = {m: scanned(index, few, m, rows) for m in METHODS}
        for row in range(z.shape[0]):
            for method in METHODS:
                w = np.ones(R) if method == "probelog" else (np.maximum(z_kept[row], 0) / z_kept[row, 0]) ** 3
                d = np.sqrt((w * (z_kept[row] - z_c[:, kept[row]]) ** 2).sum(axis=1))
                b = np.sort(np.sqrt((w * (z_kept[row] - z_b[:, kept[row]]) ** 2).sum(axis=1)))
                expected = b[:10].mean() - d
                if method in rho:
                    rho_c, rho_b = (part[:, row] for part in rho[method])
                    far = (rho_c - np.sort(rho_b)[::-1][:10].mean()) / rho_b.std()
                    expected = expected / b.std() + far
                if method == "whitened":
                    expected = expected - 0.4 * np.log((z_kept[row] ** 4).sum() / len(p) / 5)
                worst = max(worst, float(np.abs(got[method][:, row] - expected).max()))
    return worst


def whitening_of(probes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The inverse of the ridged covariance, in float64."""

    def covariance(rows: np.ndarray) -> np.ndarray:
        whole = np.cov(rows.T, bias=True)
        return whole / np.trace(whole) * len(whole)

    beta = 0.5 * len(words) / (len(words) + 400)
    return np.linalg.inv((1 - beta) * covariance(probes) + beta * covariance(words) + 0.1 * np.eye(probes.shape[1]))


def normalised(
    index: Index, answers: dict[str, np.ndarray], probes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept probes, responses and anchors of all models after divisive normalisation."""
    made = [output_descriptors(answers[model.repo], probes, R, "divisive") for model in index.snapshot().models]
    return tuple(np.concatenate([getattr(m, name) for m in made]) for name in ("idx", "z", "anchor"))  # type: ignore[return-value]


def scanned(index: Index, concepts: ConceptDescriptors, method: Method, rows: slice) -> np.ndarray:
    """Margins of one model's outputs as the scan gives them, ``[concepts, rows]``."""
    snapshot = index.snapshot()
    mask = np.zeros(len(snapshot), np.bool_)
    mask[rows] = True
    count = rows.stop - rows.start
    values = np.empty((len(concepts), count))
    for c, (found, margin) in enumerate(top_k(snapshot.arrays, concepts, count, method, mask=mask)):
        values[c, found - rows.start] = margin
    return values


def probability_forms(
    index: Index,
    answers: dict[str, np.ndarray],
    probes: np.ndarray,
    background: Background,
    concepts: ConceptDescriptors,
    classes: np.ndarray,
    seen: np.ndarray,
) -> dict[str, dict[str, list[float]]]:
    """What search finds if every model answered softmax probabilities, in several forms."""
    forms: dict[str, list[np.ndarray]] = {}
    for model in index.snapshot().models:
        logits = answers[model.repo].astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
        forms.setdefault("the logits themselves", []).append(answers[model.repo])
        forms.setdefault("centred log-probabilities (what is used)", []).append(centred_log_probabilities(p))
        forms.setdefault("log-odds", []).append(log_odds(p))
        forms.setdefault("raw probabilities", []).append(p)
    results = {}
    for label, parts in forms.items():
        made = output_descriptors(np.concatenate(parts, axis=1), probes, R)
        constants = calibrate(made.idx, made.z, made.anchor, background)
        arrays = pack(made.idx, made.z, made.anchor, constants)
        results[label] = hit_rates(arrays, concepts, "dual", classes[made.output], seen)
    return results


def log_odds(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), with 1 - p summed from the other outputs so that nothing cancels."""
    p = np.maximum(p.astype(np.float64), float(np.finfo(np.float32).tiny))
    rest = np.zeros_like(p)
    rest[:, 1:] = np.cumsum(p[:, :-1], axis=1)
    rest[:, :-1] += np.cumsum(p[:, :0:-1], axis=1)[:, ::-1]
    return np.log(p) - np.log(rest)


if __name__ == "__main__":
    main()
