"""A model's page: its outputs and their found names, profiles as a heatmap, copies, models like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from engine.writer import IndexWriter
from tests.browser.conftest import served
from tests.browser.page import Page
from tests.browser.zoos import COMMIT, PROFILED
from tests.support.small_index import make_index, put_model


def rows(page: Page) -> list[list[str]]:
    """Output, label and found names of the table's rows."""
    found: list[list[str]] = page.js(
        """return [...document.querySelectorAll("[data-testid=model-outputs] tbody tr")].map((row) =>
          [row.dataset.output, row.querySelector("[data-name=Labelled]").innerText.trim(),
           row.querySelector("[data-name=Recognises]").innerText.trim()])"""
    )
    return found


def named(page: Page) -> list[list[str]]:
    """The rows when their names are there."""
    return page.until(lambda: rows(page) if all(row[2] not in {"", "…"} for row in rows(page)) else [], "found names")


def test_what_a_model_is(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    text = page.one("model-page").text
    for part in ("timm", "resnet18", "mit", "224 \u00d7 224", "pets", "small", COMMIT[:12]):
        assert part in text, part
    assert page.title.startswith("org/animals")
    link = page.one("hub-link")
    assert link.get_attribute("href") == "https://huggingface.co/org/animals"
    assert link.get_attribute("target") == "_blank" and "noopener" in (link.get_attribute("rel") or "")


def test_its_outputs_have_labels_and_found_names(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    found = named(page)
    assert [row[:2] for row in found] == [["0", "cat"], ["1", "dog"], ["2", "horse"], ["3", "owl"]]
    assert all(row[2].startswith(row[1]) for row in found)
    page.open("/?model=zoo/both")
    page.one("model-outputs")
    both = named(page)
    assert len(both) == 7 and {row[1] for row in both} == {"no label"}
    assert [row[2].split()[0] for row in both] == ["cat", "dog", "horse", "owl", "chair", "table", "lamp"]


def test_a_label_that_the_responses_speak_against(page: Page) -> None:
    page.open("/?model=zoo/wrong")
    page.one("model-outputs")
    wrong, right = named(page)
    assert wrong[1] == "submarine" and wrong[2].startswith("horse") and "disagrees" in wrong[2]
    assert right[1] == "lamp" and "disagrees" not in right[2]


def test_outputs_are_filtered(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    named(page)
    box = page.js("return document.querySelector('[data-testid=model-outputs] input')")
    box.send_keys("hor")
    page.until(lambda: [row[1] for row in rows(page)] == ["horse"], "one row")
    box.send_keys("zzz")
    page.until(lambda: not rows(page), "no row")
    assert page.shown("empty-state") or "No output" in page.one("model-outputs").text
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    page.until(lambda: len(rows(page)) == 4, "all rows")


def test_profiles_are_a_heatmap(page: Page) -> None:
    page.open("/?model=org/animals")
    heat = page.one("profile-heatmap")
    tasks = page.js("return [...arguments[0].querySelectorAll('tbody th')].map((e) => e.innerText)", heat)
    assert tasks == sorted(PROFILED)
    assert "block" in page.js("return [...arguments[0].querySelectorAll('thead th')].map((e) => e.innerText)", heat)
    cells = page.js(
        "return [...arguments[0].querySelectorAll('tbody tr')].map((row) => [...row.querySelectorAll('td')].map("
        "(cell) => [parseFloat(cell.textContent), getComputedStyle(cell).backgroundColor]))",
        heat,
    )
    assert [[value for value, _ in row] for row in cells] == [list(PROFILED[task]) for task in tasks]
    for row, task in zip(cells, tasks, strict=True):
        colours = [colour for _, colour in row]
        assert len(set(colours)) == len(set(PROFILED[task])), "different shares have different colours"
    first = page.js("return arguments[0].querySelector('td')", heat)
    page.js("arguments[0].focus()", first)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert page.js("return parseFloat(document.activeElement.textContent)") == PROFILED[tasks[1]][1]
    assert "pets" in page.js("return document.querySelector('.heat-tip:not([hidden])').innerText")


def test_a_model_without_profiles_says_how_to_make_one(page: Page) -> None:
    page.open("/?model=org/things")
    assert "hubhound profile org/things" in page.one("no-profiles").text and not page.all("profile-heatmap")


def test_models_like_it(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    page.js("document.querySelector('[data-testid=similar-models]').scrollIntoView()")
    link = page.until(
        lambda: page.js("return document.querySelector('[data-testid=similar-models] a.model-link')"), "a similar model"
    )
    assert link.text == "zoo/both" and "covers all 4 outputs" in page.one("similar-models").text
    page.click(link)
    page.until(lambda: "model=zoo/both" in page.path and page.title.startswith("zoo/both"), "its page")


def test_copies_of_a_model_and_the_original_of_a_copy(page: Page) -> None:
    page.open("/?model=org/animals")
    links = page.until(lambda: page.js("return [...document.querySelectorAll('[data-testid=copies] a')]"), "its copies")
    assert [link.text for link in links] == ["mirror/animals", "mirror/pets"]
    page.click(links[0])
    page.until(lambda: page.title.startswith("mirror/animals"), "the copy's page")
    page.one("model-outputs")
    assert "A copy of org/animals" in page.one("model-page").text
    assert [row[1] for row in rows(page)] == ["cat", "dog", "horse", "owl"]
    page.click(page.js("return document.querySelector('.copy-note a')"))
    page.until(lambda: page.path == "/?model=org/animals", "the original")


@pytest.mark.parametrize("repo", ["no/such", "%3Cb%3Eno%3C/b%3E", "org/animals/more", "..%2F..%2Fetc/passwd"])
def test_a_model_that_is_not_there(page: Page, repo: str) -> None:
    page.errors_expected = ("404 (Not Found)",)
    page.open(f"/?model={repo}")
    empty = page.until(lambda: page.shown("empty-state"), "an empty state")[0]
    assert "not in the index" in empty.text and "GET" not in empty.text
    page.click(empty.find_element("css selector", "a.button"))
    page.until(lambda: page.path == "/" and page.all("search-box"), "the search")


def test_more_like_one_of_its_outputs(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    page.click("more-like")
    page.until(lambda: page.models()[:1] == ["zoo/both"], "the same output elsewhere")
    assert page.path == "/?like=org/animals%230"


def test_usage_code_of_an_output(page: Page) -> None:
    page.open("/?model=org/animals")
    page.one("model-outputs")
    button = page.js("return document.querySelectorAll('[data-testid=model-outputs] [aria-expanded]')[2]")
    page.click(button)
    code = page.one("code-text").text
    compile(code, "usage", "exec")
    assert "org/animals" in code and "2" in code and COMMIT in code
    assert button.get_attribute("aria-expanded") == "true"
    page.click(button)
    page.gone("code-text")


def test_a_model_that_is_nearly_called_so(page: Page) -> None:
    page.errors_expected = ("404 (Not Found)",)
    page.open("/?model=org/animal")
    empty = page.until(lambda: page.shown("empty-state"), "an empty state")[0]
    (link,) = [link for link in empty.find_elements("css selector", "a") if link.text == "org/animals"]
    page.click(link)
    page.until(lambda: page.path == "/?model=org/animals", "the model that was meant")


def test_rows_in_view_are_named_before_others(visit: Callable[[str], Page], tmp_path: Path) -> None:
    concepts = tuple(f"{'rare' if i >= 190 else 'thing'} {i}" for i in range(200))
    folder = make_index(tmp_path / "zoo").folder
    (tmp_path / "words.txt").write_text("\n".join(concepts[:20]))
    with IndexWriter(folder) as writer:
        put_model(writer, "org/many", concepts)
        writer.finish()
    with served(folder) as base:
        page = visit(base)
        some = f"{base}/v1/models/org/many?names=1&outputs=0"
        page.until(lambda: httpx.get(some).json()["names"]["state"] == "ready", "the vocabulary")
        page.open("/?view=index")
        page.js(
            """const real = window.fetch;
            Object.assign(window, {asked: [], allowed: 1});
            window.fetch = async (path, given) => {
              const turn = path.includes("names=3") ? window.asked.push(path) : 0;
              while (turn > window.allowed) await new Promise((go) => setTimeout(go, 20));
              return real(path, given);
            };"""
        )
        page.click(page.first("model-row").find_element("css selector", "a"))

        def asked() -> list[list[int]]:
            paths = page.js("return window.asked")
            return [[int(one) for one in parse_qs(urlsplit(path).query)["outputs"][0].split(",")] for path in paths]

        page.until(lambda: len(asked()) == 2, "a request for rows that nobody looks at yet")
        assert asked()[0] == list(range(25)) and len(asked()[1]) <= 50  # which those below wait for
        page.one("outputs-filter").send_keys("rare")
        page.until(lambda: [row[0] for row in rows(page)] == [*map(str, range(190, 200))], "the rows that fit")
        page.js("window.allowed = 2")
        page.until(lambda: len(asked()) == 3, "the next request")
        assert asked()[2] == list(range(190, 200))
        page.js("window.allowed = 99")
        assert all(row[2] for row in named(page))
        page.leave()
