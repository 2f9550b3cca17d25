"""The optimiser that trains the demo's models: orthogonalised momentum, which needs few steps."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 4


def one_cycle(step: int, steps: int, warm_up: float = 0.08) -> float:
    """Gives a learning rate's factor: it rises in a straight line, then falls along half a cosine.

    Args:
        step: The step, from 0.
        steps: How many there are.
        warm_up: The share of them in which the rate rises.

    Returns:
        A factor above 0 and up to 1.
    """
    rise = max(1.0, warm_up * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise))) + 1e-3


def orthogonalised(matrix: Tensor) -> Tensor:
    """Moves all singular values of a matrix near 1, by a Newton-Schulz iteration of its Gram matrix.

    Args:
        matrix: float32, [rows, columns].

    Returns:
        A matrix of the same shape, whose singular vectors are those of the argument.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T
    total = gram.diagonal().sum() + 1e-14
    gram = gram / total
    a, b, c = _COEFFICIENTS
    product: Tensor | None = None
    for i in range(_ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if i + 1 < _ITERATIONS:
            gram = factor @ gram @ factor
    result = wide if product is None else (product @ wide) / total.sqrt()
    return result if wide is matrix else result.T


class Muon:
    """Trains matrices by orthogonalised momentum and everything else by Adam.

    Convolution filters count as matrices with a row for each output channel; in a depthwise convolution, each filter
    is brought to length 1 by itself. Follows Jordan et al., "Muon: an optimizer for hidden layers in neural networks"
    (2024).

    Args:
        parameters: What to train.
        rate: Learning rate of the matrices, whose updates have singular values near 1.
        adam_rate: Learning rate of everything else.
        adam_only: Parameters that Adam trains although they are matrices, such as embeddings.
        momentum: Share of the old momentum that is kept in a step.
        decay: How much of a matrix's size is lost in a step, in units of the learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        rate: float,
        adam_rate: float,
        adam_only: Iterable[torch.nn.Parameter] = (),
        momentum: float = 0.9,
        decay: float = 0.02,
    ) -> None:
        self._rate, self._adam_rate, self._momentum, self._decay = rate, adam_rate, momentum, decay
        by_adam = list(adam_only)
        known = {id(p) for p in by_adam}
        self._matrices: list[torch.nn.Parameter] = []
        for p in parameters:
            if id(p) in known:
                continue
            (self._matrices if p.ndim >= 2 and p.shape[0] > 1 and p[0].numel() > 1 else by_adam).append(p)
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._adam = torch.optim.AdamW(by_adam, adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, factor: float) -> None:
        """Changes the parameters by their gradients and clears those.

        Args:
            factor: What the learning rates are multiplied by in this step.
        """
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate * factor
        self._adam.step()
        self._adam.zero_grad()
        rate = self._rate * factor
        with torch.no_grad():
            for p, momentum in zip(self._matrices, self._momenta, strict=True):
                if p.grad is None:
                    continue
                momentum.lerp_(p.grad, 1 - self._momentum)
                update = p.grad.lerp(momentum, self._momentum)
                flat = update.reshape(update.shape[0], -1)
                if p.ndim == 4 and p.shape[1] == 1:
                    direction, size = flat / (flat.norm(dim=1, keepdim=True) + 1e-8), 1.0
                else:
                    direction, size = orthogonalised(flat), max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
                p.mul_(1 - rate * self._decay)
                p.add_(direction.reshape(p.shape), alpha=-rate * size)
                p.grad = None
