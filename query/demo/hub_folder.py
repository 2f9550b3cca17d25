"""Classifiers as folders, laid out as their libraries' models are on the Hub."""

import json
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from query.demo.blueprints import Blueprint
from query.demo.classifiers import Assignment
from query.demo.gallery import Preprocessing

_CARD = """---
license: apache-2.0
library_name: {library}
pipeline_tag: image-classification
tags:
- {library}
- image-classification
- tiny
---

# {name}

A tiny image classifier with {n_classes} outputs, trained on drawings within seconds. It exists for demonstrations and
tests only.
"""


def _timm_config(assignment: Assignment) -> dict[str, Any]:
    blueprint, preprocessing = assignment.blueprint, assignment.blueprint.preprocessing
    config: dict[str, Any] = {
        "architecture": blueprint.architecture,
        "num_classes": len(assignment.concepts),
        "pretrained_cfg": {
            "tag": "drawn",
            "custom_load": False,
            "input_size": [3, preprocessing.size_px, preprocessing.size_px],
            "fixed_input_size": "img_size" in blueprint.options,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_fraction,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(assignment.concepts),
            "license": "apache-2.0",
        },
    }
    if blueprint.options:
        config["model_args"] = dict(blueprint.options)
    if assignment.labels is not None:
        config["label_names"] = assignment.labels
    return config


def _image_processor(preprocessing: Preprocessing) -> transformers.BaseImageProcessor:
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    common: dict[str, Any] = {
        "resample": int(resample[preprocessing.interpolation]),
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.crop_fraction < 1:
        size = {"shortest_edge": preprocessing.size_px}
        return transformers.ConvNextImageProcessor(size=size, crop_pct=preprocessing.crop_fraction, **common)
    size = {"height": preprocessing.size_px, "width": preprocessing.size_px}
    return transformers.ViTImageProcessor(size=size, **common)


def _save_config(assignment: Assignment, model: nn.Module, folder: Path) -> None:
    blueprint: Blueprint = assignment.blueprint
    if blueprint.library == "timm":
        text = json.dumps(_timm_config(assignment), indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        return
    config: Any = model.config
    config.save_pretrained(folder)
    _image_processor(blueprint.preprocessing).save_pretrained(folder)


def save_classifier(assignment: Assignment, model: nn.Module, folder: Path) -> None:
    """Writes a classifier as its library's loaders expect it.

    Args:
        assignment: What the classifier is.
        model: The trained model.
        folder: Where to, made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_config(assignment, model, folder)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    card = _CARD.format(library=assignment.blueprint.library, name=assignment.name, n_classes=len(assignment.concepts))
    (folder / "README.md").write_text(card, encoding="utf-8")
