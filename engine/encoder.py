"""Concept encoders: text and images into one embedding space, through open_clip."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.descriptors import FloatArray, normalise
from engine.errors import ConceptError, EncoderError
from engine.specs import absolute_spec
from engine.throughput import Runner, Way

_TEXT_BATCH = 64


class ConceptEncoder:
    """A dual encoder of text and images.

    Use ``ConceptEncoder.load``.

    Attributes:
        spec: As the user named it.
        fingerprint: SHA-256 over the names and values of all weights, hexadecimal: the encoder's identity.
        dimension: d, length of an embedding.
        device: Where it runs.
    """

    def __init__(
        self,
        spec: str,
        model: Any,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Any,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.device = device
        self._model = model.float().eval().to(device)
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._way: Way | None = None
        self.fingerprint = weights_fingerprint(model)
        self.dimension = int(self.encode_texts(["a"], ("{}",)).shape[1])

    @classmethod
    def load(cls, spec: str, device: torch.device | None = None) -> ConceptEncoder:
        """Loads an encoder.

        Args:
            spec: ``open_clip:ARCH/PRETRAINED``, ``open_clip:hf-hub:ORG/NAME`` or ``open_clip:local-dir:FOLDER``. A
                local folder is loaded without any network, also where the text tower is a Hugging Face model whose
                config and tokenizer lie in the same folder.
            device: The CPU by default.

        Raises:
            EncoderError: The specification is malformed, or the encoder is missing, broken or cannot be fetched.
        """
        model, preprocess, tokenizer = open_dual_encoder(spec)
        spec = absolute_spec(spec)
        return cls(spec, model, preprocess, tokenizer, device or torch.device("cpu"))

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        """Embeddings of texts: the mean over the prompt templates of the normalised embeddings, normalised.

        Args:
            texts: c texts, not empty.
            templates: Each with one ``{}`` for the text.

        Returns:
            float32 ``[c, d]``, rows of length 1.

        Raises:
            ConceptError: The encoder's vocabulary knows no part of a text.
        """
        prompts = [template.replace("{}", text) for text in texts for template in templates]
        self._refuse_unknown(texts)
        rows = []
        with torch.inference_mode(), _quiet():
            for start in range(0, len(prompts), _TEXT_BATCH):
                tokens = self._trimmed(self._tokenizer(prompts[start : start + _TEXT_BATCH])).to(self.device)
                rows.append(self._model.encode_text(tokens, normalize=True).float().cpu().numpy())
        stacked = np.concatenate(rows).reshape(len(texts), len(templates), -1)
        return normalise(stacked.mean(axis=1, dtype=np.float64))

    def encode_images(
        self, images: Iterable[Image.Image], count: int, progress: Callable[[int], None] | None = None
    ) -> FloatArray:
        """Embeddings of images.

        Args:
            images: RGB images of any size, in order; consumed as needed.
            count: How many will be taken at most.
            progress: Called with the number done.

        Returns:
            float32 ``[m, d]``, rows of length 1; m is smaller than ``count`` if the images end earlier.
        """
        source = iter(images)
        rows: list[FloatArray] = []

        def fetch(start: int, stop: int) -> torch.Tensor:
            batch = [self._preprocess(image) for image in islice(source, stop - start)]
            if not batch:
                raise _EndedError
            return torch.stack(batch)

        runner = Runner(self._model.encode_image, self._model, self.device, self._way)
        try:
            for answer in runner.run(fetch, count, progress):
                rows.append(answer.numpy())
        except _EndedError:
            pass
        self._way = runner.way
        return normalise(np.concatenate(rows)) if rows else np.zeros((0, self.dimension), np.float32)

    def _trimmed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Leaves out columns that are padding in every row, where the tower masks padding: up to ten times faster.

        Only Hugging Face towers do; CLIP's own pool or attend by position, so their rows stay as long as they are.
        """
        from open_clip.hf_model import HFTextEncoder

        tower = getattr(self._model, "text", None)
        pad = getattr(getattr(tower, "config", None), "pad_token_id", None)
        if not isinstance(tower, HFTextEncoder) or pad is None:
            return tokens
        used = (tokens != pad).any(dim=0).nonzero()
        return tokens[:, : int(used.max()) + 1] if len(used) else tokens

    def _refuse_unknown(self, texts: Sequence[str]) -> None:
        """A text of which the vocabulary knows nothing would get the embedding of nothing."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        unknown = getattr(inner, "unk_token_id", None)
        if inner is None or unknown is None or unknown == getattr(inner, "eos_token_id", None):
            return  # byte-level vocabularies know every text
        for text in texts:
            ids = inner(text, add_special_tokens=False)["input_ids"]
            if all(token == unknown for token in ids):
                raise ConceptError(f"the encoder's vocabulary knows no part of {text!r}: use words instead", text)


def open_dual_encoder(spec: str) -> tuple[Any, Callable[[Image.Image], torch.Tensor], Any]:
    """Loads a vision-language model.

    Args:
        spec: As ``ConceptEncoder.load`` takes it.

    Returns:
        The model, the preprocessing of its image tower, its tokenizer.

    Raises:
        EncoderError: The specification is malformed, or the model is missing, broken or cannot be fetched.
    """
    spec = absolute_spec(spec)
    kind, _, name = spec.partition(":")
    if kind != "open_clip" or not name:
        raise EncoderError(
            f"encoder {spec!r}: use open_clip:ARCH/PRETRAINED, open_clip:hf-hub:ORG/NAME or open_clip:local-dir:FOLDER",
            spec,
        )
    try:
        with _quiet(loading=True):
            return _open(spec, name)
    except EncoderError:
        raise
    except Exception as error:  # open_clip and the libraries below raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(f"encoder {spec!r} cannot be loaded: {reason}", spec) from error


class _EndedError(Exception):
    """The images ended early."""


def _open(spec: str, name: str) -> tuple[Any, Any, Any]:
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser().resolve()
        config = folder / "open_clip_config.json"
        if not config.is_file():
            raise EncoderError(f"encoder {spec!r}: {config} does not exist", spec)
        try:
            text = dict(json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"])
        except (ValueError, KeyError, TypeError) as error:
            raise EncoderError(f"encoder {spec!r}: {config} is not an open_clip config: {error}", spec) from error
        override: dict[str, Any] = {}
        if text.get("hf_model_name") and (folder / "config.json").is_file():
            # open_clip looks the text tower up on the Hub by its name; its config lies in this very folder.
            override = {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", **override)
        return model, preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")
    if name.startswith("hf-hub:"):
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        return model, preprocess, open_clip.get_tokenizer(name)
    architecture, _, pretrained = name.partition("/")
    if not pretrained:
        raise EncoderError(f"encoder {spec!r}: pretrained weights are not named: use open_clip:ARCH/PRETRAINED", spec)
    if architecture not in open_clip.list_models():
        raise EncoderError(f"encoder {spec!r}: open_clip has no architecture {architecture!r}", spec)
    model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=pretrained)
    return model, preprocess, open_clip.get_tokenizer(architecture)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all weights, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


class _OnlyErrors(logging.Filter):
    """Lets nothing below an error pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


_CHATTY = ("transformers", "huggingface_hub", "timm")
_ONLY_ERRORS = _OnlyErrors()  # one for all threads: adding it twice is adding it once


@contextmanager
def _quiet(loading: bool = False) -> Iterator[None]:
    """Keeps open_clip's and the tokenizers' advice off the terminal, and nobody else's.

    A service encodes in one thread while others write its log.

    Args:
        loading: Python's warnings, too; they belong to all threads.
    """
    import warnings

    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    logging.root.addFilter(_ONLY_ERRORS)  # what is logged to the root itself, as open_clip does
    try:
        if loading:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        else:
            yield
    finally:
        logging.root.removeFilter(_ONLY_ERRORS)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
