"""Matrix products by oneDNN instead of MKL while a block of code runs: faster on CPUs that MKL was not made for.

torch hands matrix products in float32 on a CPU to MKL and convolutions to oneDNN. On an AMD CPU with AVX-512 oneDNN did
the products of a transformer at 190 to 205 GFLOP/s where MKL did 100 to 175. Either way they are float32 arithmetic;
sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_MATRIX = 250_000  # weights of a matrix from which its products are large
_SMALLEST = 2_000_000  # multiplications from which it pays to go another way


def fast_products(device: torch.device, modules: Iterable[nn.Module]) -> AbstractContextManager[object]:
    """A context in which large float32 products on the CPU are oneDNN's, forwards and in gradients.

    Args:
        device: Where things are computed; elsewhere than on a CPU with oneDNN nothing changes.
        modules: What runs. Where none of it has a large matrix of weights, as in most convolutional networks, nothing
            changes either: seeing every operation pass takes time.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or linear is None or not there:
        return nullcontext()
    matrices = (p for module in modules for p in module.parameters() if p.ndim == 2)
    if all(matrix.numel() < _MATRIX for matrix in matrices):
        return nullcontext()
    return _Products(linear)


class _Products(TorchDispatchMode):
    """Sends ``mm`` and ``addmm`` elsewhere; it works below autograd, so gradients come about as ever."""

    def __init__(self, linear: Callable[..., Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._linear = linear

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not kwargs:
            if func is torch.ops.aten.addmm.default and args[0].ndim == 1 and _worth_it(args[1], args[2]):
                return self._linear(args[1], args[2].t(), args[0], "none", [], "")
            if func is torch.ops.aten.mm.default and _worth_it(args[0], args[1]):
                return self._linear(args[0], args[1].t(), None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _worth_it(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and a.shape[0] * a.shape[1] * b.shape[1] >= _SMALLEST
