"""The HTTP service over small indexes: within the test's process, or as a server that really listens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from engine.descriptors import FloatArray
from engine.index import Index
from query.api import Settings, create_app
from tests.support.small_index import PretendEncoder, make_filled_index

START_S = 90.0
"""A machine with much else to do takes its time."""

PROGRAM = (sys.executable, "-c", "from query.cli.main import main; main()")
"""The command of this checkout."""

SLOW_PROGRAM = (sys.executable, "-m", "tests.support.service")
"""The same with ``SlowEncoder``."""


class SlowEncoder(PretendEncoder):
    """Takes as many seconds as a text says: ``wait 1.5 s``."""

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        for text in texts:
            if text.startswith("wait "):
                time.sleep(float(text.split()[1]))
        return super().encode_texts(texts, templates)


def small_settings(index: Path, **given: Any) -> Settings:
    """Settings for tests: everything quick, nothing from the environment's defaults that takes time."""
    return Settings(**{"index": index, "preload": False, "names": False, "refresh_s": 0.05, "drain_s": 2.0, **given})


def small_app(folder: Path, encoder: Any = None, **given: Any) -> FastAPI:
    """An app with the pretend encoder; the small filled index is made in the folder if nothing is there.

    Args:
        folder: Of the index.
        encoder: Another encoder with the face of ``PretendEncoder``.
        **given: Settings.
    """
    if not (folder / "manifest.json").exists():
        make_filled_index(folder)
    return create_app(small_settings(folder, **given), load_encoder=lambda: encoder or PretendEncoder())


@dataclass
class Asked:
    """An app with its lifespan running and a loop in another thread, asked without a socket.

    ``get``, ``post`` and ``request`` block; ``client`` is for tests that run in the same loop (``run``).
    """

    app: FastAPI
    loop: asyncio.AbstractEventLoop
    client: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)

    def run(self, coroutine: Any, timeout_s: float = 30.0) -> Any:
        """Runs a coroutine in the app's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> httpx.Response:
        return self.request("POST", path, **({"json": body} if body is not None else {}), **options)


@contextmanager
def asking(app: FastAPI, base_url: str = "http://127.0.0.1") -> Iterator[Asked]:
    """An app in this process, started, and asked as over HTTP; an error that it raises is its answer."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(START_S)

    context = app.router.lifespan_context(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url=base_url, timeout=30)
    run(context.__aenter__())
    try:
        yield Asked(app, loop, client)
    finally:
        run(client.aclose())
        run(context.__aexit__(None, None, None))
        run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """A real server in a thread.

    Yields:
        Its address, ``http://127.0.0.1:PORT``.
    """
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        _wait(lambda: server.started, "the server did not start")
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_S)


@dataclass
class Served:
    """A process of ``hubhound serve``."""

    process: subprocess.Popen[str]
    url: str
    errors: Path

    def told(self) -> str:
        """What it wrote to standard error so far."""
        return self.errors.read_text()

    def end(self, sign: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        """Signals it and waits; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(timeout_s)


@contextmanager
def serving(
    index: Path, errors: Path, *options: str, ready: bool = True, program: tuple[str, ...] = ()
) -> Iterator[Served]:
    """A real process that serves an index on a free port, killed at the end if it still runs.

    Args:
        index: The index.
        errors: File for its standard error.
        *options: Of ``hubhound serve``.
        ready: Wait until ``/readyz`` says so.
        program: What is run instead of the ``hubhound`` of this checkout, with the same arguments.
    """
    port = free_port()
    run = program or PROGRAM
    command = [*run, "serve", "--index", str(index), "--port", str(port), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBHOUND_SERVE_")}
    with errors.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
    served = Served(process, f"http://127.0.0.1:{port}", errors)
    try:
        _wait(lambda: process.poll() is not None or _says(served.url, ready), "the service did not start", errors)
        yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _says(url: str, ready: bool) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/{'readyz' if ready else 'healthz'}", timeout=1).status_code == 200
    return False


def _wait(condition: Any, complaint: str, errors: Path | None = None) -> None:
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until, f"{complaint}: {errors.read_text() if errors else ''}"
        time.sleep(0.02)


if __name__ == "__main__":
    from query.cli.main import main

    Index.load_encoder = lambda self, device="cpu": SlowEncoder()  # type: ignore[assignment, method-assign, return-value]
    main()
