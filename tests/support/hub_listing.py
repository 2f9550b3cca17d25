"""The Hub's listing of models: filters, sorting, what an entry says, and pages with opaque cursors.

A cursor holds the place in the order, not a number of entries, as the Hub's does: what changes in front of it does not
shift what follows.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode

from tests.support.hub_content import Dates, File, NotThereError, Revision

Query = Mapping[str, list[str]]
Entry = dict[str, Any]

SORTS = ("createdAt", "downloads", "lastModified", "likes", "trendingScore")
BASIC = ("likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt")
FULL = (*BASIC, "author", "gated", "disabled", "lastModified", "sha", "siblings")
EXPANDABLE = {
    *("author", "baseModels", "cardData", "childrenModelCount", "config", "createdAt", "disabled", "downloads"),
    *("downloadsAllTime", "evalResults", "gated", "gguf", "inference", "inferenceProviderMapping", "lastModified"),
    *("library_name", "likes", "mask_token", "model-index", "pipeline_tag", "private", "resourceGroup", "safetensors"),
    *("sha", "siblings", "spaces", "tags", "transformersInfo", "trendingScore", "usedStorage", "widgetData"),
}
KNOWN = {
    *("author", "filter", "gated", "pipeline_tag", "num_parameters", "search"),
    *("sort", "direction", "limit", "expand", "full", "config", "cardData", "cursor"),
}


def describe(repo: str, revision: Revision, dates: Dates, facts: Mapping[str, Any]) -> Entry:
    """All that the Hub says about a model.

    Args:
        repo: Its id.
        revision: The revision asked for.
        dates: Its dates.
        facts: What to say beyond that, or instead.
    """
    return {
        "_id": identity(repo),
        "id": repo,
        "modelId": repo,
        "author": repo.partition("/")[0],
        "lastModified": dates.modified,
        "createdAt": dates.created,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "downloadsAllTime": facts.get("downloads", 0),
        "likes": 0,
        "trendingScore": 0,
        "spaces": [],
        **revision.about,
        **facts,
    }


def sibling(file: File) -> dict[str, Any]:
    """A file with all that ``files_metadata`` asks for."""
    lfs = {"lfs": {"size": file.size, "sha256": file.sha256, "pointerSize": 134}} if file.large else {}
    return {"rfilename": file.name, "size": file.size, "blobId": file.git_oid, **lfs}


@cache
def identity(repo: str) -> str:
    """The Hub's own id of a repository, which decides between equals in a sorted listing."""
    return hashlib.sha1(repo.encode(), usedforsecurity=False).hexdigest()[:24]


@dataclass(frozen=True)
class Place:
    """Where a page begins.

    Attributes:
        after: Sort value and id of the last entry before it, None at the beginning.
        number: Of the page, from 1.
        age: How often cursors had been made invalid when it was given out.
    """

    after: tuple[Any, str] | None
    number: int
    age: int

    def cursor(self) -> str:
        """The opaque text."""
        return base64.urlsafe_b64encode(json.dumps([self.after, self.number, self.age]).encode()).decode()


def place_of(query: Query, age: int) -> Place:
    """Where the page that is asked for begins.

    Raises:
        NotThereError: With status 400 for a cursor that was not given out here.
    """
    if (cursor := _one(query, "cursor")) is None:
        return Place(None, 1, age)
    try:
        after, number, given = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return Place((after[0], after[1]), int(number), int(given))
    except (ValueError, TypeError, IndexError) as error:
        raise NotThereError(400, None, "Invalid cursor") from error


def page_of(entries: list[Entry], query: Query, place: Place, size: int) -> tuple[list[Entry], str | None]:
    """One page of a listing.

    Args:
        entries: Of all models that the client may see, as `describe` makes them.
        query: Parameters of the request.
        place: Where to begin.
        size: Entries on a page where the client asks for no fewer.

    Returns:
        The page's entries, and the query of the next page, None after the last.

    Raises:
        NotThereError: With status 400 for parameters that the Hub would refuse, or that are not imitated here.
    """
    if unknown := {name.removesuffix("[]") for name in query} - KNOWN:
        raise NotThereError(400, None, f"not imitated here: {', '.join(sorted(unknown))}")
    sort = _one(query, "sort") or "trendingScore"
    if sort not in SORTS:
        raise NotThereError(400, None, f'"sort" must be one of [{", ".join(SORTS)}]')
    descending = _one(query, "direction") != "1"
    size = min(size, _number(query, "limit", size))
    shown = _shown(query)
    chosen = [entry for entry in entries if _matches(entry, query)]
    chosen.sort(key=lambda entry: entry["_id"])
    chosen.sort(key=lambda entry: entry[sort], reverse=descending)
    if place.after is not None:
        value, last = place.after

        def follows(entry: Entry) -> bool:
            if entry[sort] == value:
                return bool(entry["_id"] > last)
            return bool((entry[sort] < value) == descending)

        chosen = [entry for entry in chosen if follows(entry)]
    page = chosen[:size]
    if len(chosen) <= size:
        following = None
    else:
        cursor = Place((page[-1][sort], page[-1]["_id"]), place.number + 1, place.age).cursor()
        kept = [(name, value) for name, values in query.items() if name != "cursor" for value in values]
        following = urlencode([*kept, ("cursor", cursor)])
    return [shown(entry) for entry in page], following


def expanded(query: Query) -> list[str]:
    """The properties that a request asks for one by one.

    Raises:
        NotThereError: With status 400 if there is none of that name.
    """
    names = _all(query, "expand")
    if unknown := set(names) - EXPANDABLE:
        raise NotThereError(400, None, f'"expand" must not contain {", ".join(sorted(unknown))}')
    return names


def only(entry: Entry, names: list[str]) -> Entry:
    """An entry with nothing but its ids and these properties; the Hub leaves out what a model does not have."""
    shown = {"_id": entry["_id"], "id": entry["id"]}
    return shown | {name: entry[name] for name in names if entry.get(name) is not None}


def _shown(query: Query) -> Callable[[Entry], Entry]:
    names = expanded(query)
    if not names:
        names = list(FULL if _flag(query, "full") else BASIC)
        names += [name for name in ("config", "cardData") if _flag(query, name)]
        names.append("modelId")
    return lambda entry: only(entry, names)


def _matches(entry: Entry, query: Query) -> bool:
    if (author := _one(query, "author")) is not None and entry["author"] != author:
        return False
    if (search := _one(query, "search")) is not None and search.lower() not in entry["id"].lower():
        return False
    if (tag := _one(query, "pipeline_tag")) is not None and entry["pipeline_tag"] != tag:
        return False
    if (gated := _one(query, "gated")) is not None and bool(entry["gated"]) != (gated.lower() == "true"):
        return False
    if (size := _one(query, "num_parameters")) is not None and not _within(entry, size):
        return False
    wanted = [tag for text in _all(query, "filter") for tag in text.split(",")]
    return not wanted or set(wanted) <= _tags(entry)


def _tags(entry: Entry) -> set[str]:
    """Tags with those that the Hub adds by itself."""
    licence = (entry["cardData"] or {}).get("license")
    added = (entry["library_name"], entry["pipeline_tag"], f"license:{licence}" if licence else None)
    weights = {"safetensors"} if entry["safetensors"] else set()
    return {*entry["tags"], *(tag for tag in added if tag)} | weights


def _within(entry: Entry, limits: str) -> bool:
    total = (entry["safetensors"] or {}).get("total")
    if total is None:
        return False
    for limit in limits.split(","):
        side, _, text = limit.partition(":")
        unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper())
        value = float(text[:-1]) * unit if unit else float(text)
        if (side == "min" and total < value) or (side == "max" and total > value):
            return False
    return True


def _all(query: Query, name: str) -> list[str]:
    return [*query.get(name, []), *query.get(f"{name}[]", [])]


def _one(query: Query, name: str) -> str | None:
    values = _all(query, name)
    return values[-1] if values else None


def _flag(query: Query, name: str) -> bool:
    return (_one(query, name) or "").lower() in ("true", "1")


def _number(query: Query, name: str, default: int) -> int:
    text = _one(query, name)
    if text is None:
        return default
    if not text.isdigit() or int(text) == 0:
        raise NotThereError(400, None, f'"{name}" must be a positive number')
    return int(text)
