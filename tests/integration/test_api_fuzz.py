"""Malformed requests against a real process of the service.

The suite sends 1,000. ``HUBHOUND_FUZZ_CASES=10000 .venv/bin/python -m pytest tests/integration/test_api_fuzz.py -s``
sends so many, shows what they were answered, and also holds that the memory of the service stays flat.
``HUBHOUND_FUZZ_SEED`` draws others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import fuzz_requests, fuzzer
from tests.support.pretend_hubhound import PROGRAM
from tests.support.service import Served, serving
from tests.support.small_index import make_filled_index

CASES = int(os.environ.get("HUBHOUND_FUZZ_CASES", "1000"))
SEED = int(os.environ.get("HUBHOUND_FUZZ_SEED", "0"))
SETTLED, GROWTH_MB = 2_000, 20
OPTIONS = ("--rate-limit", "0", "--names", "no", "--job-grace-s", "0.2", "--request-timeout-s", "10")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A process with the pretend encoder, and a folder for temporary files of its own."""
    make_filled_index(tmp_path / "zoo")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with serving(tmp_path / "zoo", tmp_path / "log", *OPTIONS, program=PROGRAM) as running:
        yield running


def answer(served: Served) -> dict[str, object]:
    """What a plain search is answered."""
    asked = httpx.post(f"{served.url}/v1/search", json={"concepts": ["cat"], "k": 3, "explain": True})
    assert asked.status_code == 200, asked.text
    return {name: value for name, value in asked.json().items() if name != "seconds"}


def report(statuses: Counter[tuple[str, int]], types: Counter[str], resident_mb: list[int]) -> str:
    """For people, with ``pytest -s``."""
    lines = [f"\n{CASES:,} cases, answers by kind and status:"]
    for kind in fuzz_requests.MAKERS:
        counts = {status: count for (of, status), count in sorted(statuses.items()) if of == kind}
        lines.append(f"  {kind:10} " + ", ".join(f"{status or 'none'}: {count}" for status, count in counts.items()))
    lines.append("problems: " + ", ".join(f"{kind.rpartition(':')[2]} {n}" for kind, n in types.most_common()))
    return "\n".join([*lines, f"resident memory, every 500 cases: {resident_mb} MB\n"])


@pytest.mark.slow
def test_malformed_requests_are_answered_with_problems(served: Served, tmp_path: Path) -> None:
    expected = answer(served)
    assert expected["searched"] == 14
    port = int(served.url.rpartition(":")[2])
    process = psutil.Process(served.process.pid)
    secrets = (str(tmp_path), "scratch", "PretendEncoder")
    statuses: Counter[tuple[str, int]] = Counter()
    types: Counter[str] = Counter()
    faults: list[str] = []
    resident_mb: list[int] = []
    for number in range(CASES):
        request = fuzzer.case(number, SEED)
        try:
            reply = fuzzer.send(port, request)
        except OSError as error:  # also TimeoutError
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.process.wait(5)
            status = served.process.poll()
            pytest.fail(f"case {number}: {error!r}, the process's status is {status}: {served.told()[-3_000:]}")
        statuses[request.kind, reply.status] += 1
        types.update(kind for kind in fuzzer.PROBLEM_TYPES if f'"{kind}"'.encode() in reply.body)
        found = fuzzer.fault(request, reply, secrets)
        if found:
            faults.append(f"case {number}, {request.kind}: {found}\n    {request.raw[:300]!r}")
        if number % 500 == 499:
            resident_mb.append(process.memory_info().rss >> 20)
    sys.stdout.write(report(statuses, types, resident_mb))
    assert not faults, f"{len(faults)} of {CASES}:\n" + "\n".join(faults[:10])
    assert answer(served) == expected
    assert served.process.poll() is None
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == []
    assert "Traceback" not in served.told()
    # Some get through, or every answer would come from one gate.
    assert all(statuses[kind, 200] for kind in ("json", "multipart", "path", "header"))
    assert len(types) >= 8
    if CASES > SETTLED:
        settled = resident_mb[SETTLED // 500 - 1 :]
        assert max(settled) - settled[0] < GROWTH_MB, resident_mb


def test_clients_that_hang_up_do_not_end_the_service(served: Served) -> None:
    """Answers to many requests at once find the connection closed: writing to it must not be the process's end."""
    port = int(served.url.rpartition(":")[2])
    quick, slow = (f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for path in ("/healthz", "/v1/index"))
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(3 * quick + slow)
            assert connection.recv(65_536)
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}
    assert served.process.poll() is None


def test_a_case_depends_on_its_number_and_the_seed_alone() -> None:
    cases = [fuzzer.case(number, 7) for number in range(40)]
    assert fuzzer.case(31, 7) == cases[31]
    assert fuzzer.case(31, 8) != cases[31]
    assert len({case.kind for case in cases}) > 3


def test_the_fuzzer_sees_what_is_wrong_with_an_answer() -> None:
    request = fuzzer.Case("json", b"GET / HTTP/1.1\r\n\r\n")
    good = b'{"type": "urn:hubhound:problem:not-found", "title": "t", "status": 404, "detail": "d", "instance": "i"}'
    problem = {"content-type": "application/problem+json"}

    def fault(status: int, headers: dict[str, str], body: bytes) -> str | None:
        return fuzzer.fault(request, fuzzer.Reply(status, headers, body), ("/srv/zoo",))

    assert fault(404, problem, good) is None
    assert fault(200, {}, b"anything") is None
    assert fault(500, problem, good) is not None
    assert fault(0, {}, b"") is not None
    assert fault(404, {"content-type": "text/plain"}, good) is not None
    assert fault(404, problem, b"not JSON") is not None
    assert fault(400, problem, good) is not None
    assert fault(404, problem, good.replace(b"not-found", b"made-up")) is not None
    assert fault(404, problem, good.replace(b'"d"', b'""')) is not None
    assert fault(200, {}, b"it lies in /srv/zoo") is not None
    assert fault(200, {"x-evil": "1"}, b"") is not None
    assert fuzzer.parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcd").body == b"ab"
    assert not fuzzer.parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcd").whole
