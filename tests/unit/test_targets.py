"""Where the models that a target is shown to are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.conductance_cache import FILE, ConductanceCache
from engine.errors import ModelFailedError
from engine.index import Index
from indexers.profiler import ProfileSettings
from indexers.sources import ModelSource
from indexers.towers import TowerSource
from query.targets import TargetProfiler
from tests.support.small_index import make_index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_index(tmp_path / "zoo")


def source(index: Index, model: str, revision: str | None = None, **folders: TowerSource) -> TowerSource:
    return TargetProfiler(index, "cpu", ProfileSettings(), folders)._source(model, revision)


def classifier(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_vision_language_model_is_its_name(index: Index) -> None:
    assert source(index, "open_clip:a/b", "sha") == TowerSource("open_clip:a/b")


def test_a_classifier_of_the_hub_at_the_revision_that_was_profiled(index: Index) -> None:
    assert source(index, "org/a").classifier == ModelSource("org/a")
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", "sha")
    ConductanceCache(index.folder / FILE).remember_place("org/a", "org/a@v2")
    assert source(index, "org/a").classifier == ModelSource("org/a", "v2")
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", "sha")


def test_a_classifier_of_a_folder(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = classifier(tmp_path / "there/org/a")
    here = classifier(tmp_path / "here/org/a")
    monkeypatch.chdir(tmp_path / "here")
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", folder=here)
    ConductanceCache(index.folder / FILE).remember_place("org/a", str(there))
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", folder=there)
    (there / "config.json").unlink()
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", folder=here)
    monkeypatch.chdir(tmp_path)
    assert source(index, "org/a", "sha").classifier == ModelSource("org/a", "sha")


def test_a_folder_that_was_named(index: Index, tmp_path: Path) -> None:
    named = TowerSource("org/a", ModelSource("org/a", folder=tmp_path))
    assert source(index, "org/a", "sha", **{"org/a": named}) is named


def test_a_model_that_is_nowhere(index: Index, tmp_path: Path) -> None:
    ConductanceCache(index.folder / FILE).remember_place("org/a..b", str(tmp_path / "gone"))
    with pytest.raises(ModelFailedError, match="neither where it was profiled nor on the Hub") as caught:
        source(index, "org/a..b")
    assert caught.value.model == "org/a..b"
