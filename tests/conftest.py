"""What every test needs."""

from __future__ import annotations

import os

# As the command line has it: idle OpenMP threads sleep. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
