"""Which models a crawl is about, decided from what the listing says of them, before anything is downloaded.

There are two kinds of no. What the listing is asked for (task, author, tags, downloads, date, shard) is *outside* the
crawl when it does not fit: a hub would not even name it, and nothing is remembered of it. Everything else (library,
licence, size, parameters) *refuses* a model that is listed: it stands in the journal with the reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from engine.errors import InputError, Reason
from indexers.crawl.records import Refusal

if TYPE_CHECKING:
    from indexers.crawl.records import Listed

DEFAULT_TASK = "image-classification"


def moment(text: str) -> str | None:
    """Bring a date or time in ISO 8601 into the form of `Listed.modified`, whose texts compare as times.

    Args:
        text: Without a zone it is UTC, without a time midnight.

    Returns:
        ``2024-01-31T23:59:59.999Z``, always of this width; None if the text is no such date.
    """
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Filters:
    """What to crawl.

    Attributes:
        task: The Hub's ``pipeline_tag``; a list of models and a folder are taken as they are.
        libraries: Any of these, as the Hub names them; empty for all. Case does not matter.
        author: User or organisation, None for all.
        tags: All of these.
        min_downloads: Of the last 30 days, at least 0.
        updated_since: ISO 8601; brought into the form of `Listed.modified`.
        max_size_bytes: Of the weights, None for no limit.
        max_parameters: None for no limit.
        licences: Any of these; empty for all. Case does not matter.
        shard: ``(i, n)`` with ``0 <= i < n``: the i-th of n parts of a hub, decided by the repository's name alone.

    Raises:
        InputError: If one of them is out of its range.
    """

    task: str = DEFAULT_TASK
    libraries: tuple[str, ...] = ()
    author: str | None = None
    tags: tuple[str, ...] = ()
    min_downloads: int = 0
    updated_since: str | None = None
    max_size_bytes: int | None = None
    max_parameters: int | None = None
    licences: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.task.strip():
            raise InputError("the task is empty: name one, such as image-classification")
        if self.author is not None and (not self.author.strip() or "/" in self.author):
            raise InputError(f"{self.author!r} is no author: name a user or an organisation, without a model")
        if self.min_downloads < 0:
            raise InputError(f"at least {self.min_downloads} downloads: give 0 or more")
        for limit, name in ((self.max_size_bytes, "size"), (self.max_parameters, "number of parameters")):
            if limit is not None and limit <= 0:
                raise InputError(f"a largest {name} of {limit}: give more than 0")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise InputError("there is no shard {}/{}: of N shards the first is 0/N".format(*self.shard))
        if self.updated_since is not None:
            since = moment(self.updated_since)
            if since is None:
                raise InputError(f"{self.updated_since!r} is no date: write one as 2026-01-31 or 2026-01-31T12:00:00Z")
            object.__setattr__(self, "updated_since", since)

    @property
    def query(self) -> str:
        """What the listing is asked for, as a text: crawls that differ in it list different things."""
        parts = {
            "author": self.author,
            "tags": ",".join(sorted(self.tags)),
            "downloads": self.min_downloads,
            "since": self.updated_since,
            "shard": "{}/{}".format(*self.shard) if self.shard else None,
        }
        return "&".join(f"{name}={value}" for name, value in parts.items() if value)

    def skip(self, listed: Listed, *, known: bool = False) -> str | None:
        """Why a model is outside the crawl; what the source does not say is not held against it.

        Args:
            listed: The model.
            known: It is in the crawl already: then it stays when its downloads fall, which they do from day to day.

        Returns:
            One line, None if it is not outside.
        """
        stated = listed.metadata
        if not self._in_shard(listed.repo):
            return "it belongs to another shard"
        if self.author is not None and listed.repo.partition("/")[0].lower() != self.author.lower():
            return f"its author is not {self.author}"
        # The Hub takes these for tags too.
        tags = {*stated.tags, stated.library, f"license:{stated.licence}"}
        if missing := [tag for tag in self.tags if tag not in tags]:
            return f"it is not tagged {', '.join(missing)}"
        if not known and stated.downloads is not None and stated.downloads < self.min_downloads:
            return f"it has {stated.downloads} downloads, fewer than {self.min_downloads}"
        if not known and self.updated_since and listed.modified and listed.modified < self.updated_since:
            return f"it was last changed before {self.updated_since}"
        return None

    def refusal(self, listed: Listed) -> Refusal | None:
        """Why a listed model is not fetched; a gated one is: with a token it may open.

        Args:
            listed: The model. An unknown size is no reason, fetching finds it out; an unknown licence or library is.
        """
        stated = listed.metadata
        if self.libraries and (stated.library or "").lower() not in {name.lower() for name in self.libraries}:
            return Refusal(Reason.FILTERED, f"its library is {stated.library or 'not stated'} (--library)")
        if self.licences:
            allowed = {name.lower() for name in self.licences}
            names = {name.strip().lower() for name in (stated.licence or "").split(",")} - {""}
            if not names or not names <= allowed:
                return Refusal(Reason.FILTERED, f"its licence is {stated.licence or 'not stated'} (--licence)")
        if _above(listed.parameters, self.max_parameters):
            return Refusal(
                Reason.TOO_LARGE, f"{listed.parameters:,} parameters, more than {self.max_parameters:,} (--max-params)"
            )
        if _above(listed.size_bytes, self.max_size_bytes):
            return Refusal(
                Reason.TOO_LARGE, f"{listed.size_bytes:,} bytes, more than {self.max_size_bytes:,} (--max-size)"
            )
        return None

    def _in_shard(self, repo: str) -> bool:
        part, parts = self.shard or (0, 1)
        return part_of(repo, parts) == part


def part_of(repo: str, parts: int) -> int:
    """Which of so many parts (``--shard``), from 0, a repository belongs to."""
    return int.from_bytes(hashlib.sha256(repo.encode()).digest()[:8], "big") % parts


def _above(value: int | None, limit: int | None) -> bool:
    return value is not None and limit is not None and value > limit
