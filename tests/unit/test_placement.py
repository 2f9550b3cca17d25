"""Where networks run and how: what a user may ask for, and what is asked of a device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import placement
from engine.errors import InputError
from engine.placement import CudaLane, Lane, Placement, cuda_is_there, out_of_memory, pick_device, place, still_works
from indexers.crawl.limits import Setup

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_defaults_on_a_cpu_are_float32_and_no_compiler() -> None:
    found = place("cpu")
    assert found == Placement(CPU, "auto", None, 512)
    assert found.dtype is None
    assert not found.searches_batches
    assert type(found.lane()) is Lane


@pytest.mark.parametrize(
    ("autocast", "device", "dtype"),
    [
        ("auto", "cuda", torch.float16),
        ("auto", "mps", None),
        ("off", "cuda", None),
        ("bfloat16", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cpu", torch.float16),
    ],
)
def test_what_is_cast_to(autocast: Any, device: str, dtype: torch.dtype | None) -> None:
    assert Placement(torch.device(device), autocast).dtype is dtype


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"device": "abacus"}, "device 'abacus' cannot be used: .+"),
        ({"autocast": "half"}, "autocast 'half': use auto, off, float16, bfloat16"),
        ({"max_batch": 0}, "a largest batch of 0: use 1 or more"),
        ({"memory_share": 0.0}, "a share of 0 of a device's memory: use more than 0 and at most 1"),
        ({"memory_share": 1.5}, "a share of 1.5 of .+"),
        ({"compiler": "gcc"}, "torch.compile has no backend 'gcc' here: use off, cudagraphs, inductor.*"),
        ({"compiler": "cudagraphs"}, "the backend cudagraphs of torch.compile needs a CUDA device, not cpu"),
    ],
)
def test_what_cannot_be_is_one_line(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        place(**{"device": "cpu", **asked})
    assert re.fullmatch(says, str(error.value))


def test_a_missing_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", _no_driver)
    with pytest.raises(InputError, match=r"^device 'cuda:1' cannot be used: Found no driver$"):
        pick_device("cuda:1")


def _no_driver(*_: object, **__: object) -> None:
    raise RuntimeError("Found no driver\nmore lines")


def test_a_share_of_the_memory_is_asked_for_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    place("cpu", memory_share=0.5)
    assert asked == []
    monkeypatch.setattr(placement, "pick_device", lambda name: CUDA)
    place("cuda", memory_share=0.25)
    place("cuda")
    assert asked == [(0.25, CUDA)]


def test_auto_asks_for_cuda_so_that_a_process_can_still_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch documents the variable: with it, looking for devices does not start the driver."""
    seen: list[str | None] = []

    def available() -> bool:
        seen.append(os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"))
        return True

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    assert pick_device("auto") == CUDA
    assert cuda_is_there()
    assert seen == ["1", "1"]
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    assert cuda_is_there()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, is_so: bool) -> None:
    assert out_of_memory(error) is is_so


def test_what_the_host_says_when_it_has_no_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**16)
    assert out_of_memory(error.value)


def test_a_device_that_does_not_answer_after_an_error_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert still_works(CPU)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert still_works(CUDA)

    def broken(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not still_works(CUDA)


def test_a_setup_is_placed_as_it_says() -> None:
    setup = Setup(Path("index"), None, Path("cache"), 1, autocast="bfloat16", compiler="eager", max_batch=7)
    assert setup.place() == Placement(CPU, "bfloat16", "eager", 7)
    with pytest.raises(InputError, match="share"):
        Setup(Path("index"), None, Path("cache"), 1, memory_share=2.0).place()


def test_limits_and_setup_need_no_torch() -> None:
    """A daemon is small: torch is its models' processes' business."""
    code = "import sys, indexers.crawl.limits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_plain_lane_brings_float32_back() -> None:
    lane = Lane(CPU)
    images = torch.arange(6.0).view(2, 3)
    there = lane.send(images)()
    assert torch.equal(there, images)
    back = lane.bring(there.half())()
    assert back.dtype is torch.float32
    assert torch.equal(back, images)


@pytest.mark.gpu
@needs_cuda
def test_the_cuda_lane_carries_many_batches_unharmed() -> None:
    lane = CudaLane(torch.device("cuda"))
    batches = [torch.randint(0, 255, (64, 3, 128, 128), dtype=torch.uint8) for _ in range(20)]
    waiting = []
    for batch in batches:
        there = lane.send(batch)()
        waiting.append(lane.bring((there.float() + 1).sum(dim=(1, 2, 3), dtype=torch.float64)))
    for batch, take in zip(batches, waiting, strict=True):
        torch.testing.assert_close(take(), (batch.double() + 1).sum(dim=(1, 2, 3)).float())
    lane.release()
