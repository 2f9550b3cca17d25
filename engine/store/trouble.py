"""What a failed request to a server means: whether to try again, and what to tell a person."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import httpx
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from engine.errors import one_line

_PASSING = frozenset({408, 429, 502, 503, 504})
_PASSING_WORDS = ("timeout", "timed out", "unavailable", "not active", "no leader", "consensus", "transport error")
# 500 and these words is how Qdrant says that its disk is full, before the log is written and when optimising.
_FULL_WORDS = ("no space left on device", "not enough space", "os error 28", "disk quota exceeded")

# What gRPC says where it cannot reach a server, loses it, or a gateway answers in the server's place.
_UNREACHED = ("failed to connect", "errors resolving", "dns resolution failed", "lookup failed")
_NO_HOST = ("domain name not found", "answer with no data", "not found")
_LOST = ("stream", "goaway", "connection", "socket closed", "recvmsg", "sendmsg", "broken pipe")
_CLUSTER = ("shard", "replica", "not active", "no leader", "consensus", "http2 header with status")


class Kind(Enum):
    """What failed."""

    SILENT = "nobody answered"
    BUSY = "it answered that it cannot now"
    KEY = "it wants another API key"
    FORBIDDEN = "this API key may not do it"
    FOREIGN = "something that is not Qdrant answered"
    TRUST = "its certificate is not trusted"
    FULL = "its disk is full"
    REFUSED = "it will not do it"


@dataclass(frozen=True)
class Trouble:
    """What a failed request means.

    Attributes:
        kind: What failed.
        text: The detail, one line.
        again: The same request may work later.
        smaller: A request for less may work.
        unreached: There was no answer at all.
        nowhere: There is no such host.
        after_s: How long the server asks to wait, seconds; 0 if it does not say.
    """

    kind: Kind
    text: str
    again: bool = False
    smaller: bool = False
    unreached: bool = False
    nowhere: bool = False
    after_s: float = 0.0

    def message(self, doing: str, name: str, where: str, keyed: bool) -> str:
        """One line for a person.

        Args:
            doing: To read as "cannot DOING the index".
            name: Of the index.
            where: URL of the server.
            keyed: Whether an API key was sent.
        """
        server = f"the Qdrant server at {where}"
        key = (
            f"{server} refuses the API key ({self.text}): check HUBHOUND_QDRANT_API_KEY or HUBHOUND_QDRANT_API_KEY_FILE"
            if keyed
            else f"{server} wants an API key ({self.text}): set HUBHOUND_QDRANT_API_KEY or HUBHOUND_QDRANT_API_KEY_FILE"
        )
        forbidden = (
            f"the API key may not {doing} the index {name} at {where} ({self.text}): set HUBHOUND_QDRANT_API_KEY or "
            "HUBHOUND_QDRANT_API_KEY_FILE to one that may"
        )
        return {
            Kind.SILENT: f"{server} does not answer ({self.text}): is it running at that address?",
            Kind.BUSY: f"{server} cannot {doing} the index {name} now ({self.text}): try again later",
            Kind.KEY: key,
            Kind.FORBIDDEN: forbidden if keyed else key,
            Kind.FOREIGN: f"what answers at {where} is no Qdrant server of version 1.16 or newer ({self.text}): "
            "check host and port",
            Kind.TRUST: f"the certificate of {server} is not trusted ({self.text}): set HUBHOUND_QDRANT_CA to the "
            "PEM file of its authority",
            Kind.FULL: f"the disk of {server} is full ({self.text}): free some space there and run again",
            Kind.REFUSED: f"cannot {doing} the index {name} at {where}: {self.text}",
        }[self.kind]


def trouble_of(error: Exception) -> Trouble:
    """What an exception of the client means, over REST, over gRPC or in its local mode."""
    if isinstance(error, ResponseHandlingException):
        return _transport(error.source)
    if isinstance(error, UnexpectedResponse):
        return _answer(error)
    code = getattr(error, "code", None)
    if callable(code) and hasattr(error, "details"):  # grpc.RpcError, whose classes are not exported
        return _grpc(str(getattr(code(), "name", code())), one_line(str(error.details() or "")))
    text = one_line(str(error)) or type(error).__name__
    if isinstance(error, QdrantException):  # 429; the plain class, where Retry-After is no number of seconds
        return Trouble(Kind.BUSY, text, again=True, after_s=float(getattr(error, "retry_after_s", 0)))
    if _not_qdrants(error):
        return Trouble(Kind.FOREIGN, "its answer is not one of Qdrant's")
    return Trouble(Kind.REFUSED, text)


def _not_qdrants(error: Exception) -> bool:
    # The client parses with whichever of orjson, pydantic and json is there; all raise ValueErrors. Of an answer
    # without a result it says so by an assertion.
    known = isinstance(error, json.JSONDecodeError | AssertionError)
    return known or (isinstance(error, ValueError) and " at line 1 column" in str(error))


def _transport(source: Exception) -> Trouble:
    text = one_line(str(source)) or type(source).__name__
    if not isinstance(source, httpx.HTTPError):
        if isinstance(source, OSError):
            return Trouble(Kind.SILENT, text, again=True)
        return Trouble(Kind.FOREIGN, f"its answer cannot be read: {text}")
    causes = list(_causes(source))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Trouble(Kind.TRUST, text)
    illegal = isinstance(source, httpx.RemoteProtocolError) and "illegal" in text
    if illegal or any(isinstance(cause, ssl.SSLError) for cause in causes) or "[SSL" in text:
        spoken = "HTTP (a port of gRPC goes behind ?grpc=)" if illegal else "TLS"
        return Trouble(Kind.FOREIGN, f"it does not speak {spoken}: {text}")
    if isinstance(source, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return Trouble(Kind.REFUSED, text)
    smaller = isinstance(source, httpx.ReadTimeout | httpx.WriteTimeout)
    nowhere = any(
        isinstance(cause, socket.gaierror) and cause.errno in {socket.EAI_NONAME, socket.EAI_NODATA} for cause in causes
    )
    return Trouble(Kind.SILENT, text, again=True, smaller=smaller, unreached=True, nowhere=nowhere)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _answer(error: UnexpectedResponse) -> Trouble:
    status = error.status_code or 0
    text, genuine = _said(error)
    low = text.lower()
    if any(words in low for words in _FULL_WORDS) or status == 507:
        return Trouble(Kind.FULL, text)
    if status in {401, 403}:
        return Trouble(Kind.KEY if status == 401 else Kind.FORBIDDEN, text)
    if status in _PASSING or (status >= 500 and any(words in low for words in _PASSING_WORDS)):
        after_s = _retry_after_s(error.headers.get("retry-after") if error.headers else None)
        return Trouble(Kind.BUSY, text, again=True, smaller=status in {408, 504} or "time" in low, after_s=after_s)
    if status == 413 or (status == 400 and "larger than allowed" in low):  # of a proxy, or of Qdrant itself
        return Trouble(Kind.REFUSED, text, smaller=True)
    return Trouble(Kind.REFUSED if genuine or status >= 500 else Kind.FOREIGN, text)


def _said(error: UnexpectedResponse) -> tuple[str, bool]:
    """What a server said, and whether it is what a Qdrant server would say."""
    status = f"{error.status_code} {error.reason_phrase}".strip()
    try:
        content: Any = json.loads(error.content)
        said = content["status"]["error"]
    except (ValueError, KeyError, TypeError):
        text = one_line(error.content[:600].decode("utf-8", "replace"), 120)
        return (f"{status}: {text}" if text and not text.startswith("<") else status), False
    return f"{status}: {one_line(str(said))}", True


def _grpc(code: str, details: str) -> Trouble:
    text = f"{code}: {details}" if details else code
    low = details.lower()
    for words, kind, about in _GRPC_SAYS:
        if any(one in low for one in words):
            return Trouble(kind, f"{about}{text}", smaller=kind is Kind.REFUSED)
    made = _grpc_unreached(code, text, low)
    if made is not None:
        return made
    passing = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}
    if code in passing or (code == "INTERNAL" and any(words in low for words in _PASSING_WORDS)):
        return Trouble(Kind.BUSY, text, again=True, smaller="time" in low)
    return Trouble(_GRPC_CODES.get(code, Kind.REFUSED), text)


_GRPC_SAYS: tuple[tuple[tuple[str, ...], Kind, str], ...] = (
    (_FULL_WORDS, Kind.FULL, ""),
    (("larger than", "length too large", "http2 header with status: 413"), Kind.REFUSED, ""),
    (("certificate_verify_failed", "hostname verification check failed"), Kind.TRUST, ""),
    (("handshake failed",), Kind.FOREIGN, "it does not speak TLS: "),
    (("failed parsing http/2", "http1.x"), Kind.FOREIGN, "it does not speak gRPC: "),
    (("deserializing response",), Kind.FOREIGN, "its answer is not one of Qdrant's: "),
)
"""What is known by its words, whatever the code."""

_GRPC_CODES = {
    "UNAUTHENTICATED": Kind.KEY,
    "PERMISSION_DENIED": Kind.FORBIDDEN,
    "UNIMPLEMENTED": Kind.FOREIGN,
}


def _grpc_unreached(code: str, text: str, low: str) -> Trouble | None:
    """What a call that got no answer means, None if it got one."""

    def says(words: tuple[str, ...]) -> bool:
        return any(one in low for one in words)

    nowhere = says(_UNREACHED[1:]) and says(_NO_HOST)
    if code == "DEADLINE_EXCEEDED" and low.startswith("deadline exceeded"):  # ours: a server's has words of its own
        return Trouble(Kind.SILENT, text, again=True, smaller=True, unreached=True)
    if code == "UNAVAILABLE" and (says(_UNREACHED) or not says(_CLUSTER)):
        return Trouble(Kind.SILENT, text, again=True, unreached=True, nowhere=nowhere)
    if code == "CANCELLED" or (code in {"INTERNAL", "UNKNOWN"} and says(_LOST)):
        return Trouble(Kind.SILENT, text, again=True, unreached=True)
    return None


def _retry_after_s(value: str | None) -> float:
    """Seconds that a header asks to wait: a number, or a date; 0 for anything else."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())
