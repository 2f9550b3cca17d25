"""The part of `crawl.py` that searches while a crawl writes: another process, and what it says.

python benchmarks/crawl_search.py INDEX        # as crawl.py starts it
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from engine.distance import check_method
from engine.index import Index
from engine.scan import exact_margins
from query.answers import Hit
from query.request import SearchRequest
from query.search import Searcher
from tests.support import crawling
from tests.support.hub_crowd import Crowd
from tests.support.small_index import encode

K, RENEW, PAUSE_S, REST_PAUSE_S = 10, 8, 0.25, 0.1


def print_some(lines: Sequence[str]) -> None:
    """Prints the first of what should not be there."""
    print(*(f"    {line}\n" for line in lines[:20]), sep="", end="")


class Searching:
    """The process that searches, as the crawl's side sees it; use it as a context manager.

    Args:
        index: Folder of the index.
        crowd: What the hub holds.
        truth: Commits by repository.
        rest: How often it is to search at rest.
    """

    def __init__(self, index: Path, crowd: Crowd, truth: Mapping[str, str], rest: int) -> None:
        self._rest, self._said = rest, ""
        known = {repo: [truth[repo], crowd.expected[repo].labels] for repo in crowd.good}
        (index.parent / "truth.json").write_text(json.dumps(known))
        self._command = [sys.executable, __file__, str(index)]

    def __enter__(self) -> Searching:
        self._process = subprocess.Popen(self._command, stdin=-1, stdout=-1, text=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def rest(self) -> None:
        """Has the finished index searched as well, and waits for that."""
        self._said, _ = self._process.communicate(f"{self._rest}\n")

    def figures(self) -> dict[str, Any]:
        """Prints what came out."""
        found = json.loads(self._said.splitlines()[-1])
        print(f"\nsearch: {found['answers']} answers while the crawl wrote, from {found['generations']} generations")
        for when, ways in found["ms"].items():
            for way, ms in ways.items():
                shown = f"median {ms['median']:7} ms, p99 {ms['p99']:7} ms, {ms['searches']} searches"
                print(f"  {when:28} {way:7} {shown} of {ms['outputs']} outputs")
        print(f"  {found['errors']} errors, {found['wrong']} wrong answers")
        print_some(found["examples"])
        return {"search": found}


@dataclass(frozen=True)
class Asked:
    """One search: how, of which generation, in how long, and what came out."""

    way: str
    concept: str
    generation: int
    outputs: int
    seconds: float
    hits: tuple[tuple[str, str, int, str | None, float], ...]


class Asker:
    """Asks an index one concept after another, in three ways.

    Attributes:
        done: What was asked.
        models: Those of every generation that was read.
        errors: What went wrong.
    """

    def __init__(self, index: Path) -> None:
        self._index = index
        self.done: list[Asked] = []
        self.models: dict[int, frozenset[tuple[str, str]]] = {}
        self.errors: list[str] = []
        self._first = self._kept = self._open()

    def _open(self) -> Searcher:
        return Searcher(Index(self._index), encode)

    def turn(self, number: int) -> None:
        """One search with the index opened anew, one with a kept searcher, sometimes one with the oldest of all."""
        concept = crawling.CONCEPTS[number % len(crawling.CONCEPTS)]
        try:
            if number % RENEW == 0:
                self._kept = self._open()
            self._ask("opened", concept, None)
            self._ask("kept", concept, self._kept)
            if number % RENEW == RENEW - 1:  # its generation's files are long gone
                self._ask("oldest", concept, self._first)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _ask(self, way: str, concept: str, searcher: Searcher | None) -> None:
        began = time.perf_counter()
        searcher = searcher or self._open()
        (result,) = searcher.search(SearchRequest((concept,), K)).results
        seconds = time.perf_counter() - began
        snapshot = searcher.snapshot
        self.models[snapshot.number] = frozenset((model.repo, model.revision) for model in snapshot.models)
        outputs = [hit for hit in result.hits if isinstance(hit, Hit)]
        hits = tuple((hit.model, hit.revision, hit.output, hit.label, hit.margin) for hit in outputs)
        self.done.append(Asked(way, concept, snapshot.number, len(snapshot), seconds, hits))

    def wrong(self, truth: Mapping[str, tuple[str, Sequence[str]]]) -> list[str]:
        """Answers that are not what the finished index says about the models that were there."""
        index = Index(self._index)
        searcher = Searcher(index, encode)
        snapshot, method = searcher.snapshot, check_method(index.manifest.method)
        rows, found = np.arange(len(snapshot)), []
        owners = [(m.repo, m.revision) for m in snapshot.models for _ in range(m.outputs)]
        for concept in crawling.CONCEPTS:
            (question,) = searcher.ask(SearchRequest((concept,), K))
            margin = exact_margins(snapshot.arrays, rows, question.concepts, 0, method)
            ranking = np.argsort(-margin, kind="stable").tolist()
            for generation in {asked.generation for asked in self.done if asked.concept == concept}:
                there = self.models[generation]
                best = [row for row in ranking if owners[row] in there][:K]
                expected = tuple(
                    (*owners[row], int(snapshot.output[row]), snapshot.label_of(row), round(float(margin[row]), 6))
                    for row in best
                )
                for asked in self.done:
                    if (asked.concept, asked.generation) != (concept, generation):
                        continue
                    unknown = [h for h in asked.hits if h[0] not in truth or h[1] != truth[h[0]][0]]
                    if asked.hits != expected or unknown or any(h[3] != truth[h[0]][1][h[2]] for h in asked.hits):
                        found.append(f"{asked.way}, {concept}, generation {generation}: {asked.hits[:2]}")
        return found


def search_until_told(index: Path) -> None:
    """The searching process: searches from the first generation until a line comes in, then so often as it says."""
    while not (index / "snapshots" / "CURRENT").exists():
        if select.select([sys.stdin], [], [], 0.02)[0]:
            raise SystemExit("the crawl ended before it wrote a generation")
    asker = Asker(index)
    asker.turn(0)  # imports and compiles
    asker.done.clear()
    number = 0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        asker.turn(number)
        number += 1
    crawling_end = len(asker.done)
    for again in range(int(sys.stdin.readline())):
        asker.turn(again)
        time.sleep(REST_PAUSE_S)
    while_crawling, rest = asker.done[:crawling_end], asker.done[crawling_end:]
    large = [asked for asked in while_crawling if asked.outputs >= 0.75 * rest[-1].outputs]
    truth = json.loads((index.parent / "truth.json").read_text())
    wrong = asker.wrong(truth)
    times = {"while crawling": while_crawling, "the last quarter of it": large, "at rest": rest}
    found = {
        "answers": len(while_crawling),
        "generations": len({asked.generation for asked in while_crawling}),
        "ms": {when: summary(asked) for when, asked in times.items()},
        "errors": len(asker.errors),
        "wrong": len(wrong),
        "examples": (asker.errors + wrong)[:5],
    }
    print(json.dumps(found))


def summary(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Median and 99th percentile in milliseconds, by the way of asking."""
    found = {}
    for way in ("opened", "kept"):
        ms = [item.seconds * 1e3 for item in asked if item.way == way]
        if ms:
            outputs = float(np.mean([item.outputs for item in asked if item.way == way]))
            found[way] = {
                "searches": len(ms),
                "median": round(float(np.median(ms)), 1),
                "p99": round(float(np.percentile(ms, 99)), 1),
                "outputs": round(outputs),
            }
    return found


if __name__ == "__main__":
    search_until_told(Path(sys.argv[1]))
