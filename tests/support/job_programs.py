"""Programs for the process of a job: small ones that behave as no honest one does, and ours with another loader."""

from __future__ import annotations

import sys
from pathlib import Path

_ORDERED = """
import json, os, signal, subprocess, sys, time
order = json.loads(sys.stdin.readline())
def say(message):
    os.write(1, json.dumps(message).encode() + b"\\n")
def loading(model="org/one"):
    say({"progress": {"model": model, "what": "loading", "done": 0, "total": 0, "model_number": 1, "models": 3}})
"""

_OURS = """
import time
from pathlib import Path
import indexers.profiler as profiler
load = profiler.load_tower

def other(*arguments):
{body}
    return load(*arguments)

profiler.load_tower = other
from query.api.job_child import main
main()
"""


def program(code: str) -> tuple[str, ...]:
    """Code that has read its ``order`` and can ``say`` messages and that it is ``loading``."""
    return (sys.executable, "-I", "-S", "-c", _ORDERED + code)


HANG = "loading()\ntime.sleep(600)\n"
"""Begins with a model and does not end."""

FACTS = """import os, resource
    from engine.errors import InputError
    facts = {"nice": os.nice(0), "leads": os.getpgid(0) == os.getpid()}
    facts["core"] = resource.getrlimit(resource.RLIMIT_CORE)[0]
    facts["oom"] = open("/proc/self/oom_score_adj").read().strip()
    raise InputError("facts " + " ".join(f"{name}={value}" for name, value in facts.items()))"""
"""For ``loading``: tells what the process may do."""


def held(gate: Path) -> tuple[str, ...]:
    """A process of a job like ours that loads no model before a file is there."""
    return loading(f"while not Path({str(gate)!r}).exists(): time.sleep(0.02)")


def loading(code: str) -> tuple[str, ...]:
    """A process of a job like ours that does something before it loads a model."""
    return (sys.executable, "-c", _OURS.format(body=f"    {code}"))
