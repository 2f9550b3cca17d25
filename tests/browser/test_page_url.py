"""The address holds the state: searches are shared by their link, Back and Forward lead through them."""

from __future__ import annotations

import pytest

from tests.browser.page import Page

SHARED = (
    "/?q=cat&q=owl",
    "/?q=cat&q=chair&level=model",
    "/?q=dog&where=library%3Dtimm&where=max-parameters%3D10M&k=5",
    "/?q=lamp&evidence=both&k=20",
    "/?like=org/animals%230",
    "/?like=org/animals&level=model",
)


def seen(page: Page) -> list[tuple[object, ...]]:
    return [(hit["model"], hit["label"], hit["margin"], hit["percentile"]) for hit in page.hits()]


@pytest.mark.parametrize("path", SHARED)
def test_a_link_shows_the_same_in_another_tab(page: Page, path: str) -> None:
    page.open(path)
    page.settle()
    first, title = seen(page), page.title
    assert first
    page.another_tab(page.path)
    page.settle()
    assert seen(page) == first and page.title == title and len(page.driver.window_handles) == 2


def test_a_link_shows_the_filters_it_was_made_with(page: Page) -> None:
    page.open(
        "/?q=dog&where=library%3Dtimm&where=max-parameters%3D10M&where=label%3Dyes&level=output&evidence=both&k=20"
    )
    page.settle()
    page.click("filters")
    page.until(lambda: page.all("filter-library-timm"), "the libraries of the index")
    assert page.one("filter-library-timm").is_selected()
    assert page.one("filter-max-parameters").get_property("value") == "10M"
    assert page.one("filter-label").get_property("value") == "yes"
    assert page.one("evidence-both").is_selected() and page.one("level-output").is_selected()
    assert page.one("hits-per-question").get_property("value") == "20"
    assert len(page.read("active-filter")) == 3


def test_back_and_forward(page: Page) -> None:
    page.open()
    page.search("cat")
    first = seen(page)
    page.search("owl")
    page.until(lambda: len(page.all("hit")) == 20, "two answers")
    page.click("level-model")
    page.until(lambda: "level=model" in page.path and len(page.all("hit")) not in {0, 20}, "models")
    third = seen(page)
    page.driver.back()
    page.until(lambda: len(page.all("hit")) == 20, "two answers again")
    assert page.read("chip") == ["cat", "owl"] and page.one("level-output").is_selected()
    page.driver.back()
    page.until(lambda: seen(page) == first, "the first answer again")
    assert page.path == "/?q=cat" and page.read("chip") == ["cat"] and "owl" not in page.title
    page.driver.back()
    page.until(lambda: not page.all("hit"), "the beginning")
    assert page.path == "/" and page.shown("empty-state")
    for _ in range(3):
        page.driver.forward()
    page.until(lambda: seen(page) == third, "the last answer")
    assert page.one("level-model").is_selected() and page.read("chip") == ["cat", "owl"]


def test_tabs_and_models_have_addresses_and_titles(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    titles = [page.title]
    for tab, path in (("tab-recommend", "/?view=recommend"), ("tab-index", "/?view=index")):
        page.click(tab)
        page.until(lambda wanted=path: page.path == wanted and page.title not in titles, f"the view {path}")
        assert page.one(tab).get_attribute("aria-current") == "page"
        titles.append(page.title)
    page.driver.back()
    page.driver.back()
    page.until(page.hits, "the hits again")
    assert page.path == "/?q=cat" and page.title == titles[0]
    page.click(page.all("hit-model")[0])
    page.one("model-page")
    assert page.path in {"/?model=org/animals", "/?model=zoo/both"}
    model = page.path.removeprefix("/?model=")
    assert model in page.title and model.split("/")[1] in page.one("model-page").text
    page.driver.back()
    page.until(page.hits, "the hits again")


@pytest.mark.parametrize(
    "path",
    [
        "/?view=nothing",
        "/?q=%20%20",
        "/?level=%3Cscript%3E",
        "/?q=%E0%A4%A",  # half a character
        "/?k=-5&q=cat",
        "/?k=99999999999&q=cat",
        "/?evidence=none&where=&q=cat",
        "/?q=cat&unknown=1#fragment",
    ],
)
def test_an_odd_address_shows_a_view(page: Page, path: str) -> None:
    page.open(path)
    page.settle()
    assert page.shown("hit") or page.shown("empty-state")


@pytest.mark.parametrize("condition", ["nokey=1", "max-parameters=lots", "label=perhaps", "where=<b>"])
def test_a_condition_that_makes_no_sense_is_told(page: Page, condition: str) -> None:
    page.errors_expected = ("400 (Bad Request)",)
    page.open(f"/?q=cat&where={condition.replace('=', '%3D').replace('<', '%3C')}")
    page.settle()
    assert condition.partition("=")[0] in page.one("error-state").text
    page.click(page.js("return document.querySelector('[data-testid=active-filter] button')"))
    page.until(lambda: len(page.all("hit")) == 10, "hits without it")


def test_images_are_no_part_of_the_link_but_of_the_history(page: Page, tmp_path: object, pictures) -> None:  # type: ignore[no-untyped-def]
    page.open("/?q=cat")
    page.settle()
    page.give(pictures("owl"))
    page.until(lambda: page.all("image-chip"), "the image")
    page.settle()
    with_image = seen(page)
    assert page.path == "/?q=cat"
    page.driver.back()
    page.until(lambda: not page.all("image-chip"), "the search before")
    page.settle()
    assert seen(page) != with_image
    page.driver.forward()
    page.until(lambda: page.all("image-chip"), "the image again")
    page.until(lambda: seen(page) == with_image, "the hits of text and image")
    page.driver.refresh()
    page.settle()
    assert "gone" in page.text  # says that the image did not survive
