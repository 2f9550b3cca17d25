"""Under which names the service answers, and which pages may ask it.

A page anywhere can send a browser to http://localhost:8080, and with a name of its own that resolves to 127.0.0.1 (DNS
rebinding) it could even read the answer. So on this machine's own addresses only known host names are answered, and
requests that a page of another origin makes are refused unless they only read, and then are not shown to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers

from engine.errors import InputError, one_line
from query.api.errors import ApiError, ProblemKind

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of this machine for itself."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{0,5})?")


class Hosts:
    """The host names that are answered.

    Args:
        bound: Address that is listened on.
        loopback: Whether that is one of this machine's own.
        allowed: Further names, ``NAME`` or ``NAME:PORT``. With some, another address is only answered under them.

    Raises:
        InputError: An allowed name is none.
    """

    def __init__(self, bound: str, loopback: bool, allowed: Collection[str]) -> None:
        self._any = not (loopback or allowed)
        self._allowed = {*LOCAL_NAMES, bound.lower(), f"[{bound.strip('[]').lower()}]"}
        for name in allowed:
            if not _HOST.fullmatch(name.lower()):
                raise InputError(f"--allowed-host {one_line(name, 100)!r} is no host name: give one as in example.org")
            self._allowed.add(name.lower())

    def check(self, headers: Headers) -> None:
        """Refuses a request under another name.

        Raises:
            ApiError: ``unknown-host``.
        """
        given = headers.getlist("host")
        if self._any and len(given) <= 1:
            return
        host = _HOST.fullmatch(given[0].strip().lower()) if len(given) == 1 else None
        if host is None or self._allowed.isdisjoint({host[0], host["name"], host["name"].rstrip(".")}):
            raise ApiError(
                ProblemKind.UNKNOWN_HOST,
                f"the service does not answer under the host name {one_line(', '.join(given), 100)!r}: ask it as "
                "localhost, or start it with --allowed-host",
            )


class Origins:
    """The pages that may ask.

    Args:
        allowed: Origins besides the service's own, such as ``https://example.org``.

    Raises:
        InputError: One is no origin.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        for origin in allowed:
            if not _ORIGIN.fullmatch(origin.lower()):
                raise InputError(
                    f"--cors-origin {one_line(origin, 100)!r} is no origin: give scheme and host, without a path, as "
                    "in https://example.org"
                )
        self.allowed = frozenset(origin.lower() for origin in allowed)

    def may_read(self, headers: Headers) -> bool:
        """Whether a request comes from a page of an allowed origin, which may see the answer."""
        given = headers.getlist("origin")
        return len(given) == 1 and given[0] in self.allowed

    def check(self, method: str, headers: Headers) -> None:
        """Refuses what a page of another origin does, other than to read.

        Args:
            method: Of the request.
            headers: Of the request.

        Raises:
            ApiError: ``forbidden-origin``.
        """
        given = headers.getlist("origin")
        if not given or method in _READING or self.may_read(headers):
            return
        # Only the host is compared: behind a proxy that speaks TLS the scheme is another one here than in the browser.
        host = given[0].lower().partition("://")[2]
        if len(given) > 1 or not host or host != headers.get("host", "").strip().lower():
            raise ApiError(
                ProblemKind.FORBIDDEN_ORIGIN,
                f"pages of {one_line(', '.join(given), 100)!r} may not use this service: it can be started with "
                "--cors-origin",
            )
