"""The real command after its folder was lost: a real HTTP hub is asked for its listing and for nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from indexers.crawl.journal import FILE, Journal
from indexers.crawl.records import State
from query.cli.main import run
from tests.support.crawling import Crawl, history, hits, mistakes, models_of
from tests.support.hub_crowd import build_crowd
from tests.support.hub_server import HubServer
from tests.support.small_index import make_index

pytestmark = pytest.mark.slow


def test_nothing_is_downloaded_and_nothing_probed_a_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = build_crowd(tmp_path / "hub", 5, 3, 4, copies=1)
    with HubServer(crowd.root, page=4) as hub:
        crowd.tell(hub)
        revisions = {repo: hub.commit_of(repo) for repo in crowd.expected if crowd.folder(repo).exists()}
        make_index(tmp_path / "zoo" / "index")
        crawl = Crawl(hub.url, tmp_path / "zoo" / "index", tmp_path / "zoo" / "cache")
        assert crawl.run() == 0
        assert mistakes(crawl.index, crowd, revisions) == []
        before, found = models_of(crawl.index), hits(crawl.index, crowd)

        shutil.rmtree(crawl.index / "crawl")
        asked = len(hub.requests)
        assert crawl.run("--log-format", "json", log=tmp_path / "again.log") == 0
        again = hub.requests[asked:]
    assert [request.path for request in again if "/resolve/" in request.path] == []
    assert history(crawl.index).probings == 0
    assert mistakes(crawl.index, crowd, revisions) == []
    assert models_of(crawl.index) == before
    assert hits(crawl.index, crowd) == found
    with Journal(crawl.index / FILE, read_only=True) as journal:
        assert journal.adopted() == journal.counts()[State.STORED] == len(crowd.good)
    lines = [json.loads(line) for line in (tmp_path / "again.log").read_text().splitlines() if line.startswith('{"at"')]
    told = [line for line in lines if line["event"] == "found in the index"]
    assert sum(line["stored"] + line["copies"] for line in told) == len(crowd.good)
    assert [line for line in lines if line["event"] in ("stored", "refused", "failed")] == []
    assert run(["crawl", "status", "--index", str(crawl.index)]) == 0
    assert f"{len(crowd.good)} of those stored were found in the index" in capsys.readouterr().err
