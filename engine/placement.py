"""Where networks run and how: the device, half precision, torch.compile, and what goes between host and device.

Everything that knows one kind of device from another is here. What runs on a device is told a `Placement`; how images
reach it and answers come back is a `Lane`'s business: on CUDA through pinned memory and a stream of its own, so that
one batch is copied while another is computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch

from engine.errors import InputError, one_line

Autocast = Literal["auto", "off", "float16", "bfloat16"]
"""What half precision networks are tried in (`engine.autocast`); ``auto`` is float16 on CUDA and none elsewhere."""

AUTOCASTS: tuple[Autocast, ...] = get_args(Autocast)

MAX_BATCH = 512
"""Images at once that are tried at most: more keep no device busier."""

WITHOUT_COMPILER = ("cudagraphs",)
"""Backends of torch.compile that start no compiler: the others cannot work where starting programs is forbidden."""

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Placement:
    """Where and how networks run; made by `place`.

    Attributes:
        device: Where.
        autocast: What half precision they are tried in.
        compiler: Backend of torch.compile, None for none.
        max_batch: Images at once, at most; on a CPU at most 32 are tried in any case.
    """

    device: torch.device
    autocast: Autocast = "auto"
    compiler: str | None = None
    max_batch: int = MAX_BATCH

    @property
    def dtype(self) -> torch.dtype | None:
        """What operations of a network that bears it are cast to, None for nothing."""
        if self.autocast == "auto":
            return torch.float16 if self.device.type == "cuda" else None
        return _DTYPES.get(self.autocast)

    @property
    def searches_batches(self) -> bool:
        """Whether the best batch is looked for by doubling, as on everything but a CPU."""
        return self.device.type != "cpu"

    def lane(self) -> Lane:
        """A way of its own for images and answers."""
        return CudaLane(self.device) if self.device.type == "cuda" else Lane(self.device)


def place(
    device: str = "auto",
    *,
    autocast: str = "auto",
    compiler: str = "off",
    max_batch: int = MAX_BATCH,
    memory_share: float = 1.0,
) -> Placement:
    """A placement from what a user asked for.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` ...
        autocast: ``auto``, ``off``, ``float16`` or ``bfloat16``.
        compiler: ``off``, or a backend of torch.compile such as ``cudagraphs`` or ``inductor``.
        max_batch: Images at once, >= 1.
        memory_share: Of the device's memory that this process may take, in (0, 1]; of CUDA only. Several workers on one
            device each take a part, so that the batch of one is not found at the price of another.

    Raises:
        InputError: Something is unknown, absent or out of range.
    """
    if autocast not in AUTOCASTS:
        raise InputError(f"autocast {one_line(autocast, 50)!r}: use {', '.join(AUTOCASTS)}")
    if max_batch < 1:
        raise InputError(f"a largest batch of {max_batch}: use 1 or more")
    if not 0 < memory_share <= 1:
        raise InputError(f"a share of {memory_share:g} of a device's memory: use more than 0 and at most 1")
    there = pick_device(device)
    if compiler != "off":
        _check_compiler(compiler, there)
    if memory_share < 1 and there.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(memory_share, there)
    return Placement(there, autocast, None if compiler == "off" else compiler, max_batch)


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        InputError: The device is unknown or absent.
    """
    if name == "auto":
        if cuda_is_there():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


_ASKING = threading.Lock()


def cuda_is_there() -> bool:
    """Whether there is a CUDA device, asked so that this process can still be forked: its driver is not started."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    with _ASKING:  # the environment is everybody's
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            return torch.cuda.is_available()
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def still_works(device: torch.device) -> bool:
    """Whether a device can go on after an error; one whose CUDA context is broken cannot, whatever it runs next."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


class Sent(Protocol):
    """Images on their way to a device."""

    def __call__(self) -> torch.Tensor:
        """The images there, for what is computed next."""


class Lane:
    """The way to a device and back; the plain form, in which each copy is waited for.

    Args:
        device: Where it leads.
    """

    overlaps = False
    """Whether copying goes on beside computing, so that it pays to send images ahead."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, images: torch.Tensor) -> Sent:
        """Sets images on their way.

        Args:
            images: On the host.
        """
        there = images.to(self.device)
        return lambda: there

    def bring(self, answers: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Sets answers on their way back.

        Args:
            answers: On the device; they need not be computed yet.

        Returns:
            Waits for them and gives them, float32 on the host.
        """
        here = answers.float().cpu()
        return lambda: here

    def release(self) -> None:
        """Gives back what is kept of the device's memory beyond what is in use."""


class CudaLane(Lane):
    """The way to a CUDA device: pinned memory, and a stream for the copies there."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pins = True

    def send(self, images: torch.Tensor) -> Sent:
        """Sets images on their way, on the stream of the copies."""
        images = self._pinned(images)
        with torch.cuda.stream(self._copies):
            there = images.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._copies)

        def take() -> torch.Tensor:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(arrived)
            there.record_stream(computing)  # its memory was the copies' and must not be theirs again before we are done
            return there

        return take

    def bring(self, answers: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Sets answers on their way back, on the stream that computes them."""
        answers = answers.float()
        here = self._pinned(torch.empty(answers.shape, dtype=torch.float32))
        here.copy_(answers, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def take() -> torch.Tensor:
            done.synchronize()
            return here

        return take

    def release(self) -> None:
        """Empties torch's cache of device memory."""
        torch.cuda.empty_cache()

    def _pinned(self, images: torch.Tensor) -> torch.Tensor:
        """The same in memory that the device reads by itself; where none is to be had, in what they lie in already."""
        if self._pins:
            try:
                return images.pin_memory()
            except RuntimeError:
                self._pins = False
        return images


def _check_compiler(name: str, device: torch.device) -> None:
    from torch.compiler import list_backends

    if name not in list_backends(None):
        known = ", ".join(list_backends())  # without those that are for finding torch's own faults
        raise InputError(f"torch.compile has no backend {one_line(name, 50)!r} here: use off, {known}")
    if name == "cudagraphs" and device.type != "cuda":
        raise InputError(f"the backend cudagraphs of torch.compile needs a CUDA device, not {device}")
