"""Specifications of encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.specs import absolute_spec


def test_a_local_encoder_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("open_clip:local-dir:clips/mine") == f"open_clip:local-dir:{tmp_path / 'clips' / 'mine'}"
    assert absolute_spec("open_clip:local-dir:/clips/mine") == "open_clip:local-dir:/clips/mine"
    for other in ("open_clip:ViT-B-32/openai", "open_clip:hf-hub:org/clip", "open_clip:local-dir:", "nonsense"):
        assert absolute_spec(other) == other
