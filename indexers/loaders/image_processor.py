"""Preprocessing as transformers describes it, in a preprocessor_config.json; ONNX repositories have it too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from engine.errors import Reason
from indexers.loaders.base import Preprocessing
from indexers.loaders.declined import Declined, stage
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


def image_processor(folder: Path) -> Preprocessing:
    """Read the preprocessing that a preprocessor_config.json describes, every ``do_*`` switch of it honoured.

    Args:
        folder: A folder that holds the configs and nothing that could be code.

    Returns:
        The preprocessing, proven to be what transformers makes of the file.

    Raises:
        Declined: If it needs remote code, makes no pixels or huge ones, or cannot be split into bytes and scaling.
    """
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
