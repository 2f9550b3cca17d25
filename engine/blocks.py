"""The blocks of a vision tower: the layers whose conductance makes a profile.

What counts as a block, in this order:

1. what a pattern names (``--blocks``);
2. the transformer blocks of open_clip's own ViT towers, CoCa's included (``transformer.resblocks.*``);
3. of a timm network, also as the trunk of an open_clip tower, what its ``feature_info`` lists: every block of a ViT,
   EVA or SigLIP, the stages of a ConvNeXt, ResNet, Swin, EfficientNet ...;
4. the stages ``layer1`` to ``layer4`` of a ResNet, open_clip's ModifiedResNet among them;
5. the first sequence of modules called ``blocks``, ``stages``, ``layers``, ``layer`` or ``block`` (transformers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from engine.errors import BlocksError

_SEQUENCES = ("resblocks", "blocks", "stages", "layers", "layer", "block", "stage", "features")
_NUMBERED = re.compile(r"(?:layer|stage)\d+")
_LOOKED_FOR = (
    "transformer.resblocks (open_clip's ViT), feature_info (timm), layer1 to layer4 (ResNet), or a sequence of modules "
    f"called {', '.join(_SEQUENCES[1:-1])} or {_SEQUENCES[-1]}"
)


def find_blocks(model: nn.Module, pattern: str | None = None) -> dict[str, nn.Module]:
    """The blocks of a model's vision tower.

    Args:
        model: A tower, a vision-language model with a tower ``visual``, or a classifier.
        pattern: Names of modules instead, in the model's own ``named_modules``: ``*`` stands for one part of a dotted
            name, ``**`` for several, as in ``visual.trunk.stages.*``.

    Returns:
        Blocks by their dotted names in ``model``, in the order of the network.

    Raises:
        BlocksError: There are none, or a pattern matches nothing.
    """
    if pattern is not None:
        found = {name: module for name, module in model.named_modules() if name and _matches(name, pattern)}
        if not found:
            some = ", ".join(name for name in _names_of_containers(model)[:8]) or "none"
            raise BlocksError(
                f"no module of {_kind(model)} is called {pattern!r}: its sequences of modules are {some}", pattern
            )
        return found
    prefix, tower = "", model
    visual = getattr(model, "visual", None)
    if isinstance(visual, nn.Module):
        prefix, tower = "visual.", visual
    for rule in (_open_clip, _timm, _numbered, _sequence):
        names = rule(tower)
        if names:
            return {prefix + name: tower.get_submodule(name) for name in names}
    raise BlocksError(
        f"{_kind(tower)} has no blocks that are known: looked for {_LOOKED_FOR}; "
        f"name them with --blocks PATTERN, for instance --blocks '{(_names_of_containers(model) or ['encoder'])[0]}.*'",
        None,
    )


def _open_clip(tower: nn.Module) -> list[str]:
    blocks = _get(tower, "transformer.resblocks")
    return [f"transformer.resblocks.{name}" for name, _ in blocks.named_children()] if blocks is not None else []


def _timm(tower: nn.Module) -> list[str]:
    prefix, network = "", tower
    trunk = getattr(tower, "trunk", None)
    if isinstance(trunk, nn.Module):  # open_clip's wrapper of timm networks
        prefix, network = "trunk.", trunk
    info: Any = getattr(network, "feature_info", None)
    entries = info if isinstance(info, list) else getattr(info, "info", None) or []
    names: list[str] = []
    for entry in entries:
        name = str(entry.get("module", "")) if isinstance(entry, dict) else ""
        module = _get(network, name)
        if module is None or name in names or not list(module.parameters()):
            continue
        # Many networks list their stem, or the norm or activation at its end, before their stages.
        nested = any(list(child.parameters()) for child in module.children())
        if names or (nested and not name.startswith("stem")):
            names.append(name)
    if len(names) < 2:
        names = _numbered(network) or _sequence(network)
    return [prefix + name for name in names]


def _numbered(tower: nn.Module) -> list[str]:
    names = [name for name, _ in tower.named_children() if _NUMBERED.fullmatch(name)]
    return names if len(names) > 1 else []


def _sequence(tower: nn.Module) -> list[str]:
    for name, module in _by_depth(tower):
        if name.rpartition(".")[2] in _SEQUENCES and isinstance(module, nn.ModuleList | nn.Sequential):
            children = [f"{name}.{child}" for child, _ in module.named_children()]
            if len(children) > 1:
                return children
        numbered = [f"{name}.{child}" for child, _ in module.named_children() if _NUMBERED.fullmatch(child)]
        if len(numbered) > 1:
            return numbered
    return []


def _by_depth(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    named = [(name, child) for name, child in module.named_modules() if name]
    return iter(sorted(named, key=lambda pair: pair[0].count(".")))  # stable: the order of the network within a depth


def _names_of_containers(module: nn.Module) -> list[str]:
    return [
        name
        for name, child in _by_depth(module)
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(list(child.children())) > 1
    ]


def _get(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name) if name else None
    except AttributeError:
        return None


def _matches(name: str, pattern: str) -> bool:
    parts = (r".*" if part == "**" else r"[^.]*".join(map(re.escape, part.split("*"))) for part in pattern.split("."))
    return re.fullmatch(r"\.".join(parts), name) is not None


def _kind(module: nn.Module) -> str:
    return f"a {type(module).__name__}"
