"""Images on the page: dropped, pasted and chosen, real files that are really uploaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.page import Page
from tests.browser.zoos import write_photo
from tests.support.small_index import write_example

Pictures = Callable[..., list[Path]]


def best(page: Page) -> str | None:
    page.settle()
    hits = page.hits()
    return hits[0]["label"] if hits else None


def test_a_dropped_image_is_searched_for(page: Page, service: str, pictures: Pictures) -> None:
    page.open()
    paths = pictures("owl")
    assert page.give(paths, page.one("drop-zone"))
    page.until(lambda: page.all("image-chip"), "the image's chip")
    page.settle()
    page.until(page.hits, "hits")
    with paths[0].open("rb") as file:
        request = {"request": (None, '{"where": [], "k": 10}', "application/json")}
        told = httpx.post(f"{service}/v1/search", files=[*request.items(), ("images", ("a.png", file, "image/png"))])
    expected = told.json()["results"][0]["hits"]
    assert [hit["model"] for hit in page.hits()] == [hit["model"] for hit in expected]
    assert page.hits()[0]["label"] in {"owl", "no label"} and expected[0]["margin"] > 1
    assert paths[0].name in page.one("image-chip").text
    assert page.js("return document.querySelector('[data-testid=image-chip] img').naturalWidth") == 8
    assert "1 image" in page.one("results").text


def test_a_drop_beside_the_zone_is_no_way_off_the_page(page: Page, pictures: Pictures) -> None:
    page.open()
    assert page.give(pictures("dog"), page.js("return document.querySelector('header')"))
    page.until(lambda: page.all("image-chip"), "the image's chip")
    assert page.path == "/"


def test_a_pasted_image_is_searched_for(page: Page, pictures: Pictures) -> None:
    page.open()
    assert page.give(pictures("chair"), page.one("search-box"), kind="paste")
    page.until(lambda: page.all("image-chip"), "the image's chip")
    page.until(lambda: best(page) in {"chair", "no label"}, "what is in the image")
    assert {hit["model"] for hit in page.hits()[:2]} == {"org/things", "zoo/both"}


def test_images_are_chosen_in_a_dialog(page: Page, pictures: Pictures) -> None:
    page.open()
    chooser: WebElement = page.js("return document.querySelector('input[type=file]')")
    assert chooser.get_attribute("multiple") is not None and "image" in (chooser.get_attribute("accept") or "")
    chooser.send_keys("\n".join(map(str, pictures("lamp", "lamp"))))
    page.until(lambda: len(page.all("image-chip")) == 2, "two chips")
    page.until(lambda: best(page) in {"lamp", "no label"}, "what is in the images")
    assert "2 images" in page.one("results").text


def test_text_and_image_together(page: Page, pictures: Pictures) -> None:
    page.open("/?q=cat")
    page.settle()
    alone = page.hits()
    page.give(pictures("horse"))
    page.until(lambda: page.all("image-chip"), "the image's chip")
    page.settle()
    page.until(lambda: page.hits() and page.hits() != alone, "other hits")
    assert {hit["label"] for hit in page.hits()[:4]} >= {"cat", "horse"} or "no label" in str(page.hits()[:4])
    page.click(page.one("chip-remove", page.one("image-chip")))
    page.until(lambda: not page.all("image-chip"), "the end of the image")
    page.until(lambda: [h["margin"] for h in page.hits()] == [h["margin"] for h in alone], "the text's own hits")


def test_images_and_several_concepts_are_refused_in_words(page: Page, pictures: Pictures) -> None:
    page.errors_expected = ("400 (Bad Request)",)
    page.open("/?q=cat&q=dog")
    page.settle()
    page.give(pictures("horse"))
    page.until(lambda: page.all("error-state"), "a refusal")
    assert "2" in page.one("error-state").text and "concept" in page.one("error-state").text


def test_a_file_that_is_no_image_is_named(page: Page, tmp_path: Path) -> None:
    page.errors_expected = ("400 (Bad Request)",)
    (tmp_path / "torn holiday.png").write_bytes(write_photo(tmp_path / "whole.png", 1).read_bytes()[:300])
    page.open()
    page.give([tmp_path / "torn holiday.png"])
    page.until(lambda: page.all("error-state"), "a refusal")
    words = page.one("error-state").text
    assert "torn holiday.png" in words and "/" not in words  # its name, not where the service keeps it


def test_other_files_are_left_out(page: Page, tmp_path: Path, pictures: Pictures) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no image")
    page.open()
    assert page.give([note])
    page.until(lambda: "no image" in page.js("return document.getElementById('announcements').textContent"), "a word")
    assert not page.all("image-chip") and page.path == "/"
    page.give([note, *pictures("cat")])
    page.until(lambda: len(page.all("image-chip")) == 1, "the only image")


def test_a_sighted_person_is_told_of_files_left_out(page: Page, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no image")
    page.open()
    page.give([note])
    visible = """
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      const box = node.parentElement.getBoundingClientRect();
      if (/no image|not an image/i.test(node.textContent) && box.width > 10 && box.height > 10) return true;
    }
    return false;"""
    page.until(lambda: page.js(visible), "words that can be seen", patience_s=3)


@pytest.mark.parametrize("name", ["<img src=x onerror=window.pwned=1>.png", "\u202egnp.exe.png", "a" * 240 + ".png"])
def test_the_names_of_files_are_text(page: Page, tmp_path: Path, name: str) -> None:
    path = write_example(tmp_path / "plain.png", "cat")
    renamed = path.rename(tmp_path / name)
    page.resize(360)
    page.open()
    page.give([renamed])
    page.until(lambda: page.all("image-chip"), "the image's chip")
    assert name[:40] in str(page.js("return arguments[0].textContent", page.one("image-chip")))
    assert page.js("return document.scrollingElement.scrollWidth") <= 360
