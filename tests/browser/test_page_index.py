"""The index tab: what is indexed, how evenly it answers, the last crawl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from engine.writer import IndexWriter
from tests.browser.conftest import served
from tests.browser.page import Page
from tests.support.small_index import make_index, put_model


def bars(page: Page, label: str) -> dict[str, tuple[str, float, str | None]]:
    """Figure, share of the track, and link of each bar of a chart."""
    found = page.js(
        """return [...document.querySelectorAll(`[aria-label="${arguments[0]}"] .tally-row`)].map((row) => [
          row.querySelector(".tally-name").innerText, row.querySelector(".tally-value").innerText,
          row.querySelector(".tally-fill").getBoundingClientRect().width
            / row.querySelector(".tally-track").getBoundingClientRect().width, row.getAttribute("href")])""",
        label,
    )
    return {name: (value, share, href) for name, value, share, href in found}


def test_what_is_indexed(page: Page, service: str) -> None:
    page.open("/?view=index")
    page.until(lambda: bars(page, "Models by library"), "the libraries")
    page.calm()
    info = httpx.get(f"{service}/v1/index").json()
    tiles = page.js("return [...document.querySelectorAll('.tiles > *')].map((e) => e.innerText.replace(/\\s+/g, ' '))")
    for number, name in ((info["models"], "models"), (info["outputs"], "outputs"), (80, "probe images")):
        assert any(str(number) in tile and name in tile for tile in tiles), (number, name, tiles)
    libraries = bars(page, "Models by library")
    assert {name: int(value) for name, (value, _, _) in libraries.items()} == {
        name if name != "unknown" else "not stated": count for name, count in info["libraries"].items()
    }
    most = max(info["libraries"].values())
    for value, share, _ in libraries.values():
        assert abs(share - int(value) / most) < 0.02
    licences = bars(page, "Models by licence")
    assert licences["not stated"][2] is None and licences["mit"][0] == "1"


def test_a_bar_leads_to_a_search_among_its_models(page: Page) -> None:
    page.open("/?view=index")
    page.until(lambda: bars(page, "Models by library"), "the libraries")
    page.click(page.js("return [...document.querySelectorAll('[aria-label=\"Models by library\"] a')].find((a) => "
                       "a.innerText.includes('transformers'))"))  # fmt: skip
    page.until(lambda: page.path == "/?where=library%3Dtransformers", "the search")
    page.search("chair")
    assert set(page.models()) == {"org/things"}
    assert "where=library%3Dtransformers" in page.path and "q=chair" in page.path


def test_the_hubness_curve(page: Page, service: str) -> None:
    page.open("/?view=index")
    curve = page.one("hubness-curve")
    page.until(lambda: page.js("return arguments[0].querySelector('svg path.curve-line')", curve), "the curve")
    told = page.until(lambda: httpx.get(f"{service}/v1/index").json()["hubness"], "the service's figures")
    assert f"{told['half']} of {told['outputs']} outputs" in page.one("index-view").text
    drawn = page.js(
        """const [line, even] = ["curve-line", "curve-even"].map((name) => document.querySelector(`path.${name}`));
        const numbers = (path) => path.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
        const [e, l] = [numbers(even), numbers(line)];
        const share = (x, y) => [(x - e[0]) / (e[2] - e[0]), (e[1] - y) / (e[1] - e[3])];
        return Array.from({length: l.length / 2}, (_, i) => share(l[2 * i], l[2 * i + 1]));"""
    )
    assert len(drawn) == len(told["curve"])
    for (x, y), (wanted_x, wanted_y) in zip(drawn, told["curve"], strict=True):
        assert abs(x - wanted_x) < 0.01 and abs(y - wanted_y) < 0.01


def test_nothing_was_crawled(page: Page) -> None:
    page.open("/?view=index")
    assert "hubhound crawl" in page.one("no-crawl").text


def test_an_empty_index(visit: Callable[[str], Page], tmp_path: Path) -> None:
    folder = make_index(tmp_path / "zoo").folder
    with served(folder, vocabulary=None, names=False) as base:
        page = visit(base)
        page.open("/?view=index")
        assert "empty" in page.until(lambda: page.shown("empty-state"), "an empty state")[0].text
        assert "hubhound index add" in page.text
        page.leave()


def listed(page: Page) -> list[str]:
    """The models in the list, by their ids."""
    found: list[str] = page.js(
        "return [...document.querySelectorAll('[data-testid=model-list] .model-name')].map((e) => e.textContent)"
    )
    return found


def test_the_models_are_listed_and_filtered(page: Page, service: str) -> None:
    page.open("/?view=index")
    every = [model["repo"] for model in httpx.get(f"{service}/v1/models").json()["models"]]
    page.until(lambda: listed(page) == every, "all models")
    assert len(every) == 6 and not page.shown("model-list-more")
    rows = dict(zip(every, page.read("model-row"), strict=True))
    assert all(part in rows["org/animals"] for part in ("4 outputs", "timm", "mit", "1 k parameters", "50 downloads"))
    assert "a copy of org/animals" in rows["mirror/pets"] and "licence not stated" in rows["zoo/both"]
    box = page.one("model-filter")
    box.send_keys("ANIM")
    page.until(lambda: listed(page) == ["mirror/animals", "org/animals"], "those with it in their ids")
    box.send_keys("zzz")
    page.until(lambda: "No model's id contains this" in page.one("model-list").text and not listed(page), "no model")
    box.clear()
    box.send_keys("things")
    page.until(lambda: listed(page) == ["org/things"], "one model")
    page.click(page.js("return document.querySelector('[data-testid=model-row] a')"))
    page.until(lambda: page.path == "/?model=org/things" and page.title.startswith("org/things"), "its page")


def test_a_long_list_of_models_comes_in_parts(visit: Callable[[str], Page], tmp_path: Path) -> None:
    names = [f"org/m{i:02}" for i in range(23)]
    folder = make_index(tmp_path / "zoo").folder
    with IndexWriter(folder) as writer:
        for seed, name in enumerate(names):
            put_model(writer, name, ("cat",), seed=seed)
        writer.finish()
    with served(folder, vocabulary=None, names=False) as base:
        page = visit(base)
        page.open("/?view=index")
        page.until(lambda: listed(page) == names[:20], "the first models")
        assert page.one("model-list-more").text == "Show 3 more of 3"
        page.click("model-list-more")
        page.until(lambda: listed(page) == names, "all models")
        assert not page.shown("model-list-more") and names[20] in page.focused()["text"].replace("\n", "")
        page.leave()
