"""What each step beyond the paper is worth, on classes and models that had no part in choosing it; and what was not.

    python benchmarks/ablation.py --index INDEX --truth FILE --images CSV [--small]

INDEX keeps responses; FILE and CSV are those of ``hubhound eval retrieval``. The form of ``whitened`` was found on one
half of the classes and its constants confirmed on every other model: *chosen on* shows those, *held out* the other half
of both, *everything* all classes and models. Each figure is the mean over draws of the background, with all probes and
with random halves of them, where more classes are unseen. Top-1 / top-5 in per cent.

Prints tables and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.calibration import Background, calibrate, draw_background
from engine.concepts import DEFAULT_TEMPLATES
from engine.descriptors import ConceptDescriptors, concept_descriptors
from engine.distance import Method, correlations, distances, margins
from engine.index import Index
from engine.outputs import Calibration
from query.evaluate.embedding import LazyEncoder, TextEmbedder
from query.evaluate.labelled import read_images, seen_classes
from query.evaluate.queries import derive_queries, group_by_seen
from query.evaluate.scorers import kept_outputs
from query.evaluate.truth import read_truth, read_zoo
from query.evaluate.zoo import Query, Zoo

R, K = 50, 10


@dataclass
class Setup:
    """One zoo, one draw of the background, descriptors of the queries."""

    zoo: Zoo
    queries: list[Query]
    background: Background
    t: np.ndarray

    @cached_property
    def concepts(self) -> ConceptDescriptors:
        """Of the queries."""
        return concept_descriptors(self.t, self.zoo.probes, self.background.whitening)

    @cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probes, responses and anchors."""
        return kept_outputs(self.zoo, R)

    @cached_property
    def constants(self) -> Calibration:
        """Of all outputs."""
        return calibrate(*self.kept, self.background)

    def margin(self, method: Method, **changed: np.ndarray) -> np.ndarray:
        """Margins ``[q, L]``, with other constants where they are given."""
        return margins(*self.kept, replace(self.constants, **changed), self.concepts, method)

    @cached_property
    def local(self) -> np.ndarray:
        """(h - d) / s."""
        idx, z, _ = self.kept
        return (self.constants.h - distances(idx, z, self.concepts.z, "weighted")) / self.constants.s

    @cached_property
    def white(self) -> np.ndarray:
        """(rho_white - g_white) / q_white."""
        return (correlations(self.kept[2], self.concepts, True) - self.constants.g_white) / self.constants.q_white


def _power(setup: Setup, power: float) -> np.ndarray:
    """The whitened global part of responses to a power."""
    z = np.sign(setup.zoo.responses) * np.abs(setup.zoo.responses) ** power
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
    return Setup(replace(setup.zoo, responses=z), setup.queries, setup.background, setup.t).white


def _neighbours(setup: Setup) -> np.ndarray:
    """Half of the mean margin of the three most similar outputs of other models is added."""
    score, anchor = setup.margin("whitened"), setup.kept[2]
    direction = anchor / np.linalg.norm(anchor, axis=1, keepdims=True)
    model, out = setup.zoo.model_of, score.copy()
    for start in range(0, len(anchor), 1_000):
        part = slice(start, start + 1_000)
        similar = direction[part] @ direction.T
        similar[model[part, None] == model[None]] = -9
        nearest = np.argpartition(-similar, 3, axis=1)[:, :3]
        out[:, part] += 0.5 * score[:, nearest].mean(axis=2)
    return out


def _reliable(setup: Setup) -> np.ndarray:
    """The global part weighted by how well the anchor predicts the output's responses."""
    centred = setup.zoo.probes - setup.zoo.probes.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    ridge = 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    explained = np.einsum("ld,ld->l", setup.kept[2], np.linalg.solve(covariance + ridge, setup.kept[2].T).T)
    return setup.local + setup.white * explained / explained.mean() + setup.constants.prior


def _centred(zoo: Zoo) -> Zoo:
    """Responses less the mean over the model's outputs."""
    z = zoo.responses.copy()
    for start, stop in zip(zoo.starts[:-1], zoo.starts[1:], strict=True):
        z[start:stop] -= z[start:stop].mean(axis=0)
    return replace(zoo, responses=z / z.std(axis=1, keepdims=True))


Form = tuple[Callable[[Zoo], Zoo], Callable[[Setup], np.ndarray]]
AS_IS: Callable[[Zoo], Zoo] = lambda zoo: zoo  # noqa: E731
DIVISIVE = Zoo.divisive
NO_PRIOR = {"prior": np.float32(0)}

STEPS: dict[str, Form] = {
    "probelog (the paper)": (AS_IS, lambda s: s.margin("probelog")),
    "weighted": (AS_IS, lambda s: s.margin("weighted")),
    "dual": (AS_IS, lambda s: s.margin("dual")),
    "dual, divisive": (DIVISIVE, lambda s: s.margin("dual")),
    "whitened, no prior": (AS_IS, lambda s: s.margin("whitened", **NO_PRIOR)),
    "whitened": (AS_IS, lambda s: s.margin("whitened")),
    "whitened, divisive, no prior": (DIVISIVE, lambda s: s.margin("whitened", **NO_PRIOR)),
    "whitened, divisive (the default)": (DIVISIVE, lambda s: s.margin("whitened")),
}
"""Each step on the way."""

TRIED: dict[str, Form] = {
    "the default": STEPS["whitened, divisive (the default)"],
    "  half of the local part": (DIVISIVE, lambda s: 0.5 * s.local + s.white + s.constants.prior),
    "  without the local part": (DIVISIVE, lambda s: s.white + s.constants.prior),
    "  local part only where it is above 0": (
        DIVISIVE,
        lambda s: np.maximum(s.local, 0) + s.white + s.constants.prior,
    ),
    "  responses centred over the model's outputs": (
        lambda zoo: _centred(zoo.divisive()),
        lambda s: s.margin("whitened"),
    ),
    "  anchors of z^1.5": (DIVISIVE, lambda s: s.local + _power(s, 1.5) + s.constants.prior),
    "  anchors of sqrt z": (DIVISIVE, lambda s: s.local + _power(s, 0.5) + s.constants.prior),
    "  global part by the anchor's reliability": (DIVISIVE, _reliable),
    "  half the margin of similar outputs added": (DIVISIVE, _neighbours),
}
"""What did not help, or helped one kind of concept at the cost of the other."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="One draw instead of five.")
    options = parser.parse_args()
    for path in (options.index, options.truth, options.images):
        if not path.exists():
            sys.exit(f"ablation.py: {path} does not exist")
    index, truth = Index(options.index), read_truth(options.truth)
    encoder = LazyEncoder(index)
    zoo = read_zoo(index, truth)
    labelled = read_images(options.images, index, encoder.images)
    queries = list(group_by_seen(derive_queries(truth), seen_classes(labelled)))
    embed = TextEmbedder(index, encoder, DEFAULT_TEMPLATES)
    barred = (*truth.names, *(query.text for query in queries))
    draws = range(1 if options.small else 5)
    words = {seed: draw_background(500, seed, barred) for seed in draws}
    vectors = {seed: embed(words[seed]) for seed in draws}
    t = embed([query.text for query in queries])
    probe_class = np.array(["\0"] * len(zoo.probes), dtype=object)
    probe_class[labelled.probe[labelled.probe >= 0]] = np.array(labelled.classes, dtype=object)[labelled.probe >= 0]

    chosen_on = np.zeros(len(queries), np.bool_)
    seen_at_all = np.array(["seen" in query.groups for query in queries])
    rng = np.random.default_rng(0)
    for group in (seen_at_all, ~seen_at_all):
        members = np.nonzero(group)[0]
        chosen_on[rng.choice(members, len(members) // 2, replace=False)] = True
    every_other = np.arange(len(zoo.models)) % 2 == 0
    splits = {
        "chosen on": (chosen_on, every_other),
        "held out": (~chosen_on, ~every_other),
        "everything": (np.ones(len(queries), np.bool_), np.ones(len(zoo.models), np.bool_)),
    }

    def setups(part: Zoo, half: bool) -> list[tuple[Setup, np.ndarray]]:
        made = []
        for seed in draws:
            chosen = np.arange(len(part.probes))
            if half:
                chosen = np.sort(np.random.default_rng(1_000 + seed).choice(chosen, len(chosen) // 2, replace=False))
            some = part.with_probes(chosen) if half else part
            background = Background.describe(words[seed], vectors[seed], some.probes, K)
            seen = np.array([query.cls in set(probe_class[chosen]) for query in queries])
            made.append((Setup(some, queries, background, t), seen))
        return made

    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for split, (classes, models) in splits.items():
        part = restricted(zoo, models)
        for name, half in (("all probes", False), ("half of the probes", True)):
            forms = {**STEPS, **(TRIED if split == "chosen on" else {})}
            key = f"{split}, {name}"
            print(f"\n{key:52}{'seen':>14}{'unseen':>16}")
            figures[key] = measured(setups(part, half), classes, forms)
    print(json.dumps(figures))


def restricted(zoo: Zoo, models: np.ndarray) -> Zoo:
    """Some of the models."""
    rows = np.nonzero(models[zoo.model_of])[0]
    sizes = np.diff(zoo.starts)[models]
    return replace(
        zoo,
        responses=zoo.responses[rows],
        models=tuple(name for name, kept in zip(zoo.models, models, strict=True) if kept),
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        output=zoo.output[rows],
        labels=tuple(zoo.labels[row] for row in rows),
        classes=tuple(zoo.classes[row] for row in rows),
    )


def measured(
    setups: Sequence[tuple[Setup, np.ndarray]], classes: np.ndarray, forms: dict[str, Form]
) -> dict[str, dict[str, list[float]]]:
    """Hit rates of each form, and a line about it."""
    found = {}
    zoo, queries = setups[0][0].zoo, setups[0][0].queries
    right = np.array([[query.cls in own for own in zoo.classes] for query in queries])
    for name, (shape, score) in forms.items():
        parts: dict[str, list[tuple[float, float]]] = {"seen": [], "unseen": []}
        for setup, seen in setups:
            changed = Setup(shape(setup.zoo), setup.queries, setup.background, setup.t)
            first, fifth, possible = hits(right, score(changed))
            for group, members in (("seen", seen), ("unseen", ~seen)):
                asked = members & classes & possible
                if asked.any():
                    parts[group].append((100 * first[asked].mean(), 100 * fifth[asked].mean()))
        means = {group: np.mean(values, axis=0).round(1).tolist() for group, values in parts.items() if values}
        sd = {group: np.std(values, axis=0).round(1).tolist() for group, values in parts.items() if values}
        cells = "".join(f"{means[g][0]:8.1f} / {means[g][1]:5.1f}" if g in means else f"{'-':>16}" for g in parts)
        print(f"  {name:48}{cells}", flush=True)
        found[name] = means | {f"sd {group}": value for group, value in sd.items()}
    return found


def hits(right: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether the first, and one of the first five, is right; and whether anything is."""
    best = np.argpartition(-score, 5, axis=1)[:, :5]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(score, best, axis=1), axis=1), axis=1)
    found = np.take_along_axis(right, best, axis=1)
    return found[:, 0], found.any(axis=1), right.any(axis=1)


if __name__ == "__main__":
    main()
