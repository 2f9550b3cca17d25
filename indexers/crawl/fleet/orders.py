"""What the driver of a fleet and its workers tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError, ModelFailedError, ModelRefusedError, Reason
from indexers.crawl import log
from indexers.crawl.journal import Claim
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.porter import FetchOptions
from indexers.loaders.base import Repository


@dataclass(frozen=True)
class Orders:
    """What a worker is told once, before its first model.

    Attributes:
        owner: Names the index among others that this node works for.
        parcel: Names the images that models are shown.
        cache: Folder for everything that is written, None for the one that its user has.
        setup: What models are loaded and probed with; its paths are the driver's and mean nothing.
        downloads_bytes: Space for its downloads.
        fetching: Limits of fetching.
        limits: Of models' processes.
        source: Folder that models are listed from; the node must have it, too. None for the Hub and for files.
        preload: Module that the nursery imports first; for tests.
    """

    owner: str
    parcel: str
    cache: Path | None
    setup: Setup
    downloads_bytes: int
    fetching: FetchOptions
    limits: Limits
    source: Path | None = None
    preload: str | None = None


@dataclass(frozen=True)
class Present:
    """A worker has come to its place.

    Attributes:
        node: Id of the node.
        host: Its name, for a person.
        has_images: The images that models are shown are there.
    """

    node: str
    host: str
    has_images: bool


@dataclass(frozen=True)
class Able:
    """A worker can be given models."""


@dataclass(frozen=True)
class Unfit:
    """A worker cannot go on, and no model is to blame.

    Attributes:
        detail: One line for a person.
    """

    detail: str


@dataclass(frozen=True)
class Seen:
    """A model was looked at.

    Attributes:
        repository: Where its files will be, on the worker's disk, and what is stated about it.
        identity: Of its weights and configs; None where nothing vouches for them.
    """

    repository: Repository
    identity: str | None


@dataclass(frozen=True)
class Here:
    """A model is on the worker's disk.

    Attributes:
        repository: Where its files are.
        size_bytes: That were fetched, 0 for a local folder.
    """

    repository: Repository
    size_bytes: int


@dataclass(frozen=True)
class Answered:
    """A model has answered; the answer waits with the worker.

    Attributes:
        size_bytes: Of the answer.
        children: Processes born so far.
        within: Layers that models run within.
        without: Layers that the node does not allow.
    """

    size_bytes: int
    children: int
    within: tuple[str, ...]
    without: tuple[str, ...]


@dataclass(frozen=True)
class Trouble:
    """A model was refused or has failed.

    Attributes:
        reason: The kind of failure.
        detail: One line for a person.
        refused: It was declined.
        retry_after_s: Seconds to wait before the next try, where the Hub named them.
        where: Place in our code, of an error that nobody has foreseen.
    """

    reason: Reason
    detail: str
    refused: bool = False
    retry_after_s: float | None = None
    where: str | None = None

    @classmethod
    def of(cls, error: ModelError) -> Trouble:
        """The same as an error, for another process."""
        return cls(error.reason, error.detail, isinstance(error, ModelRefusedError), error.retry_after_s)

    def error(self, claim: Claim) -> ModelError:
        """The same as an error, here; what nobody has foreseen is logged.

        Args:
            claim: The model in hand.
        """
        if self.where is not None:
            log.error("unforeseen", model=claim.repo, revision=claim.revision, detail=self.detail, where=self.where)
        kind = ModelRefusedError if self.refused else ModelFailedError
        return kind(self.reason, self.detail, claim.repo, claim.revision, self.retry_after_s)
