"""Vision towers to profile: of vision-language models and of classifiers, each ready to be called."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InputError, Reason
from engine.specs import absolute_spec
from engine.textfiles import read_lines
from indexers import vlm_files
from indexers.loaders.declined import naming, stage
from indexers.sources import DEFAULT_MAX_SIZE_BYTES, ModelSource, expand, fetch, revision_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

_COMMENT = re.compile(r"(^|\s)#.*")

VLM = "open_clip:"
"""How the names of vision-language models begin."""


@dataclass(frozen=True)
class TowerSource:
    """A model that a user named.

    Attributes:
        name: As profiles and performance tables name it: ``open_clip:...``, or a classifier's ``org/name``.
        classifier: Where a classifier comes from, None for a vision-language model.
        folder: Where the files of a vision-language model are in open_clip's layout, whatever its name says; None to
            find them by its name.
    """

    name: str
    classifier: ModelSource | None = None
    folder: Path | None = None

    @property
    def place(self) -> str:
        """What a user could type to mean the same model on this machine."""
        return str(self.classifier) if self.classifier else self.name


@dataclass(frozen=True)
class LoadOptions:
    """Limits of loading.

    Attributes:
        max_size_bytes: Larger classifier repositories are refused.
        allow_pickle: Also open pickled weights, of classifiers and in folders, restricted to tensors.
        cache: Where downloads of classifiers are kept; None for huggingface_hub's own place.
    """

    max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES
    allow_pickle: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class Tower:
    """A model that is ready to be profiled.

    Attributes:
        name: As it was named.
        revision: Hash of a vision-language model's weights and preprocessing, a classifier's revision.
        module: The network, in eval mode, float32, on its device.
        forward: Preprocessed images ``[b, 3, h, w]`` -> embeddings ``[b, e]`` that are not normalised; of a classifier
            its answers.
        preprocess: RGB image of any size -> float32 ``[3, h, w]``, on the CPU.
        parameters: Of the whole model.
        device: Where it runs.
    """

    name: str
    revision: str
    module: torch.nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    preprocess: Callable[[Image.Image], torch.Tensor]
    parameters: int
    device: torch.device


def expand_towers(arguments: Sequence[str]) -> list[TowerSource]:
    """Find out which models a user means.

    Args:
        arguments: ``open_clip:...`` names, Hub ids or folders of classifiers, ``@file`` with one a line.

    Returns:
        The models in the order named, each once.

    Raises:
        InputError: An argument is none of these, or names nothing, or two different models have the same name.
    """
    found: dict[str, TowerSource] = {}
    for argument in arguments:
        for source in _listed(argument) if argument.startswith("@") else _named(argument):
            first = found.setdefault(source.name, source)
            if _identity(first) != _identity(source):
                raise InputError(
                    f"{first.place} and {source.place} are both called {source.name}: an index holds only one of them"
                )
    if not found:
        raise InputError("no model is named: write open_clip:ARCH/PRETRAINED, org/name, a folder or @FILE")
    return list(found.values())


def load_tower(source: TowerSource, device: torch.device, options: LoadOptions | None = None) -> Tower:
    """Fetches and loads a model.

    Args:
        source: The model.
        device: Where it will run.
        options: Limits.

    Raises:
        EncoderError: A vision-language model cannot be loaded by its name.
        ModelError: A classifier cannot be fetched or loaded, or a vision-language model not from its folder.
    """
    options = options or LoadOptions()
    if source.classifier is not None:
        return _load_classifier(source.classifier, device, options)
    if source.folder is not None:
        return _load_vlm_folder(source.name, source.folder, device, options)
    return _load_vlm(source.name, device)


def _identity(source: TowerSource) -> object:
    classifier = source.classifier
    return classifier.folder.resolve() if classifier is not None and classifier.folder is not None else source


def _listed(argument: str) -> list[TowerSource]:
    path = Path(argument[1:])
    found: list[TowerSource] = []
    for line in read_lines(path, "model"):
        name = _COMMENT.sub("", line).strip()
        try:
            if name.startswith("@"):
                raise InputError(f"{name}: a list of models cannot name another list")
            found += _named(name) if name else []
        except InputError as error:
            raise InputError(f"the model file {path}: {error}") from error
    if not found:
        raise InputError(f"the model file {path} names no model: write one a line")
    return found


def _named(name: str) -> list[TowerSource]:
    if name.startswith(VLM):
        return [TowerSource(absolute_spec(name))]
    return [TowerSource(source.repo, source) for source in expand([name])]


def _load_vlm(name: str, device: torch.device) -> Tower:
    from engine.encoder import open_dual_encoder

    model, preprocess, _ = open_dual_encoder(name)
    return _vlm(name, model, preprocess, device)


def _load_vlm_folder(name: str, folder: Path, device: torch.device, options: LoadOptions) -> Tower:
    """The same model as by ``open_clip:local-dir:``, without its tokenizer and with a reason for what goes wrong."""
    import open_clip
    from open_clip.factory import load_checkpoint
    from open_clip.transform import PreprocessCfg, image_transform_v2

    with naming(name, None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, config, text = vlm_files.read_folder(folder, allow_pickle=options.allow_pickle)
        override: dict[str, Any] = {}
        if text is not None:
            parts: Any = config["model_cfg"]
            # Looked up on the Hub by its name otherwise; its config lies in this very folder.
            override = {"text_cfg": parts["text_cfg"] | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
        with stage(Reason.UNKNOWN_ARCHITECTURE):
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **override)
        with stage(Reason.BROKEN_WEIGHTS):
            load_checkpoint(model, str(folder / weights.files[0]), strict=True, weights_only=True)
        with stage(Reason.BAD_PREPROCESSING):
            preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        with stage(Reason.RUN_FAILED):
            return _vlm(name, model, preprocess, device)


def _vlm(name: str, model: Any, preprocess: Callable[[Image.Image], torch.Tensor], device: torch.device) -> Tower:
    from open_clip import get_model_preprocess_cfg

    from engine.encoder import weights_fingerprint

    shown = json.dumps(get_model_preprocess_cfg(model), sort_keys=True, default=str)
    revision = hashlib.sha256(f"{weights_fingerprint(model)} {shown}".encode()).hexdigest()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = model.float().eval().requires_grad_(False).to(device)
    # CoCa normalises unless it is told not to; a normalised embedding has no conductance.
    told = {"normalize": False} if "normalize" in inspect.signature(model.encode_image).parameters else {}

    def forward(images: torch.Tensor) -> Any:
        return model.encode_image(images, **told)

    return Tower(name, revision, model, forward, preprocess, parameters, device)


def _load_classifier(source: ModelSource, device: torch.device, options: LoadOptions) -> Tower:
    from indexers.loaders import load

    revision, _ = revision_of(source)
    repository = fetch(
        source,
        revision,
        max_size_bytes=options.max_size_bytes,
        allow_pickle=options.allow_pickle,
        cache=options.cache,
    )
    loaded = load(repository, allow_pickle=options.allow_pickle)
    module = loaded.module.requires_grad_(False).to(device)
    preprocessing = loaded.preprocessing

    def forward(images: torch.Tensor) -> torch.Tensor:
        return loaded.forward(module, images)

    def preprocess(image: Image.Image) -> torch.Tensor:
        return preprocessing.normalise(preprocessing.to_pixels(image))

    return Tower(loaded.repo, revision, module, forward, preprocess, loaded.parameters, device)
