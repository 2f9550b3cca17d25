"""Jobs: one after the other, cancelled, refused, forgotten, and what becomes of their images."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from query.api.errors import LOGGER, ApiError, ProblemKind
from query.api.jobs import MOST_FINISHED, Job, JobProgress, Jobs, KeptImages, Watch
from query.api.metrics import Metrics
from query.api.settings import Settings
from tests.support.clock import Clock

MakeJobs = Callable[..., Jobs]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeJobs]:
    made: list[Jobs] = []

    def jobs(metrics: Metrics | None = None, clock: Callable[[], float] = time.time, **given: Any) -> Jobs:
        made.append(Jobs(Settings(index=tmp_path, **given), metrics, clock))
        return made[-1]

    yield jobs
    for one in made:
        asyncio.run(one.stop())


@pytest.fixture
def jobs(make: MakeJobs) -> Jobs:
    return make()


class Gate:
    """Work that stands still until it is let through, and says that it has begun."""

    def __init__(self, listens: bool = True) -> None:
        self.listens = listens
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, watch: Watch) -> dict[str, Any]:
        watch.progress = progress("reading", 0, 0)
        self.begun.set()
        until = time.monotonic() + 10
        while not self.open.wait(0.01):
            assert time.monotonic() < until
            if watch.cancelled and self.listens:
                return {}
        watch.progress = progress("profiling", 1.5, 3)
        return {"answer": 42}


def progress(what: str, done: float, total: float) -> JobProgress:
    return JobProgress(model="org/a", what=what, done=done, total=total, model_number=1, models=2)


def kept(tmp_path: Path, count: int = 1) -> KeptImages:
    """Images that were uploaded and are moved where a job keeps them."""
    folder = tmp_path / f"upload-{time.monotonic_ns()}"
    folder.mkdir()
    paths = [folder / f"{i:03d}.jpg" for i in range(count)]
    for path in paths:
        path.write_bytes(b"image")
    return KeptImages(paths, [f"photo {i}.jpg" for i in range(count)])


def ended(jobs: Jobs, job: Job) -> Job:
    found = asyncio.run(jobs.wait(job.id, 10))
    assert found.finished is not None
    return found


def refused(kind: ProblemKind, call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.kind is kind
    return caught.value


def folder_of(images: KeptImages) -> Path:
    return images.paths[0].parent


def test_a_job_from_its_beginning_to_its_end(make: MakeJobs, tmp_path: Path) -> None:
    clock, gate = Clock(1_000_000_000.0), Gate()
    jobs = make(clock=clock)
    images = kept(tmp_path, 2)
    job = jobs.submit("recommend", gate, images)
    assert job.kind == "recommend" and len(job.id) >= 22
    assert gate.begun.wait(10)
    clock.now += 5
    running = jobs.get(job.id)
    assert running.state == "running" and running.result is None and running.problem is None
    told = running.to_json()
    assert told["progress"] == {
        "model": "org/a",
        "what": "reading",
        "done": 0.0,
        "total": 0.0,
        "model_number": 1,
        "models": 2,
    }
    assert [path.read_bytes() for path in images.paths] == [b"image"] * 2
    gate.open.set()
    done = ended(jobs, job)
    assert done.state == "done" and done.result == {"answer": 42}
    assert done.progress is not None and (done.progress.what, done.progress.done) == ("profiling", 1.5)
    assert not folder_of(images).exists()
    assert done.created == done.started == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert done.to_json()["finished"] == "2001-09-09T01:46:45Z"
    assert jobs.get(job.id) == done


def test_one_at_a_time_in_the_order_of_asking(jobs: Jobs, tmp_path: Path) -> None:
    order: list[int] = []
    busy = threading.Lock()

    def work(number: int) -> dict[str, Any]:
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        order.append(number)
        busy.release()
        return {}

    made = [jobs.submit("search", lambda _, i=i: work(i), kept(tmp_path)) for i in range(5)]  # type: ignore[misc]
    assert [ended(jobs, job).state for job in made] == ["done"] * 5
    assert order == [0, 1, 2, 3, 4] and len({job.id for job in made}) == 5


def test_a_waiting_job_is_cancelled_at_once(jobs: Jobs, tmp_path: Path) -> None:
    gate, ran = Gate(), threading.Event()
    first = jobs.submit("search", gate, kept(tmp_path))
    images = kept(tmp_path)
    second = jobs.submit("search", lambda _: {"ran": ran.set()}, images)
    assert jobs.cancel(second.id).state == "cancelled"
    assert not folder_of(images).exists() and jobs.get(first.id).state in {"queued", "running"}
    gate.open.set()
    assert ended(jobs, first).state == "done"
    assert ended(jobs, jobs.submit("search", lambda _: {}, kept(tmp_path))).state == "done" and not ran.is_set()


def test_the_running_job_is_cancelled_in_a_moment(jobs: Jobs, tmp_path: Path) -> None:
    gate, images = Gate(), kept(tmp_path)
    job = jobs.submit("search", gate, images)
    assert gate.begun.wait(10)
    started = time.monotonic()
    assert jobs.cancel(job.id).state == "running"
    found = ended(jobs, job)
    assert time.monotonic() - started < 2
    assert (found.state, found.result, found.problem) == ("cancelled", None, None)
    assert not folder_of(images).exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_ends_before_it_notices_is_cancelled_nevertheless(fails: bool, jobs: Jobs, tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def deaf(_: Watch) -> dict[str, Any]:
        begun.set()
        assert go.wait(10)
        if fails:
            raise InputError("no")
        return {"too": "late"}

    job = jobs.submit("search", deaf, kept(tmp_path))
    assert begun.wait(10)
    jobs.cancel(job.id)
    go.set()
    found = ended(jobs, job)
    assert (found.state, found.result, found.problem) == ("cancelled", None, None)


def test_a_finished_job_cannot_be_cancelled(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.submit("search", lambda _: {}, kept(tmp_path))
    ended(jobs, job)
    assert "done" in refused(ProblemKind.JOB_FINISHED, lambda: jobs.cancel(job.id)).detail
    assert jobs.get(job.id).state == "done"


def test_more_than_may_wait_are_told_to_come_again(make: MakeJobs, tmp_path: Path) -> None:
    jobs, gate = make(max_jobs=2), Gate()
    first = jobs.submit("search", gate, kept(tmp_path))
    second = jobs.submit("search", lambda _: {}, kept(tmp_path))
    images = kept(tmp_path)
    error = refused(ProblemKind.BUSY, lambda: jobs.submit("search", lambda _: {}, images))
    assert int(error.headers["Retry-After"]) >= 1 and not folder_of(images).exists()
    assert error.detail.startswith("2 jobs wait or run already")
    jobs.cancel(second.id)
    third = jobs.submit("search", lambda _: {}, kept(tmp_path))
    gate.open.set()
    assert ended(jobs, third).state == ended(jobs, first).state == "done"


def test_for_another_key_there_is_no_such_job(jobs: Jobs, tmp_path: Path) -> None:
    gate = Gate()
    job = jobs.submit("search", gate, kept(tmp_path), owner="alice")
    calls = [
        partial(call, job_id, owner)
        for call in (jobs.get, jobs.cancel)
        for job_id, owner in ((job.id, "bob"), (job.id, None), ("nothing", "alice"))
    ]
    told = {refused(ProblemKind.JOB_NOT_FOUND, call).detail for call in calls}
    assert len(told) == 1  # nobody learns that it is there
    assert jobs.get(job.id, "alice").id == job.id
    gate.open.set()
    assert ended(jobs, job).state == "done"


def test_a_failure_is_a_problem_without_paths_of_this_machine(jobs: Jobs, tmp_path: Path) -> None:
    images = kept(tmp_path)

    def fail(_: Watch) -> dict[str, Any]:
        raise InputError(f"the image {images.paths[0]} cannot be read: it is no image")

    found = ended(jobs, jobs.submit("search", fail, images, request_id="r1"))
    assert found.state == "failed" and found.result is None
    assert found.to_json()["problem"] == {
        "type": "urn:hubhound:problem:invalid-request",
        "title": "The request cannot be used",
        "status": 400,
        "detail": "the image photo 0.jpg cannot be read: it is no image",
        "instance": "r1",
    }
    assert not folder_of(images).exists()


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(3), KeyboardInterrupt()])
def test_what_nobody_foresaw_fails_one_job_and_tells_nothing(
    error: BaseException, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)  # a service in this process may have its own log

    def fail(_: Watch) -> dict[str, Any]:
        raise error

    found = ended(jobs, jobs.submit("search", fail, kept(tmp_path), request_id="r2"))
    assert found.problem is not None and found.problem.status == 500 and "secret" not in found.problem.detail
    assert "r2" in caplog.text
    assert ended(jobs, jobs.submit("search", lambda _: {}, kept(tmp_path))).state == "done"


def test_finished_jobs_are_forgotten_after_a_while(make: MakeJobs, tmp_path: Path) -> None:
    clock, gate = Clock(1e9), Gate()
    jobs = make(clock=clock, job_keep_s=60)
    old = jobs.submit("search", lambda _: {}, kept(tmp_path))
    ended(jobs, old)
    running = jobs.submit("search", gate, kept(tmp_path))
    assert gate.begun.wait(10)
    clock.now += 59.9
    assert jobs.get(old.id).state == "done"
    clock.now += 0.1
    refused(ProblemKind.JOB_NOT_FOUND, lambda: jobs.get(old.id))
    assert jobs.get(running.id).state == "running"  # however long it takes
    gate.open.set()
    assert ended(jobs, running).state == "done"


def test_so_many_finished_jobs_are_kept(make: MakeJobs, tmp_path: Path) -> None:
    clock = Clock(1e9)
    jobs = make(clock=clock)
    made = []
    for _ in range(MOST_FINISHED + 3):
        clock.now += 1
        made.append(jobs.submit("search", lambda _: {}, kept(tmp_path)))
        ended(jobs, made[-1])
    for job in made[:3]:
        refused(ProblemKind.JOB_NOT_FOUND, partial(jobs.get, job.id))
    assert all(jobs.get(job.id).state == "done" for job in made[3:])


def test_waiting_for_a_job_has_an_end(jobs: Jobs, tmp_path: Path) -> None:
    gate = Gate()
    job = jobs.submit("search", gate, kept(tmp_path))
    started = time.monotonic()
    assert asyncio.run(jobs.wait(job.id, 0.05)).finished is None
    assert 0.04 < time.monotonic() - started < 5
    gate.open.set()
    assert ended(jobs, job).state == "done"
    with pytest.raises(ApiError):
        asyncio.run(jobs.wait("nothing", 1))


def test_an_abandoned_job_is_cancelled_and_forgotten(jobs: Jobs, tmp_path: Path) -> None:
    gate, images = Gate(), kept(tmp_path)
    running = jobs.submit("search", gate, images)
    assert gate.begun.wait(10)
    waiting = jobs.submit("search", lambda _: {}, kept(tmp_path))
    for job in (running, waiting):
        jobs.abandon(job.id)
        refused(ProblemKind.JOB_NOT_FOUND, partial(jobs.get, job.id))
    jobs.abandon("nothing")
    gate.open.set()
    assert ended(jobs, jobs.submit("search", lambda _: {}, kept(tmp_path))).state == "done"
    assert not folder_of(images).exists()


def test_the_end_of_the_service_cancels_everything(make: MakeJobs, tmp_path: Path) -> None:
    jobs, gate = make(), Gate()
    pictures = [kept(tmp_path) for _ in range(3)]
    running, *waiting = [jobs.submit("search", gate, images) for images in pictures]
    assert gate.begun.wait(10)
    asyncio.run(jobs.stop(10))
    assert [jobs.get(job.id).state for job in (running, *waiting)] == ["cancelled"] * 3
    assert not any(folder_of(images).exists() for images in pictures)
    refused(ProblemKind.BUSY, lambda: jobs.submit("search", gate, kept(tmp_path)))


def test_the_end_of_the_service_does_not_wait_for_a_model_that_hangs(make: MakeJobs, tmp_path: Path) -> None:
    jobs, gate, images = make(), Gate(listens=False), kept(tmp_path)
    waiting = kept(tmp_path)
    jobs.submit("search", gate, images)
    jobs.submit("search", gate, waiting)
    assert gate.begun.wait(10)
    started = time.monotonic()
    asyncio.run(jobs.stop(0.1))
    assert time.monotonic() - started < 5
    assert not folder_of(images).exists() and not folder_of(waiting).exists()
    gate.open.set()


def test_the_figures(make: MakeJobs, tmp_path: Path) -> None:
    metrics, gate = Metrics(), Gate()
    jobs = make(metrics, max_jobs=5)

    def figures() -> dict[str, str]:
        lines = metrics.render()[0].decode().splitlines()
        return dict(
            line.rsplit(" ", 1) for line in lines if line.startswith(("hubhound_jobs_active", "hubhound_jobs_total"))
        )  # type: ignore[misc]

    def fail(_: Watch) -> dict[str, Any]:
        raise InputError("no")

    running = jobs.submit("search", gate, kept(tmp_path))
    assert gate.begun.wait(10)
    failing, unwanted = (jobs.submit("search", fail, kept(tmp_path)) for _ in range(2))
    assert figures()['hubhound_jobs_active{state="queued"}'] == "2.0"
    assert figures()['hubhound_jobs_active{state="running"}'] == "1.0"
    jobs.cancel(unwanted.id)
    gate.open.set()
    ended(jobs, running)
    ended(jobs, failing)
    assert figures() == {
        'hubhound_jobs_active{state="queued"}': "0.0",
        'hubhound_jobs_active{state="running"}': "0.0",
        'hubhound_jobs_total{state="done"}': "1.0",
        'hubhound_jobs_total{state="failed"}': "1.0",
        'hubhound_jobs_total{state="cancelled"}': "1.0",
    }


def test_images_that_cannot_be_moved_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "there.jpg").write_bytes(b"")
    with suppress(FileNotFoundError):
        KeptImages([tmp_path / "there.jpg", tmp_path / "gone.jpg"], ["a", "b"])
        pytest.fail("one of them is gone")
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_service_that_was_killed_are_removed_at_the_next_start(
    make: MakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    names = [f"hubhound-job-{dead.pid}-abc", f"hubhound-job-{os.getpid()}-abc", "hubhound-job-abc", "hubhound-job-1-x"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "000.jpg").touch()
    (tmp_path / f"hubhound-job-{dead.pid}-link").symlink_to(tmp_path / "elsewhere")
    make()
    assert not (tmp_path / names[0]).exists() and (tmp_path / "elsewhere" / "mine").exists()
    assert all((tmp_path / name / "000.jpg").exists() for name in names[1:])
    images = kept(tmp_path)
    assert folder_of(images).name.startswith(f"hubhound-job-{os.getpid()}-")
    images.drop()
