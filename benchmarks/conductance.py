"""How much faster is the conductance of all blocks in one sweep than captum's, block by block?

    python benchmarks/conductance.py [--small] [--families] [--models NAME...] [--max-batch N]

Towers of open_clip with random weights, one random image, float32, the same objective. captum's ``LayerConductance`` is
called once for each block, ours once for all of them, at least three times and spread among captum's calls, so that a
busy moment of the machine hits both; ours counts by its median. "max_rel_diff" is the largest difference of an entry
from captum's over the largest |conductance| of its block.

The memory is the peak of the resident set of a process of its own, above what it has when the network is loaded: ours
for all blocks, captum's for the first, the largest.

``--families`` compares the small members of every family instead, in seconds. Prints a table and, as its last line, one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import psutil
import torch
from captum.attr import LayerConductance
from torch import Tensor, nn

from engine.blocks import find_blocks
from engine.conductance import layer_conductance

STEPS = {"ViT-B-32": 50, "ViT-L-14": 10, "RN50": 20, "convnext_base": 10}
SMALL_STEPS = {"ViT-B-32": 4, "RN50": 4}
OURS = 3
MB = 2**20


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="ViT-B-32 and RN50 with few steps.")
    parser.add_argument("--families", action="store_true", help="Only the differences, of small towers.")
    parser.add_argument("--models", nargs="+", choices=list(STEPS), help="Only these.")
    parser.add_argument("--steps", type=int, help="Of all models, instead of each one's own.")
    parser.add_argument("--max-batch", type=int, help="Of our sweep; by default the whole path.")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    steps = dict(SMALL_STEPS if options.small else STEPS)
    steps = {name: options.steps or steps.get(name, STEPS[name]) for name in options.models or steps}
    if options.peak:
        contender, name = options.peak
        print(json.dumps(peak_mb(contender, name, steps[name], options.max_batch)))
    elif options.families:
        print(json.dumps(families()))
    else:
        print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
        print(json.dumps({name: compare(name, n_steps, options.max_batch) for name, n_steps in steps.items()}))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A tower with random weights and a random image."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(name)
    tower: Any = model.visual.eval()
    size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size, tower.image_size)
    return tower, torch.randn(1, 3, *size)


def captum(tower: nn.Module, block: nn.Module, image: Tensor, n_steps: int) -> Tensor:
    """The conductance of one block by captum."""

    def objective(images: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(tower(images), dim=1)
        return norms

    answer: Tensor = LayerConductance(objective, block).attribute(image, n_steps=n_steps)
    return answer.detach()


def compare(name: str, n_steps: int, max_batch: int | None) -> dict[str, float]:
    """One model: times, difference and memory."""
    tower, image = network(name)
    blocks = find_blocks(tower)
    seconds: list[float] = []
    captum_s = 0.0
    largest = 0.0

    def sweep() -> Any:
        started = time.perf_counter()
        found = layer_conductance(tower, tower, blocks, image, n_steps=n_steps, max_batch=max_batch, keep_maps=True)
        seconds.append(time.perf_counter() - started)
        return found

    layer_conductance(tower, tower, blocks, image, n_steps=1)  # what is done once is not measured
    captum(tower, next(iter(blocks.values())), image, 1)
    found = sweep()
    every = max(1, len(blocks) // (OURS - 1))
    for i, block in enumerate(blocks.values()):
        started = time.perf_counter()
        expected = captum(tower, block, image, n_steps)
        captum_s += time.perf_counter() - started
        largest = max(largest, float((found.maps[i] - expected).abs().max() / expected.abs().max()))
        del expected
        if (i + 1) % every == 0:
            sweep()
    ours_s = statistics.median(seconds)
    figures = {
        "speedup": round(captum_s / ours_s, 2),
        "max_rel_diff": float(f"{largest:.2g}"),
        "peak_mb": peak_in_child("ours", name, n_steps, max_batch),
        "captum_peak_mb": peak_in_child("captum", name, n_steps, None),
        "seconds": round(ours_s, 2),
        "captum_seconds": round(captum_s, 2),
        "blocks": len(blocks),
        "n_steps": n_steps,
        "load": round(os.getloadavg()[0], 2),
    }
    runs = ", ".join(f"{s:.2f}" for s in seconds)
    print(
        f"{name:14} {len(blocks):3} blocks, {n_steps:3} steps: "
        f"ours {ours_s:7.2f} s (runs {runs}), captum {captum_s:7.2f} s, "
        f"{figures['speedup']:6.2f} times as fast, difference {largest:.1e}, "
        f"peak {figures['peak_mb']:.0f} MB against {figures['captum_peak_mb']:.0f} MB, load {figures['load']}",
        flush=True,
    )
    return figures


def peak_in_child(contender: str, name: str, n_steps: int, max_batch: int | None) -> float:
    """Peak memory in a process of its own."""
    command = [sys.executable, __file__, "--models", name, "--steps", str(n_steps), "--peak", contender, name]
    command += ["--max-batch", str(max_batch)] if max_batch else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_mb(contender: str, name: str, n_steps: int, max_batch: int | None) -> float:
    """Peak of the resident set above that of the loaded network, in MB."""
    tower, image = network(name)
    blocks = find_blocks(tower)
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    running = True

    def watch() -> None:  # the kernel's own peak would include what loading took
        nonlocal peak
        while running:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if contender == "ours":
        layer_conductance(tower, tower, blocks, image, n_steps=n_steps, max_batch=max_batch)
    else:
        captum(tower, next(iter(blocks.values())), image, n_steps)
    running = False
    watcher.join()
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MB
    return round((peak - before) / MB, 1)


def families() -> dict[str, float]:
    """The largest difference from captum in the small members of every family."""
    from tests.support.small_towers import FAMILIES, captum_conductance, small_tower

    largest: dict[str, float] = {}
    for family in FAMILIES:
        tower = small_tower(family)
        blocks = find_blocks(tower.module)
        image = tower.images(1)
        found = layer_conductance(tower.forward, tower.module, blocks, image, n_steps=50, keep_maps=True)
        try:
            expected = [captum_conductance(tower, block, image, n_steps=50) for block in blocks.values()]
        except (AssertionError, RuntimeError):
            print(f"{family:30} {len(blocks):3} blocks  captum cannot (blocks that answer tuples, or tokens first)")
            continue
        pairs = zip(found.maps, expected, strict=True)
        largest[family] = max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
        print(f"{family:30} {len(blocks):3} blocks  {largest[family]:.1e}")
    return {family: float(f"{value:.2g}") for family, value in largest.items()}


if __name__ == "__main__":
    main()
