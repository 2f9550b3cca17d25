"""Layer conductance of all blocks of a network in one sweep.

The conductance of an entry y of a block on the path from the baseline x' to an image x, for a scalar objective F
(Dhamdhere, Sundararajan and Yan, "How important is a neuron?", 2018, in the form of captum's ``LayerConductance``)::

    alpha_0 < ... < alpha_n    the n + 1 nodes of Gauss-Legendre quadrature on (0, 1)
    y_j = y(x' + alpha_j (x - x')),  g_j = dF/dy at y_j
    C_y = sum over j < n of  g_j (y_{j+1} - y_j)

F is the L2 norm of the network's answer, the image embedding before it is normalised. captum takes one layer a call, so
d blocks cost d forward passes over the n + 1 inputs. Here one forward pass with a hook on every block and one backward
pass give the y_j and g_j of all blocks, the same numbers for the time of one.

The inputs may be split into chunks of consecutive steps that overlap by one, since a step needs its own gradient and
the next step's output only: that bounds the memory and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.errors import ConductanceError, InputError

N_STEPS = 50
"""Steps of the path, captum's default."""

Forward = Callable[[Tensor], Tensor]
"""Images ``[b, 3, h, w]`` -> embeddings ``[b, e]``, not normalised."""

Precision = Literal["float32", "float16", "bfloat16"]
"""What the passes are computed in; anything but float32 is torch's autocast."""

_DTYPES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALE = 1e3  # of gradients in half precision, which would lose small ones
_UNIT = 1e-3  # embeddings whose norms are that close to 1 everywhere on the path have been normalised


@dataclass(frozen=True)
class Conductance:
    """Conductance of m images in d blocks.

    Attributes:
        blocks: d names.
        mean_abs: Mean |conductance| over the entries of each block (equation 20), float64 ``[m, d]``.
        total: Sum of the conductance over the entries of each block, float64 ``[m, d]``.
        difference: F(x) - F(x'), float64 ``[m]``; what the total of every block that all paths cross approximates.
        maps: Conductance of every entry per block, ``[m, ...]`` on the CPU, if they were asked for.
    """

    blocks: tuple[str, ...]
    mean_abs: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    difference: npt.NDArray[np.float64]
    maps: tuple[Tensor, ...] = ()

    @property
    def completeness_gap(self) -> npt.NDArray[np.float64]:
        """``|sum over the last block - (F(x) - F(x'))| / |F(x) - F(x')|``, float64 ``[m]``; 0 for x = x'."""
        gap, scale = np.abs(self.total[:, -1] - self.difference), np.abs(self.difference)
        return np.divide(gap, scale, out=np.zeros_like(gap), where=scale > 0)


def layer_conductance(
    forward: Forward,
    module: nn.Module,
    blocks: Mapping[str, nn.Module],
    images: Tensor,
    *,
    n_steps: int = N_STEPS,
    max_batch: int | None = None,
    baseline: Tensor | None = None,
    precision: Precision = "float32",
    keep_maps: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conductance:
    """Conductance of all blocks for some images.

    Args:
        forward: The objective is the L2 norm of its answer.
        module: The network behind it, in eval mode; whether its parameters require gradients is set aside meanwhile.
        blocks: d of its modules by name, each called once in a forward pass; answers may be tensors or tuples of them.
        images: Preprocessed, ``[m, ...]``, on the network's device; as many at once as fit into ``max_batch``.
        n_steps: Steps of the path.
        max_batch: Inputs in one forward pass, at least 2; by default the whole path of one image.
        baseline: x', of the shape of one image; zero (of preprocessed values) by default.
        precision: Of the passes.
        keep_maps: Also return the conductance of every entry.
        progress: Called with (inputs done, inputs to do).

    Returns:
        The conductance, summed in float32 on the network's device.

    Raises:
        InputError: A number is out of range.
        ConductanceError: The embedding is normalised, NaN or no vector, a block is not called once, or it does not
            influence the answer.
    """
    if n_steps < 1:
        raise InputError(f"n_steps is {n_steps}: at least 1 step is needed")
    batch = n_steps + 1 if max_batch is None else max_batch
    if batch < 2:
        raise InputError(f"max_batch is {batch}: at least 2 inputs are needed, since steps overlap by one")
    if not blocks:
        raise InputError("there are no blocks to compute the conductance of")
    alphas = 0.5 * (1 + np.polynomial.legendre.leggauss(n_steps + 1)[0])
    zero = torch.zeros_like(images[:1]) if baseline is None else baseline.to(images).expand_as(images[:1])
    per_pass = max(1, batch // (n_steps + 1))
    scale = 1.0 if precision == "float32" else _SCALE
    parts: list[_Sums] = []
    steps = _chunks(n_steps, max(2, batch // min(per_pass, max(1, len(images)))))
    todo = len(images) * sum(stop - start for start, stop in steps)
    done = 0
    with _still(module), _Recorder(blocks) as recorder, _autocast(images.device, precision):
        before = _norms(forward, zero, recorder)
        for first in range(0, len(images), per_pass):
            group = images[first : first + per_pass]
            sums = _Sums(tuple(blocks), (_norms(forward, group, recorder) - before).double().cpu())
            for start, stop in steps:
                _sweep(forward, recorder, sums, group, zero, alphas[start:stop], scale)
                done += len(group) * (stop - start)
                if progress:
                    progress(done, todo)
            sums.check(group, zero)
            parts.append(sums.reduced(keep_maps))
    return _joined(tuple(blocks), parts)


def _chunks(n_steps: int, size: int) -> list[tuple[int, int]]:
    """Consecutive nodes ``[start, stop)`` that overlap by one and cover all n + 1, none longer than ``size``."""
    return [(start, min(start + size, n_steps + 1)) for start in range(0, n_steps, size - 1)]


def _norms(forward: Forward, images: Tensor, recorder: _Recorder) -> Tensor:
    """F without a graph, float32 ``[m]``."""
    with torch.no_grad(), recorder.paused():
        return _objective(forward(images), len(images))


def _sweep(
    forward: Forward,
    recorder: _Recorder,
    sums: _Sums,
    group: Tensor,
    zero: Tensor,
    alphas: npt.NDArray[np.float64],
    scale: float,
) -> None:
    """Adds the steps of one chunk; its graph is gone when this returns."""
    # float32 products of Python floats, as captum's: the same inputs to the last bit.
    inputs = torch.cat([zero + float(alpha) * (group - zero) for alpha in alphas])
    m = len(group)
    try:
        with torch.enable_grad():
            objective = _objective(forward(inputs), len(inputs))
            outputs = recorder.outputs()
            flat = [tensor for tensors in outputs for tensor in tensors]
            if not objective.requires_grad:
                raise ConductanceError("no block influences the answer: name other blocks with --blocks PATTERN")
            gradients = torch.autograd.grad(objective.sum() * scale, flat, allow_unused=True)
        sums.norms.append(objective.detach())
        left = iter(gradients)
        for i, tensors in enumerate(outputs):
            pairs = [(tensor.detach(), gradient) for tensor, gradient in zip(tensors, left, strict=False)]
            used = [(y, g) for y, g in pairs if g is not None]
            if not used:
                name = sums.blocks[i]
                raise ConductanceError(
                    f"block {name} does not influence the answer: leave it out with --blocks PATTERN"
                )
            for place, (y, g) in enumerate(used):
                if len(y) != len(inputs):
                    raise ConductanceError(
                        f"block {sums.blocks[i]} answers {len(y)} rows for {len(inputs)} images: "
                        "its first axis is not the batch; name other blocks with --blocks PATTERN"
                    )
                products = g[:-m].float() * (y[m:].float() - y[:-m].float())
                sums.add(i, place, products.view(-1, m, *y.shape[1:]).sum(dim=0) / scale)
    finally:
        recorder.clear()


def _objective(answer: Any, rows: int) -> Tensor:
    """F, the L2 norm of each row of the answer, float32 ``[rows]``."""
    if isinstance(answer, tuple | list):  # (embedding, tokens)
        answer = answer[0]
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != rows:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ConductanceError(f"the network answers {shape} instead of one vector an image")
    norms: Tensor = torch.linalg.vector_norm(answer.float(), dim=1)
    return norms


class _Sums:
    """The conductance of a group of images while its steps are added up."""

    def __init__(self, blocks: tuple[str, ...], difference: Tensor) -> None:
        self.blocks = blocks
        self.difference = difference
        self.norms: list[Tensor] = []
        self._maps: list[list[Tensor]] = [[] for _ in blocks]
        self.rows: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def add(self, block: int, place: int, values: Tensor) -> None:
        maps = self._maps[block]
        if place < len(maps):
            maps[place] += values
        else:
            maps.append(values)

    def check(self, group: Tensor, zero: Tensor) -> None:
        norms = torch.cat(self.norms)
        if not bool(torch.isfinite(norms).all()) or not bool(torch.isfinite(self.difference).all()):
            raise ConductanceError("the network answers NaN or infinity on the way from the baseline to an image")
        if bool(((norms - 1).abs() < _UNIT).all()) and not torch.equal(group, zero.expand_as(group)):
            raise ConductanceError(
                "the embedding is normalised, so its length is 1 everywhere and no block has any conductance: "
                "give a network that answers the embedding before it is normalised"
            )

    def reduced(self, keep_maps: bool) -> _Sums:
        """Keeps the figures of each block and lets the maps go, unless they are wanted."""
        whole = [torch.cat([values.flatten(1) for values in maps], dim=1) for maps in self._maps]
        means = torch.stack([values.abs().mean(dim=1, dtype=torch.float64) for values in whole], dim=1).cpu()
        totals = torch.stack([values.sum(dim=1, dtype=torch.float64) for values in whole], dim=1).cpu()
        kept = [maps[0].cpu() if len(maps) == 1 else flat.cpu() for maps, flat in zip(self._maps, whole, strict=True)]
        self.rows = (means, totals, kept if keep_maps else [])
        self._maps, self.norms = [], []
        return self


def _joined(blocks: tuple[str, ...], parts: Sequence[_Sums]) -> Conductance:
    rows = [part.rows for part in parts if part.rows is not None]
    if not rows:
        empty = np.zeros((0, len(blocks)))
        return Conductance(blocks, empty, empty, np.zeros(0))
    return Conductance(
        blocks,
        np.concatenate([means.numpy() for means, _, _ in rows]),
        np.concatenate([totals.numpy() for _, totals, _ in rows]),
        np.concatenate([part.difference.numpy() for part in parts]),
        tuple(torch.cat(maps) for maps in zip(*(maps for _, _, maps in rows), strict=True)),
    )


class _Recorder:
    """Hooks that keep what each block answers; gone when the block ends, whatever happened.

    The network goes on with a copy: a layer that works in place would change the answer under us. Gradients start at
    the first blocks: what lies before them needs no graph.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self._blocks = blocks
        self._outputs: dict[str, tuple[Tensor, ...]] = {}
        self._listening = True
        self._hooks = ExitStack()

    def __enter__(self) -> _Recorder:
        with ExitStack() as hooks:
            for name, block in self._blocks.items():
                hooks.callback(block.register_forward_hook(self._hook(name)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()
        self.clear()

    def outputs(self) -> list[tuple[Tensor, ...]]:
        """What each block answered in the last pass."""
        missing = [name for name in self._blocks if not self._outputs.get(name)]
        if missing:
            raise ConductanceError(
                f"block {missing[0]} was not run, or answers no numbers: leave it out with --blocks PATTERN"
            )
        return [self._outputs[name] for name in self._blocks]

    def clear(self) -> None:
        self._outputs = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, answer: Any) -> Any:
            if not self._listening:
                return None
            if name in self._outputs:
                raise ConductanceError(
                    f"block {name} runs more than once in one pass: name others with --blocks PATTERN"
                )
            kept: list[Tensor] = []
            returned = _mapped(answer, kept)
            self._outputs[name] = tuple(kept)
            return returned

        return hook


def _mapped(answer: Any, kept: list[Tensor]) -> Any:
    """The answer with a copy in place of each of its tensors of numbers; the tensors themselves go into ``kept``."""
    if isinstance(answer, Tensor):
        if not answer.is_floating_point():
            return answer
        y = answer if answer.requires_grad else answer.detach().requires_grad_()
        kept.append(y)
        return y.clone()
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return type(answer)(*(_mapped(part, kept) for part in answer))
    if isinstance(answer, tuple | list):
        return type(answer)(_mapped(part, kept) for part in answer)
    return answer


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """No parameter requires gradients meanwhile: none is computed, and no graph is kept before the first block."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
