"""What a fleet asks of the cluster it runs on; `ray_cluster` is the one that there is."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Any, Protocol

from indexers.crawl.fleet.orders import Orders


class LostError(Exception):
    """A worker's process or its node is gone.

    Args:
        detail: How that came, as far as is known; one line.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Cluster(Protocol):
    """Workers on several nodes; used by one thread.

    Attributes:
        name: For a person.
        answers_bytes: Answers that may be on the way at once.
    """

    name: str
    answers_bytes: int

    def places(self) -> int:
        """Workers that the nodes of now have room for.

        Raises:
            HubhoundError: The cluster is gone.
        """
        ...

    def hire(self, orders: Orders) -> Hashable:
        """Asks for one more worker, which comes when there is room for it.

        Args:
            orders: What it is told.

        Returns:
            What it is called.
        """
        ...

    def engaged(self, hand: Hashable) -> Hashable:
        """What is answered when a worker has come: see `Member.arrive`; returns as ``ask``."""
        ...

    def ask(self, hand: Hashable, what: str, *arguments: Any) -> Hashable:
        """Asks a worker to do something.

        Args:
            hand: The worker.
            what: Name of a method of `Member`.
            arguments: For it.

        Returns:
            What the answer is called.
        """
        ...

    def share(self, value: object) -> Any:
        """Lays a large value down where all nodes can take it from; to be given to ``ask`` in its place."""
        ...

    def wait(self, answers: Collection[Hashable], timeout_s: float) -> list[Hashable]:
        """Those of some answers that can be taken, once there is one.

        Args:
            answers: As ``ask`` calls them.
            timeout_s: Not longer, even if there is none.
        """
        ...

    def take(self, answer: Hashable) -> object:
        """An answer.

        Raises:
            LostError: There will be none.
            HubhoundError: The cluster is gone, or a worker does not work.
        """
        ...

    def dismiss(self, hand: Hashable) -> None:
        """Ends a worker at once."""
        ...

    def close(self) -> None:
        """Leaves the cluster; workers that are left end with that."""
        ...
