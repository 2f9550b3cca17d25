"""The tests' own Hub, held against huggingface_hub's own calls."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save_file

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


@pytest.fixture
def many(tmp_path):
    """Seven models; m0 was changed last."""
    with HubServer(tmp_path / "hub", page=2) as server:
        for number in range(7):
            folder = tmp_path / "hub" / "models" / f"org{number % 2}" / f"m{number}"
            folder.mkdir(parents=True)
            tag = "image-classification" if number != 3 else "object-detection"
            library = "timm" if number < 4 else "transformers"
            card = f"---\nlicense: mit\ntags: [x, t{number % 3}]\nlibrary_name: {library}\npipeline_tag: {tag}\n---\n"
            (folder / "README.md").write_text(card)
            (folder / "config.json").write_text(json.dumps({"architectures": [f"A{number}"], "model_type": "vit"}))
            weights = {"a": np.zeros((number + 1, 3), np.float32), "b": np.zeros(2, np.float16)}
            save_file(weights, folder / "model.safetensors")
            repo = f"org{number % 2}/m{number}"
            server.touch(
                repo, modified=f"2026-01-{20 - number}T00:00:00.123Z", created=f"2025-01-0{number + 1}T00:00:00Z"
            )
            server.facts[repo] = {"downloads": 10 * (number % 4), "likes": number, "trendingScore": -number}
        yield server
    huggingface_hub.close_session()


def ids(models):
    return [model.id.split("/")[1] for model in models]


def test_listing_with_filters(many):
    api = HfApi(endpoint=many.url, token=False)
    assert sorted(ids(api.list_models())) == [f"m{number}" for number in range(7)]
    assert sorted(ids(api.list_models(author="org1"))) == ["m1", "m3", "m5"]
    assert ids(api.list_models(pipeline_tag="object-detection")) == ["m3"]
    assert sorted(ids(api.list_models(filter=["timm", "image-classification"]))) == ["m0", "m1", "m2"]
    assert sorted(ids(api.list_models(filter="t1"))) == ["m1", "m4"]
    assert sorted(ids(api.list_models(filter=["license:mit", "t0", "transformers"]))) == ["m6"]
    assert ids(api.list_models(search="M5")) == ["m5"]
    assert ids(api.list_models(filter="nothing")) == []
    assert sorted(ids(api.list_models(num_parameters="min:11,max:17"))) == ["m2", "m3", "m4"]  # 3 (number + 1) + 2
    many.gated.update({"org0/m2", "org1/m5"})
    assert sorted(ids(api.list_models(gated=True))) == ["m2", "m5"]
    assert len(ids(api.list_models(gated=False))) == 5
    many.private.add("org0/m0")
    assert "m0" not in ids(api.list_models())
    shown = {model.id: model.private for model in HfApi(endpoint=many.url, token=many.token).list_models()}
    assert len(shown) == 7
    assert shown["org0/m0"]


def test_listing_in_order_and_in_pages(many):
    api = HfApi(endpoint=many.url, token=False)
    up = [f"m{number}" for number in range(7)]
    assert ids(api.list_models(sort="last_modified")) == up
    assert len(many.requests) == 4  # pages of two
    assert ids(api.list_models(sort="created_at")) == up[::-1]
    assert ids(api.list_models(sort="likes")) == up[::-1]
    assert ids(api.list_models(sort="trending_score")) == up
    downloads = [model.downloads for model in api.list_models(sort="downloads")]
    assert downloads == [30, 20, 20, 10, 10, 0, 0]
    assert len({model.id for model in api.list_models(sort="downloads")}) == 7  # equals at the edges of pages
    many.requests.clear()
    assert ids(api.list_models(sort="likes", limit=3)) == ["m6", "m5", "m4"]
    assert len(many.requests) == 2
    many.page = 1000
    many.requests.clear()
    assert ids(api.list_models(sort="likes", limit=3)) == ["m6", "m5", "m4"]
    assert len(many.requests) == 1


def test_cursor_and_link_of_a_page(many):
    url = f"{many.url}/api/models"
    first = httpx.get(url, params={"sort": "lastModified", "direction": -1, "limit": 5, "expand[]": "sha"})
    assert [entry["id"] for entry in first.json()] == ["org0/m0", "org1/m1"]
    assert set(first.json()[0]) == {"_id", "id", "sha"}
    following = first.links["next"]["url"]
    assert following.startswith(f"{many.url}/api/models?")
    cursor = parse_qs(urlsplit(following).query)["cursor"][0]
    assert "m1" not in cursor
    assert "2026" not in cursor
    second = httpx.get(following)
    assert [entry["id"] for entry in second.json()] == ["org0/m2", "org1/m3"]
    assert set(second.json()[0]) == {"_id", "id", "sha"}
    last = httpx.get(httpx.get(second.links["next"]["url"]).links["next"]["url"])
    assert [entry["id"] for entry in last.json()] == ["org0/m6"]
    assert "Link" not in last.headers
    rising = httpx.get(url, params={"sort": "lastModified", "direction": 1})
    assert [entry["id"] for entry in rising.json()] == ["org0/m6", "org1/m5"]
    for wrong in ({"cursor": "x"}, {"sort": "name"}, {"limit": "0"}, {"expand": "size"}, {"inference": "warm"}):
        assert httpx.get(url, params=wrong).status_code == 400


def test_what_an_entry_says(many):
    api = HfApi(endpoint=many.url, token=False)
    wanted = ["sha", "lastModified", "createdAt", "safetensors", "siblings", "cardData", "tags", "gated", "config"]
    entry = {model.id: model for model in api.list_models(expand=wanted, filter="timm")}["org0/m2"]
    assert entry.sha == many.commit_of("org0/m2")
    assert entry.last_modified == datetime(2026, 1, 18, 0, 0, 0, 123000, UTC)
    assert entry.created_at == datetime(2025, 1, 3, tzinfo=UTC)
    assert (entry.safetensors.total, entry.safetensors.parameters) == (11, {"F32": 9, "F16": 2})
    assert {file.rfilename for file in entry.siblings} == {"README.md", "config.json", "model.safetensors"}
    assert (entry.card_data.license, entry.tags, entry.gated) == ("mit", ["x", "t2"], False)
    assert entry.config == {"architectures": ["A2"], "model_type": "vit"}
    assert entry.downloads is None
    basic = next(iter(api.list_models(search="m2")))
    assert (basic.sha, basic.siblings, basic.last_modified, basic.downloads) == (None, None, None, 20)
    assert (basic.library_name, basic.pipeline_tag) == ("timm", "image-classification")
    full = next(iter(api.list_models(search="m2", full=True, cardData=True, fetch_config=True)))
    assert (full.sha, full.author, full.card_data.license) == (entry.sha, "org0", "mit")
    assert full.config["model_type"] == "vit"
    assert api.model_info("org0/m2").last_modified == entry.last_modified
    assert api.model_info("org0/m2", expand=["likes"]).sha is None


def test_dates_follow_the_commits(many):
    api = HfApi(endpoint=many.url, token=False)
    before = api.model_info("org0/m6")
    (many.root / "models" / "org0" / "m6" / "config.json").write_text("{}")
    start = datetime.now(UTC) - timedelta(milliseconds=1)
    newest = next(iter(api.list_models(sort="last_modified", expand=["sha", "lastModified", "createdAt"])))
    assert newest.id == "org0/m6"
    assert newest.sha not in (None, before.sha)
    assert start <= newest.last_modified <= datetime.now(UTC)
    assert newest.created_at == before.created_at
    assert api.model_info("org0/m6").last_modified == newest.last_modified  # and stays so
    shutil.copytree(many.root / "models" / "org0" / "m0", many.root / "models" / "new" / "m8")
    made = next(iter(api.list_models(sort="created_at", expand=["createdAt", "lastModified"])))
    assert made.id == "new/m8"
    assert made.created_at == made.last_modified >= start
    shutil.rmtree(many.root / "models" / "org0" / "m0")
    assert "m0" not in ids(api.list_models())


def test_dates_of_what_was_there_before_are_those_of_its_files(tmp_path):
    folder = tmp_path / "models" / "org" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for path in (folder / "config.json", folder):
        os.utime(path, (1.7e9, 1.7e9))
    with HubServer(tmp_path) as hub:
        info = HfApi(endpoint=hub.url, token=False).model_info("org/old")
    huggingface_hub.close_session()
    assert info.last_modified == info.created_at == datetime.fromtimestamp(1.7e9, UTC)
