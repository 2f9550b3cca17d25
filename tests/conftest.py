"""What every test needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# As the command line has it: idle OpenMP threads sleep. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs torch in one thread: two that share busy cores take ten times as long for networks this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
