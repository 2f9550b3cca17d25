"""What importing the client costs: it needs the forms of requests and answers, not the service."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
{0}
brought = ("fastapi", "starlette", "uvicorn", "torch", "query.api.app", "query.api.service")
sys.exit(" ".join(name for name in brought if name in sys.modules))
"""


def brought_by(statement: str) -> str:
    """Names of modules that a statement in a fresh interpreter brings along."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement)], capture_output=True, text=True, timeout=120
    )
    return ended.stderr.strip()


def test_the_client_does_not_bring_the_service_along() -> None:
    assert brought_by("import query.client") == ""
    assert brought_by("from query.api import Settings") == ""


def test_what_the_package_exports_is_there_when_it_is_asked_for() -> None:
    assert "fastapi" in brought_by("from query.api import create_app; assert callable(create_app)")
    import query.api

    assert query.api.create_app.__module__ == "query.api.app"
    with pytest.raises(AttributeError, match=r"^module 'query\.api' has no attribute 'nothing'"):
        _ = query.api.nothing  # type: ignore[attr-defined]
