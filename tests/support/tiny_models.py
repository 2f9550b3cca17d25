"""Tiny classifiers with random weights, saved in Hub layout as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from engine.errors import ModelError, ModelFailedError, ModelRefusedError, Reason
from indexers.loaders import Repository, load

CARD = "---\nlicense: apache-2.0\ntags:\n- tiny\n---\n# tiny\n"
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
ANIMALS = ["ant", "bee", "cat", "dog", "eel"]


def timm_model(folder: Path, architecture: str = "test_resnet", classes: int = 5, **config: Any) -> Path:
    """Save a timm classifier; further arguments go into its config.json."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=classes)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    written = {
        "architecture": architecture,
        "num_classes": classes,
        "label_names": ANIMALS[:classes],
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "classifier": model.pretrained_cfg["classifier"],
            "first_conv": model.pretrained_cfg["first_conv"],
        },
    }
    pretrained = {**written["pretrained_cfg"], **config.pop("pretrained_cfg", {})}
    write_json(folder / "config.json", {**written, "pretrained_cfg": pretrained, **config})
    (folder / "README.md").write_text(CARD)
    return folder


def vit_model(folder: Path, classes: int = 5, processor: Any = None, **config: Any) -> Path:
    """Save a transformers ViT classifier; further arguments go into its config."""
    labels = dict(enumerate(ANIMALS[:classes]))
    return save_transformers(
        folder, ViTForImageClassification, ViTConfig(**VIT, num_labels=classes, id2label=labels, **config), processor
    )


def deit_with_teacher(folder: Path) -> Path:
    """Save a distilled model, which answers more than logits."""
    return save_transformers(folder, DeiTForImageClassificationWithTeacher, DeiTConfig(**VIT, num_labels=5))


def save_transformers(
    folder: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, processor: Any = None, **how: Any
) -> Path:
    """Save a transformers model and its image processor."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder, **how)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def repository(folder: Path) -> Repository:
    """The folder as the loaders get it."""
    return Repository(f"{folder.parent.name}/{folder.name}", "0" * 40, folder)


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def change_weights(folder: Path, **changes: Any) -> None:
    """Set tensors of a folder's weights (dots in their names as __); None removes one."""
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in tensors.items() if value is not None}, file, {"format": "pt"})


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content))


def declined(folder: Path, reason: Reason, *parts: str, allow_pickle: bool = False) -> None:
    """Check that a folder is not loaded, for this reason, and that the one line on it says these things."""
    with pytest.raises(ModelError) as caught:
        load(repository(folder), allow_pickle=allow_pickle)
    error = caught.value
    assert error.reason is reason, error
    assert error.model == f"{folder.parent.name}/{folder.name}"
    assert error.revision == "0" * 40
    assert "\n" not in str(error)
    assert len(error.detail) < 500
    for part in parts:
        assert part in error.detail
    refusals = {Reason.NOT_A_CLASSIFIER, Reason.REMOTE_CODE, Reason.PICKLE_ONLY, Reason.UNSUPPORTED_LIBRARY}
    assert type(error) is (ModelRefusedError if reason in refusals else ModelFailedError)
