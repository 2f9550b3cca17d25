"""Products by another library are the same products."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from engine.products import _Products, fast_products

CPU = torch.device("cpu")


def network(width: int = 512) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width, bias=False))


def answer_and_gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    answer = model(x)
    (gradient,) = torch.autograd.grad(answer.square().sum(), x)
    return answer.detach(), gradient


def test_answers_and_gradients_are_those_of_float64() -> None:
    model, x = network(), torch.randn(3, 20, 512)
    context = fast_products(CPU, [model])
    assert isinstance(context, _Products)
    with context:
        found = answer_and_gradient(model, x)
    exact = answer_and_gradient(model.double(), x.double())
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max() / other.abs().max()) < 2e-6


def test_large_products_take_the_other_way_and_small_ones_do_not() -> None:
    asked: list[tuple[int, ...]] = []
    real = torch.ops.mkldnn._linear_pointwise

    def counted(x: torch.Tensor, *more: object) -> torch.Tensor:
        asked.append(tuple(x.shape))
        return real(x, *more)

    with _Products(counted):
        network()(torch.randn(60, 512))
        assert len(asked) == 2
        network()(torch.randn(1, 512))
        torch.mm(torch.randn(200, 200, dtype=torch.float64), torch.randn(200, 200, dtype=torch.float64))
        torch.addmm(torch.randn(200, 200), torch.randn(200, 200), torch.randn(200, 200))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("device", "model"),
    [(torch.device("meta"), network()), (CPU, nn.Conv2d(64, 64, 3)), (CPU, network(64))],
)
def test_elsewhere_and_for_small_networks_nothing_changes(device: torch.device, model: nn.Module) -> None:
    assert isinstance(fast_products(device, [model]), nullcontext)
