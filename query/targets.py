"""Profiling a target's images with the models that may be recommended for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.errors import IndexMismatchError, InputError, ModelFailedError, Reason
from engine.index import Index
from engine.schema import Profile
from indexers.profiler import ImageFile, ProfiledImages, Profiler, ProfileSettings
from indexers.sources import ModelSource, expand, revision_of
from indexers.towers import VLM, TowerSource
from query.recommend import Candidate, TargetProfile

Tell = Callable[[str, str, float, float], None]
"""Called with (model, what is being done, images done, images)."""


class TargetProfiler:
    """Shows a target's images to models; images that a model was shown before cost nothing, not even its loading.

    Args:
        index: The index, whose memory of conductance is used and added to.
        device: Where models run, as ``throughput.pick_device`` takes it; looked for when one is loaded.
        settings: How much memory may be used and how models are loaded; the number of steps, the precision and the
            blocks are those of a model's own profiles.
        folders: Local folders in Hub layout by the name of the model; others are looked for where they were profiled,
            or on the Hub.
        tell: Told what is being done.
    """

    def __init__(
        self,
        index: Index,
        device: str,
        settings: ProfileSettings,
        folders: Mapping[str, TowerSource] | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._cache = ConductanceCache(index.folder / FILE)
        self._device = device
        self._settings = settings
        self._folders = folders or {}
        self._tell = tell

    def __call__(self, candidate: Candidate, images: Sequence[ImageFile]) -> TargetProfile:
        """The profile of a target under a candidate: the mean over the target's images.

        Raises:
            HubhoundError: The candidate cannot be loaded or run, or an image cannot be read.
        """
        found = self.images(candidate.model, images, candidate.profile, candidate.profile.revision)
        return TargetProfile(found.rows.mean(axis=0), float(found.gaps.mean()), found.computed)

    def images(
        self,
        model: str,
        images: Sequence[ImageFile],
        recorded: Profile | ProfileKey | None,
        revision: str | None = None,
    ) -> ProfiledImages:
        """The profiles of some images under a model.

        Args:
            model: Its name.
            images: At least one.
            recorded: A profile of the model, or its key: its weights, blocks and settings count. None for a model
                without.
            revision: The one to fetch from the Hub, None for the newest.

        Raises:
            HubhoundError: The model cannot be loaded or run, or an image cannot be read.
        """
        settings = self._settings
        if recorded is not None:
            settings = replace(settings, n_steps=recorded.n_steps, precision=recorded.precision)  # type: ignore[arg-type]
        source = self._source(model, revision)
        if recorded is None and revision is not None and source.classifier is not None:
            there, _ = revision_of(source.classifier)
            if there != revision:
                raise IndexMismatchError(
                    f"{source.place} is not what was indexed as {model}: add it to the index again, "
                    "or name the folder with --models",
                    "revision",
                    revision,
                    there,
                )
        profiler = Profiler(source, self._cache, self._device, settings, recorded)
        tell = self._tell
        return profiler.profile(
            images, None if tell is None else lambda what, done, total: tell(model, what, done, total)
        )

    def _source(self, model: str, revision: str | None) -> TowerSource:
        if model in self._folders:
            return self._folders[model]
        if model.startswith(VLM):
            return TowerSource(model)
        at_hub: ModelSource | None = None
        for name in filter(None, (self._cache.place(model), model)):
            try:
                found = [source for source in expand([name]) if source.repo == model]
            except InputError:  # the folder is gone, or holds two models of that name: it may be elsewhere
                continue
            for source in found:
                if source.folder is not None:
                    return TowerSource(model, source)
                at_hub = at_hub or source
        if at_hub is None:
            detail = "it is neither where it was profiled nor on the Hub: profile it from where it is now"
            raise ModelFailedError(Reason.MISSING, detail, model, revision)
        return TowerSource(model, at_hub if revision is None else replace(at_hub, revision=revision))
