"""Models on a Hub, end to end: named, looked at, fetched and loaded over real HTTP."""

import errno
import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from engine.errors import ModelError, ModelFailedError, ModelRefusedError, Reason, StoreError
from indexers import hub as hub_module
from indexers.loaders import load
from indexers.sources import ModelSource, expand, fetch, revision_of
from tests.support.hub_server import HubServer
from tests.support.tiny_models import ANIMALS, VIT, change_json, save_transformers, timm_model, vit_model, write_json

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    models = tmp_path / "hub" / "models"
    vit_model(models / "org" / "vit")
    timm_model(models / "org" / "timm")
    for folder in (models / "org" / "vit", models / "org" / "timm"):
        # What lies in many repositories and no loader needs.
        for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx", "flax_model.msgpack", "training_args.bin"):
            (folder / name).write_bytes(b"x" * 5000)
        (folder / "runs").mkdir()
        (folder / "runs" / "model.safetensors").write_bytes(b"x" * 5000)
    monkeypatch.setattr(hub_module, "RETRY_WAITS_S", (0.0, 0.0))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


def get(name, tmp_path, **how):
    (source,) = expand([name])
    revision, _ = revision_of(source)
    return fetch(source, revision, cache=tmp_path / "cache", **how)


def refused(name, tmp_path, reason, *parts, **how):
    with pytest.raises(ModelError) as caught:
        get(name, tmp_path, **how)
    error = caught.value
    assert error.reason is reason, error
    assert error.model == name.partition("@")[0]
    assert "\n" not in str(error)
    for part in parts:
        assert part in error.detail
    return error


@pytest.mark.parametrize(
    "name, files",
    [
        ("org/vit", ["config.json", "preprocessor_config.json", "model.safetensors"]),
        ("org/timm", ["config.json", "model.safetensors"]),
    ],
)
def test_from_its_name_to_a_model_that_runs(hub, tmp_path, name, files):
    hub.facts[name] = {"downloads": 12, "likes": 3}
    steps = []
    (source,) = expand([name])
    revision, metadata = revision_of(source)
    assert revision == hub.commit_of(name)
    assert (metadata.licence, metadata.tags, metadata.downloads, metadata.likes) == ("apache-2.0", ("tiny",), 12, 3)
    assert hub.downloaded() == []
    repository = fetch(source, revision, cache=tmp_path / "cache", progress=lambda *step: steps.append(step))
    assert hub.downloaded() == files
    assert sorted(os.listdir(repository.folder)) == sorted(files)
    size = (hub.root / "models" / name / "model.safetensors").stat().st_size
    assert steps[-1] == (size, size)
    assert {total for _, total in steps} == {size}
    model = load(repository)
    assert (model.repo, model.revision, model.licence, model.downloads) == (name, revision, "apache-2.0", 12)
    assert model.labels == tuple(ANIMALS)
    # Nothing of it a second time.
    assert fetch(source, revision, cache=tmp_path / "cache") == repository
    assert hub.downloaded() == files


def test_revisions(hub, tmp_path):
    old = hub.commit_of("org/vit")
    timm_model(hub.root / "models" / "org" / "vit@v1")
    assert load(get("org/vit@v1", tmp_path)).library == "timm"
    assert get(f"org/vit@{old}", tmp_path).revision == old
    change_json(hub.root / "models" / "org" / "vit" / "config.json", note="changed")
    assert revision_of(ModelSource("org/vit"))[0] != old
    error = refused("org/vit@v2", tmp_path, Reason.MISSING, "no such revision")
    assert isinstance(error, ModelFailedError)
    with pytest.raises(ModelFailedError) as caught:
        fetch(ModelSource("org/vit"), old, cache=tmp_path / "cache")
    assert (caught.value.reason, caught.value.revision) == (Reason.MISSING, old)


def test_shards(hub, tmp_path):
    folder = save_transformers(
        hub.root / "models" / "org" / "sharded",
        ViTForImageClassification,
        ViTConfig(**VIT, num_labels=5),
        max_shard_size="10KB",
    )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    repository = get("org/sharded", tmp_path)
    assert sorted(name for name in hub.downloaded() if name.endswith(".safetensors")) == shards
    assert load(repository).parameters > 0
    refused("org/sharded", tmp_path, Reason.TOO_LARGE, max_size_bytes=20_000)
    (folder / shards[0]).unlink()
    refused("org/sharded", tmp_path, Reason.BROKEN_WEIGHTS, shards[0])


def test_pickles(hub, tmp_path):
    folder = hub.root / "models" / "org" / "vit"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.onnx").unlink()  # which would be preferred
    error = refused("org/vit", tmp_path, Reason.PICKLE_ONLY, "--allow-pickle")
    assert isinstance(error, ModelRefusedError)
    assert hub.downloaded() == ["config.json"]
    repository = get("org/vit", tmp_path, allow_pickle=True)
    assert "pytorch_model.bin" in hub.downloaded()
    assert load(repository, allow_pickle=True).labels == tuple(ANIMALS)


def test_what_is_refused_without_downloading_it(hub, tmp_path):
    vit = hub.root / "models" / "org" / "vit"
    config = vit / "config.json"
    refused("org/vit", tmp_path, Reason.TOO_LARGE, "--max-size", max_size_bytes=1000)
    change_json(config, architectures=["ViTModel"])
    refused("org/vit", tmp_path, Reason.NOT_A_CLASSIFIER, "ViTModel")
    mapped = {"AutoModelForImageClassification": "code.Model"}
    change_json(config, architectures=["MyForImageClassification"], model_type="mine", auto_map=mapped)
    refused("org/vit", tmp_path, Reason.REMOTE_CODE, "never run")
    config.write_text("{")
    refused("org/vit", tmp_path, Reason.BROKEN_CONFIG)
    write_json(config, {"some": "thing"})
    refused("org/vit", tmp_path, Reason.UNSUPPORTED_LIBRARY)
    config.write_bytes(b" " * (33 * 2**20))
    refused("org/vit", tmp_path, Reason.BROKEN_CONFIG, "32 MiB")
    config.unlink()
    refused("org/vit", tmp_path, Reason.UNSUPPORTED_LIBRARY, "no config.json")
    hub.facts["org/vit"] = {"library_name": "keras"}
    refused("org/vit", tmp_path, Reason.UNSUPPORTED_LIBRARY, "a keras model")
    timm = hub.root / "models" / "org" / "timm"
    for path in timm.glob("*model*"):
        path.unlink()
    refused("org/timm", tmp_path, Reason.NO_WEIGHTS)
    change_json(timm / "config.json", num_classes=0)
    refused("org/timm", tmp_path, Reason.NOT_A_CLASSIFIER)
    assert set(hub.downloaded()) == {"config.json"}


def test_without_the_preprocessing_nothing_is_downloaded(hub, tmp_path):
    (hub.root / "models" / "org" / "vit" / "preprocessor_config.json").unlink()
    refused("org/vit", tmp_path, Reason.BAD_PREPROCESSING)
    assert hub.downloaded() == ["config.json"]


def test_gated_private_and_missing(hub, tmp_path, monkeypatch):
    hub.gated.add("org/vit")
    error = refused("org/vit", tmp_path, Reason.GATED, "accept their terms", "HF_TOKEN")
    assert isinstance(error, ModelRefusedError)
    hub.private.add("org/timm")
    error = refused("org/timm", tmp_path, Reason.MISSING, "private", "HF_TOKEN")
    assert isinstance(error, ModelFailedError)
    refused("org/nothing", tmp_path, Reason.MISSING, "check its name")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert load(get("org/vit", tmp_path)).labels == tuple(ANIMALS)
    assert load(get("org/timm", tmp_path)).labels == tuple(ANIMALS)


def test_access_denied(hub, tmp_path):
    with hub.failing("/api/models/org/vit", status=403):
        refused("org/vit", tmp_path, Reason.GATED, "403")
    with hub.failing("/resolve/", status=403, times=-1):
        refused("org/vit", tmp_path, Reason.GATED, "403")


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 500}, {"status": 429}, {"status": 0}])
def test_what_passes_is_tried_again(hub, tmp_path, fault):
    with hub.failing("/api/models/org/vit", times=2, **fault):
        assert get("org/vit", tmp_path).revision == hub.commit_of("org/vit")


def test_the_wait_that_the_hub_asks_for(hub, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("indexers.hub_errors.time.sleep", waits.append)
    with hub.failing("/api/models/org/vit", status=429, times=2, headers={"Retry-After": "7"}):
        get("org/vit", tmp_path)
    assert [wait for wait in waits if wait] == [7.0, 7.0]
    with hub.failing("/api/models/org/vit", status=429, headers={"Retry-After": "3600"}):
        refused("org/vit", tmp_path, Reason.NETWORK, "429")
    with hub.failing("/api/models/org/vit", status=503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}):
        assert get("org/vit", tmp_path)


def test_what_does_not_pass(hub, tmp_path):
    before = len(hub.requests)
    with hub.failing("/api/models/org/vit", status=504, times=-1):
        error = refused("org/vit", tmp_path, Reason.NETWORK, "504", "try again later")
    assert isinstance(error, ModelFailedError)
    assert len(hub.requests) - before == 3
    before = len(hub.requests)
    refused("org/nothing", tmp_path, Reason.MISSING)
    assert len(hub.requests) - before == 1


def test_a_connection_that_breaks_during_the_download(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with hub.failing("model.safetensors", method="GET", cut=100):
        assert load(get("org/vit", tmp_path)).labels == tuple(ANIMALS)
    with hub.failing("/resolve/.*/model.safetensors", method="GET", cut=100, times=-1):
        refused("org/timm", tmp_path, Reason.NETWORK)
    # What was not finished is not taken for it the next time.
    assert load(get("org/timm", tmp_path)).labels == tuple(ANIMALS)


def test_a_repository_that_disappears(hub, tmp_path):
    source = ModelSource("org/vit")
    revision, _ = revision_of(source)
    shutil.rmtree(hub.root / "models" / "org" / "vit")
    with pytest.raises(ModelFailedError) as caught:
        fetch(source, revision, cache=tmp_path / "cache")
    assert (caught.value.reason, caught.value.revision) == (Reason.MISSING, revision)


def test_no_hub_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "RETRY_WAITS_S", ())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("org/vit", tmp_path, Reason.NETWORK, "try again later")


def test_working_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("org/vit", tmp_path, Reason.NETWORK, "HF_HUB_OFFLINE is set")


def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cache"))

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", full)
    with pytest.raises(StoreError, match="No space left on device: make room"):
        get("org/vit", tmp_path)


def test_a_program_of_its_own_that_knows_only_the_environment(hub, tmp_path):
    hub.private.add("org/timm")
    code = (
        "import json, sys\n"
        "from indexers.sources import expand, fetch, revision_of\n"
        "(source,) = expand(['org/timm'])\n"
        "repository = fetch(source, revision_of(source)[0])\n"
        "heavy = [name for name in ('torch', 'timm', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([str(repository.folder), repository.revision, heavy]))"
    )
    home = tmp_path / "home"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": hub.token}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    folder, revision, heavy = json.loads(result.stdout)
    assert folder.startswith(str(home / "hub"))
    assert revision == hub.commit_of("org/timm")
    assert heavy == []
    assert result.stderr == ""
