"""transformers models: whatever ``AutoModelForImageClassification`` knows, never with code from the repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from engine.errors import Reason
from indexers.loaders.base import LoadedModel, Repository
from indexers.loaders.declined import Declined, stage
from indexers.loaders.guard import finish, numbers_of, try_out
from indexers.loaders.header import check_demand, count_numbers
from indexers.loaders.image_processor import image_processor
from indexers.loaders.labels import declared_labels
from indexers.loaders.layout import Weights


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
    preprocessing = image_processor(folder)
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
        labels=declared_labels(config, outputs),
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
