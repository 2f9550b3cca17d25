"""What a model's process is at, for those who watch the crawl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from indexers.crawl.watch import Watch

_OF: Final = {"loading": "load", "decoding probes": "decode", "probing": "probe"}


class InProcess:
    """One model in its process, from the beginning of loading.

    Args:
        watch: Told what goes on.
        repo: The model's id.
    """

    def __init__(self, watch: Watch, repo: str) -> None:
        self._watch = watch
        self._repo = repo
        self._began = time.perf_counter()
        self._stage = "load"
        watch.started("load", repo)

    def enter(self, what: str, _done: int, _total: int) -> None:
        """The process says what it is doing; to be given to ``Worker.probe``."""
        stage = _OF.get(what, self._stage)
        if stage != self._stage:
            self._stage = stage
            self._watch.started(stage, self._repo)

    def end(self, seconds: Mapping[str, float]) -> None:
        """It has answered.

        Args:
            seconds: By stage.
        """
        for stage in _OF.values():
            self._watch.ended(stage, self._repo, seconds.get(stage, 0.0))

    def fail(self) -> None:
        """It has failed; the time counts for the stage that it failed in."""
        self._watch.ended(self._stage, self._repo, time.perf_counter() - self._began)
        for stage in _OF.values():
            self._watch.dropped(stage, self._repo)
