"""Probing: a model and a probe set become responses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.descriptors import are_probabilities, centred_log_probabilities
from engine.errors import ModelFailedError, Reason
from engine.placement import Placement, out_of_memory
from engine.probes import ProbeSet
from engine.throughput import Runner, Way
from indexers.loaders.base import LoadedModel
from indexers.pixels import PixelCache


@dataclass(frozen=True)
class Responses:
    """What a model answered to every probe.

    Attributes:
        values: Logits, or centred log-probabilities where the model answers probabilities, float32 ``[n, outputs]``.
        probabilities: Whether it does.
        decode_s: Seconds spent on decoding and resizing; 0 where the pixels lay ready.
        forward_s: Seconds spent on running the model.
        half: Half precision that it ran in (``float16`` ...), None for float32.
        moved: How far half precision moves its descriptors, where it was tried (`engine.autocast.deviation`).
        compiled: Whether it ran as torch.compile made it.
        batch: Images at once, in the end.
    """

    values: npt.NDArray[np.float32]
    probabilities: bool
    decode_s: float
    forward_s: float
    half: str | None = None
    moved: float | None = None
    compiled: bool = False
    batch: int = 1


class Prober:
    """Runs models over one probe set.

    Args:
        probes: The probe set.
        cache: Where preprocessed probes are kept.
        where: Where models run, and how.
    """

    def __init__(self, probes: ProbeSet, cache: PixelCache, where: torch.device | Placement) -> None:
        self._probes = probes
        self._cache = cache
        self._placement = where if isinstance(where, Placement) else Placement(where)
        self._ways: dict[tuple[str, int, tuple[int, int]], Way] = {}

    def probe(
        self,
        model: LoadedModel,
        decoding: Callable[[int, int], None] | None = None,
        running: Callable[[int, int], None] | None = None,
    ) -> Responses:
        """Shows a model every probe, through its own preprocessing.

        Args:
            model: The model; it is moved to the device.
            decoding: Called with (done, total) while probes are decoded for a preprocessing not seen before.
            running: Called with (done, total) while the model runs.

        Returns:
            Its responses.

        Raises:
            ModelFailedError: It crashed, ran out of memory or did not answer one vector an image.
            ProbeError: A probe cannot be read.
        """
        started = time.perf_counter()
        pixels = self._cache.get(self._probes, model.preprocessing, decoding)
        decoded = time.perf_counter()
        try:
            values, runner = self._run(model, pixels, running)
        except ModelFailedError:
            raise
        except (MemoryError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise _failure(model, error) from error
        probabilities = are_probabilities(values)
        return Responses(
            centred_log_probabilities(values) if probabilities else values,
            probabilities,
            decoded - started,
            time.perf_counter() - decoded,
            None if runner.dtype is None else str(runner.dtype).removeprefix("torch."),
            runner.moved,
            bool(runner.compiled),
            runner.way.batch if runner.way else 1,
        )

    def _run(
        self, model: LoadedModel, pixels: npt.NDArray[np.uint8], running: Callable[[int, int], None] | None
    ) -> tuple[npt.NDArray[np.float32], Runner]:
        n = len(pixels)
        preprocessing = model.preprocessing
        device = self._placement.device
        mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
        factor, shift = preprocessing.scale / std, -mean / std

        def fetch(start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(np.array(pixels[start:stop]))

        def sample(count: int) -> torch.Tensor:
            return torch.from_numpy(np.array(pixels[np.linspace(0, n - 1, count).astype(np.intp)]))

        def forward(images: torch.Tensor) -> torch.Tensor:
            return model.forward(model.module, torch.addcmul(shift, images.float(), factor))

        key = (model.architecture, model.parameters, preprocessing.size)
        runner = Runner(forward, model.module, self._placement, self._ways.get(key))
        values: npt.NDArray[np.float32] | None = None
        done = 0
        for answer in runner.run(fetch, n, (lambda i: running(i, n)) if running else None, sample):
            if answer.ndim != 2 or not answer.shape[1]:
                raise ModelFailedError(
                    Reason.NOT_A_CLASSIFIER,
                    f"it answers an array of shape {tuple(answer.shape)} instead of one value an output and image",
                    model.repo,
                    model.revision,
                )
            if values is None:
                values = np.empty((n, answer.shape[1]), np.float32)
            values[done : done + len(answer)] = answer.numpy()
            done += len(answer)
        if runner.way:
            self._ways[key] = runner.way
        if values is None:
            raise ValueError("no probes")
        return values, runner


def _failure(model: LoadedModel, error: Exception) -> ModelFailedError:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = Reason.OUT_OF_MEMORY if out_of_memory(error) else Reason.RUN_FAILED
    return ModelFailedError(reason, f"{text} ({type(error).__name__})", model.repo, model.revision)
