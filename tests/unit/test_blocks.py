"""Which modules of a network are its blocks."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from engine.blocks import find_blocks
from engine.errors import BlocksError
from tests.support.small_towers import FAMILIES, small_tower, vit

GROUNDTRUTH = Path(__file__).parents[3] / "shared" / "groundtruth" / "vision_blocks.csv"
TIMM_STAGES = 4


def tower_of(architecture: str) -> nn.Module:
    """The vision tower of an open_clip architecture, without weights."""
    config: Any = open_clip.get_model_config(architecture)
    logging.disable(logging.CRITICAL)
    try:
        with torch.device("meta"):
            tower: nn.Module = _build_vision_tower(config["embed_dim"], dict(config["vision_cfg"]))
    finally:
        logging.disable(logging.NOTSET)
    return tower


@pytest.mark.parametrize(
    ("architecture", "first", "blocks"),
    [
        ("RN50", "layer1", 4),
        ("RN50x64", "layer1", 4),
        ("ViT-B-32", "transformer.resblocks.0", 12),
        ("ViT-bigG-14-CLIPA", "transformer.resblocks.0", 48),
        ("ViT-M-16-alt", "transformer.resblocks.0", 12),
        ("coca_ViT-B-32", "transformer.resblocks.0", 12),
        ("convnext_base_w", "trunk.stages.0", 4),
        ("convnext_xxlarge", "trunk.stages.0", 4),
        ("EVA01-g-14", "trunk.blocks.0", 40),
        ("EVA02-L-14", "trunk.blocks.0", 24),
        ("ViT-B-16-SigLIP", "trunk.blocks.0", 12),
        ("ViT-SO400M-14-SigLIP", "trunk.blocks.0", 27),
        ("swin_base_patch4_window7_224", "trunk.layers.0", 4),
        ("vit_medium_patch16_gap_256", "trunk.blocks.0", 12),
        ("MobileCLIP-S1", "trunk.stages.0", 4),
        ("MobileCLIP2-S3", "trunk.stages.0", 5),
        ("ViTamin-S", "trunk.blocks.0", 14),
        ("PE-Core-T-16-384", "trunk.blocks.0", 12),
    ],
)
def test_towers_of_open_clip(architecture: str, first: str, blocks: int) -> None:
    tower = tower_of(architecture)
    found = find_blocks(tower)
    assert next(iter(found)) == first
    assert len(found) == blocks
    assert all(tower.get_submodule(name) is module for name, module in found.items())


@pytest.mark.real
def test_the_models_of_the_paper_have_the_blocks_that_are_stated() -> None:
    if not GROUNDTRUTH.exists():
        pytest.skip(f"needs {os.path.relpath(GROUNDTRUTH)}")
    seen: set[str] = set()
    with GROUNDTRUTH.open(newline="") as file:
        for row in csv.DictReader(file):
            config = str(open_clip.get_model_config(row["model"])["vision_cfg"])  # type: ignore[index]
            if config in seen:
                continue
            seen.add(config)
            found = len(find_blocks(tower_of(row["model"])))
            layers = json.loads(row["layers"]) if row["layers"] != "None" else None
            if isinstance(layers, int):
                assert found == layers, row["model"]
            elif isinstance(layers, list):  # blocks of each stage
                assert found == len(layers), row["model"]
            else:
                with torch.device("meta"):
                    network = timm.create_model(row["vision"].removeprefix("timm:"))
                sequence = network.blocks if hasattr(network, "blocks") else network.stages
                assert found == len(sequence), row["model"]
    assert len(seen) > 15


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_its_blocks(family: str) -> None:
    tower = small_tower(family)
    names = list(find_blocks(tower.module))
    assert len(names) == tower.blocks
    order = [name for name, _ in tower.module.named_modules()]
    assert [order.index(name) for name in names] == sorted(order.index(name) for name in names)


def test_the_tower_of_a_whole_model_keeps_its_prefix() -> None:
    names = list(find_blocks(small_tower("open_clip CoCa").module))
    assert names == [f"visual.transformer.resblocks.{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("regnety_002", ["s1", "s2", "s3", "s4"]),
        ("mobilenetv3_small_050", ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
        ("densenet121", ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"]),
        ("convnextv2_atto", ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ],
)
def test_stems_are_no_blocks(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        assert list(find_blocks(timm.create_model(name))) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("transformer.resblocks.*", [f"transformer.resblocks.{i}" for i in range(4)]),
        ("transformer.resblocks.2", ["transformer.resblocks.2"]),
        ("*.*.1", ["transformer.resblocks.1"]),
        ("*.1", []),
        ("**.attn", [f"transformer.resblocks.{i}.attn" for i in range(4)]),
        ("transformer.*.attn", []),
        ("**.2.ln_*", ["transformer.resblocks.2.ln_1", "transformer.resblocks.2.ln_2"]),
        ("transformer.**.c_proj", [f"transformer.resblocks.{i}.mlp.c_proj" for i in range(4)]),
        ("transformer.resblock", []),
        ("transformer.resblocks.[0-9]", []),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    tower = vit()
    if expected:
        assert list(find_blocks(tower, pattern)) == expected
        return
    with pytest.raises(BlocksError) as caught:
        find_blocks(tower, pattern)
    assert caught.value.pattern == pattern
    assert repr(pattern) in str(caught.value)
    assert "transformer.resblocks" in str(caught.value)


def test_a_network_without_known_blocks() -> None:
    with torch.device("meta"):
        network = timm.create_model("nasnetalarge")
    with pytest.raises(BlocksError) as caught:
        find_blocks(network)
    message = str(caught.value)
    assert caught.value.pattern is None
    assert "\n" not in message
    for part in ("NASNetALarge", "transformer.resblocks", "feature_info", "layer1 to layer4", "stages", "--blocks"):
        assert part in message
    assert len(find_blocks(network, "cell_*")) > 10
    with pytest.raises(BlocksError, match="a Linear has no blocks"):
        find_blocks(nn.Linear(2, 2))
