"""Models that a user names one by one: in a file of ids that is read again in every pass, or as a folder of models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from engine.errors import ModelError, ModelFailedError, Reason
from indexers import folders, vlm_files
from indexers.crawl.filters import Filters, moment
from indexers.crawl.hub_entry import entry_of
from indexers.crawl.hub_source import HubApi
from indexers.crawl.listing import UNKNOWN, CursorExpiredError, Page, PassingError
from indexers.crawl.records import Listed, Refusal
from indexers.loaders.declined import Declined
from indexers.loaders.layout import files_in, weights_in
from indexers.sources import ModelSource, expand

PAGE = 100
"""Models that are looked up between two entries in the journal."""

REQUESTS = 8
"""Models that are looked up at a time."""

ROUNDS = 5
"""How often a model that cannot be looked up, though others can, is tried in one pass."""

Signature = tuple[tuple[str, int, int], ...]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Place:
    """Where a pass is: the next model, those that could not be looked up, and how often these were tried again."""

    digest: str
    following: int = 0
    late: tuple[int, ...] = ()
    rounds: int = 0
    found: bool = False

    def after(
        self, chunk: tuple[int, ...], failed: tuple[int, ...], total: int, listing: bool
    ) -> tuple[_Place | None, int]:
        """The next place, None at the end, and how many models are given up."""
        found = self.found or len(failed) < len(chunk)
        if listing:
            place = _Place(self.digest, self.following + len(chunk), (*self.late, *failed), 0, found)
            return (place if place.following < total or place.late else None), 0
        if not failed or self.rounds + 1 >= ROUNDS:
            return None, len(failed)
        return _Place(self.digest, total, failed, self.rounds + 1, found), 0

    def cursor(self) -> str:
        return json.dumps([self.digest, self.following, self.late, self.rounds, self.found])

    @classmethod
    def of(cls, cursor: str) -> _Place:
        try:
            digest, following, late, rounds, found = json.loads(cursor)
            return cls(str(digest), int(following), tuple(int(i) for i in late), int(rounds), bool(found))
        except (ValueError, TypeError) as error:
            raise CursorExpiredError("no cursor of a list of models") from error


class NamedSource:
    """Models that `indexers.sources.expand` makes of an argument; every pass is a full one.

    Args:
        argument: What ``expand`` takes.
        name: See `Source`.
        absence: See `Source`.
        task: What the models are for: it decides which files of a folder matter.

    Raises:
        InputError: If the argument names no models, or something that is none; the message says where.
    """

    follows = False

    def __init__(self, argument: str, name: str, absence: str, task: str) -> None:
        self.name = name
        self.absence = absence
        self._argument = argument
        self._hashes = FolderHashes(vlms=task == vlm_files.TASK)
        self._api: HubApi | None = None
        self._named: dict[str, ModelSource] = {}
        self._read()

    def pages(self, cursor: str | None, newest_first: bool) -> Iterator[Page]:
        """See `Source`; there is only one order, that of the names.

        A model that cannot be looked up although others can is tried again after all others, `ROUNDS` times, and then
        left to the next pass.

        Raises:
            InputError: If the file or folder is gone or names something that is no model; the next pass may do.
        """
        named = self._read()
        models = [model for model in named if _is_nameable(model)]
        skipped = len(named) - len(models)
        digest = hashlib.sha256("\n".join(map(str, models)).encode()).hexdigest()[:16]
        place: _Place | None = _Place(digest) if cursor is None else _Place.of(cursor)
        if place is None or place.digest != digest:
            raise CursorExpiredError(f"{self._argument} has changed")
        while place is not None:
            listing = place.following < len(models)
            chunk = tuple(range(place.following, min(place.following + PAGE, len(models)))) if listing else place.late
            found = in_parallel(lambda index: self._look_up(models[index]), chunk, REQUESTS)
            troubles = [result for result in found if isinstance(result, PassingError)]
            # When nothing at all can be looked up it is not for the models' sake.
            if troubles and len(troubles) == len(found) and (len(found) >= REQUESTS or not place.found):
                raise troubles[0]
            looked_up = [result for result in found if isinstance(result, tuple)]
            failed = tuple(i for i, result in zip(chunk, found, strict=True) if isinstance(result, PassingError))
            place, given_up = place.after(chunk, failed, len(models), listing)
            yield Page(
                [listed for listed, _ in looked_up],
                place.cursor() if place is not None else None,
                broken=skipped,
                late=given_up,
                refusals={listed.repo: refusal for listed, refusal in looked_up if refusal is not None},
            )
            skipped = 0
            if place is not None and failed and not listing:
                raise troubles[0]

    def check(self, repo: str) -> Listed | None:
        """See `Source`."""
        source = self._named.get(repo)
        if source is None:
            return None
        try:
            listed, refusal = self._look_up(source)
        except PassingError as error:
            raise ModelFailedError(Reason.NETWORK, error.detail, repo, None, error.retry_after_s) from error
        if refusal is None:
            return listed
        if refusal.reason != Reason.MISSING or (source.folder is not None and source.folder.is_dir()):
            raise ModelFailedError(Reason(refusal.reason), refusal.detail, repo)
        return None

    def _read(self) -> list[ModelSource]:
        models = expand([self._argument])
        self._named = {model.repo: model for model in models}
        self._hashes.keep({model.folder for model in models if model.folder is not None})
        return models

    def _look_up(self, source: ModelSource) -> tuple[Listed, Refusal | None]:
        try:
            if source.folder is not None:
                return self._hashes.listed(source.repo, source.folder), None
            self._api = self._api or HubApi()
            item = self._api.model(source.repo, source.revision)
        except ModelError as error:
            if error.reason is Reason.NETWORK:
                raise PassingError(str(error), error.retry_after_s) from error
            return Listed(source.repo, UNKNOWN, source.folder), Refusal(error.reason, error.detail)
        if item is None:
            what = "there is no such model" if source.revision is None else "there is no such model or revision"
            return Listed(source.repo, UNKNOWN), Refusal(
                Reason.MISSING, f"{what}, or it is private: check its name, or set HF_TOKEN"
            )
        # A model that was renamed is called what the user calls it.
        entry = entry_of({**item, "id": source.repo}) if isinstance(item, dict) else None
        if entry is None:
            raise PassingError(f"what the Hub says of {source.repo} is nonsense")
        return entry, None


class FileSource(NamedSource):
    """A file with one model a line: ids, ``org/name@revision``, local folders; ``#`` begins a comment.

    Args:
        path: The file; read again in every pass.
        filters: Of these the task counts for folders only.

    Raises:
        InputError: If it cannot be read, or a line names no model; the message says which.
    """

    def __init__(self, path: Path, filters: Filters) -> None:
        name = f"file:{path.absolute()}?{filters.query}".rstrip("?")
        super().__init__(f"@{path}", name, f"it cannot be found any more, or {path} no longer names it", filters.task)


class FolderSource(NamedSource):
    """A folder of models in Hub layout.

    A folder that is suddenly empty is an error and no hub without models: the disk may not be there.

    Args:
        path: The folder; looked through again in every pass.
        filters: Of these the task counts for folders only.

    Raises:
        InputError: If there is no model in it, or two models have the same id.
    """

    def __init__(self, path: Path, filters: Filters) -> None:
        name = f"folder:{path.absolute()}?{filters.query}".rstrip("?")
        super().__init__(str(path), name, f"it is no longer in {path}", filters.task)


class FolderHashes:
    """Content hashes of folders, which cost reading all their weights: remembered while the process lives.

    A folder is read again when the name, size or time of change of one of its files differs.

    Args:
        vlms: They hold vision-language models, in open_clip's layout, instead of classifiers.
    """

    def __init__(self, *, vlms: bool = False) -> None:
        self._vlms = vlms
        self._known: dict[Path, tuple[Signature, Listed]] = {}

    def keep(self, those: set[Path]) -> None:
        """Forget all other folders."""
        self._known = {folder: known for folder, known in self._known.items() if folder in those}

    def listed(self, repo: str, folder: Path) -> Listed:
        """What is in a folder now.

        Raises:
            ModelFailedError: If it is gone or cannot be read.
        """
        try:
            before = _signature(folder)
        except OSError as error:
            raise ModelFailedError(Reason.MISSING, f"{folder} cannot be read: {error.strerror}", repo) from error
        known = self._known.get(folder)
        if known is not None and known[0] == before and known[1].repo == repo:
            return known[1]
        revision, metadata = (vlm_files if self._vlms else folders).revision_of(repo, folder)
        newest_s = max((mtime_ns for _, _, mtime_ns in before), default=0) / 1e9
        modified = moment(datetime.fromtimestamp(newest_s, UTC).isoformat())
        listed = Listed(
            repo, revision, folder, modified, _weights_bytes(folder, before, vlms=self._vlms), metadata=metadata
        )
        try:
            # A file that was being written is read again the next time.
            if _signature(folder) == before:
                self._known[folder] = (before, listed)
        except OSError:
            pass
        return listed


def in_parallel(call: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result | PassingError]:
    """Call for each of several items at once.

    Args:
        call: Its `PassingError` is a result like others; anything else that it raises ends the work.
        items: What to call for.
        threads: At most so many at a time. They do not keep the process alive: an answer may never come.

    Returns:
        In the order of the items.
    """
    results: dict[int, Result | PassingError] = {}
    raised: list[BaseException] = []
    waiting = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(waiting, None)
            if index is None or raised:
                return
            try:
                results[index] = call(items[index])
            except PassingError as error:
                results[index] = error
            except BaseException as error:
                raised.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if raised:
        raise raised[0]
    return [results[index] for index in range(len(items))]


def _is_nameable(source: ModelSource) -> bool:
    """Whether its name and folder are texts that can be kept and shown."""
    return source.repo.isprintable() and str(source.folder).isprintable()


def _signature(folder: Path) -> Signature:
    stats = ((name, (folder / name).stat()) for name in files_in(folder))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _weights_bytes(folder: Path, signature: Signature, *, vlms: bool) -> int | None:
    sizes = {name: size for name, size, _ in signature}
    try:
        weights = vlm_files.choose_weights(sizes, allow_pickle=True) if vlms else weights_in(folder, allow_pickle=True)
        return sum(sizes[name] for name in weights.files)
    except (Declined, OSError, KeyError):
        return None
