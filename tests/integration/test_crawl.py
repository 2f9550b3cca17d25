"""The whole crawl: the real command, a real HTTP hub, real models in real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.errors import IndexUnusableError
from engine.index import Index
from engine.schema import ModelState
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import State
from query.request import SearchRequest
from query.search import Searcher
from tests.support.crawling import (
    QUICK,
    Crawl,
    crawl_with_kills,
    history,
    hits,
    mistakes,
    models_of,
    same_hits,
    settled,
    wait_for,
)
from tests.support.hub_bad_models import BAD_KINDS
from tests.support.hub_crowd import Crowd, build_crowd
from tests.support.hub_server import HubServer
from tests.support.small_index import encode, make_index

pytestmark = pytest.mark.slow

GOOD, COPIES = 60, 5


def revisions(hub: HubServer, crowd: Crowd) -> dict[str, str]:
    return {repo: hub.commit_of(repo) for repo in crowd.expected if crowd.folder(repo).exists()}


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    return build_crowd(tmp_path / "hub", GOOD, len(BAD_KINDS), 0, copies=COPIES)


@pytest.fixture
def hub(crowd: Crowd) -> Iterator[HubServer]:
    with HubServer(crowd.root, page=20) as server:
        crowd.tell(server)
        yield server


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[HubServer, Crowd]]:
    """A hub of good models only."""
    made = build_crowd(tmp_path / "hub", 12, 0, 1)
    with HubServer(made.root, page=5) as server:
        made.tell(server)
        yield server, made


def crawl_of(hub: HubServer, folder: Path, name: str = "zoo", **more: object) -> Crawl:
    make_index(folder / name / "index")
    return Crawl(hub.url, folder / name / "index", folder / "cache", **more)  # type: ignore[arg-type]


def reports(crawl: Crawl) -> list[dict[str, object]]:
    """The JSON reports that runs have left in the log."""
    text = (crawl.index.parent / "crawl.log").read_text()
    decoder, found, at = json.JSONDecoder(), [], text.find("\n{\n") + 1
    while at > 0 or text.startswith("{\n"):
        value, end = decoder.raw_decode(text[at:])
        found.append(value)
        at = text.find("\n{\n", at + end) + 1
        if at == 0:
            break
    return found


def test_a_crowd_is_indexed_exactly_and_followed(hub: HubServer, crowd: Crowd, tmp_path: Path) -> None:
    """From nothing, with faults on 5 % of the requests; then through changes, deletions and additions."""
    hub.random_faults(0.05, seed=3)
    crawl = crawl_of(hub, tmp_path)
    assert crawl.run() == 0
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    assert crowd.canaries == []
    assert history(crawl.index).probed_again == ()
    assert sum(hub.random.given.values()) > 10  # there were faults
    good = [repo for repo in crowd.good if repo not in crowd.copies and repo not in crowd.copies.values()]
    for repo in good[:6]:
        crowd.change(repo)
    for repo in good[6:10]:
        crowd.delete(repo)
    for _ in range(5):
        crowd.add()
    truth = revisions(hub, crowd)
    status = crawl.follow_until(settled(crowd, truth), "--interval", "0.5s", "--full-every", "0s")
    assert status == 128 + signal.SIGTERM
    assert mistakes(crawl.index, crowd, truth) == []
    assert crowd.canaries == []
    left = [path.name for path in (crawl.index / "crawl").iterdir() if path.suffix != ".sqlite"]
    assert not [name for name in left if not name.startswith("journal.sqlite")]  # no download, no heartbeat
    assert not list(crawl.cache.rglob("scratch*"))


def test_searching_goes_on_while_it_crawls(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    """Every answer is that of one generation: whole models, each at the revision that the hub has."""
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    truth = revisions(hub, crowd)
    hub.latency_s = 0.05
    process = crawl.start()
    generations, answers = set(), 0
    while process.poll() is None:
        index = Index(crawl.index)
        try:
            searcher = Searcher(index, encode)
        except IndexUnusableError:
            time.sleep(0.05)  # nothing is indexed yet
            continue
        generations.add(searcher.snapshot.number)
        answer = searcher.search(SearchRequest(("concept 1",), 1000))
        hits = answer.results[0].hits
        found = Counter(hit.model for hit in hits)
        assert all(hit.revision == truth[hit.model] for hit in hits)
        assert found == {repo: len(crowd.expected[repo].labels) for repo in found}
        assert len(hits) == answer.searched
        answers += 1
        time.sleep(0.05)
    assert process.returncode == 0
    assert answers > 5
    assert generations
    assert mistakes(crawl.index, crowd, truth) == []


def test_kills_lose_nothing_and_probe_nothing_twice(hub: HubServer, crowd: Crowd, tmp_path: Path) -> None:
    """The daemon, a process of models or all are killed again and again; the index is that of a crawl in peace."""
    calm = crawl_of(hub, tmp_path, "calm")
    assert calm.run() == 0
    hub.random_faults(0.05, seed=4)
    crawl = crawl_of(hub, tmp_path, "killed", options=(*QUICK[:2], "--retries", "60"))
    killed = crawl_with_kills(crawl, 6, seed=1, pause_s=(0.05, 1.0))
    assert len(killed) >= 4
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    assert history(crawl.index).probed_again == ()
    assert same_hits(hits(crawl.index, crowd), hits(calm.index, crowd))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(small: tuple[HubServer, Crowd], tmp_path: Path, number: signal.Signals) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    hub.latency_s = 0.05
    process = crawl.start()
    wait_for(crawl.index, lambda journal: journal.counts()[State.STORED] >= 2, 120, process)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(40) == 128 + number
    assert time.monotonic() - began < 30
    with Journal(crawl.index / FILE, read_only=True) as journal:
        assert journal.under_way() == []  # what was in hand is rolled back
        stored = journal.counts()[State.STORED]
    assert stored == sum(model.state is ModelState.INDEXED for model in models_of(crawl.index).values())
    assert len({model.repo for model in Index(crawl.index).snapshot().models}) == stored
    hub.latency_s = 0.0
    assert crawl.run() == 0
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    assert history(crawl.index).probed_again == ()


def test_a_second_signal_ends_it_at_once(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path, environment={"HUBHOUND_TEST_HANG": "1"})
    process = crawl.start("--model-timeout", "1h")
    wait_for(crawl.index, lambda journal: journal.counts()[State.STORED] >= 1, 120, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    for child in children:  # nothing finishes any more
        child.suspend()
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it waits for the model in hand
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    for child in children:
        with pytest.raises((psutil.NoSuchProcess, psutil.TimeoutExpired)):
            child.resume()
            child.wait(10)
            raise psutil.NoSuchProcess(child.pid)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert crawl.run() == 0
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []


def test_shards_share_a_hub(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    """Two daemons at the same time, each with its part: every model exactly once."""
    hub, crowd = small
    crawls = [crawl_of(hub, tmp_path, f"zoo{i}") for i in range(2)]
    processes = [crawl.start("--shard", f"{i}/2") for i, crawl in enumerate(crawls)]
    assert [process.wait(300) for process in processes] == [0, 0]
    found = [sorted(models_of(crawl.index)) for crawl in crawls]
    assert all(found)
    assert sorted(found[0] + found[1]) == sorted(crowd.good)
    asked = [request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    weights = [path for path in asked if path.endswith(".safetensors")]
    assert len(weights) == len(set(weights)) == len(crowd.good)


def test_copies_are_not_downloaded_again(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    originals = list(crowd.good)[:3]
    copies = [crowd.copy(repo) for repo in originals]
    crawl = crawl_of(hub, tmp_path)
    assert crawl.run() == 0
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    for original, copy in zip(originals, copies, strict=True):
        got = [
            request
            for request in hub.requests
            if request.method == "GET"
            and request.path.endswith(".safetensors")
            and request.path.split("/resolve/")[0].strip("/") in {original, copy}
        ]
        assert len(got) == 1
    # The original leaves: its copy is probed itself and takes its place.
    models = models_of(crawl.index)
    first = next(repo for repo in (originals[0], copies[0]) if models[repo].state is ModelState.INDEXED)
    other = copies[0] if first == originals[0] else originals[0]
    crowd.delete(first)
    assert crawl.run() == 0
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    assert models_of(crawl.index)[other].state is ModelState.INDEXED


def test_gone_models_stay_where_that_is_wanted(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    assert crawl.run() == 0
    victim = crowd.good[0]
    crowd.delete(victim)
    assert crawl.run("--keep-gone") == 0
    assert models_of(crawl.index)[victim].state is ModelState.INDEXED
    with Journal(crawl.index / FILE, read_only=True) as journal:
        assert [row.state for row in journal.rows(victim)] == [State.GONE]


def test_the_space_for_downloads_is_never_exceeded(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    largest = max(
        sum(path.stat().st_size for path in crowd.folder(repo).iterdir() if path.name != "README.md")
        for repo in crowd.good
    )
    limit = largest + 2**17  # one model and some bookkeeping: never two at a time
    process = crawl.start("--cache-size", f"{limit}B")
    most = 0
    while process.poll() is None:
        downloads = crawl.index / "crawl" / "downloads"
        sizes = []
        for root, _, names in os.walk(downloads):
            for name in names:
                try:
                    sizes.append(os.lstat(os.path.join(root, name)).st_size)
                except OSError:
                    continue
        most = max(most, sum(sizes))
        time.sleep(0.005)
    assert process.returncode == 0
    assert 0 < most <= limit
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []


def test_kept_files_stay_and_make_room(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    downloads = crawl.index / "crawl" / "downloads"
    assert crawl.run("--keep-files", "--cache-size", "600KB", "--limit", "8") == 0
    first = {path.name for path in downloads.iterdir()}
    assert 1 <= len(first) < 8  # as many as fit
    assert crawl.run("--keep-files") == 0
    assert first < {path.name for path in downloads.iterdir()}
    assert mistakes(crawl.index, crowd, revisions(hub, crowd)) == []
    assert crawl.run() == 0
    assert not downloads.exists()


def test_what_does_not_fit_the_space_is_refused_with_the_option(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    assert crawl.run("--cache-size", "1KB") == 0
    with Journal(crawl.index / FILE, read_only=True) as journal:
        (row,) = journal.rows(crowd.good[0])
    assert (row.state, row.reason) == (State.REFUSED, "too large")
    assert "--cache-size" in (row.detail or "")


def test_one_index_has_one_crawl(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, _ = small
    crawl = crawl_of(hub, tmp_path)
    process = crawl.start("--follow")
    try:
        wait_for(crawl.index, lambda journal: journal.counts()[State.STORED] >= 1, 120, process)
        second = crawl.run(log=tmp_path / "second.log")
        assert second == 1
        assert "being written by another process" in (tmp_path / "second.log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_file_is_watched(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    wanted = crowd.good[:2]
    (tmp_path / "models.txt").write_text("\n".join(wanted))
    crawl = crawl_of(hub, tmp_path)
    process = crawl.start("--source", str(tmp_path / "models.txt"), "--follow", "--interval", "0.3s")
    try:
        wait_for(crawl.index, lambda journal: journal.counts()[State.STORED] == 2, 120, process)
        (tmp_path / "models.txt").write_text("\n".join([wanted[0], crowd.good[2], crowd.good[3]]))
        wait_for(
            crawl.index,
            lambda journal: journal.counts()[State.STORED] == 3 and journal.counts()[State.GONE] == 1,
            60,
            process,
        )
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert sorted(models_of(crawl.index)) == sorted([wanted[0], crowd.good[2], crowd.good[3]])


def test_a_folder_is_crawled_and_its_files_stay(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in crowd.root.rglob("*") if path.is_file()}
    assert crawl.run("--source", str(crowd.root / "models")) == 0
    assert sorted(models_of(crawl.index)) == sorted(crowd.good)
    assert {path: path.stat().st_mtime_ns for path in crowd.root.rglob("*") if path.is_file()} == before


def test_a_hub_that_refuses_is_one_line(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, _ = small
    crawl = crawl_of(hub, tmp_path)
    with hub.failing("/api/models$", status=401, times=-1):
        assert crawl.run() == 1
    text = (crawl.index.parent / "crawl.log").read_text()
    assert "HF_TOKEN" in text
    assert "Traceback" not in text


def test_the_journal_can_be_asked_while_it_runs(small: tuple[HubServer, Crowd], tmp_path: Path) -> None:
    hub, crowd = small
    crawl = crawl_of(hub, tmp_path)
    process = crawl.start("--follow", "--metrics-port", "0", "--log-format", "json")
    try:
        wait_for(crawl.index, lambda journal: journal.counts()[State.STORED] == len(crowd.good), 120, process)
        command = ["hubhound", "crawl", "status", "--index", str(crawl.index), "--format", "json"]
        status = json.loads(subprocess.run(_ours(command), capture_output=True, check=True).stdout)
        assert status["models"]["stored"] == len(crowd.good)
        assert status["running"] is True
        assert status["pid"] == process.pid
        log = (crawl.index.parent / "crawl.log").read_text()
        (address,) = re.findall(r'"event": "metrics", "url": "(http://[^"]+)"', log)
        with urllib.request.urlopen(address) as answer:  # noqa: S310
            metrics = answer.read().decode()
        assert f'hubhound_crawl_models_total{{reason="",state="stored"}} {len(crowd.good)}.0' in metrics, metrics
        events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert sorted(e["model"] for e in events if e["event"] == "stored") == sorted(crowd.good)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def _ours(command: list[str]) -> list[str]:
    import sys

    return [sys.executable, "-c", "from query.cli.main import main; main()", *command[1:]]
