"""A run that adds models to an index: each is listed, fetched, loaded, probed and stored, or recorded with a reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import ModelError, ModelRefusedError
from engine.schema import Model, ModelState
from engine.writer import IndexWriter
from indexers.crawl.records import Probed
from indexers.keeping import describe_answers
from indexers.loaders.base import Repository
from indexers.probing import ProbeModel, Progress
from indexers.sources import ModelSource, fetch, revision_of

STAGES = ("list", "fetch", "load", "decode", "probe", "store")
"""What the seconds of a model are spent on."""


@dataclass
class Outcome:
    """What became of one model in a run.

    Attributes:
        repo: Its id.
        revision: Its revision, once known.
        state: ``indexed``, ``failed`` or ``refused``.
        already: It was in the index at this revision; nothing was loaded.
        outputs: In the index.
        left_out: Outputs without information.
        reason: Kind of failure.
        detail: One line on it.
        seconds: Per stage.
    """

    repo: str
    revision: str | None = None
    state: ModelState = ModelState.INDEXED
    already: bool = False
    outputs: int = 0
    left_out: int = 0
    reason: str | None = None
    detail: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class AddOptions:
    """Limits of a run.

    Attributes:
        max_size_bytes: Larger repositories are refused before anything is downloaded.
        allow_pickle: Also open ``.bin`` and ``.pt`` weights, restricted to tensors.
        cache: Where downloads are kept; None for huggingface_hub's own place.
    """

    max_size_bytes: int
    allow_pickle: bool = False
    cache: Path | None = None


def add_model(
    writer: IndexWriter, probe: ProbeModel, source: ModelSource, options: AddOptions, progress: Progress | None = None
) -> Outcome:
    """Adds one model; whatever is wrong with it is recorded, not raised.

    Args:
        writer: The index.
        probe: Loads it and shows it the index's probes.
        source: The model.
        options: Limits.
        progress: Told what is being done.

    Raises:
        StoreError: The index cannot be written.
        OSError: Likewise.
        HubhoundError: A probe can no longer be read.
    """
    outcome = Outcome(source.repo)
    try:
        _add(writer, probe, source, options, progress, outcome)
    except ModelError as error:
        outcome.state = ModelState.REFUSED if isinstance(error, ModelRefusedError) else ModelState.FAILED
        outcome.reason, outcome.detail = error.reason.value, error.detail
        outcome.revision = outcome.revision or error.revision
        writer.record(
            Model(
                repo=source.repo,
                revision=outcome.revision or "unknown",
                state=outcome.state,
                reason=outcome.reason,
                detail=outcome.detail,
            )
        )
    return outcome


def _add(
    writer: IndexWriter,
    probe: ProbeModel,
    source: ModelSource,
    options: AddOptions,
    progress: Progress | None,
    outcome: Outcome,
) -> None:
    tell = _teller(progress)
    tell("looking up")(0, 0)
    with outcome.timed("list"):
        revision, _ = revision_of(source)
    outcome.revision = revision
    known = writer.store.model(source.repo)
    if known is not None and known.state is ModelState.INDEXED and known.revision == revision:
        outcome.already, outcome.outputs, outcome.left_out = True, known.outputs, len(known.left_out)
        return
    repository, probed = run_model(probe, source, revision, options, outcome, progress)
    tell("storing")(0, 0)
    with outcome.timed("store"):
        metadata = repository.metadata
        facts = Model(
            repo=repository.repo,
            revision=revision,
            library=probed.library,
            architecture=probed.architecture,
            parameters=probed.parameters,
            input_size=probed.input_size,
            licence=metadata.licence,
            tags=metadata.tags,
            downloads=metadata.downloads,
            likes=metadata.likes,
            probabilities=probed.probabilities,
        )
        model, table = describe_answers(writer, facts, probed.labels, probed.responses)
        keep = writer.index.manifest.responses == "keep"
        writer.put(model, table, probed.responses if keep else None)
    outcome.outputs, outcome.left_out = len(table), len(model.left_out)


def run_model(
    probe: ProbeModel,
    source: ModelSource,
    revision: str,
    options: AddOptions,
    outcome: Outcome,
    progress: Progress | None = None,
) -> tuple[Repository, Probed]:
    """Fetches, loads and probes one model; stores nothing.

    Args:
        probe: Loads it and shows it the probes.
        source: The model.
        revision: Its revision, as ``revision_of`` gave it.
        options: Limits.
        outcome: Gets the seconds of each stage.
        progress: Told what is being done.

    Returns:
        Its files, and what it answered.

    Raises:
        ModelError: Something is wrong with the model.
        HubhoundError: A probe can no longer be read.
    """
    _teller(progress)("fetching")(0, 0)
    with outcome.timed("fetch"):
        repository = fetch(
            source,
            revision,
            max_size_bytes=options.max_size_bytes,
            allow_pickle=options.allow_pickle,
            cache=options.cache,
        )
    probed = probe(repository, progress)
    outcome.seconds |= probed.seconds
    return repository, probed


def _teller(progress: Progress | None) -> Callable[[str], Callable[[int, int], None]]:
    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    return tell
