"""Copying an index from wherever it is to wherever it should be, and being sure of it.

A copy goes model by model: the outputs of some models first, then their records, so that at every moment the copy
holds whole models only. That is also what makes it resumable without a journal: a model whose record is there already,
word for word, is there with its outputs. In the end everything is read back and compared by count and content hash
(:mod:`engine.store.content`); a model that differs is copied again.

A server may be written to meanwhile. A model's outputs belong to a revision, so a model that is replaced while it is
read comes out short: its record is not copied, and the next round reads it anew. Rounds go on until nothing has changed
since the last one began, or a few have shown that somebody keeps writing: then every model is whole and as it was when
it was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.copy_report import CopyReport
from engine.copy_source import CopySource, Progress, SourceFile, manifest_hash, outputs_of, responses_path
from engine.copy_target import CopyTarget
from engine.errors import IndexDamagedError, IndexMismatchError, StoreError
from engine.index_files import MANIFEST
from engine.manifest import Manifest
from engine.store.base import StoredPoint
from engine.store.content import Content, IndexContent, content_of, files_content

ROUNDS = 6
"""Times that a source is read while somebody writes to it; every round reads only what changed since the one before."""

_GROUP = 2_000
"""Outputs that are read before their models' records are written."""

_BATCH = 500
"""Points written at once."""

_FILES = 500
"""Files copied between two steps of a progress bar."""

_REPAIRS = 2


@dataclass
class _Copying:
    source: CopySource
    target: CopyTarget
    progress: Progress
    report: CopyReport
    read: dict[str, Content] = field(default_factory=dict)  # of the outputs of the models copied by this run
    models: dict[str, StoredPoint] = field(default_factory=dict)  # of the source, as copied
    checked: set[str] = field(default_factory=set)  # models of an earlier run that were compared with the source
    taken: dict[str, str] = field(default_factory=dict)  # SHA-256 of files that are in the copy, by path

    def run(self) -> None:
        repairs = 0
        while True:
            self.sync()
            wrong, moved = self.compare()
            if not wrong and not moved:
                break
            if wrong and repairs == _REPAIRS:
                raise StoreError(
                    f"{len(wrong)} model(s) of {self.source.name} do not arrive whole at {self.target.name}, "
                    f"{wrong[0]} is one: check memory and disk (hubhound index verify), then run again",
                    self.target.name,
                )
            repairs += bool(wrong)
            self.report.repaired += len(wrong)
            for repo in (*wrong, *moved):
                self.forget(repo)
        for _ in range(ROUNDS):
            version = self.source.files_version()
            manifest = self.source.copied_manifest()
            self.knowledge()
            self.files(manifest)
            if self.source.files_version() == version:
                break
        else:
            self.report.settled = False
        self.finish(manifest)

    def sync(self) -> None:
        """Rounds until the copy has what the source has."""
        present = {point.payload["repo"]: point for point in self.target.store.stored("models")}
        for number in range(ROUNDS):
            version = self.source.version()
            self.models = self.source.models()
            due = [model for repo, model in self.models.items() if not _same(present.get(repo), model)]
            if number == 0 and not self.report.rounds:
                self.report.kept = len(self.models) - len(due)
            self.report.rounds += 1
            short = self.copy(due, present, version)
            for repo in present.keys() - self.models.keys():
                self.forget(repo)
                del present[repo]
            self.report.settled = self.source.version() == version
            if self.report.settled and not short:
                return
            if self.report.settled:
                break
        if short:
            raise short_error(self.source.name, short)

    def copy(self, due: Sequence[StoredPoint], present: dict[str, StoredPoint], version: object) -> list[str]:
        """Copies models.

        Returns:
            Those of which the source has fewer or more outputs than their records say.
        """
        short = []
        total = sum(map(outputs_of, due))
        done = 0
        for group in groups(due):
            if not self.take_responses(group, version):
                short += [model.payload["repo"] for model in group]
                continue
            batch: list[StoredPoint] = []
            contents: dict[str, Content] = {model.payload["repo"]: Content() for model in group}
            for point in self.source.outputs(group):
                contents[point.payload["repo"]].add(point)
                batch.append(point)
                if len(batch) == _BATCH:
                    self.target.store.restore("outputs", batch)
                    batch = []
            self.target.store.restore("outputs", batch)
            whole = [model for model in group if contents[model.payload["repo"]].count == outputs_of(model)]
            short += [model.payload["repo"] for model in group if model not in whole]
            self.target.store.restore("models", whole)
            for model in whole:
                repo = model.payload["repo"]
                if self.target.resumed or repo in present:  # what an interrupted run or another revision has left
                    self.target.store.delete_outputs(repo, model.payload["revision"] if outputs_of(model) else None)
                present[repo] = model
                self.read[repo] = contents[repo]
            self.report.copied += len(whole)
            done += sum(map(outputs_of, group))
            self.progress(done, total, "copying outputs")
        return short

    def forget(self, repo: str) -> None:
        """Takes a model out of the copy: its record first, so that its outputs stop to count."""
        self.target.store.delete_model(repo)
        self.target.store.delete_outputs(repo)
        self.read.pop(repo, None)
        self.checked.discard(repo)

    def compare(self) -> tuple[list[str], list[str]]:
        """Reads the copy back.

        Returns:
            The models whose outputs or record are not those of the source, or that it does not have; and those that an
            earlier run copied and that the source has replaced at this moment.
        """
        store = self.target.store
        total = store.count("outputs")
        found: dict[str, Content] = {}
        stray = set()
        for done, point in enumerate(store.stored("outputs")):
            repo, model = point.payload["repo"], self.models.get(point.payload["repo"])
            if model is None or model.payload["revision"] != point.payload["revision"]:
                stray.add(repo)
            else:
                found.setdefault(repo, Content()).add(point)
            if done % _BATCH == 0:
                self.progress(done, total, "verifying outputs")
        wrong = stray | {repo for repo, content in self.read.items() if content != found.get(repo, Content())}
        moved = set()
        # Copied by an earlier run: nobody has read them from the source today.
        unread = [model for repo, model in self.models.items() if repo not in self.read and repo not in self.checked]
        for group in groups(unread):
            expected: dict[str, Content] = {model.payload["repo"]: Content() for model in group}
            version = self.source.version()
            if not self.take_responses(group, version):
                moved |= set(expected)
                continue
            for point in self.source.outputs(group):
                expected[point.payload["repo"]].add(point)
            for model in group:
                repo = model.payload["repo"]
                if expected[repo] == found.get(repo, Content()):
                    self.checked.add(repo)
                elif expected[repo].count != outputs_of(model):
                    moved.add(repo)
                else:
                    wrong.add(repo)
        there = {point.payload["repo"]: point for point in store.stored("models")}
        wrong |= {repo for repo in {*there, *self.models} if not _same(there.get(repo), self.models.get(repo))}
        outputs = Content()
        for content in found.values():
            outputs.include(content)
        self.report.content.outputs = outputs
        self.report.content.models = content_of(there.values())
        return sorted(wrong), sorted(moved - wrong)

    def knowledge(self) -> None:
        store = self.target.store
        expected = Content()
        batch: list[StoredPoint] = []
        ids = set()
        for point in self.source.knowledge():
            expected.add(point)
            ids.add(point.id)
            batch.append(point)
            if len(batch) == _BATCH:
                store.restore("profiles", batch)
                batch = []
        store.restore("profiles", batch)
        self.report.content.profiles = found = content_of(store.stored("profiles"))
        if found != expected:
            if self.target.resumed and found.count > expected.count:
                raise StoreError(
                    f"the unfinished copy {self.target.name} has tasks or profiles that {self.source.name} has lost "
                    f"since: remove it with 'hubhound index delete --index {self.target.name}', and copy again",
                    self.target.name,
                )
            raise StoreError(
                f"tasks and profiles of {self.source.name} do not arrive whole at {self.target.name}: run again",
                self.target.name,
            )

    def take_responses(self, group: Sequence[StoredPoint], version: object) -> bool:
        """Copies the responses of models.

        Responses are written before outputs and records, and removed after them: whoever reads them first and then
        finds all outputs has what belongs together.

        Returns:
            Whether they could be had; not if the source has changed since that version.
        """
        try:
            self.take(self.source.responses(group))
        except IndexDamagedError:
            if self.source.version() == version:
                raise
            return False
        return True

    def take(self, files: Sequence[SourceFile]) -> None:
        """Copies files, and compares what arrived."""
        if not files:
            return
        got = self.target.take(self.source, files)
        for file in files:
            if got.get(file.path) != self.source.hash_of(file):
                raise StoreError(
                    f"the file {file.path} of {self.source.name} does not arrive whole at {self.target.name}: "
                    "check the disk, run again",
                    self.target.name,
                )
            self.taken[file.path] = got[file.path]

    def files(self, manifest: Manifest) -> None:
        files = self.source.files()
        for start in range(0, len(files), _FILES):
            self.take(files[start : start + _FILES])
            self.progress(min(start + _FILES, len(files)), len(files), "copying files")
        wanted = {file.path for file in files} | {responses_path(model) for model in self.models.values()}
        self.taken = {path: sha256 for path, sha256 in self.taken.items() if path in wanted}
        self.target.remove_others(self.taken.keys())
        self.report.content.files = files_content(self.taken)
        self.report.content.files.add_file(MANIFEST, manifest_hash(manifest))

    def finish(self, manifest: Manifest) -> None:
        promised = self.source.promised
        if promised is not None and promised != self.report.content.to_json():
            raise IndexDamagedError(
                f"{self.source.name} does not hold what it was made from: use another backup", self.source.name
            )
        self.progress(0, 0, "finishing")
        self.target.complete(manifest)


def copy_index(source: CopySource, target: CopyTarget, progress: Progress | None = None) -> CopyReport:
    """Copies an index and verifies the copy; run again after an interruption, it goes on.

    Args:
        source: What is copied.
        target: Where to.
        progress: Called with (done, total, what is being done).

    Returns:
        What the copy holds, read back from it, equal to what the source held.

    Raises:
        IndexDamagedError: The source is not whole.
        StoreError: The copy differs from the source and copying again does not help; or a store cannot be read or
            written, or the disk is full. The target is then still no index.
        OSError: A file cannot be read or written.
    """
    report = CopyReport(source.name, target.name, IndexContent(source.layout), target.resumed)
    _Copying(source, target, progress or _silent, report).run()
    return report


def read_content(source: CopySource, progress: Progress | None = None) -> IndexContent:
    """What an index holds: everything that a copy of it would be compared by.

    Args:
        source: The index.
        progress: Called with (done, total, what is being done).

    Raises:
        IndexDamagedError: A model has more or fewer outputs than its record says.
    """
    content = IndexContent(source.layout)
    models = source.models()
    total = sum(map(outputs_of, models.values()))
    counts: dict[str, int] = {}
    for group in groups(models.values()):
        for point in source.outputs(group):
            content.outputs.add(point)
            counts[point.payload["repo"]] = counts.get(point.payload["repo"], 0) + 1
        if progress:
            progress(content.outputs.count, total, "reading outputs")
    short = [repo for repo, model in models.items() if counts.get(repo, 0) != outputs_of(model)]
    if short:
        raise short_error(source.name, short)
    content.models = content_of(models.values())
    content.profiles = content_of(source.knowledge())
    files = [*source.files(), *source.responses(list(models.values()))]
    content.files = files_content({file.path: source.hash_of(file) for file in files})
    content.files.add_file(MANIFEST, manifest_hash(source.manifest()))
    return content


def groups(models: Iterable[StoredPoint], outputs: int | None = None) -> Iterator[list[StoredPoint]]:
    """Models in the order given, so many at once that they have few enough outputs together, or are one.

    Args:
        models: Records.
        outputs: Most that a group has, and most records; by default what a copy reads at once.
    """
    outputs = outputs or _GROUP
    group: list[StoredPoint] = []
    held = 0
    for model in models:
        count = outputs_of(model)
        if group and (held + count > outputs or len(group) >= outputs):
            yield group
            group, held = [], 0
        group.append(model)
        held += count
    if group:
        yield group


def check_same(expected: IndexContent, found: IndexContent, what: str) -> None:
    """Refuses what does not hold what it should.

    Args:
        expected: What it should hold.
        found: What it holds.
        what: Named in the message.

    Raises:
        IndexMismatchError: They differ.
    """
    differences = expected.differences(found)
    if differences:
        raise IndexMismatchError(
            f"{what} does not hold what it should: {', '.join(differences)} differ: make it again",
            "content",
            expected.sha256,
            found.sha256,
        )


def _same(one: StoredPoint | None, other: StoredPoint | None) -> bool:
    return one is not None and other is not None and one.payload == other.payload


def short_error(name: str, short: Sequence[str]) -> IndexDamagedError:
    """What to raise when models have more or fewer outputs than their records say.

    Args:
        name: Of the index.
        short: The models, at least one.
    """
    return IndexDamagedError(
        f"{len(short)} model(s) of {name} have other outputs than their records say, {short[0]} is one: "
        "see 'hubhound index verify', add them again",
        name,
    )


def _silent(_done: float, _total: float, _what: str) -> None:
    pass
