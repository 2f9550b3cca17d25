"""The HTTP service.

What is exported is imported when it is asked for: a client needs modules of this package, not the service.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from query.api.app import create_app
    from query.api.settings import Settings

__all__ = ["Settings", "create_app"]

_MODULES = {"Settings": "settings", "create_app": "app"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
