"""Signals while the store's engine is at work and runs none of our code: what it does can take minutes.

Python's handlers wait until the engine returns, and so would a second signal that is to end the process at once. A
small process hears of signals meanwhile, through the pipe that Python writes to before any handler runs: it says of the
first that it waits, and kills the process at the second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from indexers.crawl import log

_PROGRAM = """
import os, signal, sys, time
pid, line = int(sys.argv[1]), sys.argv[2]
told = False
while byte := os.read(0, 1):
    if byte[0] not in (signal.SIGINT, signal.SIGTERM):
        continue
    if told:
        os.kill(pid, signal.SIGKILL)
        break
    told = True
    moment = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    utc = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + ".%03dZ" % (moment % 1 * 1000)
    try:
        os.write(2, (line.replace("<text>", text).replace("<utc>", utc) + "\\n").encode())
    except OSError:
        pass
"""


@contextmanager
def last_call(detail: str) -> Iterator[None]:
    """The first SIGINT or SIGTERM during the block waits for its end and says so, the second kills the process.

    Only in the main thread of a process that handles these signals; elsewhere nothing changes.

    Args:
        detail: What a first signal waits for, one line.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hears, writes = os.pipe()
    os.set_blocking(writes, False)
    watcher = None
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), log.placeless("waiting", detail=detail)]
    try:
        # A session of its own: what a terminal sends to all processes of the crawl is not for this one.
        watcher = subprocess.Popen(command, stdin=hears, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    except OSError as error:  # no process is to be had: the block matters more than who waits for it
        log.warning("no watcher", detail=str(error))
    finally:
        os.close(hears)
    if watcher is None:
        os.close(writes)
        yield
        return
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.close(writes)
        watcher.wait()
