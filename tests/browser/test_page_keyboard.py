"""Everything by keyboard alone, with the focus always to be seen."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys

from tests.browser.page import Page


def tab_to(page: Page, testid: str, most: int = 60, back: bool = False) -> list[str | None]:
    """Presses Tab until an element has the focus; which ones had it on the way."""
    way: list[str | None] = []
    for _ in range(most):
        page.press_back() if back else page.press(Keys.TAB)
        now = page.focused()
        way.append(now["testid"] or now["tag"])
        assert now["tag"] == "body" or now["visible"], now
        assert now["tag"] == "body" or (now["ring"] and now["seen"]), f"the focus cannot be seen on {now}"
        if now["testid"] == testid:
            return way
    raise AssertionError(f"{testid} is not reached in {most} steps: {way}")


def test_a_search_without_a_mouse(page: Page) -> None:
    page.open("/?view=index")
    page.one("index-view")
    page.js("document.activeElement.blur()")
    assert tab_to(page, "tab-search")[0] == "a"  # the link that skips to the content comes first
    page.press(Keys.ENTER)
    page.until(lambda: page.path == "/" and page.all("search-box"), "the search")
    tab_to(page, "search-box")
    page.press("cat", Keys.ENTER)
    page.until(lambda: len(page.all("hit")) == 10, "hits")
    assert page.focused()["testid"] == "search-box"
    tab_to(page, "search-button")
    way = tab_to(page, "hit-model")
    assert "level-output" in way and "filters" in way
    page.press(Keys.ENTER)
    page.one("model-page")
    assert page.focused()["tag"] == "h1"  # what is new is read out from its beginning
    tab_to(page, "hub-link")


def test_the_first_stop_skips_to_the_content(page: Page) -> None:
    page.open("/?view=index")
    page.one("index-view")
    page.js("document.activeElement.blur()")
    page.press(Keys.TAB)
    assert "Skip" in page.focused()["text"] and page.focused()["seen"]
    page.press(Keys.ENTER)
    page.until(lambda: page.js("return document.activeElement.id") == "main", "the jump")
    assert page.all("index-view") and page.path == "/?view=index"
    page.press(Keys.TAB)
    assert page.js("return document.querySelector('main').contains(document.activeElement)")


def test_a_slash_leads_to_the_box(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    page.js("document.activeElement.blur()")
    page.press("/")
    assert page.focused()["testid"] == "search-box" and page.one("search-box").get_property("value") == ""
    page.press("a/b")
    assert page.one("search-box").get_property("value") == "a/b"


def test_evidence_and_code_without_a_mouse(page: Page) -> None:
    page.open("/?q=cat&k=1&where=model%3Dorg/animals")
    page.settle()
    page.one("search-box").click()
    way: list[str | None] = []
    for _ in range(60):
        page.press(Keys.TAB)
        if page.js("return !!document.activeElement.closest('[data-testid=evidence]')"):
            break
        way.append(page.focused()["testid"])
    else:
        raise AssertionError(way)
    assert page.focused()["ring"]
    page.press(Keys.ENTER)
    box = page.one("lightbox")
    for _ in range(6):  # the focus stays in the dialog
        page.press(Keys.TAB)
        assert page.js(
            "return arguments[0].contains(document.activeElement) || document.activeElement === document.body", box
        )
    page.press(Keys.ESCAPE)
    page.gone("lightbox")
    assert page.js("return !!document.activeElement.closest('[data-testid=evidence]')")
    for _ in range(30):
        page.press(Keys.TAB)
        if page.js("return !!document.activeElement.closest('[data-testid=hit-code]')"):
            break
    page.press(Keys.ENTER)
    assert page.one("code-text").is_displayed()
    tab_to(page, "copy-code", 5)
    page.press(Keys.ENTER)
    page.until(lambda: page.one("copy-code").text != "Copy", "an answer of the button")


def test_filters_and_levels_without_a_mouse(page: Page) -> None:
    page.open("/?q=cat&q=chair")
    page.settle()
    page.one("search-box").click()
    tab_to(page, "level-output")
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: "level=model" in page.path, "models")
    page.settle()
    assert page.focused()["testid"] == "level-model"
    tab_to(page, "filters")
    page.press(Keys.ENTER)
    page.until(lambda: page.one("filters").get_attribute("aria-expanded") == "true", "the filters")
    tab_to(page, "filter-library-timm")
    page.press(Keys.SPACE)
    page.until(lambda: "library%3Dtimm" in page.path, "the filter")
    page.settle()
    assert page.focused()["testid"] == "filter-library-timm"  # goes on where it was


def test_chips_are_removed_without_a_mouse(page: Page) -> None:
    page.open("/?q=cat&q=dog&q=owl")
    page.settle()
    page.one("search-box").click()
    tab_to(page, "chip-remove", 5, back=True)
    page.press(Keys.ENTER)
    page.until(lambda: page.read("chip") == ["cat", "dog"], "one less")
    page.settle()
    assert page.js("return document.activeElement !== document.body"), "the focus is lost"


def test_answers_are_announced(page: Page) -> None:
    page.open()
    page.search("cat")
    words = page.until(
        lambda: page.js("return document.getElementById('announcements').textContent"), "an announcement"
    )
    assert "10" in words and "cat" in words
    region = page.js("const e = document.getElementById('announcements'); return [e.getAttribute('role'), e.ariaLive]")
    assert region == ["status", "polite"]
