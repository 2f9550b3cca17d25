"""The process of a job: whatever it does, the service learns how it went, and nothing of it is left."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from query.api.errors import LOGGER, ApiError, ProblemKind
from query.api.job_process import MOST_LOGGED, JobProcess, environment
from query.api.jobs import JobProgress, Watch
from query.api.orders import RecommendOrder
from query.recommendation import LeftOutModel, Recommendation, Recommended, SourceTask, Target
from tests.support.job_programs import HANG, program

STARTING = JobProgress(model="org/first", what="starting", done=0, total=0, model_number=1, models=3)

ANSWER = Recommendation(
    target=Target(images=("a.jpg",), fingerprint="f" * 64),
    ranking=(
        Recommended(
            rank=1,
            model="org/one",
            predicted_rank=1.25,
            sources=(SourceTask(task="t", weight=1.0, divergence=0.1 + 0.2, rank=1.25, of=3),),
            parameters=7,
        ),
    ),
    candidates=1,
    left_out=(LeftOutModel(model="org/zwö", reason="it has no profiles"),),
    eta=2.0,
    gamma=5.0,
    seconds=1e-7,
).to_json()

Run = Callable[..., dict[str, Any]]


def order(tmp_path: Path, **given: Any) -> RecommendOrder:
    fields = {"candidates": (), "k": 1, "max_parameters": None, "eta": 1.0, "gamma": 1.0, "explain": False}
    images = {"images": (tmp_path / "000.jpg",), "names": ("photo.jpg",)}
    return RecommendOrder(index=tmp_path, device="cpu", models=(), **{**fields, **images, **given})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def once(code: str, watch: Watch | None = None, timeout_s: float = 30.0, **given: Any) -> dict[str, Any]:
        work = JobProcess(order(tmp_path, **given), tmp_path, STARTING, program(code), timeout_s)
        return work(watch or Watch())

    return once


def failed(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_answer_comes_as_it_was_sent(run: Run) -> None:
    assert run(f"say({{'result': {ANSWER!r}}})") == ANSWER


def test_the_order_is_what_was_asked(run: Run, tmp_path: Path) -> None:
    problem = "'type': 'urn:hubhound:problem:internal', 'title': '', 'status': 500, 'detail': json.dumps(order)"
    code = f"say({{'problem': {{{problem}}}}})"
    told = json.loads(failed(lambda: run(code, candidates=("org/one",), explain=True)).detail.replace("a file", "F"))
    assert told["candidates"] == ["org/one"] and told["explain"] is True and told["names"] == ["photo.jpg"]


def test_progress_arrives_while_it_runs(run: Run, tmp_path: Path) -> None:
    watch, seen = Watch(), set()
    gate = tmp_path / "gate"
    code = f"""
loading("org/two")
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
say({{"result": {ANSWER!r}}})
"""
    thread = threading.Thread(target=lambda: seen.add(json.dumps(run(code, watch))))
    thread.start()
    until = time.monotonic() + 20
    while (watch.progress is None or watch.progress.model != "org/two") and time.monotonic() < until:
        time.sleep(0.005)
    assert watch.progress is not None and (watch.progress.what, watch.progress.models) == ("loading", 3)
    gate.touch()
    thread.join(20)
    assert seen == {json.dumps(ANSWER)}


def test_before_it_says_anything_it_is_starting(tmp_path: Path, run: Run) -> None:
    watch = Watch()
    assert "before its first model" in failed(lambda: run("sys.exit(3)", watch)).detail
    assert watch.progress == STARTING


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11 (segmentation fault) while loading org/one"),
        ("os.kill(os.getpid(), 9)", "signal 9 (killed), it may have been the machine's memory, while loading org/one"),
        ("os._exit(3)", "exited with status 3 while loading org/one"),
        ("os._exit(0)", "exited with status 0 while loading org/one"),
        ("import ctypes; ctypes.string_at(0)", "ended with signal 11"),
        ("os.close(1); time.sleep(600)", "closed its connection while loading"),
        ("raise MemoryError", "exited with status 1"),
        ("subprocess.Popen(['sleep', '600']); os._exit(4)", "exited with status 4"),  # it keeps the pipes open
        ("os.write(1, b'Loading ...\\n')", "answered what cannot be meant"),
        ("os.write(1, b'\\xff\\n')", "answered what cannot be meant"),
        ("os.write(1, b'[' * 50000 + b'\\n'); time.sleep(600)", "answered what cannot be meant"),
        ("say([]); time.sleep(600)", "answered what cannot be meant"),
        ("say({'result': {}}); time.sleep(600)", "answered what cannot be meant"),
        ("say({'result': {}, 'progress': {}})", "answered what cannot be meant"),
        ('os.write(1, b\'{"progress": {"done": NaN}}\\n\')', "answered what cannot be meant"),
        ("say({'progress': {'model': 1}})", "answered what cannot be meant"),
        (
            "say({'progress': {'model': 'm', 'what': 'w', 'done': 'inf', 'total': 0, 'model_number': 1, 'models': 1}})",
            "answered what cannot be meant",
        ),
        ("say({'problem': {'type': 'mine', 'title': '', 'status': 500, 'detail': ''}})", "answered what cannot be"),
        (
            "\nfor _ in range(100): os.write(1, b'x' * 2**20)\nos.write(1, b'\\n')",
            "answered more than 64 MB while loading org/one",
        ),
        ("\nwhile True: loading('org/two' + 30_000 * ' ')", "answered more than 64 MB while loading org/two"),
    ],
)
def test_a_process_that_does_not_do_what_it_should(code: str, part: str, run: Run) -> None:
    error = failed(lambda: run("loading()\n" + code))
    assert error.kind is ProblemKind.MODEL_UNUSABLE and part in error.detail, error.detail
    assert "leave the model out, or ask again" in error.detail


def test_a_forged_answer_is_read_as_an_answer_or_not_at_all(run: Run) -> None:
    for change in ({"k": 1}, {"eta": "many"}, {"ranking": "all"}, {"left_out": [{"model": 1}]}):
        assert failed(lambda change=change: run(f"say({{'result': { ({**ANSWER, **change})!r}}})")).kind is (  # type: ignore[misc]
            ProblemKind.MODEL_UNUSABLE
        )


def test_a_problem_of_its_own_is_told_without_paths(run: Run, tmp_path: Path) -> None:
    kind = ProblemKind.INVALID_REQUEST
    detail = f"the image {tmp_path}/000.jpg is none, nor is {tmp_path}/other"
    told = {"type": kind.type, "title": "forged", "status": 599, "detail": detail, "secret": 1}
    problem = failed(lambda: run(f"say({{'problem': {told!r}}})")).problem
    assert (problem.type, problem.status, problem.title) == (kind.type, kind.status, kind.title)
    assert problem.detail == "the image photo.jpg is none, nor is a file" and "secret" not in problem.to_json()


def test_what_takes_too_long_is_ended_with_all_it_started(run: Run, tmp_path: Path) -> None:
    code = f"""
child = subprocess.Popen(["sleep", "600"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
"""
    started = time.monotonic()
    error = failed(lambda: run(code + HANG, timeout_s=2))
    assert error.kind is ProblemKind.TIMEOUT and "within 2 s" in error.detail and "loading org/one" in error.detail
    assert time.monotonic() - started < 8
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(alive, pids))


@pytest.mark.parametrize("code", [HANG, "\nwhile True: loading()", "signal.signal(15, signal.SIG_IGN)\n" + HANG])
def test_cancelling_ends_it_at_once(code: str, run: Run) -> None:
    watch, ended = Watch(), threading.Event()

    def work() -> None:
        run(code, watch)
        ended.set()

    threading.Thread(target=work).start()
    until = time.monotonic() + 20
    while watch.progress in {None, STARTING} and time.monotonic() < until:
        time.sleep(0.005)
    watch.cancelled = True
    started = time.monotonic()
    assert ended.wait(5) and time.monotonic() - started < 2


def test_a_process_that_reads_nothing(run: Run, tmp_path: Path) -> None:
    work = order(tmp_path, candidates=tuple("x" * 100 for _ in range(10_000)))
    command = (*program("")[:-1], "import time; time.sleep(600)")
    assert failed(lambda: JobProcess(work, tmp_path, STARTING, command, 1)(Watch())).kind is ProblemKind.TIMEOUT
    command = (*program("")[:-1], "import os; os._exit(5)")
    assert "status 5" in failed(lambda: JobProcess(work, tmp_path, STARTING, command, 20)(Watch())).detail


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    work = JobProcess(order(tmp_path), tmp_path, STARTING, (str(tmp_path / "nothing"),), 5)
    error = failed(lambda: work(Watch()))
    assert error.kind is ProblemKind.BUSY and str(tmp_path) not in error.detail and error.headers["Retry-After"]


def test_its_standard_error_is_lines_of_the_log_and_no_flood(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)
    code = f"""
os.write(2, b"one \\x1b[31mred\\xff\\n\\ntwo\\n" + b"y" * 10**7 + b"\\n")
for i in range(1000): os.write(2, f"line {{i}}\\n".encode())
say({{"result": {ANSWER!r}}})
"""
    assert run(code) == ANSWER
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "a job: one [31mred�" and told[1] == "a job: two"
    assert len(told) <= MOST_LOGGED + 1 and max(map(len, told)) < 400 and "\n" not in "".join(told)


def test_its_environment_has_what_libraries_need_and_no_secrets(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "HOME": "/home/x",
        "HF_TOKEN": "t",
        "HF_HOME": "/hf",
        "CUDA_VISIBLE_DEVICES": "0",
        "https_proxy": "http://p",
        "HUBHOUND_CACHE": "/c",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": "/elsewhere",
        "AWS_SECRET_ACCESS_KEY": "s",
        "HUBHOUND_SERVE_API_KEY_FILE": "/k",
        "LD_PRELOAD": "/x.so",
        "PYTHONPATH": "/p",
    }
    found = environment(given, tmp_path)
    for gone in ("AWS_SECRET_ACCESS_KEY", "HUBHOUND_SERVE_API_KEY_FILE", "LD_PRELOAD"):
        assert gone not in found
    for name in ("PATH", "HOME", "HF_TOKEN", "HF_HOME", "CUDA_VISIBLE_DEVICES", "https_proxy", "HUBHOUND_CACHE"):
        assert found[name] == given[name]
    assert found["TMPDIR"] == str(tmp_path) and found["OMP_NUM_THREADS"] == "1"
    root, *others = found["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "query" / "api" / "job_child.py").is_file() and others == ["/p"]
