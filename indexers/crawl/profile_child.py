"""What a child process does with a vision-language model: it loads its tower and shows it the images of tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.conductance_cache import ProfileKey
from engine.errors import BlocksError, ConductanceError, IndexMismatchError, Reason
from engine.throughput import pick_device
from indexers.crawl.limits import Setup
from indexers.crawl.messages import (
    CONDUCTANCE,
    MAX_BLOCK_NAME,
    MAX_BLOCKS,
    ProfileAnswer,
    ProfileJob,
    Recorded,
    Shown,
    Stage,
    images_of,
)
from indexers.loaders.declined import Declined, is_out_of_memory
from indexers.profiler import ImageFile, ProfiledImages, Profiler, ProfileSettings, default_precision
from indexers.towers import LoadOptions, Tower, TowerSource, load_tower


def profile(
    job: ProfileJob, scratch: Path, setup: Setup, tell: Callable[[Stage], Callable[[int, int], None]]
) -> ProfileAnswer:
    """Loads and profiles one model.

    Args:
        job: Which, and on what.
        scratch: Folder for the conductance.
        setup: Device and whether pickles are allowed.
        tell: Told what is being done.

    Raises:
        ModelError: It cannot be loaded.
        Declined: It has no conductance, or its blocks are not known.
        ProbeError: An image cannot be read.
    """
    tell("loading")(0, 0)
    started = time.perf_counter()
    device = pick_device(setup.device)
    source = TowerSource(job.name, folder=Path(job.folder))
    tower = load_tower(source, device, LoadOptions(allow_pickle=setup.allow_pickle))
    load_s = time.perf_counter() - started
    precision = default_precision(device) if job.precision == "auto" else job.precision
    settings = ProfileSettings(job.n_steps, precision)
    say = tell("probing")

    def progress(_what: str, done: float, total: float) -> None:
        say(int(done), int(total))

    recorded = job.recorded
    same = recorded is not None and recorded.revision == tower.revision
    images = images_of(job, tower.revision)
    if recorded is not None and same and not images:
        return _answer(job, tower, recorded.blocks, precision, 0, load_s, 0.0)
    key = _key(job, recorded, precision) if recorded is not None and same else None
    started = time.perf_counter()
    try:
        profiler = Profiler(source, None, str(device), settings, key, tower)
        found = profiler.profile([_file(image) for image in images.values()], progress)
    except BlocksError as error:
        raise Declined(Reason.UNKNOWN_ARCHITECTURE, str(error)) from error
    except IndexMismatchError as error:  # the library that builds the network calls its blocks otherwise now
        raise Declined(Reason.RUN_FAILED, str(error)) from error
    except ConductanceError as error:
        starved = error.__cause__ is not None and is_out_of_memory(error.__cause__)  # type: ignore[arg-type]
        raise Declined(Reason.OUT_OF_MEMORY if starved else Reason.RUN_FAILED, str(error)) from error
    _save(found, scratch)
    probe_s = time.perf_counter() - started
    return _answer(job, tower, found.blocks, precision, len(found.rows), load_s, probe_s)


def _key(job: ProfileJob, recorded: Recorded, precision: str) -> ProfileKey:
    return ProfileKey(job.name, recorded.revision, recorded.blocks, job.n_steps, precision)


def _file(image: Shown) -> ImageFile:
    return ImageFile(Path(image.path), image.sha256)


def _save(found: ProfiledImages, scratch: Path) -> None:
    if len(found.blocks) > MAX_BLOCKS or any(len(name) > MAX_BLOCK_NAME for name in found.blocks):
        raise Declined(
            Reason.UNKNOWN_ARCHITECTURE,
            f"it has {len(found.blocks):,} blocks, the first is {found.blocks[0][:100]!r}: at most {MAX_BLOCKS:,} with "
            f"names of {MAX_BLOCK_NAME} characters are taken",
        )
    rows = np.column_stack([found.rows, found.gaps]).astype("<f8")
    if not np.isfinite(rows).all():
        raise Declined(Reason.RUN_FAILED, "its conductance is not finite")
    np.save(scratch / CONDUCTANCE, np.ascontiguousarray(rows), allow_pickle=False)


def _answer(
    job: ProfileJob, tower: Tower, blocks: tuple[str, ...], precision: str, images: int, load_s: float, probe_s: float
) -> ProfileAnswer:
    return ProfileAnswer(
        number=job.number,
        revision=tower.revision,
        blocks=blocks,
        parameters=tower.parameters,
        precision=precision,  # type: ignore[arg-type]
        images=images,
        seconds={"load": load_s, "probe": probe_s},
    )
