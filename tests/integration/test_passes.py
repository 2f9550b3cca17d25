"""Passes over a hub that changes, fails and lies while it is listed: the journal ends up with what the hub has."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest

from engine.errors import HubhoundError, InputError, Reason
from indexers.crawl.backoff import Backoff
from indexers.crawl.filters import Filters
from indexers.crawl.hub_source import HubSource
from indexers.crawl.journal import Journal
from indexers.crawl.listing import UNKNOWN, open_source
from indexers.crawl.passes import CHECKS, run_pass
from indexers.crawl.records import State
from tests.integration.test_listing import make_model
from tests.support.hub_server import HubServer

QUICK = Backoff(base_s=0.002, longest_s=0.01)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for i in range(8):
        make_model(tmp_path / "hub", f"org/m{i}", i)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    with HubServer(tmp_path / "hub", page=2) as server:
        for i in range(8):
            day = f"2026-01-0{i + 1}T00:00:00.000Z"
            server.touch(f"org/m{i}", created=day, modified=day)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


def go(journal, full, filters=None, source=None, stop=None, **how):
    filters = filters or Filters()
    how = {"backoff": QUICK, "rng": random.Random(0), **how}
    return run_pass(journal, source or HubSource(filters), filters, full, stop or threading.Event(), **how)


def live(journal, names):
    """What the journal has of these repositories: the newest revision of each that is not gone."""
    found = {}
    for repo in names:
        rows = [row for row in journal.rows(repo) if row.state is not State.GONE]
        assert len(rows) <= 1, rows
        if rows:
            found[repo] = rows[0].revision
    return found


def truth(hub):
    return {repo: revision.commit for repo, (revision, _) in hub.repositories.newest("models").items()}


def pages_asked(hub):
    return [request for request in hub.requests if request.path == "/api/models"]


def test_full_then_follow(hub, journal):
    seen = []
    result = go(journal, True, on_page=lambda page, p: seen.append((page.new, p.entries)))
    assert result.ended
    assert (result.pages, result.entries, result.new, result.gone, result.waits) == (4, 8, 8, 0, 0)
    assert seen == [(2, 2), (2, 4), (2, 6), (2, 8)]
    assert live(journal, truth(hub)) == truth(hub)
    name = HubSource(Filters()).name
    assert journal.watermark(name) == "2026-01-08T00:00:00.000Z"
    assert journal.last_full(name) is not None
    # Nothing is new: the entry at the watermark is listed again, the next one is older.
    hub.requests.clear()
    result = go(journal, False)
    assert (result.full, result.pages, result.entries, result.known) == (False, 1, 1, 1)
    assert len(hub.requests) == 1
    make_model(hub.root, "org/m3", 33)
    make_model(hub.root, "org/new", 1)
    result = go(journal, False)
    assert (result.pages, result.new, result.changed, result.known) == (2, 1, 1, 1)
    assert live(journal, truth(hub)) == truth(hub)
    assert [row.state for row in journal.rows("org/m3")] == [State.GONE, State.LISTED]
    assert journal.watermark(name) > "2026-01-08T00:00:00.000Z"


def test_the_watermark_is_of_the_beginning(hub, journal):
    """What changes behind a full pass is older than what it sees later, and yet must be listed."""

    def change(page):
        if page == 2:
            make_model(hub.root, "org/m7", 77)  # listed on page 1 as it was
        if page == 3:
            time.sleep(0.005)
            make_model(hub.root, "org/m2", 22)  # will be listed as it is now, newer than the other

    hub.before_page = change
    go(journal, True)
    hub.before_page = None
    assert live(journal, truth(hub)) != truth(hub)
    go(journal, False)
    assert live(journal, truth(hub)) == truth(hub)


def test_the_watermark_is_of_the_beginning_when_nothing_on_the_first_page_is_wanted(hub, journal):
    filters = Filters(min_downloads=10)
    hub.facts |= {repo: {"downloads": 10} for repo in ("org/m0", "org/new")}

    def change(page):
        if page == 2:
            make_model(hub.root, "org/new", 1)
        if page == 3:
            time.sleep(0.005)
            make_model(hub.root, "org/m0", 100)

    hub.before_page = change
    go(journal, True, filters)
    hub.before_page = None
    go(journal, False, filters)
    assert sorted(live(journal, truth(hub))) == ["org/m0", "org/new"]


def test_what_happens_between_pages(hub, journal):
    go(journal, True)

    def change(page):
        if page == 2:
            make_model(hub.root, "org/m0", 100)  # from the end to the front
            make_model(hub.root, "org/new", 1)
            shutil.rmtree(hub.root / "models/org/m7")
            (hub.root / "models/org/m6").rename(hub.root / "models/org/named")
            hub.renamed["org/m6"] = "org/named"
            hub.private.add("org/m5")

    hub.before_page = change
    go(journal, True)
    hub.before_page = None
    names = [*(f"org/m{i}" for i in range(8)), "org/new", "org/named"]
    expected = {repo: commit for repo, commit in truth(hub).items() if repo != "org/m5"}
    go(journal, False)
    found = []
    go(journal, True, on_gone=lambda repo, detail: found.append((repo, detail)) or journal.gone(repo, "gone", detail))
    assert live(journal, names) == expected
    gone = {row.detail for repo in ("org/m5", "org/m6", "org/m7") for row in journal.rows(repo)}
    assert gone == {
        "it is called org/named now",
        "it was deleted, made private, or is no longer listed for image-classification",
    }
    # The page with these two had been read before; the private one's had not, so it was asked for at once.
    assert sorted(repo for repo, _ in found) == ["org/m6", "org/m7"]


@pytest.mark.parametrize("seed", range(4))
def test_any_changes_at_any_time(tmp_path, hub, seed):
    """Over passes of both kinds, interrupted at random, with faults: a quiet follow and full pass end at the truth."""
    rng = random.Random(seed)
    names = set(truth(hub))
    hub.facts["org/broken"] = {"sha": None}
    hub.random_faults(0.1, seed=seed, retry_after_s=0)

    def change(page):
        for _ in range(rng.choice([0, 1, 1, 3])):
            there = sorted(truth(hub))
            what = rng.choice(["change", "change", "add", "delete", "rename", "back"])
            repo = rng.choice(there) if there else "org/m0"
            if what == "change" and there:
                make_model(hub.root, repo, rng.random())
            elif what == "add":
                make_model(hub.root, f"org/a{len(names)}", rng.random())
                names.add(f"org/a{len(names)}")
            elif what == "delete" and len(there) > 3:
                shutil.rmtree(hub.root / "models" / repo)
            elif what == "rename" and there:
                new = f"org/r{len(names)}"
                (hub.root / "models" / repo).rename(hub.root / "models" / new)
                hub.renamed[repo] = new
                names.add(new)
            elif what == "back":  # deleted and made again under its old name
                repo = rng.choice(sorted(names - set(hub.renamed)))
                make_model(hub.root, repo, rng.random())

    hub.before_page = change
    path = tmp_path / "journal.sqlite"
    for _ in range(12):
        stop = threading.Event()
        pages = rng.choice([1, 2, 3, 100])

        def count(page, p, pages=pages, stop=stop):
            if p.entries >= 2 * pages:
                stop.set()

        with Journal(path) as journal:
            go(journal, rng.random() < 0.4, stop=stop, on_page=count, rng=rng)
    hub.before_page = None
    with Journal(path) as journal:
        # Two of each: the first may be one that was begun when the hub was another.
        for full in (True, True, False, False, True):
            assert go(journal, full).ended
        expected = truth(hub)
        assert live(journal, names | set(expected)) == expected
        assert len(expected) > 3


def test_a_504_in_the_middle(hub, journal):
    with hub.failing("/api/models", status=504, page=3, times=4):
        waits = []
        result = go(journal, True, on_wait=lambda detail, wait_s: waits.append((detail, wait_s)))
    assert result.ended
    assert result.waits == 4 == len(waits)
    assert all("504" in detail and 0 < wait_s <= 0.011 for detail, wait_s in waits)
    assert len(pages_asked(hub)) == 4 + 4
    assert live(journal, truth(hub)) == truth(hub)


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from indexers.crawl.filters import Filters
from indexers.crawl.hub_source import HubSource
from indexers.crawl.journal import Journal
from indexers.crawl.passes import run_pass

def on_page(page, p):
    if p.entries == 4:
        os.kill(os.getpid(), signal.SIGKILL)

assert "torch" not in sys.modules and "transformers" not in sys.modules and "PIL" not in sys.modules
filters = Filters()
run_pass(Journal(Path(sys.argv[1])), HubSource(filters), filters, True, threading.Event(), on_page=on_page)
"""


def test_a_kill_in_the_middle(hub, tmp_path):
    path = tmp_path / "killed.sqlite"
    child = subprocess.run([sys.executable, "-c", KILLED, path], env={**os.environ, "HF_ENDPOINT": hub.url})
    assert child.returncode == -signal.SIGKILL
    make_model(hub.root, "org/m7", 77)  # was seen before the kill
    assert len(pages_asked(hub)) == 2
    with Journal(path) as journal:
        assert len(live(journal, truth(hub))) == 4
        result = go(journal, True)
        assert (result.ended, result.pages, result.new) == (True, 2, 4)
        assert len(pages_asked(hub)) == 4
        go(journal, False)
        assert live(journal, truth(hub)) == truth(hub)


@pytest.mark.parametrize("status", [400, 410])
def test_a_cursor_that_has_expired(hub, journal, status):
    stop = threading.Event()
    assert not go(journal, True, stop=stop, on_page=lambda page, p: stop.set()).ended
    hub.expire_cursors(status)
    result = go(journal, True)
    assert (result.ended, result.new, result.known) == (True, 6, 2)
    assert live(journal, truth(hub)) == truth(hub)


def test_cursors_that_always_expire(hub, journal):
    hub.before_page = lambda page: setattr(hub, "cursor_age", hub.cursor_age + 1)
    with pytest.raises(HubhoundError, match="expire") as caught:
        go(journal, True)
    assert "\n" not in str(caught.value)
    hub.before_page = None
    assert go(journal, True).ended


@pytest.mark.parametrize("status, times", [(401, 1), (403, 1), (404, 1), (200, -1)])
def test_a_hub_that_refuses(hub, journal, status, times):
    with hub.failing("/api/models", status=status, times=times), pytest.raises(HubhoundError) as caught:
        go(journal, True)
    assert "\n" not in str(caught.value)
    assert len(hub.requests) == (1 if times == 1 else 5)
    assert go(journal, True).ended


@pytest.mark.parametrize(
    "fault", [{"status": 429, "headers": {"Retry-After": "3000"}}, {"delay_s": 3.0, "status": 500}]
)
def test_stopping_takes_less_than_a_second(hub, journal, fault):
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    waits = []
    with hub.failing("/api/models", page=2, **fault):
        timer.start()
        started = time.monotonic()
        result = go(journal, True, stop=stop, on_wait=lambda detail, wait_s: waits.append(wait_s))
        assert time.monotonic() - started < 1.3
    timer.join()
    assert (result.ended, result.pages) == (False, 1)
    if "headers" in fault:
        assert waits[0] >= 3000
    result = go(journal, True)
    assert (result.ended, result.pages) == (True, 3)


def test_gone_is_only_what_the_hub_says_is_gone(hub, journal):
    go(journal, True)
    for i in (0, 1, 2, 3):
        shutil.rmtree(hub.root / "models" / f"org/m{i}")
    make_model(hub.root, "org/m4", task="object-detection")
    with (
        hub.failing("/api/models/org/m1", status=500, times=2),
        hub.failing("/api/models/org/m2", status=500, times=-1),
        hub.failing("/api/models/org/m3", status=404, times=-1),
    ):
        hub.requests.clear()
        result = go(journal, True)
        asked = [request.path.rpartition("/")[2] for request in hub.requests if request.path != "/api/models"]
    assert {name: asked.count(name) for name in set(asked)} == {"m0": 1, "m1": 3, "m2": CHECKS, "m3": CHECKS, "m4": 1}
    assert (result.ended, result.gone, result.unsure) == (True, 3, 2)
    assert sorted(live(journal, [f"org/m{i}" for i in range(8)])) == ["org/m2", "org/m3", "org/m5", "org/m6", "org/m7"]
    result = go(journal, True)
    assert (result.gone, result.unsure) == (2, 0)
    # What was gone and is there again is listed again.
    make_model(hub.root, "org/m4", 4)
    assert go(journal, False).changed == 1
    assert "org/m4" in live(journal, ["org/m4"])


def test_a_pass_that_was_killed_while_it_asked_goes_on_asking(hub, journal):
    go(journal, True)
    for i in range(8):
        shutil.rmtree(hub.root / "models" / f"org/m{i}")
    make_model(hub.root, "org/last")
    stop = threading.Event()

    def on_gone(repo, detail):
        journal.gone(repo, "gone", detail)
        stop.set()

    assert not go(journal, True, stop=stop, on_gone=on_gone).ended
    asked = len(pages_asked(hub))
    result = go(journal, True)
    assert (result.ended, result.gone, result.pages) == (True, 7, 0)
    assert len(pages_asked(hub)) == asked


def test_refused_and_outside(hub, journal):
    make_model(hub.root, "org/mit", license="mit", library_name="timm")
    make_model(hub.root, "org/gpl", license="gpl-3.0", library_name="timm")
    make_model(hub.root, "org/keras", license="mit", library_name="keras")
    make_model(hub.root, "other/mit", license="mit", library_name="timm")
    make_model(hub.root, "org/small", license="mit", library_name="timm")
    make_model(hub.root, "org/large", license="mit", library_name="timm")
    hub.facts |= {f"org/{name}": {"downloads": 10} for name in ("mit", "gpl", "keras")}
    hub.facts["org/large"] = {"downloads": 10, "safetensors": {"parameters": {"F32": 600}, "total": 600}}
    asked = {"author": "org", "min_downloads": 10}
    filters = Filters(**asked, licences=("mit",), libraries=("timm",), max_parameters=500)
    result = go(journal, True, filters)
    assert (result.new, result.refused, result.outside) == (1, 3, 9)
    states = {repo: [row.state for row in journal.rows(repo)] for repo in truth(hub)}
    assert states["org/mit"] == [State.LISTED]
    assert states["org/gpl"] == states["org/keras"] == states["org/large"] == [State.REFUSED]
    assert states["org/small"] == states["other/mit"] == states["org/m0"] == []
    (row,) = journal.rows("org/gpl")
    assert (row.reason, row.detail) == (Reason.FILTERED, "its licence is gpl-3.0 (--licence)")
    assert journal.rows("org/large")[0].reason == Reason.TOO_LARGE
    # Other filters on the same listing: what they let through is listed now, what they do not is refused.
    result = go(journal, True, Filters(**asked, licences=("mit", "gpl-3.0"), max_parameters=1000))
    assert (result.changed, result.known, result.refused, result.gone) == (3, 1, 0, 0)
    go(journal, True, filters)
    assert journal.rows("org/gpl")[0].state is State.REFUSED
    # Downloads come and go; a model that is in stays in.
    hub.facts["org/mit"] = {"downloads": 1}
    result = go(journal, True, filters)
    assert (result.gone, journal.rows("org/mit")[0].state) == (0, State.LISTED)


def test_updated_since(hub, journal):
    filters = Filters(updated_since="2026-01-06")
    assert go(journal, True, filters).new == 3
    make_model(hub.root, "org/m0", 100)
    assert go(journal, False, filters).new == 1


def test_shards_list_every_model_once(hub, tmp_path):
    parts = []
    for i in range(3):
        filters = Filters(shard=(i, 3))
        with Journal(tmp_path / f"shard{i}.sqlite") as journal:
            result = go(journal, True, filters)
            assert result.entries + result.outside == 8
            # The models of the others are not taken for gone.
            assert go(journal, True, filters).gone == 0
            parts.append(set(live(journal, truth(hub))))
    assert sorted(name for part in parts for name in part) == sorted(truth(hub))
    assert max(len(part) for part in parts) < 8


def test_broken_entries_do_not_end_a_pass(hub, journal):
    hub.facts["org/m0"] = {"id": "../../etc/passwd"}
    hub.facts["org/m1"] = {"id": "org/" + "x" * 10_000}
    hub.facts["org/m2"] = {"sha": 5, "tags": None, "downloads": "\x00"}
    hub.facts["org/m3"] = {"downloads": 10**30, "tags": ["\ud800", "ok"], "library_name": ["\x1b[2J"]}
    result = go(journal, True)
    assert (result.ended, result.broken, result.new) == (True, 3, 5)
    assert [row.state for row in journal.rows("org/m3")] == [State.LISTED]


def test_a_watched_file(hub, journal, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("org/m0\norg/m1\norg/later\n")
    source = open_source(str(file), Filters())
    with hub.failing("/api/models/org/m1", status=503, times=3):
        result = go(journal, False, source=source)
    assert (result.full, result.ended, result.new, result.refused) == (True, True, 2, 1)
    (row,) = journal.rows("org/later")
    assert (row.revision, row.state, row.reason) == (UNKNOWN, State.REFUSED, Reason.MISSING)
    # It appears, another one disappears, one is no longer named, and one that is new is none.
    make_model(hub.root, "org/later")
    shutil.rmtree(hub.root / "models/org/m0")
    file.write_text("org/m0\norg/later\norg/m5\n")
    result = go(journal, True, source=source)
    assert (result.new, result.changed, result.gone) == (1, 1, 2)
    assert sorted(live(journal, ["org/m0", "org/m1", "org/later", "org/m5"])) == ["org/later", "org/m5"]
    assert journal.rows("org/later")[-1].state is State.LISTED
    assert str(file) in journal.rows("org/m1")[0].detail
    # The next pass knows it as missing, and as listed when it is there again.
    go(journal, True, source=source)
    assert [(row.revision, row.state) for row in journal.rows("org/m0")][-1] == (UNKNOWN, State.REFUSED)
    make_model(hub.root, "org/m0", 0)
    go(journal, True, source=source)
    assert live(journal, ["org/m0"]) == {"org/m0": hub.commit_of("org/m0")}
    file.write_text("org/m0\n??\n")
    with pytest.raises(InputError, match="line 2"):
        go(journal, True, source=source)


def test_a_folder(journal, tmp_path):
    for i in range(3):
        make_model(tmp_path / "zoo", f"org/m{i}", i)
    source = open_source(str(tmp_path / "zoo"), Filters())
    assert go(journal, True, source=source).new == 3
    make_model(tmp_path / "zoo", "org/m1", 11)
    shutil.rmtree(tmp_path / "zoo/models/org/m2")
    result = go(journal, False, source=source)
    assert (result.changed, result.known, result.gone) == (1, 1, 1)
