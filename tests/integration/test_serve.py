"""``hubhound serve`` as a process: how it starts, that it takes over new generations under load, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.concepts import ConceptCache
from engine.index import Index
from engine.writer import IndexWriter
from query.cli.main import run
from query.request import SearchRequest
from query.search import Searcher
from tests.support.service import SLOW_PROGRAM, Served, serving
from tests.support.small_index import encode, make_filled_index, make_index, put_model, vector

QUICK = ("--preload", "no", "--names", "no", "--refresh-s", "0.05")
CONCEPTS = ("cat", "dog", "horse", "owl", "chair", "lamp", "sparrow")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """An index that remembers some concepts, so that no encoder is needed for them."""
    make_filled_index(tmp_path / "zoo")
    ConceptCache(tmp_path / "zoo" / "concepts.sqlite").put({text: vector(text) for text in CONCEPTS})
    return tmp_path / "zoo"


Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Status and standard error of a command that does not come to serve."""

    def run_it(*arguments: str) -> tuple[int, str]:
        status = run(["serve", *arguments])
        told = capsys.readouterr()
        assert told.out == ""
        return status, told.err

    return run_it


def ask(url: str, *concepts: str, timeout_s: float = 20, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", json={"concepts": concepts, **more}, timeout=timeout_s)


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def libraries_of(served: Served) -> str:
    return Path(f"/proc/{served.process.pid}/maps").read_text()


def test_starts_at_once_without_torch_and_ends_with_0(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK) as served:
        assert "libtorch" not in libraries_of(served)
        answer = ask(served.url, "cat", k=3)
        assert answer.status_code == 200
        expected = json.loads(
            json.dumps(Searcher(Index(zoo), encode=encode).search(SearchRequest(("cat",), 3)).to_json())
        )
        found = answer.json()
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}
        assert httpx.get(f"{served.url}/readyz").json() == {"ready": True, "why": None, "generation": 1, "store": None}
        assert "libtorch" not in libraries_of(served)
        begun = time.monotonic()
        assert served.end(signal.SIGINT) == 0
        assert time.monotonic() - begun < 3
        told = served.told()
    assert told.startswith(f"{served.url} answers for the index {zoo}: 14 outputs of 3 models\nready after ")
    lines = told.splitlines()[2:]
    assert any("path /v1/search, status 200" in line for line in lines)
    assert "cat" not in told.replace(str(zoo), "")  # nobody's questions are in the log
    assert "Traceback" not in told


def test_a_log_for_programs(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK, "--log-format", "json") as served:
        ask(served.url, "cat")
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as raw:
            raw.sendall(b"this is not HTTP\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
        assert served.end() == 0
        lines = served.told().splitlines()
    events = [json.loads(line) for line in lines[2:]]
    asked = [event for event in events if event.get("path") == "/v1/search"]
    assert len(asked) == 1
    assert (asked[0]["status"], asked[0]["method"], asked[0]["level"]) == (200, "POST", "info")


def test_generations_are_taken_over_under_load(zoo: Path, tmp_path: Path) -> None:
    end = threading.Event()
    seen: list[tuple[int, int]] = []
    failures: list[object] = []

    def load(url: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=20) as client:
            while not end.is_set():
                try:
                    body = {"concepts": ["sparrow", "cat"], "k": 50, "explain": number == 0}
                    answer = client.post("/v1/search", json=body)
                    value = answer.json()
                    models = {hit["model"] for hit in value["results"][0]["hits"]}
                    if answer.status_code != 200 or not models:
                        failures.append(answer.text)
                    seen.append((value["searched"], len(models)))
                except Exception as error:
                    failures.append(error)

    with serving(zoo, tmp_path / "errors", *QUICK, "--threads", "2") as served:
        clients = [threading.Thread(target=load, args=(served.url, number)) for number in range(4)]
        for client in clients:
            client.start()
        with IndexWriter(zoo) as writer:
            for number in range(6):
                put_model(writer, f"birds/number-{number}", ["sparrow", "owl"], seed=number + 10)
                writer.finish()
                # The second but last generation is removed by the writer while requests may still read it.
                searched = 14 + 2 * (number + 1)
                eventually(lambda: ask(served.url, "sparrow").json()["searched"] == searched)  # noqa: B023
        end.set()
        for client in clients:
            client.join()
        best = ask(served.url, "sparrow", k=6).json()["results"][0]["hits"]
        assert {hit["model"] for hit in best} == {f"birds/number-{number}" for number in range(6)}
        figures = httpx.get(f"{served.url}/metrics").text
        maps = libraries_of(served)
        assert served.end() == 0
        told = served.told()
    assert failures == []
    assert {searched for searched, _ in seen} >= {14, 26}
    assert all(14 <= searched <= 26 for searched, _ in seen)
    assert "hubhound_generation 7.0" in figures
    assert "hubhound_outputs 26.0" in figures
    assert re.search(r"hubhound_generation_switches_total [1-6]\.0", figures)
    # Of the old generations nothing is kept.
    assert {*re.findall(r"gen-(\d+)", maps)} <= {"000007"}
    assert "Traceback" not in told


def test_a_generation_that_cannot_be_used_is_left_alone(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK) as served:
        damaged = zoo / "snapshots" / "gen-000002"
        damaged.mkdir()
        (damaged / "meta.json").write_text("{")
        current = zoo / "snapshots" / "CURRENT"
        (zoo / "new").write_text("gen-000002")
        (zoo / "new").rename(current)
        eventually(lambda: "hubhound_generation_errors_total 1.0" in httpx.get(f"{served.url}/metrics").text)
        time.sleep(0.3)  # several more looks at it
        assert ask(served.url, "cat").status_code == 200
        (zoo / "new").write_text("gen-000001")
        (zoo / "new").rename(current)
        with IndexWriter(zoo) as writer:
            put_model(writer, "birds/one", ["sparrow"])
            writer.finish()
        eventually(lambda: ask(served.url, "cat").json()["searched"] == 15)
        assert served.end() == 0
        assert served.told().count("the next generation cannot be taken over") == 1


def test_an_empty_index_becomes_ready(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    ConceptCache(tmp_path / "zoo" / "concepts.sqlite").put({"cat": vector("cat")})
    with serving(tmp_path / "zoo", tmp_path / "errors", *QUICK, ready=False) as served:
        waiting = httpx.get(f"{served.url}/readyz")
        assert (waiting.status_code, waiting.json()["generation"]) == (503, None)
        answer = ask(served.url, "cat")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:hubhound:problem:not-ready")
        assert int(answer.headers["retry-after"]) >= 1
        with IndexWriter(tmp_path / "zoo") as writer:
            put_model(writer, "org/animals", ["cat", "dog"])
            writer.finish()
        eventually(lambda: httpx.get(f"{served.url}/readyz").status_code == 200)
        assert ask(served.url, "cat").json()["searched"] == 2
        eventually(lambda: "\nready after " in served.told())


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(work())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


def encoding(served: Served) -> bool:
    """Whether a request waits for the encoder."""
    return "hubhound_http_in_flight 1.0" in httpx.get(f"{served.url}/metrics").text


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_end_waits_for_requests(sign: int, zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK, program=SLOW_PROGRAM) as served:
        thread, ended = in_background(lambda: ask(served.url, "wait 1.5 s", "cat", k=3))
        eventually(lambda: encoding(served))
        begun = time.monotonic()
        served.process.send_signal(sign)
        eventually(lambda: httpx.get(f"{served.url}/readyz").status_code == 503, 1)
        assert httpx.get(f"{served.url}/readyz").json()["why"] == "the service is ending"
        assert ask(served.url, "dog").status_code == 200  # whoever has not heard of the end is answered
        assert served.process.wait(10) == 0
        assert time.monotonic() - begun < 5
        thread.join()
        assert ended[0].status_code == 200
        assert [result["query"]["text"] for result in ended[0].json()["results"]] == ["wait 1.5 s", "cat"]


def test_what_hangs_does_not_keep_the_process(zoo: Path, tmp_path: Path) -> None:
    """A thread in the encoder, and one of a pool that waits for it: neither can be interrupted."""
    with serving(zoo, tmp_path / "errors", *QUICK, "--drain-s", "1", program=SLOW_PROGRAM) as served:
        thread, ended = in_background(lambda: ask(served.url, "wait 100 s"))
        eventually(lambda: encoding(served))
        labels, others = in_background(lambda: ask(served.url, "cat", evidence="labels"))
        eventually(lambda: "hubhound_http_in_flight 2.0" in httpx.get(f"{served.url}/metrics").text)
        begun = time.monotonic()
        assert served.end() == 0
        assert 0.9 < time.monotonic() - begun < 4
        thread.join()
        labels.join()
        for answer in (*ended, *others):
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:hubhound:problem:busy")
        assert "Traceback" not in served.told()


def test_a_second_signal_ends_at_once(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK, program=SLOW_PROGRAM) as served:
        thread, _ = in_background(lambda: ask(served.url, "wait 100 s"))
        eventually(lambda: encoding(served))
        begun = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert served.process.poll() is None
        assert served.end(signal.SIGINT) == 130
        assert time.monotonic() - begun < 3
        thread.join()


def test_a_port_that_is_taken(zoo: Path, tmp_path: Path, refused: Refused) -> None:
    with serving(zoo, tmp_path / "errors", *QUICK) as served:
        port = served.url.rpartition(":")[2]
        status, told = refused("--index", str(zoo), "--port", port)
        assert status == 1
        assert told == (
            f"hubhound: --host 127.0.0.1 --port {port}: something listens there already: end it, or choose another "
            "port (0 takes a free one)\n"
        )
        assert ask(served.url, "cat").status_code == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "others could ask without a key: add --api-key-file FILE, or --insecure"),  # noqa: S104
        (["--host", "no.such.host.invalid", "--insecure"], "there is no such address"),
        (["--host", "203.0.113.77", "--insecure"], "this machine does not have the address"),
        (["--index", "nowhere"], "no index at nowhere"),
        (["--index", "qdrant://localhost"], "the name of an index on a server"),
        (["--api-key-file", "missing.txt"], "--api-key-file missing.txt"),
        (["--vocabulary", "missing.txt"], "missing.txt"),
        (["--cors-origin", "example.org"], "--cors-origin 'example.org' is no origin"),
        (["--models", "missing"], "missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_one_line(options: list[str], told: str, zoo: Path, refused: Refused) -> None:
    status, error = refused("--index", str(zoo), "--port", "0", *options)
    assert (status, error.count("\n")) == (1, 1), error
    assert error.startswith("hubhound: ")
    assert told in error


def test_wrong_usage_is_status_2(zoo: Path, refused: Refused) -> None:
    assert refused("--index", str(zoo), "--port", "70000")[0] == 2
    status, error = refused("--index", str(zoo), "--unknown")
    assert status == 2
    assert "--unknown" in error


@pytest.mark.real
@pytest.mark.slow
def test_ready_with_a_real_encoder(real_zoo: tuple[Path, set[int]], tmp_path: Path) -> None:
    folder, _ = real_zoo
    begun = time.monotonic()
    with serving(folder, tmp_path / "errors", "--names", "no") as served:
        ready_s = time.monotonic() - begun
        times = psutil.Process(served.process.pid).cpu_times()
        worked_s = times.user + times.system
        assert "libtorch" in libraries_of(served)
        answer = ask(served.url, "golden retriever", k=3)
        assert answer.status_code == 200
        expected = Searcher(Index(folder)).search(SearchRequest(("golden retriever",), 3)).to_json()
        expected = json.loads(json.dumps(expected))
        assert {**answer.json(), "seconds": 0} == {**expected, "seconds": 0}
        begun = time.monotonic()
        assert served.end() == 0
        assert time.monotonic() - begun < 5
    # Of the processor's time whatever else the machine does; of the clock's where it does little else.
    assert worked_s < 20, f"ready after {worked_s:.1f} s of work"
    if os.getloadavg()[0] < len(os.sched_getaffinity(0)):
        assert ready_s < 20, f"ready after {ready_s:.1f} s"
