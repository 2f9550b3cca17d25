"""Showing uploaded images to models for a client: from memory only, or watched as a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.errors import ModelFailedError, Reason
from engine.index import Index
from engine.schema import Profile
from indexers.profiler import ImageFile, ProfiledImages, ProfileSettings
from indexers.towers import TowerSource, expand_towers
from query.api.jobs import JobProgress
from query.targets import TargetProfiler


class ModelNeededError(Exception):
    """Not all that is asked for is remembered: a model would have to run.

    None of ours that mean a model's own failure: the others would be ranked without it.

    Args:
        progress: At the first that would have to.
    """

    def __init__(self, progress: JobProgress) -> None:
        super().__init__(progress.model)
        self.progress = progress


class WatchedProfiler(TargetProfiler):
    """A profiler that tells how far it is in all models; with nobody to tell it answers from memory only.

    Args:
        index: The index.
        device: Where models run.
        settings: How they run.
        folders: Where models are, by name.
        show: Told, None to run no model.
    """

    def __init__(
        self,
        index: Index,
        device: str,
        settings: ProfileSettings,
        folders: Mapping[str, TowerSource],
        show: Callable[[JobProgress], None] | None,
    ) -> None:
        super().__init__(index, device, settings, folders, None if show is None else self._told)
        self._memory = ConductanceCache(index.folder / FILE)
        self._show = show
        self._number = 0
        self._models = 0
        self._gone: frozenset[str] = frozenset()

    def expect(self, models: int) -> None:
        """So many models will be shown images."""
        self._models = models

    def leave_out(self, models: Iterable[str]) -> None:
        """These are not in the index any more, and are not run."""
        self._gone = frozenset(models)

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
            ModelNeededError: No model is to be run, and this one was never shown one of the images.
        """
        self._number += 1
        if model in self._gone:
            raise ModelFailedError(Reason.MISSING, "it was taken out of the index meanwhile", model, revision)
        if self._show is not None:
            self._told(model, "reading", 0, 0)
        elif not self._remembered(model, images, recorded):
            raise ModelNeededError(self._progress(model, "starting", 0, 0))
        return super().images(model, images, recorded, revision)

    def _told(self, model: str, what: str, done: float, total: float) -> None:
        if self._show is not None:
            self._show(self._progress(model, what, done, total))

    def _progress(self, model: str, what: str, done: float, total: float) -> JobProgress:
        models = max(self._models, self._number)
        return JobProgress(model=model, what=what, done=done, total=total, model_number=self._number, models=models)

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
