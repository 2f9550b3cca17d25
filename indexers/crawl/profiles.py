"""Storing profiles: what the index and the journal keep of a vision-language model.

The index is written first and the journal after it, as with classifiers. A kill between the two leaves profiles that
are younger than the beginning of the attempt: they are found when the crawl begins again, and not made again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.errors import InputError, ModelRefusedError, Reason
from engine.schema import ModelState, Profile
from engine.writer import IndexWriter
from indexers.crawl import log
from indexers.crawl.fetching import Fetched, KnownWeights
from indexers.crawl.journal import Claim
from indexers.crawl.keeper import Keeper, rounded
from indexers.crawl.profile_journal import ProfileJournal
from indexers.crawl.records import Profiled, State
from indexers.crawl.standing_profiles import Standings, name_of
from indexers.crawl.watch import Watch
from indexers.profiler import ProfiledImages, ProfileSettings, make_profile

if TYPE_CHECKING:
    from engine.conductance import Precision


class ProfileKeeper(Keeper[Profiled]):
    """Writes profiles to the index, and to the journal that they are there; used by one thread.

    Args:
        writer: The index.
        journal: Of the crawl.
        watch: Counts.
        standings: What profiles there are.
        keep_gone: Leave profiles of models in the index that the hub no longer has.
    """

    def __init__(
        self, writer: IndexWriter, journal: ProfileJournal, watch: Watch, standings: Standings, *, keep_gone: bool
    ) -> None:
        super().__init__(journal, watch)
        self._writer = writer
        self._profiles = journal
        self._standings = standings
        self._keep_gone = keep_gone
        self._cache = ConductanceCache(writer.index.folder / FILE)

    def recover(self) -> tuple[int, int]:
        """See `Keeper`; also lists models again that lack the profile of a task, which was added later.

        Raises:
            InputError: A model lacks profiles, and has others that were made otherwise than is asked for now.
        """
        held = 0
        for repo, revision, state in self._journal.under_way():
            if state is State.PROBING and self._is_finished(repo, revision):
                self._journal.stored(repo, revision, outputs=len(self._standings.samples.tasks))
                held += 1
        _, released = self._journal.recover(lambda _repo, _revision: None)
        lacking = []
        for repo, _, folder in self._profiles.stored_models():
            name = name_of(repo, folder)
            if missing := self._standings.missing(name):
                if trouble := self._standings.conflict(name):
                    raise InputError(trouble)
                lacking.append((repo, missing))
        for repo, missing in lacking:
            more = f" and {len(missing) - 1} more tasks" if len(missing) > 1 else ""
            self._profiles.list_again(repo, f"has no profile of {missing[0]}{more}")
        if lacking:
            log.event("tasks without profiles", models=len(lacking))
        return held, released

    def publish(self, *, force: bool) -> None:
        """See `Keeper`."""
        self._writer.export_knowledge(force=force)

    def done(self, fetched: Fetched, found: Profiled) -> None:
        """Stores the profiles of a model: all of them, or what was missing if its weights are those of the others.

        Raises:
            ModelRefusedError: It has profiles of the same weights that were made otherwise than is asked for.
            StoreError: The index cannot be written.
        """
        started = time.perf_counter()
        claim, standings = fetched.claim, self._standings
        standing = standings.of(found.name)
        wanted = tuple(standings.samples.tasks) if found.again else standings.missing(found.name)
        if not found.again and (standing is None or standing.revision != found.revision):
            self._journal.release(claim.repo, claim.revision)  # they were removed meanwhile
            return
        if not found.again and (trouble := standings.conflict(found.name)):
            raise ModelRefusedError(Reason.FILTERED, trouble, claim.repo, claim.revision)
        if found.rows:
            key = ProfileKey(found.name, found.revision, found.blocks, found.n_steps, found.precision)
            self._cache.put(key, found.parameters, found.rows)
        self._put(found.name, [self._profile(found, task) for task in wanted])
        seconds = {**found.seconds, "store": time.perf_counter() - started}
        self._journal.stored(claim.repo, claim.revision, outputs=len(standings.samples.tasks), seconds=seconds)
        self._watch.ended("store", claim.repo, seconds["store"])
        self._watch.stored(len(wanted), copy=False)
        log.event("stored", model=claim.repo, revision=claim.revision, profiles=len(wanted), **rounded(seconds))

    def copied(self, known: KnownWeights) -> None:
        """See `Keeper`: the profiles of the other are its own."""
        started = time.perf_counter()
        claim, (original, revision) = known.claim, known.original
        theirs = name_of(original, self._profiles.folder_of(original))
        rows = self._journal.rows(original)
        there = any(row.revision == revision and row.state is State.STORED for row in rows)
        if not there or self._standings.missing(theirs):
            if there:
                self._profiles.list_again(original, "its profiles were removed")
            self._journal.release(claim.repo, claim.revision)
            return
        name = name_of(claim.repo, claim.folder)
        profiles = [profile.model_copy(update={"model": name}) for profile in self._of(theirs)]
        self._remember_copy(name, profiles[0], theirs)
        self._put(name, profiles)
        seconds = {"store": time.perf_counter() - started}
        self._journal.stored(claim.repo, claim.revision, outputs=len(profiles), copy_of=original, seconds=seconds)
        self._watch.ended("store", claim.repo, seconds["store"])
        self._watch.stored(0, copy=True)
        log.event("stored", model=claim.repo, revision=claim.revision, copy_of=original)

    def gone(self, repo: str, detail: str) -> None:
        """See `Keeper`: its profiles leave the index."""
        name = name_of(repo, self._profiles.folder_of(repo))
        if not self._keep_gone and self._of(name):
            self._writer.drop_profiles(name)
            self._standings.note(name, ())
        freed = self._journal.gone(repo, Reason.MISSING.value, detail)
        self._watch.gone()
        log.event("gone", model=repo, detail=detail, copies=len(freed))

    def _put(self, name: str, profiles: list[Profile]) -> None:
        if profiles:
            self._writer.put_profiles(profiles)
            self._writer.export_knowledge(force=False)
            self._standings.note(name, self._of(name))

    def _remember_copy(self, name: str, one: Profile, theirs: str) -> None:
        """What is known of each image is known under the other name as well."""
        key = ProfileKey(theirs, one.revision, one.blocks, one.n_steps, one.precision)
        images = [image.sha256 for task in self._standings.samples.tasks.values() for image in task.images]
        known = self._cache.get(key, images)
        if known is not None and known.rows:
            self._cache.put(replace(key, model=name), known.parameters, known.rows)

    def _of(self, name: str) -> list[Profile]:
        return list(self._writer.store.profiles(model=name))

    def _profile(self, found: Profiled, task: str) -> Profile:
        record = self._standings.samples.tasks[task]
        rows = [found.rows[image.sha256] for image in record.images]
        precision: Precision = found.precision  # type: ignore[assignment]
        images = ProfiledImages(
            found.blocks,
            np.stack([row for row, _ in rows]),
            np.array([gap for _, gap in rows]),
            found.revision,
            found.parameters,
            len(rows),
        )
        return make_profile(found.name, record, images, ProfileSettings(found.n_steps, precision))

    def _is_finished(self, repo: str, revision: str) -> bool:
        """Whether the attempt that a kill ended had written all profiles before."""
        name = name_of(repo, self._profiles.folder_of(repo))
        standing = self._standings.of(name)
        began = [
            event.at
            for event in self._journal.history(repo)
            if event.revision == revision and event.state is State.PROBING
        ]
        if standing is None or not began or self._standings.missing(name):
            return False
        return standing.newest.timestamp() >= max(began)

    def _record(self, claim: Claim, state: ModelState, reason: str, detail: str) -> None:
        """Nothing: the index's records of models are about classifiers, and the journal knows it."""
