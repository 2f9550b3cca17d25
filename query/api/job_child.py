"""The process of a job from the inside: loads and runs models as its order says, and tells how it goes.

See :mod:`query.api.job_process` for what goes in and out.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from indexers.crawl import sandbox
from indexers.crawl.limits import GIGABYTE, Limits, Setup
from query.api.errors import ApiError, Problem, ProblemKind, to_problem
from query.api.jobs import JobProgress
from query.api.orders import Order, carried_out, read_order

NICENESS = 10
"""Of -20..19: what searches leave of the processor; a thread of niceness 0 gets ten times its share of a core."""

_TELL_EVERY_S = 0.1


def main() -> None:
    """Carries out the order on standard input, within limits, and ends the process."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    limits = Limits()
    sandbox.die_with(os.getppid())
    os.nice(NICENESS)
    sandbox.go_first()
    sandbox.limit_files(limits.scratch_bytes)
    sandbox.no_new_privileges()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    order = read_order(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_service, daemon=True).start()
    if not Setup(order.index, None, Path(), 0, order.device).on_gpu:
        sandbox.limit_memory(limits.memory_bytes)
    _write(channel, _answer(order, _Teller(channel), limits))
    os._exit(0)  # at once: libraries take their time to end, some of them crash then


def _answer(order: Order, tell: _Teller, limits: Limits) -> dict[str, Any]:
    try:
        return {"result": carried_out(order, tell)}
    except MemoryError:
        size = f"{limits.memory_bytes / GIGABYTE:g} GB"
        detail = f"{tell.model or 'a model'} needs more memory than the {size} that a job may have: leave it out"
        return {"problem": ApiError(ProblemKind.MODEL_UNUSABLE, detail).problem.to_json()}
    except BaseException as error:
        problem: Problem = to_problem(error, names=order.shown)
        return {"problem": problem.to_json()}


class _Teller:
    """Tells the service how far the job is, not too often.

    Args:
        channel: To the service.
    """

    def __init__(self, channel: BinaryIO) -> None:
        self._channel = channel
        self._last: tuple[object, ...] = ()
        self._at = 0.0
        self.model: str | None = None

    def __call__(self, progress: JobProgress) -> None:
        """As ``WatchedProfiler`` calls it."""
        self.model = progress.model
        now, stage = time.monotonic(), (progress.model_number, progress.what)
        whole = progress.total > 0 and progress.done >= progress.total
        if stage != self._last or whole or now - self._at >= _TELL_EVERY_S:
            self._last, self._at = stage, now
            _write(self._channel, {"progress": progress.model_dump(mode="json")})


def _write(channel: BinaryIO, message: dict[str, Any]) -> None:
    try:
        # Half a character in a label cannot be written; clients see it replaced, too.
        channel.write(json.dumps(message, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n")
        channel.flush()
    except BrokenPipeError:
        os._exit(1)


def _end_with_service() -> None:
    """Ends this process when the service has ended, however that ended: also where the kernel does not see to it."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
