"""Where an index on a Qdrant server is: the text that ``--index`` takes, and the client behind it.

::

    qdrant://HOST[:6333]/NAME[?grpc=6334]          HTTP, or gRPC for points where a port is given
    qdrant+https://HOST[:6333]/NAME[?grpc=6334]    the same over TLS

Keys never stand in an address, which ends up in logs and process lists: they come from the environment or a file.
"""

from __future__ import annotations

import os
import re
import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

from engine.errors import InputError

if TYPE_CHECKING:
    import httpx
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
_CONNECT_S = 5.0
_FIRST_READ_S = 10.0
_FORM = "qdrant://HOST[:6333]/NAME[?grpc=6334] or qdrant+https://..."
# The engine's roots for gRPC are set for the whole process; only its own variable reaches them.
_GRPC_ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"


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
        """Whether a text is meant as the address of a server, well formed or not; else it is a folder."""
        return re.match(r"[a-z][a-z0-9+.-]*://", text.strip(), re.IGNORECASE) is not None

    @classmethod
    def parse(cls, text: str) -> Self:
        """An address from its text.

        Args:
            text: As in the module's docstring.

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
        host = (parts.hostname or "").rstrip(".")
        if not _HOST.fullmatch(host):
            raise InputError(f"{_shown(text)} names no host that can be used: use {_FORM}")
        name = parts.path[1:]
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
            if self.grpc_port is not None and os.environ.get(_GRPC_ROOTS) != authority:
                raise InputError(f"{CA_FILE} does not reach gRPC: set {_GRPC_ROOTS} to the same file, or drop ?grpc=")
            given["verify"] = _trust(authority)
        if self.grpc_port is not None:
            given |= {"prefer_grpc": True, "grpc_port": self.grpc_port}
        return connect(self.url, api_key(), timeout_s, **given)


def connect(url: str, api_key: str | None = None, timeout_s: int = 60, **options: Any) -> QdrantClient:
    """A client for a server; whether it answers shows with the first request.

    Args:
        url: ``http(s)://host:port``.
        api_key: If the server wants one.
        timeout_s: Of one request.
        options: More for the client.
    """
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        # Inside one machine or a private network it is a choice, and docs/operations.md says what it means.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        # The client's own version check runs in a thread and can only warn; a request fails with a clear error.
        client = QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False, **options)
    _hurry(client)
    return client


def _hurry(client: QdrantClient) -> None:
    """Makes requests wait less for a connection, and for the first answer, than for work to be done."""
    answered = False

    def limited(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
        nonlocal answered
        limits = dict(request.extensions.get("timeout") or {})
        for kind, most_s in (("connect", _CONNECT_S), ("read", limits.get("read") if answered else _FIRST_READ_S)):
            if most_s is not None:
                limits[kind] = most_s if limits.get(kind) is None else min(limits[kind], most_s)
        request.extensions["timeout"] = limits
        response = send(request)
        answered = True
        return response

    client.http.client.add_middleware(limited)


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
    """The text for a message, without what may be a key."""
    return repr(re.sub(r"//[^/@]*@", "//...@", text)[:200])
