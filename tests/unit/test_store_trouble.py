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
        (answer(403, "Forbidden: Global manage access is required"), Kind.FORBIDDEN, False, False),
        (ResourceExhaustedResponse("slow down", 7), Kind.BUSY, True, False),
        (ResponseHandlingException(httpx.ConnectError("[Errno 111] Connection refused")), Kind.SILENT, True, False),
        (ResponseHandlingException(httpx.RemoteProtocolError("peer closed")), Kind.SILENT, True, False),
        (ResponseHandlingException(httpx.RemoteProtocolError("illegal request line")), Kind.FOREIGN, False, False),
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


CONNECTED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:6334: "
REFUSED = ("UNAVAILABLE", CONNECTED + "Failed to connect to remote host: Connection refused")


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
        (*REFUSED, Kind.SILENT, True, False),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", Kind.SILENT, True, False),
        ("UNAVAILABLE", "Socket closed", Kind.SILENT, True, False),
        ("UNAVAILABLE", "GOAWAY received; Error code: 0; Debug Text: max_age", Kind.SILENT, True, False),
        ("UNAVAILABLE", "Shard is not active", Kind.BUSY, True, False),
        ("UNAVAILABLE", "Received http2 header with status: 502", Kind.BUSY, True, False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Kind.SILENT, True, True),
        ("DEADLINE_EXCEEDED", "Timeout error: Operation 'Update' timed out after 5 seconds", Kind.BUSY, True, True),
        ("RESOURCE_EXHAUSTED", "Rate limiting exceeded: slow down", Kind.BUSY, True, False),
        ("RESOURCE_EXHAUSTED", "Sent message larger than max (9 vs. 8)", Kind.REFUSED, False, True),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 8)", Kind.REFUSED, False, True),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 9 bytes", Kind.REFUSED, False, True),
        ("UNKNOWN", "Received http2 header with status: 413", Kind.REFUSED, False, True),
        ("CANCELLED", "Received RST_STREAM with error code 8", Kind.SILENT, True, False),
        ("INTERNAL", "Received RST_STREAM with error code 2", Kind.SILENT, True, False),
        ("UNKNOWN", "Stream removed", Kind.SILENT, True, False),
        ("INTERNAL", "Service internal error: Waiting for consensus operation commit failed", Kind.BUSY, True, False),
        ("INTERNAL", "Service internal error: task 1 timed out", Kind.BUSY, True, True),
        ("INTERNAL", "Service internal error: index out of bounds", Kind.REFUSED, False, False),
        ("INTERNAL", "Exception deserializing response!", Kind.FOREIGN, False, False),
        ("UNAUTHENTICATED", "Invalid API key or JWT", Kind.KEY, False, False),
        ("PERMISSION_DENIED", "Forbidden: Global manage access is required", Kind.FORBIDDEN, False, False),
        ("INTERNAL", "Service internal error: No space left on device: WAL", Kind.FULL, False, False),
        ("RESOURCE_EXHAUSTED", "Service internal error: No space left on device: WAL", Kind.FULL, False, False),
        ("UNIMPLEMENTED", "", Kind.FOREIGN, False, False),
        ("UNAVAILABLE", CONNECTED + "Failed parsing HTTP/2 (Expected SETTINGS frame)", Kind.FOREIGN, False, False),
        ("UNAVAILABLE", CONNECTED + "Tls handshake failed: WRONG_VERSION_NUMBER", Kind.FOREIGN, False, False),
        ("UNAVAILABLE", CONNECTED + "Tls handshake failed: CERTIFICATE_VERIFY_FAILED", Kind.TRUST, False, False),
        ("UNAVAILABLE", CONNECTED + "Hostname Verification Check failed.", Kind.TRUST, False, False),
        ("INVALID_ARGUMENT", "Wrong input: no\nreally", Kind.REFUSED, False, False),
    ],
)
def test_failures_over_grpc_are_told_apart(code: str, details: str, kind: Kind, again: bool, smaller: bool) -> None:
    trouble = trouble_of(RpcError(code, details))
    assert (trouble.kind, trouble.again, trouble.smaller) == (kind, again, smaller)
    assert "\n" not in trouble.text and code in trouble.text


def test_a_host_that_there_is_not_over_grpc() -> None:
    asked = "errors resolving qdrant.invalid:6334: [field:hostname lookup error:address lookup failed for q:6334: {}]"
    assert trouble_of(RpcError("UNAVAILABLE", asked.format("Domain name not found"))).nowhere
    assert trouble_of(RpcError("UNAVAILABLE", asked.format("DNS server returned answer with no data"))).nowhere
    assert not trouble_of(RpcError("UNAVAILABLE", asked.format("Could not contact DNS servers"))).nowhere
    assert not trouble_of(RpcError(*REFUSED)).nowhere


def test_a_key_that_may_not_write_is_told_from_a_wrong_one() -> None:
    for error in (answer(403, "Forbidden: x"), RpcError("PERMISSION_DENIED", "Forbidden: x")):
        trouble = trouble_of(error)
        message = trouble.message("write to", "zoo", "http://h:6333", True)
        assert message.startswith("the API key may not write to the index zoo at http://h:6333 (")
        assert "Forbidden: x" in message and "HUBHOUND_QDRANT_API_KEY_FILE to one that may" in message
        assert "wants an API key" in trouble.message("write to", "zoo", "http://h:6333", False)


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
