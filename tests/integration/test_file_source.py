"""Models that are named one by one: in a file of ids, or as a folder."""

import os
import shutil
import time

import huggingface_hub
import pytest

from engine.errors import InputError, ModelError, Reason
from indexers import folders
from indexers.crawl import file_source
from indexers.crawl.file_source import FileSource, FolderSource
from indexers.crawl.filters import Filters
from indexers.crawl.listing import UNKNOWN, CursorExpiredError, PassingError, open_source
from tests.integration.test_listing import listed, make_model
from tests.support.hub_server import HubServer


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for i in range(5):
        make_model(tmp_path / "hub", f"org/m{i}", i)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


def test_a_file_of_ids(hub, tmp_path):
    old = hub.commit_of("org/m2")
    make_model(hub.root, "org/m2", 99)
    local = make_model(tmp_path / "here", "my/model")
    file = tmp_path / "ids.txt"
    file.write_text(f"# mine\norg/m1\n\norg/m2@{old} # as it was\norg/nothing\norg/m3@v7\n{local}\n")
    shutil.copytree(hub.root / "models/org/m2", hub.root / "models/org/m2@old")
    (hub.root / "models/org/m2@old/config.json").write_text('{"note": 2}')
    source = open_source(str(file), Filters())
    (page,) = source.pages(None, newest_first=False)
    found = {entry.repo: entry for entry in page.entries}
    assert list(found) == ["org/m1", "org/m2", "org/nothing", "org/m3", "my/model"]
    assert found["org/m1"].revision == hub.commit_of("org/m1")
    assert found["org/m2"].revision == old
    assert found["my/model"].folder == local
    assert (found["org/nothing"].revision, found["org/m3"].revision) == (UNKNOWN, UNKNOWN)
    assert {repo: refusal.reason for repo, refusal in page.refusals.items()} == {
        "org/nothing": Reason.MISSING,
        "org/m3": Reason.MISSING,
    }
    assert source.check("org/m1") is not None
    assert source.check("org/nothing") is None
    assert source.check("org/m4") is None  # there, but not named
    file.write_text("org/m4\n")
    assert listed(source) == ["org/m4"]
    assert source.check("org/m1") is None
    with pytest.raises(CursorExpiredError):
        listed(source, '["another file", 1, [], 0, true]')
    file.write_text("org/m4\nno id at all\n")
    with pytest.raises(InputError, match=r"ids\.txt, line 2"):
        listed(source)
    with pytest.raises(InputError, match=r"ids\.txt, line 2"):
        FileSource(file, Filters())


def test_ids_are_looked_up_side_by_side_and_page_by_page(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "PAGE", 16)
    for i in range(40):
        make_model(hub.root, f"many/m{i}", i)
    file = tmp_path / "ids.txt"
    file.write_text("".join(f"many/m{i}\n" for i in range(40)))
    source = FileSource(file, Filters())
    hub.latency_s = 0.05
    started = time.monotonic()
    pages = list(source.pages(None, newest_first=False))
    assert time.monotonic() - started < 40 * 0.05 / 2
    assert [len(page.entries) for page in pages] == [16, 16, 8]
    assert listed(source, pages[0].cursor) == [f"many/m{i}" for i in range(16, 40)]


def test_one_id_in_trouble_does_not_cost_the_others(hub, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("".join(f"org/m{i}\n" for i in range(5)))
    source = FileSource(file, Filters())
    with hub.failing("/api/models/org/m1", status=503, times=2, headers={"Retry-After": "9"}):
        pages = source.pages(None, newest_first=False)
        first = next(pages)
        assert [entry.repo for entry in first.entries] == ["org/m0", "org/m2", "org/m3", "org/m4"]
        second = next(pages)
        assert second.entries == []
        with pytest.raises(PassingError):
            next(pages)
        assert listed(source, second.cursor) == ["org/m1"]
    # For ever: it is left to the next pass.
    with hub.failing("/api/models/org/m1", status=503, times=-1):
        cursor, late, entries = None, 0, 0
        for _ in range(20):
            try:
                for page in source.pages(cursor, newest_first=False):
                    cursor, late, entries = page.cursor, late + page.late, entries + len(page.entries)
                break
            except PassingError:
                continue
        assert (cursor, late, entries) == (None, 1, 4)
    # All of them: then it is the hub, and nothing is given up.
    with hub.failing("/api/models/", status=503, times=-1):
        for _ in range(20):
            with pytest.raises(PassingError):
                listed(source)


def test_a_folder_is_read_once(tmp_path, monkeypatch):
    for i in range(3):
        (make_model(tmp_path, f"org/m{i}", i) / "model.safetensors").write_bytes(b"w" * (100 + i))
    read = []
    hashed = folders.revision_of
    monkeypatch.setattr(folders, "revision_of", lambda repo, folder: read.append(repo) or hashed(repo, folder))
    source = open_source(str(tmp_path / "models"), Filters())
    first = {entry.repo: entry for page in source.pages(None, newest_first=False) for entry in page.entries}
    assert sorted(read) == sorted(first) == ["org/m0", "org/m1", "org/m2"]
    assert first["org/m1"].revision == hashed("org/m1", tmp_path / "models/org/m1")[0]
    assert first["org/m1"].size_bytes == 101
    read.clear()
    assert {e.repo: e for page in source.pages(None, newest_first=False) for e in page.entries} == first
    assert read == []
    weights = tmp_path / "models/org/m1/model.safetensors"
    weights.write_bytes(b"v" * 101)
    os.utime(weights, ns=(1, 1_700_000_000_123_456_789))
    shutil.rmtree(tmp_path / "models/org/m2")
    second = {e.repo: e for page in source.pages(None, newest_first=False) for e in page.entries}
    assert read == ["org/m1"]
    assert second["org/m0"] == first["org/m0"]
    assert second["org/m1"].revision != first["org/m1"].revision
    assert source.check("org/m1") == second["org/m1"]
    assert source.check("org/m2") is None
    # An empty folder may be a disk that is not there.
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(InputError):
        listed(source)


def test_a_folder_that_cannot_be_read_is_not_gone(tmp_path, monkeypatch):
    folder = make_model(tmp_path, "org/m")
    source = FolderSource(tmp_path / "models", Filters())

    def fails(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file_source, "files_in", fails)
    (page,) = source.pages(None, newest_first=False)
    assert page.entries[0].revision == UNKNOWN
    assert "Permission denied" in page.refusals["org/m"].detail
    with pytest.raises(ModelError):
        source.check("org/m")
    shutil.rmtree(folder)
    assert source.check("org/m") is None


def test_names_that_cannot_be_kept(tmp_path):
    for name in ("good", "bell\x07"):
        make_model(tmp_path, f"org/{name}")
    (page,) = FolderSource(tmp_path / "models", Filters()).pages(None, newest_first=False)
    assert ([entry.repo for entry in page.entries], page.broken) == (["org/good"], 1)


def test_what_is_no_source(tmp_path):
    with pytest.raises(InputError, match="no source of models"):
        open_source("nowhere", Filters())
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="names no models"):
        open_source(str(tmp_path / "empty.txt"), Filters())
