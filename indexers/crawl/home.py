"""Where a crawl keeps its journal, its downloads and its heartbeat."""

from __future__ import annotations

import re
from pathlib import Path

_SHARDS = "shards"


def home_of(index: Path, shard: tuple[int, int] | None, *, shared: bool) -> Path:
    """The folder that the journal lies below.

    Args:
        index: Folder of the index.
        shard: Part of the models that the crawl is about, None for all.
        shared: Several crawls write to this index at the same time: it is on a server, and this is what machines keep
            of it. Then each part has a folder of its own.
    """
    if shard is None or not shared:
        return index
    return index / _SHARDS / f"{shard[0]}-of-{shard[1]}"


def shards_in(index: Path) -> list[str]:
    """Parts that were crawled into an index from this machine, as ``--shard`` takes them."""
    names = [path.name for path in (index / _SHARDS).glob("*-of-*") if re.fullmatch(r"\d+-of-\d+", path.name)]
    return sorted((name.replace("-of-", "/") for name in names), key=lambda text: [int(n) for n in text.split("/")])
