"""What the failures of a server mean: whether to try again, and what a person is told."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from engine.store.trouble import Kind, trouble_of


def answer(status: int, said: str | bytes = "", **headers: str) -> UnexpectedResponse:
    body = said if isinstance(said, bytes) else json.dumps({"status": {"error": said}, "time": 0.1}).encode()
    return UnexpectedResponse(status, "Reason", body, httpx.Headers(headers))


@pytest.mark.parametrize(
    ("error", "kind", "again", "smaller"),
    [
        (answer(503, "Shard is not active"), Kind.BUSY, True, False),
        (answer(502, b"<html>bad gateway</html>"), Kind.BUSY, True, False),
        (answer(504, b""), Kind.BUSY, True, True),
        (answer(408, "Timeout error: Operation 'Update' timed out after 5 seconds"), Kind.BUSY, True, True),
        (answer(429, "Rate limit exceeded"), Kind.BUSY, True, False),
        (answer(500, "Service internal error: task 1 timed out"), Kind.BUSY, True, True),
        (answer(500, "Service internal error: index out of bounds"), Kind.REFUSED, False, False),
        (answer(500, b"<html>oops</html>"), Kind.REFUSED, False, False),
        (
            answer(500, "Service internal error: No space left on device: WAL buffer size exceeds"),
            Kind.FULL,
            False,
            False,
        ),
        (answer(500, "Service internal error: IO Error: x (os error 28)"), Kind.FULL, False, False),
        (answer(507, "full"), Kind.FULL, False, False),
        (answer(413, b"<html>too large</html>"), Kind.REFUSED, False, True),
        (
            answer(400, "Payload error: JSON payload (9 bytes) is larger than allowed (limit: 8 bytes)."),
            Kind.REFUSED,
            False,
            True,
        ),
        (answer(400, "Wrong input: Vector dimension error: expected dim: 4, got 3"), Kind.REFUSED, False, False),
        (answer(404, "Not found: Collection `x` doesn't exist!"), Kind.REFUSED, False, False),
        (answer(404, b"<html>nothing here</html>"), Kind.FOREIGN, False, False),
        (answer(401, b"Invalid API key or JWT"), Kind.KEY, False, False),
        (answer(403, "Forbidden: Global manage access is required"), Kind.KEY, False, False),
        (ResourceExhaustedResponse("slow down", 7), Kind.BUSY, True, False),
        (ResponseHandlingException(httpx.ConnectError("[Errno 111] Connection refused")), Kind.SILENT, True, False),
        (ResponseHandlingException(httpx.RemoteProtocolError("peer closed")), Kind.SILENT, True, False),
        (ResponseHandlingException(httpx.ReadTimeout("timed out")), Kind.SILENT, True, True),
        (ResponseHandlingException(httpx.WriteTimeout("timed out")), Kind.SILENT, True, True),
        (ResponseHandlingException(httpx.UnsupportedProtocol("ftp")), Kind.REFUSED, False, False),
        (ResponseHandlingException(ValueError("1 validation error\nfor Answer")), Kind.FOREIGN, False, False),
        (json.JSONDecodeError("Expecting value", "<", 0), Kind.FOREIGN, False, False),
        (ValueError("Collection x not found"), Kind.REFUSED, False, False),
        (KeyError(), Kind.REFUSED, False, False),
    ],
)
def test_failures_are_told_apart(error: Exception, kind: Kind, again: bool, smaller: bool) -> None:
    trouble = trouble_of(error)
    assert (trouble.kind, trouble.again, trouble.smaller) == (kind, again, smaller)
    for keyed in (False, True):
        message = trouble.message("read", "zoo", "http://host:6333", keyed)
        assert "\n" not in message and "http://host:6333" in message and len(message) < 700


class RpcError(Exception):
    """Has the face of what grpc raises."""

    def __init__(self, code: str, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> Any:
        return type("Code", (), {"name": self._code})()

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "details", "kind", "again", "smaller"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", Kind.SILENT, True, False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Kind.BUSY, True, True),
        ("RESOURCE_EXHAUSTED", "rate limit", Kind.BUSY, True, False),
        ("RESOURCE_EXHAUSTED", "Sent message larger than max (9 vs. 8)", Kind.REFUSED, False, True),
        ("UNAUTHENTICATED", "Invalid API key or JWT", Kind.KEY, False, False),
        ("PERMISSION_DENIED", "Forbidden", Kind.KEY, False, False),
        ("INTERNAL", "Service internal error: No space left on device: WAL", Kind.FULL, False, False),
        ("UNIMPLEMENTED", "", Kind.FOREIGN, False, False),
        ("INVALID_ARGUMENT", "Wrong input: no\nreally", Kind.REFUSED, False, False),
    ],
)
def test_failures_over_grpc_are_told_apart(code: str, details: str, kind: Kind, again: bool, smaller: bool) -> None:
    trouble = trouble_of(RpcError(code, details))
    assert (trouble.kind, trouble.again, trouble.smaller) == (kind, again, smaller)
    assert "\n" not in trouble.text and code in trouble.text


def test_what_the_server_asks_to_wait() -> None:
    assert trouble_of(ResourceExhaustedResponse("", 7)).after_s == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    earlier = format_datetime(datetime.now(UTC) - timedelta(seconds=60), usegmt=True)
    for value, seconds in (("12", 12), ("-3", 0), ("soon", 0), ("", 0), (earlier, 0)):
        assert trouble_of(answer(503, "busy", **{"retry-after": value})).after_s == seconds
    assert 50 < trouble_of(answer(503, "busy", **{"retry-after": later})).after_s <= 60


def test_certificates() -> None:
    def raised(cause: Exception) -> Exception:
        error = httpx.ConnectError(str(cause))
        error.__cause__ = cause
        return ResponseHandlingException(error)

    assert trouble_of(raised(ssl.SSLCertVerificationError("self-signed"))).kind is Kind.TRUST
    assert trouble_of(raised(ssl.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong"))).kind is Kind.FOREIGN
