"""What a source of models is: it names them a page at a time, and says of one whether it is still there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.errors import InputError
from indexers.crawl.filters import Filters
from indexers.crawl.records import Listed, Refusal

HUB = "hub"
"""The name of the source that is the Hub."""

PAGE = 1000
"""Entries on a page of the Hub's listing; it gives no more at once."""

UNKNOWN = "unknown"
"""Stands for the revision of a model that was named and cannot be found."""


class PassingError(Exception):  # never leaves this package: `run_pass` waits and asks again
    """A page could not be had for a reason that passes.

    Args:
        detail: One line for a person.
        retry_after_s: Seconds that the source wants us to wait.
        limited: The answer was nonsense: a hub that gives it again and again is none.
    """

    def __init__(self, detail: str, retry_after_s: float | None = None, *, limited: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.limited = limited


class CursorExpiredError(Exception):  # likewise: the pass begins again
    """The source no longer knows the cursor."""


@dataclass(frozen=True)
class Page:
    """One page of a listing.

    Attributes:
        entries: The models it names, in the source's order.
        cursor: Where the next page begins, None after the last.
        broken: Entries that were left out because they name no model that there can be: no id, no revision, nonsense.
        late: Models left to the next pass, because nothing could be found out about them.
        refusals: By repository, what the source itself has against an entry, ``not found`` for instance.
    """

    entries: Sequence[Listed]
    cursor: str | None
    broken: int = 0
    late: int = 0
    refusals: Mapping[str, Refusal] = field(default_factory=dict)


class Source(Protocol):
    """Where models are listed.

    Attributes:
        name: Of the source with what it is asked for; the journal keeps passes, cursors and watermarks under it.
        follows: Whether it can list the newest first. Where it cannot, every pass is a full one.
        absence: What it means that `check` finds nothing, one line.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def follows(self) -> bool: ...  # noqa: D102

    @property
    def absence(self) -> str: ...  # noqa: D102

    def pages(self, cursor: str | None, newest_first: bool) -> Iterator[Page]:
        """Pages from a cursor on, or all.

        Args:
            cursor: Of a page that was given before, perhaps to another process.
            newest_first: By time of the last change, the latest first; else in an order that changes do not disturb.

        Raises:
            PassingError: Asking again from the same cursor may help.
            CursorExpiredError: The cursor is no longer good.
            HubhoundError: Neither helps.
        """
        ...

    def check(self, repo: str) -> Listed | None:
        """Look one model up.

        Args:
            repo: Id, ``org/name``.

        Returns:
            What the source says of it now, under another id if it was renamed; None if it is gone, private or no
            longer of the task.

        Raises:
            ModelError: If that cannot be found out, with reason NETWORK if it may be later.
            HubhoundError: If nothing can be found out.
        """
        ...


@dataclass(frozen=True)
class PassResult:
    """What a pass came to.

    Attributes:
        full: Whether it was a full one.
        ended: Whether it came to its end; False if it was stopped, and the next one goes on where it was.
        pages: Read.
        entries: In the crawl.
        new: Revisions not known before.
        changed: Of these, how many replace another one.
        known: Revisions known before.
        refused: By the filters.
        outside: Entries that the listing was not asked for.
        broken: Entries that name no model that there can be.
        gone: Models that are no longer there.
        unsure: Models of which nothing could be found out; they are left to the next pass.
        waits: How often it waited and asked again.
        seconds: Wall time.
    """

    full: bool
    ended: bool
    pages: int = 0
    entries: int = 0
    new: int = 0
    changed: int = 0
    known: int = 0
    refused: int = 0
    outside: int = 0
    broken: int = 0
    gone: int = 0
    unsure: int = 0
    waits: int = 0
    seconds: float = 0.0


def open_source(text: str, filters: Filters, page: int = PAGE) -> Source:
    """Find out what a user means by a source.

    Args:
        text: ``hub``, a file with one model a line (also ``@file``), or a folder of models in Hub layout.
        filters: What to ask for.
        page: Entries on a page of the Hub's listing, 1 to 1000.

    Raises:
        InputError: If it is none of these, or names no models.
    """
    from indexers.crawl.file_source import FileSource, FolderSource
    from indexers.crawl.hub_source import HubSource

    if text == HUB:
        return HubSource(filters, page=page)
    path = Path(text.removeprefix("@")).expanduser()
    if path.is_dir():
        return FolderSource(path, filters)
    if path.is_file():
        return FileSource(path, filters)
    raise InputError(f"{text!r} is no source of models: give 'hub', a file of ids, or a folder of models")
