"""The parts of a crawl of vision-language models: what a process is asked, what is believed, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.conductance_cache import FILE as CACHE
from engine.conductance_cache import ConductanceCache, ProfileKey
from engine.errors import IndexDamagedError, InputError, ModelRefusedError, Reason
from engine.schema import Task
from engine.writer import IndexWriter
from indexers.crawl.assignments import Profiling
from indexers.crawl.fetching import Fetched, KnownWeights
from indexers.crawl.journal import Claim
from indexers.crawl.limits import Limits
from indexers.crawl.messages import (
    CONDUCTANCE,
    Channel,
    GarbageError,
    ProfileAnswer,
    ProfileJob,
    Recorded,
    Telling,
    read_job,
    read_reply,
)
from indexers.crawl.process import Birth, Process
from indexers.crawl.profile_journal import ProfileJournal
from indexers.crawl.profiles import ProfileKeeper
from indexers.crawl.records import Listed, Profiled, State
from indexers.crawl.samples import Samples
from indexers.crawl.standing_profiles import ProfileOptions, Standings, name_of
from indexers.crawl.watch import Watch
from indexers.crawl.watchdog import Child
from indexers.loaders.base import Repository
from query.cli.main import run
from tests.support.knowledge import make_profile
from tests.support.small_index import make_index
from tests.support.tiny_vlm import TASKS, make_task_index, save_vlm

CPU = torch.device("cpu")
HASH = "a" * 64
NAME = "open_clip:hf-hub:org/clip"
TWIN = "open_clip:hf-hub:org/twin"
BLOCKS = ("visual.a", "visual.b")

# --- what a process says


def job(recorded: Recorded | None = None) -> ProfileJob:
    tasks = {name: [{"path": f"/{name}/{i}", "sha256": f"{name}{i}"} for i in range(2)] for name in ("one", "two")}
    fields = {"tasks": {name: tuple(images) for name, images in tasks.items()}, "recorded": recorded}
    return ProfileJob.model_validate(
        {"number": 7, "name": NAME, "folder": "/x", "n_steps": 4, "precision": "auto", **fields}
    )


def answer(**changes: object) -> ProfileAnswer:
    said = {"kind": "profiled", "number": 7, "revision": HASH, "blocks": list(BLOCKS), "parameters": 9, "images": 4}
    reply = read_reply(json.dumps({**said, "precision": "float32", "seconds": {"load": 1.0}, **changes}).encode())
    assert isinstance(reply, ProfileAnswer)
    return reply


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    process = Process(os.getpid())
    yield Child(Birth(os.getpid(), 1), process, Channel(None), tmp_path)  # type: ignore[arg-type]
    process.close()


def profiling(wanted: ProfileJob) -> Profiling:
    return Profiling(Repository("org/clip", "r", Path("/x")), wanted, lambda: None)


def leave(child: Child, rows: object) -> None:
    np.save(child.folder / CONDUCTANCE, np.asarray(rows, "<f8"))


def test_a_job_is_read_as_it_was_written() -> None:
    wanted = job(Recorded(revision=HASH, blocks=BLOCKS, missing=("two",)))
    assert read_job(wanted.model_dump_json().encode()) == wanted


def test_conductance_is_taken_image_by_image(child: Child) -> None:
    leave(child, np.arange(12).reshape(4, 3))
    found = profiling(job()).take(child, answer())
    assert list(found.rows) == ["one0", "one1", "two0", "two1"]
    row, gap = found.rows["two0"]
    assert (row.tolist(), gap) == ([6, 7], 8)
    assert (found.again, found.revision, found.blocks, found.parameters) == (True, HASH, BLOCKS, 9)
    assert found.seconds == {"load": 1.0, "probe": 0.0}


def test_under_the_same_weights_only_what_is_missing_is_asked(child: Child) -> None:
    leave(child, [[1, 2, 3], [4, 5, 6]])
    recorded = Recorded(revision=HASH, blocks=BLOCKS, missing=("two",))
    found = profiling(job(recorded)).take(child, answer(images=2))
    assert (list(found.rows), found.again) == (["two0", "two1"], False)
    leave(child, np.ones((4, 3)))
    assert profiling(job(recorded)).take(child, answer(revision="b" * 64)).again
    nothing = profiling(job(recorded.model_copy(update={"missing": ()}))).take(child, answer(images=0))
    assert (dict(nothing.rows), nothing.again) == ({}, False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones((4, 3)), {"images": 3}),
        (np.ones((4, 2)), {}),
        (np.ones((3, 3)), {}),
        (np.full((4, 3), np.nan), {}),
        (np.full((4, 3), np.inf), {}),
        (np.full((4, 3), -1.0), {}),
        (np.ones((4, 3)), {"blocks": ["a", "a"]}),
    ],
)
def test_what_cannot_be_meant_is_not_believed(child: Child, rows: object, said: dict[str, object]) -> None:
    leave(child, rows)
    with pytest.raises(GarbageError):
        profiling(job()).take(child, answer(**said))


def test_other_blocks_or_another_precision_than_asked_for_are_not_believed(child: Child) -> None:
    leave(child, np.ones((2, 3)))
    recorded = Recorded(revision=HASH, blocks=("other", "names"), missing=("two",))
    with pytest.raises(GarbageError, match="blocks"):
        profiling(job(recorded)).take(child, answer(images=2))
    with pytest.raises(GarbageError, match="float16"):
        profiling(job().model_copy(update={"precision": "float16"})).take(child, answer())


@pytest.mark.parametrize(
    "said",
    [
        {"revision": "x"},
        {"blocks": []},
        {"blocks": ["a b"]},
        {"blocks": ["\x1b[31m"]},
        {"blocks": ["x" * 301]},
        {"blocks": ["x"] * 2001},
        {"precision": "float8"},
        {"images": -1},
        {"seconds": {"load": float("nan")}},
        {"more": 1},
    ],
)
def test_messages_that_have_not_their_form_are_garbage(said: dict[str, object]) -> None:
    with pytest.raises(GarbageError):
        answer(**said)


def test_each_task_has_the_time_of_a_model() -> None:
    limits, wanted = Limits(time_s=10), profiling(job())

    def told(what: str, done: int) -> Telling:
        return Telling.model_validate({"what": what, "done": done, "total": 4})

    assert wanted.time_s(limits, None) == wanted.time_s(limits, told("loading", 99)) == 10
    assert [wanted.time_s(limits, told("probing", done)) for done in (0, 1, 2, 4, 10**9)] == [20, 20, 30, 30, 30]


# --- what is there, and what is kept


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "index"
    return make_task_index(folder, [NAME, "open_clip:hf-hub:org/other"])


@pytest.fixture
def writer(template: Path, tmp_path: Path) -> Iterator[IndexWriter]:
    shutil.copytree(template, tmp_path / "index")
    with IndexWriter(tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[ProfileJournal]:
    with ProfileJournal(tmp_path / "journal.sqlite") as opened:
        yield opened


def keeper_of(
    writer: IndexWriter, journal: ProfileJournal, options: ProfileOptions | None = None, *, keep_gone: bool = False
) -> ProfileKeeper:
    samples = Samples.of(writer.index.folder, writer.store.tasks())
    standings = Standings(samples, options or ProfileOptions(), writer.store.profiles())
    return ProfileKeeper(writer, journal, Watch(), standings, keep_gone=keep_gone)


def probing(journal: ProfileJournal, repo: str = "org/clip", revision: str = "r1", weights: str | None = None) -> Claim:
    """A model that a process is just being asked about."""
    journal.add_page(journal.begin_pass("hub", full=True), [(Listed(repo, revision), None)], None)
    claim = journal.claim()
    assert claim is not None
    assert (claim.repo, claim.revision) == (repo, revision)
    journal.fetched(repo, revision, size_bytes=1, weights=weights, seconds=0.0)
    journal.probing(repo, revision)
    return claim


def fetched(claim: Claim) -> Fetched:
    return Fetched(claim, Repository(claim.repo, claim.revision, Path("/x")), None, 1, 0.0)


def found_of(writer: IndexWriter, tasks: tuple[str, ...] = TASKS, name: str = NAME, **changes: object) -> Profiled:
    records = {task.name: task for task in writer.store.tasks()}
    images = [image.sha256 for task in tasks for image in records[task].images]
    rows = {image: (np.array([i, 2.0 * i]), 0.5) for i, image in enumerate(images)}
    made = Profiled(name, HASH, BLOCKS, 9, 50, "float32", rows, True, {"load": 1.0, "probe": 2.0}, 0)
    return replace(made, **changes)  # type: ignore[arg-type]


def put(writer: IndexWriter, tasks: tuple[str, ...] = TASKS, name: str = NAME, **facts: object) -> None:
    records: dict[str, Task] = {task.name: task for task in writer.store.tasks()}
    same = {"blocks": BLOCKS, "conductance": (1.0, 2.0), "revision": HASH, **facts}
    made = [make_profile(name, task, task_fingerprint=records[task].fingerprint) for task in tasks]
    writer.put_profiles([profile.model_copy(update=same) for profile in made])


def state_of(journal: ProfileJournal, repo: str = "org/clip") -> tuple[State, int | None, str | None]:
    row = journal.rows(repo)[-1]
    return row.state, row.outputs, row.copy_of


def test_profiles_are_the_means_over_their_tasks(writer: IndexWriter, journal: ProfileJournal) -> None:
    keeper = keeper_of(writer, journal)
    keeper.done(fetched(probing(journal)), found_of(writer))
    profiles = {profile.task: profile for profile in writer.store.profiles(model=NAME)}
    assert {task: profile.conductance for task, profile in profiles.items()} == {
        "cars": (1.0, 2.0),
        "food": (4.0, 8.0),
        "pets": (7.0, 14.0),
    }
    one = profiles["food"]
    assert (one.revision, one.n_steps, one.images, one.parameters, one.completeness_gap) == (HASH, 50, 3, 9, 0.5)
    assert state_of(journal) == (State.STORED, 3, None)
    # And what is known of each image is known to whoever asks about it next.
    cache = ConductanceCache(writer.index.folder / CACHE)
    images = [image.sha256 for task in writer.store.tasks() for image in task.images]
    known = cache.get(ProfileKey(NAME, HASH, BLOCKS, 50), images)
    assert known is not None
    assert len(known.rows) == 9


def test_a_kill_between_index_and_journal_costs_no_second_profile(writer: IndexWriter, journal: ProfileJournal) -> None:
    probing(journal)
    put(writer)
    assert keeper_of(writer, journal).recover() == (1, 0)
    assert state_of(journal) == (State.STORED, 3, None)


def test_profiles_of_an_earlier_revision_are_not_taken_for_those_of_this_one(
    writer: IndexWriter, journal: ProfileJournal
) -> None:
    put(writer)  # before the attempt began
    probing(journal)
    assert keeper_of(writer, journal).recover() == (0, 1)
    assert state_of(journal)[0] is State.LISTED


def test_half_of_the_profiles_are_not_all(writer: IndexWriter, journal: ProfileJournal) -> None:
    put(writer, revision="b" * 64)
    probing(journal)
    put(writer, TASKS[:2])
    keeper = keeper_of(writer, journal)
    assert keeper.recover() == (0, 1)


def test_a_task_that_came_later_puts_models_back(writer: IndexWriter, journal: ProfileJournal) -> None:
    keeper = keeper_of(writer, journal)
    keeper.done(fetched(probing(journal)), found_of(writer))
    assert keeper_of(writer, journal).recover() == (0, 0)
    assert state_of(journal)[0] is State.STORED
    pets = next(task for task in writer.store.tasks() if task.name == "pets")
    writer.put_task(pets.model_copy(update={"fingerprint": "c" * 64}))  # its sample was drawn again
    again = keeper_of(writer, journal)
    again.recover()
    row = journal.rows("org/clip")[-1]
    assert (row.state, row.detail) == (State.LISTED, "has no profile of pets")
    claim = journal.claim()
    assert claim is not None
    journal.fetched(claim.repo, claim.revision, size_bytes=1, weights=None, seconds=0.0)
    again.done(fetched(claim), found_of(writer, ("pets",), again=False))
    profiles = {profile.task: profile for profile in writer.store.profiles(model=NAME)}
    assert profiles["pets"].conductance == (1.0, 2.0)
    assert profiles["food"].conductance == (4.0, 8.0)  # as it was
    assert profiles["pets"].task_fingerprint == "c" * 64


def test_profiles_made_otherwise_are_not_mixed(writer: IndexWriter, journal: ProfileJournal) -> None:
    put(writer, TASKS[:2], n_steps=8)
    samples = Samples.of(writer.index.folder, writer.store.tasks())
    as_there = Standings(samples, ProfileOptions(), writer.store.profiles())
    assert as_there.job(NAME, Path("/x")).n_steps == 8  # those of its other profiles, unless told
    assert as_there.job(NAME, Path("/x")).precision == "float32"
    otherwise = ProfileOptions(n_steps=9)
    wanted = Standings(samples, otherwise, writer.store.profiles()).job(NAME, Path("/x"))
    assert wanted.n_steps == 9
    assert wanted.recorded is not None
    assert wanted.recorded.missing == ()  # the same weights are shown nothing; others are profiled anew
    keeper = keeper_of(writer, journal, otherwise)
    nothing = found_of(writer, again=False, rows={}, n_steps=9)
    with pytest.raises(ModelRefusedError, match="n_steps 8, and 9 was asked for") as caught:
        keeper.done(fetched(probing(journal)), nothing)
    assert caught.value.reason is Reason.FILTERED
    keeper.done(fetched(Claim("org/clip", "r1", None, 1, Listed("org/clip", "r1"))), found_of(writer, n_steps=9))
    assert {profile.n_steps for profile in writer.store.profiles(model=NAME)} == {9}


def test_a_run_that_would_have_to_mix_does_not_begin(writer: IndexWriter, journal: ProfileJournal) -> None:
    keeper = keeper_of(writer, journal)
    keeper.done(fetched(probing(journal)), found_of(writer))
    pets = next(task for task in writer.store.tasks() if task.name == "pets")
    writer.put_task(pets.model_copy(update={"fingerprint": "c" * 64}))
    with pytest.raises(InputError, match="--precision"):
        keeper_of(writer, journal, ProfileOptions(precision="bfloat16")).recover()
    assert state_of(journal)[0] is State.STORED


def test_a_copy_gets_the_profiles_and_loses_none_with_its_original(
    writer: IndexWriter, journal: ProfileJournal
) -> None:
    keeper = keeper_of(writer, journal)
    keeper.done(fetched(probing(journal, weights="w")), found_of(writer))
    twin = probing(journal, "org/twin")
    found = Repository("org/twin", "r1", Path("/x"))
    keeper.copied(KnownWeights(twin, ("org/clip", "another"), found, "w"))  # it has moved on meanwhile
    assert state_of(journal, "org/twin")[0] is State.LISTED
    twin = journal.claim()
    assert twin is not None
    keeper.copied(KnownWeights(twin, ("org/clip", "r1"), found, "w"))
    assert state_of(journal, "org/twin") == (State.STORED, 3, "org/clip")
    of_twin = {profile.task: profile.conductance for profile in writer.store.profiles(model=TWIN)}
    assert of_twin == {profile.task: profile.conductance for profile in writer.store.profiles(model=NAME)}
    images = [image.sha256 for task in writer.store.tasks() for image in task.images]
    known = ConductanceCache(writer.index.folder / CACHE).get(ProfileKey(TWIN, HASH, BLOCKS, 50), images)
    assert known is not None
    assert len(known.rows) == 9
    keeper.gone("org/clip", "deleted")
    assert list(writer.store.profiles(model=NAME)) == []
    assert len(list(writer.store.profiles(model=TWIN))) == 3
    assert state_of(journal, "org/twin")[0] is State.LISTED  # it stands for itself now


def test_what_is_gone_can_be_kept(writer: IndexWriter, journal: ProfileJournal) -> None:
    keeper = keeper_of(writer, journal, keep_gone=True)
    keeper.done(fetched(probing(journal)), found_of(writer))
    keeper.gone("org/clip", "deleted")
    assert len(list(writer.store.profiles(model=NAME))) == 3
    assert state_of(journal)[0] is State.GONE


def test_a_model_that_went_while_it_was_profiled_leaves_no_part_of_its_profiles(
    writer: IndexWriter, journal: ProfileJournal
) -> None:
    put(writer, TASKS[:2])
    keeper = keeper_of(writer, journal)
    claim = probing(journal)
    keeper.gone("org/clip", "deleted")
    keeper.done(fetched(claim), found_of(writer, ("pets",), again=False))
    assert list(writer.store.profiles(model=NAME)) == []
    assert state_of(journal)[0] is State.GONE


def test_names_are_those_of_profile(tmp_path: Path) -> None:
    assert name_of("org/clip", None) == "open_clip:hf-hub:org/clip"
    (tmp_path / "link").symlink_to(tmp_path)
    assert name_of("org/clip", tmp_path / "link") == f"open_clip:local-dir:{tmp_path.resolve()}"


def test_tasks_are_needed_and_their_images_have_to_be_theirs(tmp_path: Path, writer: IndexWriter) -> None:
    with pytest.raises(InputError, match="hubhound task add"):
        Samples.of(tmp_path, [])
    samples = Samples.of(writer.index.folder, writer.store.tasks())
    Path(samples.images("food")[1].path).write_bytes(b"another")
    with pytest.raises(IndexDamagedError, match="of task food has changed"):
        samples.check()


# --- the command


def test_an_index_without_tasks_is_one_line_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_index(tmp_path / "index")
    save_vlm(tmp_path / "org" / "clip")
    given = ["crawl", "--index", str(tmp_path / "index"), "--source", str(tmp_path / "org")]
    assert run([*given, "--task", "zero-shot-image-classification"]) == 1
    assert "has no tasks to profile models on: add some with 'hubhound task add" in capsys.readouterr().err
    assert run([*given, "--n-steps", "4"]) == 2
    assert "--task zero-shot-image-classification" in capsys.readouterr().err


def test_the_daemon_needs_no_model_library() -> None:
    code = (
        "import sys, indexers.crawl.daemon, indexers.crawl.kinds\n"
        "heavy = {'torch', 'timm', 'transformers', 'PIL', 'open_clip'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
