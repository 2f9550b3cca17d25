"""API keys: who may ask, read from a file that can change while the service runs."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.errors import InputError, one_line
from query.api.errors import LOGGER, ApiError, ProblemKind

CHECK_S = 1.0
"""The file is looked at so often at most, in seconds."""

MIN_CHARACTERS = 16
"""Shortest key."""

MAX_FILE_BYTES = 1_000_000
"""Largest file that is read."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_KEY = re.compile(r"[!-~]{16,512}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")

log = logging.getLogger(LOGGER)


@dataclass(frozen=True)
class _Key:
    name: str
    digest: bytes


class ApiKeys:
    """The keys of a file; changes are seen within `CHECK_S`. For use from one thread.

    A line is ``NAME KEY``: a name of letters, digits and ``._@-``, and a key of 16 to 512 printable characters or, so
    that the file holds no secret, ``sha256:`` and the key's SHA-256 in hexadecimal. Empty lines and those that begin
    with # are passed over; lines that cannot be understood are logged, without the key.

    Args:
        path: The file.
        clock: Seconds that only grow.

    Raises:
        InputError: The file is missing, cannot be read, holds a line that cannot be understood, or no key. Once the
            service runs, such a file lets nobody in but those whose lines can be understood.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked = clock()
        try:
            self._seen = self._stat()
            keys, faults = _read(path)
        except OSError as error:
            raise InputError(f"--api-key-file {path}: {error.strerror}: give a file of lines NAME KEY") from error
        if faults:
            raise InputError(f"--api-key-file {path}: {faults[0]}")
        if not keys:
            raise InputError(f"--api-key-file {path} holds no key: write lines NAME KEY")
        self._keys = keys

    def __len__(self) -> int:
        """Keys that are valid, as far as is known."""
        return len(self._keys)

    def name_of(self, key: bytes) -> str | None:
        """The name of a key, None if it is not valid.

        Every stored key is compared, whatever was found before, and only digests are: how long it takes depends on
        how many there are and not on how near the guess was.

        Args:
            key: As it was presented.
        """
        self._refresh()
        presented = sha256(key).digest()
        name = None
        for stored in self._keys:
            if hmac.compare_digest(presented, stored.digest):
                name = stored.name
        return name

    def admit(self, authorisation: list[bytes]) -> str:
        """The name of the key in a request.

        Args:
            authorisation: All its ``Authorization`` headers.

        Raises:
            ApiError: ``unauthorised``: there is not exactly one, of the form ``Bearer KEY``, with a valid key.
        """
        if not authorisation:
            raise _refused("this service needs an API key: send the header 'Authorization: Bearer KEY'")
        scheme, _, key = authorisation[0].strip().partition(b" ")
        key = key.strip()
        if len(authorisation) > 1 or scheme.lower() != b"bearer" or not key or b" " in key:
            raise _refused("the Authorization header is not of the form 'Bearer KEY'")
        name = self.name_of(key)
        if name is None:
            raise _refused("the API key is not valid: it is mistyped or was revoked", 'Bearer error="invalid_token"')
        return name

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_S:
            return
        self._checked = now
        try:
            seen = self._stat()
            if seen == self._seen:
                return
            keys, faults = _read(self._path)
        except OSError as error:
            if self._keys or self._seen is not None:
                log.error("the file of API keys cannot be read, so that no key is valid: %s", error)
            self._seen, self._keys = None, ()
            return
        for fault in faults:
            log.warning("the file of API keys: %s; the line is passed over", fault)
        log.info("API keys were read again: %d", len(keys))
        self._seen, self._keys = seen, keys

    def _stat(self) -> tuple[int, int, int] | None:
        now = self._path.stat()
        return now.st_mtime_ns, now.st_size, now.st_ino


def _read(path: Path) -> tuple[tuple[_Key, ...], list[str]]:
    """The keys of a file, and what is wrong with its other lines."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        return (), [f"it is larger than {MAX_FILE_BYTES:,} bytes"]
    keys: dict[str, _Key] = {}
    digests: set[bytes] = set()
    faults = []
    for number, line in _lines(content):
        key = _parse(line)
        if isinstance(key, str):
            faults.append(f"line {number}: {key}")
        elif key.name in keys:
            faults.append(f"line {number}: the name {key.name} is taken by a line before; give each key its own")
        elif key.digest in digests:
            faults.append(f"line {number}: the key of {key.name} is that of a line before")
        else:
            keys[key.name] = key
            digests.add(key.digest)
    return tuple(keys.values()), faults


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _parse(line: str) -> _Key | str:
    parts = line.split()
    if len(parts) != 2:
        return "it is not NAME KEY"
    name, key = parts
    if not _NAME.fullmatch(name):
        return f"the name {one_line(name, 70)!r} is not 1 to 64 letters, digits and ._@-"
    digest = _DIGEST.fullmatch(key)
    if digest:
        return _Key(name, bytes.fromhex(digest[1]))
    if key.startswith("sha256:"):
        return f"what follows sha256: of {name} is not 64 hexadecimal digits"
    if not _KEY.fullmatch(key):
        return f"the key of {name} is not {MIN_CHARACTERS} to 512 printable characters"
    return _Key(name, sha256(key.encode("ascii")).digest())


def _refused(detail: str, challenge: str = "Bearer") -> ApiError:
    return ApiError(ProblemKind.UNAUTHORISED, detail, headers={"WWW-Authenticate": challenge})
