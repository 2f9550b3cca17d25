"""A model's process from the inside: it gives up what it can do, then loads and probes one model after another.

It is forked by ``indexers.crawl.nursery``, in which torch and the model libraries are imported already.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.errors import ModelError, ProbeError, Reason
from engine.placement import still_works
from engine.probes import ProbeSet
from indexers import loaders
from indexers.crawl import sandbox
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.messages import (
    MAX_DETAIL,
    MAX_LABEL,
    RESPONSES,
    Answer,
    Blame,
    Channel,
    ClosedError,
    Failure,
    Hello,
    Job,
    ProfileAnswer,
    ProfileJob,
    Stage,
    Telling,
    read_job,
)
from indexers.loaders.base import LoadedModel, Repository
from indexers.loaders.declined import Declined, first_line, stage
from indexers.pixels import PixelCache
from indexers.prober import Prober, Responses

_TELL_EVERY_S = 0.2
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def live(end: socket.socket, scratch: Path, setup: Setup, limits: Limits, probes: ProbeSet | None, parent: int) -> None:
    """The whole life of a model's process, from its birth to the end of its daemon.

    Args:
        end: Its end of the connection to the daemon.
        scratch: The one folder it may write to, empty.
        setup: What models are loaded and probed with.
        limits: What it may take.
        probes: Shown to the models; None where these are to be profiled instead.
        parent: Process id of the nursery.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(scratch)
    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(scratch)
    cache = PixelCache(setup.cache, setup.cache_bytes, outbox=scratch)
    channel = Channel(end)
    channel.send(Hello(layers=sandbox.apply(scratch, limits, parent=parent, on_gpu=setup.on_gpu)))
    placement = setup.place()
    prober = None if probes is None else Prober(probes, cache, placement)
    while True:
        try:
            job = read_job(channel.receive() or b"")
            reply = _work(job, prober, cache, scratch, setup, _teller(channel))
            _give_back()
            channel.send(reply)
            if isinstance(reply, Failure) and not still_works(placement.device):
                return  # what broke the device would break every model after it
        except ClosedError:
            return


def _work(
    job: Job | ProfileJob,
    prober: Prober | None,
    cache: PixelCache,
    scratch: Path,
    setup: Setup,
    tell: Callable[[Stage], Callable[[int, int], None]],
) -> Answer | ProfileAnswer | Failure:
    try:
        if isinstance(job, ProfileJob):
            from indexers.crawl.profile_child import profile

            return profile(job, scratch, setup, tell)
        if prober is None:
            raise RuntimeError("there are no probes to show to a model")
        repository = Repository(job.repo, job.revision, Path(job.folder))
        tell("loading")(0, 0)
        started = time.perf_counter()
        loaded = loaders.load(repository, allow_pickle=setup.allow_pickle)
        load_s = time.perf_counter() - started
        responses = prober.probe(loaded, tell("decoding probes"), tell("probing"))
        np.save(scratch / RESPONSES, np.ascontiguousarray(responses.values, "<f4"), allow_pickle=False)
        return _answer(job, loaded, responses, cache, load_s)
    except ModelError as error:
        return _failure(job, Blame.MODEL, error.reason, error.detail)
    except ProbeError as error:
        return _failure(job, Blame.PROBES, Reason.RUN_FAILED, str(error))
    except Exception as error:
        return _fault(job, error)


def _fault(job: Job | ProfileJob, error: Exception) -> Failure:
    if isinstance(error, OSError) and error.errno in _FULL:
        return _failure(job, Blame.DISK, Reason.RUN_FAILED, first_line(error))
    try:
        with stage(Reason.RUN_FAILED):
            raise error
    except Declined as declined:
        return _failure(job, Blame.MODEL, declined.reason, declined.detail)


def _answer(job: Job, loaded: LoadedModel, responses: Responses, cache: PixelCache, load_s: float) -> Answer:
    outputs = responses.values.shape[1]
    labels = (*loaded.labels[:outputs], *[None] * (outputs - len(loaded.labels)))
    if cache.got is None:
        raise RuntimeError("no pixels were used")
    return Answer(
        number=job.number,
        library=_text(loaded.library, 100),
        architecture=_text(loaded.architecture, 1000),
        parameters=loaded.parameters,
        input_size=loaded.preprocessing.size,
        labels=tuple(None if label is None else _text(label, MAX_LABEL) for label in labels),
        shape=(len(responses.values), outputs),
        probabilities=responses.probabilities,
        seconds={"load": load_s, "decode": responses.decode_s, "probe": responses.forward_s},
        pixels=cache.got.name,
        new_pixels=cache.got.new,
    )


def _failure(job: Job | ProfileJob, blame: Blame, reason: Reason, detail: str) -> Failure:
    return Failure(number=job.number, blame=blame, reason=reason, detail=_text(" ".join(detail.split()), MAX_DETAIL))


def _text(text: str, longest: int) -> str:
    """What can be said in UTF-8 of a text, cut to length."""
    return text.encode("utf-8", "replace").decode()[:longest]


def _teller(channel: Channel) -> Callable[[Stage], Callable[[int, int], None]]:
    last: tuple[str, float] = ("", 0.0)

    def tell(what: Stage) -> Callable[[int, int], None]:
        def say(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if what != last[0] or now - last[1] >= _TELL_EVERY_S:
                last = (what, now)
                channel.send(Telling(what=what, done=done, total=total))

        return say

    return tell


def _give_back() -> None:
    """Returns the memory of a model that is gone to the system, so that growth means what it says."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
