"""Searching on the page: typing, chips, levels, filters, what a hit says, code and evidence."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.page import Page
from tests.browser.zoos import COMMIT, VOCABULARY


def asked(page: Page) -> dict[str, list[str]]:
    """What the address says."""
    return parse_qs(urlsplit(page.path).query)


def chips(page: Page) -> list[str]:
    return page.read("chip")


def answer(service: str, **body: object) -> list[dict[str, object]]:
    """The service's own hits for a question."""
    found = httpx.post(f"{service}/v1/search", json=body)
    assert found.status_code == 200, found.text
    hits: list[dict[str, object]] = found.json()["results"][0]["hits"]
    return hits


def test_a_typed_concept_is_found(page: Page, service: str) -> None:
    page.open()
    page.until(lambda: page.focused()["testid"] == "search-box", "the focus in the box")
    page.search("cat")
    expected = answer(service, concepts=["cat"], explain=True)
    hits = page.hits()
    assert chips(page) == ["cat"] and asked(page) == {"q": ["cat"]}
    assert len(hits) == len(expected) == 10
    assert [hit["model"] for hit in hits] == [hit["model"] for hit in expected]
    assert {hit["model"] for hit in hits[:2]} == {"org/animals", "zoo/both"}
    assert "cat" in page.title and "hubhound" in page.title
    for shown, told in zip(hits, expected, strict=True):
        margin = float(told["margin"])  # type: ignore[arg-type]
        assert f"{abs(margin):.2f}" in shown["margin"]
        assert ("\u2212" in shown["margin"]) == (round(margin, 2) < 0)


def test_several_concepts_are_several_questions(page: Page) -> None:
    page.open()
    page.search("cat", "chair")
    assert chips(page) == ["cat", "chair"] and asked(page) == {"q": ["cat", "chair"]}
    page.until(lambda: len(page.all("hit")) == 20, "the hits of both questions")
    headings = page.js("return [...document.querySelectorAll('[data-testid=results] h2')].map((e) => e.innerText)")
    assert [heading.startswith(name) for heading, name in zip(headings, ("cat", "chair"), strict=True)] == [True, True]
    assert page.models()[0] in {"org/animals", "zoo/both"} and page.models()[10] in {"org/things", "zoo/both"}


def test_the_button_searches_for_what_was_typed(page: Page) -> None:
    page.open()
    page.one("search-box").send_keys("  dog,  owl ")
    page.click("search-button")
    page.settle()
    assert chips(page) == ["dog", "owl"] and page.one("search-box").get_property("value") == ""


def test_chips_are_removed_by_backspace_and_by_their_button(page: Page) -> None:
    page.open("/?q=cat&q=dog&q=owl")
    page.settle()
    box = page.one("search-box")
    box.click()
    box.send_keys("x", Keys.BACKSPACE)
    assert chips(page) == ["cat", "dog", "owl"]  # there was something to delete in the box
    box.send_keys(Keys.BACKSPACE)
    page.until(lambda: chips(page) == ["cat", "dog"], "one chip less")
    page.settle()
    page.click(page.all("chip-remove")[0])
    page.until(lambda: chips(page) == ["dog"], "another chip less")
    page.settle()
    assert asked(page) == {"q": ["dog"]} and page.hits()[0]["model"] in {"org/animals", "zoo/both"}
    page.click("chip-remove")
    page.until(lambda: not page.all("hit"), "the end of all hits")
    assert page.path == "/" and page.shown("empty-state")


def test_the_same_concept_twice_is_one_chip(page: Page) -> None:
    page.open()
    page.search("cat", "cat")
    assert chips(page) == ["cat"]


def test_models_that_cover_a_list(page: Page, service: str) -> None:
    page.open("/?q=cat&q=chair")
    page.settle()
    page.click("level-model")
    page.until(lambda: page.read("hit") and len(page.read("hit")) < 5, "hits that are models")
    page.settle()
    expected = answer(service, concepts=["cat", "chair"], level="model")
    assert asked(page) == {"q": ["cat", "chair"], "level": ["model"]}
    assert page.models() == [hit["model"] for hit in expected] and page.models()[0] == "zoo/both"
    assert "covers 2 of 2" in page.hits()[0]["text"]
    page.click("level-output")
    page.until(lambda: len(page.all("hit")) == 20, "hits that are outputs")
    assert asked(page) == {"q": ["cat", "chair"]}


def test_filters_narrow_the_hits_and_are_part_of_the_address(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    assert {"org/things", "zoo/both"} <= set(page.models())
    page.click("filters")
    page.click("filter-library-transformers")
    page.until(lambda: set(page.models()) == {"org/things"}, "hits of one library")
    assert asked(page) == {"q": ["cat"], "where": ["library=transformers"]}
    assert page.read("active-filter") and "transformers" in page.read("active-filter")[0]
    page.click("filter-library-onnx")
    page.until(lambda: set(page.models()) == {"org/things", "zoo/wrong"}, "hits of two libraries")
    page.js("const s = document.querySelector('[data-testid=filter-max-parameters]'); s.value = '10M';"
            "s.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    page.until(lambda: set(page.models()) == {"org/things"}, "hits of small models")
    assert asked(page)["where"] == ["library=transformers", "library=onnx", "max-parameters=10M"]
    for _ in range(3):
        page.click(page.js("return document.querySelector('[data-testid=active-filter] button')"))
        page.settle()
    page.until(lambda: len(set(page.models())) > 2 and "where" not in page.path, "all models again")


def test_a_filter_that_nothing_passes(page: Page) -> None:
    page.open("/?q=cat&where=library%3Dnobody")
    page.settle()
    (empty,) = page.shown("empty-state")
    assert "filter" in empty.text.lower() and not page.all("hit")
    page.click(empty.find_element("css selector", "button"))
    page.until(lambda: len(page.all("hit")) == 10, "hits without the filter")
    assert page.path == "/?q=cat"


def test_what_a_hit_says(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    page.until(lambda: all(hit["name"] in VOCABULARY for hit in page.hits()[:2]), "found names")
    hits = {hit["model"]: hit for hit in reversed(page.hits())}
    animals, both = hits["org/animals"], hits["zoo/both"]
    assert (animals["label"], animals["name"]) == ("cat", "cat")
    assert (both["label"], both["name"]) == ("no label", "cat")
    assert "nearer than all 60 background phrases" in animals["percentile"]
    for part in ("timm", "mit", "1 k", "50", "resnet18"):
        assert part in animals["facts"], part
    assert "licence not stated" in both["facts"]
    assert animals["href"] == "https://huggingface.co/org/animals"
    assert "mirror/animals" in animals["text"] and "mirror/pets" in animals["text"]
    link = page.first("hit-link")
    assert link.get_attribute("target") == "_blank"
    assert {"noopener", "noreferrer"} <= set((link.get_attribute("rel") or "").split())


def test_a_wrong_label_stands_beside_what_the_output_does(page: Page) -> None:
    page.open("/?q=horse&where=model%3Dzoo/wrong&k=5")
    page.until(lambda: page.hits() and page.hits()[0]["name"] == "horse", "the found name")
    (first, *_) = page.hits()
    assert first["label"] == "submarine" and "disagrees" in first["text"]


def test_bars_are_as_long_as_their_margins(page: Page, service: str) -> None:
    page.open("/?q=cat&k=20")
    page.settle()
    page.calm()
    margins = [float(hit["margin"]) for hit in answer(service, concepts=["cat"], k=20)]  # type: ignore[arg-type]
    widths = page.js(
        """return [...document.querySelectorAll("[data-testid=hit-margin]")].map((e) => {
          const fill = e.querySelector(".margin-fill").getBoundingClientRect();
          return fill.width / e.querySelector(".margin-track").getBoundingClientRect().width;
        })"""
    )
    span = max(0, *margins) - min(0, *margins)
    assert len(widths) == len(margins)
    assert widths == pytest.approx([abs(margin) / span for margin in margins], abs=0.02)


def test_usage_code_is_shown_and_copied(page: Page, service: str) -> None:
    page.open("/?q=cat&where=model%3Dorg/animals")
    page.settle()
    hit = page.first("hit")
    assert not page.all("code-text")
    page.click(hit.find_element("css selector", "[data-testid=hit-code]"))
    code = page.one("code-text").text
    expected = httpx.get(f"{service}/v1/models/org/animals/usage", params={"output": 0}).json()
    assert code == expected["code"].strip()
    compile(code, "usage", "exec")
    assert "timm" in code and COMMIT in code
    origin = {"origin": page.base, "permission": {"name": "clipboard-read"}, "setting": "granted"}
    page.cdp("Browser.setPermission", **origin)
    page.cdp("Browser.setPermission", **(origin | {"permission": {"name": "clipboard-write"}}))
    page.click("copy-code")
    page.until(lambda: "Copied" in page.one("copy-code").text, "a word that it was copied")
    pasted = page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](`${e}`))"
    )
    assert pasted == expected["code"]


def test_evidence_is_shown_and_enlarged(page: Page, service: str) -> None:
    page.open("/?q=cat")
    page.settle()
    expected = answer(service, concepts=["cat"], explain=True)[0]["probes"]
    hit = page.first("hit")
    thumbs = page.all("probe-thumb", hit)
    assert 4 <= len(thumbs) <= len(expected)  # type: ignore[arg-type]
    page.until(lambda: all(page.loaded_thumbs(hit)), "the thumbnails")
    probe = expected[0]["probe"]  # type: ignore[index]
    source = page.js("const t = arguments[0]; return (t.matches('img') ? t : t.querySelector('img')).src", thumbs[0])
    assert f"/v1/probes/{probe}/image" in source
    opener = page.js("return arguments[0].closest('button') ?? arguments[0].querySelector('button')", thumbs[0])
    opener.click()
    box = page.one("lightbox")
    assert page.js("return arguments[0].matches(':modal')", box)
    page.until(lambda: page.js("return arguments[0].querySelector('img').naturalWidth > 0", box), "the large image")
    assert str(expected[0]["file"]) in box.text  # type: ignore[index]
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: str(expected[1]["file"]) in page.one("lightbox").text, "the next photograph")  # type: ignore[index]
    page.press(Keys.ESCAPE)
    page.gone("lightbox")
    assert page.js("return document.activeElement === arguments[0]", opener)


def test_more_like_an_output(page: Page) -> None:
    page.open("/?q=cat&where=model%3Dorg/animals")
    page.settle()
    page.click("more-like")
    page.until(lambda: asked(page) == {"like": ["org/animals#0"]}, "another question")
    page.until(lambda: page.models()[:1] == ["zoo/both"], "the same output of another model")
    assert "org/animals" not in page.models()


def test_labels_can_speak_for_a_hit(page: Page) -> None:
    page.open("/?q=submarine")
    page.settle()
    before = page.models()[0], page.hits()[0]["label"]
    page.click("filters")
    page.click(page.js("return document.querySelector('[data-testid=advanced] summary')"))
    page.click("evidence-labels")
    page.until(lambda: page.hits() and page.hits()[0]["label"] == "submarine", "the output with that label")
    assert before != ("zoo/wrong", "submarine") and asked(page)["evidence"] == ["labels"]


def test_more_hits(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    page.click("filters")
    page.click(page.js("return document.querySelector('[data-testid=advanced] summary')"))
    page.js("const s = document.querySelector('[data-testid=hits-per-question]'); s.value = '5';"
            "s.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    page.until(lambda: len(page.all("hit")) == 5, "five hits")
    assert asked(page)["k"] == ["5"]


def test_pasted_lines_are_several_concepts(page: Page) -> None:
    page.open()
    page.js(
        """const t = new DataTransfer(); t.setData("text/plain", "cat\\ndog\\n\\n owl ");
        document.querySelector("[data-testid=search-box]").dispatchEvent(
          new ClipboardEvent("paste", {clipboardData: t, bubbles: true, cancelable: true}))"""
    )
    page.settle()
    assert chips(page) == ["cat", "dog", "owl"]


def test_a_concept_that_is_too_long_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    page.errors_expected = ("400 (Bad Request)",)
    page.open("/?q=" + "w" * 1500)
    page.settle()
    assert "1500 characters" in page.one("error-state").text and not page.all("hit")


def test_facts_do_not_wait_for_names(page: Page) -> None:
    page.open()
    page.js(
        """const real = window.fetch;
        window.fetch = (path, given) => path === "/v1/outputs" && JSON.parse(given.body).names > 0
          ? new Promise((_, reject) => given.signal.addEventListener("abort", () => reject(given.signal.reason)))
          : real(path, given);"""
    )
    page.search("cat")
    page.until(lambda: page.hits()[0]["href"], "the link to the Hub")
    assert "timm" in page.hits()[0]["facts"] and page.hits()[0]["name"] == "…"


@pytest.mark.parametrize("like", ["org/animal%230", "no/such%233", "org/animals%2399"])
def test_what_others_shall_be_like_is_not_there(page: Page, like: str) -> None:
    page.errors_expected = ("400 (Bad Request)", "404 (Not Found)")
    page.open(f"/?like={like}&where=library%3Dtimm")
    page.settle()
    (notice,) = [*page.shown("error-state"), *page.shown("empty-state")]
    words = [button.text for button in notice.find_elements("css selector", "button")]
    assert words == ["Clear the filters", "Clear the search"] and "GET" not in notice.text
    page.click(notice.find_elements("css selector", "button")[1])
    page.until(lambda: page.path == "/" and page.focused()["testid"] == "search-box", "an empty box")


@pytest.mark.parametrize("button", ["meanings-button", "hit-code"])
def test_what_opens_is_closed_at_the_same_place(page: Page, button: str) -> None:
    for width in (1280, 360):
        page.resize(width)
        page.open("/?q=cat")
        page.settle()
        page.until(lambda: page.hits()[0]["href"], "facts")
        opener = page.first(button)

        def stands(opener: object = opener) -> tuple[float, float]:
            box = page.js(
                "const b = arguments[0].getBoundingClientRect(); return [b.x + scrollX, b.y + scrollY]", opener
            )
            return box[0], box[1]

        before = stands()
        page.click(opener)
        panel = page.js("return document.getElementById(arguments[0].getAttribute('aria-controls'))", opener)
        assert panel.is_displayed() and opener.get_attribute("aria-expanded") == "true"
        assert stands() == pytest.approx(before, abs=0.5)
        opener.click()
        assert not panel.is_displayed() and opener.get_attribute("aria-expanded") == "false"


def test_all_of_the_code_can_be_seen(page: Page) -> None:
    page.open("/?q=cat&where=model%3Dorg/animals")
    page.settle()
    page.click("hit-code")
    page.one("code-text")
    hidden = page.js("const p = document.querySelector('.code pre'); return p.scrollHeight - p.clientHeight")
    assert hidden <= 0


def test_what_speaks_for_a_hit_is_a_sentence(page: Page) -> None:
    page.open("/?q=cat&evidence=both")
    page.settle()
    said = [" ".join(line.split(" (")[0].split()) for line in page.read("hit-witnesses")]
    assert "responses and label speak for it" in said
    assert set(said) <= {
        "responses and label speak for it", "responses speak for it", "label speaks for it",
        "neither responses nor label speak for it",
    }  # fmt: skip


def test_only_concepts_are_called_so(page: Page) -> None:
    page.open("/?like=org/animals%230")
    page.settle()
    page.click("meanings-button")
    assert "what you asked for" in page.one("meanings").text and "Agrees" in page.one("meanings").text
    assert "concept" not in page.one("results").text.lower()
