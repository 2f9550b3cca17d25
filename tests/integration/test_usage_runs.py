"""The code that a page gives out is run as it is, against the tests' own Hub, and says what the model says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.probes import open_image
from engine.schema import Model
from indexers.loaders import load
from query.usage import usage
from tests.support.hub_server import HubServer
from tests.support.tiny_models import change_json, repository, timm_model, vit_model
from tests.support.tiny_onnx import onnx_model

LABEL = 'it\'s a "dog"\\ {x}'


def in_half_precision(folder: Path) -> None:
    """As many repositories are, and as transformers then loads them unless it is told."""
    weights = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    change_json(folder / "config.json", dtype="float16")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("usage")
    models = root / "models" / "org"
    timm_model(models / "timm.tiny")
    timm_model(models / "one", classes=1)
    vit_model(models / "vit")
    vit_model(models / "several", problem_type="multi_label_classification")
    in_half_precision(vit_model(models / "half"))
    onnx_model(models / "graph")
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neither square nor smooth, and not in the mode that models take."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 97, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    folder = tmp_path_factory.mktemp("photo")
    Image.fromarray(pixels).convert("RGB").save(folder / "photo.jpg", quality=95)
    return folder / "photo.jpg"


def answers(folder: Path, photo: Path) -> torch.Tensor:
    """The model's own answer, as it is indexed."""
    loaded = load(repository(folder))
    pixels = loaded.preprocessing.to_pixels(open_image(photo))
    with torch.inference_mode():
        return loaded.forward(loaded.module, loaded.preprocessing.normalise(pixels[None]))[0].double()


PROGRAM = """
import contextlib, io, json, sys
printed = []
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "usage", "exec"), {})
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""

CASES: dict[str, tuple[str, str, int, dict[str, object], Callable[[torch.Tensor], torch.Tensor]]] = {
    "timm": ("timm.tiny", "timm", 5, {}, lambda answer: answer.softmax(-1)[3]),
    "timm, one output": ("one", "timm", 1, {}, lambda answer: answer.sigmoid()[0]),
    "transformers": ("vit", "transformers", 5, {}, lambda answer: answer.softmax(-1)[3]),
    "transformers, half precision": ("half", "transformers", 5, {}, lambda answer: answer.softmax(-1)[3]),
    "transformers, several labels": ("several", "transformers", 5, {}, lambda answer: answer.sigmoid()[3]),
    # This one does not answer probabilities: that its plain answer is printed shows that nothing is done to it.
    "probabilities": ("vit", "transformers", 5, {"probabilities": True}, lambda answer: answer[3]),
    "onnx": ("graph", "onnx", 5, {}, lambda answer: answer.softmax(-1)[3]),
}
"""Repository, library, outputs, further facts, and what output 3, or the only one, means."""


@pytest.fixture(scope="module")
def printed(hub: HubServer, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the code of each case prints; all run in one child where the photo lies."""
    codes = {}
    for case, (name, library, outputs, facts, _) in CASES.items():
        repo = f"org/{name}"
        record = {"repo": repo, "revision": hub.commit_of(repo), "outputs": outputs, "library": library, **facts}
        codes[case] = usage(Model.model_validate(record), min(3, outputs - 1), LABEL).code
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    home = str(tmp_path_factory.mktemp("home"))
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(codes.values())),
        cwd=photo.parent,
        env={**kept, **settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(zip(codes, json.loads(ran.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_code_says_what_the_model_says(hub: HubServer, photo: Path, printed: dict[str, str], case: str) -> None:
    name, _, _, _, probability = CASES[case]
    expected = float(probability(answers(hub.root / "models" / "org" / name, photo)))
    label, _, value = printed[case].rpartition(": ")
    assert label == LABEL
    assert float(value) == pytest.approx(expected, abs=2e-5)


def test_only_the_commit_is_fetched(hub: HubServer, printed: dict[str, str]) -> None:
    for name in {name for name, *_ in CASES.values()}:
        asked = [request.path for request in hub.requests if f"/org/{name}/resolve/" in request.path]
        assert asked
        assert all(f"/resolve/{hub.commit_of(f'org/{name}')}/" in path for path in asked), asked
