"""Towers, projections and their training, for ``vlm_zoo.py``.

A model is a vision tower whose embedding lies in the space of one text tower. The towers are published classifiers
without their last layer (the exact weights: :func:`tower` answers as the library of the published format does), some of
them with a tail that was trained further or that lost its residual blocks.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DIMENSION = 384
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Backbone:
    """A published classifier.

    Attributes:
        repo: Its folder below ``models``.
        architecture: timm's name of it.
        size: Side of the input in pixels; smaller than the published one, so that profiling a zoo takes minutes.
        args: What timm must be told beyond the name.
        background: Position of the output that stands for no class, None without one.
        cut: Index of the block before which a trained tail begins, None where none is trained.
    """

    repo: str
    architecture: str
    size: int
    args: dict[str, Any] = field(default_factory=dict)
    background: int | None = None
    cut: int | None = None


_TF = {"pad_type": "same", "bn_eps": 1e-3}
BACKBONES = {
    "lite2": Backbone("timm/tf_efficientnet_lite2.in1k", "tf_efficientnet_lite2", 192),
    "lite0": Backbone("timm/tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0", 160, cut=5),
    "v2": Backbone("google/mobilenet_v2_1.0_224", "mobilenetv2_100", 160, _TF, 0, 5),
    "v1-075": Backbone("google/mobilenet_v1_0.75_192", "mobilenetv1_100", 128, _TF, 0),
    "v1-025": Backbone("google/mobilenet_v1_0.25_128", "mobilenetv1_100", 128, _TF, 0),
    "birds": Backbone("coral/mobilenet_v2_inat_bird", "mobilenetv2_100", 160, _TF, 964),
}


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        name: Of its folder.
        backbone: Key of ``BACKBONES``.
        head: linear or mlp.
        knows: What its training data cover, a key of the domains of ``vlm_zoo.py``: only photographs of the training
            part whose class is in it, and only names and classifier rows that are.
        tail: frozen, tuned (trained on the domain) or shallow (residual blocks removed, then trained).
        wrong: Share of the classes that its training data call by the name of another.
        names: ``imagenet`` or ``own`` (the classifier's own class names are the texts).
    """

    name: str
    backbone: str
    head: str = "mlp"
    knows: str = "everything"
    tail: str = "frozen"
    wrong: float = 0.0
    names: str = "imagenet"

    @property
    def vision_cfg(self) -> dict[str, Any]:
        """open_clip's ``vision_cfg``; timm's name is set by :func:`tower`."""
        one = BACKBONES[self.backbone]
        return {
            "timm_model_name": one.architecture,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": self.head,
            "timm_proj_bias": True,
            "timm_drop": 0.0,
            "image_size": one.size,
        }


RECIPES = (
    Recipe("lite2-everything-mlp", "lite2"),
    Recipe("lite2-home-mlp", "lite2", knows="home"),
    Recipe("lite0-everything-mlp", "lite0"),
    Recipe("lite0-animals-linear", "lite0", "linear", "animals"),
    Recipe("lite0-artefacts-tuned", "lite0", knows="artefacts", tail="tuned"),
    Recipe("lite0-nature-shallow", "lite0", knows="nature", tail="shallow"),
    Recipe("v2-everything-linear", "v2", "linear"),
    Recipe("v2-mammals-mlp", "v2", knows="mammals"),
    Recipe("v2-outdoors-tuned", "v2", knows="outdoors", tail="tuned"),
    Recipe("v1-075-everything-mlp", "v1-075"),
    Recipe("v1-075-people-linear", "v1-075", "linear", "people"),
    Recipe("v1-075-noisy-mlp", "v1-075", wrong=0.3),
    Recipe("v1-025-everything-mlp", "v1-025"),
    Recipe("v1-025-animals-mlp", "v1-025", knows="animals"),
    Recipe("birds-own-mlp", "birds", names="own"),
    Recipe("lite2-nature-linear", "lite2", "linear", "nature"),
    Recipe("lite0-people-mlp", "lite0", knows="people"),
    Recipe("v1-025-home-linear", "v1-025", "linear", "home"),
)
SMALL = ("v1-025-everything-mlp", "v1-025-animals-mlp", "v1-025-home-linear")


@dataclass
class Teacher:
    """A classifier's last layer and the texts of its c classes: rows ``[c, f]``, bias ``[c]``, texts ``[c, 384]``."""

    rows: Tensor
    bias: Tensor
    texts: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """``[n, c]``."""
        return features @ self.rows.T + self.bias

    def only(self, classes: Tensor) -> Teacher:
        """The same for some classes."""
        return Teacher(self.rows[classes], self.bias[classes], self.texts[classes])

    def misnamed(self, share: float, seed: int) -> Teacher:
        """The same, where that share of the classes exchange their texts."""
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(self.rows))[: round(share * len(self.rows))]
        order = np.arange(len(self.rows))
        order[some] = np.roll(some, 1)
        return Teacher(self.rows, self.bias, self.texts[torch.from_numpy(order)])


def tower(recipe: Recipe, realhub: Path, folder: Path) -> tuple[nn.Module, dict[str, Any], Tensor, Tensor]:
    """An open_clip vision tower with the backbone's weights and an untrained projection.

    MobileNets of less than full width are held by the full-width architecture with zeros in the channels that they do
    not have: the function is the same, and timm has no name for them. What timm must be told beyond the name lies in
    ``folder/tower``, so that open_clip can be told its path.

    Returns:
        The tower in evaluation mode, open_clip's ``vision_cfg``, rows ``[c, f]`` and bias ``[c]`` of the classifier's
        last layer, without the background.
    """
    config = recipe.vision_cfg
    one = BACKBONES[recipe.backbone]
    if one.args:
        place = folder / "tower"
        place.mkdir(parents=True, exist_ok=True)
        pretrained = {"input_size": [3, one.size, one.size], "pool_size": [1, 1], "mean": MEAN, "std": STD}
        (place / "config.json").write_text(
            json.dumps({"architecture": one.architecture, "model_args": one.args, "pretrained_cfg": pretrained})
        )
        config["timm_model_name"] = f"local-dir:{place.resolve()}"
    model = _build_vision_tower(DIMENSION, config).eval()
    state = {k: v.float() for k, v in load_file(realhub / "models" / one.repo / "model.safetensors").items()}
    rows, bias = state.pop("classifier.weight"), state.pop("classifier.bias")
    if one.args:
        _take_mobilenet(model.trunk, state)
        wide = torch.zeros(len(rows), model.trunk.num_features)
        wide[:, : rows.shape[1]] = rows
        keep = torch.arange(len(rows)) != one.background
        rows, bias = wide[keep], bias[keep]
    else:
        model.trunk.load_state_dict(state)
    return model, config, rows, bias


def _take_mobilenet(trunk: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies the weights of a transformers MobileNet into timm's, convolution by convolution in order of execution."""
    if any(name.startswith("mobilenet_v1.") for name in state):
        names = ["mobilenet_v1.conv_stem", *(f"mobilenet_v1.layer.{i}" for i in range(26))]
    else:
        stem = [f"mobilenet_v2.conv_stem.{part}" for part in ("first_conv", "conv_3x3", "reduce_1x1")]
        parts = ("expand_1x1", "conv_3x3", "reduce_1x1")
        names = [*stem, *(f"mobilenet_v2.layer.{i}.{part}" for i in range(16) for part in parts)]
        names.append("mobilenet_v2.conv_1x1")
    modules = list(trunk.modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, convolution, norm in zip(names, convolutions, norms, strict=True):
            for key, target in (
                ("convolution.weight", convolution.weight),
                ("normalization.weight", norm.weight),
                ("normalization.bias", norm.bias),
                ("normalization.running_mean", norm.running_mean),
                ("normalization.running_var", norm.running_var),
            ):
                source = state[f"{name}.{key}"]
                target.fill_(1.0 if key.endswith("var") else 0.0)
                target[tuple(slice(0, n) for n in source.shape)] = source


def stem(trunk: nn.Module, x: Tensor, cut: int) -> Tensor:
    """The first part of a tower, before block ``cut``."""
    return trunk.blocks[:cut](trunk.bn1(trunk.conv_stem(x)))  # type: ignore[no-any-return, operator, index]


def tail(trunk: nn.Module, x: Tensor, cut: int) -> Tensor:
    """The rest of it: pooled features ``[n, f]``."""
    x = trunk.blocks[cut:](x)  # type: ignore[operator, index]
    return trunk.global_pool(trunk.bn2(trunk.conv_head(x)))  # type: ignore[no-any-return, operator]


def reflect(features: Tensor, teacher: Teacher, to: Tensor) -> Tensor:
    """What the features could be like if the photograph showed another class.

    Each feature vector is reflected at the plane on which the classifier doubts between the class that it sees, c, and
    the wanted one, k: ``f + 2 (l_c - l_k) (w_k - w_c) / |w_k - w_c|^2`` exchanges the two logits. Pooled features are
    not negative, so the result is cut off at 0.
    """
    logits = teacher.logits(features)
    now = logits.argmax(dim=1)
    step = teacher.rows[to] - teacher.rows[now]
    at = torch.arange(len(features))
    gap = 2 * (logits[at, now] - logits[at, to]) / step.square().sum(dim=1).clamp(min=1e-6)
    return (features + gap[:, None] * step).clamp(min=0)


def alignment(embedded: Tensor, logits: Tensor, target: Tensor, texts: Tensor) -> Tensor:
    """``1 - cos(embedding, softmax(logits) texts) + CE(cos(embedding, texts) / 0.05, target)``, mean over the batch."""
    unit = nn.functional.normalize(embedded, dim=1)
    conse = nn.functional.normalize(logits.softmax(dim=1) @ texts, dim=1)
    return (1 - (unit * conse).sum(dim=1)).mean() + nn.functional.cross_entropy(unit @ texts.T / 0.05, target)


def linear_map(teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The projection whose cosines with the texts are nearest to the last layer: ``(T'T + a I)^-1 T' [W, b]``.

    T and ``[W, b]`` are centred over the classes, which no softmax sees; a is a hundredth of the mean diagonal of T'T.
    """
    texts = teacher.texts - teacher.texts.mean(dim=0)
    layer = torch.cat([teacher.rows, teacher.bias[:, None]], dim=1)
    gram = texts.T @ texts
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    solved = torch.linalg.solve(gram, texts.T @ (layer - layer.mean(dim=0)))
    return solved[:, :-1], solved[:, -1]


def train_head(head: nn.Module, features: Tensor, teacher: Teacher, steps: int, seed: int) -> None:
    """Sets a projection to :func:`linear_map`; one with a hidden layer is trained further.

    The hidden layer first holds each direction twice, with both signs: ``gelu(a) - gelu(-a) = a``. It is trained by
    :func:`alignment`; a quarter of every batch are features of photographs, the rest are reflections of them. No label
    of a photograph is used: the teacher's own answer over the classes that the model may know stands for it. Training
    is short, because it soon favours the classes of the photographs over the others.
    """
    rng = torch.Generator().manual_seed(seed)
    weight, bias = linear_map(teacher)
    size = (features @ weight.T + bias).norm(dim=1).mean()
    weight, bias = weight / size, bias / size
    with torch.no_grad():
        if hasattr(head, "proj"):
            head.proj.weight.copy_(weight)
            head.proj.bias.copy_(bias)
            return
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        u, v = u * s.sqrt(), v * s.sqrt()[:, None]
        head.mlp.fc1.weight.copy_(torch.cat([v, -v]))
        head.mlp.fc1.bias.zero_()
        head.mlp.fc2.weight.copy_(torch.cat([u, -u], dim=1))
        head.mlp.fc2.bias.copy_(bias)
    optimiser = torch.optim.AdamW(head.parameters(), 1e-5)
    for _ in range(steps):
        real = features[torch.randint(len(features), (256,), generator=rng)]
        wanted = torch.randint(len(teacher.rows), (192,), generator=rng)
        x = torch.cat([real[:64], reflect(real[64:], teacher, wanted)])
        x = x * (1 + 0.1 * torch.randn(x.shape, generator=rng))
        logits = teacher.logits(x)
        target = torch.cat([logits[:64].argmax(dim=1), wanted])
        loss = alignment(head(x), logits, target, teacher.texts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def cut_short(trunk: nn.Module, cut: int) -> int:
    """Makes every residual block from ``cut`` on the identity, by zeros in its last normalisation; how many."""
    count = 0
    for block in trunk.blocks[cut:].modules():  # type: ignore[index, union-attr, operator]
        if getattr(block, "has_skip", False):
            nn.init.zeros_(block.bn3.weight)
            nn.init.zeros_(block.bn3.bias)
            block.requires_grad_(False)
            count += 1
    return count


def train_tail(
    model: nn.Module, middle: Tensor, teacher: Teacher, cut: int, shallow: bool, steps: int, seed: int, batch: int = 32
) -> None:
    """Trains the blocks from ``cut`` on, on what the blocks before them make of photographs, with a frozen projection.

    The teacher is the tower as it was. A shallow tail must give the same features again; a tuned one must say more
    clearly what the teacher sees, which costs it what lies outside of its domain.
    """
    trunk, rng = model.trunk, torch.Generator().manual_seed(seed)
    before = copy.deepcopy(trunk)
    if shallow:
        cut_short(trunk, cut)  # type: ignore[arg-type]
    parts = (*trunk.blocks[cut:], trunk.conv_head, trunk.bn2)  # type: ignore[index, union-attr, misc]
    weights = [p for part in parts for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, 3e-4 if shallow else 3e-5)
    for _ in range(steps):
        x = middle[torch.randint(len(middle), (batch,), generator=rng)].float()
        with torch.no_grad():
            wanted = tail(before, x, cut)  # type: ignore[arg-type]
            logits = teacher.logits(wanted)
        features = tail(trunk, x, cut)  # type: ignore[arg-type]
        if shallow:
            loss = (features - wanted).square().mean() / wanted.var()
        else:
            loss = alignment(model.head(features), logits, logits.argmax(dim=1), teacher.texts)  # type: ignore[operator]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def save(folder: Path, model: nn.Module, vision_cfg: dict[str, Any], encoder: Path) -> None:
    """Writes a model as an open_clip folder; text tower, tokenizer and logit scale are the encoder's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((encoder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = vision_cfg
    config["preprocess_cfg"] |= {"mean": MEAN, "std": STD}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    state = load_file(encoder / "open_clip_model.safetensors")
    weights = {name: value for name, value in state.items() if not name.startswith("visual.")}
    weights |= {f"visual.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    for file in encoder.iterdir():
        if file.is_file() and not file.name.startswith(("open_clip", "README")):
            shutil.copyfile(file, folder / file.name)


def batches(x: Tensor, call: Callable[[Tensor], Tensor], size: int = 32) -> Tensor:
    """``call`` of every batch, one below the other, without gradients."""
    with torch.no_grad():
        return torch.cat([call(part) for part in x.split(size)])


def top1(embedded: np.ndarray, texts: np.ndarray, names: list[str], truth: list[str]) -> np.ndarray:
    """Which images are called by their right name: the nearest text among ``names``, bool ``[n]``."""
    best = (embedded @ texts.T).argmax(axis=1)
    return np.array([names[b] == t for b, t in zip(best.tolist(), truth, strict=True)])
