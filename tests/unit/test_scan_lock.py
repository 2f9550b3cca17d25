"""The scan lets other threads of a service go on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import scan_numba
from engine.scan import top_k
from tests.unit.test_scan import make


@pytest.fixture
def unforced() -> Iterator[None]:
    """Nobody is made to hand over the interpreter's lock: another thread runs only where it is let go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    yield
    sys.setswitchinterval(before)


def test_the_compiled_kernel_runs_without_the_interpreters_lock(
    monkeypatch: pytest.MonkeyPatch, unforced: None
) -> None:
    arrays, concepts, _ = make(3_000, seed=0)
    kernel = scan_numba._SCANS["whitened"]
    inside = seen = False

    def watched(*args: Any) -> Any:
        nonlocal inside
        inside = True
        end = kernel(*args)
        inside = False
        return end

    def scan() -> None:
        for _ in range(2_000):
            if seen:
                return
            top_k(arrays, concepts, 10, "whitened", kernel="numba")

    top_k(arrays, concepts, 10, "whitened", kernel="numba")  # compiled, or read from disk
    monkeypatch.setitem(scan_numba._SCANS, "whitened", watched)
    thread = threading.Thread(target=scan)
    thread.start()
    while thread.is_alive():
        time.sleep(0)  # lets go of the lock, and comes back when the other thread does
        seen = seen or inside
    assert seen
