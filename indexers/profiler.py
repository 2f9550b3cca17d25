"""Profiling: a model and some images become conductance profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.conductance_cache import ConductanceCache, ProfileKey
from engine.errors import ConductanceError, IndexMismatchError, InputError
from engine.schema import Profile, Task
from indexers.towers import LoadOptions, Tower, TowerSource, load_tower

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.conductance import Precision

Float64Array = npt.NDArray[np.float64]

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, images done, images); parts of images count."""

_SMALLEST = 2  # inputs of a pass: a step has two ends

# What a network raises that cannot be run: those who wrote it check their inputs in every way there is.
_FAILURES = (RuntimeError, MemoryError, ValueError, TypeError, AssertionError, LookupError, AttributeError)


@dataclass(frozen=True)
class ProfileSettings:
    """How profiles are computed.

    Attributes:
        n_steps: Steps of the path.
        precision: Of the passes: ``float32``, or ``float16`` or ``bfloat16`` by autocast.
        pattern: Of the blocks, None for those that are found.
        max_batch: Inputs in one pass, None for as many as fit.
        load: Limits of loading models.
    """

    n_steps: int = 50
    precision: Precision = "float32"
    pattern: str | None = None
    max_batch: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class ImageFile:
    """An image to show to a model.

    Attributes:
        path: Where it is.
        sha256: Of its bytes, hexadecimal.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class ProfiledImages:
    """The profiles of some images under one model.

    Attributes:
        blocks: d names.
        rows: Mean |conductance| of each block, float64 ``[images, d]``, in the order of the images.
        gaps: Completeness gap of each image, float64 ``[images]``.
        revision: Of the model's weights.
        parameters: Of the whole model.
        computed: How many images had to be computed; the others were known.
    """

    blocks: tuple[str, ...]
    rows: Float64Array
    gaps: Float64Array
    revision: str
    parameters: int
    computed: int


class Profiler:
    """Computes the profiles of one model; loads it when an image comes that it was not shown before.

    Args:
        source: The model.
        cache: What is known already; None to know and to remember nothing.
        device: Where it runs, as ``throughput.pick_device`` takes it; looked for when the model is loaded.
        settings: How.
        recorded: A profile of the model made with these settings, or its key: what is known of its weights and blocks
            needs no loading.
        tower: The model, where it is loaded already.
    """

    def __init__(
        self,
        source: TowerSource,
        cache: ConductanceCache | None,
        device: str,
        settings: ProfileSettings,
        recorded: Profile | ProfileKey | None = None,
        tower: Tower | None = None,
    ) -> None:
        self._source = source
        self._cache = cache
        self._device_name = device
        self._settings = settings
        self._recorded = recorded
        self._given = tower
        self._tower: Tower | None = None
        self._blocks: dict[str, nn.Module] = {}
        self._max_batch = settings.max_batch

    def profile(self, images: Sequence[ImageFile], progress: Progress | None = None) -> ProfiledImages:
        """The profiles of some images; each is remembered as soon as it is computed.

        Args:
            images: At least one.
            progress: Told what is being done.

        Raises:
            InputError: There is no image.
            IndexMismatchError: The weights are others than those that were profiled before.
            EncoderError: The model cannot be loaded.
            ModelError: Likewise.
            BlocksError: Its blocks are not known.
            ConductanceError: It has no conductance, or not enough memory.
            ProbeError: An image cannot be read.
        """
        if not images:
            raise InputError("there is no image to profile a model on")
        tell = progress or _silent
        key = self._key(tell)
        wanted = {image.sha256: image for image in images}
        known = self._cache.get(key, list(wanted)) if self._cache is not None else None
        rows = dict(known.rows) if known else {}
        parameters = known.parameters if known else 0
        missing = [image for sha256, image in wanted.items() if sha256 not in rows]
        done = 0
        while done < len(missing):
            tower = self._load(tell)
            parameters = tower.parameters
            new = self._some(tower, missing[done:], partial(_shift, tell, done, len(missing)))
            if self._cache is not None:
                self._cache.put(key, parameters, new)
            rows |= new
            done += len(new)
            tell("profiling", done, len(missing))
        kept = [rows[image.sha256] for image in images]
        return ProfiledImages(
            key.blocks,
            np.stack([row for row, _ in kept]),
            np.array([gap for _, gap in kept]),
            key.revision,
            parameters,
            len(missing),
        )

    def check_blocks(self, progress: Progress | None = None) -> None:
        """Loads the model and sees whether a pattern that is asked for names the blocks of its recorded profile.

        Args:
            progress: Told what is being done.

        Raises:
            InputError: It names others.
            HubhoundError: As ``profile``.
        """
        self._load(progress or _silent)

    def _key(self, tell: Progress) -> ProfileKey:
        settings, recorded = self._settings, self._recorded
        if recorded is None:
            tower = self._load(tell)
            revision, blocks = tower.revision, tuple(self._blocks)
        else:
            revision, blocks = recorded.revision, recorded.blocks
        return ProfileKey(self._source.name, revision, blocks, settings.n_steps, settings.precision)

    def _load(self, tell: Progress) -> Tower:
        if self._tower is not None:
            return self._tower
        from engine.blocks import find_blocks
        from engine.throughput import pick_device

        tell("loading", 0, 0)
        device, recorded, pattern = pick_device(self._device_name), self._recorded, self._settings.pattern
        try:
            tower = self._given or load_tower(self._source, device, self._settings.load)
        except (RuntimeError, MemoryError) as error:
            raise ConductanceError(f"{self._source.name} cannot be moved to {device}: {_line(error)}") from error
        if recorded is None:
            self._blocks = find_blocks(tower.module, pattern)
        elif tower.revision != recorded.revision:
            raise IndexMismatchError(
                f"the weights of {self._source.name} are not those that were profiled: profile the model again with "
                f"'hubhound profile {self._source.place} --again'",
                "weights",
                recorded.revision,
                tower.revision,
            )
        else:
            if pattern is not None and tuple(find_blocks(tower.module, pattern)) != recorded.blocks:
                raise InputError(
                    f"{self._source.name} has profiles made with the blocks {_some_of(recorded.blocks)}, and --blocks "
                    f"{pattern!r} names others: leave it out, or add --again to make all its profiles anew"
                )
            self._blocks = self._recorded_blocks(tower, recorded)
        self._tower = tower
        return tower

    def _recorded_blocks(self, tower: Tower, recorded: Profile | ProfileKey) -> dict[str, nn.Module]:
        modules = dict(tower.module.named_modules())
        gone = [name for name in recorded.blocks if name not in modules]
        if gone:  # another version of the library that builds the network
            raise IndexMismatchError(
                f"{self._source.name} was profiled with a block {gone[0]}, which it no longer has: profile it again "
                f"with 'hubhound profile {self._source.place} --again'",
                "blocks",
                recorded.blocks,
                None,
            )
        return {name: modules[name] for name in recorded.blocks}

    def _some(
        self, tower: Tower, images: Sequence[ImageFile], tell: Callable[[float], None]
    ) -> dict[str, tuple[Float64Array, float]]:
        """The profiles of the first few of some images: as many as are computed at once."""
        import torch

        from engine.conductance import layer_conductance
        from engine.path_memory import inputs_that_fit
        from engine.probes import open_image  # with Pillow, which those who only read profiles need not load

        settings = self._settings
        whole = settings.n_steps + 1
        while True:
            try:
                if self._max_batch is None:
                    first = tower.preprocess(open_image(images[0].path))[None].to(tower.device)
                    self._max_batch = inputs_that_fit(
                        tower.forward, tower.module, self._blocks, first, settings.n_steps
                    )
                group = images[: max(1, self._max_batch // whole)]
                inputs = torch.stack([tower.preprocess(open_image(image.path)) for image in group]).to(tower.device)
                found = layer_conductance(
                    tower.forward,
                    tower.module,
                    self._blocks,
                    inputs,
                    n_steps=settings.n_steps,
                    max_batch=self._max_batch,
                    precision=settings.precision,
                    progress=partial(_share, tell, len(group)),
                )
            except _FAILURES as error:
                if not _starved(error):
                    raise ConductanceError(f"{tower.name} cannot be profiled: {_line(error)}") from error
                if self._max_batch is None or self._max_batch <= _SMALLEST:
                    raise ConductanceError(
                        f"{tower.name} needs more memory for two inputs than there is: {_line(error)}"
                    ) from error
                self._max_batch = max(_SMALLEST, self._max_batch // 2)
                continue
            gaps = found.completeness_gap
            return {image.sha256: (found.mean_abs[i], float(gaps[i])) for i, image in enumerate(group)}


def default_precision(device: torch.device) -> Precision:
    """What passes are computed in unless told: half precision where it is fast, else float32."""
    return "float16" if device.type == "cuda" else "float32"


def make_profile(name: str, task: Task, found: ProfiledImages, settings: ProfileSettings) -> Profile:
    """The record of a model's profile on a task: the mean over its images."""
    return Profile(
        model=name,
        revision=found.revision,
        task=task.name,
        task_fingerprint=task.fingerprint,
        blocks=found.blocks,
        conductance=tuple(found.rows.mean(axis=0).tolist()),
        images=len(found.rows),
        n_steps=settings.n_steps,
        completeness_gap=float(found.gaps.mean()),
        parameters=found.parameters,
        precision=settings.precision,
    )


def _shift(tell: Progress, done: int, total: int, more: float) -> None:
    tell("profiling", done + more, total)


def _share(tell: Callable[[float], None], images: int, done: int, total: int) -> None:
    tell(images * done / total)


def _silent(what: str, done: float, total: float) -> None:
    """No progress is wanted."""


def _starved(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"
