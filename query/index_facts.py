"""What is in an index, for people and programs: the JSON of ``hubhound index info``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from engine.files import size_bytes
from engine.index import Index
from engine.knowledge import Knowledge
from engine.manifest import Manifest
from engine.schema import Record
from engine.snapshot import Snapshot
from query.hubness import Hubness

PARTS = ("store", "snapshots", "responses", "probes", "background", "tasks", "conductance.sqlite")
"""Of an index's folder, whose sizes are told."""

UNKNOWN = "unknown"
"""Stands for a library or licence that no model card names."""


class CrawlTrouble(Record):
    """Models that failed, were refused, or wait after a failure, for one reason."""

    state: str = Field(description="failed, refused, or listed for those that are tried again.")
    reason: str
    count: int


class UnfinishedPass(Record):
    """A listing that goes on."""

    kind: Literal["full", "follow"]
    entries: int = Field(description="Seen so far.")
    started: datetime | None


class CrawlSource(Record):
    """How far the listing of a source is."""

    source: str
    watermark: str | None = Field(description="Time up to which nothing was missed, as the source counts it.")
    last_full: datetime | None = Field(description="End of its last pass through everything.")
    unfinished: UnfinishedPass | None


class CrawlFacts(Record):
    """The last crawl into an index, from its journal."""

    running: bool
    phase: str | None = Field(description="What a running crawl is at: listing, crawling, waiting, stopping.")
    began: datetime | None = Field(description="Beginning of its first pass.")
    models: dict[str, int] = Field(description="Models by state.")
    stored: int = Field(description="Models that it put into the index, copies included.")
    failures: tuple[CrawlTrouble, ...] = Field(description="The most frequent first.")
    sources: tuple[CrawlSource, ...] = Field(description="By name.")


class IndexFacts(Record):
    """What an index was made with and what is in it."""

    manifest: Manifest
    generation: int = Field(description="Of the snapshot; 0 before the first.")
    models: int
    copies: int
    outputs: int
    left_out: int = Field(description="Outputs that carry no information and are not in the index.")
    libraries: dict[str, int] = Field(description="Models by library, 'unknown' for those that name none.")
    licences: dict[str, int] = Field(description="Models by licence, 'unknown' for those that name none.")
    tasks: int
    profiles: int
    profiled_models: int
    performance: int
    bytes: dict[str, int] = Field(description="Sizes on disk by part of the folder.")
    bytes_per_output: dict[str, int] = Field(description="Of the snapshot, by file.")
    crawl: CrawlFacts | None = Field(description="null where the index was never crawled into.")
    hubness: Hubness | None = Field(default=None, description="Left out where it was not asked for.")

    def to_json(self) -> dict[str, object]:
        """Plain values; what was not asked for is left out."""
        return self.model_dump(mode="json", exclude=set() if "hubness" in self.model_fields_set else {"hubness"})


def index_facts(
    index: Index, snapshot: Snapshot | None, knowledge: Knowledge, crawl: CrawlFacts | None = None
) -> IndexFacts:
    """What is in an index.

    Args:
        index: The index.
        snapshot: The generation that is told of; None before the first.
        knowledge: What is known about tasks.
        crawl: See ``crawl_facts``.
    """
    models, copies = ((), {}) if snapshot is None else (snapshot.models, snapshot.copies)
    return IndexFacts(
        manifest=index.manifest.model_copy(),
        generation=0 if snapshot is None else snapshot.number,
        models=len(models),
        copies=sum(map(len, copies.values())),
        outputs=0 if snapshot is None else len(snapshot),
        left_out=sum(len(model.left_out) for model in models),
        libraries=_counted(model.library for model in models),
        licences=_counted(model.licence for model in models),
        tasks=len(knowledge.tasks),
        profiles=len(knowledge.profiles),
        profiled_models=len(knowledge.models()),
        performance=len(knowledge.performance),
        bytes={
            part: size_bytes(index.folder / part)
            for part in PARTS
            if index.remote is None or part not in {"store", "responses"}  # which are on the server
        },
        bytes_per_output={} if snapshot is None else snapshot.bytes_per_output(),
        crawl=crawl,
    )


class ServerFacts(Record):
    """What an index on a server has there."""

    address: str
    format: int = Field(description="Of the records on the server.")
    models: int = Field(description="Records, of failed and refused models, too.")
    outputs: int
    shards: int = Field(description="Parts that the outputs are cut into.")
    replicas: int = Field(description="Copies of each part.")
    write_consistency: int = Field(description="Copies that must have a write before it is acknowledged.")
    recall: dict[str, float] = Field(description="Of candidates, by how many of the best; empty if there are none.")
    missing: int | None = Field(description="Models without candidates; null where there are none that fit the index.")
    incomplete: tuple[str, ...] = Field(description="Models whose outputs are not all there: nobody sees them.")


def server_facts(index: Index) -> ServerFacts | None:
    """What an index has on its server, None if it is embedded.

    Raises:
        StoreError: The server refused or did not answer.
    """
    if index.remote is None:
        return None
    from engine.catching_up import Seen
    from engine.joint_recall import JointRecall
    from engine.remote_creation import spread_of
    from engine.store.joint import open_joint
    from engine.store.server_config import FORMAT

    store = index.remote.store
    recall = JointRecall.read(index.folder)
    joint = open_joint(index.folder, store, index.manifest.background.fingerprint)
    spread = spread_of(store)
    seen = Seen.of(index.current_snapshot(), index.remote.identity)
    return ServerFacts(
        address=index.name,
        format=FORMAT,  # others are not opened
        models=store.count("models"),
        outputs=store.count_outputs(),
        shards=spread.shards,
        replicas=spread.replicas,
        write_consistency=spread.write_consistency,
        recall={} if recall is None else recall.recall,
        missing=None if joint is None else joint.joined.missing(),
        incomplete=tuple(model.repo for model in seen.incomplete),
    )


def crawl_facts(index: Index) -> CrawlFacts | None:
    """The last crawl into an index; needs no lock, also while a crawl runs. None where there was none.

    Args:
        index: The index.

    Raises:
        HubhoundError: The journal is damaged, of a newer version, or cannot be opened.
    """
    from indexers.crawl import heartbeat
    from indexers.crawl.journal import FILE, Journal

    path = index.folder / FILE
    if not path.is_file():
        return None
    beat = heartbeat.read(path.with_name(heartbeat.FILE))
    running = beat is not None and beat.alive and beat.age_s < heartbeat.STALE_S
    with Journal(path, read_only=True) as journal:
        rates, now = journal.rates(), journal.now()
        return CrawlFacts(
            running=running,
            phase=beat.beat.state if running and beat else None,
            began=_moment(now - rates.span_s) if journal.sources() else None,
            models={state.value: count for state, count in journal.counts().items()},
            stored=rates.models,
            failures=tuple(
                CrawlTrouble(state=failure.state.value, reason=failure.reason, count=failure.count)
                for failure in journal.failures()
            ),
            sources=tuple(
                CrawlSource(
                    source=source.name,
                    watermark=source.watermark,
                    last_full=_moment(source.last_full),
                    unfinished=UnfinishedPass.model_validate(
                        {"kind": source.unfinished, "entries": source.entries, "started": _moment(source.started_at)}
                    )
                    if source.unfinished
                    else None,
                )
                for source in journal.sources()
            ),
        )


def _counted(names: Iterable[str | None]) -> dict[str, int]:
    """How often each name occurs, in the order in which they come."""
    return dict(Counter(name or UNKNOWN for name in names))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)
