"""A Ray cluster; the only module that talks to Ray."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import socket
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import HubhoundError, one_line
from indexers.crawl.fleet.actor import Actor
from indexers.crawl.fleet.address import QUIET
from indexers.crawl.fleet.cluster import LostError
from indexers.crawl.fleet.orders import Orders

HEADLESS_S = 20.0
"""The head of a cluster may be away for so long."""

_HEAD_S = 2.0
_TAKE_S = 60.0
_TALK = 4
_SHARE = 4
"""Answers on the way may take one part in so many of this node's object store."""

_GROUPS: Final = {"look": "files", "bring": "files", "probe": "models", "stay": "stay", "begin": "begin"}

_PASSED = ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""What workers get of our environment; tokens are not among it, because Ray's traffic is not encrypted."""


@dataclass(frozen=True)
class Need:
    """What a worker takes of its node, as Ray counts it.

    Attributes:
        cpus: Of the node's CPUs, more than 0.
        gpus: Of its GPUs; parts of one may be given to several workers.
        files: Models that it fetches at once.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    files: int = 5

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many workers a node has room for.

        Args:
            resources: Of the node.
        """
        most = int(resources.get("CPU", 0.0) / self.cpus + 1e-6)
        return min(most, int(resources.get("GPU", 0.0) / self.gpus + 1e-6)) if self.gpus else most


class RayCluster:
    """See `indexers.crawl.fleet.cluster.Cluster`.

    Args:
        address: ``HOST:PORT`` of a cluster that was found to answer, see `indexers.crawl.fleet.address`.
        need: Of each worker.

    Raises:
        HubhoundError: It cannot be joined.
    """

    def __init__(self, address: str, need: Need) -> None:
        self.name = f"the Ray cluster at {address}"
        self._need = need
        host, _, port = address.rpartition(":")
        self._head = host.strip("[]"), int(port)
        self._headless_since: float | None = None
        self._places = 0
        os.environ.update(QUIET)
        self._ray: Any = importlib.import_module("ray")
        self._exceptions: Any = importlib.import_module("ray.exceptions")
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        # Ray prints what goes wrong elsewhere where our data goes.
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(contextlib.redirect_stdout(_Nowhere()))
        try:
            self._ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="hubhound")
            context = self._ray.get_runtime_context()
            here = next(node for node in self._ray.nodes() if node["NodeID"] == context.get_node_id())
        except Exception as error:
            self.close()
            raise HubhoundError(f"{self.name} cannot be joined: {one_line(str(error))}") from error
        self.answers_bytes = int(here["Resources"].get("object_store_memory", 2**30)) // _SHARE
        groups = {"files": need.files, "models": 1, "talk": _TALK, "stay": 1, "begin": 1}
        self._actor = self._ray.remote(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            concurrency_groups=groups,
        )(Actor)
        self._environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        # Its cache of chunks would lie outside the space that downloads may take.
        self._environment["HF_XET_CHUNK_CACHE_SIZE_BYTES"] = os.environ.get("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
        self._engaged: dict[Hashable, Hashable] = {}

    def places(self) -> int:
        """See `Cluster`."""
        # Ray waits for a head that is gone, and then ends the process.
        try:
            socket.create_connection(self._head, _HEAD_S).close()
            self._headless_since = None
        except OSError as error:
            now = time.monotonic()
            self._headless_since = self._headless_since or now
            if now - self._headless_since > HEADLESS_S:
                raise HubhoundError(
                    f"{self.name} has not answered for {HEADLESS_S:g} s: begin again when it is back"
                ) from error
            return self._places
        try:
            nodes = self._ray.nodes()
        except Exception as error:
            raise self._gone(error) from error
        self._places = sum(self._need.fits(node["Resources"]) for node in nodes if node["Alive"])
        return self._places

    def hire(self, orders: Orders) -> Hashable:
        """See `Cluster`."""
        hand: Any = self._actor.remote(self._environment)
        self._engaged[hand] = hand.engage.options(concurrency_group="talk").remote(orders, "")
        return hand  # type: ignore[no-any-return]

    def engaged(self, hand: Hashable) -> Hashable:
        """See `Cluster`."""
        return self._engaged.pop(hand)

    def ask(self, hand: Any, what: str, *arguments: Any) -> Hashable:
        """See `Cluster`."""
        group = _GROUPS.get(what, "talk")
        return hand.do.options(concurrency_group=group).remote(what, *arguments)  # type: ignore[no-any-return]

    def share(self, value: object) -> Any:
        """See `Cluster`."""
        try:
            return self._ray.put(value)
        except self._exceptions.RayError as error:
            raise HubhoundError(
                f"the object store of this node has no room for the images of the index: {one_line(str(error))}"
            ) from error

    def wait(self, answers: Collection[Hashable], timeout_s: float) -> list[Hashable]:
        """See `Cluster`."""
        asked = list(answers)
        done, _ = self._ray.wait(asked, num_returns=1, timeout=timeout_s)
        if done and len(asked) > 1:  # and all others that are here
            done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
        return list(done)

    def take(self, answer: Any) -> object:
        """See `Cluster`."""
        errors = self._exceptions
        try:
            return self._ray.get(answer, timeout=_TAKE_S)
        except errors.RayActorError as error:
            raise LostError(why(str(error))) from error
        except (errors.ObjectLostError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            raise LostError("its answer was lost with its node") from error
        except errors.GetTimeoutError as error:
            raise LostError(f"its answer has not come for {_TAKE_S:g} s") from error
        except errors.RayTaskError as error:
            what = one_line(f"{type(error.cause).__name__}: {error.cause}")
            raise LostError(f"it does not work, is its hubhound of this version? {what}") from error
        except errors.RayError as error:
            raise self._gone(error) from error

    def dismiss(self, hand: Any) -> None:
        """See `Cluster`."""
        self._engaged.pop(hand, None)
        with contextlib.suppress(Exception):  # it has ended by itself, or the cluster has
            self._ray.kill(hand, no_restart=True)

    def close(self) -> None:
        """See `Cluster`."""
        with contextlib.suppress(Exception):  # the cluster is gone
            self._ray.shutdown()
        self._quiet.close()

    def _gone(self, error: Exception) -> HubhoundError:
        return HubhoundError(f"{self.name} is gone: {one_line(str(error))}")


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


_SIGNS: Final = (
    ("failed to import on the worker", "this version of hubhound is not installed on its node"),
    ("running low on memory", "its process was killed because its node was short of memory"),
    ("is temporarily unavailable", "its node does not answer"),
    ("node has died", "its node is gone"),
    ("node was terminated", "its node is gone"),
    ("worker process has died", "its process has died"),
)


def why(text: str) -> str:
    """What Ray writes about the end of a worker, in a few words.

    Args:
        text: Of the error, a page long.
    """
    return next((meaning for sign, meaning in _SIGNS if sign in text), "it is gone")
