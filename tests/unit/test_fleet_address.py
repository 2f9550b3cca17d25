"""Addresses that are no Ray cluster's, and options that contradict each other: one line, within seconds."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from engine.errors import HubhoundError, InputError
from indexers.crawl.fleet import address
from query.cli.main import run
from tests.support.small_index import make_index


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out before Ray is asked needs no Ray."""
    monkeypatch.setattr(address, "find_spec", lambda name: object())


@pytest.fixture
def silent() -> Iterator[str]:
    """Somebody who takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize("text", ["", "host", "host:", "host:0", "host:70000", "http://host:6379", "a b:1", "local"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not the address of a Ray cluster: HOST:PORT"):
        address.check(text)


@pytest.mark.usefixtures("with_ray")
def test_the_address_of_rays_client_is_refused() -> None:
    with pytest.raises(InputError, match="on a node of the cluster"):
        address.check("ray://host:10001")


@pytest.mark.usefixtures("with_ray")
def test_nobody_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(HubhoundError, match=rf"^there is no Ray cluster at 127\.0\.0\.1:{port}: connection refused; "):
        address.check(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 2


@pytest.mark.usefixtures("with_ray")
def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(HubhoundError, match=r"^there is no Ray cluster at no-such-host\.invalid:6379: "):
        address.check("no-such-host.invalid:6379")


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'hubhound\[fleet\]'"):
        address.check("127.0.0.1:6379")


@pytest.mark.usefixtures("with_ray")
def test_somebody_who_takes_the_connection_and_says_nothing(silent: str) -> None:
    told: list[tuple[float, str]] = []
    began = time.monotonic()
    with pytest.raises(
        HubhoundError, match=r"^no Ray cluster can be joined at .*: it takes the connection, and has not"
    ):
        address.check(silent, lambda line: told.append((time.monotonic() - began, line)))
    assert time.monotonic() - began < 10
    ((after_s, line),) = told
    assert after_s < 4
    assert line == f"waiting for the Ray cluster at {silent} to let us in, up to 20 s"


@pytest.mark.usefixtures("with_ray")
def test_a_web_server_is_not_ray() -> None:
    began = time.monotonic()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(HubhoundError, match=r": it answers, but not as Ray does \(this machine must be one of"):
                address.check(f"127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("with_ray")
def test_another_server_that_speaks_grpc_is_not_ray() -> None:
    """Qdrant, for instance: Ray itself would try for a long time."""
    began = time.monotonic()
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(HubhoundError, match=r": it answers, but not as Ray does "):
            address.check(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('print(\'{"address": "10.0.0.1:6379"}\')', None),
        ('print(\'{"error": "Version mismatch: 2.60 and 2.9"}\')', "Version mismatch: 2.60 and 2.9"),
        ("import os; os.abort()", "not as Ray does"),
    ],
    ids=["joined", "refused", "aborted"],
)
def test_what_ray_says_from_a_process_of_its_own(
    said: str, error: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray ends the process in some cases; here a program in its place does."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{said}\n")
    program.chmod(0o700)
    monkeypatch.setattr(address, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", str(program))
    if error is None:
        assert address.check("auto") == "10.0.0.1:6379"
        return
    with pytest.raises(HubhoundError, match=error) as raised:
        address.check("auto")
    assert "same versions of Ray and Python" in str(raised.value)


# --- the command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray-workers", "2"], "--ray-workers is for a Ray cluster: it needs --ray"),
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker is for a Ray cluster"),
        (["--cpus-per-worker", "2"], "--cpus-per-worker is for a Ray cluster"),
        (["--ray", "h:1", "--workers", "2"], "with --ray use --ray-workers"),
        (["--ray", "h:1", "--keep-files"], "--keep-files"),
        (["--ray", "h:1", "--device", "cuda"], "needs --gpus-per-worker"),
        (["--ray", "h:1", "--ray-workers", "0"], "neither a number of workers nor auto"),
        (["--ray", "h:1", "--cpus-per-worker", "0"], "cpus-per-worker"),
        (["--ray", "h:1", "--gpus-per-worker", "-1"], "gpus-per-worker"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["crawl", "--index", "zoo", *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("with_ray")
def test_a_cluster_that_is_not_there_is_found_out_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_index(tmp_path / "zoo")
    before = sorted(path.name for path in (tmp_path / "zoo").iterdir())
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    arguments = ["crawl", "--index", str(tmp_path / "zoo"), "--source", str(tmp_path), "--ray", f"127.0.0.1:{port}"]
    assert run(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "there is no Ray cluster at" in line
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == before
