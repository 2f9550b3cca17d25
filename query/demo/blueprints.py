"""The architectures of the demo's classifiers: tiny ones of timm and of transformers, and their preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import transformers
from torch import Tensor, nn

from query.demo.gallery import Preprocessing

Library = Literal["timm", "transformers"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_WHOLE = Preprocessing(40, _IMAGENET_MEAN, _IMAGENET_STD)
_CENTRE = Preprocessing(40, _HALF, _HALF, "bicubic", 0.9)
_LARGE = Preprocessing(48, _HALF, _HALF)


@dataclass(frozen=True)
class Blueprint:
    """How to build one kind of classifier.

    Attributes:
        family: A short word for the architecture, part of the model's name.
        library: Which library builds it.
        architecture: timm's model name, or the stem of the transformers classes, such as "ResNet".
        preprocessing: What the model does to an image.
        options: The architecture's arguments; plain JSON values.
        pace: How many steps it needs to learn, relative to the others.
    """

    family: str
    library: Library
    architecture: str
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    pace: float = 1.0


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}

_RESIDUAL = Blueprint(
    "resnet",
    "transformers",
    "ResNet",
    _WHOLE,
    {"embedding_size": 24, "hidden_sizes": [24, 48, 96], "depths": [1, 1, 1], "layer_type": "basic"},
    pace=0.65,
)
_NARROW = Blueprint("resnet18", "timm", "resnet18", _WHOLE, {"layers": [1, 1, 1, 1], "channels": [24, 48, 64, 96]})
_DEEP_STEM = Blueprint("resnetd", "timm", "test_resnet", _CENTRE, pace=0.75)

BLUEPRINTS: tuple[Blueprint, ...] = (
    _DEEP_STEM,
    _RESIDUAL,
    _NARROW,
    Blueprint(
        "regnet",
        "transformers",
        "RegNet",
        _WHOLE,
        {"embedding_size": 24, "hidden_sizes": [24, 48, 96], "depths": [1, 1, 1], "groups_width": 24},
        pace=1.2,
    ),
    Blueprint("efficientnet", "timm", "test_efficientnet", _WHOLE, pace=1.2),
    Blueprint(
        "swin",
        "transformers",
        "Swin",
        _WHOLE,
        {
            "image_size": 40,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 5,
            "mlp_ratio": 2.0,
            **_NO_DROPOUT,
        },
        pace=1.4,
    ),
    Blueprint(
        "vit",
        "timm",
        "test_vit",
        _LARGE,
        {"img_size": 48, "patch_size": 8, "depth": 3, "class_token": False, "global_pool": "avg"},
        pace=1.4,
    ),
    Blueprint(
        "convnext",
        "transformers",
        "ConvNext",
        _CENTRE,
        {
            "patch_size": 4,
            "hidden_sizes": [32, 64],
            "depths": [1, 2],
            "num_stages": 2,
            "layer_scale_init_value": 1.0,
            "drop_path_rate": 0.0,
        },
        pace=1.4,
    ),
    Blueprint("byobnet", "timm", "test_byobnet", _LARGE, pace=0.7),
    Blueprint(
        "bottleneck",
        "transformers",
        "ResNet",
        _CENTRE,
        {"embedding_size": 24, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "bottleneck"},
        pace=1.2,
    ),
    _DEEP_STEM,
    Blueprint(
        "bit",
        "transformers",
        "Bit",
        _LARGE,
        {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 96],
            "depths": [1, 1, 1],
            "layer_type": "preactivation",
            "num_groups": 8,
        },
        pace=1.3,
    ),
    _NARROW,
    _RESIDUAL,
)
"""The kinds of classifiers in the order in which they are trained, the libraries taking turns."""


def build_model(blueprint: Blueprint, labels: list[str] | None, n_classes: int) -> nn.Module:
    """Builds an untrained classifier. Uses PyTorch's global generator.

    Args:
        blueprint: The kind of classifier.
        labels: The classes' declared names, or None for the library's placeholders.
        n_classes: Number of classes.

    Returns:
        The model of the library.
    """
    options = dict(blueprint.options)
    if blueprint.library == "timm":
        built: nn.Module = timm.create_model(blueprint.architecture, pretrained=False, num_classes=n_classes, **options)
        return built
    if labels is None:
        options["num_labels"] = n_classes
    else:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: i for i, label in enumerate(labels)}
    config = getattr(transformers, f"{blueprint.architecture}Config")(**options)
    name = f"{blueprint.architecture}ForImageClassification"
    config.architectures = [name]
    model: nn.Module = getattr(transformers, name)(config)
    return model


def logits(blueprint: Blueprint, model: nn.Module, inputs: Tensor) -> Tensor:
    """Runs a classifier.

    Args:
        blueprint: Its kind.
        model: The model of the library.
        inputs: Preprocessed images, [n, 3, side, side].

    Returns:
        The logits, [n, n_classes].
    """
    if blueprint.library == "timm":
        answer: Tensor = model(inputs)
    else:
        answer = model(pixel_values=inputs).logits
    return answer
