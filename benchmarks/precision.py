"""What does half precision do to descriptors, and does search notice?

    python benchmarks/precision.py --realhub FOLDER [--small]

The real classifiers of FOLDER answer all of its photographs on the CPU in float32, and under autocast in float16 and
bfloat16. For each: the deviation that `engine.autocast` bounds, of the worst output and in the middle, as measured over
all photographs and as estimated from the few that the prober tries; how many of the kept probes stay; how far the
strongest responses move. Then the class names are searched among all outputs, with each precision's own descriptors
and calibration. The peer is float32 over photographs in another order of batches, whose rounding nothing can avoid.

autocast on a CPU rounds what autocast on CUDA rounds (weights, activations and results of convolutions and products,
sums in float32), though not in the same order. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.autocast import BOUND, CHECKED, deviations
from engine.descriptors import top_responses

if TYPE_CHECKING:
    from indexers.loaders import LoadedModel

R = 50
WAYS: dict[str, tuple[torch.dtype | None, int]] = {
    "float32": (None, 16),
    "float32, other batches": (None, 7),
    "float16": (torch.float16, 16),
    "bfloat16": (torch.bfloat16, 16),
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--realhub", type=Path, required=True, help="Models, photographs and an encoder.")
    parser.add_argument("--small", action="store_true", help="Two models and 100 photographs, no search.")
    parser.add_argument("--without", action="append", default=[], help="Leave out models whose name contains this.")
    parser.add_argument("--keep", type=Path, help="Keep the answers here, or take them from here.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answers = answer_all(options.realhub, options.small, options.keep or Path(folder), options.without)
    figures: dict[str, dict[str, object]] = {"bound": {"rms": BOUND, "checked": CHECKED}}
    for repo, by_way in answers.items():
        figures[repo] = {name: compare(by_way["float32"], by_way[name]) for name in list(WAYS)[1:]}
        for name, figure in figures[repo].items():
            print(f"{repo:42} {name:24}", *(f"{key} {value:.4g}" for key, value in figure.items()), sep="  ")  # type: ignore[attr-defined]
    if not options.small:
        figures["search"] = search(options.realhub, answers)
        for name, result in figures["search"].items():
            print(f"{name:24} {result}")
    print(json.dumps(figures))


def answer_all(realhub: Path, small: bool, keep: Path, without: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Answers of every model in every way, ``[n, outputs]``."""
    from engine.probes import gather
    from indexers.loaders import load
    from indexers.pixels import PixelCache
    from indexers.sources import expand, fetch, revision_of

    probes = gather(str(realhub / "images"), keep / "probes")
    if small:
        probes = replace(probes, probes=probes.probes[:100])
    cache = PixelCache(keep / "pixels")
    found: dict[str, dict[str, np.ndarray]] = {}
    sources = [s for s in expand([str(realhub / "models")]) if not any(part in s.repo for part in without)]
    for source in sources[: 2 if small else None]:
        repository = fetch(source, revision_of(source)[0], max_size_bytes=10**10, allow_pickle=False)
        model = load(repository)
        pixels = cache.get(probes, model.preprocessing)
        for name, (dtype, batch) in WAYS.items():
            file = keep / f"{source.repo.replace('/', '--')}-{name.replace(' ', '-')}.npy"
            if not file.exists():
                np.save(file, run(model, pixels, dtype, batch))
            found.setdefault(source.repo, {})[name] = np.load(file)
    return found


def run(model: LoadedModel, pixels: np.ndarray, dtype: torch.dtype | None, batch: int) -> np.ndarray:
    """One model's answers."""
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        for start in range(0, len(pixels), batch):
            images = torch.from_numpy(np.array(pixels[start : start + batch]))
            images = model.preprocessing.normalise(images.contiguous(memory_format=torch.channels_last))
            parts.append(model.forward(model.module, images).float())
    return torch.cat(parts).numpy()


def compare(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far another way's descriptors are from those in float32."""
    moved = deviations(exact, other)
    few = np.linspace(0, len(exact) - 1, min(CHECKED, len(exact))).astype(int)
    tried = deviations(exact[few], other[few])
    z, w = (((a - a.mean(0)) / a.std(0)).T for a in (exact, other))
    usable = exact.std(0) > 1e-6 * np.abs(exact).max(0)
    z, w = z[usable], w[usable]
    kept, again = top_responses(z, R), top_responses(w, R)
    same = [len(set(a) & set(b)) / len(a) for a, b in zip(kept.tolist(), again.tolist(), strict=True)]
    rows = np.arange(len(z))[:, None]
    return {
        "worst": float(moved.max()),
        "median": float(np.median(moved)),
        "worst tried": float(tried.max()),
        "kept the same": float(np.mean(same)),
        "kept response moves, rms": float(np.sqrt(np.mean((z - w)[rows, kept] ** 2))),
        "kept response moves, most": float(np.abs((z - w)[rows, kept]).max()),
    }


def search(realhub: Path, answers: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Class names searched among all outputs in each precision: hits, and hits that are those of float32."""
    from engine.calibration import Background, calibrate, draw_background
    from engine.concepts import DEFAULT_TEMPLATES
    from engine.descriptors import concept_descriptors
    from engine.distance import margins
    from engine.encoder import ConceptEncoder
    from engine.probes import gather
    from query.evaluate.scorers import kept_outputs
    from query.evaluate.zoo import Zoo

    labels = json.loads((realhub / "labels.json").read_text())
    names = {
        e["imagenet_class"]: e["label"].split(",")[0]
        for o in labels.values()
        for e in o
        if e["imagenet_class"] is not None
    }
    classes = sorted(names)
    encoder = ConceptEncoder.load(f"open_clip:local-dir:{realhub / 'encoder'}")
    with tempfile.TemporaryDirectory() as folder:
        probes = gather(str(realhub / "images"), Path(folder))
        p = encoder.encode_images((probes.image(i) for i in range(len(probes))), len(probes))
    words = draw_background(500, 0, [names[c] for c in classes])
    results: dict[str, dict[str, float]] = {}
    first: np.ndarray | None = None
    t = encoder.encode_texts([names[c] for c in classes], DEFAULT_TEMPLATES)
    b = encoder.encode_texts(words, DEFAULT_TEMPLATES)
    background = Background.describe(words, b, p, 10)
    concepts = concept_descriptors(t, p, background.whitening)
    for name in WAYS:
        rows, right, starts = [], [], [0]
        for repo, by_way in answers.items():
            a = by_way[name].astype(np.float64)
            rows.append(((a - a.mean(0)) / np.maximum(a.std(0), 1e-12)).T.astype(np.float32))
            meaning = {e["index"]: e["imagenet_class"] for e in labels[repo]}
            right += [meaning.get(i) for i in range(a.shape[1])]
            starts.append(len(right))
        zoo = Zoo(np.concatenate(rows), p, tuple(answers), np.array(starts), np.zeros(0, np.int64), (), ()).divisive()
        kept = kept_outputs(zoo, R)
        found = margins(*kept, calibrate(*kept, background), concepts, "whitened")
        order = np.argsort(-found, axis=1, kind="stable")[:, :10]
        hit = np.array([[right[j] == c for j in row] for c, row in zip(classes, order.tolist(), strict=True)])
        first = order if first is None else first
        results[name] = {
            "top1": float(hit[:, 0].mean()),
            "top5": float(hit[:, :5].any(axis=1).mean()),
            "first the same": float((order[:, 0] == first[:, 0]).mean()),
            "top 10 in common": float(
                np.mean([len(set(a) & set(b)) / 10 for a, b in zip(order.tolist(), first.tolist(), strict=True)])
            ),
        }
    return results


if __name__ == "__main__":
    main()
