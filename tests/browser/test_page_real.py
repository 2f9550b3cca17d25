"""The page over real models and photographs, served by a process of its own with the real encoder."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from query.cli.main import run
from tests.browser.page import Page
from tests.integration.conftest import REAL_MODELS, REALHUB, real_zoo
from tests.support.service import serving

__all__ = ["real_zoo"]  # a fixture

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not REALHUB.is_dir(), reason="the real models of ../shared/realhub are not here"),
]

DOGS, BIRDS, RETRIEVER = range(151, 269), range(80, 101), 207
SOURCES = {"dogs": (0.74, 0.41), "birds": (0.81, 0.52)}
"""Accuracies of the two models on the source tasks, invented: what is looked at is how a ranking is shown."""
SHOWN = 3  # images of each task


def photographs() -> dict[int, str]:
    """File of the first photograph of each class."""
    with (REALHUB / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["class_index"]): row["file"] for row in reversed(rows)}


@pytest.fixture(scope="module")
def advised_zoo(real_zoo: tuple[Path, set[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of two real models with their profiles on two tasks."""
    root = tmp_path_factory.mktemp("advised")
    zoo = Path(shutil.copytree(real_zoo[0], root / "zoo"))
    files = photographs()
    rows = ["model,pretrained,dataset,acc1,source"]
    for name, classes in (("dogs", DOGS), ("birds", BIRDS)):
        (root / name).mkdir()
        for number in [one for one in classes if one in files and one != RETRIEVER][:SHOWN]:
            shutil.copy(REALHUB / files[number], root / name)
        assert (
            run(["task", "add", name, "--images", str(root / name), "--sample", str(SHOWN), "--index", str(zoo)]) == 0
        )
        rows += [f"{model},,{name},{value}," for model, value in zip(REAL_MODELS, SOURCES[name], strict=True)]
    (root / "accuracies.csv").write_text("\n".join(rows) + "\n")
    assert run(["performance", "import", str(root / "accuracies.csv"), "--index", str(zoo)]) == 0
    models = [str(REALHUB / "models" / name) for name in REAL_MODELS]
    assert run(["profile", *models, "--n-steps", "4", "--device", "cpu", "--index", str(zoo)]) == 0
    labels = json.loads((REALHUB / "labels.json").read_text())[REAL_MODELS[0]]
    names = {
        entry["label"].split(",")[0] for entry in labels if entry["imagenet_class"] in {*DOGS, *BIRDS, *range(400, 440)}
    }
    (root / "words.txt").write_text("\n".join(sorted(names)))
    return zoo


@pytest.fixture(scope="module")
def real_service(advised_zoo: Path) -> Iterator[str]:
    """Where a process serves that index."""
    options = ("--vocabulary", str(advised_zoo.parent / "words.txt"), "--models", str(REALHUB / "models"))
    with serving(advised_zoo, advised_zoo.parent / "errors.txt", *options, "--rate-limit", "0", ready=False) as process:
        end = time.monotonic() + 120
        while httpx.get(f"{process.url}/readyz").status_code != 200:
            assert time.monotonic() < end, process.told()
            time.sleep(0.2)
        yield process.url


@pytest.fixture
def real_page(visit: Callable[[str], Page], real_service: str) -> Page:
    return visit(real_service)


def test_a_search_for_the_golden_retriever(real_page: Page) -> None:
    page = real_page
    page.open()
    page.until(lambda: page.js("return document.querySelectorAll('a.example').length"), "examples", 60)
    page.until(lambda: page.js("return document.querySelectorAll('.starter img.loaded').length"), "photographs", 60)
    page.shoot("real-start")
    page.search("golden retriever")
    hits = page.hits()
    # the better model; the other, of 0.5 million parameters, takes it for other dogs
    assert (hits[0]["label"], hits[0]["model"]) == ("golden retriever", REAL_MODELS[0])
    assert "nearer than all 500 background phrases" in hits[0]["percentile"]
    card = page.first("hit")
    page.until(lambda: sum(width >= 64 for width in page.loaded_thumbs(card)) >= 4, "evidence")
    thumb = page.first("probe-thumb", card)
    page.click(page.js("return arguments[0].closest('button') ?? arguments[0].querySelector('button')", thumb))
    assert "golden_retriever" in page.one("lightbox").text  # the probe that shows one is the best evidence
    page.until(lambda: page.js("return document.querySelector('[data-testid=lightbox] img').naturalWidth > 100"), "it")
    page.shoot("real-evidence")
    page.click("lightbox-close")
    page.until(lambda: "golden retriever" in page.read("hit-name")[0], "the found name", patience_s=90)
    page.js("window.scrollTo(0, 0)")
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        page.shoot(f"real-golden-retriever-{scheme}")
    page.prefer("light")
    page.resize(360, 740)
    page.shoot("real-golden-retriever-360")
    assert page.js("return document.scrollingElement.scrollWidth") <= 360


def test_a_list_of_concepts(real_page: Page) -> None:
    page = real_page
    page.open("/?q=golden+retriever&q=pelican&q=teapot&level=model")
    page.settle()
    assert set(page.models()) <= set(REAL_MODELS) and page.models()
    page.until(lambda: any(page.loaded_thumbs()), "evidence")
    page.shoot("real-models")


def test_a_real_models_page(real_page: Page) -> None:
    page = real_page
    page.open(f"/?model={REAL_MODELS[0]}")
    page.one("model-outputs")
    heat = page.one("profile-heatmap")
    assert page.js("return arguments[0].querySelectorAll('tbody tr').length", heat) == 2
    page.until(lambda: not any(row in {"", "…"} for row in page.js(
        "return [...document.querySelectorAll('[data-testid=model-outputs] .found')].map((e) => e.innerText.trim())"
    )), "found names", patience_s=90)  # fmt: skip
    page.shoot("real-model")
    page.js("document.querySelector('[data-testid=profile-heatmap]').scrollIntoView()")
    page.shoot("real-model-profiles")
    page.until(
        lambda: page.js("return !!document.querySelector('[data-testid=similar-models] a')"), "models like it", 60
    )
    assert REAL_MODELS[1] in page.one("similar-models").text.replace("\n", "")


def test_a_photograph_is_recommended_for(real_page: Page) -> None:
    page = real_page
    files = photographs()
    photos = [REALHUB / files[RETRIEVER], REALHUB / files[208 if 208 in files else 206 if 206 in files else 205]]
    page.open("/?view=recommend")
    page.give(photos, page.one("recommend-drop"))
    page.until(lambda: len(page.all("image-chip")) == 2, "the images")
    page.click("recommend-start")
    cards = page.until(lambda: page.read("ranked"), "a ranking", patience_s=120)
    assert len(cards) == 2 and REAL_MODELS[0].split("/")[1] in cards[0]  # the better one on both tasks
    page.shoot("real-recommendation", whole=True)


def test_a_photograph_is_searched_for(real_page: Page) -> None:
    page = real_page
    page.open()
    page.give([REALHUB / photographs()[RETRIEVER]], page.one("drop-zone"))
    page.until(lambda: page.all("image-chip"), "the image")
    page.settle()
    assert "golden retriever" in (page.hits()[0]["label"] or "")
    page.shoot("real-image")


def test_the_real_index(real_page: Page) -> None:
    page = real_page
    page.open("/?view=index")
    page.until(
        lambda: page.js("return !!document.querySelector('[data-testid=hubness-curve] svg path')"), "the curve", 60
    )
    assert "2,001" in page.text
    page.shoot("real-index", whole=True)
