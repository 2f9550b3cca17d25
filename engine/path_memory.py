"""How many inputs of a path fit into the memory at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.conductance import Forward, layer_conductance

_SHARE = 0.5  # of what is free may be taken: the rest of the program and others need some
_CPU = 17  # inputs that keep a CPU busy
_IMAGES = 8  # more at once gain nothing on any device


def inputs_that_fit(
    forward: Forward, module: nn.Module, blocks: Mapping[str, nn.Module], image: Tensor, n_steps: int
) -> int:
    """The largest ``max_batch`` that is worth it: several whole paths, one, or part of one.

    What a graph keeps is measured on two inputs.

    Args:
        forward: As ``layer_conductance`` takes it.
        module: Likewise.
        blocks: Likewise.
        image: One preprocessed image, ``[1, 3, h, w]``.
        n_steps: Steps of the path.

    Returns:
        At least 2; on a CPU at most 17, since more inputs are no faster there and take more memory.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_conductance(forward, module, blocks, image, n_steps=1, max_batch=2)
    per_input = max(1, sum(size for place, size in kept.items() if place not in weights) // 2)
    fit = int(free_bytes(image.device) * _SHARE / (1.5 * per_input))  # gradients and what is not saved come on top
    whole = n_steps + 1
    if image.device.type == "cpu":
        return max(2, min(fit, whole, _CPU))
    return max(2, min(fit, whole) if fit < whole else min(fit // whole, _IMAGES) * whole)


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, of the CPU also by the limits of its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        free = min(free, max(0, limit - used + files))  # files that were read are let go when memory is needed
    except (OSError, ValueError, IndexError):  # no limit, or another system
        pass
    return free
