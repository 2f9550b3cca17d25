"""Half precision where it leaves descriptors in place: the measure, the trial on a few images, and what follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from engine.autocast import BOUND, bears, casting, deviation, deviations
from engine.placement import Placement
from engine.throughput import Runner

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=[pytest.mark.gpu, needs_cuda])]


def test_the_measure_by_hand() -> None:
    """Two outputs over four images: (1, 2, 3, 4) standardised is (-3, -1, 1, 3) / sqrt 5."""
    before = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    after = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 3.0], [3.0, 4.0]])
    # The swapped images differ by 2 / sqrt 5 each: sqrt((4/5 + 4/5) / 4).
    np.testing.assert_allclose(deviations(before, after), [np.sqrt(0.4), 0.0], atol=1e-12)
    assert deviation(before, after) == pytest.approx(np.sqrt(0.4))


def test_the_measure_is_another_form_of_the_correlation() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(50, 7))
    after = before + 0.1 * rng.normal(size=(50, 7))
    expected = [np.sqrt(2 - 2 * np.corrcoef(before[:, j], after[:, j])[0, 1]) for j in range(7)]
    np.testing.assert_allclose(deviations(before, after), expected, rtol=1e-9)


def test_scale_and_offset_of_an_output_are_no_deviation() -> None:
    before = np.random.default_rng(1).normal(size=(20, 3))
    assert deviation(before, before * [2.0, 0.1, 30.0] + [5.0, -1.0, 0.0]) < 1e-12


def test_no_concepts_correlation_moves_further_than_the_measure() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(size=(64, 1))
    after = before + 0.05 * rng.normal(size=(64, 1))
    z, w = ((a - a.mean()) / a.std() for a in (before[:, 0], after[:, 0]))
    bound = deviation(before, after)
    concepts = [rng.normal(size=64) for _ in range(200)] + [w - z]  # the last is the worst there is
    moves = []
    for raw in concepts:
        concept = (raw - raw.mean()) / raw.std()
        moves.append(abs((w - z) @ concept) / 64)
    assert max(moves) <= bound * (1 + 1e-9)
    assert max(moves) == pytest.approx(bound)


def test_probabilities_are_compared_as_they_are_described() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(30, 4))
    other = logits + 0.01 * rng.normal(size=(30, 4))

    def soft(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    def centred(x: np.ndarray) -> np.ndarray:
        return x - x.mean(axis=1, keepdims=True)

    assert deviation(soft(logits), soft(other)) == pytest.approx(deviation(centred(logits), centred(other)), rel=1e-3)
    assert deviation(soft(logits), soft(other)) != pytest.approx(deviation(logits, other), rel=1e-3)


def test_outputs_without_a_descriptor_do_not_count_and_a_lost_one_is_infinitely_far() -> None:
    before = np.random.default_rng(4).normal(size=(10, 3)).astype(np.float32)
    before[:, 0], before[3, 1] = 7.0, np.nan
    after = before.copy()
    after[:, 0] = np.arange(10)
    assert deviation(before, after) == 0.0
    after[2, 2] = np.inf
    assert deviation(before, after) == np.inf
    after[:, 2] = 1.0
    assert deviation(before, after) == np.inf
    assert deviation(before[:, :2], after[:, :2]) == 0.0


def test_an_operation_that_half_precision_lacks_is_a_no_and_want_of_memory_is_not() -> None:
    exact = torch.randn(9, 2)

    def raises(error: Exception) -> Callable[[], torch.Tensor]:
        def answer() -> torch.Tensor:
            raise error

        return answer

    assert bears(exact, lambda: exact) == (True, pytest.approx(0, abs=1e-12))
    assert bears(exact, raises(RuntimeError("not implemented for 'Half'"))) == (False, np.inf)
    assert bears(exact, lambda: exact[:, :1]) == (False, np.inf)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        with pytest.raises(type(error)):
            bears(exact, raises(error))
    assert bears(exact, lambda: exact + 0.1 * torch.randn(9, 2), bound=1e-9)[0] is False


def test_casting() -> None:
    layer, x = nn.Linear(4, 2), torch.ones(1, 4)
    with torch.no_grad():
        with casting(CPU, torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        with casting(CPU, None):
            assert layer(x).dtype is torch.float32


class Offset(nn.Module):
    """A network in which half precision loses what matters: small differences beside a large number."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + self.offset)


def answers(net: nn.Module, images: torch.Tensor, placement: Placement) -> tuple[torch.Tensor, Runner]:
    runner = Runner(net, net, placement)
    return torch.cat(list(runner.run(lambda a, b: images[a:b], len(images)))), runner


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_network_that_bears_half_precision_runs_in_it_and_another_does_not(device: str, half: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(60, 6)
    placement = Placement(torch.device(device), half)  # type: ignore[arg-type]
    for net, good in ((Offset(0.0), True), (Offset(3000.0), False)):
        with torch.inference_mode():
            exact = net(images)
        found, runner = answers(net, images, placement)
        assert runner.dtype is (getattr(torch, half) if good else None)
        assert runner.moved is not None
        assert (0 < runner.moved <= BOUND) is good
        assert found.dtype is torch.float32
        if good:
            assert 0 < deviation(exact.numpy(), found.numpy()) < 2 * BOUND
        else:
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


def test_a_network_that_overflows_float16_runs_in_float32() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e6)
    images = torch.randn(40, 6)
    found, runner = answers(net, images, Placement(CPU, "float16"))
    assert (runner.dtype, runner.moved) == (None, np.inf)
    assert torch.isfinite(found).all()


def test_few_images_and_a_cpu_left_to_itself_mean_float32() -> None:
    torch.manual_seed(0)
    net = Offset(0.0)
    for images, placement in (
        (torch.randn(7, 6), Placement(CPU, "bfloat16")),
        (torch.randn(40, 6), Placement(CPU)),
        (torch.randn(40, 6), Placement(CPU, "off")),
    ):
        found, runner = answers(net, images, placement)
        assert (runner.dtype, runner.moved) == (None, None)
        with torch.inference_mode():
            torch.testing.assert_close(found, net(images))


def test_the_trial_sees_images_from_all_over_where_it_is_given_them() -> None:
    """The first images are easy and the rest is not: only a sample shows it."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    images = torch.cat([torch.randn(40, 6), 1e6 * torch.randn(40, 6)])

    def decided(sample: Callable[[int], torch.Tensor] | None) -> torch.dtype | None:
        runner = Runner(net, net, Placement(CPU, "float16"))
        list(runner.run(lambda a, b: images[a:b], len(images), sample=sample))
        return runner.dtype

    assert decided(None) is torch.float16
    assert decided(lambda count: images[np.linspace(0, 79, count).astype(int)]) is None


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0"])
def test_on_a_gpu_the_descriptors_stay_within_the_bound(name: str) -> None:
    """Whole runs against float32 on the CPU, also of networks that turn out to need float32."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=50).eval()
    images = torch.randn(96, 3, 224, 224)
    with torch.inference_mode():
        exact = torch.cat([net(part) for part in images.split(16)])
    found, runner = answers(net, images, Placement(torch.device("cuda")))
    assert runner.moved is not None
    # The bound holds on the images of the trial; over all of them a little more is left to chance.
    assert deviation(exact.numpy(), found.numpy()) <= (1.5 * BOUND if runner.dtype else 1e-3)
