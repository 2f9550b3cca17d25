"""Conductance of real classifiers against captum."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance
from PIL import Image
from torch import Tensor

from engine.blocks import find_blocks
from engine.conductance import layer_conductance
from indexers.towers import LoadOptions, expand_towers, load_tower
from tests.integration.conftest import REALHUB

pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not REALHUB.exists(), reason="needs ../shared/realhub"),
]


@pytest.mark.parametrize(
    ("model", "blocks"), [("timm/tf_efficientnet_lite0.in1k", 5), ("google/mobilenet_v1_0.25_128", 26)]
)
def test_real_classifiers_are_as_captum_has_them(model: str, blocks: int) -> None:
    (source,) = expand_towers([str(REALHUB / "models" / model)])
    tower = load_tower(source, torch.device("cpu"), LoadOptions())
    with (REALHUB / "images.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    image = tower.preprocess(Image.open(REALHUB / row["file"]).convert("RGB"))[None]
    found_blocks = find_blocks(tower.module)
    assert len(found_blocks) == blocks
    found = layer_conductance(tower.forward, tower.module, found_blocks, image, n_steps=5, max_batch=4, keep_maps=True)

    def objective(images: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(tower.forward(images), dim=1)
        return norms

    for map_, block in zip(found.maps, found_blocks.values(), strict=True):
        expected = LayerConductance(objective, block).attribute(image, n_steps=5).detach()
        assert float((map_ - expected).abs().max() / expected.abs().max()) < 1e-5
    assert np.isfinite(found.completeness_gap).all()
