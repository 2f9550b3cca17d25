"""The process of a job, seen from the service: started, fed, listened to and killed; what it says is a stranger's word.

It gets one line of JSON, its order, and answers with lines of JSON: ``{"progress": {...}}`` any number of times, then
``{"result": {...}}`` or ``{"problem": {...}}``. Its standard input stays open until it is to end.
"""

from __future__ import annotations

import json
import logging
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import one_line
from indexers.crawl.process import Ending
from query.api.errors import LOGGER, ApiError, Problem, ProblemKind, retry_after, without_paths
from query.api.jobs import JobProgress, Watch
from query.api.orders import Order

log = logging.getLogger(LOGGER)

MOST_BYTES = 64 * 2**20
"""Of what a process may answer in all: a ranking of thousands of models with all their blocks has a third of it."""

MOST_LOGGED = 50
"""Lines of its standard error that come into the log."""

_POLL_S = 0.1
_GRACE_S = 1.0  # between the end of its answer and its end
_END_S = 5.0
_PIECE = 2**16
_LINE_BYTES = 4096
_MODEL_CHARACTERS = 500
_WHAT_CHARACTERS = 40

_PASSED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)
_PASSED_PREFIXES = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "XDG_", "HUBHOUND_", "LC_", "OMP_", "MKL_", "KMP_"),
    *("OPENBLAS_", "CUDA_", "NVIDIA_", "MALLOC_", "PYTORCH_"),
)
_KEPT_BACK = "HUBHOUND_SERVE_"


class JobProcess:
    """What a job does: an order that a process of its own carries out.

    Args:
        order: The order.
        folder: Where the process puts what it needs for a while.
        starting: Told until it tells more itself.
        program: The process: a command with its arguments.
        timeout_s: After so many seconds it is killed.
    """

    def __init__(
        self, order: Order, folder: Path, starting: JobProgress, program: Sequence[str], timeout_s: float
    ) -> None:
        self._order = order
        self._folder = folder
        self._starting = starting
        self._program = tuple(program)
        self._timeout_s = timeout_s

    def __call__(self, watch: Watch) -> dict[str, Any]:
        """Starts the process and waits for its answer; nothing of it runs any more when this returns.

        Raises:
            ApiError: The process told a problem, took too long, or ended without an answer.
        """
        watch.progress = self._starting
        deadline = time.monotonic() + self._timeout_s
        answers = _Answers(self._order, watch)
        with _started(self._program, environment(os.environ, self._folder)) as process:
            order = json.dumps(self._order.model_dump(mode="json")).encode() + b"\n"
            for piece in _heard(process, order):
                if watch.cancelled:
                    return {}
                if time.monotonic() > deadline:
                    raise ApiError(
                        ProblemKind.TIMEOUT,
                        f"the job was not done within {self._timeout_s:g} s and was ended{answers.stage}: ask for "
                        "fewer models or images; what is computed is remembered",
                    )
                if (result := answers.take(piece)) is not None:
                    return result
            ending = _ended(process, _GRACE_S)
        raise answers.death(ending)


class _Answers:
    """Lines of a process, made out.

    Args:
        order: That it has.
        watch: Told how far it is.
    """

    def __init__(self, order: Order, watch: Watch) -> None:
        self._order = order
        self._watch = watch
        self._line = bytearray()
        self._bytes = 0
        self._told = False

    @property
    def stage(self) -> str:
        """What it did last: `` while loading org/name``."""
        now = self._watch.progress
        if not self._told or now is None:
            return " before its first model"
        return f" while {now.what} {without_paths(now.model, self._order.shown)}"

    def take(self, piece: bytes) -> dict[str, Any] | None:
        """The result, if it is whole with this piece.

        Raises:
            ApiError: The process tells a problem, or what it says cannot be meant.
        """
        self._bytes += len(piece)
        if self._bytes > MOST_BYTES:
            raise self._nonsense(f"answered more than {MOST_BYTES // 2**20} MB")
        *lines, rest = piece.split(b"\n")
        for line in lines:
            self._line += line
            whole, self._line = self._line, bytearray()
            try:
                result = self._read(bytes(whole))
            except (ValueError, RecursionError):
                raise self._nonsense("answered what cannot be meant") from None
            if result is not None:
                return result
        self._line += rest
        return None

    def death(self, ending: Ending | None) -> ApiError:
        """What is told of a process that ended without an answer.

        Args:
            ending: How; None if it did not.
        """
        how = "closed its connection" if ending is None else str(ending)
        if ending is not None and ending.signal == signal.SIGKILL:
            how += ", it may have been the machine's memory,"
        return self._nonsense(how)

    def _nonsense(self, what: str) -> ApiError:
        log.warning("the process of a job %s%s", what, self.stage)
        return ApiError(
            ProblemKind.MODEL_UNUSABLE,
            f"the process that runs models {what}{self.stage}: leave the model out, or ask again",
        )

    def _read(self, line: bytes) -> dict[str, Any] | None:
        value = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
        match value:
            case {"progress": progress, **others} if not others:
                self._show(JobProgress.model_validate(progress))
                return None
            case {"result": result, **others} if not others:
                return self._order.checked(result)
            case {"problem": problem, **others} if not others:
                raise _told(Problem.model_validate(problem), self._order.shown)
        raise ValueError

    def _show(self, told: JobProgress) -> None:
        if not math.isfinite(told.done) or not math.isfinite(told.total):
            raise ValueError
        model, what = one_line(told.model, _MODEL_CHARACTERS), one_line(told.what, _WHAT_CHARACTERS)
        self._watch.progress = told.model_copy(update={"model": model, "what": what})
        self._told = True


def environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What the process of a job finds in its environment: what loading and running models needs.

    Args:
        given: The service's own.
        folder: For files that are needed for a while.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in _PASSED or (name.startswith(_PASSED_PREFIXES) and not name.startswith(_KEPT_BACK))
    }
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TMPDIR": str(folder),
    }


@contextmanager
def _started(program: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts, killed at the end.

    Raises:
        ApiError: ``busy``: it cannot be started.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # noqa: S603
            program, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=environment, start_new_session=True
        )
    except OSError as error:
        log.error("the process of a job cannot be started: %s", error)
        raise ApiError(
            ProblemKind.BUSY, "no process for models can be started now: ask again later", headers=retry_after(5)
        ) from error
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _heard(process: subprocess.Popen[bytes], order: bytes) -> Iterator[bytes]:
    """Gives a process its order, and yields what it answers as it comes, or nothing for a while, until it ends."""
    stdin, stdout, stderr = (
        stream.fileno() for stream in (process.stdin, process.stdout, process.stderr) if stream is not None
    )
    errors = _Errors()
    left = memoryview(order)
    with selectors.DefaultSelector() as selector:
        for fd in (stdin, stdout, stderr):
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_WRITE if fd == stdin else selectors.EVENT_READ)
        while True:
            ready = [key.fd for key, _ in selector.select(_POLL_S)]
            if stdin in ready:
                try:
                    left = left[os.write(stdin, left) :]
                except BrokenPipeError:  # it does not listen, and will be heard to end
                    left = left[:0]
                if not left:
                    selector.unregister(stdin)
            if stderr in ready:
                piece = os.read(stderr, _PIECE)
                errors.take(piece)
                if not piece:
                    selector.unregister(stderr)
            piece = b""
            if stdout in ready:
                piece = os.read(stdout, _PIECE)
                if not piece:
                    return
            elif not ready and _ended(process):  # another holds its end of the pipe
                return
            yield piece


def _ended(process: subprocess.Popen[bytes], within_s: float = 0.0) -> Ending | None:
    """How a process ended; None if it does not. Where that can be, its id stays its own meanwhile."""
    until = time.monotonic() + within_s
    while True:
        if not hasattr(os, "waitid"):
            status = process.poll()
            found = None if status is None else Ending(*((status, None) if status >= 0 else (None, -status)))
        elif (seen := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            exited = seen.si_code == os.CLD_EXITED
            found = Ending(seen.si_status if exited else None, None if exited else seen.si_status)
        else:
            found = None
        if found is not None or time.monotonic() >= until:
            return found
        time.sleep(0.01)


class _Errors:
    """The standard error of a process, as lines of the log."""

    def __init__(self) -> None:
        self._line = b""
        self._lines = 0

    def take(self, piece: bytes) -> None:
        """Logs what is whole, or cut, with this piece."""
        *lines, rest = (self._line + piece).replace(b"\r", b"\n").split(b"\n")
        for line in (*lines, *([] if piece else [rest])):
            text = one_line(line[:_LINE_BYTES].decode(errors="replace"))
            if text and self._lines <= MOST_LOGGED:
                self._lines += 1
                log.warning("a job: %s", text if self._lines <= MOST_LOGGED else "and more, which is left out")
        self._line = rest[:_LINE_BYTES]


def _told(problem: Problem, names: Mapping[str, str]) -> ApiError:
    """A problem that a process told.

    Raises:
        ValueError: There is no such kind.
    """
    kind = next((kind for kind in ProblemKind if kind.type == problem.type), None)
    if kind is None:
        raise ValueError
    return ApiError(kind, without_paths(one_line(problem.detail, _MODEL_CHARACTERS * 2), names))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
