"""A crawl on a Ray cluster, of which a node is killed and to which one is added, against the crawl of one process."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from indexers.crawl.fleet.crew import AT_ONCE
from indexers.crawl.fleet.errands import ANSWERS
from indexers.crawl.journal import Journal
from indexers.crawl.records import State
from tests.support.crawling import QUICK, Crawl, history, hits, mistakes, models_of, same_hits, settled, wait_for
from tests.support.hub_crowd import build_crowd
from tests.support.hub_server import HubServer
from tests.support.ray_nodes import ray_nodes
from tests.support.small_index import make_index

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'hubhound[fleet]'"),
]

GOOD, COPIES, LATER = 10, 1, 3
WAIT_S = 100.0
AGAIN = 1 + ANSWERS + AT_ONCE
"""A worker probes one model and has a few answers that are not stored yet."""


def test_a_node_is_killed_and_one_added_and_the_result_is_that_of_one_process(tmp_path: Path) -> None:
    crowd = build_crowd(tmp_path / "hub", GOOD, 2, 3, copies=COPIES)
    with ray_nodes(tmp_path / "ray") as nodes, HubServer(crowd.root, page=10) as hub:
        crowd.tell(hub)
        nodes.start()
        first, _ = nodes.add(), nodes.add()
        make_index(tmp_path / "fleet" / "index")
        options = (*QUICK, "--ray", nodes.address, "-v", "--follow", "--interval", "0.5s", "--full-every", "0s")
        fleet = Crawl(hub.url, tmp_path / "fleet" / "index", tmp_path / "fleet" / "cache", options)
        log = tmp_path / "fleet" / "crawl.log"
        process = fleet.start(log=log)
        try:
            wait_for(fleet.index, lambda journal: _under_way(journal, log), WAIT_S, process)
            nodes.kill(first)
            nodes.add()
            wait_for(fleet.index, lambda _: log.read_text().count("worker joined") == 3, WAIT_S, process)
            for _ in range(LATER):  # there is work for the new one
                crowd.add()
            revisions = {repo: hub.commit_of(repo) for repo in crowd.expected if crowd.folder(repo).exists()}
            make_index(tmp_path / "one" / "index")
            alone = Crawl(hub.url, tmp_path / "one" / "index", tmp_path / "one" / "cache")
            assert alone.run() == 0
            wait_for(fleet.index, settled(crowd, revisions), WAIT_S, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    assert said.count("warning: worker lost: node") == 1, said  # another one may have been sent to the dead node
    assert mistakes(fleet.index, crowd, revisions) == []
    assert crowd.canaries == []
    again = history(fleet.index)
    assert again.probed_again == ()  # of those that were stored
    assert again.probings <= history(alone.index).probings + AGAIN
    ours, theirs = models_of(fleet.index), models_of(alone.index)
    assert {repo: model.revision for repo, model in ours.items()} == {
        repo: model.revision for repo, model in theirs.items()
    }
    assert same_hits(hits(fleet.index, crowd), hits(alone.index, crowd))
    # What is the killed worker's own stays on its disk, for the next one to remove; the others have tidied up.
    left = {path.name for path in (fleet.cache / "fleet").glob("*/*") if not path.name.endswith(".lock")}
    assert len([name for name in left if not name.startswith("images-")]) <= 1, left


def _under_way(journal: Journal, log: Path) -> bool:
    return journal.counts()[State.STORED] >= 2 and log.read_text().count("worker joined") == 2
