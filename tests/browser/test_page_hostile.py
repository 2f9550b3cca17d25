"""Nothing of a model card is ever markup, a script or an address; nothing is fetched from anywhere else."""

from __future__ import annotations

import httpx
import pytest
from selenium.common.exceptions import NoAlertPresentException

from tests.browser.page import Page
from tests.browser.zoos import HOSTILE_CONCEPTS, HOSTILE_LABELS, JS_REPO, LONG_REPO, STRANGE_REPO

_MADE_BY_LABELS = """
return [...document.querySelectorAll("script, img, svg, iframe, b, form, a, object, embed")].filter((e) =>
  e.outerHTML.includes("pwned") && !e.matches("a[href^='/?']")).filter((e) => {
    if (e.tagName === "A") return !/^https?:/.test(e.href);
    return [...e.attributes].some((a) => a.name.startsWith("on") || a.name === "srcdoc") || e.tagName === "SCRIPT"
      || e.tagName === "IFRAME";
  }).map((e) => e.outerHTML.slice(0, 200))"""


def nothing_ran(page: Page) -> None:
    assert page.js("return window.pwned ?? null") is None
    assert page.js(_MADE_BY_LABELS) == []
    assert page.js("return [...document.scripts].every((s) => s.src.startsWith(location.origin + '/web/'))")
    with pytest.raises(NoAlertPresentException):
        _ = page.driver.switch_to.alert.text


def contents(page: Page, testid: str) -> list[str]:
    """Text content as it is, without the browser's layout."""
    found: list[str] = page.js(
        'return [...document.querySelectorAll(`[data-testid="${arguments[0]}"]`)].map((e) => e.textContent)', testid
    )
    return found


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_labels_of_hits_are_text(hostile_page: Page) -> None:
    page = hostile_page
    for concept, label in zip(HOSTILE_CONCEPTS, HOSTILE_LABELS, strict=True):
        page.open(f"/?q={concept.replace(' ', '+')}&where=model%3Devil/labels&k=1")
        page.settle()
        (shown,) = contents(page, "hit-label")
        if label:
            assert squeezed(shown.replace("\ufffd", "\x00")) == squeezed(label), label[:60]
        nothing_ran(page)


def test_labels_and_facts_of_a_model_are_text(hostile_page: Page) -> None:
    page = hostile_page
    page.open("/?model=evil/labels")
    page.one("model-outputs")
    page.until(lambda: "pwned" in page.one("model-outputs").text, "the labels")
    text = squeezed(str(page.js("return arguments[0].textContent", page.one("model-page"))))
    for label in HOSTILE_LABELS[:6]:
        assert squeezed(label) in text, label
    assert "window.pwned=3" in text  # the licence
    nothing_ran(page)


@pytest.mark.parametrize("repo", [LONG_REPO, STRANGE_REPO, JS_REPO], ids=["long", "strange", "javascript"])
def test_models_with_names_at_the_limit(hostile_page: Page, repo: str) -> None:
    page = hostile_page
    page.open(f"/?q={HOSTILE_CONCEPTS[0].replace(' ', '+')}&k=20")
    page.settle()
    page.until(lambda: repo in contents(page, "hit-model"), "the model's hit")
    at = contents(page, "hit-model").index(repo)
    hit = page.all("hit")[at]
    assert not page.js("return [...arguments[0].querySelectorAll('a')].some((a) => !/^https?:/.test(a.href))", hit)
    page.click(page.one("hit-model", hit))
    page.one("model-page")
    page.until(lambda: page.all("model-outputs"), "its outputs")
    assert repo in str(page.js("return arguments[0].textContent", page.one("model-page")))
    nothing_ran(page)
    page.another_tab(page.path)
    page.one("model-outputs")
    assert repo in str(page.js("return arguments[0].textContent", page.one("model-page")))
    nothing_ran(page)


@pytest.mark.parametrize(
    "view", ["/?view=index", "/?q=cat&where=licence%3D%3Cimg src%3Dx onerror%3Dwindow.pwned%3D1%3E"]
)
def test_other_views_of_a_hostile_index(hostile_page: Page, view: str) -> None:
    page = hostile_page
    page.open(view)
    if "index" in view:
        page.one("index-view")
    else:
        page.settle()
    page.until(lambda: "pwned" in page.text, "the licences")
    nothing_ran(page)


@pytest.mark.parametrize(
    "path",
    [
        "/?q=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E&k=1",
        "/?model=%3Cscript%3Ewindow.pwned%3D1%3C/script%3E",
        "/?like=%22%3E%3Csvg%20onload%3Dwindow.pwned%3D1%3E%231",
        "/?q=cat&where=library%3D%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
        "/?view=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
    ],
)
def test_an_address_is_text_too(hostile_page: Page, path: str) -> None:
    page = hostile_page
    page.errors_expected = ("400 (Bad Request)", "404 (Not Found)")
    page.open(path)
    page.until(
        lambda: page.js("return !document.querySelector('[aria-busy=true], [data-testid=loading-state]')"), "an end"
    )
    nothing_ran(page)


def test_the_names_of_probes_and_found_names_are_text(hostile_page: Page) -> None:
    page = hostile_page
    page.open(f"/?q={HOSTILE_CONCEPTS[0].replace(' ', '+')}&k=3")
    page.settle()
    page.until(lambda: any(name and name != "…" for name in page.read("hit-name")), "found names")
    nothing_ran(page)


def test_usage_code_of_hostile_models(hostile_page: Page) -> None:
    page = hostile_page
    page.errors_expected = ("400 (Bad Request)", "404 (Not Found)")
    page.open(f"/?q={HOSTILE_CONCEPTS[0].replace(' ', '+')}&k=4")
    page.settle()
    assert len(page.all("hit")) == 4
    for hit in page.all("hit"):
        page.click(hit.find_element("css selector", "[data-testid=hit-code]"))
        page.until(lambda one=hit: page.all("code-text", one) or page.all("error-state", one), "the code")
        for code in page.all("code-text", hit):
            compile(str(page.js("return arguments[0].textContent", code)), "usage", "exec")
    nothing_ran(page)


def test_an_injected_script_does_not_run(page: Page) -> None:
    page.errors_expected = ("Content Security Policy", "violates the following")
    page.open()
    page.js(
        """
        window.refused = [];
        document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.effectiveDirective));
        document.body.append(Object.assign(document.createElement("script"), {textContent: "window.pwned = 1"}));
        const holder = document.createElement("div");
        holder.innerHTML = '<img src="data:image/png;base64,x" onerror="window.pwned = 2"><b style="color: red">x</b>';
        document.body.append(holder);
        const script = {src: "data:text/javascript,window.pwned=3"};
        document.body.append(Object.assign(document.createElement("script"), script));
        document.body.append(Object.assign(document.createElement("iframe"), {src: "/"}));
        fetch("http://127.0.0.1:9/outside").catch(() => {});
        """
    )
    wanted = {"script-src-elem", "script-src-attr", "style-src-attr", "connect-src", "frame-src", "img-src"}
    page.until(lambda: wanted <= set(page.js("return window.refused")), "the policy's refusals")
    page.js("window.refused = []; setTimeout('window.pwned = 4', 0)")
    page.until(lambda: "script-src" in page.js("return window.refused"), "the refusal of a text as a script")
    assert page.js("return window.pwned ?? null") is None


def test_headers_of_the_page(service: str) -> None:
    found = httpx.get(service + "/")
    policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in str(policy) and "*" not in str(policy) and "http" not in str(policy)
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "no-referrer" in (found.headers.get("referrer-policy", "") or found.text)
    for name in ("app.js", "style.css", "more.css", "theme.js"):
        assert httpx.get(f"{service}/web/{name}").status_code == 200


def test_all_that_is_loaded_is_the_services_own(page: Page) -> None:
    page.open("/?q=cat")
    page.settle()
    page.until(lambda: any(page.loaded_thumbs()), "thumbnails")
    for tab in ("tab-recommend", "tab-index", "tab-search"):
        page.click(tab)
        page.until(lambda: page.all("recommend-drop") or page.all("index-view") or page.all("search-box"), "a view")
    asked = page.requests()
    assert len(asked) > 10 and page.outside(asked) == []
    entries = page.js("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert entries and page.outside(entries) == []
