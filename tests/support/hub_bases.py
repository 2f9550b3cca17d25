"""Tiny real classifiers for a crowded hub: a few networks made once by their libraries, then copied with other weights.

Only `bases` needs torch; a copy is made with numpy in a millisecond. All take images of 32 pixels, have five to forty
thousand parameters and answer logits that spread by about one, so that no two copies answer alike.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

SIDE = 32
MOST_CLASSES = 20
FEWEST_CLASSES = 5
NOISE = 0.1
"""Change of the body's weights, relative to their own spread."""

Tensors = dict[str, npt.NDArray[Any]]

COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "golden", "spotted", "striped")
ANIMALS = tuple(
    "ant bear cat dog eel fox goat hare ibis jay koala lion mole newt owl pig quail rat seal toad".split()  # noqa: SIM905
)
WORDS = tuple(f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS)


@dataclass(frozen=True)
class Base:
    """A network that copies are made of.

    Attributes:
        name: Short, for the copies' names.
        library: ``timm`` or ``transformers``.
        config: Its config.json.
        processor: Its preprocessor_config.json, None for timm.
        tensors: Its weights.
        head: Name of the last layer.
        mean: Of the head's inputs over images.
        spread: Of all the head's inputs together over images.
    """

    name: str
    library: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any] | None
    tensors: Tensors
    head: str
    mean: npt.NDArray[np.float64]
    spread: float

    def copy(self, rng: np.random.Generator, classes: int) -> Tensors:
        """Weights of another network of the kind: a slightly different body with a head of its own."""
        tensors = {}
        for name, values in self.tensors.items():
            changed = values.dtype == np.float32 and not name.endswith(("running_mean", "running_var"))
            scale = np.float32(NOISE * values.std() if changed else 0)
            tensors[name] = values + scale * rng.standard_normal(values.shape, np.float32) if changed else values
        weight = rng.standard_normal((classes, len(self.mean))) / self.spread
        tensors[f"{self.head}.weight"] = weight.astype(np.float32)
        tensors[f"{self.head}.bias"] = (-weight @ self.mean).astype(np.float32)
        return tensors

    def config_of(self, labels: Sequence[str]) -> dict[str, Any]:
        """The config of a copy with these outputs."""
        if self.library == "timm":
            return {**self.config, "num_classes": len(labels), "label_names": list(labels)}
        names = {str(output): label for output, label in enumerate(labels)}
        return {**self.config, "id2label": names, "label2id": {label: int(output) for output, label in names.items()}}


def write(folder: Path, base: Base, tensors: Tensors, labels: Sequence[str]) -> None:
    """Save a classifier in Hub layout."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(base.config_of(labels)))
    if base.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(base.processor))
    write_card(folder, base.library)


def write_card(folder: Path, library: str) -> None:
    """Save a card that says that it is an image classifier."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(
        f"---\nlicense: apache-2.0\nlibrary_name: {library}\npipeline_tag: image-classification\n"
        f"tags:\n- {library}\n- image-classification\n- tiny\n---\nA tiny image classifier.\n"
    )


def draw_labels(rng: np.random.Generator, classes: int) -> list[str]:
    """Different labels, as many as there are classes."""
    return [WORDS[number] for number in rng.choice(len(WORDS), classes, replace=False)]


@functools.cache
def bases() -> tuple[Base, ...]:
    """The networks, made anew in every process: three of timm, three of transformers."""
    import timm
    import torch
    from transformers import (
        ConvNextConfig,
        ConvNextForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    vit = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    resnet = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}
    convnext = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        return (
            _timm("timm-vit", timm.create_model("vit_tiny_patch16_224", num_classes=5, **vit), vit),
            _timm("timm-resnet", timm.create_model("resnet18", num_classes=5, **resnet), resnet),
            _timm("timm-convnext", timm.create_model("convnext_atto", num_classes=5, **convnext), convnext),
            _transformers(
                "vit",
                ViTForImageClassification(
                    ViTConfig(
                        hidden_size=24,
                        num_hidden_layers=2,
                        num_attention_heads=2,
                        intermediate_size=48,
                        image_size=SIDE,
                        patch_size=8,
                        num_labels=5,
                    )
                ),
                "classifier",
            ),
            _transformers(
                "resnet",
                ResNetForImageClassification(
                    ResNetConfig(
                        embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 1], layer_type="basic", num_labels=5
                    )
                ),
                "classifier.1",
            ),
            _transformers(
                "convnext",
                ConvNextForImageClassification(
                    ConvNextConfig(hidden_sizes=[8, 16, 24], num_stages=3, depths=[1, 1, 1], num_labels=5)
                ),
                "classifier",
            ),
        )


def _timm(name: str, model: Any, options: Mapping[str, Any]) -> Base:
    architecture = model.pretrained_cfg["architecture"]
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "model_args": dict(options),
        "pretrained_cfg": {
            "tag": "crowd",
            "custom_load": False,
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": "img_size" in options,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 5,
            "classifier": model.pretrained_cfg["classifier"],
            "first_conv": model.pretrained_cfg["first_conv"],
        },
    }
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    head = model.pretrained_cfg["classifier"]
    return Base(name, "timm", config, None, tensors, head, *_measure(model, head))


def _transformers(name: str, model: Any, head: str) -> Base:
    from transformers import ViTImageProcessor

    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(scratch)
        folder = Path(scratch)
        config = json.loads((folder / "config.json").read_text())
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    return Base(name, "transformers", config, processor, tensors, head, *_measure(model, head))


def _measure(model: Any, head: str) -> tuple[npt.NDArray[np.float64], float]:
    """Mean and spread of what reaches the head, over images with coarse and fine structure."""
    import torch

    seen = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode():
            coarse = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=(SIDE, SIDE), mode="bilinear")
            model.eval()((coarse + 0.3 * torch.randn(64, 3, SIDE, SIDE)).clamp(-1, 1))
    finally:
        handle.remove()
    features = seen[0].double().numpy()
    return features.mean(axis=0), float(np.sqrt(features.var(axis=0).sum()))
