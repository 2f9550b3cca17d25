"""Putting a fleet together from what a crawl is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexers.crawl.crew import Crew
from indexers.crawl.desk import Desk
from indexers.crawl.fleet.cluster import Cluster
from indexers.crawl.fleet.crew import FleetCrew
from indexers.crawl.fleet.errands import Roster
from indexers.crawl.fleet.orders import Orders
from indexers.crawl.fleet.staff import Staff
from indexers.crawl.journal import Journal
from indexers.crawl.kinds import Kind
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.local_crew import Size, name_of
from indexers.crawl.porter import FetchOptions
from indexers.crawl.watch import Watch


@dataclass(frozen=True)
class FleetOptions:
    """What is particular to a fleet.

    Attributes:
        workers: So many, None for as many as the nodes have room for.
        cache: Folder for everything that workers write, None for the one that their user has.
        source: Folder that models are listed from, None for the Hub and for files.
        preload: Module that nurseries import first; for tests.
    """

    workers: int | None = None
    cache: Path | None = None
    source: Path | None = None
    preload: str | None = None


def fleet(
    cluster: Cluster,
    journal: Journal,
    kind: Kind[Any],
    options: FleetOptions,
    size: Size,
    fetching: FetchOptions,
    setup: Setup,
    limits: Limits,
    watch: Watch,
) -> Callable[[Desk], Crew]:
    """Who hires a fleet for a crawl; to be given to `indexers.crawl.daemon.Daemon`.

    Args:
        cluster: Where the workers are.
        journal: Of the crawl.
        kind: What kind of models it is about.
        options: What is particular to a fleet.
        size: Of each worker: models fetched at once, and fetched ones that wait; its downloads.
        fetching: Limits of fetching.
        setup: What models are loaded and probed with.
        limits: Of models' processes.
        watch: Counts what happens.

    Raises:
        ProbeError: An image that models are shown is missing.
        IndexMismatchError: One has changed.
    """
    parcel = kind.parcel(setup.probes)
    orders = Orders(
        owner=name_of(kind.folder),
        parcel=parcel.name,
        cache=options.cache,
        setup=setup,
        downloads_bytes=size.downloads_bytes,
        fetching=fetching,
        limits=limits,
        source=options.source,
        preload=options.preload,
    )

    def hire(desk: Desk) -> Crew:
        roster = Roster(size.prefetch, size.fetchers)
        staff = Staff(cluster, roster, orders, options.workers, parcel.pieces)
        return FleetCrew(desk, journal, cluster, staff, roster, watch, kind.job)

    return hire
