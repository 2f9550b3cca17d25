"""A repository on this disk becomes a model's answers to the probes: in a process of its own within limits, or here."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.remote import Remote
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.records import Probed
from indexers.crawl.scratch import remove
from indexers.loaders.base import Repository

if TYPE_CHECKING:
    from indexers.prober import Prober

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""

ProbeModel = Callable[[Repository, Progress | None], Probed]
"""Loads a model and shows it the probes; raises a `ModelError` where that does not work."""

_SCRATCH = "scratch-of-"


@contextmanager
def apart(setup: Setup, limits: Limits) -> Iterator[ProbeModel]:
    """Runs models in processes of their own, without network and within limits.

    Args:
        setup: What they need.
        limits: What each may take.

    Yields:
        The function; it raises besides a `HubhoundError` where no process can be started, and OSError on a full disk.
    """
    from indexers.crawl.nursery import Nursery
    from indexers.crawl.worker import Worker

    if threading.current_thread() is threading.main_thread():
        # The end of a model's process must be an error here, not the end of this one.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _sweep(setup.cache)
    remote = Remote.of(setup.index)
    if remote is not None and setup.probes is None:
        remote.fetch_once("probes")  # a model's process has neither the network nor the key
    nursery = Nursery(setup, limits, setup.cache / f"{_SCRATCH}{os.getpid()}")
    worker = Worker(nursery)
    try:
        yield worker.probe
    finally:
        worker.close()
        nursery.close()


def here(prober: Prober, *, allow_pickle: bool = False) -> ProbeModel:
    """Runs models in this process, without limits.

    Args:
        prober: Over the index's probes.
        allow_pickle: Also open pickled weights, restricted to tensors.
    """

    def probe(repository: Repository, progress: Progress | None) -> Probed:
        import time

        from indexers.loaders import load

        def tell(what: str) -> Callable[[int, int], None] | None:
            return None if progress is None else lambda done, total: progress(what, done, total)

        if progress is not None:
            progress("loading", 0, 0)
        started = time.perf_counter()
        loaded = load(repository, allow_pickle=allow_pickle)
        load_s = time.perf_counter() - started
        responses = prober.probe(loaded, tell("decoding probes"), tell("probing"))
        return Probed(
            library=loaded.library,
            architecture=loaded.architecture,
            parameters=loaded.parameters,
            input_size=loaded.preprocessing.size,
            labels=loaded.labels,
            responses=responses.values,
            probabilities=responses.probabilities,
            seconds={"load": load_s, "decode": responses.decode_s, "probe": responses.forward_s},
            memory_bytes=0,
        )

    return probe


def _sweep(cache: Path) -> None:
    """Removes what killed processes have left."""
    for path in cache.glob(f"{_SCRATCH}*"):
        match = re.fullmatch(rf"{_SCRATCH}(\d+)", path.name)
        if match is not None and not _runs(int(match[1])):
            remove(path)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
