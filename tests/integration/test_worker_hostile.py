"""A worker and models that do what they should not: each is one failed model with a reason, and the next one works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.errors import HubhoundError, ModelError, ModelFailedError, Reason
from indexers.crawl.worker import Limits, Nursery, Setup, Worker
from indexers.loaders import Repository
from tests.support.small_index import make_index
from tests.support.tiny_models import timm_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")

LIMITS = Limits(memory_bytes=10**9, time_s=30, scratch_bytes=10**8, growth_bytes=25 * 10**7)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    index = make_index(folder / "index")
    model = timm_model(folder / "org" / "fine")
    np.save(model / "true.npy", np.zeros((80, 2), np.float32))
    np.save(model / "pixels.npy", np.zeros((80, 3, 8, 8), np.uint8))
    (model / "probes.txt").write_text(f"80 {index.manifest.probes.fingerprint}")
    return folder


@pytest.fixture(scope="module")
def nursery(place: Path) -> Iterator[Nursery]:
    secrets = {"HF_TOKEN": "hf_x", "OPENAI_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x", "OMP_SECRET": "x"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        setup = Setup(place / "index", None, place / "cache", 10**9)
        made = Nursery(setup, LIMITS, place / "scratch", preload="tests.support.hostile")
        made.start()
        yield made
        made.close()
    assert not (place / "scratch").exists()


@pytest.fixture
def worker(nursery: Nursery) -> Iterator[Worker]:
    made = Worker(nursery)
    yield made
    made.close()


def limited(worker: Worker, **limits: float) -> Worker:
    """The worker's own limits, without those that its process has set itself."""
    worker._limits = replace(LIMITS, **limits)  # type: ignore[arg-type]
    return worker


def repository(place: Path, act: str) -> Repository:
    return Repository(act if "/" in act else f"hostile/{act}", "r1", place / "org" / "fine")


def fails(worker: Worker, place: Path, act: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        worker.probe(repository(place, act))
    assert "\n" not in str(caught.value)
    assert (caught.value.model, caught.value.revision) == (f"hostile/{act}", "r1")
    return caught.value


def works(worker: Worker, place: Path) -> None:
    probed = worker.probe(repository(place, "org/fine"))
    assert probed.labels == ("ant", "bee", "cat", "dog", "eel")
    assert np.isfinite(probed.responses).all()


@pytest.mark.parametrize(
    ("act", "detail"),
    [
        ("leave", "its process exited with status 3 while loading"),
        ("crash", "its process ended with signal 11 (segmentation fault) while loading"),
        ("abort", "its process ended with signal 6 (aborted) while loading"),
        ("killed", "its process ended with signal 9 (killed) while loading"),
        ("deep", "its process exited with status 4 while loading"),
        ("hang_up", "its process closed its connection while loading"),
        ("garbage", "its process began a message of 1,416,782,179 bytes"),
        ("long_message", "its process began a message of 2,147,483,648 bytes"),
        ("not_json", "its process said what cannot be meant"),
        ("unknown_kind", "its process said what cannot be meant"),
        ("nan_parameters", "said what cannot be meant (answer.parameters"),
        ("nan_seconds", "said what cannot be meant (answer.seconds.load"),
        ("more_fields", "said what cannot be meant (answer.licence"),
        ("too_many_outputs", "said what cannot be meant (answer.shape.1"),
        ("climbing_pixels", "said what cannot be meant (answer.pixels"),
        ("other_number", "answered what it was not asked"),
        ("wrong_shape", "answered 79 x 2 responses and 2 labels to 80 probes"),
        ("wrong_labels", "answered 80 x 2 responses and 3 labels to 80 probes"),
        ("missing_pixels", "left strange pixels"),
        ("linked_pixels", "left strange pixels"),
        ("objects", "left strange responses: responses.npy holds object"),
        ("other_dtype", "left strange responses: responses.npy holds float64 (80, 2), not float32 (80, 2)"),
        ("short_file", "left strange responses: responses.npy has 300 bytes instead of 768"),
        ("linked_responses", "left strange responses: responses.npy cannot be opened"),
        ("no_network_reason", "failed for a reason that it cannot know"),
        ("blame_probes", "says that a probe cannot be read"),
    ],
)
def test_a_process_that_breaks_is_one_failed_model(worker: Worker, place: Path, act: str, detail: str) -> None:
    error = fails(worker, place, act)
    assert isinstance(error, ModelFailedError)
    assert error.reason is Reason.CRASHED
    assert detail in error.detail
    assert worker.children == 1
    works(worker, place)
    assert worker.children == 2


def test_the_forger_can_forge(worker: Worker, place: Path) -> None:
    """Otherwise the forgeries above could be refused for another reason than the one that is meant."""
    assert worker.probe(repository(place, "honest")).architecture == "forged"
    worker.close()
    assert worker.probe(repository(place, "good_pixels")).architecture == "forged"
    adopted = next((place / "cache").rglob(f"{'0' * 16}.npy"))
    assert adopted.read_bytes() == (place / "org" / "fine" / "pixels.npy").read_bytes()
    adopted.unlink()


def test_a_model_that_never_returns(worker: Worker, place: Path) -> None:
    for act in ("never", "spin", "tell_all_day"):
        started = time.monotonic()
        error = fails(limited(worker, time_s=1), place, act)
        assert error.reason is Reason.TIMED_OUT
        assert error.detail.startswith("it was stopped after 1 s while ")
        assert 0.9 < time.monotonic() - started < 8
    works(limited(worker), place)
    assert worker.children == 4


@pytest.mark.parametrize("act", ["allocate", "allocate_list", "allocate_unused"])
def test_a_model_that_allocates_too_much_gets_none_of_it(worker: Worker, place: Path, act: str) -> None:
    error = fails(worker, place, act)
    assert error.reason is Reason.OUT_OF_MEMORY, error
    works(worker, place)
    assert worker.children == 2


def test_memory_that_the_kernel_does_not_limit_is_watched(worker: Worker, place: Path) -> None:
    error = fails(limited(worker, memory_bytes=3 * 10**8), place, "share_memory")
    assert error.reason is Reason.OUT_OF_MEMORY
    assert error.detail == "it was stopped when it took more than 0.3 GB while loading"
    works(limited(worker), place)


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ("fill", "wrote more than 0.1 GB"),
        ("fill_hidden", "wrote more than 0.1 GB"),
        ("many_files", "made more than 2,000 files"),
    ],
)
def test_a_model_that_fills_the_disk(worker: Worker, place: Path, act: str, what: str) -> None:
    error = fails(worker, place, act)
    assert error.reason is Reason.CRASHED
    assert error.detail == f"it was stopped when it {what} while loading"
    works(worker, place)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("connect", "Operation not permitted"),
        ("connect_in_python", "a model's process may not do this (socket.__new__)"),
        ("write_outside", "Permission denied"),
        ("run_program", "Operation not permitted"),
        ("kill_others", "Operation not permitted, Operation not permitted"),
        ("handles", "0:/dev/null 1:/dev/null 2:/dev/null"),
    ],
)
def test_what_the_sandbox_forbids(worker: Worker, nursery: Nursery, place: Path, act: str, said: str) -> None:
    before = nursery.pid
    detail = fails(worker, place, act).detail
    if act == "handles":
        assert detail.startswith(f"{act}: {said} ")
        assert detail.count("socket") == detail.count(":") - 4 == 1
    else:
        assert detail == f"{act}: {said}"
    assert not (place / "org" / "fine" / "planted").exists()
    assert worker.children == 1  # an ordinary failure: the process goes on
    works(worker, place)
    assert (worker.children, nursery.pid) == (1, before)


def test_no_secrets_and_no_hub(worker: Worker, nursery: Nursery, place: Path) -> None:
    names = fails(worker, place, "environment").detail
    assert "TOKEN" not in names
    assert "KEY" not in names
    assert "SECRET" not in names
    assert nursery.pid is not None
    for process in (psutil.Process(nursery.pid), *psutil.Process(nursery.pid).children()):
        found = process.environ()
        assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == "1"
        assert not {name for name in found if name.startswith(("AWS_", "HF_TOKEN")) or "KEY" in name}


def test_printing_fills_nothing(worker: Worker, place: Path) -> None:
    assert worker.probe(repository(place, "flood-then-fine")).labels[0] == "ant"
    works(worker, place)
    assert worker.children == 1


def test_what_an_earlier_model_broke_is_not_held_against_the_next(worker: Worker, place: Path) -> None:
    assert worker.probe(repository(place, "later-then-fine")).labels[0] == "ant"
    for _ in range(10):
        works(worker, place)
        time.sleep(0.05)
    assert worker.children == 2


def test_growth_replaces_the_process(worker: Worker, place: Path) -> None:
    for expected in (1, 1, 2, 2, 3):  # 160 MB more each time; 250 MB are allowed
        worker.probe(repository(place, "leak-then-fine"))
        assert worker.children == expected


def test_nothing_is_left_after_all_that(worker: Worker, nursery: Nursery, place: Path) -> None:
    works(worker, place)
    worker.close()
    assert nursery.pid is not None
    assert psutil.Process(nursery.pid).children() == []
    assert sorted(path.name for path in (place / "scratch").iterdir()) == ["nursery"]
    assert sorted(os.listdir(place)) == ["cache", "images", "index", "org", "scratch"]
    assert all(path.suffix == ".npy" for path in (place / "cache").rglob("*") if path.is_file())


def test_a_nursery_that_dies_is_replaced(worker: Worker, nursery: Nursery, place: Path) -> None:
    works(worker, place)
    assert nursery.pid is not None
    first, child = nursery.pid, psutil.Process(nursery.pid).children()[0]
    threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
    assert worker.probe(repository(place, "pause-then-fine")).labels[0] == "ant"  # tried again
    assert nursery.pid != first
    assert (nursery.generation, worker.children) == (2, 2)
    assert not child.is_running()


DAEMON = """
import sys
from pathlib import Path
from indexers.crawl.worker import Limits, Nursery, Setup, Worker
from indexers.loaders import Repository
place = Path(sys.argv[1])
nursery = Nursery(
    Setup(place / "index", None, place / "cache", 10**9), Limits(), place / "killed", preload="tests.support.hostile"
)
heavy = {"torch", "timm", "transformers", "PIL"} & set(sys.modules)
nursery.start()
print(nursery.pid, *heavy, flush=True)
Worker(nursery).probe(Repository("hostile/never", "r1", place), lambda what, *_: print(what, flush=True))
"""


def test_a_daemon_that_is_killed_takes_all_with_it_and_never_imports_torch(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(place)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as daemon:
        assert daemon.stdout is not None
        nursery = psutil.Process(int(daemon.stdout.readline()))  # its number and nothing else
        assert daemon.stdout.readline() == "loading\n"
        family = [nursery, *nursery.children()]
        assert len(family) == 2
        daemon.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
    assert (place / "killed").exists()
    made = Nursery(Setup(place / "gone", None, place / "cache", 10**9), LIMITS, place / "killed")
    with pytest.raises(HubhoundError):  # tidies before it finds that there is no index
        made.start()
    assert [path.name for path in (place / "killed").iterdir()] == ["nursery"]
    made.close()
    assert not (place / "killed").exists()
