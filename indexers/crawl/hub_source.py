"""The models of a Hub, or of whatever ``HF_ENDPOINT`` names, as its API lists them.

Everything that a hub answers is a stranger's word: an entry that cannot be what it says is left out and counted, a link
to another host is never followed, and the token never goes anywhere but to the endpoint.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from engine.errors import HubhoundError, InputError, ModelFailedError, Reason
from indexers.crawl.filters import Filters
from indexers.crawl.hub_entry import entry_of
from indexers.crawl.listing import PAGE, CursorExpiredError, Page, PassingError
from indexers.crawl.records import Listed
from indexers.hub_errors import hub_errors, retry_after_s
from indexers.loaders.declined import Declined, first_line, naming

REQUEST_TIMEOUT_S = 30.0
"""Longest silence of the hub in the middle of an answer."""

ANSWER_TIMEOUT_S = 300.0
"""Longest time for one answer."""

MAX_ANSWER_BYTES = 2**26
"""Longest answer that is read; a thousand entries with all their tags take two MB."""

MAX_LINK_CHARACTERS = 8192

STALE_PAGES = 50
"""How many pages in a row may name only what earlier ones of the same listing named, page by page."""

MAX_REMEMBERED = 100_000
"""Links and pages of one listing that are remembered, as hashes; beyond that remembering begins anew."""

MAX_REDIRECTS = 5
_STATED = ("tags", "library_name", "downloads", "likes", "gated", "safetensors")
PROPERTIES = ("sha", "lastModified", "pipeline_tag", *_STATED)
"""What is asked of every model."""


@dataclass(frozen=True)
class Answer:
    """What the hub answered.

    Attributes:
        content: The JSON.
        following: Link to the next page, on the same host; None if there is none.
    """

    content: Any
    following: str | None


class HubApi:
    """The two questions that a crawl asks of a hub's API.

    Raises:
        InputError: If ``HF_ENDPOINT`` is no URL.
    """

    def __init__(self) -> None:
        from huggingface_hub import constants

        # huggingface_hub reads the variable once, when it is imported; a program that sets it later means it too.
        self.endpoint = (os.environ.get("HF_ENDPOINT", "") or constants.ENDPOINT).rstrip("/")
        if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", self.endpoint) is None:
            raise InputError(f"HF_ENDPOINT={self.endpoint!r} is no address of a hub: write https://HOST")

    def models(self, parameters: Mapping[str, Any], link: str | None) -> Answer:
        """One page of the listing.

        Args:
            parameters: Of the first page.
            link: The hub's own link to a later page, instead.

        Raises:
            PassingError: Asking again may help.
            CursorExpiredError: The hub does not know the link any more.
            HubhoundError: It refuses, or is no hub.
        """
        from huggingface_hub.errors import HfHubHTTPError

        url = link or f"{self.endpoint}/api/models"
        try:
            with hub_errors(None):
                try:
                    answer = self._get(url, None if link else parameters)
                except HfHubHTTPError as error:
                    raise self._refusal(error, link) from error
        except Declined as error:
            raise PassingError(error.detail, error.retry_after_s) from error
        if not isinstance(answer.content, list):
            raise PassingError(f"{self.endpoint} answers the listing with no list", limited=True)
        if answer.following == url:
            raise HubhoundError(f"the listing of {self.endpoint} never ends, its next page is always the same one")
        return answer

    def model(self, repo: str, revision: str | None = None) -> object | None:
        """What the hub says of one model.

        Args:
            repo: Id, ``org/name``.
            revision: Branch, tag or commit, None for the newest.

        Returns:
            The entry as JSON, under another id if the model was renamed; None if it is gone or private.

        Raises:
            ModelError: If that cannot be found out, with reason NETWORK if it may be later.
            HubhoundError: If the hub answers nothing at all to this token.
        """
        from huggingface_hub import errors

        gone = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.DisabledRepoError)
        url = f"{self.endpoint}/api/models/{repo}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        try:
            with naming(repo, revision), hub_errors(None):
                try:
                    content: object = self._get(url, {"expand": [*PROPERTIES, "cardData"]}).content
                    return content
                except errors.GatedRepoError:
                    raise
                except gone:
                    return None
                except errors.HfHubHTTPError as error:
                    if error.response.status_code == 410:
                        return None
                    if error.response.status_code == 401:
                        raise HubhoundError(_no_entry(self.endpoint, 401)) from error
                    raise
        except PassingError as error:
            raise ModelFailedError(Reason.NETWORK, error.detail, repo, revision) from error

    def _get(self, url: str, parameters: Mapping[str, Any] | None) -> Answer:
        """Ask for JSON; every request, of a redirect too, goes to the endpoint's own host or not at all."""
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        if constants.is_offline_mode():
            raise InputError(f"HF_HUB_OFFLINE is set: unset it to list the models of {self.endpoint}")
        headers = build_hf_headers(library_name="hubhound")
        for _ in range(MAX_REDIRECTS + 1):
            session = get_session()
            try:
                request = session.build_request(
                    "GET", url, params=parameters, headers=headers, timeout=REQUEST_TIMEOUT_S
                )
                home = session.build_request("GET", self.endpoint).url
                self._check_host(home, request.url)
                response = session.send(request, stream=True, follow_redirects=False)
            except RuntimeError as error:  # huggingface_hub closes the session it shares when a connection fails
                raise PassingError(first_line(error)) from error
            try:
                content = self._read(response)
                headers_read = [(n, v) for n, v in response.headers.items() if n.lower() not in _OF_THE_TRANSFER]
                complete = type(response)(response.status_code, headers=headers_read, content=content, request=request)
            finally:
                response.close()
            if complete.has_redirect_location:
                url, parameters = self._joined(complete, complete.headers["Location"]), None
                continue
            hf_raise_for_status(complete)
            try:
                parsed = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise PassingError(f"{self.endpoint} answers with something that is no JSON", limited=True) from error
            link = complete.links.get("next", {}).get("url")
            following = None
            if link is not None:
                following = self._joined(complete, link)
                self._check_host(home, session.build_request("GET", following).url)
            return Answer(parsed, following)
        raise PassingError(f"{self.endpoint} sends us from one address to the next and answers nothing", limited=True)

    def _read(self, response: Any) -> bytes:
        started = time.monotonic()
        parts: list[bytes] = []
        size_bytes = 0
        for part in response.iter_bytes():
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > MAX_ANSWER_BYTES:
                raise PassingError(f"{self.endpoint} answers with more than {MAX_ANSWER_BYTES >> 20} MiB", limited=True)
            if time.monotonic() - started > ANSWER_TIMEOUT_S:
                raise PassingError(f"{self.endpoint} took more than {ANSWER_TIMEOUT_S:.0f} s for one answer")
        return b"".join(parts)

    def _joined(self, response: Any, link: str) -> str:
        """A link made absolute by the client's own rules, so that it is judged by what would be asked."""
        try:
            joined = str(response.url.join(link))
        except (ValueError, TypeError) as error:
            raise HubhoundError(self._elsewhere(link)) from error
        except Exception as error:
            if type(error).__name__ != "InvalidURL":
                raise
            raise HubhoundError(self._elsewhere(link)) from error
        if len(joined) > MAX_LINK_CHARACTERS:
            raise HubhoundError(self._elsewhere(link))
        return joined

    def _check_host(self, home: Any, url: Any) -> None:
        same = (url.scheme, url.host, url.port) == (home.scheme, home.host, home.port)
        safer = (home.scheme, home.port, url.scheme, url.port, url.host) == ("http", None, "https", None, home.host)
        if not (same or safer) or url.userinfo:
            raise HubhoundError(self._elsewhere(str(url)))

    def _elsewhere(self, link: str) -> str:
        shown = "".join(c if c.isprintable() else "?" for c in link[:100])
        return f"{self.endpoint} sends us on to {shown!r}, which is not on its host: not followed, check HF_ENDPOINT"

    def _refusal(self, error: Any, link: str | None) -> Exception:
        """What an error's status means for a listing."""
        status = error.response.status_code
        if status in (401, 403):
            return HubhoundError(_no_entry(self.endpoint, status))
        if link is not None and status in (400, 404, 410, 422):
            return CursorExpiredError(f"{status} for {link}")
        if status < 500 and status not in (408, 425, 429):
            said = first_line(error.server_message or error)
            return HubhoundError(f"{self.endpoint} has no listing for us (status {status}: {said}): check HF_ENDPOINT")
        if (limit := _rate_limit_s(error)) is not None:
            return PassingError(f"{self.endpoint} asks us to wait (status {status})", limit)
        return PassingError(f"{self.endpoint} cannot answer now (status {status})", retry_after_s(error) or None)


class HubSource:
    """The models that a Hub lists for a query.

    A full pass goes by date of creation, newest first, an order in which nothing moves when models change; what is
    added or changed meanwhile is for the next follow pass, which goes by date of change.

    Args:
        filters: What to ask for; the task, author and tags go into the query, because a hub lists less for it.
        page: Entries on a page, 1 to 1000.

    Raises:
        InputError: If ``HF_ENDPOINT`` is no URL, or ``page`` out of its range.
    """

    follows = True

    def __init__(self, filters: Filters, page: int = PAGE) -> None:
        if not 1 <= page <= PAGE:
            raise InputError(f"{page} entries on a page of the listing: give 1 to {PAGE}")
        self._filters = filters
        self._page = page
        self._api = HubApi()
        self.name = f"hub:{self._api.endpoint}?task={filters.task}&{filters.query}".rstrip("&")
        self.absence = f"it was deleted, made private, or is no longer listed for {filters.task}"

    def pages(self, cursor: str | None, newest_first: bool) -> Iterator[Page]:
        """See `Source`; a cursor is the API's own link to the next page."""
        link, endless = cursor, _Endless(self._api.endpoint)
        while True:
            answer = self._api.models(self._query(newest_first), link)
            endless.check(answer)
            entries, broken = [], 0
            for item in answer.content:
                entry = entry_of(item)
                broken += entry is None
                if entry is not None and self._is_of_task(item):
                    entries.append(entry)
            yield Page(entries, answer.following, broken)
            link = answer.following
            if link is None:
                return

    def check(self, repo: str) -> Listed | None:
        """See `Source`."""
        item = self._api.model(repo)
        if item is None:
            return None
        entry = entry_of(item)
        if entry is None:
            raise ModelFailedError(Reason.NETWORK, "what the Hub says of it is nonsense", repo)
        return entry if self._is_of_task(item) else None

    def _query(self, newest_first: bool) -> dict[str, Any]:
        filters = self._filters
        # The licence is among the tags that the Hub adds; cards are long, and other hubs may not add it.
        expand = [*PROPERTIES, *(["cardData"] if filters.licences else [])]
        query: dict[str, Any] = {
            "pipeline_tag": filters.task,
            "sort": "lastModified" if newest_first else "createdAt",
            "direction": "-1",
            "limit": str(self._page),
            "expand": expand,
        }
        if filters.author is not None:
            query["author"] = filters.author
        if filters.tags:
            query["filter"] = list(filters.tags)
        return query

    def _is_of_task(self, item: Any) -> bool:
        stated = item.get("pipeline_tag")
        tags = item.get("tags")
        return bool(stated == self._filters.task if stated else isinstance(tags, list) and self._filters.task in tags)


class _Endless:
    """Finds out that a listing goes in a circle, or says the same under ever new links."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._links: set[int] = set()
        self._pages: set[int] = set()
        self._stale = 0

    def check(self, answer: Answer) -> None:
        """Take notice of a page.

        Raises:
            HubhoundError: The listing never ends.
        """
        if answer.following is None:
            return
        link = hash(answer.following)
        page = hash(
            tuple(str(item.get("id"))[:MAX_LINK_CHARACTERS] for item in answer.content if isinstance(item, dict))
        )
        self._stale = self._stale + 1 if page in self._pages else 0
        if link in self._links:
            raise HubhoundError(
                f"the listing of {self._endpoint} never ends, its links go in a circle: try again later"
            )
        if self._stale >= STALE_PAGES:
            raise HubhoundError(f"the listing of {self._endpoint} never ends, its pages repeat: try again later")
        for known, new in ((self._links, link), (self._pages, page)):
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            known.add(new)


def _rate_limit_s(error: Any) -> float | None:
    """The wait that the Hub names in a header of its own when too much was asked, None without that."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    info = parse_ratelimit_headers(error.response.headers) if error.response.status_code == 429 else None
    if info is None or info.remaining > 0:
        return None
    return max(float(info.reset_in_seconds), retry_after_s(error))


def _no_entry(endpoint: str, status: int) -> str:
    return f"{endpoint} does not let us in (status {status}): set HF_TOKEN to a token that it knows"


_OF_THE_TRANSFER = frozenset({"content-encoding", "content-length", "transfer-encoding"})
