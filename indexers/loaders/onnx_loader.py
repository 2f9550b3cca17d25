"""ONNX models: a graph in ``onnx/`` or at the top, and a preprocessor_config.json as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.errors import Reason
from indexers.loaders.base import LoadedModel, Repository
from indexers.loaders.declined import Declined, stage
from indexers.loaders.guard import try_out
from indexers.loaders.image_processor import image_processor
from indexers.loaders.labels import declared_labels
from indexers.loaders.layout import CONFIG, Weights
from indexers.loaders.onnx_graph import read_graph
from indexers.loaders.onnx_network import OnnxNetwork, Port

BATCH_TOLERANCE = 1e-3
"""Largest difference that running two images at once may make, relative to the largest answer."""


def load_onnx(repository: Repository, config: Mapping[str, object], weights: Weights, folder: Path) -> LoadedModel:
    """Load an image classifier that is an ONNX graph.

    Args:
        repository: Where the model comes from.
        config: Content of its config.json.
        weights: The chosen weights.
        folder: A folder that holds the configs and nothing else.

    Raises:
        Declined: If it cannot be used.
    """
    if isinstance(config.get("architecture"), str):
        # Beside a config of timm's, transformers would read timm's settings instead of the preprocessor's own.
        (folder / CONFIG).unlink()
    preprocessing = image_processor(folder)
    graph = read_graph(repository, weights)
    module = OnnxNetwork(graph)
    module.batch = _check_inputs(module.inputs, preprocessing.size)
    module.output = _output(module.outputs, config)
    module.eval()
    pixels = preprocessing.normalise(_noise(2, preprocessing.size))
    outputs = try_out(module, _forward, pixels[:1])
    if module.batch is None and not _takes_batches(module, pixels):
        module.batch = 1
    return LoadedModel(
        repo=repository.repo,
        revision=repository.revision,
        library="onnx",
        architecture=_architecture(config),
        module=module,
        forward=_forward,
        preprocessing=preprocessing,
        labels=declared_labels(config, outputs),
        parameters=graph.parameters,
        licence=repository.metadata.licence,
        tags=repository.metadata.tags,
        downloads=repository.metadata.downloads,
        likes=repository.metadata.likes,
    )


def _forward(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = module(pixels)
    return answer


def _architecture(config: Mapping[str, object]) -> str:
    declared = config.get("architectures")
    names = declared if isinstance(declared, list) else []
    found = (*names[:1], config.get("architecture"), config.get("model_type"))
    return next((name for name in found if isinstance(name, str) and name), "onnx")


def _check_inputs(inputs: list[Port], size: tuple[int, int]) -> int | None:
    """Images that the graph takes at once, None for any number."""
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs[:4]) or "nothing"
        raise Declined(Reason.NOT_A_CLASSIFIER, f"its graph takes {names}, not one image")
    port = inputs[0]
    shape = [side or "any" for side in port.shape]
    if port.dtype is None or (shape and len(shape) != 4):
        raise Declined(Reason.NOT_A_CLASSIFIER, f"its graph takes {port.name} of shape {shape}, no float images")
    for side, wanted in zip(port.shape[1:], (3, *size), strict=False):
        if side not in (None, wanted):
            raise Declined(
                Reason.BAD_PREPROCESSING,
                f"its graph takes images of shape {shape[1:]}, its preprocessing makes {[3, *size]}",
            )
    return port.shape[0] if port.shape else None


def _output(outputs: list[Port], config: Mapping[str, object]) -> Port:
    floats = [port for port in outputs if port.dtype is not None]
    labels = config.get("id2label")
    named = next((port for port in floats if port.name == "logits"), None)
    if named is not None:
        return named
    if not config.get("architectures") and not config.get("architecture") and not labels:
        raise Declined(
            Reason.NOT_A_CLASSIFIER, "neither an architecture, nor labels, nor an output called logits say that it is"
        )
    rows = [port for port in floats if len(port.shape) == 2]
    # A sort keeps the graph's order among equals.
    rows.sort(key=lambda port: not isinstance(labels, dict) or port.shape[1] != len(labels))
    # The rank of an only output may be unknown; trying it out tells.
    chosen = rows or [port for port in floats if not port.shape and len(floats) == 1]
    if not chosen:
        said = ", ".join(f"{port.name} {[side or 'any' for side in port.shape]}" for port in outputs[:4]) or "nothing"
        raise Declined(Reason.NOT_A_CLASSIFIER, f"its graph answers {said}, not one row of numbers an image")
    return chosen[0]


def _noise(images: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8, generator=generator)


def _takes_batches(module: OnnxNetwork, pixels: torch.Tensor) -> bool:
    """Whether two images at once give what each gives alone; what a graph declares is not always what it does."""
    with stage(Reason.RUN_FAILED), torch.inference_mode():
        alone = torch.cat([module(pixels[:1]), module(pixels[1:])])
        try:
            together: torch.Tensor = module(pixels)
        except RuntimeError:
            return False
    scale = max(float(alone.abs().max()), 1e-6)
    return bool((together - alone).abs().max() <= BATCH_TOLERANCE * scale)
