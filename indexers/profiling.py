"""A run that profiles models: each is loaded once and shown the samples of all tasks it has no profile of."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.conductance_cache import FILE, ConductanceCache
from engine.errors import InputError
from engine.schema import Profile, Task
from engine.writer import IndexWriter
from indexers.profiler import ImageFile, Profiler, ProfileSettings, Progress, make_profile
from indexers.towers import TowerSource


@dataclass(frozen=True)
class Profiled:
    """What a run did for one model.

    Attributes:
        model: As it was named.
        blocks: Of its tower; 0 if nothing was computed and nothing known.
        profiles: Tasks that it now has a profile of.
        computed: Profiles made in this run.
        images: Images that it was shown in this run.
        completeness_gap: Mean over its profiles.
        seconds: That it took.
        detail: One line on why it failed, None if it did not.
    """

    model: str
    blocks: int = 0
    profiles: int = 0
    computed: int = 0
    images: int = 0
    completeness_gap: float = 0.0
    seconds: float = 0.0
    detail: str | None = None


def profile_model(
    writer: IndexWriter,
    source: TowerSource,
    tasks: Mapping[Task, Sequence[ImageFile]],
    device: str,
    settings: ProfileSettings,
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> Profiled:
    """Makes the profiles of one model on some tasks; those that are there already are kept.

    Every image's conductance is remembered as it is computed and every profile is stored as it is finished: an
    interrupted run goes on where it was.

    Args:
        writer: The index.
        source: The model.
        tasks: Tasks with the images of their samples.
        device: Where the model runs, as ``throughput.pick_device`` takes it.
        settings: How profiles are computed.
        again: Make all its profiles anew from the weights that there are now; those on other tasks are dropped, too.
            What is remembered of images under the same weights and settings still holds.
        progress: Told what is being done, in images of all tasks.

    Raises:
        InputError: The model has profiles made with other settings or blocks.
        HubhoundError: The model or an image cannot be used, or the index cannot be written.
    """
    started = time.monotonic()
    cache = ConductanceCache(writer.index.folder / FILE)
    known = {profile.task: profile for profile in writer.store.profiles(model=source.name)}
    if again:
        known = {}
    for profile in known.values():
        check_settings(profile, settings)
    recorded = next(iter(known.values()), None)
    profiler = Profiler(source, cache, device, settings, recorded)
    if recorded is not None and settings.pattern is not None:
        profiler.check_blocks(progress)
    fresh: list[Profile] = []
    shown = done = 0
    total = sum(len(images) for images in tasks.values())
    for task, images in tasks.items():
        there = known.get(task.name)
        if there is None or there.task_fingerprint != task.fingerprint:
            found = profiler.profile(images, _shifted(progress, done, total))
            profile = make_profile(source.name, task, found, settings)
            if again and not fresh:
                writer.drop_profiles(source.name)  # only now that the model is known to work
            writer.put_profiles([profile])
            writer.export_knowledge(force=False)
            known[task.name] = profile
            if source.classifier is not None and not fresh:
                cache.remember_place(source.name, source.place)  # a run that is interrupted leaves profiles, too
            fresh.append(profile)
            shown += found.computed
        done += len(images)
        if progress:
            progress("profiling", done, total)
    if source.classifier is not None and not fresh:
        cache.remember_place(source.name, source.place)
    gaps = [profile.completeness_gap for profile in known.values()]
    return Profiled(
        source.name,
        len(next(iter(known.values())).blocks) if known else 0,
        len(known),
        len(fresh),
        shown,
        sum(gaps) / len(gaps) if gaps else 0.0,
        time.monotonic() - started,
    )


def check_settings(known: Profile, settings: ProfileSettings) -> None:
    """Refuses to mix profiles of one model that were computed differently: they cannot be compared.

    Raises:
        InputError: ``known`` was made with another number of steps or in another precision.
    """
    for what, option, there, asked in (
        ("n_steps", "--n-steps", known.n_steps, settings.n_steps),
        ("precision", "--precision", known.precision, settings.precision),
    ):
        if there != asked:
            raise InputError(
                f"{known.model} has profiles made with {what} {there}, and {asked} was asked for: "
                f"use {option} {there}, or --again to make all its profiles anew"
            )


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    if progress is None:
        return None
    tell = progress

    def shifted(what: str, part: float, of: float) -> None:
        tell(what, done + part if of else 0, total if of else 0)

    return shifted
