"""timm models: a config.json with an ``architecture``, and one file of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.overrides import TorchFunctionMode

from engine.errors import Reason
from indexers.loaders.base import LoadedModel, Preprocessing, Repository
from indexers.loaders.declined import Declined, stage
from indexers.loaders.guard import finish, numbers_of, try_out
from indexers.loaders.header import check_demand, count_numbers
from indexers.loaders.labels import imagenet_labels, tidy
from indexers.loaders.layout import CONFIG, Weights
from indexers.loaders.preprocessing import check_sides, key_of, split

_RANDOM = frozenset(
    {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.erfinv_,
        torch.nn.init.normal_,
        torch.nn.init.uniform_,
        torch.nn.init.trunc_normal_,
        torch.nn.init.kaiming_normal_,
        torch.nn.init.kaiming_uniform_,
        torch.nn.init.xavier_uniform_,
    }
)


class _Written(TorchFunctionMode):
    """Notices which tensors are copied into, which is how ``load_state_dict`` fills a network.

    timm leaves a classifier random, without an error, where the number of classes in the config is not the one it was
    trained with; and it draws random numbers for every weight before it loads them, nine tenths of the time it takes.
    Knowing what was written solves both: what was not is an error, so nothing random is ever needed.
    """

    def __init__(self) -> None:
        super().__init__()
        # The tensors themselves: the address of one that is gone may be given to another.
        self._tensors: dict[int, object] = {}

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._tensors

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        if func is torch.Tensor.copy_:
            self._tensors[id(args[0])] = args[0]
        return func(*args, **(kwargs or {}))


def load_timm(repository: Repository, config: Mapping[str, object], weights: Weights, folder: Path) -> LoadedModel:
    """Load a timm model.

    Args:
        repository: Where the model comes from.
        config: Content of its config.json.
        weights: The chosen weights.
        folder: A folder that holds the config and the weights and nothing else.

    Raises:
        Declined: If it cannot be used.
    """
    architecture = str(config["architecture"])
    if not timm.is_model(architecture):
        raise Declined(Reason.UNKNOWN_ARCHITECTURE, f"timm {timm.__version__} has no {architecture}: update timm")
    if weights.index is not None:
        raise Declined(Reason.NO_WEIGHTS, "timm does not read sharded weights")
    wrapped = config.get("model_type") == "timm_wrapper"
    if wrapped:
        _unwrap_config(config, folder)
    name = f"local-dir:{folder}"
    with stage(Reason.BROKEN_CONFIG), torch.device("meta"):
        # Without memory first: a config can ask for anything.
        demand = numbers_of(timm.create_model(name, pretrained=False))
    files = [repository.folder / file for file in weights.files]
    check_demand(demand, sum(file.stat().st_size for file in files) if weights.pickled else count_numbers(files))
    with stage(Reason.BROKEN_WEIGHTS), _Written() as written:
        module = timm.create_model(name, pretrained=not wrapped)
        if wrapped:
            module.load_state_dict(_unwrapped_weights(repository.folder / weights.files[0]))
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor not in written:
            raise Declined(Reason.BROKEN_WEIGHTS, f"{key} is not in the weights, or not for so many classes")
    if getattr(module, "num_classes", 0) == 0:
        raise Declined(Reason.NOT_A_CLASSIFIER, "a feature extractor, it has no classes")
    module = finish(module)
    preprocessing = _preprocessing(module)
    pixels = preprocessing.normalise(torch.zeros(1, 3, *preprocessing.size, dtype=torch.uint8))
    outputs = try_out(module, _forward, pixels)
    return LoadedModel(
        repo=repository.repo,
        revision=repository.revision,
        library="timm",
        architecture=architecture,
        module=module,
        forward=_forward,
        preprocessing=preprocessing,
        labels=_labels(repository.repo, config, outputs),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        licence=repository.metadata.licence,
        tags=repository.metadata.tags,
        downloads=repository.metadata.downloads,
        likes=repository.metadata.likes,
    )


def _unwrap_config(config: Mapping[str, object], folder: Path) -> None:
    """Write the config of a timm model that transformers saved so that timm can read it."""
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def _unwrapped_weights(file: Path) -> dict[str, torch.Tensor]:
    # Versions of transformers differ in whether they save the wrapper's name with every weight.
    state: dict[str, torch.Tensor] = timm.models.load_state_dict(str(file), use_ema=False)
    return {key.removeprefix("timm_model."): tensor for key, tensor in state.items()}


def _forward(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = module(pixels)
    return answer


def _preprocessing(module: torch.nn.Module) -> Preprocessing:
    with stage(Reason.BAD_PREPROCESSING):
        data = resolve_model_data_config(module)
        channels, height, width = (int(side) for side in data["input_size"])
        if channels != 3:
            raise Declined(Reason.BAD_PREPROCESSING, f"it takes {channels} channels, photographs have three")
        crop = float(data["crop_pct"])
        if not crop > 0:
            raise Declined(Reason.BAD_PREPROCESSING, f"crop_pct is {crop:g}")
        resized = [math.floor(side / crop) for side in (height, width)]
        check_sides({"input_size": max(height, width), "input_size / crop_pct": max(resized)})
        full = create_transform(**data, is_training=False)
        to_pixels = create_transform(**data, is_training=False, normalize=False)
        key = key_of(
            {
                "library": f"timm {timm.__version__}",
                "size": [height, width],
                "resized": resized,
                "mode": data["crop_mode"],
                "interpolation": data["interpolation"],
                # The border is filled with the mean colour.
                "fill": list(data["mean"]) if data["crop_mode"] == "border" else None,
            }
        )
    return split(full, to_pixels, key)


def _labels(repo: str, config: Mapping[str, object], outputs: int) -> tuple[str | None, ...]:
    inner = config.get("pretrained_cfg")
    pretrained: Mapping[str, object] = inner if isinstance(inner, Mapping) else {}
    # timm has kept them in all of these places; "labels" is the oldest.
    found = (config.get("label_names"), pretrained.get("label_names"), config.get("labels"), pretrained.get("labels"))
    names = next((value for value in found if isinstance(value, list | dict) and value), None)
    descriptions = config.get("label_descriptions") or pretrained.get("label_descriptions")
    if isinstance(descriptions, list) and isinstance(names, list):
        descriptions = dict(zip(map(str, names), descriptions, strict=False))
    if isinstance(names, dict):
        names = {int(key): value for key, value in names.items() if str(key).isdecimal()}
    if names:
        return tidy(names, outputs, descriptions if isinstance(descriptions, dict) else None)
    # timm's own repositories declare no labels, their tag (or the end of their name) does.
    tag = pretrained.get("tag") or config.get("tag") or repo.partition("/")[2].partition(".")[2]
    return imagenet_labels(str(tag), outputs) or (None,) * outputs
