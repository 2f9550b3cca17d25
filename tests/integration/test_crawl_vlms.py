"""The crawl of vision-language models: the real command, a real HTTP hub, real towers in real processes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import Reason
from engine.schema import Profile
from engine.store.edge import EdgeStore
from engine.throughput import cpu_threads
from engine.writer import IndexWriter
from indexers.crawl.journal import FILE, Journal
from indexers.crawl.profile_journal import HOME
from indexers.crawl.records import State
from query.cli.main import run
from tests.support.crawling import Crawl, history, wait_for
from tests.support.hub_server import HubServer
from tests.support.tiny_vlm import (
    CLIP_CONFIG,
    COCA_CONFIG,
    N_STEPS,
    TASKS,
    add_photo_task,
    make_task_index,
    put_accuracies,
    save_vlm,
)

pytestmark = pytest.mark.slow

TASK = "zero-shot-image-classification"
CARD = f"---\npipeline_tag: {TASK}\nlibrary_name: open_clip\nlicense: mit\n---\n"
OPTIONS = ("--task", TASK, "--n-steps", str(N_STEPS), "--device", "cpu", "--retry-wait", "0.05s")
GOOD = {"acme/clip": (1, CLIP_CONFIG), "acme/coca": (2, COCA_CONFIG), "zoo/clip": (3, CLIP_CONFIG)}
GIANT = {**CLIP_CONFIG, "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "width": 200_000, "head_width": 1000}}
BAD = {
    "bad/truncated": (State.FAILED, Reason.BROKEN_WEIGHTS),
    "bad/giant": (State.FAILED, Reason.OUT_OF_MEMORY),
    "bad/nan": (State.FAILED, Reason.RUN_FAILED),
    "bad/transformers": (State.REFUSED, Reason.UNSUPPORTED_LIBRARY),
    "bad/pickled": (State.REFUSED, Reason.PICKLE_ONLY),
    "bad/empty": (State.FAILED, Reason.NO_WEIGHTS),
    "bad/config": (State.FAILED, Reason.BROKEN_CONFIG),
    "bad/tower": (State.FAILED, Reason.UNKNOWN_ARCHITECTURE),
}


def save(hub: Path, repo: str, seed: int, config: dict[str, object] = CLIP_CONFIG) -> Path:
    """A repository on the hub; its folder."""
    folder = hub / "models" / repo
    save_vlm(folder, seed, config)
    (folder / "README.md").write_text(CARD)
    return folder


def change_config(folder: Path, **parts: object) -> None:
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def make_hub(hub: Path) -> None:
    for repo, (seed, config) in GOOD.items():
        save(hub, repo, seed, config)
    shutil.copytree(hub / "models/zoo/clip", hub / "models/zoo/twin")
    made = {repo: save(hub, repo, 10 + i) for i, repo in enumerate(BAD)}
    weights = {repo: folder / "open_clip_model.safetensors" for repo, folder in made.items()}
    content = weights["bad/truncated"].read_bytes()
    weights["bad/truncated"].write_bytes(content[: len(content) // 2])
    change_config(made["bad/giant"], model_cfg=GIANT)
    state = load_file(weights["bad/nan"])
    save_file({name: value.fill_(torch.nan) for name, value in state.items()}, weights["bad/nan"])
    (made["bad/transformers"] / "open_clip_config.json").unlink()
    (made["bad/transformers"] / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    weights["bad/transformers"].rename(made["bad/transformers"] / "model.safetensors")
    weights["bad/pickled"].unlink()
    torch.save(state, made["bad/pickled"] / "open_clip_pytorch_model.bin")
    weights["bad/empty"].unlink()
    change_config(made["bad/config"], model_cfg={"embed_dim": 8})
    change_config(made["bad/tower"], model_cfg={**CLIP_CONFIG, "vision_cfg": {"timm_model_name": "no_such_network"}})


def profiles_of(index: Path) -> dict[tuple[str, str], Profile]:
    """All profiles of an index by model and task."""
    with EdgeStore.open(index / "store") as store:
        return {(profile.model, profile.task): profile for profile in store.profiles()}


def same(found: Profile, expected: Profile) -> bool:
    """Whether two profiles are of the same weights and as good as equal."""
    return (found.revision, found.blocks, found.n_steps, found.task_fingerprint, found.parameters) == (
        expected.revision,
        expected.blocks,
        expected.n_steps,
        expected.task_fingerprint,
        expected.parameters,
    ) and np.allclose(
        [*found.conductance, found.completeness_gap], [*expected.conductance, expected.completeness_gap], rtol=1e-6
    )


def profiled_by_hand(index: Path, folders: dict[str, Path]) -> dict[tuple[str, str], Profile]:
    """The profiles that ``hubhound profile`` makes of folders, by the name that a crawl of the hub gives each."""
    names = {f"open_clip:local-dir:{folder}": name for name, folder in folders.items()}
    options = ["--index", str(index), "--n-steps", str(N_STEPS), "--device", "cpu"]
    with cpu_threads(1):  # as the crawl: other numbers of threads add in another order
        assert run(["profile", *names, *options]) == 0
    return {(names[model], task): profile for (model, task), profile in profiles_of(index).items()}


def states(index: Path, repos: list[str]) -> dict[str, tuple[State, str | None]]:
    with Journal(index / HOME / FILE, read_only=True) as journal:
        rows = {repo: [row for row in journal.rows(repo) if row.state is not State.GONE] for repo in repos}
    return {repo: (found[0].state, found[0].reason) for repo, found in rows.items() if len(found) == 1}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    (tmp_path / "hub" / "models").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        yield server


def crawl_of(url: str, folder: Path) -> Crawl:
    index = make_task_index(folder / "index", [f"open_clip:hf-hub:{repo}" for repo in GOOD])
    return Crawl(url, index, folder / "cache", OPTIONS, {"OMP_NUM_THREADS": "1"})


def test_a_hub_is_profiled_exactly_and_followed(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "hub"
    make_hub(root)
    crawl = crawl_of(hub.url, tmp_path)
    assert crawl.run("--model-memory", "2GB") == 0
    found = states(crawl.index, [*GOOD, "zoo/twin", *BAD])
    assert found == {
        **{repo: (State.STORED, None) for repo in (*GOOD, "zoo/twin")},
        **{repo: (state, reason.value) for repo, (state, reason) in BAD.items()},
    }
    # As if profiled one by one, from the same files.
    by_hand = make_task_index(tmp_path / "hand" / "index", ["open_clip:hf-hub:acme/clip"])
    expected = profiled_by_hand(by_hand, {f"open_clip:hf-hub:{repo}": root / "models" / repo for repo in GOOD})
    profiles = profiles_of(crawl.index)
    twin = {("open_clip:hf-hub:zoo/twin", task): expected["open_clip:hf-hub:zoo/clip", task] for task in TASKS}
    assert profiles.keys() == expected.keys() | twin.keys()
    assert [key for key, profile in profiles.items() if not same(profile, (expected | twin)[key])] == []
    # One of the two with the same weights was downloaded, and nothing of what is refused from the names.
    got = [request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert sum("zoo/" in path and path.endswith(".safetensors") for path in got) == 1
    assert not [path for path in got if any(repo in path for repo in ("bad/transformers", "bad/pickled", "bad/empty"))]
    # Images of the samples were shown to these models already: no model is loaded to recommend one for them.
    capsys.readouterr()
    photos = str(tmp_path / "photos" / "cars-0")
    assert (
        run(["recommend", "--images", photos, "--index", str(crawl.index), "--format", "json", "--device", "cpu"]) == 0
    )
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    assert {one["model"] for one in ranking} == {f"open_clip:hf-hub:{repo}" for repo in GOOD}

    # A task more, a model changed, one deleted, a card reworded, the original of a copy changed.
    with IndexWriter(crawl.index) as writer:
        add_photo_task(writer, tmp_path / "photos", "birds", seed=9)
        put_accuracies(writer, {"open_clip:hf-hub:acme/coca": {"birds": 0.5}})
    with IndexWriter(by_hand) as writer:
        add_photo_task(writer, tmp_path / "hand" / "photos", "birds", seed=9)
    save(root, "acme/clip", 21)
    shutil.rmtree(root / "models/zoo/clip")
    (root / "models/zoo/twin/README.md").write_text(CARD + "More words.\n")
    commits = {repo: hub.commit_of(repo) for repo in ("acme/clip", "acme/coca", "zoo/twin")}

    def done(journal: Journal) -> bool:
        stored = {
            (r, row.revision) for r in (*GOOD, "zoo/twin") for row in journal.rows(r) if row.state is State.STORED
        }
        return stored == set(commits.items())

    process = crawl.start("--follow", "--interval", "0.3s", "--full-every", "0s")
    try:
        wait_for(crawl.index / HOME, done, 60, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    folders = {f"open_clip:hf-hub:{repo}": root / "models" / repo for repo in commits}
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
    fresh = make_task_index(tmp_path / "again" / "index", ["open_clip:hf-hub:acme/clip"])
    with IndexWriter(fresh) as writer:
        add_photo_task(writer, tmp_path / "again" / "photos", "birds", seed=9)
    expected = profiled_by_hand(fresh, folders)
    profiles = profiles_of(crawl.index)
    assert profiles.keys() == expected.keys()
    assert len(profiles) == 4 * len(commits)
    assert [key for key, profile in profiles.items() if not same(profile, expected[key])] == []
    # What was there already of the same weights was not computed again.
    first = min(profile.profiled_at for (model, task), profile in profiles.items() if task == "birds")
    assert all(profiles["open_clip:hf-hub:acme/coca", task].profiled_at < first for task in TASKS)
    assert not list((crawl.index / HOME / "crawl" / "downloads").glob("*"))


def test_kills_lose_nothing_and_profile_nothing_twice(hub: HubServer, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    repos = [f"org/clip{i}" for i in range(6)]
    for i, repo in enumerate(repos):
        save(root, repo, i)
    crawl = crawl_of(hub.url, tmp_path)
    hub.latency_s = 0.03
    process = crawl.start()
    try:
        wait_for(crawl.index / HOME, lambda journal: journal.counts()[State.STORED] >= 2, 60, process)
    finally:
        process.kill()
        process.wait()
    with Journal(crawl.index / HOME / FILE, read_only=True) as journal:
        assert journal.counts()[State.STORED] < len(repos)
    assert crawl.run() == 0
    assert states(crawl.index, repos) == dict.fromkeys(repos, (State.STORED, None))
    assert history(crawl.index / HOME).probed_again == ()
    assert profiles_of(crawl.index).keys() == {(f"open_clip:hf-hub:{repo}", task) for repo in repos for task in TASKS}


def test_a_folder_is_profiled_under_the_names_that_profile_gives(tmp_path: Path) -> None:
    """Also of a pickle, where pickles are allowed; a link to elsewhere is not followed."""
    folder = tmp_path / "mirror" / "org"
    save_vlm(folder / "clip", 1)
    save_vlm(folder / "pickled", 2)
    safe = folder / "pickled" / "open_clip_model.safetensors"
    torch.save(load_file(safe), folder / "pickled" / "open_clip_pytorch_model.bin")
    safe.unlink()
    shutil.copytree(folder / "clip", folder / "link")
    (folder / "link" / "open_clip_model.safetensors").unlink()
    (folder / "link" / "open_clip_model.safetensors").symlink_to(folder / "clip" / "open_clip_model.safetensors")
    crawl = crawl_of("http://127.0.0.1:9", tmp_path)
    assert crawl.run("--source", str(tmp_path / "mirror"), "--allow-pickle") == 0
    assert states(crawl.index, ["org/clip", "org/pickled", "org/link"]) == {
        "org/clip": (State.STORED, None),
        "org/pickled": (State.STORED, None),
        "org/link": (State.FAILED, Reason.BROKEN_WEIGHTS.value),
    }
    by_hand = make_task_index(tmp_path / "hand" / "index", ["open_clip:hf-hub:acme/clip"])
    names = {f"open_clip:local-dir:{folder / name}": folder / name for name in ("clip", "pickled")}
    expected = profiled_by_hand(by_hand, names)
    profiles = profiles_of(crawl.index)
    assert profiles.keys() == expected.keys()
    assert [key for key, profile in profiles.items() if not same(profile, expected[key])] == []
