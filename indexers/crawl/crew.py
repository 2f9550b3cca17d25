"""Those who fetch and probe for a crawl, wherever they do it."""

from __future__ import annotations

from typing import Protocol

from indexers.crawl.journal import Claim


class Crew(Protocol):
    """Takes models from a `Desk` and brings back what has become of them; used by the main thread."""

    def start(self) -> None:
        """Begins, and returns at once."""
        ...

    @property
    def probing(self) -> bool:
        """Whether somebody may still bring a model that is being probed, after the desk's ``stop`` was set."""
        ...

    def cut(self, until: float) -> None:
        """Ends at once what is being probed.

        Args:
            until: Waits so long at most for everybody to notice, by the monotonic clock.
        """
        ...

    @property
    def ready(self) -> int:
        """Models that are fetched and wait to be probed."""
        ...

    @property
    def used_bytes(self) -> int:
        """Space that downloads take."""
        ...

    def forget(self, claim: Claim) -> None:
        """Removes what was downloaded for a model, or leaves it to the user."""
        ...

    def drop(self, claim: Claim) -> None:
        """Removes what was left for another try that there will not be, unless somebody has it in hand again."""
        ...

    def leave(self, claim: Claim) -> None:
        """Leaves what was downloaded for another try, if there is room."""
        ...

    def close(self) -> None:
        """Ends everything that was started."""
        ...
