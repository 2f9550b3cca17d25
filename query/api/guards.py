"""What stands before the app: every request passes it, and every answer leaves through it.

In this order: an id for the request, headers that make browsers careful, the host name, the page's origin, CORS, the
API key, the rate, the size of the body, a slot among the requests in flight, the time that it may take.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import one_line
from query.api.admission import Body, Slots
from query.api.errors import LOGGER, ApiError, Problem, ProblemKind, problem_response, retry_after, to_problem
from query.api.keys import ApiKeys
from query.api.metrics import REFUSED, UNMATCHED, Metrics, Rejection
from query.api.origins import Hosts, Origins
from query.api.rates import RateLimit

if TYPE_CHECKING:
    from query.api.settings import Settings

GONE = 499
"""Status that is counted and logged where the client went away before it was answered."""

LINGER_S = 2.0
"""So long a client that was refused may go on sending before its connection is closed, in seconds."""

THUMBNAIL_COST = 0.05
"""Of a request for a probe's image, in requests: a page of results shows a hundred, which browsers then keep."""

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN = frozenset({"/", "/healthz", "/readyz", "/favicon.ico"})
_OPEN_BELOW = "/web/"
_API = "/v1/"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_THUMBNAIL = re.compile(r"/v1/probes/[^/]+/image")
_REASONS: dict[str, Rejection] = {
    ProblemKind.UNKNOWN_HOST.type: "host",
    ProblemKind.FORBIDDEN_ORIGIN.type: "origin",
    ProblemKind.UNAUTHORISED.type: "unauthorised",
    ProblemKind.RATE_LIMITED.type: "rate",
    ProblemKind.TOO_LARGE.type: "size",
    ProblemKind.BUSY.type: "busy",
    ProblemKind.TIMEOUT.type: "timeout",
}

log = logging.getLogger(LOGGER)


class Guards:
    """ASGI middleware around the whole app.

    What it knows of a request is in ``scope["state"]``: ``request_id``, and ``key``, the name of the API key, None
    without keys.

    Args:
        app: What is guarded.
        settings: For the limits.
        metrics: Where requests are counted.
        keys: Who may ask; by default those of ``settings.api_key_file``, and without one everybody.

    Raises:
        InputError: The file of keys cannot be used, or an origin or a host name is none.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, keys: ApiKeys | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = ApiKeys(settings.api_key_file) if keys is None and settings.api_key_file else keys
        self._rates = RateLimit(settings.rate_limit)
        self._loopback = settings.loopback
        self._slots = Slots(settings.max_in_flight, metrics.in_flight)
        self._max_body_bytes = int(settings.max_body_mb * 1e6)
        self._timeout_s = settings.request_timeout_s
        self._hosts = Hosts(settings.host, settings.loopback, settings.allowed_host)
        self._origins = Origins(settings.cors_origin)
        self._cors = CORSMiddleware(
            self._admit,
            allow_origins=self._origins.allowed,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
            expose_headers=("X-Request-ID", "Retry-After", "Location"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # there are none here, and they would pass by every guard
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["key"] = None
        status = GONE

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-ID"] = request_id
                for name, value in _SECURITY.items():
                    answered.setdefault(name, value)
                if scope["path"].startswith(_API):
                    answered.setdefault("Cache-Control", "no-store")
                # Also where nobody allowed asks: what a cache keeps of that answer must not be given to a page that is.
                if self._origins.allowed and "origin" not in answered.get("Vary", "").lower():
                    answered.add_vary_header("Origin")
            await send(message)

        try:
            try:
                self._hosts.check(headers)
                self._origins.check(scope["method"], headers)
            except ApiError as error:
                await self._refuse(error.problem, scope, receive, tell)
            else:
                inner = self._cors if self._origins.may_read(headers) else self._admit
                await inner(scope, receive, tell)
        finally:
            self._count(scope, GONE if state.get("gone") else status, time.perf_counter() - begun)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        state = scope["state"]
        body = Body(receive, headers, self._max_body_bytes)
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            if body.over and not started:
                return  # whatever the app makes of a body that ended early, the answer is ours
            started = True
            await send(message)

        try:
            client = self._enter(scope)
            body.check_head()
            with self._slots.slot(client) if scope["path"].startswith(_API) else nullcontext():
                await self._in_time(scope, body, tell)
            if body.over and not started:
                raise body.too_large
        except Exception as raised:
            error = body.too_large if body.over else raised
            if started:  # it cannot be told any more; an answer that does not end is one that failed
                if not isinstance(error, ApiError) and "problem" not in state:
                    to_problem(error, request_id=state["request_id"])
            elif not body.gone:
                linger = None if body.whole or "expect" in headers else body
                problem = to_problem(error, request_id=state["request_id"])
                await self._refuse(problem, scope, receive, send, linger)
        finally:
            if body.gone:
                state["gone"] = True

    def _enter(self, scope: Scope) -> str | None:
        """Lets those in who have a key and have not asked too often.

        Returns:
            The name of the key, or the address; None where clients are not told apart.
        """
        path = scope["path"]
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return None
        if self._keys is not None:
            name = self._keys.admit([value for key, value in scope["headers"] if key == b"authorization"])
            scope["state"]["key"] = name
        elif self._loopback:  # all who ask are one address here: somebody alone, or everybody behind a proxy
            return None
        else:
            name = (scope.get("client") or ("",))[0]
        wait_s = self._rates.take(name, THUMBNAIL_COST if _THUMBNAIL.fullmatch(path) else 1.0)
        if wait_s:
            raise ApiError(
                ProblemKind.RATE_LIMITED,
                "more requests came than are allowed: come back when Retry-After says",
                headers=retry_after(wait_s),
            )
        return name

    async def _in_time(self, scope: Scope, body: Body, send: Send) -> None:
        """Lets the app answer; at the timeout its task is cancelled, and with it the reading of a slow body."""
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                await self._app(scope, body.receive, send)
        except TimeoutError:
            if not patience.expired():
                raise
            what = "answering took" if body.whole else "the body was not whole after"
            raise ApiError(
                ProblemKind.TIMEOUT,
                f"{what} {self._timeout_s:g} s, which is all that a request may take: ask for less at once",
                headers=None if body.whole else {"Connection": "close"},
            ) from None

    async def _refuse(
        self, problem: Problem, scope: Scope, receive: Receive, send: Send, linger: Body | None = None
    ) -> None:
        """Tells a problem.

        Args:
            problem: To tell.
            scope: Of the request.
            receive: Of the request.
            send: Of the request.
            linger: A body that the client is still sending, where the connection ends with the answer: closed at
                once, the answer could be lost on its way.
        """
        reason = _REASONS.get(problem.type)
        if reason:
            self._metrics.rejected(reason)
        response = problem_response(problem, scope["state"]["request_id"])
        if linger is None or response.headers.get("connection") != "close":
            await response(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                await linger.drain()
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            route = UNMATCHED if status in {404, 405} else REFUSED
        self._metrics.request(route, scope["method"], status, seconds)
        if log.isEnabledFor(logging.INFO):
            state = scope["state"]
            facts = {
                "method": one_line(scope["method"], 20),
                "path": one_line(scope["path"], 200),
                "status": status,
                "ms": round(1000 * seconds, 2),
                "key": state["key"],
                "request": state["request_id"],
            }
            log.info("request", extra={"facts": facts})
