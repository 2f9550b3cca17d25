"""A signal that comes while the engine holds the interpreter: no handler of Python's runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from indexers.crawl.last_call import last_call

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import ctypes, os, signal, subprocess, sys
from indexers.crawl import log
from indexers.crawl.last_call import last_call
from indexers.crawl.signals import two_signals
told = []
ends, waits = os.pipe()
with log.logging_to(sys.argv[1]), two_signals(told.append):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.siginterrupt(number, False)  # what is waited for goes on
    with last_call("the engine works"), subprocess.Popen(["sleep", sys.argv[2]], stdout=waits) as other:
        os.close(waits)
        print(f"begun {other.pid}", flush=True)
        ctypes.PyDLL(None).read(ends, ctypes.create_string_buffer(1), 1)  # and does not let go of the interpreter
    print("ended", told, flush=True)
"""


def test_without_a_process_for_it_the_block_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*given: object, **more: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(subprocess, "Popen", refused)
    files = len(os.listdir("/proc/self/fd"))
    with last_call("the engine works"):
        pass
    assert len(os.listdir("/proc/self/fd")) == files
    assert "no watcher" in caplog.text


def start(form: str, seconds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, form, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_the_second_signal_ends_it_at_once() -> None:
    with start("text", 60) as process:
        assert process.stdout is not None and process.stderr is not None
        other = int(process.stdout.readline().split()[1])
        process.send_signal(signal.SIGTERM)
        line = process.stderr.readline()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d waiting: the engine works\n", line)
        time.sleep(0.3)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGKILL
        assert time.monotonic() - began < 5
        os.kill(other, signal.SIGKILL)
        assert process.stderr.read() == ""


def test_the_first_waits_for_the_end_and_is_told_then() -> None:
    with start("json", 2) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("begun")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == f"ended [{signal.SIGTERM.value}]\n"
    said = json.loads(err)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("at"))
    assert said == {"level": "info", "event": "waiting", "detail": "the engine works"}


def test_without_a_signal_nothing_is_said_and_nobody_is_left() -> None:
    with start("text", 0) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.splitlines()[1:], err) == (0, ["ended []"], "")


@pytest.mark.parametrize("form", ["text", "json"])
def test_its_line_is_that_of_the_log(form: str) -> None:
    """Written by another process, it has to look like one of ours."""
    program = (
        "import sys, io\nfrom indexers.crawl import log\nstream = io.StringIO()\n"
        "with log.logging_to(sys.argv[1], stream):\n    log.event('waiting', detail='a\\x1bb')\n"
        "    print(log.placeless('waiting', detail='a\\x1bb'))\nprint(stream.getvalue(), end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, form], capture_output=True, text=True, cwd=ROOT, check=True)
    placeless, ours = done.stdout.splitlines()
    moment = r'\d{4}-\d\d-\d\dT[\d:.]+Z(?=")' if form == "json" else r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.sub(moment, "<utc>" if form == "json" else "<text>", ours) == placeless
