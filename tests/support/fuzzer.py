"""A small deterministic fuzzer of the HTTP service: malformed requests as bytes, and what is wrong with an answer.

Case i depends on the seed and i alone, so ``case(i, seed)`` makes the request again that a report names.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from query.api.errors import ProblemKind
from tests.support.fuzz_requests import MAKERS

PROBLEM_TYPES = {kind.type: kind.status for kind in ProblemKind}
NO_HTTP = b"Invalid HTTP request received."
"""What uvicorn answers, in plain text, to what is no HTTP: there was no request for the service."""

DETAIL_CHARACTERS = 1_000
TIMEOUT_S, PATIENCE_S = 40.0, 0.1


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        kind: Which maker made it.
        raw: What is sent.
        framing: Whether its HTTP is broken: then the connection may be closed without an answer.
    """

    kind: str
    raw: bytes
    framing: bool = False


@dataclass(frozen=True)
class Reply:
    """One answer; status 0 where the connection was closed without one, not whole where it was closed within."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True


def case(number: int, seed: int) -> Case:
    """The case of this number."""
    rng = random.Random(f"{seed}-{number}")
    kinds = list(MAKERS)
    kind = rng.choices(kinds, [MAKERS[kind][0] for kind in kinds])[0]
    made = MAKERS[kind][1](rng)
    return Case(kind, made, kind == "framing")


def send(port: int, request: Case) -> Reply:
    """Sends a case on a connection of its own and reads the answer; our half is closed where none comes."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        with contextlib.suppress(OSError):  # it may answer and hang up before it has everything
            connection.sendall(request.raw)
        if request.framing:
            connection.settimeout(PATIENCE_S)
        while True:
            try:
                part = connection.recv(65_536)
            except TimeoutError:
                if not request.framing or connection.gettimeout() == TIMEOUT_S:
                    raise
                connection.settimeout(TIMEOUT_S)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)  # it waits for what will not come
                continue
            except ConnectionError:
                part = b""
            received += part
            reply = parse(bytes(received))
            if not part or reply.whole or (reply.status and request.raw.startswith(b"HEAD ")):
                return reply


def parse(received: bytes) -> Reply:
    """The first answer in what came back that is not an interim one."""
    while True:
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end or not head.startswith(b"HTTP/1."):
            return Reply(0, {}, received, whole=False)
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if status >= 200:
            break
        received = rest
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0 if status in {204, 304} else 2**60))
    return Reply(status, headers, rest[:length], len(rest) >= length)


def fault(request: Case, reply: Reply, secrets: Sequence[str]) -> str | None:
    """What is wrong with an answer, None if nothing is.

    Args:
        request: What was sent.
        reply: What came back.
        secrets: Texts that no answer may contain, such as folders of the server.
    """
    if reply.status == 0:
        return None if request.framing and not reply.body else f"no answer: {reply.body[:100]!r}"
    if reply.status == 500:
        return f"500: {reply.body[:500]!r}"
    for secret in (*secrets, "Traceback", "root:x:", "/site-packages/"):
        if secret.encode() in reply.body or any(secret in value for value in reply.headers.values()):
            return f"{reply.status} shows {secret!r}: {reply.body[:500]!r}"
    if any("evil" in name for name in reply.headers):
        return f"a header was smuggled in: {reply.headers}"
    if reply.status < 400:
        return None if reply.status in {200, 202, 204, 206, 304} else f"status {reply.status}"
    return _fault_of_problem(request, reply)


def _fault_of_problem(request: Case, reply: Reply) -> str | None:
    media = reply.headers.get("content-type", "")
    if reply.status == 400 and reply.body == NO_HTTP:
        return None
    if media != "application/problem+json":
        return f"{reply.status} has the media type {media!r}: {reply.body[:200]!r}"
    if request.raw.startswith(b"HEAD ") and not reply.body:
        return None
    try:
        told = json.loads(reply.body)
    except ValueError:
        return f"{reply.status} is no JSON: {reply.body[:200]!r}"
    missing = {"type", "title", "status", "detail", "instance"} - {name for name, value in told.items() if value}
    wrong = PROBLEM_TYPES.get(told.get("type")) != reply.status or told.get("status") != reply.status
    if missing or wrong or len(told["detail"]) > DETAIL_CHARACTERS or "\n" in told["detail"]:
        return f"{reply.status} is told as {reply.body[:500]!r}"
    return None
