"""What a worker of a fleet does: fetches models to its node's disk, and has them probed in processes apart."""

from __future__ import annotations

import platform
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path

from engine.errors import HubhoundError, ModelError, Reason, one_line
from indexers import vlm_files
from indexers.crawl.assignments import Profiling
from indexers.crawl.downloads import Downloads
from indexers.crawl.fleet.orders import Able, Answered, Here, Orders, Present, Seen, Trouble, Unfit
from indexers.crawl.fleet.parcel import Piece, check_samples, images_in
from indexers.crawl.fleet.place import Place
from indexers.crawl.journal import Claim
from indexers.crawl.messages import ProfileJob
from indexers.crawl.nursery import CancelledError, Nursery
from indexers.crawl.porter import ClassifierFiles, FetchStopped, Files, Looked, Porter
from indexers.crawl.records import Probed, Profiled
from indexers.crawl.unforeseen import STRANGE
from indexers.crawl.worker import Worker, WorkerStopped
from indexers.loaders.base import Repository
from indexers.loaders.declined import first_line

_Key = tuple[str, str]
_T = TypeVar("_T")


class Member:
    """A worker; Ray calls its methods from several threads, ``probe`` from one at a time.

    Args:
        orders: What it is told.
        node: Id of the node that it is on.
    """

    def __init__(self, orders: Orders, node: str) -> None:
        self._orders = orders
        self._node = node
        self._stop = threading.Event()
        self._probing = threading.Lock()
        self._place: Place | None = None
        self._worker: Worker | None = None
        self._nursery: Nursery | None = None
        self._porter: Porter | None = None
        self._downloads: Downloads | None = None
        self._looked: dict[_Key, Looked] = {}
        self._here: dict[_Key, Repository] = {}
        self._found: dict[_Key, Probed | Profiled] = {}

    def arrive(self) -> Present | Unfit:
        """Takes a place on the node."""
        return self._fitly(self._arrive)

    def unpack(self, piece: Piece, first: bool, last: bool) -> bool | Unfit:
        """Lays down some of the images; see `Place.unpack`."""

        def work() -> bool:
            if self._place is None:
                raise RuntimeError("a worker has not arrived")
            self._place.unpack(piece, first=first, last=last)
            return True

        return self._fitly(work)

    def begin(self) -> Able | Unfit:
        """Gets ready for models, which takes seconds."""
        return self._fitly(self._begin)

    def look(self, claim: Claim) -> Seen | Trouble | Unfit:
        """See `Porter.look`."""

        def work() -> Seen:
            looked = self._porters().look(claim)
            self._looked[_key(claim)] = looked
            return Seen(looked.repository, looked.identity)

        return self._modelwise(work)

    def bring(self, claim: Claim) -> Here | Trouble | Unfit:
        """See `Porter.bring`; after ``look``."""

        def work() -> Here:
            repository, size_bytes = self._porters().bring(self._looked.pop(_key(claim)))
            self._here[_key(claim)] = repository
            return Here(repository, size_bytes)

        return self._modelwise(work)

    def probe(self, claim: Claim, job: str | None) -> Answered | Trouble | Unfit:
        """Has a model that was brought shown the images; its answer waits here.

        Args:
            claim: The model.
            job: What is asked of a vision-language model, a `ProfileJob` as JSON with paths below the index; else None.
        """

        def work() -> Answered:
            worker, repository = self._worker, self._here[_key(claim)]
            if worker is None:
                raise RuntimeError("a worker has not begun")
            with self._probing:
                found = worker.probe(repository) if job is None else worker.run(self._profiling(repository, job))
            self._found[_key(claim)] = found
            arrays = [found.responses] if isinstance(found, Probed) else [row for row, _ in found.rows.values()]
            size_bytes = sum(array.nbytes for array in arrays)
            return Answered(size_bytes, worker.children, worker.protection, worker.missing)

        return self._modelwise(work)

    def hand_over(self, claim: Claim) -> Probed | Profiled:
        """What a model has answered; gone from here with that."""
        return self._found.pop(_key(claim))

    def forget(self, claim: Claim) -> int:
        """Removes what was downloaded for a model; bytes that downloads take now."""
        return self._lay_down(claim, lambda porter: porter.forget(claim))

    def drop(self, claim: Claim) -> int:
        """As `Porter.drop`; bytes that downloads take now."""
        return self._lay_down(claim, lambda porter: porter.drop(claim))

    def leave(self, claim: Claim) -> int:
        """As `Porter.leave`; bytes that downloads take now."""
        return self._lay_down(claim, lambda porter: porter.leave(claim))

    def stay(self) -> bool:
        """Returns when it is told to end: who waits for that learns of the end of its process, too."""
        self._stop.wait()
        return True

    def close(self) -> bool:
        """Ends everything that was started, and removes what is its own."""
        self._stop.set()
        if self._worker is not None:
            self._worker.stop()
            with self._probing:
                self._worker.close()
        if self._nursery is not None:
            self._nursery.close()
        if self._place is not None:
            self._place.close()
            self._place = None
        return True

    def _arrive(self) -> Present:
        orders = self._orders
        if orders.source is not None and not orders.source.is_dir():
            raise HubhoundError(
                f"the folder {orders.source} is not on {platform.node()}: "
                "what --source lists must be on a file system that all nodes have"
            )
        if self._place is None:
            self._place = Place(orders.cache or user_cache_path("hubhound"), orders.owner, orders.parcel)
        return Present(self._node, platform.node(), self._place.has_images)

    def _begin(self) -> Able:
        orders, place = self._orders, self._place
        if place is None:
            raise RuntimeError("a worker has not arrived")
        files: Files = vlm_files if orders.setup.towers else ClassifierFiles()
        self._downloads = Downloads(place.folder / "downloads", orders.downloads_bytes)
        self._porter = Porter(self._downloads, orders.fetching, self._stop, files)
        setup = replace(orders.setup, index=place.images, probes=None, cache=place.pixels)
        self._nursery = Nursery(setup, orders.limits, place.scratch, preload=orders.preload)
        self._nursery.start(self._stop.is_set)
        self._worker = Worker(self._nursery)
        return Able()

    def _profiling(self, repository: Repository, text: str) -> Profiling:
        if self._place is None:
            raise RuntimeError("a worker has not arrived")
        job = images_in(self._place.images.absolute(), ProfileJob.model_validate_json(text))
        here = job.model_copy(update={"folder": str(repository.folder.absolute())})
        return Profiling(repository, here, lambda: check_samples(here.tasks))

    def _porters(self) -> Porter:
        if self._porter is None:
            raise RuntimeError("a worker has not begun")
        return self._porter

    def _lay_down(self, claim: Claim, how: Callable[[Porter], None]) -> int:
        key = _key(claim)
        self._looked.pop(key, None)
        self._here.pop(key, None)
        self._found.pop(key, None)
        how(self._porters())
        return 0 if self._downloads is None else self._downloads.used_bytes

    def _modelwise(self, work: Callable[[], _T]) -> _T | Trouble | Unfit:
        def done() -> _T | Trouble:
            try:
                return work()
            except ModelError as error:
                return Trouble.of(error)
            except STRANGE as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                detail = f"an error of ours, please report it: {first_line(error)}"
                return Trouble(Reason.RUN_FAILED, detail, where=f"{Path(place.filename).name}:{place.lineno}")

        return self._fitly(done)

    def _fitly(self, work: Callable[[], _T]) -> _T | Unfit:
        try:
            return work()
        except (HubhoundError, OSError) as error:
            return Unfit(one_line(str(error)))
        except (FetchStopped, WorkerStopped, CancelledError):
            return Unfit("it was told to end")


def _key(claim: Claim) -> _Key:
    return claim.repo, claim.revision
