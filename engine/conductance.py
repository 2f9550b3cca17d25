"""Layer conductance of all blocks of a network in one sweep.

The conductance of an entry y of a block on the path from the baseline x' to an image x, for a scalar objective F
(Dhamdhere, Sundararajan and Yan, "How important is a neuron?", 2018, in the form of captum's ``LayerConductance``)::

    alpha_0 < ... < alpha_n    the n + 1 nodes of Gauss-Legendre quadrature on (0, 1)
    y_j = y(x' + alpha_j (x - x')),  g_j = dF/dy at y_j
    C_y = sum over j < n of  g_j (y_{j+1} - y_j)

F is the L2 norm of the network's answer, the image embedding before it is normalised. captum takes one layer a call, so
d blocks cost d forward passes over the n + 1 inputs. Here one forward pass with a hook on every block and one backward
pass give the y_j and g_j of all blocks, the same numbers for the time of one.

The inputs may be split into chunks of consecutive nodes. A step needs its own gradient and the next node's output
only, so a chunk leaves the output and the gradient of its last node to the next one: that bounds the memory, no node is
computed twice, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.errors import ConductanceError, InputError
from engine.products import fast_products

N_STEPS = 50
"""Steps of the path, captum's default."""

Forward = Callable[[Tensor], Tensor]
"""Images ``[b, 3, h, w]`` -> embeddings ``[b, e]``, not normalised."""

Precision = Literal["float32", "float16", "bfloat16"]
"""What the passes are computed in; anything but float32 is torch's autocast."""

_DTYPES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALE = 1e3  # of gradients in half precision, which would lose small ones
_UNIT = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}  # norms that close to 1 everywhere: normalised
_CONSTANT = 1e-6  # norms that differ by less of the largest do so by rounding
_AT_ONCE = 8  # steps multiplied at once: their products stay in the cache, and a GPU has enough to do

_Places = list[tuple[tuple[int, ...], ...]]  # the shapes of what each block answers


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
        raise InputError(f"max_batch is {batch}: at least 2 inputs are needed, the two ends of a step")
    if not blocks:
        raise InputError("there are no blocks to compute the conductance of")
    alphas = 0.5 * (1 + np.polynomial.legendre.leggauss(n_steps + 1)[0])
    images = images.detach()
    zero = torch.zeros_like(images[:1]) if baseline is None else baseline.detach().to(images).expand_as(images[:1])
    per_pass = max(1, batch // (n_steps + 1))
    chunks = _chunks(n_steps + 1, batch if per_pass == 1 else n_steps + 1)
    todo, done = len(images) * (n_steps + 1), 0
    before: Tensor | None = None
    parts: list[_Sums] = []
    with _still(module), _Recorder(blocks) as recorder, _autocast(images.device, precision):
        for first in range(0, len(images), per_pass):
            group = images[first : first + per_pass]
            ends = group if before is not None else torch.cat([zero, group])
            norms, shapes = _without_graph(forward, ends, recorder)
            before = norms[:1] if before is None else before
            sums = _Sums(tuple(blocks), len(ends), shapes, norms[-len(group) :] - before, precision)
            for start, stop in chunks:
                _sweep(forward, recorder, sums, group, zero, alphas[start:stop])
                done += len(group) * (stop - start)
                if progress:
                    progress(done, todo)
            sums.check(group, zero)
            parts.append(sums.reduced(keep_maps))
    return _joined(tuple(blocks), parts)


def _chunks(nodes: int, size: int) -> list[tuple[int, int]]:
    """All nodes in runs ``[start, stop)`` of nearly one length, none longer than ``size``."""
    ends = np.linspace(0, nodes, -(-nodes // size) + 1).round().astype(int).tolist()
    return list(pairwise(ends))


def _without_graph(forward: Forward, images: Tensor, recorder: _Recorder) -> tuple[Tensor, _Places]:
    """F, float32 ``[m]``, and the shapes of what each block answers."""
    try:
        with torch.no_grad():
            norms = _objective(forward(images), len(images))
        return norms, [tuple(tuple(tensor.shape) for tensor in tensors) for tensors in recorder.outputs()]
    finally:
        recorder.clear()


def _sweep(
    forward: Forward, recorder: _Recorder, sums: _Sums, group: Tensor, zero: Tensor, alphas: npt.NDArray[np.float64]
) -> None:
    """Adds the steps of one chunk; its graph is gone when this returns."""
    # float32 products of Python floats, as captum's: the same inputs to the last bit.
    inputs = torch.cat([zero + float(alpha) * (group - zero) for alpha in alphas])
    try:
        with torch.no_grad(), recorder.tracing():  # no graph of what lies before the block that is run first
            objective = _objective(forward(inputs), len(inputs))
        outputs = recorder.outputs()
        flat = [tensor for tensors in outputs for tensor in tensors]
        if not objective.requires_grad:
            raise ConductanceError("no block influences the answer: name other blocks with --blocks PATTERN")
        # Backwards only: the forward pass stays bit for bit what it is, since differences of outputs that hardly change
        # along the path are little but rounding.
        with torch.enable_grad(), fast_products(inputs.device, recorder.blocks):
            gradients = iter(torch.autograd.grad(objective.sum() * sums.scale, flat, allow_unused=True))
        sums.norms.append(objective.detach())
        for block, tensors in enumerate(outputs):
            found = [next(gradients) for _ in tensors]
            if all(gradient is None for gradient in found):
                raise ConductanceError(
                    f"block {sums.blocks[block]} does not influence the answer: leave it out with --blocks PATTERN"
                )
            for place, (tensor, gradient) in enumerate(zip(tensors, found, strict=True)):
                if gradient is not None:
                    sums.add(block, place, tensor.detach(), gradient, len(inputs), len(group))
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

    def __init__(
        self, blocks: tuple[str, ...], rows: int, shapes: _Places, difference: Tensor, precision: Precision
    ) -> None:
        self.blocks = blocks
        self.difference = difference.double().cpu()
        self.norms: list[Tensor] = []
        self.scale = 1.0 if precision == "float32" else _SCALE
        self.rows: tuple[Tensor, Tensor, list[Tensor]] | None = None
        self._unit = _UNIT[precision]
        self._shapes, self._shaped = shapes, rows  # of a pass of so many images
        self._maps: list[dict[int, Tensor]] = [{} for _ in blocks]
        self._last: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # y and g of the node before

    def add(self, block: int, place: int, y: Tensor, g: Tensor, rows: int, m: int) -> None:
        """Adds the steps between the nodes of a chunk, and the one that leads to it, to one tensor of a block."""
        axis = self._batch_axis(block, place, y, rows)
        y, g = y.movedim(axis, 0), g.movedim(axis, 0)
        total = self._maps[block].setdefault(place, torch.zeros(m, *y.shape[1:], device=y.device))
        if (block, place) in self._last:
            last_y, last_g = self._last[block, place]
            total.addcmul_(last_g.float(), y[:m].float() - last_y.float())
        for start in range(0, rows - m, _AT_ONCE * m):
            stop = min(start + _AT_ONCE * m, rows - m)
            products = (y[start + m : stop + m].float() - y[start:stop].float()).mul_(g[start:stop])
            total += products.view(-1, m, *products.shape[1:]).sum(dim=0)
        self._last[block, place] = (y[-m:].clone(), g[-m:].clone())  # a view would keep the whole chunk

    def _batch_axis(self, block: int, place: int, y: Tensor, rows: int) -> int:
        """Where the images are: the axis that has as many entries as there are images, in this pass and before."""
        known = self._shapes[block][place]
        for axis, (then, now) in enumerate(zip(known, y.shape, strict=False)):
            if then == self._shaped and now == rows:
                return axis
        raise ConductanceError(
            f"block {self.blocks[block]} answers {tuple(y.shape)} for {rows} images: no axis counts them; "
            "name other blocks with --blocks PATTERN"
        )

    def check(self, group: Tensor, zero: Tensor) -> None:
        norms = torch.cat(self.norms)
        if not bool(torch.isfinite(norms).all()) or not bool(torch.isfinite(self.difference).all()):
            raise ConductanceError("the network answers NaN or infinity on the way from the baseline to an image")
        if torch.equal(group, zero.expand_as(group)):
            return  # nothing changes on the path: no conductance, rightly
        if bool(((norms - 1).abs() < self._unit).all()):
            raise ConductanceError(
                "the embedding is normalised: its length is 1 everywhere, so no block has any conductance; "
                "give a network that answers the embedding before it is normalised"
            )
        least = _CONSTANT * float(norms.max())
        if float(norms.max() - norms.min()) <= least and bool((self.difference.abs() <= least).all()):
            raise ConductanceError(
                f"the answer's length is {float(norms[0]):.6g} for the baseline, the image and all between: "
                "it is normalised, or does not depend on the image, so no block has any conductance"
            )

    def reduced(self, keep_maps: bool) -> _Sums:
        """Keeps the figures of each block and lets the maps go, unless they are wanted."""
        maps = [[places[place] / self.scale for place in sorted(places)] for places in self._maps]
        whole = [torch.cat([values.flatten(1) for values in tensors], dim=1) for tensors in maps]
        means = torch.stack([values.abs().mean(dim=1, dtype=torch.float64) for values in whole], dim=1).cpu()
        totals = torch.stack([values.sum(dim=1, dtype=torch.float64) for values in whole], dim=1).cpu()
        for block, total in zip(self.blocks, totals.T, strict=True):
            if not bool(torch.isfinite(total).all()):
                raise ConductanceError(
                    f"the gradients of block {block} are NaN or infinite: compute in float32 if this was half precision"
                )
        kept = [
            tensors[0].cpu() if len(tensors) == 1 else flat.cpu() for tensors, flat in zip(maps, whole, strict=True)
        ]
        self.rows = (means, totals, kept if keep_maps else [])
        self._maps, self._last, self.norms = [], {}, []
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

    The network goes on with a copy: a layer that works in place would change the answer under us. While tracing, the
    block that is run first turns gradients on for the rest of the pass: what lies before it needs no graph.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self._blocks = blocks
        self._outputs: dict[str, tuple[Tensor, ...]] = {}
        self._tracing = False
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

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Those that are listened to."""
        return self._blocks.values()

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
    def tracing(self) -> Iterator[None]:
        self._tracing = True
        try:
            yield
        finally:
            self._tracing = False

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, answer: Any) -> Any:
            if name in self._outputs:
                raise ConductanceError(
                    f"block {name} runs more than once in one pass: name others with --blocks PATTERN"
                )
            kept: list[Tensor] = []
            if self._tracing and not self._outputs:
                torch.set_grad_enabled(True)  # until the pass ends
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
    """Parameters require no gradients meanwhile: none is computed, and what only they need is not kept.

    The exception are the joint projections of ``nn.MultiheadAttention``: their input does not lie in order in memory,
    and torch makes one product of it only for weights that require gradients, else a slow one for each token. The
    layer's own way without gradients is off too: it is not the same to the last bit.
    """
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    joint = [part.in_proj_weight for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for weight in joint:
            if weight is not None:
                weight.requires_grad_(True)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
