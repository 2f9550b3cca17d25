"""Orders: what a job is to do, such that a process of its own can do it.

The service carries an order out itself as far as nothing but memory is needed; what needs a model is left to the
process of a job, which reads the order as JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engine.errors import IndexDamagedError
from engine.index import Index
from engine.snapshot import Snapshot
from indexers.profiler import ProfileSettings
from query.answers import SearchAnswer
from query.api.errors import without_paths
from query.api.jobs import JobProgress, Kind
from query.api.settings import Settings
from query.api.watched import WatchedProfiler, model_folders
from query.recommend import RecommendRequest, choose, recommend
from query.recommendation import Recommendation, Target
from query.rerank import N_STEPS, Reranker, RerankSettings

INDEX = "INDEX"
"""What the commands that would help call the index: where it lies is nobody's business."""


class Order(BaseModel, ABC):
    """What is to be done, with which images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    index: Path
    device: str
    models: tuple[Path, ...] = Field(description="Folders of models.")
    images: tuple[Path, ...]
    names: tuple[str, ...] = Field(description="What the client calls the images.")

    def with_images(self, images: Sequence[Path]) -> Self:
        """The same for images that lie elsewhere now."""
        return self.model_copy(update={"images": tuple(images)})

    @property
    def shown(self) -> dict[str, str]:
        """The client's names by the paths of the images."""
        return {str(path): name for path, name in zip(self.images, self.names, strict=True)}

    @property
    @abstractmethod
    def profiling(self) -> ProfileSettings:
        """How models are run."""

    @abstractmethod
    def made(self, profiler: WatchedProfiler, snapshot: Snapshot | None = None) -> dict[str, Any]:
        """The answer as plain values.

        Args:
            profiler: Shows images to models.
            snapshot: That was searched, where that is open already.

        Raises:
            HubhoundError: There is none.
        """

    @abstractmethod
    def checked(self, answer: object) -> dict[str, Any]:
        """An answer that another process has made, after a look at it.

        Raises:
            ValueError: It is none.
        """


class RecommendOrder(Order):
    """Recommend models for the images; the fields are those of ``RecommendRequest``."""

    kind: Literal["recommend"] = "recommend"
    candidates: tuple[str, ...]
    k: int
    max_parameters: int | None
    eta: float
    gamma: float
    explain: bool

    @classmethod
    def of(cls, asked: RecommendRequest, names: Sequence[str], settings: Settings) -> Self:
        """The order for a request.

        Args:
            asked: The request.
            names: What the client calls the images.
            settings: Of the service.
        """
        fields = {name: getattr(asked, name) for name in RecommendRequest.__dataclass_fields__}
        return cls(**_common(settings), names=tuple(names), **fields)

    @property
    def profiling(self) -> ProfileSettings:
        """How models are run."""
        return ProfileSettings()

    def made(self, profiler: WatchedProfiler, snapshot: Snapshot | None = None) -> dict[str, Any]:
        """The recommendation."""
        index = Index(self.index)
        request = RecommendRequest(**{name: getattr(self, name) for name in RecommendRequest.__dataclass_fields__})
        profiler.expect(len(choose(INDEX, index.knowledge(), request)[0]))
        return _shown_recommendation(recommend(index, request, profiler, INDEX), self.shown).to_json()

    def checked(self, answer: object) -> dict[str, Any]:
        """A recommendation that another process has made."""
        return Recommendation.model_validate(answer).to_json()


class RerankOrder(Order):
    """Bring the hits of a search into their new order."""

    kind: Literal["search"] = "search"
    found: dict[str, Any] = Field(description="The answer so far, with as many hits as are looked at.")
    generation: str = Field(description="Name of the snapshot that was searched.")
    k: int
    weight: float
    top: int

    @classmethod
    def of(
        cls,
        asked: tuple[Sequence[Path], int],
        names: Sequence[str],
        found: SearchAnswer,
        snapshot: Snapshot,
        how: RerankSettings,
        settings: Settings,
    ) -> Self:
        """The order for a search.

        Args:
            asked: The images, and the hits that are wanted.
            names: What the client calls the images.
            found: The answer so far, with as many hits as are to be looked at.
            snapshot: That was searched.
            how: It is reranked.
            settings: Of the service.
        """
        images, k = asked
        return cls(
            **_common(settings),
            images=tuple(images),
            names=tuple(names),
            found=found.to_json(),
            generation=snapshot.folder.name,
            k=k,
            weight=how.weight,
            top=how.top,
        )

    @property
    def profiling(self) -> ProfileSettings:
        """How models are run."""
        return ProfileSettings(n_steps=N_STEPS)

    def made(self, profiler: WatchedProfiler, snapshot: Snapshot | None = None) -> dict[str, Any]:
        """The search in its new order."""
        index = Index(self.index)
        found = SearchAnswer.model_validate(self.found)
        hits = [hit for result in found.results for hit in result.hits[: self.top]]
        snapshot = snapshot or self._searched(index)
        profiler.expect(len({hit.model for hit in hits}))
        if snapshot.folder.name != self.generation:
            there = {(model.repo, model.revision) for model in snapshot.models}
            profiler.leave_out(hit.model for hit in hits if (hit.model, hit.revision) not in there)
        reranker = Reranker(index, snapshot, profiler, RerankSettings(self.weight, self.top))
        return _shown_search(reranker.rerank(found, self.images, self.k), self.shown).to_json()

    def checked(self, answer: object) -> dict[str, Any]:
        """An answer that another process has made."""
        return SearchAnswer.model_validate(answer).to_json()

    def _searched(self, index: Index) -> Snapshot:
        """The snapshot that was searched; the newest if that is gone by now."""
        try:
            return Snapshot._read(index.folder / "snapshots" / self.generation)
        except IndexDamagedError:
            return index.snapshot()


def carried_out(
    order: Order, show: Callable[[JobProgress], None] | None, snapshot: Snapshot | None = None
) -> dict[str, Any]:
    """What an order asks for, done in this process.

    Args:
        order: The order.
        show: Told how far it is; None to run no model.
        snapshot: See ``Order.made``.

    Raises:
        HubhoundError: There is no answer.
        ModelNeededError: No model is to be run, and one would have to.
    """
    folders = model_folders(order.models)
    profiler = WatchedProfiler(Index(order.index), order.device, order.profiling, folders, show)
    return order.made(profiler, snapshot)


def read_order(value: object) -> Order:
    """An order from plain values.

    Raises:
        ValueError: They are none.
    """
    return _ORDERS.validate_python(value)


_ORDERS: TypeAdapter[RecommendOrder | RerankOrder] = TypeAdapter(
    Annotated[RecommendOrder | RerankOrder, Field(discriminator="kind")]
)


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "index": settings.index.absolute(),
        "device": settings.device,
        "models": tuple(folder.absolute() for folder in settings.models),
    }


def _shown_recommendation(found: Recommendation, names: Mapping[str, str]) -> Recommendation:
    """A recommendation without the paths of this machine."""
    target = Target(images=tuple(names[path] for path in found.target.images), fingerprint=found.target.fingerprint)
    left_out = tuple(one.model_copy(update={"reason": without_paths(one.reason, names)}) for one in found.left_out)
    return found.model_copy(update={"target": target, "left_out": left_out})


def _shown_search(answer: SearchAnswer, names: Mapping[str, str]) -> SearchAnswer:
    """An answer without the paths of this machine in its reasons."""
    if answer.rerank is None:
        return answer
    hits = tuple(
        hit.model_copy(update={"reason": without_paths(hit.reason, names)}) if hit.reason else hit
        for hit in answer.rerank.hits
    )
    return answer.model_copy(update={"rerank": answer.rerank.model_copy(update={"hits": hits})})
