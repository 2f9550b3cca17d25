"""The tiny image and text encoder of the drawn world, in open_clip's format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from query.demo.batches import shuffled_batches
from query.demo.captions import TEMPLATES, Caption, full_caption, plain_caption
from query.demo.gallery import FACET_SIZES, UNKNOWN, Gallery, Preprocessing
from query.demo.muon import Muon, one_cycle
from query.demo.world import CONCEPTS

PREPROCESSING = Preprocessing(40, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
"""What the encoder does to an image."""

_DIMENSION = 64
_CONTEXT_LENGTH = 20
_BATCH = 64
_RATE, _ADAM_RATE = 0.04, 0.02
_SHARPNESS = 7.0
_FACET_WEIGHTS = (1.0, 0.15, 0.08, 0.08)
_MODEL: dict[str, Any] = {
    "embed_dim": _DIMENSION,
    "vision_cfg": {
        "image_size": PREPROCESSING.size_px,
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": _CONTEXT_LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


class _Lexicon:
    """Captions as token numbers out of the few tokens that captions consist of."""

    def __init__(self, captions: list[list[Caption]]) -> None:
        tokenizer = SimpleTokenizer(context_length=_CONTEXT_LENGTH)
        rows = [tokenizer([caption.text for caption in some]) for some in captions]
        self.used = torch.unique(torch.cat(rows))
        # The order of the tokens is kept: open_clip finds the end of a text as its largest token.
        self.tokens = [torch.searchsorted(self.used, some) for some in rows]
        self.named = [torch.tensor([[True, c.colour, c.ground, c.beside] for c in some]) for some in captions]


class EncoderLesson:
    """An encoder and what it learns from.

    Images and captions learn to agree with each other in a batch, every caption that is true of an image counting as
    right, and both learn to agree with one prototype for each fact. The prototypes are thrown away afterwards: they
    only spare the two towers from having to wait for each other. The weights come from PyTorch's global generator.

    Args:
        gallery: The drawings to learn from.
        seed: Names the run.
    """

    def __init__(self, gallery: Gallery, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 11))
        self._facets = gallery.facets
        self._images = PREPROCESSING.resized(gallery.images)
        plain = [[plain_caption(concept, self._rng) for _ in range(12)] for concept in CONCEPTS]
        full = [[full_caption(facts, self._rng) for _ in range(2)] for facts in gallery.facts]
        self._lexicon = _Lexicon(plain + full)
        small = {**_MODEL, "text_cfg": {**_MODEL["text_cfg"], "vocab_size": len(self._lexicon.used)}}
        self._model = CLIP(**small).to(memory_format=torch.channels_last).train()
        self._prototypes = [
            torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(size, _DIMENSION))) for size in FACET_SIZES
        ]

    def _captions(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses a caption for each drawing: half of them the concept's, half of them the drawing's own."""
        tokens, named = [], []
        for i in batch.tolist():
            own = self._rng.random() < 0.5
            row = len(CONCEPTS) + i if own else int(self._facets[i, 0])
            choice = int(self._rng.integers(len(self._lexicon.tokens[row])))
            tokens.append(self._lexicon.tokens[row][choice])
            named.append(self._lexicon.named[row][choice])
        facets = self._facets[batch].where(torch.stack(named), torch.tensor(UNKNOWN))
        return torch.stack(tokens), facets

    def _loss(self, images: Tensor, texts: Tensor, image_facets: Tensor, text_facets: Tensor) -> Tensor:
        loss = torch.zeros(())
        for k, (weight, prototypes) in enumerate(zip(_FACET_WEIGHTS, self._prototypes, strict=True)):
            goal = functional.normalize(prototypes, dim=-1)
            for embedded, facets in ((images, image_facets), (texts, text_facets)):
                known = facets[:, k] != UNKNOWN
                if known.any():
                    logits = _SHARPNESS * embedded[known] @ goal.T
                    loss = loss + weight * functional.cross_entropy(logits, facets[known, k], label_smoothing=0.03)
        right = ((text_facets[None] == UNKNOWN) | (text_facets[None] == image_facets[:, None])).all(-1).float()
        logits = _SHARPNESS * images @ texts.T
        for scores, truth in ((logits, right), (logits.T, right.T)):
            share = truth / truth.sum(1, keepdim=True).clamp(min=1)
            loss = loss - 0.5 * (share * scores.log_softmax(1)).sum(1).mean()
        return loss

    def run(self, steps: int, advance: Callable[[], object]) -> CLIP:
        """Trains the encoder.

        Args:
            steps: Number of steps.
            advance: Called after each step.

        Returns:
            The trained encoder with open_clip's whole vocabulary. Tokens that occur in no caption mean nothing in
            particular: they share one embedding.
        """
        model = self._model
        others = [model.token_embedding.weight, model.positional_embedding, *self._prototypes]
        optimiser = Muon(model.parameters(), _RATE, _ADAM_RATE, adam_only=others)
        for step, (batch, shift) in enumerate(shuffled_batches(len(self._images), _BATCH, steps, self._rng)):
            tokens, text_facets = self._captions(batch[: _BATCH // 2])
            images = model.encode_image(PREPROCESSING.inputs(self._images[batch], shift), normalize=True)
            texts = model.encode_text(tokens, normalize=True)
            torch.autograd.backward(self._loss(images, texts, self._facets[batch], text_facets))
            optimiser.step(one_cycle(step, steps))
            advance()
        return self._whole()

    def _whole(self) -> CLIP:
        state = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        learnt = state["token_embedding.weight"]
        table = learnt.mean(0).repeat(_MODEL["text_cfg"]["vocab_size"], 1)
        table[self._lexicon.used] = learnt
        state["token_embedding.weight"] = table
        state["logit_scale"] = torch.tensor(_SHARPNESS).log()
        whole = CLIP(**_MODEL)
        whole.load_state_dict(state)
        return whole.eval()


def save_encoder(model: CLIP, folder: Path) -> None:
    """Writes an encoder as a folder that open_clip loads by ``local-dir:``.

    Args:
        model: The encoder.
        folder: Where to, made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": PREPROCESSING.mean,
        "std": PREPROCESSING.std,
        "interpolation": PREPROCESSING.interpolation,
        "resize_mode": "squash",
    }
    config = {"model_cfg": _MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


@torch.inference_mode()
def zero_shot_accuracy(model: CLIP, gallery: Gallery) -> float:
    """Measures how often the nearest concept name is the right one.

    Args:
        model: The encoder.
        gallery: Drawings it has not seen.

    Returns:
        The share of drawings for which it is, each name's embedding being the mean over `TEMPLATES`.
    """
    tokenizer = SimpleTokenizer(context_length=_CONTEXT_LENGTH)
    prompts = [template.format(concept.name) for concept in CONCEPTS for template in TEMPLATES]
    texts = model.encode_text(tokenizer(prompts), normalize=True).view(len(CONCEPTS), len(TEMPLATES), -1).mean(1)
    resized = PREPROCESSING.resized(gallery.images)
    images = torch.cat(
        [model.encode_image(PREPROCESSING.inputs(part), normalize=True) for part in torch.split(resized, 256)]
    )
    best = (images @ functional.normalize(texts, dim=-1).T).argmax(1)
    return float((best == gallery.concepts).float().mean())
