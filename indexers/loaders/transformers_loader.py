"""transformers models: whatever ``AutoModelForImageClassification`` knows, never with code from the repository."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from engine.errors import Reason
from indexers.loaders.base import LoadedModel, Preprocessing, Repository
from indexers.loaders.declined import Declined, stage
from indexers.loaders.guard import finish, numbers_of, try_out
from indexers.loaders.header import check_demand, count_numbers
from indexers.loaders.labels import tidy
from indexers.loaders.layout import Weights
from indexers.loaders.preprocessing import check_sides, key_of, split

_AFFINE = frozenset(
    {"do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std", "include_top"}
)
_IRRELEVANT = frozenset(
    {
        "auto_map",
        "data_format",
        "device",
        "disable_grouping",
        "do_reduce_labels",
        "feature_extractor_type",
        "input_data_format",
        "processor_class",
        "return_tensors",
    }
)
_SWITCHED = {"do_resize": ("size", "resample"), "do_center_crop": ("crop_size",), "do_pad": ("pad_size",)}
"""Settings of an image processor: the affine part's, those without influence, and those that a switch turns off."""


def load_transformers(
    repository: Repository, config: Mapping[str, object], weights: Weights, folder: Path
) -> LoadedModel:
    """Load a transformers image classifier.

    Args:
        repository: Where the model comes from.
        config: Content of its config.json.
        weights: The chosen weights.
        folder: A folder that holds the configs and the weights and nothing else.

    Raises:
        Declined: If it cannot be used.
    """
    architecture = _architecture(config)
    preprocessing = _preprocessing(folder)
    with stage(Reason.BROKEN_CONFIG):
        parsed = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        parsed.return_dict = True
        parsed.output_attentions = parsed.output_hidden_states = False
        with torch.device("meta"):
            # Without memory first: a config can ask for anything.
            demand = numbers_of(AutoModelForImageClassification.from_config(parsed, trust_remote_code=False))
    files = [repository.folder / file for file in weights.files]
    check_demand(demand, sum(file.stat().st_size for file in files) if weights.pickled else count_numbers(files))
    with stage(Reason.BROKEN_WEIGHTS):
        module, report = AutoModelForImageClassification.from_pretrained(
            folder,
            config=parsed,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=not weights.pickled,
            weights_only=True,
            # They are reported with the rest, and end in an error of ours that names them.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_report(module, report)
    module = finish(module)
    pixels = preprocessing.normalise(torch.zeros(1, 3, *preprocessing.size, dtype=torch.uint8))
    outputs = try_out(module, _forward, pixels)
    return LoadedModel(
        repo=repository.repo,
        revision=repository.revision,
        library="transformers",
        architecture=architecture,
        module=module,
        forward=_forward,
        preprocessing=preprocessing,
        labels=_labels(config, outputs),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        licence=repository.metadata.licence,
        tags=repository.metadata.tags,
        downloads=repository.metadata.downloads,
        likes=repository.metadata.likes,
    )


def _forward(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    answer = module(pixel_values=pixels)
    # Distilled models answer the mean of their two heads as logits too; PP-LCNet has another name for them.
    logits: torch.Tensor = answer.logits if hasattr(answer, "logits") else answer.last_hidden_state
    return logits


def _architecture(config: Mapping[str, object]) -> str:
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(config.get("model_type")) or ()
    known = (known,) if isinstance(known, str) else tuple(known)
    declared = config.get("architectures")
    names = [str(name) for name in declared] if isinstance(declared, list) else []
    fitting = [name for name in names if name in known] if names else list(known)
    if fitting:
        return fitting[0]
    if config.get("auto_map"):
        raise Declined(Reason.REMOTE_CODE, "its architecture is code in the repository, which is never run")
    if names or config.get("model_type") not in CONFIG_MAPPING_NAMES:
        wanted = names[0] if names else config.get("model_type")
        raise Declined(
            Reason.UNKNOWN_ARCHITECTURE,
            f"transformers {transformers.__version__} has no {wanted} of model type {config.get('model_type')}",
        )
    raise Declined(Reason.NOT_A_CLASSIFIER, f"it is a {config.get('model_type')}")


def _check_report(module: torch.nn.Module, report: Mapping[str, Any]) -> None:
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report["mismatched_keys"])
    if mismatched:
        raise Declined(Reason.BROKEN_WEIGHTS, f"{_some(mismatched)} in the weights has another shape than the config")
    # Buffers that the model computes itself are no loss; running statistics it cannot.
    needed = {name for name, _ in module.named_parameters()}
    missing = sorted(
        str(name)
        for name in report["missing_keys"]
        if name in needed or str(name).endswith(("running_mean", "running_var"))
    )
    if missing:
        raise Declined(Reason.BROKEN_WEIGHTS, f"{_some(missing)} is not in the weights and would be random")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _preprocessing(folder: Path) -> Preprocessing:
    with stage(Reason.BAD_PREPROCESSING):
        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise Declined(
                    Reason.REMOTE_CODE, "its image processor is code in the repository, which is never run"
                ) from error
            raise
        made = next(iter(processor.model_input_names), "nothing")
        if made != "pixel_values":
            raise Declined(Reason.BAD_PREPROCESSING, f"it turns images into {made}, not into pixels")
        settings = processor.to_dict()
        check_sides(dict(_sides(settings)))
        bytes_only: dict[str, object] = {"do_rescale": False, "do_normalize": False}
        if settings.get("include_top"):
            bytes_only["include_top"] = False  # EfficientNet's second division by the standard deviation

        def full(image: Image.Image) -> torch.Tensor:
            return _pixel_values(processor(image, return_tensors="pt"))

        def to_pixels(image: Image.Image) -> torch.Tensor:
            return _pixel_values(processor(image, return_tensors="pt", **bytes_only))

        return split(full, to_pixels, _key(processor, settings))


def _pixel_values(answer: Mapping[str, torch.Tensor]) -> torch.Tensor:
    values = answer["pixel_values"]
    if values.ndim != 4:
        raise Declined(Reason.BAD_PREPROCESSING, f"it makes an array of shape {list(values.shape)} of an image")
    return values[0]


def _sides(settings: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    crop = settings.get("crop_pct")
    for name in ("size", "crop_size", "pad_size"):
        value = settings.get(name)
        for key, side in (value if isinstance(value, dict) else {"": value}).items():
            if isinstance(side, int | float):
                yield f"{name} {key}".strip(), float(side)
                if name == "size" and isinstance(crop, int | float):
                    yield f"{name} {key} / crop_pct", side / crop if crop > 0 else math.inf


def _key(processor: object, settings: Mapping[str, object]) -> str:
    ignored = _AFFINE | _IRRELEVANT
    for switch, settings_of_it in _SWITCHED.items():
        if not settings.get(switch):
            ignored = ignored.union(settings_of_it)
    kept = {name: value for name, value in settings.items() if name not in ignored and value is not None}
    # What a class does with the same settings is its own affair.
    kept["image_processor_type"] = type(processor).__qualname__
    return key_of({"library": f"transformers {transformers.__version__}", "settings": kept})


def _labels(config: Mapping[str, object], outputs: int) -> tuple[str | None, ...]:
    declared = config.get("id2label")
    if not isinstance(declared, dict):
        return (None,) * outputs
    return tidy({int(key): name for key, name in declared.items() if str(key).isdecimal()}, outputs)
