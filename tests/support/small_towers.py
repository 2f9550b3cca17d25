"""Small members with random weights of every family of vision towers, for the tests of conductance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import transformers
from captum.attr import LayerConductance
from open_clip.coca_model import CoCa
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn


class SmallTower(NamedTuple):
    """A network, what answers its embedding, and its number of blocks."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    image: tuple[int, int, int]
    blocks: int

    def images(self, m: int, seed: int = 0) -> Tensor:
        """Random images, ``[m, 3, h, w]``."""
        return torch.randn(m, *self.image, generator=torch.Generator().manual_seed(seed))


def small_tower(family: str) -> SmallTower:
    """The small member of a family, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = FAMILIES[family]()
        generator = torch.Generator().manual_seed(1)
        for module in tower.module.modules():  # fresh norms and zero scales would hide mistakes
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            for name, parameter in module.named_parameters(recurse=False):
                if name in {"gamma", "ls1", "ls2"} or (name == "weight" and not bool(parameter.detach().any())):
                    parameter.data.uniform_(0.5, 1.0, generator=generator)
    tower.module.eval()
    return tower


def captum_conductance(tower: SmallTower, block: nn.Module, images: Tensor, **how: Any) -> Tensor:
    """captum's conductance of one block, with its own defaults."""

    def objective(inputs: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(tower.forward(inputs), dim=1)
        return norms

    answer: Tensor = LayerConductance(objective, block).attribute(images, **how)
    return answer.detach()


def vit(**changes: Any) -> VisionTransformer:
    """A tower of open_clip's own, 4 blocks, for images of 32 x 32."""
    settings = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "heads": 2, "mlp_ratio": 2.0}
    return VisionTransformer(**{**settings, "output_dim": 12, **changes})


def tokens_first(tower: VisionTransformer) -> VisionTransformer:
    """The same tower with blocks that answer ``[tokens, images, width]``."""
    changed = Transformer(width=32, layers=4, heads=2, mlp_ratio=2.0, batch_first=False)
    changed.load_state_dict(tower.transformer.state_dict())
    tower.transformer = changed
    return tower


def _own(module: nn.Module, blocks: int, size: int = 32) -> SmallTower:
    return SmallTower(module, module, (3, size, size), blocks)


def _coca() -> SmallTower:
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1, "embed_cls": True}
    vision = {
        "image_size": 32,
        "layers": 3,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    decoder = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = CoCa(16, decoder, text, vision)
    return SmallTower(model, lambda images: model.encode_image(images, normalize=False), (3, 32, 32), 3)


def _trunk(name: str, blocks: int, size: int, pool: str = "avg", **settings: Any) -> SmallTower:
    """open_clip's wrapper of a timm network, with a smaller one in it."""
    tower = TimmModel("test_vit", embed_dim=12, image_size=size, pool="", proj="linear")
    tower.trunk = timm.create_model(name, num_classes=0, global_pool=pool, **settings)
    tower.head = nn.Sequential(nn.Linear(tower.trunk.num_features, 12, bias=False))
    return _own(tower, blocks, size)


def _timm(name: str, blocks: int, size: int = 64, **settings: Any) -> SmallTower:
    return _own(timm.create_model(name, num_classes=7, **settings), blocks, size)


def _transformers(model: Any, blocks: int, size: int = 32) -> SmallTower:
    return SmallTower(model, lambda images: model(images).logits, (3, size, size), blocks)


def _classifier(kind: str, blocks: int, size: int = 32, **settings: Any) -> SmallTower:
    config = getattr(transformers, f"{kind}Config")(num_labels=5, image_size=size, **settings)
    return _transformers(getattr(transformers, f"{kind}ForImageClassification")(config), blocks, size)


SMALL_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32, "patch_size": 8}
SMALL_HF = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}

FAMILIES: dict[str, Callable[[], SmallTower]] = {
    "open_clip ViT": lambda: _own(vit(), 4),
    "open_clip ViT, tokens first": lambda: _own(tokens_first(vit()), 4),
    "open_clip ModifiedResNet": lambda: _own(ModifiedResNet([1, 2, 1, 1], 12, heads=4, image_size=64, width=8), 4, 64),
    "open_clip CoCa": _coca,
    "timm ConvNeXt trunk": lambda: _trunk("convnext_atto", 4, 64, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "timm EVA trunk": lambda: _trunk("eva02_tiny_patch14_224", 4, 32, **SMALL_VIT),
    "timm SigLIP trunk": lambda: _trunk("vit_base_patch16_siglip_224", 4, 32, "map", **SMALL_VIT),
    "timm ViT": lambda: _timm("vit_tiny_patch16_224", 4, 32, **SMALL_VIT),
    "timm EfficientNet": lambda: _timm("test_efficientnet", 5),
    "timm MobileNetV3": lambda: _timm("mobilenetv3_small_050", 4),
    "timm ResNet": lambda: _timm("test_resnet", 4),
    "timm DenseNet": lambda: _timm("densenet121", 4, growth_rate=8, block_config=(2, 2, 2, 2)),
    "timm Swin": lambda: _timm("swin_tiny_patch4_window7_224", 4, img_size=64, **SWIN),
    "transformers ViT": lambda: _classifier("ViT", 3, patch_size=8, **SMALL_HF),
    "transformers MobileNetV2": lambda: _classifier(
        "MobileNetV2", 16, 64, depth_multiplier=0.25, initializer_range=0.3
    ),
    "transformers ResNet": lambda: _classifier(
        "ResNet", 4, 64, embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 2, 1], layer_type="basic"
    ),
    "transformers Swin": lambda: _classifier(
        "Swin", 3, 64, embed_dim=16, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4, patch_size=4
    ),
}
"""By the name of the family."""
