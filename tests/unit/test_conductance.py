"""Conductance of all blocks in one sweep: the same numbers as captum's, whatever the chunks."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.blocks import find_blocks
from engine.conductance import Conductance, layer_conductance
from engine.errors import ConductanceError, InputError
from tests.support.small_towers import FAMILIES, SmallTower, captum_conductance, small_tower, tokens_first, vit

pytestmark = pytest.mark.usefixtures("one_thread")
NOT_FOR_CAPTUM = {"open_clip ViT, tokens first", "transformers Swin"}  # compared in tests of their own


def conductance(tower: SmallTower, images: Tensor, **how: Any) -> Conductance:
    return layer_conductance(tower.forward, tower.module, find_blocks(tower.module), images, **how)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_FOR_CAPTUM))
def test_every_entry_of_every_block_is_captums(family: str) -> None:
    tower = small_tower(family)
    blocks = find_blocks(tower.module)
    images = tower.images(1)
    found = conductance(tower, images, n_steps=6, keep_maps=True)
    assert found.blocks == tuple(blocks)
    assert len(blocks) == tower.blocks
    for i, block in enumerate(blocks.values()):
        expected = captum_conductance(tower, block, images, n_steps=6)
        assert difference(found.maps[i], expected) < 1e-5
        np.testing.assert_allclose(found.mean_abs[0, i], expected.double().abs().mean(), rtol=1e-5)
        np.testing.assert_allclose(found.total[0, i], expected.double().sum(), atol=1e-5 * float(expected.abs().sum()))
        assert found.mean_abs[0, i] > 0


def test_the_defaults_are_captums() -> None:
    tower = small_tower("open_clip ViT")
    images = tower.images(1)
    block = find_blocks(tower.module)["transformer.resblocks.1"]
    found = conductance(tower, images, keep_maps=True)
    assert difference(found.maps[1], captum_conductance(tower, block, images)) < 1e-5


def test_blocks_whose_first_axis_counts_tokens() -> None:
    usual, turned = small_tower("open_clip ViT"), small_tower("open_clip ViT, tokens first")
    images = usual.images(2)
    assert torch.allclose(usual.forward(images), turned.forward(images), atol=1e-5)
    tokens = 17
    for max_batch in (None, tokens, 2 * tokens, 6):  # as many inputs as tokens must not mislead either
        n_steps = tokens - 1 if max_batch is None else 12
        expected = conductance(usual, images, n_steps=n_steps, keep_maps=True)
        found = conductance(turned, images, n_steps=n_steps, max_batch=max_batch, keep_maps=True)
        for i, map_ in enumerate(found.maps):
            assert difference(map_, expected.maps[i]) < 1e-5


def test_blocks_that_answer_tuples_with_other_things_in_them() -> None:
    tower = small_tower("transformers Swin")
    images = tower.images(1)
    found = conductance(tower, images, n_steps=6, keep_maps=True)
    layers = [tower.module.get_submodule(f"swin.encoder.layers.{i}") for i in range(3)]
    # What each tuple begins with, where captum can get at it.
    answers = [layers[0].downsample, layers[1].downsample, tower.module.get_submodule("swin.layernorm")]
    for i, module in enumerate(answers):
        assert isinstance(module, nn.Module)
        expected = captum_conductance(tower, module, images, n_steps=6, attribute_to_layer_input=i == 2)
        assert difference(found.maps[i], expected) < 1e-5


@pytest.mark.parametrize("max_batch", [2, 3, 4, 7, 10, 11, 22, 40])
def test_chunks_and_batches_change_nothing(max_batch: int) -> None:
    tower = small_tower("open_clip ViT")
    images = tower.images(3)
    whole = [conductance(tower, images[i : i + 1], n_steps=10, keep_maps=True) for i in range(3)]
    sizes: list[int] = []

    def forward(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return tower.forward(inputs)

    done: list[tuple[int, int]] = []
    found = layer_conductance(
        forward,
        tower.module,
        find_blocks(tower.module),
        images,
        n_steps=10,
        max_batch=max_batch,
        keep_maps=True,
        progress=lambda inputs, of: done.append((inputs, of)),
    )
    assert max(sizes) <= max_batch
    assert done[-1] == (33, 33)
    assert done == sorted(set(done))
    for i in range(4):
        assert difference(found.maps[i], torch.cat([one.maps[i] for one in whole])) < 1e-5
    for name in ("mean_abs", "total", "difference"):
        np.testing.assert_allclose(getattr(found, name), np.concatenate([getattr(o, name) for o in whole]), rtol=1e-4)


def test_an_image_like_the_baseline_has_none() -> None:
    tower = small_tower("open_clip ViT")
    zero = torch.zeros(1, *tower.image)
    found = conductance(tower, zero, n_steps=4)
    assert not found.mean_abs.any()
    assert not found.difference.any()
    assert found.completeness_gap.tolist() == [0.0]
    image = tower.images(1)
    assert not conductance(tower, image, n_steps=4, baseline=image[0]).mean_abs.any()


def test_another_baseline_counts() -> None:
    tower = small_tower("open_clip ModifiedResNet")
    images, baseline = tower.images(2), tower.images(1, seed=7)[0]
    found = conductance(tower, images, n_steps=5, baseline=baseline, keep_maps=True)
    plain = conductance(tower, images, n_steps=5, keep_maps=True)
    for i, block in enumerate(find_blocks(tower.module).values()):
        expected = captum_conductance(tower, block, images, n_steps=5, baselines=baseline.expand_as(images[:1]))
        assert difference(found.maps[i], expected) < 1e-5
        assert difference(plain.maps[i], found.maps[i]) > 0.01
    with torch.no_grad():
        ends = [torch.linalg.vector_norm(tower.forward(x), dim=1) for x in (images, baseline[None])]
    np.testing.assert_allclose(found.difference, (ends[0] - ends[1]).numpy(), rtol=1e-3)


class Squares(nn.Module):
    """F(x) = |x^2| of two blocks that can be worked out by hand: y = 2 x, z = y^2."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(2, 2, bias=False)
        self.twice.weight.data = 2 * torch.eye(2)
        self.square = Square()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.square(self.twice(x))
        return answer


class Square(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y**2


def test_one_step_by_hand() -> None:
    module = Squares()
    x = np.array([1.0, 2.0])
    low, high = (1 - 1 / math.sqrt(3)) / 2, (1 + 1 / math.sqrt(3)) / 2  # the two Gauss-Legendre nodes
    y_low, y_high = 2 * low * x, 2 * high * x
    g_z = y_low**2 / np.linalg.norm(y_low**2)
    expected = np.array([g_z * 2 * y_low * (y_high - y_low), g_z * (y_high**2 - y_low**2)])
    blocks: dict[str, nn.Module] = {"twice": module.twice, "square": module.square}
    found = layer_conductance(module, module, blocks, torch.tensor([[1.0, 2.0]]), n_steps=1, keep_maps=True)
    np.testing.assert_allclose(np.stack([map_[0].numpy() for map_ in found.maps]), expected, rtol=1e-6)
    np.testing.assert_allclose(found.mean_abs[0], np.abs(expected).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.total[0], expected.sum(axis=1), rtol=1e-6)
    answer = float(np.linalg.norm((2 * x) ** 2))
    assert found.difference[0] == pytest.approx(answer)
    assert found.completeness_gap[0] == pytest.approx(abs(expected[1].sum() - answer) / answer)


def test_completeness_gap_shrinks_with_more_steps() -> None:
    tower = small_tower("open_clip ModifiedResNet")
    gaps = []
    for n_steps in (4, 16, 64, 256):
        found = conductance(tower, tower.images(1), n_steps=n_steps, keep_maps=True)
        last = float(found.maps[-1].double().sum())
        gaps.append(abs(last - found.difference[0]) / abs(found.difference[0]))
        assert found.completeness_gap[0] == pytest.approx(gaps[-1], rel=1e-3, abs=1e-6)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._backward_hooks) for part in module.modules())


class StopError(Exception):
    """Raised in the middle."""


@pytest.mark.parametrize("error", [None, StopError, KeyboardInterrupt, "forward"])
def test_the_network_is_left_as_it_was(error: Any) -> None:
    tower = small_tower("open_clip ViT")
    tower.module.proj.requires_grad_(False)  # type: ignore[union-attr, operator]
    flags = [parameter.requires_grad for parameter in tower.module.parameters()]
    calls = []

    def forward(images: Tensor) -> Tensor:
        calls.append(hooks(tower.module))
        if error == "forward" and len(calls) == 2:
            raise StopError
        return tower.forward(images)

    def progress(done: int, of: int) -> None:
        if error not in {None, "forward"} and done:
            raise error

    def run() -> None:
        layer_conductance(
            forward,
            tower.module,
            find_blocks(tower.module),
            tower.images(1),
            n_steps=4,
            max_batch=2,
            progress=progress,
        )

    if error is None:
        run()
    else:
        with pytest.raises(StopError if error == "forward" else error):
            run()
    assert calls[0] == 4
    assert hooks(tower.module) == 0
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert [parameter.requires_grad for parameter in tower.module.parameters()] == flags
    assert False in flags
    assert True in flags
    assert all(parameter.grad is None for parameter in tower.module.parameters())


def test_parameters_that_require_gradients_change_nothing() -> None:
    tower = small_tower("open_clip ViT")
    free = conductance(tower, tower.images(1), n_steps=4)
    frozen = small_tower("open_clip ViT")
    frozen.module.requires_grad_(False)
    images = tower.images(1).requires_grad_()
    np.testing.assert_allclose(conductance(frozen, images, n_steps=4).mean_abs, free.mean_abs, rtol=1e-6)
    assert images.grad is None
    with torch.no_grad():
        again = conductance(tower, tower.images(1), n_steps=4)
    np.testing.assert_allclose(again.mean_abs, free.mean_abs, rtol=1e-6)


def failing(forward: Callable[[Tensor], Any], module: nn.Module, *names: str, **how: Any) -> str:
    blocks = {name: module.get_submodule(name) for name in names}
    images = how.pop("images", torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises((ConductanceError, InputError)) as caught:
        layer_conductance(forward, module, blocks, images, **{"n_steps": 3, **how})
    assert hooks(module) == 0
    assert "\n" not in str(caught.value)
    return str(caught.value)


def line() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))


def test_what_has_no_conductance_is_refused() -> None:
    net = line()
    assert "block 1 runs more than once" in failing(lambda x: net[1](net[1](net[0](x))), net, "0", "1")
    assert "block 2 was not run" in failing(lambda x: net[1](net[0](x)), net, "0", "1", "2")
    assert "block 1 does not influence" in failing(lambda x: (net[0](x), net[1](x))[0], net, "0", "1")
    assert "no block influences" in failing(lambda x: (x, net[0](x))[0], net, "0")
    assert "NaN or infinity" in failing(lambda x: net[0](x) * math.nan, net, "0")
    assert "normalised" in failing(lambda x: nn.functional.normalize(net(x), dim=1), net, "0", "1")
    assert "normalised" in failing(lambda x: 100 * nn.functional.normalize(net(x), dim=1), net, "0", "1")
    assert "(1, 4, 1) instead of one vector" in failing(lambda x: net(x)[:, :, None][:1], net, "0")
    assert "str instead of one vector" in failing(lambda x: (net(x), "no")[1], net, "0")
    assert "no axis counts them" in failing(lambda x: net[0](x.reshape(-1, 1, 4).repeat(3, 1, 1))[:, 0][::3], net, "0")
    assert "gradients of block 0" in failing(lambda x: Kink.apply(net(x)), net, "0", "1")


class Kink(torch.autograd.Function):
    """A function whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


def test_cocas_own_normalised_answer_is_refused() -> None:
    tower = small_tower("open_clip CoCa")
    with pytest.raises(ConductanceError, match="normalised: its length is 1"):
        layer_conductance(
            tower.module.encode_image,  # type: ignore[arg-type]
            tower.module,
            find_blocks(tower.module),
            tower.images(1),
            n_steps=3,
        )


def test_numbers_out_of_range() -> None:
    net = line()
    assert "n_steps is 0" in failing(net, net, "0", n_steps=0)
    assert "max_batch is 1" in failing(net, net, "0", max_batch=1)
    assert "no blocks" in failing(net, net)
    empty = layer_conductance(net, net, {"0": net[0]}, torch.zeros(0, 4))
    assert empty.mean_abs.shape == (0, 1)


class Pairs(nn.Module):
    """Answers two tensors of use, one of none and no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], str, Tensor]:
        return 2 * x, [x**2, x**3], "text", torch.arange(3)


def test_all_tensors_of_a_tuple_that_matter_count() -> None:
    net = nn.Sequential(nn.Linear(4, 3), Pairs())

    def forward(x: Tensor) -> Tensor:
        double, (square, _), text, _ = net(x)
        assert text == "text"
        return torch.cat([double, square], dim=1)

    images = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    found = layer_conductance(forward, net, {"first": net[0], "pairs": net[1]}, images, n_steps=5, keep_maps=True)
    one = nn.Sequential(net[0], Joined())
    expected = layer_conductance(one, one, {"first": one[0], "joined": one[1]}, images, n_steps=5, keep_maps=True)
    assert found.maps[1].shape == (2, 6)  # the cube influences nothing
    for i in range(2):
        assert difference(found.maps[i], expected.maps[i]) < 1e-5


class Joined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([2 * x, x**2], dim=1)


def peak_bytes(max_batch: int, blocks: int = 4) -> tuple[int, int]:
    """Most bytes that graphs held at once, and the bytes they still hold at the end."""
    tower = small_tower("open_clip ViT")
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.module.parameters()}
    alive: dict[int, int] = {}
    peak = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # not the tensor, which may hold the graph that holds us

    def pack(tensor: Tensor) -> Held:
        nonlocal peak
        held = Held(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            alive[id(held)] = tensor.nbytes
            weakref.finalize(held, alive.pop, id(held))
            peak = max(peak, sum(alive.values()))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        layer_conductance(
            tower.forward,
            tower.module,
            dict(list(find_blocks(tower.module).items())[-blocks:]),
            tower.images(2),
            n_steps=50,
            max_batch=max_batch,
        )
    return peak, sum(alive.values())


def test_never_more_than_one_chunks_graph_is_alive() -> None:
    small, left = peak_bytes(6)
    whole, _ = peak_bytes(51)
    two, _ = peak_bytes(102)
    assert left == 0
    assert whole / small == pytest.approx(51 / 6, rel=0.1)
    assert two / whole == pytest.approx(2, rel=0.01)


def test_what_lies_before_the_first_block_keeps_no_graph() -> None:
    all_four, _ = peak_bytes(51)
    last, _ = peak_bytes(51, blocks=1)
    assert last < 0.1 * all_four


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALF = {  # largest deviation of mean |conductance| from float32 in any block; several times what is measured
    ("open_clip ViT", "float16"): 0.01,
    ("open_clip ViT", "bfloat16"): 0.08,
    ("open_clip ModifiedResNet", "float16"): 0.01,
    ("open_clip ModifiedResNet", "bfloat16"): 0.08,
}


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield request.param


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(("family", "precision"), HALF)
def test_half_precision_is_near(family: str, precision: Any, device: str) -> None:
    tower = small_tower(family)
    tower.module.to(device)
    images = tower.images(2).to(device)
    exact = conductance(tower, images, n_steps=10)
    half = conductance(tower, images, n_steps=10, precision=precision)
    deviation = np.abs(half.mean_abs / exact.mean_abs - 1).max()
    assert 0 < deviation < HALF[family, precision]


def test_turned_towers_are_the_same_network() -> None:
    torch.manual_seed(0)
    tower = vit()
    images = torch.randn(2, 3, 32, 32)
    usual = tower(images)
    assert torch.allclose(tokens_first(tower)(images), usual, atol=1e-5)


def test_an_answer_that_changes_next_to_the_baseline_only_is_no_constant_one() -> None:
    """A network that normalises its input sees the same picture all along the path, and nothing at its beginning."""

    class Levelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.block(x)
            return 3 * y / (y.norm(dim=1, keepdim=True) + 1e-12)

    tower = Levelled()
    found = layer_conductance(tower, tower, {"block": tower.block}, torch.ones(1, 3, 4, 4), n_steps=4)
    np.testing.assert_allclose(found.difference, [3.0], rtol=1e-6)
    np.testing.assert_allclose(found.total, [[0.0]], atol=1e-5)
