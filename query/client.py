"""A client of ``hubhound serve`` whose answers are those of a local search."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from engine.errors import HubhoundError, InputError, one_line
from query.answers import SearchAnswer
from query.description import DescribeAnswer
from query.filters import Condition
from query.recommend import RecommendRequest
from query.recommendation import Recommendation
from query.request import SearchRequest
from query.rerank import RerankSettings

if TYPE_CHECKING:  # else imported when they are wanted: their modules bring the framework of the service along
    from query.api.catalogue import ListedModel, ModelPage
    from query.api.jobs import Job, JobProgress
    from query.api.routes.index import IndexAnswer

T = TypeVar("T", bound=BaseModel)

RETRIES = 4
"""How often a service that is busy is asked again."""

_BUSY = frozenset({429, 503})
_POLLS_S = (0.05, 1.0)  # the first and the longest pause between two looks at a job


class ServiceError(HubhoundError):
    """A service cannot be reached, or answers that it cannot do what it was asked for.

    Args:
        message: One line for a person.
        status: HTTP status, None where there was no answer.
        type: Stable name of the kind of problem, ``urn:hubhound:problem:...``; empty where there was none.
        title: Of the kind of problem.
        detail: Of this one.
        retry_after_s: When it may be asked again, where it said so, in seconds from then.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        type: str = "",
        title: str = "",
        detail: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s


class Client:
    """Asks a service what otherwise is asked of an index on this machine; a context manager.

    Args:
        url: Of the service, ``http://127.0.0.1:8080``.
        api_key: Where the service wants one.
        timeout_s: How long an answer is waited for, in seconds; a busy service is asked again meanwhile.
        job_timeout_s: How long an answer is waited for that needs models to run, in seconds.

    Raises:
        InputError: The URL or the key cannot be one.
    """

    def __init__(
        self, url: str, api_key: str | None = None, timeout_s: float = 30.0, job_timeout_s: float = 3600.0
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise InputError("the API key has characters that no key has: spaces at its ends, or others than ASCII")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(f"{one_line(url, 200)!r} is no URL of a service: {one_line(str(error))}") from error
        if self._http.base_url.scheme not in {"http", "https"} or not self._http.base_url.host:
            raise InputError(f"{one_line(url, 200)!r} is no URL of a service: write http://HOST:PORT")
        self._url = str(self._http.base_url.copy_with(userinfo=b""))
        self._timeout_s = timeout_s
        self._job_timeout_s = job_timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def search(self, request: SearchRequest, rerank: RerankSettings | None = None) -> SearchAnswer:
        """What ``Searcher.search`` answers, its images under the paths given here.

        Args:
            request: What is searched for.
            rerank: How hits by images are reranked, None to leave them.

        Raises:
            InputError: The request makes no sense, or an image cannot be read.
            ServiceError: The service does not answer, or not with an answer.
        """
        request.check()
        body: dict[str, object] = {
            "concepts": list(request.concepts),
            "k": request.k,
            "where": _conditions(request.where),
            "level": request.level,
            "evidence": request.evidence,
            "explain": request.explain,
            "like": request.like,
            "method": request.method,
            "require": request.require,
            "ceiling": request.ceiling,
        }
        if rerank is not None:
            body |= {"rerank": "dcd", "rerank_weight": rerank.weight, "rerank_top": rerank.top}
        answer = self._answer(SearchAnswer, self._post("/v1/search", body, _read(request.images)), None)
        if not request.images:
            return answer
        paths = tuple(str(path) for path in request.images)
        results = tuple(
            result.model_copy(update={"query": result.query.model_copy(update={"images": paths})})
            for result in answer.results
        )
        return answer.model_copy(update={"results": results})

    def recommend(
        self, request: RecommendRequest, progress: Callable[[JobProgress], None] | None = None
    ) -> Recommendation:
        """What ``recommend`` answers, its images under the paths given here; waits while models are run.

        When it gives up, interrupted or out of time, the service is told to stop.

        Args:
            request: What is asked.
            progress: Told now and then how far the service is.

        Raises:
            InputError: The request makes no sense, or an image cannot be read.
            ServiceError: The service does not answer, or not with an answer.
        """
        request.check()
        body: dict[str, object] = {
            "candidates": list(request.candidates),
            "k": request.k,
            "max_parameters": request.max_parameters,
            "eta": request.eta,
            "gamma": request.gamma,
            "explain": request.explain,
        }
        contents = _read(request.images)
        found = self._answer(Recommendation, self._post("/v1/recommend", body, contents), progress)
        first: dict[bytes, str] = {}  # each content once, as a recommendation has it
        for path, content in contents:
            first.setdefault(hashlib.sha256(content).digest(), str(path))
        target = found.target.model_copy(update={"images": tuple(first.values())})
        return found.model_copy(update={"target": target})

    def models(self, where: Sequence[Condition] = (), text: str = "") -> tuple[ListedModel, ...]:
        """The models and copies of the index, by their ids.

        Args:
            where: Conditions.
            text: What ids must contain, whatever the case.

        Raises:
            ServiceError: The service does not answer, or not with an answer.
        """
        from query.api.catalogue import ModelList
        from query.api.routes.models import MOST_MODELS

        found: list[ListedModel] = []
        after: dict[str, str] = {}
        while True:
            asked = {"limit": MOST_MODELS, "where": _conditions(where), "text": text, **after}
            page = self._parsed(ModelList, self._ask("GET", "/v1/models", params=asked))
            found += page.models
            if page.next is None:
                return tuple(found)
            after = {"after": page.next}

    def model(self, name: str, names: int = 0) -> ModelPage:
        """What is known of a model, its outputs with so many found names each as far as the service has them.

        Args:
            name: ``org/name``, or a vision-language model's.
            names: Of each output; 0 for labels only.

        Raises:
            ServiceError: The service does not know it, or does not answer.
        """
        from query.api.catalogue import ModelPage

        path = f"/v1/models/{quote(name, safe='/')}"
        return self._parsed(ModelPage, self._ask("GET", path, params={"names": names}))

    def describe(self, name: str, k: int = 3) -> DescribeAnswer:
        """What ``Describer.describe`` answers with the service's vocabulary; waits until that is embedded.

        Where a model has many labels that the service meets for the first time, ``agrees`` is null for a while.

        Args:
            name: ``org/name`` of a model in the index.
            k: Names of each output, at least 1.

        Raises:
            InputError: There is no name to be found.
            ServiceError: The service does not know the model, does not find names, or does not answer.
        """
        if k < 1:
            raise InputError(f"-k {k}: ask for at least one name")
        deadline = time.monotonic() + self._timeout_s
        while True:
            page = self.model(name, k)
            state = page.names.state
            if page.describe is None:
                raise ServiceError(f"{self._url} has no outputs of {one_line(name, 200)}, only its profiles")
            if state == "ready" and all(output.concepts for output in page.describe.outputs):
                return page.describe  # without concepts it was written a moment before there were any
            if state not in {"preparing", "ready"} or time.monotonic() > deadline:
                why = f": {page.names.why}" if page.names.why else ""
                raise ServiceError(f"{self._url} has no names for outputs, they are {state}{why}")
            time.sleep(_POLLS_S[1])

    def index(self) -> IndexAnswer:
        """What is in the index.

        Raises:
            ServiceError: The service does not answer, or not with an answer.
        """
        from query.api.routes.index import IndexAnswer

        return self._parsed(IndexAnswer, self._ask("GET", "/v1/index"))

    def _post(self, path: str, body: dict[str, object], images: Sequence[tuple[Path, bytes]]) -> httpx.Response:
        asked = {name: value for name, value in body.items() if value is not None}
        if not images:
            return self._ask("POST", path, json=asked)
        files = [("images", (_name(image), content, "application/octet-stream")) for image, content in images]
        request = ("request", (None, json.dumps(asked).encode(), "application/json"))
        return self._ask("POST", path, files=[request, *files])

    def _answer(self, kind: type[T], response: httpx.Response, progress: Callable[[JobProgress], None] | None) -> T:
        if response.status_code != httpx.codes.ACCEPTED:
            return self._parsed(kind, response)
        from query.api.jobs import Job

        job = self._finished(self._parsed(Job, response), progress)
        if job.problem is not None:
            told = job.problem
            raise ServiceError(told.detail, told.status, told.type, told.title, told.detail)
        if job.result is None:
            raise ServiceError(f"{self._url} cancelled the job: somebody asked it to, or it is stopping")
        return self._parsed(kind, json.dumps(job.result).encode())

    def _finished(self, job: Job, progress: Callable[[JobProgress], None] | None) -> Job:
        """A job when it has ended; cancelled where that is not waited for."""
        where = f"/v1/jobs/{quote(job.id, safe='')}"
        pause_s, longest_s = _POLLS_S
        deadline = time.monotonic() + self._job_timeout_s
        try:
            while job.state in {"queued", "running"}:
                if progress is not None and job.progress is not None:
                    progress(job.progress)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise ServiceError(
                        f"{self._url} was not done within {self._job_timeout_s:g} s: ask again, what it has computed "
                        "it remembers, or wait longer"
                    )
                time.sleep(min(pause_s, left_s))
                pause_s = min(longest_s, 1.5 * pause_s)
                job = self._parsed(type(job), self._ask("GET", where))
        except BaseException:
            with suppress(HubhoundError):
                self._ask("DELETE", where)
            raise
        return job

    def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        """One answer; a service that is busy is asked again, within the time there is."""
        deadline = time.monotonic() + self._timeout_s
        tries = 0
        while True:
            try:
                response = self._http.request(method, path, **how)
            except httpx.TimeoutException as error:
                raise ServiceError(f"{self._url} did not answer within {self._timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise ServiceError(f"{self._url} cannot be reached: {one_line(str(error))}") from error
            if response.is_success:
                return response
            told = _problem(response)
            pause_s = told.retry_after_s
            tries += 1
            if response.status_code not in _BUSY or pause_s is None or tries > RETRIES:
                raise told
            if time.monotonic() + pause_s > deadline:  # told at once rather than when it is too late
                raise told
            time.sleep(pause_s)

    def _parsed(self, kind: type[T], answer: httpx.Response | bytes) -> T:
        try:
            return kind.model_validate_json(answer if isinstance(answer, bytes) else answer.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self._url} answers something else than a {kind.__name__}: is it a hubhound service of this version?"
            ) from error


def _conditions(where: Sequence[Condition]) -> list[str]:
    return [f"{condition.key}={condition.value}" for condition in where]


def _read(images: Sequence[Path]) -> list[tuple[Path, bytes]]:
    try:
        return [(path, path.read_bytes()) for path in images]
    except OSError as error:
        raise InputError(f"the image {error.filename} cannot be read: {error.strerror}") from error


def _name(path: Path) -> str:
    """What the service is told of where an image lies: its name, for its messages."""
    return one_line(path.name, 100) or "image"


def _problem(response: httpx.Response) -> ServiceError:
    try:
        told = response.json()
        type_, title, detail = (str(told[name]) for name in ("type", "title", "detail"))
    except (ValueError, KeyError, TypeError):
        type_, title, detail = "", response.reason_phrase, "it says no more; is it a hubhound service?"
    after = response.headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdecimal() else None
    url = response.url.copy_with(userinfo=b"")
    message = one_line(detail if type_ else f"{url} answers {response.status_code} {title}: {detail}", 1000)
    return ServiceError(message, response.status_code, type_, title, detail, retry_after_s)
