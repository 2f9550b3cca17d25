"""SIGINT and SIGTERM as a daemon wants them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def two_signals(on_first: Callable[[int], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM is told of, the second ends the process at once.

    A connection that a server or a child has closed becomes an error where it is used, not the end of the process, and
    stays so: a thread that a request keeps may meet one later. Does nothing outside of the main thread.

    Args:
        on_first: Called with the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)  # children end with their parents
        told = True
        on_first(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
