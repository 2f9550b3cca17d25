"""Where an index on a Qdrant server is: the text that ``--index`` takes, and the client behind it.

::

    qdrant://HOST[:6333]/NAME[?grpc=6334]          HTTP, or gRPC for everything where its port is given
    qdrant+https://HOST[:6333]/NAME[?grpc=6334]    the same over TLS

Keys never stand in an address, which ends up in logs and process lists: they come from the environment or a file.
"""

from __future__ import annotations

import os
import re
import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

from engine.errors import InputError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

API_KEY = "HUBHOUND_QDRANT_API_KEY"
"""Environment variable: the server's API key."""
API_KEY_FILE = "HUBHOUND_QDRANT_API_KEY_FILE"
"""Environment variable: a file that holds the API key, as containers mount secrets."""
CA_FILE = "HUBHOUND_QDRANT_CA"
"""Environment variable: a PEM file with the authority that signed the server's certificate."""

_SCHEMES = {"qdrant": False, "qdrant+https": True}
_PORT = 6333
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?|[0-9a-f:.]*:[0-9a-f:.]*")
_FORM = "qdrant://HOST[:6333]/NAME[?grpc=6334] or qdrant+https://..."
_CHANNEL = {
    # A connection is made within 5 s, and tried again after at most 5; gRPC's own limits are 20 and 120.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 5_000,
    "grpc.max_reconnect_backoff_ms": 5_000,
    # A request that has waited for 20 s asks whether the server is still there. Else one that vanished without a word
    # would be waited for by each request in turn: all share one connection, which the kernel keeps for a quarter hour.
    # Newer versions of gRPC go by the limit of a ping, older ones by that of the keepalive.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
}
"""Of connections over gRPC."""


@dataclass(frozen=True)
class ServerAddress:
    """An index on a server; made by :meth:`parse`.

    Attributes:
        host: Name or number in lower case; IPv6 without brackets.
        port: Of the REST interface, 1..65535.
        name: Of the index: prefix of its collections.
        https: Over TLS.
        grpc_port: Of the gRPC interface, 1..65535; None to use REST for everything.
    """

    host: str
    port: int
    name: str
    https: bool = False
    grpc_port: int | None = None

    @staticmethod
    def is_server(text: str) -> bool:
        """Whether a text is meant as the address of a server, well formed or not; else it is a folder.

        What begins with one of our schemes is, whatever is wrong behind it: such a folder is written ``./qdrant:...``.
        """
        return re.match(r"[a-z][a-z0-9+.-]*://|qdrant(\+https?)?:", text.strip(), re.IGNORECASE) is not None

    @classmethod
    def parse(cls, text: str) -> Self:
        """An address from its text.

        Args:
            text: As in the module's docstring; a slash at the end of the name is of no account.

        Raises:
            InputError: It is not of that form, or holds credentials. Those are not repeated in the message.
        """
        parts, port = _split(text)
        if parts.username is not None or parts.password is not None:
            raise InputError(
                f"the address of a server cannot hold a name or key: set {API_KEY} or {API_KEY_FILE} instead"
            )
        scheme = parts.scheme.lower()
        if scheme not in _SCHEMES:
            raise InputError(f"{_shown(text)} is no address of an index: use a folder, {_FORM}")
        if not re.match(r"[^/]*://", text):
            raise InputError(
                f"{_shown(text)} has no two slashes after the colon: use {_FORM}, or ./{parts.scheme}:... for a folder"
            )
        host = (parts.hostname or "").rstrip(".")
        if not _HOST.fullmatch(host):
            raise InputError(f"{_shown(text)} names no host that can be used: use {_FORM}")
        name = parts.path[1:].removesuffix("/")
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{_shown(text)}: the name of an index on a server is 1 to 64 letters, digits, _ and -, "
                f"beginning with a letter or digit: use {_FORM}"
            )
        if parts.fragment or "#" in text:
            raise InputError(f"{_shown(text)}: nothing may follow after #: use {_FORM}")
        return cls(host, _PORT if port is None else port, name, _SCHEMES[scheme], _grpc(text, parts.query))

    @property
    def url(self) -> str:
        """Of the REST interface, ``http(s)://HOST:PORT``."""
        return f"{'https' if self.https else 'http'}://{self._authority}"

    def __str__(self) -> str:
        grpc = "" if self.grpc_port is None else f"?grpc={self.grpc_port}"
        return f"{'qdrant+https' if self.https else 'qdrant'}://{self._authority}/{self.name}{grpc}"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout_s: int = 60) -> QdrantClient:
        """A client for the server; whether it answers shows with the first request.

        Args:
            timeout_s: Of one request, at least 1.

        Raises:
            InputError: The key or the authority in the environment cannot be used.
        """
        given: dict[str, Any] = {}
        authority = os.environ.get(CA_FILE)
        if self.https and authority:
            given = {"verify": _trust(authority), "grpc_options": {"root_certificates": Path(authority).read_bytes()}}
        return connect(self.url, api_key(), timeout_s, self.grpc_port, **given)


def connect(
    url: str, api_key: str | None = None, timeout_s: int = 60, grpc_port: int | None = None, **options: Any
) -> QdrantClient:
    """A client for a server; whether it answers shows with the first request.

    Args:
        url: ``http(s)://host:port``.
        api_key: If the server wants one.
        timeout_s: Of one request; over gRPC of all of it, else of each step.
        grpc_port: Of the gRPC interface; None to use REST.
        options: More for the client.
    """
    from qdrant_client import QdrantClient

    from engine.store.limits import limit_requests

    if grpc_port is not None:
        options["grpc_options"] = _CHANNEL | options.get("grpc_options", {})
        options |= {"prefer_grpc": True, "grpc_port": grpc_port}
    with warnings.catch_warnings():
        # Inside one machine or a private network it is a choice, and docs/operations.md says what it means.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        # The client's own version check runs in a thread and can only warn; a request fails with a clear error.
        client = QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False, **options)
    limit_requests(client, url)
    return client


def api_key() -> str | None:
    """The API key that the environment names, None if it names none.

    Raises:
        InputError: Both variables are set, or the file cannot be read or is not one line of text.
    """
    key, file = os.environ.get(API_KEY), os.environ.get(API_KEY_FILE)
    if key and file:
        raise InputError(f"{API_KEY} and {API_KEY_FILE} are both set: unset one of them")
    where = API_KEY
    if file:
        where = f"the file {file} ({API_KEY_FILE})"
        try:
            key = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not key:
        if file:
            raise InputError(f"{where} is empty: write the server's API key into it")
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where} is no API key: it must be one line of ASCII text without spaces")
    return key


def _split(text: str) -> tuple[SplitResult, int | None]:
    try:
        if any(c.isspace() or not c.isprintable() for c in text):
            raise ValueError("a space or control character")
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{_shown(text)} is no address of a server ({error}): use {_FORM}") from error
    if port == 0:
        raise InputError(f"{_shown(text)}: the port is a number from 1 to 65535")
    return parts, port


def _grpc(text: str, query: str) -> int | None:
    if not query:
        return None
    try:
        ((key, value),) = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
        port = int(value) if key == "grpc" and re.fullmatch("[0-9]{1,5}", value) else 0
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        raise InputError(f"{_shown(text)}: after ? comes only grpc=PORT, a number from 1 to 65535")
    return port


def _trust(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"the file {file} ({CA_FILE}) is no readable PEM file of certificates: {error}") from error


def _shown(text: str) -> str:
    """The text for a message, without what may be a key: before an @, and of what follows ? all but a port of gRPC."""
    place, mark, options = text.partition("?")
    options = options if re.fullmatch("grpc=[0-9]{0,6}", options) else "..."
    place = re.sub(r"^([^:]*:/*)?.*@", r"\1...@", place, flags=re.DOTALL)
    return repr(f"{place}{mark}{options if mark else ''}"[:200])
