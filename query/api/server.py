"""The server: listens, says when it is ready, and ends without failing a request.

The first SIGINT or SIGTERM makes ``/readyz`` say no and lets the requests that are being answered end; meanwhile others
are still answered. Then nothing more is accepted, and the process ends with status 0, in any case before 10 seconds are
over. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import InputError
from indexers.crawl.log import logging_to
from query.api.app import create_app
from query.api.errors import LOGGER, ApiError, ProblemKind, problem_response, retry_after
from query.api.protocol import Connection, room_for_connections
from query.api.service import LoadEncoder, Service
from query.api.settings import Settings

log = logging.getLogger(LOGGER)

Tell = Callable[[str], None]
"""Tells whoever started the server something, in one line."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_CLOSING_S = 0.3  # at least so long requests that came while others ended may take
_SPARE_S = 0.7  # between the end of draining and the end by force
_BACKLOG = 2048


def serve(settings: Settings, tell: Tell, load_encoder: LoadEncoder | None = None) -> None:
    """Serves an index until a signal ends it, and with it the process, with status 0.

    Args:
        settings: How.
        tell: Told where it listens and when it is ready.
        load_encoder: Another way to come by the encoder.

    Raises:
        InputError: The settings make no sense, or the address cannot be listened on.
        IndexUnusableError: There is no index, or it cannot be opened.
    """
    settings.check_exposure()
    if threading.current_thread() is threading.main_thread():
        # The command lets a closed pipe end it, as `head` expects; here a client that hangs up would.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with _logging(settings.log_format), ExitStack() as open_sockets:
        listeners = [open_sockets.enter_context(one) for one in bind(settings.host, settings.port)]
        app = create_app(settings, load_encoder)
        server = Server(app, app.state.service, listeners, tell)
        server.run(listeners)
    if server.should_exit:
        # Not by way of the interpreter's end: it waits for threads that scan, and takes the interpreter from under a
        # thread that is in the middle of a model, which ends in a crash.
        _leave(0)


@contextmanager
def _logging(form: Literal["text", "json"]) -> Iterator[None]:
    """Writes the service's log to standard error, and keeps out of it what a stranger's broken request would put there.

    Args:
        form: As the crawl's log has it.
    """
    ours = [logging.getLogger(name) for name in (LOGGER, "uvicorn.error")]
    quiet = [logging.getLogger(name) for name in ("uvicorn.error", "python_multipart", "PIL")]
    before = [(logger, logger.level, logger.propagate) for logger in (*ours, *quiet)]
    with logging_to(form) as lines, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        (handler,) = lines.handlers
        for logger in ours:
            logger.addHandler(handler)
            logger.propagate = False  # libraries that are loaded later give the root logger a format of theirs
            logger.setLevel(logging.INFO)
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level, propagate in before:
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to an address, not yet listening; one for each address that a name has.

    Args:
        host: An address or a name.
        port: 0 for a free one.

    Raises:
        InputError: That is not possible.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: there is no such address ({getattr(error, 'strerror', error)})") from error
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            one = socket.socket(family, kind, protocol)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], bound[0].getsockname()[1] if port == 0 and len(bound) > 1 else port, *address[2:]))
            one.setblocking(False)
        except OSError as error:
            if error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL} and len(found) > 1:
                continue  # a name may have an address of a kind that this machine does not speak
            for other in bound:
                other.close()
            raise InputError(_not_bound(host, port, error)) from error
    return [one for one in bound if one.getsockname()[1]]


def _not_bound(host: str, port: int, error: OSError) -> str:
    where = f"--host {host} --port {port}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where}: something listens there already: end it, or choose another port (0 takes a free one)"
        case errno.EACCES:
            return f"{where}: this user may not listen on the port: choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"{where}: this machine does not have the address"
    return f"{where}: cannot be listened on: {error.strerror or error}"


class Server(uvicorn.Server):
    """Uvicorn with another start and another end.

    Args:
        app: What is served.
        service: Behind it.
        listeners: Bound sockets.
        tell: See ``serve``.
    """

    def __init__(self, app: FastAPI, service: Service, listeners: Sequence[socket.socket], tell: Tell) -> None:
        super().__init__(
            uvicorn.Config(
                _TellsTheEnd(app),
                http=Connection.limited_to(room_for_connections()),
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
            )
        )
        self._service = service
        self._addresses = tuple(_url(listener) for listener in listeners)
        self._tell = tell
        self._begun = time.monotonic()
        self._deadline = float("inf")
        self._telling: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._tell(f"{' '.join(self._addresses)} {self._service.told()}")
        self._telling = asyncio.create_task(self._tell_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets what is being answered end, then closes."""
        if self._telling:
            self._telling.cancel()
        begun = list(self.server_state.tasks)
        drained = asyncio.create_task(self._service.drain())
        if begun:
            await asyncio.wait(begun, timeout=max(0.0, self._deadline - time.monotonic()))
        left_s = max(_CLOSING_S, self._deadline - time.monotonic())
        self.config.timeout_graceful_shutdown = left_s  # type: ignore[assignment]  # asyncio takes fractions, too
        await super().shutdown(sockets)
        await drained

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end, or ends at once."""
        if self.should_exit:
            _leave(128 + sig)
        self.should_exit = True
        drain_s = self._service.settings.drain_s
        self._deadline = time.monotonic() + drain_s
        # The loop or a thread may hang; a signal that nobody obeys is worse than a request that fails.
        _leave_after(drain_s + _SPARE_S)
        self._service.end()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listens to signals; uvicorn would raise them again at the end, and the status would not be 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in SIGNALS}
        try:
            yield
        finally:
            if not self.should_exit:
                for one, handler in before.items():
                    signal.signal(one, handler)

    async def _tell_ready(self) -> None:
        await self._service.until_ready()
        self._tell(f"ready after {time.monotonic() - self._begun:.1f} s")


class _TellsTheEnd:
    """Answers requests that are cancelled, because the time for them to end is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except asyncio.CancelledError:
            if started or scope["type"] != "http":
                raise
            headers = {**retry_after(_SPARE_S), "Connection": "close"}
            error = ApiError(ProblemKind.BUSY, "the service is ending: ask again in a moment", headers=headers)
            await problem_response(error.problem)(scope, receive, send)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _leave, (0,))
    timer.daemon = True
    timer.start()


def _leave(status: int) -> None:
    """Ends the process now."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
