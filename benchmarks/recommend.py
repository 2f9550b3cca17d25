"""How long does a recommendation take once everything is profiled?

    python benchmarks/recommend.py [--models 48] [--tasks 21] [--small]

Made-up profiles of 24 blocks and made-up performance of all models on all tasks; one image, whose profiles are known.
The peer is the ranking written as a plain loop over models and tasks. Prints, in milliseconds (least of the repeats):
reading what is known, choosing the candidates, ranking them, and the peer; as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.knowledge import Knowledge
from engine.schema import Performance, Profile, Task, TaskImage
from query.recommend import Candidate, RecommendRequest, TargetProfile, choose, rank

BLOCKS = tuple(f"visual.transformer.resblocks.{i}" for i in range(24))


def main() -> None:
    """Makes the knowledge, times the steps and checks them against the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=48)
    parser.add_argument("--tasks", type=int, default=21)
    parser.add_argument("--small", action="store_true", help="five repeats instead of fifty")
    given = parser.parse_args()
    repeats = 5 if given.small else 50
    rng = np.random.default_rng(0)
    made = knowledge(given.models, given.tasks, rng)
    request = RecommendRequest((Path("target.jpg"),))
    with tempfile.TemporaryDirectory() as folder:
        made.write(Path(folder))
        read_ms, known = timed(lambda: Knowledge.read(Path(folder)), repeats)
    choose_ms, (candidates, _) = timed(lambda: choose("zoo", known, request), repeats)
    targets = [TargetProfile(rng.random(len(BLOCKS)) + 0.1, 0.0, 0) for _ in candidates]
    rank_ms, answer = timed(lambda: rank(candidates, targets, request), repeats)
    loop_ms, predicted = timed(lambda: plain(candidates, targets), max(1, repeats // 10))
    for one in answer.ranking:
        assert abs(one.predicted_rank - predicted[one.model]) < 1e-9
    figures = {"read_ms": read_ms, "choose_ms": choose_ms, "rank_ms": rank_ms, "plain_loop_ms": loop_ms}
    print(f"{given.models} models, {given.tasks} tasks, {len(BLOCKS)} blocks")
    for name, value in figures.items():
        print(f"  {name:14} {value:8.2f}")
    print(json.dumps({"models": given.models, "tasks": given.tasks, **figures}))


def knowledge(models: int, tasks: int, rng: np.random.Generator) -> Knowledge:
    """Profiles and performance of all models on all tasks."""
    image = TaskImage(file="0.jpg", sha256="0" * 64)
    names = [f"task{i}" for i in range(tasks)]
    zoo = [f"open_clip:ViT-L-14/tag{i}" for i in range(models)]
    return Knowledge(
        tuple(Task(name=name, images=(image,) * 25, fingerprint=name, drawn_from=25) for name in names),
        tuple(
            Profile(
                model=model,
                revision="r",
                task=name,
                task_fingerprint=name,
                blocks=BLOCKS,
                conductance=tuple((rng.random(len(BLOCKS)) + 0.1).tolist()),
                images=25,
                n_steps=50,
                completeness_gap=0.1,
            )
            for model in zoo
            for name in names
        ),
        tuple(Performance(model=model, task=name, value=float(rng.random())) for model in zoo for name in names),
    )


def plain(candidates: tuple[Candidate, ...], targets: list[TargetProfile]) -> dict[str, float]:
    """The equations as they stand, one number at a time."""
    found = {}
    for candidate, target in zip(candidates, targets, strict=True):
        v = target.conductance.tolist()
        powers = [np.exp(2.0 * x / max(v)) for x in v]
        apart = []
        for source in candidate.sources.tolist():
            total = 0.0
            for x, y, power in zip(v, source, powers, strict=True):
                total += power / sum(powers) * abs(x - y) / (abs(x) + 1e-8)
            apart.append(total)
        weights = [np.exp(-5.0 * d) for d in apart]
        found[candidate.model] = float(
            sum(w * r for w, r in zip(weights, candidate.ranks.tolist(), strict=True)) / sum(weights)
        )
    return found


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least milliseconds of some repeats, and the answer."""
    best, answer = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        answer = call()
        best = min(best, (time.perf_counter() - started) * 1000)
    return best, answer


if __name__ == "__main__":
    main()
