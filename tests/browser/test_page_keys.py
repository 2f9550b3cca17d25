"""A service that wants an API key: the page asks for it, keeps it in the tab, and shows thumbnails with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import served
from tests.browser.page import Page

KEY = "a-key-of-24-characters-!"
OTHER = "another-key-of-the-file-9"


@pytest.fixture(scope="module")
def keyed(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Where the index is served to those who have a key, and the file of keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# who may ask\nalice {KEY}\nbob {OTHER}\n")
    with served(zoo, api_key_file=file) as base:
        yield base, file


@pytest.fixture
def locked(visit: Callable[[str], Page], keyed: tuple[str, Path]) -> Page:
    page = visit(keyed[0])
    page.errors_expected = ("401 (Unauthorized)",)
    return page


def enter(page: Page, key: str) -> None:
    field = page.one("key-input")
    field.clear()
    field.send_keys(key + "\n")


def test_the_page_asks_for_a_key(locked: Page) -> None:
    page = locked
    page.open("/?q=cat")
    field = page.one("key-input")
    assert field.get_attribute("type") == "password"
    assert page.focused()["testid"] == "key-input" and page.focused()["ring"]
    assert page.js(
        "return arguments[0].matches(':modal')", page.one("key-form").find_element("xpath", "./ancestor::dialog")
    )
    page.shoot("key")
    assert page.axe() == []
    enter(page, "a-wrong-key-that-is-long")
    page.until(lambda: "not accepted" in page.text, "a refusal")
    assert not page.all("hit")
    enter(page, KEY)
    page.until(lambda: len(page.all("hit")) == 10, "hits")
    page.gone("key-form")
    assert KEY not in page.path and KEY not in page.js("return document.documentElement.outerHTML")


def test_thumbnails_come_with_the_key(locked: Page) -> None:
    page = locked
    page.open("/?q=cat")
    enter(page, KEY)
    page.until(lambda: len(page.all("hit")) == 10, "hits")
    hit = page.first("hit")
    page.until(lambda: sum(width > 0 for width in page.loaded_thumbs(hit)) >= 4, "thumbnails")
    sources = page.js(
        """return [...arguments[0].querySelectorAll("[data-testid=probe-thumb]")].map((thumb) =>
          (thumb.matches("img") ? thumb : thumb.querySelector("img")).src)""",
        hit,
    )
    assert all(source.startswith("blob:") for source in sources[:4])
    thumb = page.first("probe-thumb", hit)
    page.click(page.js("return arguments[0].closest('button') ?? arguments[0].querySelector('button')", thumb))
    box = page.one("lightbox")
    page.until(lambda: page.js("return arguments[0].querySelector('img').naturalWidth > 0", box), "the large image")


def test_the_key_lasts_as_long_as_the_tab(locked: Page) -> None:
    page = locked
    page.open("/?q=cat")
    enter(page, KEY)
    page.until(lambda: page.all("hit"), "hits")
    page.driver.refresh()
    page.until(lambda: page.all("hit"), "hits without another question")
    assert not page.all("key-form")
    assert page.js("return JSON.stringify(localStorage) + document.cookie").find(KEY) < 0
    page.another_tab("/?q=cat")
    page.one("key-form")  # another tab is another person
    assert not page.all("hit")


def test_a_key_that_is_revoked(locked: Page, keyed: tuple[str, Path]) -> None:
    page, file = locked, keyed[1]
    kept = file.read_text()
    try:
        page.open("/?q=cat")
        enter(page, OTHER)
        page.until(lambda: page.all("hit"), "hits")
        file.write_text(f"alice {KEY}\n# bob has left\n")
        page.wait_s(1.2)  # the file is looked at once a second
        page.one("search-box").send_keys("owl\n")
        page.until(lambda: page.all("key-form"), "the question for a key")
        assert "not accepted" in page.text
        enter(page, KEY)
        page.until(lambda: len(page.all("hit")) == 20, "the answers to both")
    finally:
        file.write_text(kept)
        page.wait_s(1.2)


def test_without_a_key_there_is_an_error_and_another_try(locked: Page) -> None:
    page = locked
    page.open("/?q=cat")
    page.one("key-form")
    page.click(page.js("return [...document.querySelectorAll('dialog button')].find((b) => b.innerText === 'Cancel')"))
    page.gone("key-form")
    error = page.until(lambda: page.shown("error-state"), "the error")[0]
    page.click(error.find_element("css selector", "button"))
    enter(page, KEY)
    page.until(lambda: page.all("hit"), "hits")


@pytest.mark.parametrize("view", ["/?view=index", "/?model=org/animals", "/"])
def test_other_views_ask_too(locked: Page, view: str) -> None:
    page = locked
    page.open(view)
    enter(page, KEY)
    page.until(lambda: page.all("hubness-curve") or page.all("model-outputs") or "16 outputs" in page.text, "the view")
    assert not page.all("error-state")
