"""The kinds of models that a crawl can be about: which files they need, what is done with them, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from engine.writer import IndexWriter
from indexers import vlm_files
from indexers.crawl.assignments import Profiling
from indexers.crawl.fetching import ClassifierFiles, Fetched, Files
from indexers.crawl.fleet.parcel import Parcel, images_below
from indexers.crawl.holdings import Holdings
from indexers.crawl.journal import Journal
from indexers.crawl.keeper import Keeper
from indexers.crawl.messages import ProfileJob
from indexers.crawl.profile_journal import ProfileJournal
from indexers.crawl.profiles import ProfileKeeper
from indexers.crawl.records import Probed, Profiled
from indexers.crawl.samples import Samples
from indexers.crawl.standing_profiles import ProfileOptions, Standings, name_of
from indexers.crawl.storing import Storekeeper
from indexers.crawl.watch import Watch
from indexers.crawl.watchdog import Progress
from indexers.crawl.worker import Worker

Found = TypeVar("Found", Probed, Profiled)


@dataclass(frozen=True)
class Kind(Generic[Found]):
    """A kind of models.

    Attributes:
        folder: Where the crawl keeps its things.
        files: Which files of a repository are needed.
        work: Has a worker find out about a fetched model what is to be stored.
        keeper: Stores it.
        job: What a vision-language model is asked where another machine does the work, with the paths of images below
            the index's folder; None for a classifier, which is shown the probes.
        parcel: What such a machine needs of the index, given where the probe images are if they were moved.
        holdings: What the index holds of what is listed; None where it cannot be told before a model is fetched.
    """

    folder: Path
    files: Files
    work: Callable[[Worker, Fetched, Progress], Found]
    keeper: Keeper[Found]
    job: Callable[[Fetched], ProfileJob | None]
    parcel: Callable[[Path | None], Parcel]
    holdings: Holdings | None = None


def classifiers(writer: IndexWriter, journal: Journal, watch: Watch, *, keep_gone: bool) -> Kind[Probed]:
    """Image classifiers, which are shown the probes.

    Args:
        writer: The index.
        journal: Of the crawl.
        watch: Counts.
        keep_gone: Leave models in the index that the hub no longer has.
    """

    def work(worker: Worker, fetched: Fetched, progress: Progress) -> Probed:
        return worker.probe(fetched.repository, progress)

    keeper = Storekeeper(writer, journal, watch, keep_gone=keep_gone)
    return Kind(
        journal.path.parent,
        ClassifierFiles(),
        work,
        keeper,
        job=lambda fetched: None,
        parcel=lambda folder: Parcel.of_probes(writer.index, folder),
        holdings=Holdings(writer),
    )


def vlms(
    writer: IndexWriter, journal: ProfileJournal, watch: Watch, options: ProfileOptions, *, keep_gone: bool
) -> Kind[Profiled]:
    """Vision-language models, which are profiled on the index's tasks.

    A profile names the weights that it is of and no commit: what the index holds shows when a model has been fetched.

    Args:
        writer: The index.
        journal: Of the crawl.
        watch: Counts.
        options: How they are profiled.
        keep_gone: Leave profiles of models in the index that the hub no longer has.

    Raises:
        InputError: The index has no tasks.
        IndexDamagedError: An image of a task is missing or has changed.
    """
    samples = Samples.of(writer.index.folder, writer.store.tasks())
    standings = Standings(samples, options, writer.store.profiles())

    def wanted(fetched: Fetched) -> ProfileJob:
        claim = fetched.claim
        return standings.job(name_of(claim.repo, claim.folder), fetched.repository.folder)

    def work(worker: Worker, fetched: Fetched, progress: Progress) -> Profiled:
        return worker.run(Profiling(fetched.repository, wanted(fetched), samples.check), progress)

    def job(fetched: Fetched) -> ProfileJob:
        return images_below(writer.index.folder.absolute(), wanted(fetched))

    keeper = ProfileKeeper(writer, journal, watch, standings, keep_gone=keep_gone)
    return Kind(
        journal.path.parent,
        vlm_files,
        work,
        keeper,
        job=job,
        parcel=lambda _folder: Parcel.of_tasks(writer.index, tuple(samples.tasks.values())),
    )
