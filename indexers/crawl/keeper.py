"""What storing has in common for all kinds of models: the journal's side of what goes wrong."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

from engine.errors import ModelError, ModelRefusedError, Reason
from engine.schema import ModelState
from indexers.crawl import log
from indexers.crawl.fetching import Fetched, KnownWeights
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.watch import Watch

PASSING = frozenset({Reason.NETWORK, Reason.CHECKSUM})
"""Why a model is tried again by itself: what can be otherwise the next time."""

CRASHES = 3
"""So many times the process of a model may end under it: once it can have been another's fault, an administrator's or
that of a machine short of memory."""

Found = TypeVar("Found")


class Keeper(ABC, Generic[Found]):
    """Writes to index and journal what becomes of models; used by one thread.

    Args:
        journal: Of the crawl.
        watch: Counts.
    """

    def __init__(self, journal: Journal, watch: Watch) -> None:
        self._journal = journal
        self._watch = watch

    @abstractmethod
    def recover(self) -> tuple[int, int]:
        """Puts in order what a run that was killed had in hand.

        Returns:
            How many models turned out to be in the index already, and how many begin again.
        """

    @abstractmethod
    def publish(self, *, force: bool) -> None:
        """Lets queries see what was stored.

        Args:
            force: Now; otherwise if something was and little time goes into it.
        """

    @abstractmethod
    def done(self, fetched: Fetched, found: Found) -> None:
        """Stores what was found out about a model.

        Raises:
            ModelError: It is not worth storing.
            StoreError: The index cannot be written.
            OSError: Likewise.
        """

    @abstractmethod
    def copied(self, known: KnownWeights) -> None:
        """Links a model to the one whose weights it has; if that has gone meanwhile, it is for another turn."""

    @abstractmethod
    def gone(self, repo: str, detail: str) -> None:
        """A model has left the source."""

    @abstractmethod
    def _record(self, claim: Claim, state: ModelState, reason: str, detail: str) -> None:
        """Notes in the index why a model is not there."""

    def troubled(self, claim: Claim, error: ModelError) -> float | None:
        """Records why a model is not in the index.

        Returns:
            When it is tried again, None if it is not.
        """
        reason, detail = error.reason.value, error.detail
        if isinstance(error, ModelRefusedError):
            self._record(claim, ModelState.REFUSED, reason, detail)
            self._journal.refused(claim.repo, claim.revision, reason, detail)
            self._watch.refused(reason)
            log.event("refused", model=claim.repo, revision=claim.revision, reason=reason, detail=detail)
            return None
        passing = error.reason in PASSING or (error.reason is Reason.CRASHED and not self._crashes_always(claim))
        last = not passing or claim.attempts >= self._journal.attempts
        if last:
            self._record(claim, ModelState.FAILED, reason, detail)
        again = self._journal.failed(
            claim.repo,
            claim.revision,
            reason,
            detail,
            passing=passing,
            retry_after_s=error.retry_after_s,
        )
        if again is not None:
            wait_s = max(0.0, again - time.time())
            self._watch.retried(reason, wait_s)
            log.event("put off", model=claim.repo, reason=reason, detail=detail, wait_s=round(wait_s, 1))
            return again
        self._watch.failed(reason)
        log.warning("failed", model=claim.repo, revision=claim.revision, reason=reason, detail=detail)
        return None

    def _crashes_always(self, claim: Claim) -> bool:
        events = self._journal.history(claim.repo)
        crashes = sum(event.reason == Reason.CRASHED and event.revision == claim.revision for event in events)
        return crashes >= CRASHES - 1


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage as a log has them."""
    return {f"{stage}_s": round(value, 3) for stage, value in seconds.items()}
