"""What REST and gRPC cost towards the same index on the same server: catching up with it, and searches by the server.

    python benchmarks/over_grpc.py [--small] [--index INDEX] [--dimension 384] [--rounds 3] [--url URL --grpc-port PORT]

20,000 outputs (20 models of 1,000) are put on a Qdrant server, else on the tests' stand-in: Qdrant's engine behind
interfaces in Python, whose own times are not those of a real server. A new reader then catches up with them over
either, in turns. With INDEX, an embedded one (it is copied, not changed), its outputs are put there too and names of
its labels are searched by the server over either, in turns. Seconds by the clock, of the client's processor and, of
the stand-in, of the server's; bytes that came from the server. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from catch_up import FINGERPRINT, _no_background, put
from server import class_names, filled, small_index
from store import PROBES, TOP_R, make_table

from engine.catching_up import catch_up
from engine.index import Index
from engine.snapshot import Snapshot
from engine.store.base import StoreLayout
from engine.store.server import ServerStore, connect
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher
from tests.support.qdrant_grpc_faults import bytes_proxy
from tests.support.qdrant_server import standin
from tests.support.small_index import encode

WAYS = ("rest", "grpc")


class Server:
    """One server, two ways to it that count the bytes of answers.

    Args:
        url: Of its REST interface.
        grpc_port: Of the other, on the same host, which is this machine.
        process: Number of its process, if its processor time can be read.
        held: Keeps the ways open.
    """

    def __init__(self, url: str, grpc_port: int, process: int | None, held: ExitStack) -> None:
        self.process = process
        port = urlsplit(url).port or 6333
        self._url = url
        self._proxies = {
            "rest": held.enter_context(bytes_proxy(port)),
            "grpc": held.enter_context(bytes_proxy(grpc_port)),
        }

    def open(self, name: str, way: str) -> ServerStore:
        """The store of this name, reached that way."""
        rest = f"http://127.0.0.1:{self._proxies['rest'].port}"
        grpc_port = self._proxies["grpc"].port if way == "grpc" else None
        return ServerStore.open(connect(rest, grpc_port=grpc_port), name)

    def timed(self, way: str, act: Callable[[], Any]) -> dict[str, float]:
        """What something costs that goes one way."""
        proxy = self._proxies[way]
        before = time.perf_counter(), time.process_time(), self._processor_s(), proxy.to_client_bytes
        act()
        after = time.perf_counter(), time.process_time(), self._processor_s(), proxy.to_client_bytes
        names = ("s", "client_cpu_s", "server_cpu_s", "bytes")
        return {name: round(b - a, 4) for name, a, b in zip(names, before, after, strict=True)}

    def _processor_s(self) -> float:
        if self.process is None:
            return 0.0
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="2,000 outputs, an index of 400 invented ones, one round")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--dimension", type=int, default=384, help="of the encoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concepts", type=int, default=30)
    parser.add_argument("--url", help="of a Qdrant server on this machine")
    parser.add_argument("--grpc-port", type=int, default=6334, help="of that")
    options = parser.parse_args()
    models, rounds = (2, 1) if options.small else (20, options.rounds)
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory()))
        if options.url:
            server = Server(options.url, options.grpc_port, None, held)
        else:
            made = held.enter_context(standin(work / "server", grpc_port=0))
            server = Server(made.url, made.grpc_port or 0, made.process.pid, held)
        url = options.url or made.url
        figures: dict[str, Any] = {"outputs": models * 1000, "dimension": options.dimension}
        figures["catching up"] = catching_up(server, url, work, models, options.dimension, rounds)
        if options.small or options.index:
            figures["search"] = searching(server, url, work, options.index, options.concepts, rounds)
    print(json.dumps(figures))


def catching_up(server: Server, url: str, work: Path, models: int, dimension: int, rounds: int) -> dict[str, Any]:
    """The first snapshot of a reader, each way in turns."""
    name = f"bench{os.getpid()}"
    with ServerStore.create(connect(url), name, StoreLayout(PROBES, TOP_R, dimension)) as writing:
        try:
            for number in range(models):
                put(writing, make_table(number, dimension))
            costs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for number in range(rounds):
                for way in WAYS if number % 2 == 0 else reversed(WAYS):
                    with server.open(name, way) as reading:
                        root = work / f"{way}{number}"
                        act = lambda: catch_up(reading, root, _no_background, FINGERPRINT, None)  # noqa: B023, E731
                        costs[way].append(server.timed(way, act))
            same(work / "rest0", work / "grpc0")
        finally:
            writing.destroy()
    return report(f"catching up with {models * 1000:,} outputs", costs)


def same(one: Path, other: Path) -> None:
    """Fails unless both snapshots have the same numbers."""
    here, there = Snapshot.open(one), Snapshot.open(other)
    if here is None or there is None:
        raise SystemExit("there is no snapshot")
    for field in vars(here.arrays):
        if not np.array_equal(getattr(here.arrays, field), getattr(there.arrays, field)):
            raise SystemExit(f"what came over gRPC differs: {field}")


def searching(server: Server, url: str, work: Path, folder: Path | None, count: int, rounds: int) -> dict[str, Any]:
    """Searches by the server, each way in turns."""
    if folder is None:
        index, names = small_index(work / "zoo"), [f"word {i}" for i in range(10)]
        index.embed(names, encode)
    else:
        shutil.copytree(folder, work / "zoo")
        index = Index(work / "zoo")
        names = class_names(Path("nowhere"), index, count)
        index.embed(names)
    scan = Searcher(index)
    with filled(index, url) as writing:
        try:
            stores = {way: server.open(writing.name, way) for way in WAYS}
            searchers = {way: ServedSearcher(index, store) for way, store in stores.items()}
            costs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for number in range(rounds):
                for name in names:
                    request = SearchRequest((name,), 10)
                    questions = scan.ask(request)
                    answers = []
                    for way in WAYS if number % 2 == 0 else reversed(WAYS):
                        act = lambda: answers.append(searchers[way].answer(request, questions))  # noqa: B023, E731
                        costs[way].append(server.timed(way, act))
                    if answers[0].results != answers[1].results:
                        raise SystemExit(f"what came over gRPC differs: {name}")
            for store in stores.values():
                store.close()
        finally:
            writing.destroy()
    return report(f"a search of {len(index.snapshot()):,} outputs by the server", costs)


def report(what: str, costs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of both ways and of what gRPC takes of REST in each pair, printed."""
    found: dict[str, Any] = {"pairs": len(costs["rest"])}
    for way in WAYS:
        found[way] = {key: round(float(np.median([one[key] for one in costs[way]])), 4) for key in costs[way][0]}
    pairs = [g["s"] / r["s"] for r, g in zip(costs["rest"], costs["grpc"], strict=True)]
    found["grpc_to_rest_s"] = {name: round(float(np.percentile(pairs, at)), 3) for name, at in QUARTILES}
    print(what)
    for way in WAYS:
        one = found[way]
        print(
            f"  {way}: {one['s']:.3f} s, processor of the client {one['client_cpu_s']:.3f} s, of the server "
            f"{one['server_cpu_s']:.3f} s, {one['bytes'] / 1e6:.2f} MB read"
        )
    print(f"  gRPC takes {found['grpc_to_rest_s']['median']} of the time of REST")
    return found


QUARTILES = (("quarter", 25), ("median", 50), ("three quarters", 75))

if __name__ == "__main__":
    main()
