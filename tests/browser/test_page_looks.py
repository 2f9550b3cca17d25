"""How it looks: light and dark, narrow, and what axe-core finds wrong for people who see or hear differently."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.browser.page import Page

VIEWS = {
    "start": ("/", "search-box"),
    "hits": ("/?q=cat&q=chair", "hit"),
    "models": ("/?q=cat&q=chair&level=model", "hit"),
    "filters": ("/?q=cat&where=library%3Dtimm&where=max-parameters%3D10M", "hit"),
    "no-hits": ("/?q=cat&where=library%3Dnobody", "empty-state"),
    "error": ("/?q=cat&where=nokey%3D1", "error-state"),
    "model": ("/?model=org/animals", "model-outputs"),
    "no-model": ("/?model=no/such", "empty-state"),
    "recommend": ("/?view=recommend", "recommend-drop"),
    "index": ("/?view=index", "hubness-curve"),
}
"""Address, and what is there when it is complete."""


def arrive(page: Page, view: str) -> None:
    page.errors_expected = ("400 (Bad Request)", "404 (Not Found)")
    path, sign = VIEWS[view]
    page.open(path)
    page.until(lambda: page.shown(sign), f"{sign} of {view}")
    if view in {"hits", "models", "filters"}:
        page.settle()
        page.until(lambda: any(page.loaded_thumbs()), "thumbnails")
        page.until(lambda: all(name != "…" for name in page.read("hit-name")), "found names")
    if view == "filters":
        page.click("filters")
        page.click(page.js("return document.querySelector('[data-testid=advanced] summary')"))
    if view == "model":
        page.js("window.scrollTo(0, document.body.scrollHeight)")
        page.until(
            lambda: page.js("return !!document.querySelector('[data-testid=similar-models] a')"), "similar models"
        )
        page.js("window.scrollTo(0, 0)")
    if view == "index":
        page.until(
            lambda: page.js("return !!document.querySelector('[data-testid=hubness-curve] svg path')"), "a curve"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(page: Page, view: str, scheme: str) -> None:
    page.prefer(scheme)
    arrive(page, view)
    page.shoot(f"{view}-{scheme}", whole=True)
    assert page.axe() == []


@pytest.mark.parametrize("view", VIEWS)
def test_360_pixels_are_enough(page: Page, view: str) -> None:
    page.resize(360, 740)
    arrive(page, view)
    page.shoot(f"{view}-360", whole=True)
    assert page.js("return [innerWidth, document.scrollingElement.clientWidth]") == [360, 360]
    wide = page.js(
        """
        const scrolls = (e) => { // inside a box that scrolls by itself
          for (let p = e.parentElement; p; p = p.parentElement) {
            if (p.matches("html, body")) return false;
            if (getComputedStyle(p).overflowX !== "visible") return true;
          }
          return false;
        };
        return [...document.querySelectorAll("body *")].filter((e) => {
          const box = e.getBoundingClientRect();
          return box.width > 1 && box.height > 1 && box.right > 361 && !scrolls(e);
        }).map((e) => `${e.tagName}.${e.className} ends at ${e.getBoundingClientRect().right}`);"""
    )
    assert page.js("return document.scrollingElement.scrollWidth") <= 360, wide
    assert wide == []


@pytest.mark.parametrize("view", ["hits", "model", "index"])
def test_hostile_texts_are_no_wider_than_the_page(hostile_page: Page, view: str) -> None:
    page = hostile_page
    paths = {
        "hits": "/?q=cat+of+kind+0&q=horse+of+kind+6&q=owl+of+kind+7&k=20",
        "model": "/?model=evil/labels",
        "index": "/?view=index",
    }
    signs = {"hits": "hit", "model": "model-outputs", "index": "index-view"}
    for width in (360, 1280):
        page.resize(width, 740)
        page.open(paths[view])
        page.until(lambda: page.shown(signs[view]), view)
        page.settle() if view == "hits" else page.wait_s(0.5)
        page.shoot(f"hostile-{view}-{width}", whole=False)
        assert page.js("return document.scrollingElement.scrollWidth") <= width


def test_tap_targets_are_large_enough(page: Page) -> None:
    page.resize(360, 740)
    for view in ("start", "hits", "model", "recommend", "index"):
        arrive(page, view)
        small = page.js(
            """const inputs = "input:not([type=radio]):not([type=checkbox])";
            return [...document.querySelectorAll(`button, select, summary, .tabs a, ${inputs}`)]
              .filter((e) => e.checkVisibility({visibilityProperty: true, opacityProperty: true}))
              .map((e) => [e, e.getBoundingClientRect()])
              .filter(([e, box]) => box.width > 1 && box.height > 1 && (box.height < 24 || box.width < 24))
              .map(([e, box]) => `${e.tagName}.${e.className} ${e.innerText} ${box.width}x${box.height}`)"""
        )
        assert small == [], view
        main = page.js(
            """return [...document.querySelectorAll(".button, .tabs a, select, [data-testid=search-box], .chip-remove")]
              .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height > 0)
              .filter((e) => e.getBoundingClientRect().height < 40 && !e.matches(".inline *"))
              .map((e) => `${e.tagName}.${e.className} ${e.innerText} ${e.getBoundingClientRect().height}`)"""
        )
        assert main == [], view


def test_dark_follows_the_system(page: Page) -> None:
    page.prefer("light")
    page.open("/?q=cat")
    page.settle()
    light = page.luminance(), page.luminance(what="color")
    page.prefer("dark")
    page.calm()
    dark = page.luminance(), page.luminance(what="color")
    assert light[0] > 0.8 and dark[0] < 0.1
    for background, ink in (light, dark):
        assert (max(background, ink) + 0.05) / (min(background, ink) + 0.05) >= 7
    assert page.one("theme-toggle").get_attribute("aria-pressed") == "true"


def test_the_chosen_colours_last(page: Page) -> None:
    page.prefer("light")
    page.open()
    toggle = page.one("theme-toggle")
    assert toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    page.calm()
    assert page.luminance() < 0.1 and page.one("theme-toggle").get_attribute("aria-pressed") == "true"
    page.driver.refresh()
    page.one("search-box")
    assert page.luminance() < 0.1
    page.another_tab("/?view=index")
    page.prefer("light")
    assert page.luminance() < 0.1  # it is the browser's, not the tab's
    page.one("theme-toggle").click()
    page.calm()
    assert page.luminance() > 0.8
    page.prefer("dark")
    page.calm()
    assert page.luminance() > 0.8  # what a person chose goes before the system


def test_nothing_moves_for_those_who_do_not_want_it(page: Page) -> None:
    page.prefer("light", motion="reduce")
    page.open("/?q=cat")
    page.settle()
    moving = page.js(
        """const slow = (e) => parseFloat(getComputedStyle(e).transitionDuration) > 0.01;
        return document.getAnimations().filter((a) => a.playState === "running").length
          + [...document.querySelectorAll("*")].filter(slow).length"""
    )
    assert moving == 0
    page.prefer("light", motion="no-preference")


def test_the_evidence_dialog_passes_axe_and_fits(page: Page) -> None:
    page.resize(360, 740)
    arrive(page, "hits")
    thumb = page.first("probe-thumb")
    page.click(page.js("return arguments[0].closest('button') ?? arguments[0].querySelector('button')", thumb))
    box = page.one("lightbox")
    page.until(lambda: page.js("return arguments[0].querySelector('img').naturalWidth > 0", box), "the large image")
    page.shoot("evidence-360")
    assert page.axe() == []
    frame = page.js("const b = arguments[0].getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]", box)
    assert frame[0] >= 0 and frame[1] <= 360 and frame[2] >= 0 and frame[3] <= 740


def test_headings_and_landmarks(page: Page) -> None:
    for view in VIEWS:
        arrive(page, view)
        levels = page.js(
            "return [...document.querySelectorAll('h1, h2, h3, h4')].filter((e) => e.checkVisibility())"
            ".map((e) => Number(e.tagName[1]))"
        )
        assert levels.count(1) == 1 and levels[0] == 1, (view, levels)
        assert all(after - before <= 1 for before, after in pairwise(levels)), (view, levels)
        assert page.js("return document.querySelectorAll('main').length") == 1
        assert page.js("return document.documentElement.lang") == "en"


def test_the_tests_of_accessibility_can_fail(page: Page, visit: Callable[[str], Page]) -> None:
    page.errors_expected = ("Content Security Policy", "violates the following")
    page.open()
    page.js("document.querySelector('main').append(Object.assign(document.createElement('button'), {}))")
    assert any(line.startswith("button-name") for line in page.axe())
