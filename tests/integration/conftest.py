"""What the integration tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from query.demo.training import World, WorldSpec, build_world


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small drawn world; HUBHOUND_TEST_WORLD names a folder to keep it in between runs."""
    kept = os.environ.get("HUBHOUND_TEST_WORLD")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("drawn") / "world"
    return build_world(folder, WorldSpec.test(), progress=False)
