"""The process of a worker, as Ray sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexers.crawl.fleet.member import Member


class Actor:
    """A `Member`; Ray is told to run each kind of its work in threads of its own.

    Args:
        environment: Of the driver, what the libraries here must find in theirs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Before anything is imported that reads it.
        os.environ.update(environment)
        self._member: Member | None = None

    def engage(self, orders: Any, node: str) -> object:
        """Makes it a member.

        Args:
            orders: `Orders`.
            node: Id of the node; "" for whatever Ray says.
        """
        from indexers.crawl.fleet.member import Member

        if self._member is None:
            if not node:
                import ray

                node = ray.get_runtime_context().get_node_id()
            self._member = Member(orders, node)
        return self._member.arrive()

    def do(self, what: str, *arguments: Any) -> object:
        """Calls a method of the member.

        Args:
            what: Its name.
            arguments: For it.
        """
        if self._member is None:
            raise RuntimeError("a worker was not engaged")
        return getattr(self._member, what)(*arguments)
