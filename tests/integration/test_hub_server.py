"""The tests' own Hub, held against huggingface_hub's own calls."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub_server import HubServer

BIG = os.urandom(200_000)


@pytest.fixture
def hub(tmp_path):
    model = tmp_path / "hub" / "models" / "org" / "name"
    (model / "deep" / "er").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(BIG)
    (model / "deep" / "er" / "note ä.txt").write_text("hello")
    (model / "README.md").write_text("---\nlicense: mit\ntags: [x]\nlibrary_name: timm\n---\n# hi\n")
    old = tmp_path / "hub" / "models" / "org" / "name@refs%2Fpr%2F1"
    old.mkdir()
    (old / "config.json").write_text('{"old": true}')
    data = tmp_path / "hub" / "datasets" / "org" / "data"
    data.mkdir(parents=True)
    (data / "train.parquet").write_bytes(BIG[:5000])
    with HubServer(tmp_path / "hub") as server:
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=False)


def test_model_info(hub, api):
    hub.facts["org/name"] = {"downloads": 12, "likes": 3}
    info = api.model_info("org/name", files_metadata=True)
    assert info.id == "org/name"
    assert info.sha == hub.commit_of("org/name")
    assert len(info.sha) == 40
    assert (info.library_name, info.tags, info.downloads, info.likes) == ("timm", ["x"], 12, 3)
    assert info.card_data.license == "mit"
    files = {file.rfilename: file for file in info.siblings}
    assert set(files) == {"README.md", "config.json", "deep/er/note ä.txt", "model.safetensors"}
    assert files["model.safetensors"].size == len(BIG)
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG).hexdigest()
    assert files["config.json"].lfs is None
    assert all(file.size is None for file in api.model_info("org/name").siblings)


def test_revisions(hub, api, tmp_path):
    commit = api.model_info("org/name").sha
    assert api.model_info("org/name", revision=commit).sha == commit
    other = api.model_info("org/name", revision="refs/pr/1")
    assert other.sha not in (None, commit)
    assert [file.rfilename for file in other.siblings] == ["config.json"]
    assert api.model_info("org/name", revision=other.sha).sha == other.sha
    (hub.root / "models" / "org" / "name" / "config.json").write_text("[]")
    changed = api.model_info("org/name").sha
    assert changed != commit
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision=commit)
    refs = api.list_repo_refs("org/name")
    assert {ref.target_commit for ref in refs.branches} == {changed, other.sha}


def test_tree_with_pages(hub, api):
    hub.page = 2
    entries = {entry.path: entry for entry in api.list_repo_tree("org/name", recursive=True)}
    assert set(entries) == {
        "README.md",
        "config.json",
        "deep",
        "deep/er",
        "deep/er/note ä.txt",
        "model.safetensors",
    }
    assert entries["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG).hexdigest()
    assert sum("/tree/" in request.path for request in hub.requests) == 3
    top = [entry.path for entry in api.list_repo_tree("org/name")]
    assert sorted(top) == ["README.md", "config.json", "deep", "model.safetensors"]
    inner = [entry.path for entry in api.list_repo_tree("org/name", "deep", recursive=True)]
    assert inner == ["deep/er", "deep/er/note ä.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/name", "nowhere"))


def test_paths_info(api):
    infos = api.get_paths_info("org/name", ["model.safetensors", "deep", "missing"])
    assert [info.path for info in infos] == ["model.safetensors", "deep"]
    assert infos[0].size == len(BIG)


def test_download(hub, api, tmp_path):
    path = api.hf_hub_download("org/name", "model.safetensors", cache_dir=tmp_path / "cache")
    with open(path, "rb") as stream:
        assert stream.read() == BIG
    assert hub.commit_of("org/name") in path
    assert hub.downloaded() == ["model.safetensors"]
    assert hub.downloaded("HEAD") == ["model.safetensors"]
    api.hf_hub_download("org/name", "model.safetensors", cache_dir=tmp_path / "cache")
    assert hub.downloaded() == ["model.safetensors"]
    assert api.file_exists("org/name", "config.json")
    assert not api.file_exists("org/name", "missing.json")


def test_snapshot(hub, api, tmp_path):
    folder = api.snapshot_download("org/name", cache_dir=tmp_path / "cache", tqdm_class=None)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "deep", "model.safetensors"]
    with open(os.path.join(folder, "deep", "er", "note ä.txt")) as stream:
        assert stream.read() == "hello"
    only = api.snapshot_download("org/name", local_dir=tmp_path / "only", allow_patterns=["*.json"])
    assert sorted(name for name in os.listdir(only) if not name.startswith(".")) == ["config.json"]


def test_file_system_reads_ranges(hub):
    files = HfFileSystem(endpoint=hub.url, token=False, skip_instance_cache=True)
    with files.open("datasets/org/data/train.parquet", "rb", cache_type="none") as stream:
        assert stream.size == 5000
        stream.seek(-100, 2)
        assert stream.read(50) == BIG[4900:4950]
        stream.seek(10)
        assert stream.read(5) == BIG[10:15]
    ranges = [request.range for request in hub.requests if "/resolve/" in request.path]
    assert ranges == ["bytes=4900-4949", "bytes=10-14"]


def test_gated_and_private(hub, api, tmp_path):
    hub.gated.add("org/name")
    assert api.model_info("org/name").gated == "manual"
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("org/name", "config.json", cache_dir=tmp_path / "cache")
    with_token = HfApi(endpoint=hub.url, token=hub.token)
    assert with_token.hf_hub_download("org/name", "config.json", cache_dir=tmp_path / "cache")
    hub.private.add("org/name")
    with pytest.raises(RepositoryNotFoundError) as caught:
        api.model_info("org/name")
    assert caught.value.response.status_code == 401
    assert with_token.model_info("org/name").private


def test_what_is_not_there(api, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/missing")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/missing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("org/name", "missing.json", cache_dir=tmp_path / "cache")


def test_faults(hub, api, tmp_path):
    with hub.failing("/api/models/org/name", status=503, headers={"Retry-After": "1"}):
        with pytest.raises(HfHubHTTPError) as caught:
            api.model_info("org/name")
        assert caught.value.response.headers["Retry-After"] == "1"
        assert api.model_info("org/name").sha
    with hub.failing("/api/models", status=0), pytest.raises(Exception, match=r"disconnected|reset|closed"):
        api.model_info("org/name")
    with hub.failing("/api/models", delay_s=0.2):
        start = time.monotonic()
        api.model_info("org/name")
        assert time.monotonic() - start > 0.2
    with hub.failing("/resolve/", method="GET", cut=1000):
        path = api.hf_hub_download("org/name", "model.safetensors", cache_dir=tmp_path / "cache")
    with open(path, "rb") as stream:
        assert stream.read() == BIG
    assert hub.downloaded() == ["model.safetensors", "model.safetensors"]


def test_many_clients_at_once(hub, api, tmp_path):
    failures = []

    def download(number):
        try:
            api.hf_hub_download("org/name", "model.safetensors", cache_dir=tmp_path / str(number))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=download, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_client_of_its_own_that_knows_only_the_environment(hub, tmp_path):
    code = (
        "import json; from huggingface_hub import model_info, hf_hub_download, dataset_info\n"
        "hf_hub_download('org/name', 'config.json')\n"
        "print(json.dumps([model_info('org/name').sha, dataset_info('org/data').id]))"
    )
    hub.private.add("org/name")
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == [hub.commit_of("org/name"), "org/data"]
