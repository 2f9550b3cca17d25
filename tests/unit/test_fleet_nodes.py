"""What a node of a fleet holds: images that came in pieces, places that a dead worker has left, a worker at work."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import HubhoundError, IndexDamagedError, Reason
from engine.index import Index
from engine.probes import read_folder
from indexers.crawl.fleet.actor import Actor
from indexers.crawl.fleet.errands import Errand, Hire, Roster, Stage
from indexers.crawl.fleet.member import Member
from indexers.crawl.fleet.orders import Able, Answered, Here, Orders, Present, Seen, Trouble, Unfit
from indexers.crawl.fleet.parcel import Parcel, Piece, check_samples, images_below, images_in, unpack
from indexers.crawl.fleet.place import Place
from indexers.crawl.fleet.ray_cluster import Need, why
from indexers.crawl.journal import Claim
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.messages import ProfileJob, Shown
from indexers.crawl.porter import FetchOptions
from indexers.crawl.records import Listed, Probed
from indexers.sources import ModelSource, revision_of
from tests.support.small_index import N, make_index
from tests.support.tiny_models import timm_model


def claim_of(repo: str, folder: Path | None = None, revision: str = "r1") -> Claim:
    return Claim(repo, revision, folder, 1, Listed(repo, revision, folder=folder))


def orders_of(folder: Path, parcel: str, **changes: object) -> Orders:
    setup = Setup(Path("/not/here"), None, Path("/not/here"), 10**9, device="cpu")
    orders = Orders("owner", parcel, folder / "cache", setup, 10**9, FetchOptions(10**9), Limits())
    return replace(orders, **changes)  # type: ignore[arg-type]


# --- images


def test_a_parcel_in_pieces_is_the_index_for_those_who_show_its_probes(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    parcel = Parcel.of_probes(index, None)
    total = sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    pieces = list(parcel.pieces(total // 4))
    assert len(pieces) >= 4
    for piece in pieces:
        assert len(piece.content) <= total // 4 or "manifest.json" in piece.names  # which is larger by itself
        unpack(piece, tmp_path / "node")
    there = Index(tmp_path / "node").probes()
    assert there.fingerprint == index.manifest.probes.fingerprint
    assert there.folder == tmp_path / "node" / "probes"
    for probe in there.probes:
        content = (there.folder / probe.file).read_bytes()
        assert content == (tmp_path / "images" / probe.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == probe.sha256
    assert len(list(parcel.pieces())) == 1
    assert Parcel.of_probes(index, tmp_path / "images").name == parcel.name
    (tmp_path / "other").mkdir()
    assert Parcel.of_probes(make_index(tmp_path / "other" / "zoo", top_r=7), None).name != parcel.name


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    parcel = Parcel.of_probes(index, None)
    (tmp_path / "images" / "003.png").unlink()
    with pytest.raises(IndexDamagedError, match=r"003\.png cannot be read: No such file"):
        list(parcel.pieces())


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    piece = Piece(("../outside.png",), (3,), np.frombuffer(b"abc", np.uint8))
    with pytest.raises(HubhoundError, match="lies outside"):
        unpack(piece, tmp_path / "node")
    assert not (tmp_path / "outside.png").exists()


def test_the_images_of_a_job_are_where_the_node_has_them(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"abc").hexdigest()
    here = Shown(path=str(tmp_path / "zoo/tasks/one/a.png"), sha256=digest)
    job = ProfileJob(
        number=1, name="x", folder="/x", n_steps=3, precision="auto", tasks={"one": (here,)}, recorded=None
    )
    below = images_below(tmp_path / "zoo", job)
    assert below.tasks["one"][0].path == "tasks/one/a.png"
    there = images_in(tmp_path / "node", ProfileJob.model_validate_json(below.model_dump_json()))
    path = tmp_path / "node/tasks/one/a.png"
    assert there.tasks["one"][0].path == str(path)
    with pytest.raises(HubhoundError, match="is gone"):
        check_samples(there.tasks)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    check_samples(there.tasks)
    path.write_bytes(b"abd")
    with pytest.raises(HubhoundError, match="has changed"):
        check_samples(there.tasks)


# --- places

HOLD = """
import sys, time
from pathlib import Path
from indexers.crawl.fleet.place import Place
place = Place(Path(sys.argv[1]), "owner", "parcel")
(place.folder / "half a download").write_text("x")
print(place.folder.name, flush=True)
time.sleep(60)
"""


def test_workers_have_places_of_their_own_and_that_of_a_killed_one_is_cleaned_and_taken(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        first = Place(tmp_path, "owner", "parcel")
        assert first.folder.name == "1"
        assert (first.folder.parent / "0" / "half a download").exists()
        stranger = Place(tmp_path, "another", "parcel")
        assert stranger.folder.name == "0"
        stranger.close()
        other.send_signal(signal.SIGKILL)
        other.wait()
        second = Place(tmp_path, "owner", "parcel")
    assert second.folder.name == "0"
    assert list(second.folder.iterdir()) == []
    first.close()
    second.close()
    assert [path.name for path in (tmp_path / "fleet" / "owner").iterdir() if path.is_dir()] == []


def test_images_are_there_when_they_are_complete_and_those_of_before_go(tmp_path: Path) -> None:
    piece = Piece(("a/b.png",), (3,), np.frombuffer(b"abc", np.uint8))
    old = Place(tmp_path, "owner", "old")
    old.unpack(piece, first=True, last=True)
    assert old.has_images
    old.close()
    place = Place(tmp_path, "owner", "new")
    assert not old.images.exists()
    place.unpack(piece, first=True, last=False)
    assert not place.has_images
    place.unpack(Piece(("c.png",), (1,), np.frombuffer(b"x", np.uint8)), first=False, last=True)
    assert place.has_images
    assert (place.images / "a/b.png").read_bytes() == b"abc"
    place.unpack(piece, first=True, last=True)  # another one was quicker
    assert (place.images / "c.png").read_bytes() == b"x"
    place.close()
    assert place.images.exists()


# --- a worker


def test_a_worker_from_its_first_day_to_its_last(tmp_path: Path) -> None:
    """A real model in a real process, by way of what Ray calls; and others that are not as they should be."""
    index = make_index(tmp_path / "zoo")
    parcel = Parcel.of_probes(index, None)
    actor = Actor({"HUBHOUND_TEST_OF_ACTORS": "1"})
    assert os.environ.pop("HUBHOUND_TEST_OF_ACTORS") == "1"
    assert actor.engage(orders_of(tmp_path, parcel.name), "n1") == Present("n1", os.uname().nodename, False)
    for piece in (pieces := list(parcel.pieces(20_000))):
        assert actor.do("unpack", piece, piece is pieces[0], piece is pieces[-1]) is True
    assert actor.do("arrive") == Present("n1", os.uname().nodename, True)
    assert actor.do("begin") == Able()

    folder = timm_model(tmp_path / "org" / "net", classes=4)
    revision, _ = revision_of(ModelSource("org/net", folder=folder))
    claim = claim_of("org/net", folder, revision)
    seen = actor.do("look", claim)
    assert isinstance(seen, Seen)
    assert seen.identity is not None
    assert actor.do("bring", claim) == Here(seen.repository, 0)
    answered = actor.do("probe", claim, None)
    assert isinstance(answered, Answered)
    assert answered.size_bytes == N * 4 * 4
    assert answered.children == 1
    found = actor.do("hand_over", claim)
    assert isinstance(found, Probed)
    assert found.responses.shape == (N, 4)
    assert actor.do("forget", claim) == 0

    broken = timm_model(tmp_path / "org" / "broken")
    (broken / "model.safetensors").write_bytes(b"garbage")
    claim = claim_of("org/broken", broken)
    assert isinstance(actor.do("look", claim), Seen)
    assert isinstance(actor.do("bring", claim), Here)
    trouble = actor.do("probe", claim, None)
    assert isinstance(trouble, Trouble)
    assert (trouble.reason, trouble.refused) == (Reason.BROKEN_WEIGHTS, False)
    gone = actor.do("look", claim_of("org/gone", tmp_path / "org" / "gone"))
    assert isinstance(gone, Trouble)
    assert gone.error(claim).reason is gone.reason
    strange = actor.do("bring", claim_of("org/never-looked-at"))
    assert isinstance(strange, Trouble)
    assert strange.reason is Reason.RUN_FAILED
    assert strange.where is not None and strange.where.startswith("member.py:")

    assert actor.do("close") is True
    assert actor.do("stay") is True
    assert not list((tmp_path / "cache").rglob("scratch*"))
    assert isinstance(actor.do("probe", claim, None), Trouble | Unfit)


def test_a_worker_without_the_folder_that_is_listed_cannot_work(tmp_path: Path) -> None:
    member = Member(orders_of(tmp_path, "x", source=tmp_path / "hub"), "n1")
    unfit = member.arrive()
    assert isinstance(unfit, Unfit)
    assert str(tmp_path / "hub") in unfit.detail
    assert "all nodes" in unfit.detail


def test_a_worker_whose_probes_are_not_those_of_the_index_cannot_work(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    parcel = Parcel.of_probes(index, None)
    member = Member(orders_of(tmp_path, parcel.name), "n1")
    assert isinstance(member.arrive(), Present)
    for piece in parcel.pieces():
        assert member.unpack(piece, True, True) is True
    images = next((tmp_path / "cache" / "fleet" / "owner").glob("images-*")) / "probes"
    assert read_folder(images).fingerprint == index.manifest.probes.fingerprint
    next(images.iterdir()).write_bytes(b"other")
    unfit = member.begin()
    assert isinstance(unfit, Unfit)
    assert "\n" not in unfit.detail
    member.close()


# --- who gets which model


def test_the_next_model_goes_to_the_worker_that_has_the_fewest() -> None:
    roster = Roster(ahead=2, fetchers=2)
    one, two = Hire("a", "n1", able=True), Hire("b", "n2", able=True)
    roster.hires = {"a": one, "b": two, "c": Hire("c", "n3")}
    given = []
    for i in range(6):
        claim = claim_of(f"org/{i}")
        hire = roster.choose(claim)
        if hire is None:
            break
        hire.errands[(claim.repo, claim.revision)] = Errand(claim)
        given.append(hire.hand)
    assert given == ["a", "b", "a", "b"]  # then both fetch as many as they may
    for errand in roster:
        errand.stage = Stage.READY
    assert roster.has_room()
    assert roster.next_probe(one) is next(iter(one.errands.values()))
    next(iter(one.errands.values())).stage = Stage.PROBED
    assert roster.next_probe(one) is None


def test_a_model_waits_for_another_node_only_while_there_is_one() -> None:
    roster = Roster(ahead=0, fetchers=1)
    one, two = Hire("a", "n1", able=True), Hire("b", "n2", able=True)
    roster.hires = {"a": one, "b": two}
    lost = Errand(claim_of("org/lost"))
    roster.lost(lost, "n1")
    two.errands["org/x", "r1"] = Errand(claim_of("org/x"))
    assert roster.choose(lost.claim) is None
    assert roster.choose(claim_of("org/other")) is one
    del roster.hires["b"]
    assert roster.choose(lost.claim) is one
    roster.hires["b"] = two
    roster.settled(lost.claim)
    assert roster.choose(lost.claim) is one


@pytest.mark.parametrize(
    ("cpus", "gpus", "resources", "workers"),
    [
        (1, 0, {"CPU": 4.0}, 4),
        (2.5, 0, {"CPU": 4.0, "GPU": 8.0}, 1),
        (1, 0.25, {"CPU": 16.0, "GPU": 2.0}, 8),
        (1, 0.1, {"CPU": 16.0, "GPU": 1.0}, 10),
        (1, 1, {"CPU": 3.0, "GPU": 8.0}, 3),
        (1, 1, {"CPU": 16.0}, 0),
        (0.1, 0, {"CPU": 0.3}, 3),
        (1, 0, {}, 0),
    ],
)
def test_a_node_has_room_for_what_is_taken_of_it(
    cpus: float, gpus: float, resources: dict[str, float], workers: int
) -> None:
    assert Need(cpus, gpus).fits(resources) == workers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: A\nThe actor is dead because its "
            "worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits "
            "with a connection error code 2. End of file. Some common causes include: (1) the process was "
            "killed by the OOM killer due to high memory usage, (2) ray stop --force was called",
            "its process has died",
        ),
        (
            "The actor 60324a is unavailable: The actor is temporarily unavailable: RpcError: RPC error: Socket closed "
            "rpc_code: 14. The task may or may not have been executed on the actor.",
            "its node does not answer",
        ),
        (
            "The actor died because of an error raised in its creation task, RuntimeError: The actor with name B "
            "failed to import on the worker. This may be because needed library dependencies are not installed",
            "this version of hubhound is not installed on its node",
        ),
        ("something that Ray will write one day", "it is gone"),
    ],
    ids=["process", "node", "import", "other"],
)
def test_what_ray_writes_of_a_lost_worker_is_told_in_a_few_words(text: str, said: str) -> None:
    """The texts are those of Ray 2.60."""
    assert why(text) == said
