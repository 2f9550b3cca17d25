"""What an index knows about models' conductance, image by image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.index import Index
from engine.profiles import Float64Array, ImageProfiles
from engine.schema import Profile, Task


def key_of(profile: Profile) -> ProfileKey:
    """What the single images behind a profile are remembered under."""
    return ProfileKey(profile.model, profile.revision, profile.blocks, profile.n_steps, profile.precision)


def image_profiles(index: Index) -> dict[str, ImageProfiles]:
    """The profiles of every profiled model, image by image.

    A task whose images' own conductance is no longer remembered (the index was copied without its memory) counts as one
    image, the mean over them. A profile of a sample that has been replaced since is left out.

    Args:
        index: The index.

    Returns:
        By model.
    """
    knowledge = index.knowledge()
    cache = ConductanceCache(index.folder / FILE)
    found: dict[str, ImageProfiles] = {}
    for model in knowledge.models():
        profiles = [(profile, knowledge.task(profile.task)) for profile in knowledge.profiles_of(model)]
        rows: dict[str, Float64Array] = {}
        first: Profile | None = None
        for profile, task in profiles:
            if task is None or task.fingerprint != profile.task_fingerprint:
                continue
            first = first or profile
            rows[profile.task] = _rows(cache, profile, task)
        if first is not None:
            found[model] = ImageProfiles(model, first.blocks, rows, first.n_steps)
    return found


def known_as_means(index: Index, profiles: Mapping[str, ImageProfiles]) -> tuple[str, ...]:
    """Models of which some task is known as one mean only, so that no images can be drawn of it."""
    knowledge = index.knowledge()
    sizes = {task.name: len(task.images) for task in knowledge.tasks}
    return tuple(
        model for model, own in profiles.items() if any(len(rows) < sizes[task] for task, rows in own.images.items())
    )


def _rows(cache: ConductanceCache, profile: Profile, task: Task) -> Float64Array:
    images = [image.sha256 for image in task.images]
    known = cache.get(key_of(profile), images)
    if known is None or any(image not in known.rows for image in images):
        return np.asarray([profile.conductance], np.float64)
    return np.stack([known.rows[image][0] for image in images])
