"""A worker whose models behave: what it answers, what it costs, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine.errors import HubhoundError, ModelRefusedError, Reason
from engine.index import Index
from indexers.crawl import sandbox, scratch
from indexers.crawl.environment import environment
from indexers.crawl.messages import MAX_MESSAGE_BYTES, Answer, Channel, ClosedError, GarbageError, Telling, read_reply
from indexers.crawl.worker import Limits, Nursery, Setup, Worker, WorkerStopped
from indexers.loaders import Repository, load
from indexers.pixels import PixelCache
from indexers.prober import Prober
from indexers.strange_arrays import StrangeArrayError, opened, read
from tests.support.small_index import make_index
from tests.support.tiny_models import timm_model, vit_model

needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker")
    make_index(folder / "index")
    timm_model(folder / "org" / "resnet")
    vit_model(folder / "org" / "vit")
    pickled = vit_model(folder / "org" / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def nursery(place: Path) -> Iterator[Nursery]:
    setup = Setup(place / "index", None, place / "cache", 10**9)
    made = Nursery(setup, Limits(models_per_child=25), place / "scratch", preload="tests.support.hostile")
    made.start()
    yield made
    made.close()
    made.close()
    assert not (place / "scratch").exists()


@pytest.fixture
def worker(nursery: Nursery) -> Iterator[Worker]:
    made = Worker(nursery)
    yield made
    made.close()


def repository(place: Path, name: str, repo: str | None = None) -> Repository:
    return Repository(repo or f"org/{name}", "r1", place / "org" / name)


def test_answers_as_the_prober_does_in_this_process(
    worker: Worker, place: Path, tmp_path: Path, one_thread: None
) -> None:
    prober = Prober(Index(place / "index").probes(), PixelCache(tmp_path), torch.device("cpu"))
    for name in ("resnet", "vit"):
        told: list[tuple[str, int, int]] = []
        probed = worker.probe(repository(place, name), lambda *what, told=told: told.append(what))
        loaded = load(repository(place, name))
        expected = prober.probe(loaded)
        np.testing.assert_allclose(probed.responses, expected.values, atol=1e-4)
        assert probed.responses.dtype == np.float32
        assert (probed.labels, probed.parameters) == (loaded.labels, loaded.parameters)
        assert (probed.library, probed.architecture) == (loaded.library, loaded.architecture)
        assert (probed.input_size, probed.probabilities) == (loaded.preprocessing.size, expected.probabilities)
        assert set(probed.seconds) == {"load", "decode", "probe"}
        assert probed.seconds["load"] > 0 < probed.seconds["probe"]
        assert 10**8 < probed.memory_bytes < 10**10
        assert [stage for stage, done, _ in told if done <= 1] == ["loading", "decoding probes", "probing"]
        ours = next(tmp_path.rglob(f"{loaded.preprocessing.key}.npy"))
        theirs = place / "cache" / ours.relative_to(tmp_path)
        assert theirs.read_bytes() == ours.read_bytes()
        assert theirs.stat().st_mode & 0o777 == 0o644
    assert worker.children == 1


@needs_linux
def test_protection_is_reported(worker: Worker, place: Path) -> None:
    assert worker.protection == worker.missing == ()
    worker.probe(repository(place, "vit"))
    assert set(worker.protection) | set(worker.missing) == {*sandbox.LAYERS, "memory and disk watched"}
    assert not set(worker.protection) & set(worker.missing)
    assert "audit hook" in worker.protection


def test_a_refusal_is_passed_on_and_the_process_goes_on(worker: Worker, place: Path) -> None:
    with pytest.raises(ModelRefusedError) as ours:
        load(repository(place, "pickled"))
    with pytest.raises(ModelRefusedError) as theirs:
        worker.probe(repository(place, "pickled"))
    assert theirs.value.reason is Reason.PICKLE_ONLY
    assert str(theirs.value) == str(ours.value)
    assert theirs.value.revision == "r1"
    worker.probe(repository(place, "vit"))
    assert worker.children == 1


@needs_linux
def test_thirty_jobs_leave_nothing_and_cost_little(nursery: Nursery, place: Path) -> None:
    assert nursery.pid is not None
    before = len(os.listdir("/proc/self/fd"))
    worker = Worker(nursery)
    overheads = []
    for _ in range(30):
        started = time.perf_counter()
        probed = worker.probe(repository(place, "vit"))
        overheads.append(time.perf_counter() - started - sum(probed.seconds.values()))
        assert len(list((place / "scratch").glob("model-*/*"))) == 0
    assert worker.children == 2  # the second one after 25 models
    assert len(psutil.Process(nursery.pid).children()) == 1
    assert statistics.median(overheads) < 0.1
    worker.close()
    worker.close()
    assert psutil.Process(nursery.pid).children() == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.name for path in (place / "scratch").iterdir()] == ["nursery"]


@needs_linux
def test_twenty_forked_processes_run_torch_in_two_threads(nursery: Nursery, place: Path) -> None:
    workers = [Worker(nursery) for _ in range(20)]
    for worker in workers:
        assert worker.probe(repository(place, "resnet", "hostile/two_threads-then-fine")).labels[0] == "ant"
        worker.close()


def test_two_workers_share_a_nursery(nursery: Nursery, place: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        worker = Worker(nursery)
        try:
            for _ in range(3):
                worker.probe(repository(place, "vit"))
        except BaseException as error:
            failures.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("how", ["thread", "signal"])
def test_stop_ends_a_model_at_once(worker: Worker, place: Path, how: str) -> None:
    worker.probe(repository(place, "vit"))
    timer = threading.Timer(0.3, worker.stop)
    if how == "signal":
        old = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    timer.start()
    started = time.monotonic()
    with pytest.raises(WorkerStopped):
        worker.probe(repository(place, "vit", "hostile/never"))
    assert 0.25 < time.monotonic() - started < 3
    timer.join()
    if how == "signal":
        signal.signal(signal.SIGUSR1, old)
    with pytest.raises(WorkerStopped):
        worker.probe(repository(place, "vit"))
    assert worker.children == 1


def test_stop_while_the_nursery_starts(place: Path, tmp_path: Path) -> None:
    nursery = Nursery(Setup(place / "index", None, tmp_path / "cache", 10**9), Limits(), tmp_path / "scratch")
    worker = Worker(nursery)
    threading.Timer(0.3, worker.stop).start()
    started = time.monotonic()
    with pytest.raises(WorkerStopped):
        worker.probe(repository(place, "vit"))
    assert time.monotonic() - started < 3
    assert nursery.pid is None
    worker.close()
    nursery.close()
    assert not (tmp_path / "scratch").exists()


def test_a_nursery_that_cannot_start_says_why(tmp_path: Path) -> None:
    nursery = Nursery(Setup(tmp_path / "index", None, tmp_path / "cache", 10**9), Limits(), tmp_path / "scratch")
    with pytest.raises(HubhoundError, match=r"^no index at .*index: make one with .*") as caught:
        Worker(nursery).probe(Repository("a/b", "r", tmp_path))
    assert "\n" not in str(caught.value)
    nursery.close()


def test_environment_has_no_secrets(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "3",
        "CUDA_API_KEY": "x",
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "MY_SETTING": "x",
        "PYTHONPATH": "/lib/more",
    }
    found = environment(given, tmp_path)
    assert not {"CUDA_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_SETTING"} & set(found)
    assert (found["PATH"], found["LC_ALL"], found["OMP_NUM_THREADS"]) == ("/bin", "C", "3")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(Path(__file__).parents[2]), "/lib/more"]
    assert found["HOME"] == found["TMPDIR"] == str(tmp_path)
    assert found["HF_HUB_OFFLINE"] == "1"


def test_messages_arrive_whole_or_not_at_all() -> None:
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    telling = Telling(what="probing", done=1, total=2)
    other.send(telling)
    other.send(telling)
    assert [read_reply(channel.receive(1) or b"") for _ in range(2)] == [telling, telling]
    assert channel.receive(0.01) is None
    theirs.sendall(struct.pack(">I", 5) + b"12")
    assert channel.receive(0.01) is None
    theirs.sendall(b"345")
    assert channel.receive(1) == b"12345"
    theirs.sendall(struct.pack(">I", MAX_MESSAGE_BYTES + 1))
    with pytest.raises(GarbageError, match="16,777,217 bytes"):
        channel.receive(1)
    channel.close()
    for _ in range(2):
        with pytest.raises(ClosedError):
            other.receive(1)
    with pytest.raises(ClosedError):
        other.send(telling)
    other.close()


def test_the_labels_of_22000_classes_fit() -> None:
    answer = Answer(
        number=1,
        library="timm",
        architecture="a",
        parameters=1,
        input_size=(224, 224),
        labels=tuple(f"{i}, a label as long as those of the largest ImageNet, 鳥類" for i in range(22_000)),
        shape=(4000, 22_000),
        probabilities=False,
        seconds={"load": 1.0},
        pixels=f"{'0' * 16}/{'a' * 16}.npy",
        new_pixels=False,
    )
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    sender = threading.Thread(target=Channel(theirs).send, args=(answer,))
    sender.start()
    assert read_reply(channel.receive(10) or b"") == answer
    sender.join()
    channel.close()
    theirs.close()


def test_strange_arrays(tmp_path: Path) -> None:
    good = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "good.npy", good)
    np.testing.assert_array_equal(read(tmp_path / "good.npy", "<f4", (2, 3)), good)
    (tmp_path / "link.npy").symlink_to(tmp_path / "good.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    np.save(tmp_path / "other.npy", np.asfortranarray(good))
    (tmp_path / "bomb.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x03" + b"(" * 0x310)
    np.save(tmp_path / "hard.npy", good)
    os.link(tmp_path / "hard.npy", tmp_path / "hard too.npy")
    for name, said in {
        "missing": "cannot be opened",
        "link": "cannot be opened",
        "pipe": "is not a plain file",
        "hard": "is not a plain file",
        "bomb": "is not an array",
        "other": "holds float32",
    }.items():
        with pytest.raises(StrangeArrayError, match=said), opened(tmp_path / f"{name}.npy", np.float32, (2, 3)):
            pass


def test_scratch_folders(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    folder = scratch.new(tmp_path / "scratch", "a")
    assert scratch.size_bytes(folder) == 0
    (folder / "file").write_bytes(bytes(100_000))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(bytes(100_000))
    size = scratch.size_bytes(folder)
    assert size is not None
    assert 200_000 <= size < 300_000
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert scratch.empty(folder)
    assert list(folder.iterdir()) == []
    scratch.remove(folder)
    scratch.remove(folder)
    assert (tmp_path / "outside" / "kept").read_text() == "kept"
    for i in range(scratch.SCRATCH_ENTRIES + 1):
        (tmp_path / "outside" / str(i)).touch()
    assert scratch.size_bytes(tmp_path / "outside") is None


def test_pixels_are_adopted_once(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "cache", 150)
    name = f"{'0' * 16}/a.npy"
    for value in (1, 2):
        np.save(tmp_path / "a.npy", np.full((2, 3, 4, 4), value, np.uint8))
        assert cache.adopt(name, tmp_path / "a.npy", (2, 3, 4, 4)) is (value == 1)
        assert not (tmp_path / "a.npy").exists()
    assert np.load(tmp_path / "cache" / name).max() == 1
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(StrangeArrayError):
        cache.adopt(f"{'0' * 16}/b.npy", tmp_path / "b.npy", (2, 3, 4, 4))
    cache.touch(name)
    cache.touch("no such thing")
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 4, 4), np.uint8))
    assert cache.adopt(f"{'0' * 16}/c.npy", tmp_path / "c.npy", (2, 3, 4, 4))
    # There is room for one: the older one went, and nothing half-done was left.
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["c.npy"]
