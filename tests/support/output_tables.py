"""Outputs of invented models for the tests of the stores, and a folder to put a store in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engine.outputs import Calibration, OutputTable
from engine.store.base import StoreLayout

CONSTANTS = ("h_uniform", "h", "s", "g", "q", "g_white", "q_white", "prior")


def make_table(
    layout: StoreLayout, repo: str = "org/a", revision: str = "r1", m: int = 7, seed: int = 0
) -> OutputTable:
    """Outputs of one model with many tied responses; if the layout keeps most probes, some z are negative or zero."""
    g = np.random.default_rng(seed)
    responses = np.round(g.standard_normal((m, layout.probes)), 1)
    z = (responses - responses.mean(1, keepdims=True)) / responses.std(1, keepdims=True)
    idx = np.argsort(-z, axis=1, kind="stable")[:, : layout.top_r]
    return OutputTable(
        repo=repo,
        revision=revision,
        output=np.arange(m, dtype=np.int64) * 2,
        labels=tuple(None if i % 2 else f"{repo} {i}" for i in range(m)),
        mean=responses.mean(1) / 3,
        std=responses.std(1) / 3,
        idx=idx.astype(np.uint16),
        z=np.take_along_axis(z, idx, 1).astype(np.float32),
        anchor=g.standard_normal((m, layout.dimension)).astype(np.float32),
        calibration=Calibration(**{name: g.uniform(1, 9, m).astype(np.float32) for name in CONSTANTS}),
    )


def assert_same(a: OutputTable | None, b: OutputTable | None) -> None:
    """Bit for bit, but for the anchor."""
    assert a is not None and b is not None
    assert (a.repo, a.revision, a.labels) == (b.repo, b.revision, b.labels)
    for name in ("output", "mean", "std", "idx", "z"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.dtype == two.dtype and one.tobytes() == two.tobytes(), name
    for name in CONSTANTS:
        assert getattr(a.calibration, name).tobytes() == getattr(b.calibration, name).tobytes(), name
    assert a.anchor.dtype == np.float32
    np.testing.assert_allclose(a.anchor, b.anchor, rtol=1e-6)


@contextmanager
def fast_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory if there is room: a kill is the same there, and nobody waits for the disk."""
    memory = Path("/dev/shm")  # noqa: S108
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 1 << 30:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)
