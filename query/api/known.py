"""What the service knows about tasks: the index's file, read again when there is a newer one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from threading import Lock

from engine.errors import IndexDamagedError
from engine.knowledge import FILE, Knowledge
from query.api.errors import LOGGER

log = logging.getLogger(LOGGER)

RETRY_S = 10.0
"""So long a file that cannot be read is not tried again, unless it changes."""


class KnowledgeFile:
    """Tasks, profiles and performance of an index; several threads may ask.

    Args:
        folder: Of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._seen: object = None
        self._read = Knowledge()
        self._failure: tuple[float, str] | None = None

    def read(self) -> Knowledge:
        """What is in it now; nothing where there is no such file. Blocks.

        Raises:
            IndexDamagedError: It cannot be read.
        """
        path = self._folder / FILE
        with self._lock:
            try:
                now = path.stat()
                seen: object = (now.st_ino, now.st_mtime_ns, now.st_size)
            except FileNotFoundError:
                seen = ()
            if seen == self._seen:
                if self._failure is None:
                    return self._read
                if time.monotonic() - self._failure[0] < RETRY_S:
                    raise IndexDamagedError(self._failure[1], path)
            try:
                self._read = Knowledge.read(self._folder)
            except IndexDamagedError as error:
                if self._failure is None or seen != self._seen:
                    log.error("answers are without tasks, profiles and performance: %s", error)
                self._seen, self._failure = seen, (time.monotonic(), str(error))
                raise
            self._seen, self._failure = seen, None
            return self._read

    def read_or_nothing(self) -> Knowledge:
        """As ``read``; nothing where it cannot be read, which is logged once: outputs are known without it."""
        try:
            return self.read()
        except IndexDamagedError:
            return Knowledge()
