"""What the integration tests share."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from query.cli.main import run
from query.demo.training import World, WorldSpec, build_world


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small drawn world; HUBHOUND_TEST_WORLD names a folder to keep it in between runs."""
    kept = os.environ.get("HUBHOUND_TEST_WORLD")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("drawn") / "world"
    return build_world(folder, WorldSpec.test(), progress=False)


REALHUB = Path(os.environ.get("HUBHOUND_TEST_REALHUB", Path(__file__).parents[3] / "shared" / "realhub"))
REAL_MODELS = ("timm/tf_efficientnet_lite0.in1k", "google/mobilenet_v1_0.25_128")
REAL_PROBES = 240


@pytest.fixture(scope="session")
def real_zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """Two real models, indexed with 240 photographs by the command line; and which classes have a photograph.

    Beside the index lie ``photos``, ``cache`` and ``truth.json``, the truth about the two models.
    """
    root = tmp_path_factory.mktemp("real")
    (root / "photos").mkdir()
    with (REALHUB / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:REAL_PROBES]]
    for row in chosen:
        shutil.copy(REALHUB / row["file"], root / "photos")
    folder = root / "zoo"
    encoder = f"open_clip:local-dir:{REALHUB / 'encoder'}"
    assert run(["index", "create", "--index", str(folder), "--probes", str(root / "photos"), "--encoder", encoder]) == 0
    models = [str(REALHUB / "models" / name) for name in REAL_MODELS]
    assert run(["index", "add", "--index", str(folder), "--cache", str(root / "cache"), *models]) == 0
    labels = json.loads((REALHUB / "labels.json").read_text())
    (root / "truth.json").write_text(json.dumps({name: labels[name] for name in REAL_MODELS}))
    return folder, {int(row["class_index"]) for row in chosen}
