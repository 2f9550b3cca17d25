"""The demo: the real commands on the drawn world, and how often they are right."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from engine.errors import HubhoundError
from query.cli.main import run
from query.cli.output import data, note, table

SHOWN = ("star", "brick wall", "sailing boat", "letter B")
"""Concepts whose hits are shown in full, where the world has them."""


def run_demo(root: Path, fresh: bool = False) -> None:
    """Draws and trains the world unless it is there, indexes its models, searches for every concept.

    Args:
        root: Keeps the world (``world``) and the index (``zoo``) for the next time.
        fresh: Draw and train again.

    Raises:
        HubhoundError: One of the commands failed.
    """
    from query.demo.training import WorldSpec, build_world

    started = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    world, zoo = root / "world", root / "zoo"
    for folder in (zoo, *([world] if fresh else [])):
        shutil.rmtree(folder, ignore_errors=True)
    note("1. a small world is drawn, an encoder and some classifiers are trained on it (kept for the next time)")
    build_world(world, WorldSpec.demo())
    models = sorted(path.name for path in (world / "models" / "tiny").iterdir())
    queries = (world / "queries.txt").read_text(encoding="utf-8").split("\n")
    queries = [query for query in queries if query]
    note(f"   {len(models)} classifiers, {len(queries)} concepts, {time.monotonic() - started:.0f} s so far\n")

    note("2. the same commands as for the real Hub")
    probes, encoder = world / "probes", f"open_clip:local-dir:{world / 'encoder'}"
    background = world / "background.txt"
    _command("index", "create", "--index", zoo, "--probes", probes, "--encoder", encoder, "--background", background)
    _command("index", "add", "--index", zoo, "--cache", root / "cache", world / "models")
    shown = [concept for concept in SHOWN if concept in queries] or queries[:3]
    _command("search", *shown, "--index", zoo, "-k", "3", "--evidence-image", root / "why.png")
    truth = _truth(world)
    model, known = next((repo, names) for repo, names in truth.items() if len(set(names.values()) & set(queries)) >= 3)
    together = [name for name in dict.fromkeys(known.values()) if name in queries][:3]
    _command("search", *together, "--level", "model", "--index", zoo, "-k", "3")
    _command("search", "--like", f"{model}#{min(known)}", "--index", zoo, "-k", "3")
    _command("describe", model, "--vocabulary", world / "queries.txt", "--index", zoo, "-k", "2")

    note("\n3. is it right? The search has seen no label; here are the true ones")
    _judge(zoo, world, queries)
    note(f"\nDone in {time.monotonic() - started:.0f} s. Next, on the real Hub:")
    data(
        "  hubhound index create --index zoo --probes YOUR_PHOTOS --encoder open_clip:ViT-B-32/laion2b_s34b_b79k\n"
        "  hubhound index add --index zoo timm/resnet50.a1_in1k microsoft/resnet-18\n"
        '  hubhound search "golden retriever" --index zoo --explain'
    )


def _truth(world: Path) -> dict[str, dict[int, str]]:
    """What each output of each model was trained on."""
    labels = json.loads((world / "labels.json").read_text(encoding="utf-8"))
    return {repo: {entry["index"]: entry["concept"] for entry in entries} for repo, entries in labels.items()}


def _command(*arguments: object) -> None:
    """Shows and runs one command."""
    words = [str(argument) for argument in arguments]
    note("\n$ hubhound " + " ".join(f'"{word}"' if " " in word else word for word in words))
    status = run(words)
    if status:
        raise HubhoundError(f"the demo's command 'hubhound {words[0]}' ended with status {status}")


def _judge(zoo: Path, world: Path, queries: list[str]) -> None:
    """Searches for every concept and compares with what the outputs were trained on."""
    from engine.index import Index
    from query.request import SearchRequest
    from query.search import Searcher

    truth = {(repo, output): name for repo, names in _truth(world).items() for output, name in names.items()}
    known = set(truth.values())
    answer = Searcher(Index(zoo)).search(SearchRequest(tuple(query for query in queries if query in known), 5))
    rows, first, fifth = [], 0, 0
    for result in answer.results:
        concept = result.query.text
        right = [truth[hit.model, hit.output] == concept for hit in result.outputs]
        first, fifth = first + right[0], fifth + any(right)
        best = result.outputs[0]
        meaning = truth[best.model, best.output]
        verdict = "right" if right[0] else ("in the first five" if any(right) else "wrong")
        rows.append(
            [concept or "", f"{best.model}#{best.output}", best.label or "-", meaning, f"{best.margin:.1f}", verdict]
        )
    table(None, ["concept", "best output", "declared label", "true meaning", ("margin", "right"), ""], rows)
    count = len(answer.results)
    data(
        f"{count} concepts that some model knows, {answer.searched} outputs: "
        f"top-1 {100 * first / count:.1f} %, top-5 {100 * fifth / count:.1f} %"
    )
