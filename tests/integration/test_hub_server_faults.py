"""What the tests' own Hub does wrong, as huggingface_hub and a plain client see it."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import _http

from tests.support.hub_faults import RandomFaults
from tests.support.hub_server import HubServer

BIG = os.urandom(3_000_000)


@pytest.fixture
def hub(tmp_path):
    for number in range(6):
        folder = tmp_path / "hub" / "models" / "org" / f"m{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"number": number}))
    (tmp_path / "hub" / "models" / "org" / "m0" / "model.safetensors").write_bytes(BIG)
    with HubServer(tmp_path / "hub", page=2) as server:
        for number in range(6):
            server.touch(f"org/m{number}", modified=f"2026-01-{20 - number}T00:00:00.000Z")
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def waits(monkeypatch):
    """How long huggingface_hub waits before it asks again; it does not."""
    waited = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=waited.append, time=time.time))
    return waited


def listed(api, **what):
    return [model.id for model in api.list_models(sort="last_modified", **what)]


EVERY = [f"org/m{number}" for number in range(6)]


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_status_in_the_middle_of_a_listing(hub, api, waits, status):
    headers = {"Retry-After": "7"} if status == 429 else {}
    with hub.failing("^/api/models$", page=2, status=status, headers=headers):
        assert listed(api) == EVERY
    assert waits == [8.0 if status == 429 else 1]  # it adds a second of its own
    assert len(hub.requests) == 4
    with hub.failing("^/api/models$", page=3, status=status, times=-1):
        with pytest.raises(HfHubHTTPError) as caught:
            listed(api)
        assert caught.value.response.status_code == status


def test_a_fault_that_lets_some_pass(hub):
    with hub.failing("/api/models/org/m1", status=500, skip=2, times=1):
        statuses = [httpx.get(f"{hub.url}/api/models/org/m1").status_code for _ in range(4)]
    assert statuses == [200, 200, 500, 200]


def test_latency(hub):
    hub.latency_s = 0.15
    start = time.monotonic()
    threads = [threading.Thread(target=httpx.get, args=(f"{hub.url}/api/models/org/m1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.15 <= time.monotonic() - start < 8 * 0.15  # for each, not one after another


def test_a_reset_and_a_truncated_body(hub, tmp_path):
    url = f"{hub.url}/org/m0/resolve/main/model.safetensors"
    with hub.failing("/resolve/", reset=True), pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)) as caught:
        httpx.get(url)
    assert "reset" in str(caught.value)
    with hub.failing("/resolve/", cut_share=0.5, reset=True), pytest.raises(httpx.ReadError, match="reset"):
        httpx.get(url)
    with hub.failing("/resolve/", cut=2_000_000), httpx.stream("GET", url) as response:
        assert response.headers["Content-Length"] == str(len(BIG))
        got = b""
        with pytest.raises(httpx.RemoteProtocolError, match="2000000"):
            for chunk in response.iter_raw():
                got += chunk
        assert got == BIG[:2_000_000]
    with hub.failing("^/api/models$", cut=10), pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{hub.url}/api/models")
    assert httpx.get(url).content == BIG


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_resumes_where_it_broke(hub, api, tmp_path, reset, monkeypatch):
    # huggingface_hub writes ten MiB at a time, unless a crawl in this process has made it write what comes, and what it
    # has written it does not ask for again in the same call.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10 * 2**20)
    content = os.urandom(12_000_000)
    (hub.root / "models" / "org" / "m1" / "model.safetensors").write_bytes(content)
    with hub.failing("/resolve/", method="GET", cut=11_000_000, reset=reset):
        try:
            path = api.hf_hub_download("org/m1", "model.safetensors", cache_dir=tmp_path / "cache")
        except Exception as error:  # of a reset it tells its caller, and begins anew
            assert reset
            assert "reset" in str(error)
            path = api.hf_hub_download("org/m1", "model.safetensors", cache_dir=tmp_path / "cache")
    with open(path, "rb") as stream:
        assert stream.read() == content
    ranges = [request.range for request in hub.requests if request.method == "GET"]
    assert ranges == [None, None if reset else f"bytes={10 * 2**20}-"]
    rest = httpx.get(f"{hub.url}/org/m1/resolve/main/model.safetensors", headers={"Range": "bytes=11999990-"})
    assert (rest.status_code, rest.content) == (206, content[-10:])
    answer = httpx.head(f"{hub.url}/org/m1/resolve/main/model.safetensors", headers={"Range": "bytes=10-19"})
    assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["X-Repo-Commit"] == hub.commit_of("org/m1")
    assert answer.headers["Content-Range"] == f"bytes 10-19/{len(content)}"


def test_a_checksum_that_is_wrong_and_a_content_that_is(hub, api, tmp_path):
    right = hashlib.sha256(BIG).hexdigest()
    commit = hub.commit_of("org/m0")

    def stated():
        files = api.model_info("org/m0", files_metadata=True).siblings
        sha256 = {file.rfilename: file.lfs.sha256 for file in files if file.lfs}["model.safetensors"]
        assert api.get_paths_info("org/m0", ["model.safetensors"])[0].lfs.sha256 == sha256
        return sha256

    def got(name):
        path = api.hf_hub_download("org/m0", "model.safetensors", cache_dir=tmp_path / name)
        with open(path, "rb") as stream:
            return stream.read()

    hub.lie("org/m0", "model.safetensors", sha256="0" * 64)
    assert stated() == "0" * 64
    assert got("lie") == BIG
    hub.corrupt("org/m0", "model.safetensors")
    assert stated() == right
    content = got("corrupt")
    assert len(content) == len(BIG)
    assert [at for at in range(len(BIG)) if content[at] != BIG[at]] == [len(BIG) // 2]
    assert hub.commit_of("org/m0") == commit
    hub.lie("org/m0", "model.safetensors", size=10**12)
    assert api.model_info("org/m0", files_metadata=True).siblings[1].size == 10**12
    assert int(httpx.head(f"{hub.url}/org/m0/resolve/main/model.safetensors").headers["X-Linked-Size"]) == 10**12


def test_a_listing_that_changes_between_pages(hub, api):
    models = hub.root / "models" / "org"

    def change(page):
        if page == 2:
            (models / "m4" / "config.json").write_text('{"new": true}')  # moves to the front, which has been listed
            shutil.rmtree(models / "m2")
            shutil.copytree(models / "m1", models / "m9")

    hub.before_page = change
    assert listed(api) == ["org/m0", "org/m1", "org/m3", "org/m5"]
    hub.before_page = None
    assert set(listed(api)[:2]) == {"org/m4", "org/m9"}
    assert listed(api)[2:] == ["org/m0", "org/m1", "org/m3", "org/m5"]


@pytest.mark.parametrize("status", [400, 410])
def test_a_cursor_expires(hub, api, status):
    pages = api.list_models(sort="last_modified")
    seen = [next(pages).id, next(pages).id]
    hub.expire_cursors(status)
    with pytest.raises(HfHubHTTPError) as caught:
        next(pages)
    assert caught.value.response.status_code == status
    assert seen == EVERY[:2]
    assert listed(api) == EVERY  # new cursors are good


def test_a_repository_that_is_gone_when_it_is_fetched(hub, api, tmp_path):
    hub.vanished = {"org/m1": 404, "org/m2": 401}
    assert listed(api) == EVERY
    for repo, status in hub.vanished.items():
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info(repo)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(repo, "config.json", cache_dir=tmp_path / "cache")


def test_a_new_name(hub, api, tmp_path):
    hub.renamed["old/name"] = "org/m0"
    commit = hub.commit_of("org/m0")
    assert api.model_info("old/name", files_metadata=True).id == "org/m0"
    assert api.model_info("old/name", revision=commit).siblings[1].rfilename == "model.safetensors"
    assert api.get_paths_info("old/name", ["config.json"])[0].path == "config.json"
    folder = api.snapshot_download("old/name", revision=commit, cache_dir=tmp_path / "cache")
    with open(os.path.join(folder, "model.safetensors"), "rb") as stream:
        assert stream.read() == BIG
    answer = httpx.get(f"{hub.url}/api/models/old/name", params={"blobs": "true"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "/api/models/org/m0?blobs=true")


def test_a_redirect_loop(hub, api, tmp_path):
    hub.renamed |= {"org/m1": "org/m2", "org/m2": "org/m1"}
    with pytest.raises(Exception, match="redirects"):
        api.model_info("org/m1")
    with pytest.raises(Exception, match=r"redirects|Hub") as caught:
        api.hf_hub_download("org/m2", "config.json", cache_dir=tmp_path / "cache")
    assert "TooManyRedirects" in (type(caught.value).__name__, type(caught.value.__cause__).__name__)


def test_hostile_names_and_symbolic_links(hub, api, tmp_path):
    hub.repositories.aliases["org/m1"] = {"../../../escape.txt": "config.json", "/etc/escape": "config.json"}
    (hub.root / "models" / "org" / "m1" / "link.json").symlink_to("/etc/hostname")
    names = {file.rfilename for file in api.model_info("org/m1").siblings}
    assert names == {"config.json", "link.json", "../../../escape.txt", "/etc/escape"}
    assert {entry.path for entry in api.list_repo_tree("org/m1")} >= {"config.json", "link.json"}
    path = api.hf_hub_download("org/m1", "link.json", cache_dir=tmp_path / "cache")
    with open(path) as stream:
        assert stream.read() == "/etc/hostname"  # git keeps where it points to


def outcome(client, url):
    try:
        answer = client.get(url)
    except httpx.TransportError as error:
        return "reset" if "reset" in str(error) else "broken"
    return answer.status_code


def test_random_faults(hub):
    given = hub.random_faults(share=0.2, seed=3, retry_after_s=2).given
    with httpx.Client() as client:
        seen = Counter(outcome(client, f"{hub.url}/api/models/org/m{number % 6}") for number in range(500))
        assert sum(given.values()) == 500 - seen[200]
        assert 60 < sum(given.values()) < 145  # 100 are expected, with a standard deviation of 9
        assert set(given) == set(RandomFaults.WITH_BODY)
        assert all(seen[status] == given[str(status)] for status in (429, 500, 503, 504))
        assert seen["reset"] == given["reset before answer"] + given["reset in body"]
        assert seen["broken"] == given["truncated body"]
        hub.random_faults(share=0)
        assert all(outcome(client, f"{hub.url}/api/models/org/m1") == 200 for _ in range(50))


def test_the_same_seed_gives_the_same_faults():
    def kinds(seed):
        faults = RandomFaults(0.5, seed, 3)
        taken = [faults.take(method) for method in ["GET", "HEAD"] * 100]
        return [fault and (fault.status, fault.reset, fault.cut_share, dict(fault.headers)) for fault in taken]

    assert kinds(1) == kinds(1) != kinds(2)
    heads = [fault for fault in kinds(1)[1::2] if fault]
    assert heads
    assert all(cut is None for _, _, cut, _ in heads)  # without a body there is nothing to cut
    assert all(headers == {"Retry-After": "3"} for status, _, _, headers in heads if status == 429)


def test_a_patient_client_gets_everything_through_random_faults(hub, api, waits, tmp_path):
    given = hub.random_faults(share=0.1, seed=5).given
    for attempt in range(12):
        try:
            assert listed(api) == EVERY
            api.snapshot_download("org/m0", cache_dir=tmp_path / str(attempt), max_workers=1)
        except Exception as error:  # what huggingface_hub itself gives up on
            assert not isinstance(error, AssertionError)
    assert sum(given.values()) > 5
    hub.random_faults(share=0)
    folder = api.snapshot_download("org/m0", cache_dir=tmp_path / "cache")
    with open(os.path.join(folder, "model.safetensors"), "rb") as stream:
        assert stream.read() == BIG
