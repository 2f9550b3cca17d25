"""How much does probing a model cost beyond running it?

    python benchmarks/probing.py [--small] [--model FOLDER] [--probes FOLDER]

The peer is a bare forward loop over ready tensors, in every way of a small grid (batch 4 to 32, channels_last or not, 1
or 2 threads; OpenMP's idle threads spinning, as torch has it, or sleeping, as the command line has it); the best of the
grid counts. The prober decodes, keeps pixels on disk, normalises, finds its own way to run the model and keeps the
answers. A second model with the same preprocessing must pay no decoding.

Without ``--model`` a timm EfficientNet-Lite0 with random weights is used, without ``--probes`` dead leaves.
Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexers.loaders import LoadedModel

GRID = tuple(itertools.product((4, 8, 16, 32), (True, False), (1, 2)))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="64 probes and a part of the grid.")
    parser.add_argument("--model", type=Path, help="A model in Hub layout.")
    parser.add_argument("--probes", type=Path, help="A folder of images.")
    parser.add_argument("--grid", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grid:
        from indexers.loaders import load
        from indexers.sources import expand, fetch, revision_of

        (source,) = expand([str(options.grid)])
        rates: dict[str, float] = {}
        repository = fetch(source, revision_of(source)[0], max_size_bytes=10**10, allow_pickle=False)
        bare(load(repository), options.small, "spin", rates)
        print(json.dumps(rates))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(work: Path, options: argparse.Namespace) -> None:
    """Runs the grid and the prober in turn and prints."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the command line sets before torch is loaded
    from engine.probes import gather
    from engine.throughput import pick_device
    from indexers.loaders import load
    from indexers.pixels import PixelCache
    from indexers.prober import Prober
    from indexers.sources import expand, fetch, revision_of

    model_folder = options.model or random_model(work / "models" / "timm" / "lite0")
    spec = str(options.probes) if options.probes else f"dead-leaves:{64 if options.small else 400}"
    probes = gather(spec, work / "probes")
    probes = replace(probes, probes=probes.probes[: 64 if options.small else 400])
    (source,) = expand([str(model_folder)])
    repository = fetch(source, revision_of(source)[0], max_size_bytes=10**10, allow_pickle=False)
    rates: dict[str, float] = {}
    probed = []
    for _ in range(1 if options.small else 3):  # in turn, so that a slow moment of the machine hits both
        bare(load(repository), options.small, "sleep", rates)
        cache = PixelCache(work / f"pixels{len(probed)}")
        prober = Prober(probes, cache, pick_device("cpu"))
        first = prober.probe(load(repository))
        decoded = cache.decoded
        second = prober.probe(load(repository))
        probed.append((first, second, cache.decoded - decoded))
    spinning(model_folder, options.small, rates)

    best = max(rates, key=lambda name: rates[name])
    n = len(probes)
    peer_s = n / rates[best]
    first_s = min(first.forward_s for first, _, _ in probed)
    second_s = min(second.forward_s for _, second, _ in probed)
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"  bare loop, {name:46}{1e3 / rate:8.1f} ms an image")
    print(f"  prober, first model of its kind{'':26}{1e3 * first_s / n:8.1f} ms an image")
    print(f"  prober, a model like one before{'':26}{1e3 * second_s / n:8.1f} ms an image")
    decode_s = probed[0][0].decode_s
    print(f"  decoding and resizing {n} probes: {decode_s:.2f} s once, then {probed[0][1].decode_s:.4f} s")
    figures = {
        "probes": n,
        "best_bare_ms": round(1e3 / rates[best], 2),
        "best_bare_way": best,
        "worst_bare_ms": round(1e3 / min(rates.values()), 2),
        "ratio_to_best_forward": round(first_s / peer_s, 3),
        "ratio_second_model": round(second_s / peer_s, 3),
        "first_model_decode_s": round(decode_s, 3),
        "second_model_decode_s": round(max(second.decode_s for _, second, _ in probed), 4),
        "second_model_images_decoded": sum(extra for _, _, extra in probed),
    }
    print(json.dumps(figures))


def spinning(model_folder: Path, small: bool, rates: dict[str, float]) -> None:
    """The bare loop in a process of its own whose idle threads spin, as torch has it."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, __file__, "--grid", str(model_folder), *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rates |= json.loads(done.stdout.splitlines()[-1])


def bare(loaded: LoadedModel, small: bool, idle: str, rates: dict[str, float]) -> None:
    """The peer: best images per second of each way of the grid, over ready tensors."""
    import torch

    images = torch.randn(32, 3, *loaded.preprocessing.size)
    threads_before = torch.get_num_threads()
    for batch, last, threads in GRID if not small else [way for way in GRID if way[0] in {4, 16}]:
        layout = torch.channels_last if last else torch.contiguous_format
        module = loaded.module.to(memory_format=layout)
        ready = [part.contiguous(memory_format=layout) for part in images.split(batch)]
        torch.set_num_threads(threads)
        best = float("inf")
        with torch.inference_mode():
            module(ready[0])
            for _ in range(2):
                started = time.perf_counter()
                for part in ready:
                    loaded.forward(module, part)
                best = min(best, time.perf_counter() - started)
        shape = "channels_last" if last else "contiguous"
        name = f"batch {batch}, {shape}, {threads} threads, idle threads {idle}"
        rates[name] = max(len(images) / best, rates.get(name, 0.0))
    torch.set_num_threads(threads_before)


def random_model(folder: Path) -> Path:
    """EfficientNet-Lite0 with random weights, in Hub layout."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model = timm.create_model("tf_efficientnet_lite0")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config, default=list))
    return folder


if __name__ == "__main__":
    main()
