"""How much it costs to bring a snapshot of an index on a server up to date: time and bytes.

    python benchmarks/catch_up.py [--small] [--dimension 512] [--url http://host:6333]

An index of 100,000 outputs (100 models of 1,000) is put on a Qdrant server; without --url on the tests' stand-in, which
is Qdrant's engine behind an HTTP interface in Python. A reader makes its first snapshot; then 1,000 outputs change,
once as one model and once as 50 models of 20, and the reader catches up. The peer is reading everything again, in the
same run; the limit is the bytes of the numbers that changed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from store import PROBES, REVISION, TOP_R, make_table, raw_bytes

from engine.calibration import Background
from engine.catching_up import catch_up
from engine.outputs import OutputTable
from engine.schema import Model
from engine.snapshot import Snapshot
from engine.store.base import StoreLayout
from engine.store.server import ServerStore, connect
from tests.support.qdrant_server import standin

FINGERPRINT = "b" * 64


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="10,000 outputs")
    parser.add_argument("--dimension", type=int, default=512, help="of the encoder")
    parser.add_argument("--url", help="of a Qdrant server; by default the stand-in")
    options = parser.parse_args()
    models = 10 if options.small else 100
    with tempfile.TemporaryDirectory() as scratch:
        if options.url:
            figures = measure(options.url, Path(scratch), models, options.dimension)
        else:
            with standin(Path(scratch) / "server") as server:
                figures = measure(server.url, Path(scratch), models, options.dimension)
    figures["server"] = "given" if options.url else "stand-in"
    print(json.dumps(figures))


def measure(url: str, scratch: Path, models: int, dimension: int) -> dict[str, Any]:
    """Puts the index there, and catches up with it."""
    name = f"bench{os.getpid()}"
    layout = StoreLayout(PROBES, TOP_R, dimension)
    with ServerStore.create(connect(url), name, layout) as writing, counted(url) as (proxy, bytes_read):
        try:
            started = time.perf_counter()
            for number in range(models):
                put(writing, make_table(number, dimension))
            print(f"{models * 1000:,} outputs put in {time.perf_counter() - started:.0f} s")
            with ServerStore.open(connect(proxy), name) as reading:
                return catching_up(writing, reading, scratch, bytes_read, models, dimension)
        finally:
            writing.destroy()


def catching_up(
    writing: ServerStore, reading: ServerStore, scratch: Path, read: list[int], models: int, dimension: int
) -> dict[str, Any]:
    """The first snapshot, one with nothing new, two with 1,000 changed outputs, and everything again."""
    root = scratch / "snapshots"
    figures: dict[str, Any] = {"outputs": models * 1000}
    whole = make_table(0, dimension)
    small = [replace(part(whole, i * 20, 20), repo=f"org/small-{i}") for i in range(50)]
    for table in small:
        put(writing, table)
    figures["first"] = timed(reading, root, read)
    figures["nothing_new"] = timed(reading, root, read)
    put(writing, replace(make_table(1000, dimension), repo=whole.repo, revision="b" * 40))
    writing.delete_outputs(whole.repo, "b" * 40)
    figures["one_model_of_1000"] = timed(reading, root, read)
    other = make_table(2000, dimension)
    for i, table in enumerate(small):
        put(writing, replace(part(other, i * 20, 20), repo=table.repo))
    figures["50_models_of_20"] = timed(reading, root, read)
    caught = Snapshot.open(root)
    figures["everything_again"] = timed(reading, scratch / "again", read)
    again = Snapshot.open(scratch / "again")
    if caught is None or again is None or len(caught) != models * 1000 + 1000:
        raise SystemExit("the snapshot has not followed")
    for field in vars(caught.arrays):
        if not np.array_equal(getattr(caught.arrays, field), getattr(again.arrays, field)):
            raise SystemExit(f"the snapshot that caught up differs from a fresh one: {field}")
    limit = len(raw_bytes(whole))
    for name in ("one_model_of_1000", "50_models_of_20"):
        entry = figures[name]
        entry["time_to_everything"] = round(entry["s"] / figures["everything_again"]["s"], 4)
        entry["bytes_to_everything"] = round(entry["bytes"] / figures["everything_again"]["bytes"], 4)
        entry["bytes_to_raw"] = round(entry["bytes"] / limit, 2)
        print(
            f"{name.replace('_', ' '):20} {entry['s']:7.2f} s {entry['bytes'] / 1e6:9.2f} MB read, "
            f"{entry['bytes_to_everything']:.2%} of everything, {entry['bytes_to_raw']} times the numbers that changed"
        )
    for name in ("first", "nothing_new", "everything_again"):
        print(f"{name.replace('_', ' '):20} {figures[name]['s']:7.2f} s {figures[name]['bytes'] / 1e6:9.2f} MB read")
    return figures


def timed(store: ServerStore, root: Path, read: list[int]) -> dict[str, float]:
    """One catching up: seconds, and bytes that came from the server."""
    before, started = read[0], time.perf_counter()
    catch_up(store, root, _no_background, FINGERPRINT, None)
    return {"s": round(time.perf_counter() - started, 3), "bytes": read[0] - before}


def _no_background() -> Background:
    raise SystemExit("every model has the constants of one background here")


def put(store: ServerStore, table: OutputTable) -> None:
    """Outputs and record of a model."""
    store.upsert_outputs(table)
    store.upsert_model(
        Model(repo=table.repo, revision=table.revision or REVISION, outputs=len(table), calibration=FINGERPRINT)
    )


def part(table: OutputTable, start: int, count: int) -> OutputTable:
    """Some outputs of a table, as a model of their own."""
    rows = slice(start, start + count)
    names = ("labels", "mean", "std", "idx", "z", "anchor")
    taken = {name: getattr(table, name)[rows] for name in names}
    return replace(table, output=np.arange(count), calibration=table.calibration.take(rows), **taken)


@contextmanager
def counted(url: str) -> Iterator[tuple[str, list[int]]]:
    """A way to a server that counts the bytes of its answers; the address, and the number so far."""
    to = urlsplit(url)
    total = [0]
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if answers:
                    total[0] += len(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((to.hostname or "", to.port or 6333))
            threading.Thread(target=pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=pump, args=(far, near, True), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", total
    finally:
        listener.close()


if __name__ == "__main__":
    main()
