"""The crawl as a whole: what its pipeline hides, what it costs itself, what it loses when it is killed.

    python benchmarks/crawl.py [--small] [--only overlap|overhead|kills|memory|search|follow ...] [--folder DIR]

The real command ``hubhound crawl`` runs against a hub on loopback that serves tiny real models over HTTP. Prints for
people first and, as its last line, one JSON object.

*overlap*: 50 models of a hub that lets every request wait 300 ms. The peer is a crawler that does one thing after the
other: it would take the sum of all stages' seconds (fetch, load, decode, probe, store; the listing is not counted).
What the pipeline saves is sum - wall, and the only stage long enough to be hidden behind others is the fetch, so

    hidden_fetch = (sum of all stages - wall) / seconds of fetching, at most 1

where wall is that of the whole command, from its start to its exit. That is the strictest reading: importing Python's
and torch's libraries is in the wall and in none of the stages, so it counts as fetch time that was not hidden.
``hidden_fetch_from_listing`` takes the wall from the first listing to the last stored model; the model process still
starts within it. ``hidden_fetch_start_as_stage`` is that with this start (from the birth of the process that imports
torch to the first model it is given) counted as one more stage, which a crawler that does one thing after the other
would have to wait for, too. Physical limit: no crawl can take less than its fetching divided among its fetchers, nor
less than its one model process starts and works; ``wall_to_limit`` is the wall since the listing over the larger one.

*overhead*: 200 models without latency, the wall from the first stored model to the last, without the time in which the
model process was loading, decoding or probing, per model. It is split, from the journal's moments, into the model
process waiting for a fetched model and the rest: handing over, the messages there and back, checks, transactions, and
waiting for the store, which otherwise writes in another thread while the next model is probed.

*kills*: a crowd of good models, copies and bad ones, with faults on 5 % of the requests, crawled once in peace and once
killed with SIGKILL again and again (parent, child, both in turn), begun again each time. ``lost``: the journal says
stored and the index does not have it. ``probed_twice``: probed again although the journal said stored.

*memory*: resident memory, open files and threads of the parent during the crawl in peace, and what it leaves behind.

*search*: another process searches while the crawl in peace writes, and the finished index afterwards; half of the
searches open the index anew, as a command does, half use a searcher that is kept for a while, as a service does. An
answer is right if it is what the finished index answers when only the models of the generation that was read are left
in its complete ranking, to the last digit, and model, revision and label of every hit are as the hub has them.

*follow*: after the crawl in peace 50 models change, 20 are deleted and 30 are new, and ``--follow`` brings the index to
that state.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from crawl_runs import FETCHERS, Run, a_crawl, a_hub, events_of, left_by, log_of, no_orphans, run
from crawl_search import Searching, print_some

from engine.schema import ModelState
from indexers.crawl.records import State
from tests.support import crawling
from tests.support.hub_crowd import Crowd
from tests.support.hub_server import HubServer

PARTS = ("overlap", "overhead", "kills", "memory", "search", "follow")
STAGES = ("fetch", "load", "decode", "probe", "store")
WORK = ("load", "decode", "probe")
WORKERS = 1
LATENCY_S, FAULTS = 0.3, 0.05
FINISHED = frozenset({State.STORED, State.REFUSED, State.FAILED})


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        overlap: Models crawled with latency.
        overhead: Models crawled without.
        crowd: Good ones, copies and bad ones.
        kills: Of the crawl of the crowd.
        pause_s: Between two kills, once there is work in hand.
        early: After so many finished models memory is taken for the first time.
        rest: Searches at rest, of each way.
        look_s: Seconds between two looks at the parent of a crawl of the crowd.
        follow: Models that change, are deleted and are new after the crawl.
    """

    overlap: int = 50
    overhead: int = 200
    crowd: tuple[int, int, int] = (880, 20, 100)
    kills: int = 30
    pause_s: tuple[float, float] = (0.1, 3.0)
    early: int = 100
    rest: int = 400
    look_s: float = 1.0
    follow: tuple[int, int, int] = (50, 20, 30)


SMALL = Size(
    overlap=16,
    overhead=30,
    crowd=(80, 4, 16),
    kills=5,
    pause_s=(0.05, 1.2),
    early=20,
    rest=60,
    look_s=0.25,
    follow=(5, 2, 3),
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="16, 30 and 100 models, 5 kills")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    # The models are tiny: more threads than one in the model process only take the daemon's core away.
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    size = SMALL if options.small else Size()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, OMP_NUM_THREADS={threads}", flush=True)
    figures: dict[str, Any] = {"cores": os.cpu_count(), "omp_num_threads": int(threads)}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hubhound-crawl-") as folder, no_orphans():
        work = Path(folder)
        if "overlap" in options.only:
            figures |= overlap(work / "overlap", size)
        if "overhead" in options.only:
            figures |= overhead(work / "overhead", size)
        if {"kills", "memory", "search", "follow"} & {*options.only}:
            figures |= crowded(work / "crowded", size, options.only)
    print(json.dumps(figures))


def overlap(folder: Path, size: Size) -> dict[str, Any]:
    """How much of the fetching the pipeline hides."""
    with a_hub(folder, (size.overlap, 0, 0)) as (hub, crowd):
        hub.latency_s = LATENCY_S
        done = run(a_crawl(hub, folder, "--workers", str(WORKERS)), crowd, 0.25)
        requests = len(hub.requests)
    stages = {stage: done.report["stages"][stage]["seconds"] for stage in STAGES}
    (listed,) = (line for line in done.log if line["event"] == "listed")
    listing = datetime.fromisoformat(listed["at"]).timestamp() - listed["seconds"]
    probing, fetched = done.moments(State.PROBING)[0][0], done.moments(State.FETCHED)[0][0]
    # Where the first model came after the process was ready, its start cannot be told from waiting for that model.
    start_s = probing - done.vitals.born if done.vitals.born and fetched < probing - 0.05 else 0.0
    total, inner_s = sum(stages.values()), done.moments(State.STORED)[-1][0] - listing
    limit_s = max(stages["fetch"] / FETCHERS, start_s + sum(stages[stage] for stage in WORK) / WORKERS)
    hidden = {
        "hidden_fetch": (total - done.wall_s) / stages["fetch"],
        "hidden_fetch_from_listing": (total - inner_s) / stages["fetch"],
        "hidden_fetch_start_as_stage": (total + start_s - inner_s) / stages["fetch"],
    }
    hidden = {name: round(min(1.0, share), 3) for name, share in hidden.items()}
    print(f"\noverlap: {size.overlap} models, {LATENCY_S * 1e3:.0f} ms a request, {requests} requests")
    print("  stages   " + ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items()) + f": {total:.1f} s")
    print(f"  wall     {done.wall_s:.1f} s the whole command, {inner_s:.1f} s from first listing to last stored")
    print(f"           {start_s:.1f} s of it until the model process had started; the limit is {limit_s:.1f} s")
    print(f"  hidden   {hidden['hidden_fetch']:.0%} of the fetching, the whole command counted against it")
    print(f"           {hidden['hidden_fetch_from_listing']:.0%} from the first listing on")
    print(f"           {hidden['hidden_fetch_start_as_stage']:.0%} likewise, the start of the model process as a stage")
    walls = {"wall_s": done.wall_s, "wall_from_listing_s": inner_s, "model_process_start_s": start_s}
    walls |= {"limit_s": limit_s, "wall_to_limit": inner_s / limit_s}
    more = {name: round(value, 2) for name, value in walls.items()}
    return hidden | {"overlap": {"models": size.overlap, "requests": requests, "stages_s": stages, **more}}


def overhead(folder: Path, size: Size) -> dict[str, Any]:
    """What the daemon itself takes per model."""
    with a_hub(folder, (size.overhead, 0, 0)) as (hub, crowd):
        done = run(a_crawl(hub, folder, "--workers", str(WORKERS)), crowd, 0.25)
    stored, probing = done.moments(State.STORED), done.moments(State.PROBING)
    fetched = {repo: at for at, repo in done.moments(State.FETCHED)}
    busy = {repo: sum(seconds[stage] for stage in WORK) for repo, seconds in done.seconds.items()}
    count, wall_s = len(stored) - 1, stored[-1][0] - stored[0][0]
    work_s = sum(busy[repo] for _, repo in stored[1:])
    waiting_s = other_s = 0.0
    for (at, repo), (then, following) in itertools.pairwise(probing[1:]):
        idle = then - at - busy[repo]
        for_fetch = min(max(0.0, fetched[following] - at - busy[repo]), max(0.0, idle))
        waiting_s, other_s = waiting_s + for_fetch, other_s + idle - for_fetch
    looks = [row for row in done.vitals.rows if stored[0][0] <= row[0] <= stored[-1][0]]
    mean_ms = {stage: np.mean([s[stage] for s in done.seconds.values()]) * 1e3 for stage in STAGES}
    cpu_ms = (looks[-1][5] - looks[0][5]) / (looks[-1][0] - looks[0][0]) * wall_s / count * 1e3
    found = {
        "overhead_ms_per_model": (wall_s - work_s) / count * 1e3,
        "waiting_for_fetched_ms": waiting_s / count * 1e3,
        "handing_over_ms": other_s / count * 1e3,
        "parent_cpu_ms_per_model": cpu_ms,
        "work_ms_per_model": work_s / count * 1e3,
        "wall_ms_per_model": wall_s / count * 1e3,
    }
    found = {name: round(value, 1) for name, value in found.items()}
    print(f"\noverhead: {len(stored)} models without latency, {found['wall_ms_per_model']} ms each")
    print(f"  {found['work_ms_per_model']:8} ms the model process at work")
    print(f"  {found['overhead_ms_per_model']:8} ms the daemon: the model process had nothing to do")
    print(f"  {found['waiting_for_fetched_ms']:8} ms of it no model was fetched yet")
    print(f"  {found['handing_over_ms']:8} ms of it handing over: messages, checks, transactions, the store's turn")
    print(f"  {mean_ms['store']:8.1f} ms writing to the index, in a thread beside it")
    print(f"  {mean_ms['fetch']:8.1f} ms fetching, in {FETCHERS} threads beside it")
    print(f"  {found['parent_cpu_ms_per_model']:8} ms of processor time of the parent for all of this")
    rounded = {stage: round(float(value), 1) for stage, value in mean_ms.items()}
    return {"overhead_ms_per_model": found.pop("overhead_ms_per_model"), "overhead": {**found, "stages_ms": rounded}}


def crowded(folder: Path, size: Size, parts: Sequence[str]) -> dict[str, Any]:
    """One crawl of a crowd in peace, for all parts that need one, and the parts."""
    figures: dict[str, Any] = {}
    with a_hub(folder, size.crowd) as (hub, crowd):
        hub.random_faults(FAULTS, seed=1)
        truth = {repo: hub.commit_of(repo) for repo in crowd.expected if crowd.folder(repo).exists()}
        calm = a_crawl(hub, folder / "calm", *crawling.QUICK)
        with contextlib.ExitStack() as stack:
            searching = (
                stack.enter_context(Searching(calm.index, crowd, truth, size.rest)) if "search" in parts else None
            )
            done = run(calm, crowd, size.look_s, searching.rest if searching else lambda: None)
        wrong = crawling.mistakes(calm.index, crowd, truth)
        print(f"\na crowd of {len(crowd.expected)} models, {FAULTS:.0%} of the requests fail: {done.wall_s:.0f} s")
        print(f"  {len(wrong)} mistakes, {len(crowd.canaries)} files made by models' code")
        print_some(wrong)
        figures["calm"] = {"wall_s": round(done.wall_s, 1), "mistakes": len(wrong), "models": len(crowd.expected)}
        faults = sum(hub.random.given.values()) if hub.random else 0
        figures["calm"] |= {"canaries": len(crowd.canaries), "requests": len(hub.requests), "faults": faults}
        if "memory" in parts:
            figures |= memory(done, calm, size)
        if searching is not None:
            figures |= searching.figures()
        if "kills" in parts:
            figures |= kills(hub, folder / "killed", crowd, truth, calm, size)
        if "follow" in parts:
            figures |= follow(calm, hub, crowd, size)
    return figures


def memory(done: Run, crawl: crawling.Crawl, size: Size) -> dict[str, Any]:
    """Whether the parent stays as small as it was."""
    finished = [event.at for _, event in done.events if event.state in FINISHED]
    print(f"\nmemory of the parent, {len(done.vitals.rows)} looks")
    found: dict[str, Any] = {}
    for name, number in (("early", size.early), ("half", len(finished) // 2), ("end", len(finished))):
        row = next((row for row in done.vitals.rows if row[0] >= finished[number - 1]), done.vitals.rows[-1])
        found[name] = {"models": number, "rss_mb": mb(row[1]), "own_mb": mb(row[2]), "fds": row[3]}
        found[name]["threads"] = row[4]
        print(f"  {number:5} models {mb(row[1]):8} MB resident, {mb(row[2])} MB without files", end="")
        print(f", {row[3]} open files, {row[4]} threads")
    found["peak_rss_mb"] = mb(max(row[1] for row in done.vitals.rows))
    found["most_fds"] = max(row[3] for row in done.vitals.rows)
    found["left"] = left_by(crawl)
    found["growth_mb"] = round(found["end"]["rss_mb"] - found["early"]["rss_mb"], 1)
    found["own_growth_mb"] = round(found["end"]["own_mb"] - found["early"]["own_mb"], 1)
    print(f"  at most {found['peak_rss_mb']} MB and {found['most_fds']} open files; left behind: {found['left']}")
    return {"memory": found}


def mb(size_bytes: int) -> float:
    """Megabytes."""
    return round(size_bytes / 1e6, 1)


def kills(
    hub: HubServer, folder: Path, crowd: Crowd, truth: Mapping[str, str], calm: crawling.Crawl, size: Size
) -> dict[str, Any]:
    """The same crawl, killed again and again."""
    # Each kill costs the models in hand one of their tries.
    crawl = a_crawl(hub, folder, "--retry-wait", "0.05s", "--retries", "60")
    began = time.perf_counter()
    try:
        killed = crawling.crawl_with_kills(crawl, size.kills, seed=2, pause_s=size.pause_s)
    except BaseException:
        print((folder / "crawl.log").read_text()[-3000:], file=sys.stderr)
        raise
    wall_s = time.perf_counter() - began
    events, log = events_of(crawl.index, crowd), log_of(crawl)
    went_on = [line for line in log if line["event"] == "went on"]
    said = {(repo, event.revision) for repo, event in events if event.state is State.STORED}
    said -= {(repo, event.revision) for repo, event in events if event.state is State.GONE}
    has = {
        (model.repo, model.revision)
        for model in crawling.models_of(crawl.index).values()
        if model.state in {ModelState.INDEXED, ModelState.COPY}
    }
    past = crawling.history(crawl.index)
    probed = len({(repo, event.revision) for repo, event in events if event.state is State.PROBING})
    wrong = crawling.mistakes(crawl.index, crowd, truth)
    same = crawling.same_hits(crawling.hits(crawl.index, crowd), crawling.hits(calm.index, crowd))
    found: dict[str, Any] = {
        "kills": dict(Counter(killed)),
        "wall_s": round(wall_s, 1),
        "mistakes": len(wrong),
        "same_hits": same,
        "canaries": len(crowd.canaries),
        "probings": past.probings,
        "probings_cut_short": past.probings - probed,
        "begun_again": sum(line["begun_again"] for line in went_on),
        "found_in_index": sum(line["in_index"] for line in went_on),
        "left": left_by(crawl),
    }
    lost = sorted(said - has)
    print(f"\nkills: {len(killed)} of {size.kills} ({', '.join(f'{n} {what}' for what, n in found['kills'].items())})")
    print(f"  {len(lost)} lost, {len(past.probed_again)} probed twice, {len(wrong)} mistakes")
    print_some([*map(str, lost), *past.probed_again, *wrong])
    print(f"  hits {'are those' if same else 'DIFFER from those'} of the crawl in peace; {wall_s:.0f} s")
    print(f"  {past.probings} probings, {found['probings_cut_short']} of them cut short; left behind: {found['left']}")
    print(f"  {found['begun_again']} models in hand begun again, {found['found_in_index']} found in the index")
    return {"lost": len(lost), "probed_twice": len(past.probed_again), "kills": found}


def follow(crawl: crawling.Crawl, hub: HubServer, crowd: Crowd, size: Size) -> dict[str, Any]:
    """The hub goes on: some models change, some are deleted, some are new; the crawl follows it."""
    changed, deleted, added = size.follow
    single = [repo for repo in crowd.good if repo not in crowd.copies and repo not in crowd.copies.values()]
    for repo in single[:changed]:
        crowd.change(repo)
    for repo in single[changed : changed + deleted]:
        crowd.delete(repo)
    for _ in range(added):
        crowd.add()
    truth = {repo: hub.commit_of(repo) for repo in crowd.expected if crowd.folder(repo).exists()}
    began = time.perf_counter()
    # A full listing at once: nothing else finds what was deleted.
    crawl.follow_until(crawling.settled(crowd, truth), "--interval", "1s", "--full-every", "0s")
    wall_s = time.perf_counter() - began
    wrong, again = crawling.mistakes(crawl.index, crowd, truth), crawling.history(crawl.index).probed_again
    print(f"\nfollow: {changed} changed, {deleted} deleted, {added} new: {wall_s:.0f} s with start and end")
    print(f"  {len(wrong)} mistakes, {len(again)} probed twice")
    print_some([*wrong, *again])
    return {"follow": {"wall_s": round(wall_s, 1), "mistakes": len(wrong), "probed_twice": len(again)}}


if __name__ == "__main__":
    main()
