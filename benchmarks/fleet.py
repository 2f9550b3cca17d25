"""A crawl on a Ray cluster of several nodes on this machine: its throughput, and what the death of a node costs.

    python benchmarks/fleet.py [--small] [--folder DIR]

The real command ``hubhound crawl --ray`` runs against a hub on loopback that serves tiny real models over HTTP. Prints
for people first and, as its last line, one JSON object.

*throughput*: models stored per minute, from the first stored model to the last, by a crawl without Ray (the peer) and
on clusters with one and with two nodes of one CPU, each with one worker. ``ratio_to_local`` is what Ray costs: one
worker on Ray over the crawl without. ``speedup`` is two workers over one; the limit is 2, and less where the machine
has no two idle cores for them, because driver, hub and cluster run here, too. ``start_s`` is from the start of the
command to the first stored model, importing torch on every node included.

*kill*: two nodes, one of them is killed with all its processes while both probe, and one is added; the index is
compared with that of the crawl without Ray. ``lost``: models of the peer that the fleet has not. ``probed_twice``:
probed again although the journal said stored. ``begun_again``: probings beyond those of the peer, which is what the
node had in hand. ``noticed_s``: from the kill to the journal's having put the model back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import State
from tests.support.crawling import QUICK, Crawl, history, hits, models_of, same_hits, wait_for
from tests.support.hub_crowd import Crowd, build_crowd
from tests.support.hub_server import HubServer
from tests.support.ray_nodes import RayNodes, ray_nodes
from tests.support.small_index import make_index

LONGEST_S = 900.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="16 models in place of 80")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    # The models are tiny, and a worker has one CPU.
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before", flush=True)
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hubhound-fleet-") as folder:
        work = Path(folder)
        crowd = build_crowd(work / "hub", 16 if options.small else 80, 0, 0)
        with HubServer(crowd.root, page=50) as hub:
            crowd.tell(hub)
            local = Crawl(hub.url, index_in(work / "local"), work / "local" / "cache")
            figures["local"] = timed(local, "without Ray")
            with ray_nodes(work / "ray") as nodes:
                nodes.start()
                numbers = [nodes.add()]
                for count in (1, 2):
                    if count > len(numbers):
                        numbers.append(nodes.add())
                    crawl = fleet(hub, nodes, work / f"fleet-{count}")
                    figures[f"workers_{count}"] = timed(crawl, f"{count} worker{'s' * (count > 1)} on Ray")
                one, two = (figures[f"workers_{count}"]["models_per_min"] for count in (1, 2))
                figures["ratio_to_local"] = round(one / figures["local"]["models_per_min"], 3)
                figures["speedup"] = round(two / one, 3)
                print(f"one worker to none of Ray's: {figures['ratio_to_local']}, two to one: {figures['speedup']}")
                figures["kill"] = killed(fleet(hub, nodes, work / "killed"), nodes, numbers[0], local, crowd)
    print(json.dumps(figures))


def index_in(folder: Path) -> Path:
    """An empty index."""
    return make_index(folder / "index").folder


def fleet(hub: HubServer, nodes: RayNodes, folder: Path) -> Crawl:
    """A crawl on the cluster."""
    return Crawl(hub.url, index_in(folder), folder / "cache", (*QUICK, "--ray", nodes.address, "-v"))


def timed(crawl: Crawl, name: str) -> dict[str, float]:
    """Crawls to the end, and tells how long it took.

    Args:
        crawl: How.
        name: For people.
    """
    began = time.time()
    status = crawl.run(timeout_s=LONGEST_S)
    wall_s = time.time() - began
    if status:
        raise SystemExit(f"the crawl {name} ended with status {status}: {crawl.index.parent / 'crawl.log'}")
    stored = sorted(moments(crawl.index, State.STORED))
    figures = {
        "models": len(stored),
        "models_per_min": round(60 * (len(stored) - 1) / (stored[-1] - stored[0]), 1),
        "start_s": round(stored[0] - began, 1),
        "wall_s": round(wall_s, 1),
    }
    print(f"{name}: {figures}", flush=True)
    return figures


def moments(index: Path, state: State) -> list[float]:
    """When models have come into a state."""
    with Journal(index / FILE, read_only=True) as journal:
        return [event.at for repo in models_of(index) for event in journal.history(repo) if event.state is state]


def killed(crawl: Crawl, nodes: RayNodes, number: int, peer: Crawl, crowd: Crowd) -> dict[str, Any]:
    """Crawls, and kills a node in the middle.

    Args:
        crawl: How.
        nodes: Of the cluster.
        number: Of the node.
        peer: A crawl that was left in peace.
        crowd: What the hub holds.
    """

    def both_at_work(journal: Journal) -> bool:
        counts = journal.counts()
        return counts[State.STORED] >= 4 and counts[State.PROBING] == 2

    process = crawl.start()
    try:
        wait_for(crawl.index, both_at_work, LONGEST_S, process)
        at = time.time()
        nodes.kill(number)
        nodes.add()
        status = process.wait(LONGEST_S)
    finally:
        process.kill()
        process.wait()
    here, there = models_of(crawl.index), models_of(peer.index)
    before, after = history(peer.index), history(crawl.index)
    with Journal(crawl.index / FILE, read_only=True) as journal:
        back = [e.at for repo in here for e in journal.history(repo) if "worker was lost" in (e.detail or "")]
    figures = {
        "status": status,
        "lost": len(set(there) - set(here)),
        "probed_twice": len(after.probed_again),
        "begun_again": after.probings - before.probings,
        "noticed_s": round(min(back) - at, 1) if back else None,
        "same_hits": same_hits(hits(crawl.index, crowd), hits(peer.index, crowd)),
    }
    print(f"a node was killed: {figures}", flush=True)
    return figures


if __name__ == "__main__":
    main()
