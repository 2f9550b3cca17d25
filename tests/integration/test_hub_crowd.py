"""The crowded hub: every good repository loads and answers in its own way, every bad one is bad in the way it says."""

import json
import re
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from engine.errors import ModelError, ModelRefusedError, Reason
from engine.schema import Model
from engine.writer import IndexWriter
from indexers import hub as hub_module
from indexers.crawl.records import State
from indexers.keeping import describe_answers
from indexers.loaders import load
from indexers.sources import ModelSource, fetch, revision_of
from tests.support.hub_bad_models import BAD_KINDS, PASSING_KINDS
from tests.support.hub_bases import FEWEST_CLASSES, MOST_CLASSES, SIDE, bases
from tests.support.hub_content import Repositories
from tests.support.hub_crowd import build_crowd
from tests.support.hub_server import HubServer
from tests.support.small_index import N, make_index

KINDS = {**BAD_KINDS, **PASSING_KINDS}
COPIES = 3


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return build_crowd(tmp_path_factory.mktemp("crowd"), good=12, bad=len(KINDS), seed=4, kinds=KINDS, copies=COPIES)


@pytest.fixture(scope="module")
def served(crowd):
    with HubServer(crowd.root) as server:
        crowd.tell(server)
        yield server
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def environment(served, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub_module, "RETRY_WAITS_S", (0.0,))


def load_from_hub(repo, tmp_path, revision=None):
    source = ModelSource(repo)
    revision = revision or revision_of(source)[0]
    return load(fetch(source, revision, cache=tmp_path / "cache"))


def answers(model):
    """Answers to images of noise, coarse and fine, ``[images, outputs]``."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(N, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear") * 255
    with torch.inference_mode():
        return model.forward(model.module, model.preprocessing.normalise(pixels.to(torch.uint8))).numpy()


def test_good_ones_are_cheap_and_answer_in_their_own_ways(crowd, tmp_path):
    seen, preprocessings, kinds = [], set(), set()
    originals = [repo for repo in crowd.good if repo not in crowd.copies]
    assert len(originals) == 12
    for repo in originals:
        model = load_from_hub(repo, tmp_path)
        assert model.preprocessing.size == (SIDE, SIDE)
        assert model.parameters < 50_000
        assert model.labels == crowd.expected[repo].labels
        assert FEWEST_CLASSES <= len(model.labels) <= MOST_CLASSES
        preprocessings.add(model.preprocessing.key)
        kinds.add((model.library, model.architecture))
        outputs = answers(model)
        assert outputs.shape == (N, len(model.labels))
        spread = outputs.std(axis=0)
        assert spread.min() > 0.02
        assert spread.max() < 50
        seen.extend(column for column in ((outputs - outputs.mean(axis=0)) / spread).T)
    assert len(kinds) == len(bases()) == 6
    assert len(preprocessings) == 2
    alike = np.corrcoef(np.stack(seen)) - np.eye(len(seen))
    assert np.abs(alike).max() < 0.9999


def test_copies_have_the_weights_of_their_originals(crowd, served, tmp_path):
    assert len(crowd.copies) == COPIES
    api = HfApi(endpoint=served.url, token=False)

    def sha256(repo):
        files = api.model_info(repo, files_metadata=True).siblings
        return next(file.lfs.sha256 for file in files if file.rfilename == "model.safetensors")

    for copy, original in crowd.copies.items():
        assert copy != original
        assert sha256(copy) == sha256(original)
        assert served.commit_of(copy) != served.commit_of(original)
        one, other = load_from_hub(copy, tmp_path), load_from_hub(original, tmp_path)
        np.testing.assert_array_equal(answers(one), answers(other))
        assert one.labels == crowd.expected[copy].labels != other.labels


def test_there_are_enough_kinds_and_reasons():
    assert len(BAD_KINDS) >= 18
    assert {kind.reason for kind in KINDS.values()} >= {
        *(Reason.NOT_A_CLASSIFIER, Reason.REMOTE_CODE, Reason.PICKLE_ONLY, Reason.TOO_LARGE, Reason.GATED),
        *(Reason.MISSING, Reason.NO_WEIGHTS, Reason.BROKEN_WEIGHTS, Reason.BROKEN_CONFIG, Reason.UNKNOWN_ARCHITECTURE),
        *(Reason.BAD_PREPROCESSING, Reason.NO_USABLE_OUTPUT, Reason.UNSUPPORTED_LIBRARY, Reason.CHECKSUM),
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_one_is_bad_in_the_way_it_says(name, crowd, served, tmp_path):
    (repo,) = (repo for repo, kind in crowd.kinds.items() if kind.name == name)
    expected, kind = crowd.expected[repo], crowd.kinds[repo]
    listed = {entry.id: entry.sha for entry in HfApi(endpoint=served.url, token=False).list_models(full=True)}
    assert re.fullmatch("[0-9a-f]{40}", listed[repo])  # a listing does not show what is wrong
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        model = load_from_hub(repo, tmp_path, listed[repo])
        assert kind.loads
        make_index(tmp_path / "index")
        with IndexWriter(tmp_path / "index") as writer:
            describe_answers(writer, Model(repo=repo, revision=listed[repo]), model.labels, answers(model))
    assert caught.value.reason is expected.reason, caught.value
    assert (expected.state is State.REFUSED) == isinstance(caught.value, ModelRefusedError)
    assert caught.value.revision == listed[repo]
    assert time.monotonic() - start < 20
    assert crowd.canaries == []


def test_a_pickle_that_is_loaded_leaves_its_mark(crowd):
    import pickle

    (repo,) = (repo for repo, kind in crowd.kinds.items() if kind.name == "pickle")
    pickle.loads((crowd.folder(repo) / "pytorch_model.bin").read_bytes())  # noqa: S301
    (mark,) = crowd.canaries
    mark.unlink()


def test_a_crowd_that_changes(tmp_path):
    crowd = build_crowd(tmp_path, good=8, bad=2, seed=1, copies=2)
    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=False)

        def listed():
            return {model.id: model.sha for model in api.list_models(full=True)}

        crowd.tell(hub)
        before = listed()
        assert set(before) == set(crowd.expected) == {*crowd.good, *crowd.bad}
        assert (len(crowd.good), len(crowd.bad)) == (10, 2)
        copied = next(iter(crowd.copies.values()))
        copies = [copy for copy, original in crowd.copies.items() if original == copied]
        single = [repo for repo in crowd.good if repo not in crowd.copies and repo not in crowd.copies.values()]
        crowd.change(single[0])
        crowd.delete(single[1])
        crowd.delete(copied)
        made = crowd.add()
        spoilt = crowd.spoil(BAD_KINDS["no_weights"])
        after = listed()
        assert set(after) == set(crowd.expected) == set(before) - {single[1], copied} | {made, spoilt}
        assert {repo for repo in before if repo in after and before[repo] != after[repo]} == {single[0]}
        newest = [model.id for model in api.list_models(sort="last_modified", limit=3)]
        assert set(newest) == {single[0], made, spoilt}
        old = api.model_info(single[0], revision=before[single[0]], files_metadata=True)
        assert old.sha == before[single[0]]  # who knows the old commit can still have it
        path = api.hf_hub_download(single[0], "config.json", revision=old.sha, cache_dir=tmp_path / "cache")
        labels = json.loads(Path(path).read_text())["label_names"]
        assert len(labels) >= FEWEST_CLASSES
        assert tuple(labels) != crowd.expected[single[0]].labels
        crowd.reword(made)
        assert listed()[made] != after[made]
        assert copies[0] not in crowd.copies  # it is an original now
        assert all(crowd.copies[copy] == copies[0] for copy in copies[1:])
    huggingface_hub.close_session()


def test_the_same_seed_makes_the_same_crowd(tmp_path):
    def commits(name, seed):
        crowd = build_crowd(tmp_path / name, good=6, bad=3, seed=seed)
        repositories = Repositories(crowd.root)
        return {repo: repositories.revision("models", repo, "main").commit for repo in crowd.good}

    one = commits("one", 1)
    assert one == commits("again", 1)
    other = commits("other", 2)
    assert set(one) == set(other)
    assert all(one[repo] != other[repo] for repo in one)
