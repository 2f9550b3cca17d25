"""Running a network over many images: batches found by doubling, halved where memory runs out, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from engine.placement import Lane, Placement
from engine.throughput import Runner, Way, _double

CPU = torch.device("cpu")
IMAGES = torch.arange(33.0)[:, None] * torch.ones(1, 3)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

pytestmark = pytest.mark.usefixtures("one_thread")


class Accelerator(Placement):
    """A placement on the CPU that is treated as a GPU is."""

    searches_batches = property(lambda self: True)


class FakeLane(Lane):
    """A lane that notes what happens when, and on which only so many images fit."""

    def __init__(self, fits: int = 1000, overlaps: bool = True) -> None:
        super().__init__(CPU)
        self.fits = fits
        self.overlaps = overlaps
        self.log: list[str] = []

    def send(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        if len(images) > self.fits:
            raise FULL
        first = int(images[0, 0])
        self.log.append(f"send {first}")
        return super().send(images)

    def bring(self, answers: torch.Tensor) -> Callable[[], torch.Tensor]:
        first = int(answers[0, 0]) // 2
        self.log.append(f"computed {first}")

        def take() -> torch.Tensor:
            self.log.append(f"took {first}")
            return answers.float()

        return take

    def release(self) -> None:
        self.log.append("release")


class Doubler(nn.Module):
    """Answers twice its images, notes how many came at once, and fits only so many."""

    def __init__(self, fits: int = 1000) -> None:
        super().__init__()
        self.fits = fits
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        if len(images) > self.fits:
            raise FULL
        return 2 * images


class Fetched:
    """Gives images, and notes what was asked for."""

    def __init__(self, until: int = 10**9) -> None:
        self.asked: list[tuple[int, int]] = []
        self.until = until

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        self.asked.append((start, stop))
        if start >= self.until:
            raise StopAsyncIteration
        return IMAGES[start : min(stop, self.until)]


def search(rates: dict[int, float], limit: int = 512) -> tuple[list[int], Way]:
    trials, tried = _double(limit), []
    way = next(trials)
    try:
        while True:
            tried.append(way.batch)
            way = trials.send(rates.get(way.batch, 0.0))
    except StopIteration as end:
        return tried, end.value[0]


def test_doubling_ends_where_it_gains_no_more() -> None:
    tried, way = search({8: 100, 16: 190, 32: 300, 64: 310, 128: 900})
    assert tried == [8, 8, 16, 16, 32, 32, 64, 64]  # each size twice: the first batch pays for set-up
    assert (way.batch, way.channels_last) == (32, True)


def test_doubling_ends_where_memory_does() -> None:
    assert search({8: 100, 16: 200, 32: 400}) == ([8, 8, 16, 16, 32, 32, 64], Way(32, True, 1))


def test_doubling_ends_at_the_largest_batch_that_is_allowed() -> None:
    always = {2**i: 10.0**i for i in range(12)}
    assert search(always, limit=40)[1].batch == 32
    assert search(always, limit=512)[1].batch == 512
    assert search(always, limit=3)[1].batch == 3
    assert search({3: 1.0}, limit=3)[0] == [3, 3]


@pytest.mark.parametrize("where", ["network", "upload"])
@pytest.mark.parametrize("placement", [Placement(CPU), Accelerator(CPU)], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("way", [None, Way(16, True, 1)], ids=["searching", "known"])
def test_where_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(
    where: str, placement: Placement, way: Way | None
) -> None:
    net = Doubler(fits=5 if where == "network" else 1000)
    lane = FakeLane(fits=5 if where == "upload" else 1000)
    fetch, done = Fetched(), list[int]()
    runner = Runner(net, net, placement, way, lane)
    found = torch.cat(list(runner.run(fetch, 33, done.append)))
    torch.testing.assert_close(found, 2 * IMAGES, rtol=0, atol=0)
    assert [start for start, _ in fetch.asked] == [0, *[stop for _, stop in fetch.asked[:-1]]]
    assert done[-1] == 33
    assert done == sorted(done)
    assert "release" in lane.log
    assert runner.way is None or runner.way.batch <= 5
    if way is not None:
        assert runner.way == Way(4, True, 1)  # 16, 8, and 4 fits


def test_one_image_that_does_not_fit_is_an_error() -> None:
    net = Doubler(fits=0)
    with pytest.raises(torch.OutOfMemoryError):
        list(Runner(net, net, Accelerator(CPU), Way(4, True, 1), FakeLane()).run(Fetched(), 33))
    assert net.seen == [4, 2, 1]


def test_other_errors_are_not_tried_again() -> None:
    class Broken(Doubler):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(images))
            raise RuntimeError("shapes do not fit")

    net = Broken()
    with pytest.raises(RuntimeError, match="do not fit"):
        list(Runner(net, net, CPU, Way(4, True, 1)).run(Fetched(), 33))
    assert net.seen == [4]


@pytest.mark.parametrize("placement", [Placement(CPU, max_batch=3), Accelerator(CPU, max_batch=3)])
@pytest.mark.parametrize("way", [None, Way(16, True, 1)], ids=["searching", "known"])
def test_the_largest_batch_holds(placement: Placement, way: Way | None) -> None:
    net = Doubler()
    runner = Runner(net, net, placement, way)
    torch.testing.assert_close(torch.cat(list(runner.run(Fetched(), 33))), 2 * IMAGES)
    assert max(net.seen) == 3


def test_one_batch_is_sent_and_computed_while_another_is_on_its_way_back() -> None:
    net, lane = Doubler(), FakeLane()
    list(Runner(net, net, Accelerator(CPU), Way(11, True, 1), lane).run(Fetched(), 33))
    assert lane.log == [
        *("send 0", "computed 0"),
        *("send 11", "computed 11", "took 0"),
        *("send 22", "computed 22", "took 11"),
        "took 22",
    ]
    plain = FakeLane(overlaps=False)
    list(Runner(net, net, CPU, Way(11, True, 1), plain).run(Fetched(), 33))
    assert plain.log[:4] == ["send 0", "computed 0", "took 0", "send 11"]


@pytest.mark.parametrize("overlaps", [True, False])
def test_what_is_on_its_way_is_not_lost_where_images_end_early(overlaps: bool) -> None:
    net = Doubler()
    runner = Runner(net, net, Accelerator(CPU), Way(4, True, 1), FakeLane(overlaps=overlaps))
    found = []

    def consume(answers: Iterator[torch.Tensor]) -> None:
        found.extend(answers)

    with pytest.raises(StopAsyncIteration):
        consume(runner.run(Fetched(until=10), 33))
    torch.testing.assert_close(torch.cat(found), 2 * IMAGES[:10])


def test_a_found_way_serves_the_next_network() -> None:
    first = Runner(Doubler(), nn.Identity(), Accelerator(CPU, max_batch=8))
    list(first.run(Fetched(), 33))
    assert first.way == Way(8, True, 1)
    net = Doubler()
    list(Runner(net, net, Accelerator(CPU), first.way).run(Fetched(), 33))
    assert net.seen == [8, 8, 8, 8, 1]


class Relu(nn.Module):
    """What torch's own pretend backends break."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backend", "good"),
    [("eager", True), ("relu_compile_error_TESTING_ONLY", False), ("relu_accuracy_error_TESTING_ONLY", False)],
)
def test_a_compiled_network_answers_only_where_it_answers_the_same(backend: str, good: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), Relu(), nn.Linear(8, 4)).eval()
    images = torch.randn(33, 3)
    with torch.inference_mode():
        expected = net(images)
    shapes: list[int] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        shapes.append(len(x))
        return net(x)

    runner = Runner(forward, net, Placement(CPU, compiler=backend), Way(16, True, 1))
    found = torch.cat(list(runner.run(lambda a, b: images[a:b], 33)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert runner.compiled is good
    if good:
        assert set(shapes) == {16}  # the last image was padded: another size would be compiled anew


def test_a_small_job_is_not_compiled() -> None:
    net = nn.Linear(3, 2)
    runner = Runner(net, net, Placement(CPU, compiler="eager"), Way(4, True, 1))
    assert len(torch.cat(list(runner.run(Fetched(), 7)))) == 7
    assert runner.compiled is False
