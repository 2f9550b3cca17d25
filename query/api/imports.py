"""Importing torch and what stands on it: by one thread at a time.

Their modules import each other in circles. Two threads that import them at the same time find half a module and fail.
"""

from __future__ import annotations

from importlib import import_module
from threading import Lock

IMPORTING = Lock()
"""Held by whoever imports something of these."""

_HEAVY = ("torch", "torchvision", "timm", "transformers", "open_clip")


def import_models() -> None:
    """Imports what loads and runs models; seconds the first time. A thread that will use it calls this first."""
    with IMPORTING:
        for name in _HEAVY:
            import_module(name)
