"""What stands where hits would: waiting, a busy service, one that is not ready, one that is gone, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest

from engine.writer import IndexWriter
from tests.browser.page import Page
from tests.browser.zoos import HeldEncoder
from tests.support.service import listening, small_app
from tests.support.small_index import ANIMALS, THINGS, make_index, put_model

Visit = Callable[[str], Page]


@contextmanager
def held(zoo: Path, encoder: HeldEncoder, **given: object) -> Iterator[str]:
    """A service whose encoder can be held up; nothing is remembered."""
    (zoo / "concepts.sqlite").unlink(missing_ok=True)
    with listening(small_app(zoo, encoder, rate_limit=0, **given)) as base:
        try:
            yield base
        finally:
            encoder.go.set()


@pytest.fixture
def own_zoo(zoo: Path, tmp_path: Path) -> Path:
    """A copy of the ordinary index, to change."""
    copytree(zoo.parent / "images", tmp_path / "images")
    return Path(copytree(zoo, tmp_path / "zoo"))


def test_nothing_asked_yet(page: Page) -> None:
    page.open()
    (empty,) = page.shown("empty-state")
    examples = page.until(lambda: empty.find_elements("css selector", "a.example"), "examples")
    named = {word for example in examples for word in example.text.split("one model")[0].replace("+", " ").split()}
    assert named <= {*ANIMALS, *THINGS, "submarine"}  # what the models of this index are labelled with
    assert len(examples) >= 3 and page.title.startswith("hubhound")
    page.until(lambda: "16 outputs" in page.text and "4 models" in page.text, "how much is indexed")
    text = examples[0].text
    page.click(examples[0])
    page.settle()
    assert page.read("chip")[0] in text and len(page.all("hit")) == 10
    page.driver.back()
    page.until(lambda: page.shown("empty-state") and not page.all("hit"), "the beginning")


def test_waiting_for_an_answer(visit: Visit, own_zoo: Path) -> None:
    encoder = HeldEncoder()
    with held(own_zoo, encoder) as base:
        page = visit(base)
        page.open()
        encoder.go.clear()
        page.one("search-box").send_keys("cat\n")
        skeleton = page.one("loading-state")
        assert skeleton.is_displayed() and "Searching" in page.js("return arguments[0].textContent", skeleton)
        assert page.one("results").get_attribute("aria-busy") == "true"
        assert skeleton.get_attribute("role") == "status"
        encoder.go.set()
        page.settle()
        assert len(page.all("hit")) == 10 and page.one("results").get_attribute("aria-busy") == "false"
        page.leave()


def test_an_answer_that_is_overtaken_is_not_shown(visit: Visit, own_zoo: Path) -> None:
    encoder = HeldEncoder()
    with held(own_zoo, encoder) as base:
        page = visit(base)
        page.open("/?q=owl")
        page.settle()
        encoder.go.clear()
        page.search_without_waiting("a new thing")
        page.one("loading-state")
        page.driver.back()
        page.until(lambda: len(page.all("hit")) == 10 and page.read("chip") == ["owl"], "the answer before")
        before = page.hits()
        encoder.go.set()
        page.wait_s(0.5)
        assert page.read("chip") == ["owl"] and [h["model"] for h in page.hits()] == [h["model"] for h in before]
        assert len(page.all("hit")) == 10
        page.leave()


def test_a_service_that_is_busy_is_asked_again(visit: Visit, own_zoo: Path) -> None:
    encoder = HeldEncoder()
    with held(own_zoo, encoder, max_in_flight=1) as base:
        page = visit(base)
        page.errors_expected = ("503 (Service Unavailable)",)
        page.open("/?view=index")
        page.one("index-view")
        encoder.go.clear()

        def has_the_only_place() -> bool:
            page.js(
                "fetch('/v1/search', {method: 'POST', headers: {'Content-Type': 'application/json'},"
                "body: JSON.stringify({concepts: ['something slow']})})"
            )
            page.wait_s(0.2)
            return encoder.waiting

        page.until(has_the_only_place, "a request that holds the only place")
        page.click("tab-search")
        page.one("search-box").send_keys("cat\n")
        banner = page.until(lambda: page.js("return document.querySelector('#waiting:not([hidden])')"), "the banner")
        assert "busy" in banner.text and "again" in banner.text
        encoder.go.set()
        page.until(lambda: len(page.all("hit")) == 10, "hits in the end")
        page.until(lambda: not page.js("return document.querySelector('#waiting:not([hidden])')"), "no banner any more")
        page.leave()


def test_an_index_that_gets_its_first_model(visit: Visit, tmp_path: Path) -> None:
    folder = make_index(tmp_path / "zoo").folder
    with held(folder, HeldEncoder()) as base:
        page = visit(base)
        page.errors_expected = ("503 (Service Unavailable)",)
        page.open("/?q=cat")
        banner = page.until(lambda: page.js("return document.querySelector('#waiting:not([hidden])')"), "the banner")
        assert "empty" in banner.text
        with IndexWriter(folder) as writer:
            put_model(writer, "org/first", ("cat", "dog"))
            writer.finish()
        page.until(lambda: len(page.all("hit")) == 2, "hits of the first model")
        assert page.models() == ["org/first", "org/first"]
        page.leave()


def test_a_mistake_of_the_service(visit: Visit, own_zoo: Path) -> None:
    encoder = HeldEncoder()
    with held(own_zoo, encoder) as base:
        page = visit(base)
        page.errors_expected = ("500 (Internal Server Error)",)
        page.open("/?q=broken+cat")
        page.settle()
        error = page.one("error-state")
        assert "a mistake in the encoder" not in page.text and "Traceback" not in page.text
        request = page.js("return arguments[0].querySelector('code')?.innerText", error)
        assert request and len(request) >= 8  # to be told to whoever runs the service
        encoder.mends = True
        page.click(error.find_element("css selector", "button"))
        page.until(lambda: len(page.all("hit")) == 10, "hits on the next try")
        page.leave()


def test_a_service_that_is_gone(visit: Visit, own_zoo: Path) -> None:
    with held(own_zoo, HeldEncoder()) as base:
        page = visit(base)
        page.errors_expected = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
        page.open("/?q=cat")
        page.settle()
        page.until(lambda: any(page.loaded_thumbs()), "thumbnails")
    page.one("search-box").send_keys("owl\n")
    page.settle()
    assert "reached" in page.one("error-state").text and page.path == "/?q=cat&q=owl"
    assert not page.all("hit")


def test_a_network_that_comes_back(page: Page) -> None:
    page.errors_expected = ("ERR_INTERNET_DISCONNECTED",)
    page.open("/?q=cat")
    page.settle()
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.cdp("Network.emulateNetworkConditions", offline=True, **network)
    page.one("search-box").send_keys("owl\n")
    page.settle()
    error = page.one("error-state")
    page.cdp("Network.emulateNetworkConditions", offline=False, **network)
    page.click(error.find_element("css selector", "button"))
    page.until(lambda: len(page.all("hit")) == 20, "the hits on the next try")
    assert not page.all("error-state")
