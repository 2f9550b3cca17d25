"""Showing uploaded images to models for a client: from memory only, or watched as a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.index import Index
from engine.schema import Profile
from indexers.profiler import ImageFile, ProfiledImages, ProfileSettings
from indexers.towers import TowerSource, expand_towers
from query.api.jobs import Watch
from query.targets import TargetProfiler


class ModelNeededError(Exception):
    """Not all that is asked for is remembered: a model would have to run.

    None of ours that mean a model's own failure: the others would be ranked without it.

    Args:
        model: The first that would have to.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


class WatchedProfiler(TargetProfiler):
    """A profiler whose progress is told to a job; without a job it answers from memory only.

    Args:
        index: The index.
        device: Where models run.
        settings: How they run.
        folders: Where models are, by name.
        watch: The job's, None to run no model.
    """

    def __init__(
        self,
        index: Index,
        device: str,
        settings: ProfileSettings,
        folders: Mapping[str, TowerSource],
        watch: Watch | None,
    ) -> None:
        super().__init__(index, device, settings, folders, watch)
        self._memory = ConductanceCache(index.folder / FILE)
        self._watch = watch

    @property
    def watch(self) -> Watch | None:
        """The job's, None to run no model."""
        return self._watch

    def images(
        self,
        model: str,
        images: Sequence[ImageFile],
        recorded: Profile | ProfileKey | None,
        revision: str | None = None,
    ) -> ProfiledImages:
        """The profiles of some images under a model; see ``TargetProfiler``.

        Raises:
            HubhoundError: The model cannot be loaded or run, or an image cannot be read.
            ModelNeededError: There is no job, and the model was never shown one of the images.
            JobCancelledError: The job is to end.
        """
        if self._watch is not None:
            self._watch.turn(model)
        elif not self._remembered(model, images, recorded):
            raise ModelNeededError(model)
        return super().images(model, images, recorded, revision)

    def _remembered(self, model: str, images: Sequence[ImageFile], recorded: Profile | ProfileKey | None) -> bool:
        if recorded is None:
            return False
        key = ProfileKey(model, recorded.revision, recorded.blocks, recorded.n_steps, recorded.precision)
        wanted = {image.sha256 for image in images}
        known = self._memory.get(key, list(wanted))
        return known is not None and wanted <= known.rows.keys()


def model_folders(folders: Sequence[Path]) -> dict[str, TowerSource]:
    """Where models are, by their names.

    Args:
        folders: In Hub layout.

    Raises:
        InputError: One holds no model, or two hold different models of one name.
    """
    found = expand_towers([str(folder) for folder in folders]) if folders else []
    return {source.name: source for source in found}
