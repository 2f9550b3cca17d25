"""Deleting an index in a folder: what goes, what stays, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import deletion
from engine.copy_source import MARKER
from engine.copy_stores import open_source
from engine.copy_target import _marker
from engine.deletion import Doomed, open_deletion
from engine.errors import IndexDamagedError, IndexLockedError, InputError, StoreError
from engine.files import size_bytes, write_json
from engine.index import Index, refuse_occupied
from engine.index_files import DELETING
from engine.verify import verify
from engine.writer import IndexWriter
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.small_index import make_index

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        made = make_full_index(folder / "zoo", models=1)
        made.concepts.put({"cat": made.probe_embeddings[0]})
        yield made.folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    with fast_folder(tmp_path) as made:
        yield made


@pytest.fixture
def zoo(original: Path, folder: Path) -> Path:
    """An index whose store cannot be opened: most of its bytes are left out."""
    shutil.copytree(original, folder / "zoo", ignore=shutil.ignore_patterns("outputs", "models", "profiles"))
    return folder / "zoo"


@pytest.fixture
def whole(original: Path, folder: Path) -> Path:
    shutil.copytree(original, folder / "zoo")
    return folder / "zoo"


def delete(index: Path | str) -> Doomed:
    with open_deletion(str(index)) as opened:
        opened.run()
        return opened.doomed


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_index_goes_and_its_neighbours_stay(whole: Path, original: Path) -> None:
    zoo = whole
    neighbour = zoo.with_name("zoo_2")
    shutil.copytree(zoo, neighbour, ignore=shutil.ignore_patterns("wal"))
    there = tree(neighbour)
    images = original.parent / "images"
    before = tree(images)
    with open_deletion(str(zoo)) as opened:
        doomed = opened.doomed
        assert doomed.size_bytes == size_bytes(zoo)
        assert doomed.files == sum(path.is_file() for path in zoo.rglob("*"))
        opened.run()
    assert not zoo.exists()
    assert tree(images) == before
    assert (doomed.models, doomed.outputs) == (4, 11 + 14)  # outputs that no record claims are in the store, too
    assert doomed.stays == [f"the probe images in {images}, which the index only refers to"]
    assert not doomed.resumed
    assert tree(neighbour) == there
    with pytest.raises(InputError, match=f"there is no index at {zoo}: nothing to delete"):
        delete(zoo)


def test_nothing_has_happened_before_it_is_run(whole: Path) -> None:
    zoo = whole
    before = tree(zoo / "responses")
    with open_deletion(str(zoo)):
        assert (zoo / "manifest.json").exists()
        with pytest.raises(IndexLockedError):  # nobody can begin to write while a person thinks about it
            IndexWriter(zoo)
    assert tree(zoo / "responses") == before
    with IndexWriter(zoo) as writer:
        writer.finish()


def test_what_an_index_does_not_have_stays(zoo: Path) -> None:
    (zoo / "notes.txt").write_text("mine")
    (zoo / ".git").mkdir()
    (zoo / "store.old").mkdir()
    (zoo / ".manifest.json.abc12345").write_text("what a killed write has left")
    (zoo / "concepts.sqlite-wal").write_text("")
    doomed = delete(zoo)
    assert sorted(path.name for path in zoo.iterdir()) == [".git", "notes.txt", "store.old"]
    assert f"{zoo / 'notes.txt'}, which is no part of an index" in doomed.stays
    assert len(doomed.stays) == 4
    with pytest.raises(InputError, match="is no index: nothing is deleted"):
        delete(zoo)


def test_images_of_the_users_in_the_folder_stay_even_if_a_deletion_is_cut_short(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names another folder: whoever moved the images says where they are with --probes."""
    (zoo / "probes").mkdir()
    (zoo / "probes" / "photo.png").write_bytes(b"mine")
    for name in (".labels.txt", ".tasks.bak", ".manifest.json.swp"):
        (zoo / name).write_text("mine")
    real, removed = deletion._remove, []

    def killed(path: Path) -> None:
        removed.append(path.name)
        real(path)
        if path.name == "manifest.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(deletion, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        delete(zoo)
    assert not (zoo / "manifest.json").exists()
    doomed = delete(zoo)
    assert f"{zoo / 'probes'}, which may hold images of yours" in doomed.stays
    left = sorted(path.name for path in zoo.rglob("*"))
    assert left == [".labels.txt", ".manifest.json.swp", ".tasks.bak", "photo.png", "probes"]


def test_images_that_the_index_refers_to_in_a_folder_of_its_own_stay(zoo: Path) -> None:
    images = zoo / "tasks" / "mine"
    images.mkdir(parents=True)
    (images / "photo.png").write_bytes(b"mine")
    manifest = json.loads((zoo / "manifest.json").read_text())
    manifest["probes"]["folder"] = str(images)
    (zoo / "manifest.json").write_text(json.dumps(manifest))
    delete(zoo)
    assert (images / "photo.png").read_bytes() == b"mine"


def test_links_go_and_what_they_lead_to_stays(zoo: Path) -> None:
    elsewhere = zoo.with_name("elsewhere")
    (zoo / "responses").rename(elsewhere)
    (zoo / "responses").symlink_to(elsewhere)
    kept = tree(elsewhere)
    link = zoo.with_name("link")
    link.symlink_to(zoo)
    doomed = delete(link)
    assert not link.is_symlink()
    assert not zoo.exists()
    assert tree(elsewhere) == kept
    assert f"what {link / 'responses'} links to" in doomed.stays


def test_what_is_no_index_is_refused_and_left_alone(zoo: Path, folder: Path) -> None:
    web = folder / "web"
    (web / "store").mkdir(parents=True)
    (web / "manifest.json").write_text('{"name": "an extension", "version": 3}')
    (web / "copying.json").write_text("[]")
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    before = tree(folder)
    for name, words in [
        ("web", "is no index"),
        ("file", "no index at"),
        ("empty", "is no index"),
        ("none", "no index at"),
        (".", "is no index"),
        ("zoo/store", "is no index"),
        ("zoo/snapshots", "is no index"),
    ]:
        with pytest.raises(InputError, match=words):
            delete(folder / name)
    assert tree(folder) == before


def test_one_that_is_written_to_is_refused(whole: Path) -> None:
    zoo = whole
    with IndexWriter(zoo), pytest.raises(IndexLockedError, match=f"{zoo} is being written by another process"):
        delete(zoo)
    with IndexWriter(zoo) as writer:
        assert writer.store.count_outputs() == 25


@pytest.mark.parametrize("damage", ["manifest", "version", "store"])
def test_a_damaged_one_can_go(zoo: Path, damage: str) -> None:
    if damage == "manifest":
        (zoo / "manifest.json").write_text("{")
    elif damage == "version":
        made = json.loads((zoo / "manifest.json").read_text())
        (zoo / "manifest.json").write_text(json.dumps({**made, "format": 99}))
    else:
        (zoo / "store" / "layout.json").write_text("{")
    assert delete(zoo).models is None
    assert not zoo.exists()


def test_an_unfinished_copy_can_go(zoo: Path, original: Path) -> None:
    (zoo / "manifest.json").unlink()
    with open_source(str(original)) as source:
        write_json(zoo / MARKER, _marker(source))
    with pytest.raises(IndexDamagedError, match=f"hubhound index delete --index {zoo}'"):
        Index(zoo)
    with pytest.raises(IndexDamagedError, match=f"hubhound index delete --index {zoo}'"):
        refuse_occupied(zoo)
    delete(zoo)
    assert not zoo.exists()


class Killed(BaseException):
    pass


def test_killed_anywhere_it_is_no_index_and_can_be_finished(
    zoo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = deletion._remove
    parts = len(list(zoo.iterdir()))
    for after in (0, 1, parts // 2, parts - 1, parts):
        copy = folder / f"copy{after}"
        shutil.copytree(zoo, copy)
        left = iter(range(after))

        def remove_some(path: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed
            remove(path)

        monkeypatch.setattr(deletion, "_remove", remove_some)
        try:
            delete(copy)
        except Killed:
            for use in (Index, refuse_occupied):
                with pytest.raises(IndexDamagedError, match=f"finish that with 'hubhound index delete --index {copy}'"):
                    use(copy)
            assert (copy / DELETING).exists()
        else:
            assert after == parts
        monkeypatch.setattr(deletion, "_remove", remove)
        if copy.exists():
            assert delete(copy).resumed
        assert not copy.exists()


def test_killed_for_real(zoo: Path) -> None:
    code = (
        "import os, signal, sys; from engine import deletion\n"
        "removed = deletion._remove\n"
        "def remove(path):\n"
        "    removed(path)\n"
        "    if path.name == 'store': os.kill(os.getpid(), signal.SIGKILL)\n"
        "deletion._remove = remove\n"
        "with deletion.open_deletion(sys.argv[1]) as opened: opened.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(zoo)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (zoo / "store").exists()
    assert zoo.exists()
    with pytest.raises(IndexDamagedError, match="index delete"):
        Index(zoo)
    assert delete(zoo).resumed
    assert not zoo.exists()


def test_what_cannot_be_removed_is_told_and_tried_again(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        with pytest.raises(PermissionError):
            delete(zoo)
    with pytest.raises(IndexDamagedError, match="index delete"):
        Index(zoo)
    delete(zoo)
    assert not zoo.exists()


def test_the_folder_of_a_volume_stays_empty(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rmdir", lambda _: (_ for _ in ()).throw(OSError(16, "Device or resource busy")))
        doomed = delete(zoo)
    assert list(zoo.iterdir()) == []
    assert doomed.stays[-1] == f"the empty folder {zoo} (Device or resource busy)"


def test_the_name_can_be_used_again(zoo: Path) -> None:
    with pytest.raises(InputError, match=f"delete it first with 'hubhound index delete --index {zoo}'"):
        make_index(zoo)
    delete(zoo)
    assert verify(make_index(zoo).folder) == []


def test_a_server_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", "1")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1"):
        delete("qdrant://127.0.0.1:1/zoo")
