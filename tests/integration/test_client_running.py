"""The client against a process of ``hubhound serve``: equal answers, and a service that ends while it is asked."""

from __future__ import annotations

import os
import signal
import subprocess
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
from tests.support.job_programs import loading
from tests.support.runnable_index import make_runnable_index
from tests.support.service import serving
from tests.support.small_index import encode, write_example
from tests.support.tiny_vlm import write_photos

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ("owl", "Golden  Retriever", "cat")

HELD = loading("time.sleep(600)")
"""The process of a job that hangs as it loads a model."""

SLOW = (
    sys.executable,
    "-c",
    f"""
import sys
import query.api.jobs as jobs
jobs.PROGRAM = {HELD!r}
from query.cli.main import run
sys.exit(run(sys.argv[1:]))
""",
)
"""A service whose jobs hang."""


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
    begun = threading.Event()

    def seen(progress: JobProgress) -> None:
        if progress.what == "loading":
            begun.set()

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
        assert begun.wait(60)
        children = children_of(served.process.pid)
        assert len(children) == 1
        assert len(list(temporary.glob("hubhound-job-*/*"))) == 2
        started = time.monotonic()
        assert served.end(sign) == 0
        assert time.monotonic() - started < 10
        asking.join(30)
        assert not asking.is_alive() and len(failures) == 1
        assert list(temporary.iterdir()) == [] and "Traceback" not in served.told()
        assert gone(children)


def test_the_service_dies_during_a_job(made: Path, tmp_path: Path, temporary: Path) -> None:
    request = RecommendRequest(tuple(write_photos(tmp_path / "target", 1, 99)))
    with serving(made / "zoo", tmp_path / "log", *options(made), program=SLOW) as served:
        children: list[int] = []

        def kill(progress: JobProgress) -> None:
            if progress.what != "loading":
                return
            children.extend(children_of(served.process.pid))
            os.kill(served.process.pid, signal.SIGKILL)
            served.process.wait(10)

        with Client(served.url, timeout_s=5) as client, pytest.raises(ServiceError, match="cannot be reached"):
            client.recommend(request, kill)
        assert len(children) == 1 and gone(children)
    assert [path.name.split("-")[2] for path in temporary.iterdir()] == [str(served.process.pid)]
    with serving(made / "zoo", tmp_path / "log", *options(made)) as served:
        assert list(temporary.iterdir()) == []


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def gone(pids: list[int]) -> bool:
    """Whether processes end within a moment."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
            return True
        time.sleep(0.02)
    return False


ASKING = """
import json, sys
from pathlib import Path
from tests.support.service import asking, small_app
zoo, models, photo = map(Path, sys.argv[1:])
with asking(small_app(zoo, job_grace_s=28, models=(models,))) as asked:
    for path, body in (("/v1/recommend", {}), ("/v1/search", {"rerank": "dcd"})):
        image = ("images", ("a.png", photo.read_bytes(), "image/png"))
        parts = [("request", (None, json.dumps(body), "application/json")), image]
        for _ in range(2):
            response = asked.post(path, files=parts)
            assert response.status_code == 200, response.text
heavy = {"torch", "timm", "transformers", "open_clip", "torchvision"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_the_service_itself_imports_nothing_that_runs_models(made: Path, tmp_path: Path, temporary: Path) -> None:
    photo = write_example(tmp_path / "owl.png", "owl")
    command = [sys.executable, "-c", ASKING, str(made / "zoo"), str(made / "org"), str(photo)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"
