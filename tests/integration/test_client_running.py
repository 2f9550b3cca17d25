"""The client against a process of ``hubhound serve``: equal answers, and a service that ends while it is asked."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.concepts import clean_concept
from engine.index import Index
from indexers.profiler import ProfileSettings
from query.api.jobs import JobProgress
from query.api.watched import model_folders
from query.client import Client, ServiceError
from query.filters import parse_conditions
from query.recommend import RecommendRequest, recommend
from query.request import SearchRequest
from query.search import Searcher
from query.targets import TargetProfiler
from tests.support.runnable_index import make_runnable_index
from tests.support.service import serving
from tests.support.small_index import encode
from tests.support.tiny_vlm import write_photos

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ("owl", "Golden  Retriever", "cat")

SLOW = (
    sys.executable,
    "-c",
    """
import sys, time
import indexers.profiler as profiler
load = profiler.load_tower

def slow(*arguments):
    time.sleep(1.5)
    return load(*arguments)

profiler.load_tower = slow
from query.cli.main import run
sys.exit(run(sys.argv[1:]))
""",
)
"""A service that takes long to load a model."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that remembers the texts that are searched for: its encoder is pretended, and cannot be loaded."""
    root = tmp_path_factory.mktemp("running")
    index = Index(make_runnable_index(root))
    cleaned = [clean_concept(text) for text in TEXTS]
    index.concepts.put(dict(zip(cleaned, encode(cleaned), strict=True)))
    return root


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the service puts uploads; at the end nothing is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder


def options(made: Path, *more: str) -> list[str]:
    return ["--preload", "no", "--names", "no", "--models", str(made / "org"), "--job-grace-s", "0", *more]


def test_answers_are_the_local_ones(made: Path, tmp_path: Path, temporary: Path) -> None:
    zoo = made / "zoo"
    searcher = Searcher(Index(zoo), encode)
    requests = [
        SearchRequest(TEXTS, explain=True),
        SearchRequest(TEXTS, level="model", require="any"),
        SearchRequest(TEXTS[:1], where=parse_conditions(["model=org/t*"]), method="dual"),
        SearchRequest(like="org/one#1", k=3),
    ]
    images = tuple(write_photos(tmp_path / "target", 2, 5))
    with serving(zoo, tmp_path / "log", *options(made)) as served, Client(served.url) as client:
        for request in requests:
            found, expected = client.search(request), searcher.search(request)
            assert comparable(found.to_json()) == comparable(expected.to_json())
        wanted = RecommendRequest(images, explain=True)
        found = client.recommend(wanted)
        assert found.profiled == 4
        profiler = TargetProfiler(Index(zoo), "cpu", ProfileSettings(), model_folders([made / "org"]))
        assert comparable(found.to_json()) == comparable(recommend(Index(zoo), wanted, profiler, "INDEX").to_json())
        assert served.end() == 0
    assert list(temporary.iterdir()) == []


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in {"seconds", "profiled"}}


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_service_is_told_to_end_during_a_job(
    sign: signal.Signals, made: Path, tmp_path: Path, temporary: Path
) -> None:
    request = RecommendRequest(tuple(write_photos(tmp_path / "target", 2, 100 + int(sign))))
    loading = threading.Event()

    def seen(progress: JobProgress) -> None:
        if progress.what == "loading":
            loading.set()

    failures: list[ServiceError] = []

    def ask(url: str) -> None:
        with Client(url, timeout_s=20) as client:
            try:
                client.recommend(request, seen)
            except ServiceError as error:
                failures.append(error)

    with serving(made / "zoo", tmp_path / "log", *options(made), program=SLOW) as served:
        asking = threading.Thread(target=ask, args=(served.url,))
        asking.start()
        assert loading.wait(20)
        assert len(list(temporary.glob("hubhound-job-*/*"))) == 2
        started = time.monotonic()
        assert served.end(sign) == 0
        assert time.monotonic() - started < 10
        asking.join(30)
        assert not asking.is_alive() and len(failures) == 1
        assert list(temporary.iterdir()) == [] and "Traceback" not in served.told()


def test_the_service_dies_during_a_job(made: Path, tmp_path: Path, temporary: Path) -> None:
    request = RecommendRequest(tuple(write_photos(tmp_path / "target", 1, 99)))
    with serving(made / "zoo", tmp_path / "log", *options(made), program=SLOW) as served:

        def kill(progress: JobProgress) -> None:
            os.kill(served.process.pid, signal.SIGKILL)
            served.process.wait(10)

        with Client(served.url, timeout_s=5) as client, pytest.raises(ServiceError, match="cannot be reached"):
            client.recommend(request, kill)
