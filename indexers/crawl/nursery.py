"""Where models' processes are born: a process that has imported torch once and forks whenever it is asked to.

``Nursery`` is the daemon's side of it, `indexers.crawl.nursery_program` its own. Between the two goes one line of
JSON there and one back, and with ``fork`` the child's end of its connection to the daemon. The nursery never sees a
model: it runs no forward pass and starts no thread, so that what it forks is sound. It ends when the daemon does, and
its children end with it. A child is waited for only when the daemon asks, so that its id stays its own until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import HubhoundError
from indexers.crawl.environment import environment
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.process import Birth, Ending
from indexers.crawl.scratch import remove

START_S = 600.0
"""Importing torch and hashing the probes takes seconds; from a cold network disk it can take minutes."""

STARTS = 3
"""So many times a nursery may end without a word before it is ready."""

_ANSWER_S = 30.0
_POLL_S = 0.1
MAX_LINE = 2**16
"""Longest piece of a line that is read at once."""

_HOME = "nursery"

MODEL = "model-"
"""Beginning of the names of the folders in the scratch folder that processes of models write to."""


class NurseryError(Exception):
    """The nursery ended, or does not answer; a new one can be started."""


class CancelledError(Exception):
    """Whoever waited no longer wants to."""


def never() -> bool:
    """Nobody has cancelled anything."""
    return False


class Nursery:
    """The daemon's side of a nursery; several threads may share one.

    Args:
        setup: What models are loaded and probed with.
        limits: What each of their processes may take.
        scratch: Folder for everything that is written, of this nursery alone, on the file system of the pixel cache.
            What lies in it from before is removed at the first start.
        preload: A module that the nursery imports before it forks. Only tests need it, which have no other way to make
            a loader do what a fault in one might let a model do.
    """

    def __init__(self, setup: Setup, limits: Limits, scratch: Path, *, preload: str | None = None) -> None:
        self.setup = setup
        self.limits = limits
        self.scratch = scratch.absolute()  # the processes work elsewhere
        self._preload = preload
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.generation = 0
        """Nurseries started so far."""
        self.probes = 0
        """Number of probes, known once it has started."""
        self.fingerprint = ""
        """Of the probes, likewise."""
        self.start_s = 0.0
        """Seconds that the last start took."""

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self, cancelled: Callable[[], bool] = never) -> None:
        """Starts it, unless it runs already.

        Args:
            cancelled: Asked a few times a second.

        Raises:
            HubhoundError: It cannot start: an image has changed, a library is missing ...
            CancelledError: Before it was ready.
        """
        with self._held(cancelled):
            self._start(cancelled)

    def fork(self, end: socket.socket, folder: Path, cancelled: Callable[[], bool] = never) -> Birth:
        """Forks a child, and starts a nursery first if there is none.

        Args:
            end: The child's end of its connection.
            folder: The child's scratch folder.
            cancelled: Asked a few times a second.

        Raises:
            HubhoundError: The nursery cannot start.
            NurseryError: It ended just now.
            CancelledError: Before the child was born.
        """
        with self._held(cancelled):
            self._start(cancelled)
            answer = self._ask({"do": "fork", "folder": str(folder)}, cancelled, end)
            return Birth(int(answer["pid"]), self.generation)

    def ended(self, birth: Birth) -> Ending | None:
        """How a child ended; once it has been told, the child's id may belong to another process.

        Args:
            birth: The child.

        Returns:
            None while it lives.

        Raises:
            NurseryError: Nobody knows, because the child's nursery has ended; so has the child.
        """
        with self._held(never):
            if birth.generation != self.generation or self._socket is None:
                raise NurseryError("the nursery has ended")
            answer = self._ask({"do": "ended", "pid": birth.pid}, never)
            return Ending(answer["status"], answer["signal"]) if answer["ended"] else None

    def check_probes(self, cancelled: Callable[[], bool] = never) -> None:
        """Looks whether the probes are still what they were.

        Args:
            cancelled: Asked a few times a second.

        Raises:
            HubhoundError: They are not.
            NurseryError: It ended just now.
            CancelledError: Before it was known.
        """
        with self._held(cancelled):
            self._start(cancelled)
            self._ask({"do": "check"}, cancelled, timeout_s=START_S)

    def close(self) -> None:
        """Ends it with all its children, and removes its folder."""
        with self._held(never):
            self._end()
            self._tidy()
            with contextlib.suppress(OSError):
                self.scratch.rmdir()

    @contextlib.contextmanager
    def _held(self, cancelled: Callable[[], bool]) -> Any:
        while not self._lock.acquire(timeout=_POLL_S):
            if cancelled():
                raise CancelledError
        try:
            yield
        finally:
            self._lock.release()

    def _tidy(self) -> None:
        """Removes what models have left, now or before the daemon was killed."""
        for path in (self.scratch / _HOME, *self.scratch.glob(f"{MODEL}*")):
            remove(path)

    def _start(self, cancelled: Callable[[], bool]) -> None:
        if self._process is not None and self._process.poll() is None and self._socket is not None:
            return
        started = time.perf_counter()
        if not self.generation:
            self._tidy()
        for attempt in range(1, STARTS + 1):
            self._end()
            self._spawn()
            try:
                answer = self._ask(self._first_question(), cancelled, timeout_s=START_S)
                break
            except NurseryError as error:
                # It may have been killed as it started, by one who is short of memory for instance.
                if attempt == STARTS:
                    raise HubhoundError(f"the process that loads models could not start: {error}") from error
            except HubhoundError:
                self._end()
                raise
        self.probes, self.fingerprint = int(answer["probes"]), str(answer["fingerprint"])
        self.start_s = time.perf_counter() - started

    def _first_question(self) -> dict[str, object]:
        setup = {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in asdict(self.setup).items()
        }
        return {"setup": setup, "limits": asdict(self.limits), "preload": self._preload}

    def _spawn(self) -> None:
        home = self.scratch / _HOME
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours, theirs = socket.socketpair()
        with theirs:
            self._socket = ours
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "indexers.crawl.nursery_program", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(os.environ, home),
                cwd=home,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.generation += 1

    def _ask(
        self,
        question: Mapping[str, object],
        cancelled: Callable[[], bool],
        end: socket.socket | None = None,
        timeout_s: float = _ANSWER_S,
    ) -> dict[str, Any]:
        """One line there and one back; what goes wrong between ends the nursery, because the two are out of step."""
        try:
            answer = self._exchange(question, cancelled, end, timeout_s)
        except BaseException:
            self._end()
            raise
        if "error" in answer:
            raise HubhoundError(str(answer["error"]))
        return answer

    def _exchange(
        self,
        question: Mapping[str, object],
        cancelled: Callable[[], bool],
        end: socket.socket | None,
        timeout_s: float,
    ) -> dict[str, Any]:
        if self._socket is None:
            raise NurseryError("it has ended")
        line, received = json.dumps(question).encode() + b"\n", b""
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(_ANSWER_S)
            if end is None:
                self._socket.sendall(line)
            else:
                socket.send_fds(self._socket, [line], [end.fileno()])
            self._socket.settimeout(_POLL_S)
            while not received.endswith(b"\n"):
                if cancelled():
                    raise CancelledError
                if time.monotonic() > deadline:
                    raise NurseryError(f"it has not answered for {timeout_s:.0f} s")
                with contextlib.suppress(TimeoutError):
                    piece = self._socket.recv(MAX_LINE)
                    if not piece:
                        raise NurseryError(self._last_words())
                    received += piece
            answer: dict[str, Any] = json.loads(received)
        except (OSError, ValueError) as error:
            raise NurseryError(self._last_words()) from error
        return answer

    def _last_words(self) -> str:
        if self._process is None:
            return "it has ended"
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it has closed its connection"
        return f"it {Ending(status, None) if status >= 0 else Ending(None, -status)}"

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
