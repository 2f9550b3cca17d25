"""The page's files and the routes that serve them: nothing inline, nothing from outside, no way out of the folder."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from query.api import bodies, errors
from query.api.routes import page
from query.api.routes.page import CONTENT_POLICY, MEDIA_TYPES, WEB
from query.api.settings import Settings

FILES = sorted(WEB.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
SHEETS = [file for file in FILES if file.suffix == ".css"]
HOOKS = {
    *("search-box", "chip", "chip-remove", "search-button", "level-output", "level-model", "filters", "filter-library"),
    *("drop-zone", "image-chip", "results", "hit", "hit-model", "hit-label", "hit-name", "hit-margin"),
    *("hit-percentile", "hit-facts", "hit-link", "hit-code", "code-text", "copy-code", "evidence", "probe-thumb"),
    *("empty-state", "error-state", "loading-state", "tab-search", "tab-recommend", "tab-index", "theme-toggle"),
    *("model-page", "model-outputs", "profile-heatmap", "similar-models", "copies", "recommend-drop"),
    *("recommend-start", "recommend-progress", "recommend-cancel", "ranking", "source-bar", "index-view"),
    *("hubness-curve", "key-form", "key-input", "model-list", "model-filter", "meanings-button"),
}
"""What tests of the page find its elements by."""
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|DOMParser|document\.write|srcdoc\s*[:=]"
    r"|setHTMLUnsafe|\beval\s*\(|new\s+Function|setTimeout\(\s*[\"'`]|javascript:"
)
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}


def code(file: Path) -> str:
    """A script or style sheet without its comments."""
    text = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"^\s*//.*$|\s//\s.*$", "", text, flags=re.MULTILINE)


class Elements(HTMLParser):
    """The elements of a document, as (tag, attributes), and what stands inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._raw = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if self._raw and data.strip():
            self.inline.append(data)


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    errors.install(app)
    app.include_router(page.router)
    return TestClient(app)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_never_make_markup_or_code_of_strings(file: Path) -> None:
    # one place may name what it refuses: dom.js rejects the prop "srcdoc"
    found = [match[0] for match in MARKUP.finditer(code(file))]
    assert not found


@pytest.mark.parametrize("line", ["x.innerHTML = y", "eval (x)", 'setTimeout("x()", 1)', "new  Function(x)"])
def test_the_pattern_finds_what_it_is_for(line: str) -> None:
    assert MARKUP.search(line)


@pytest.mark.parametrize("file", [*SCRIPTS, *SHEETS], ids=lambda file: file.name)
def test_nothing_is_loaded_from_outside(file: Path) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9][a-z0-9.-]*\.[a-z]{2,}(?:/[^\s\"'`)]*|(?=[\"'`]))", code(file)))
    assert addresses <= NAMESPACES
    if file.suffix == ".css":
        assert not re.search(r"@import|url\(", code(file))
    else:
        assert not re.search(r"\bWebSocket\b|\bEventSource\b|sendBeacon|importScripts", code(file))


def test_scripts_import_only_files_that_exist() -> None:
    for file in SCRIPTS:
        for name in re.findall(r"""(?:\}\s*from\s*|^import\s*|import\(\s*)["']([^"']+)["']""", code(file), re.M):
            assert name.startswith("./"), f"{file.name} imports {name}"
            assert (WEB / name).is_file(), f"{file.name} imports {name}"


def test_every_script_is_reached_from_the_document() -> None:
    reached, todo = set(), ["app.js", "theme.js"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += re.findall(r"""["']\./([a-z_]+\.js)["']""", code(WEB / name))
    assert reached == {file.name for file in SCRIPTS}


def test_every_name_that_is_imported_is_exported() -> None:
    for file in SCRIPTS:
        for names, other in re.findall(r"""import\s*\{([^}]*)\}\s*from\s*["']\./([^"']+)["']""", code(file)):
            exported = set(
                re.findall(r"^export\s+(?:async\s+)?(?:function\*?|const|let|class)\s+(\w+)", code(WEB / other), re.M)
            )
            wanted = {name.split(" as ")[0].strip() for name in names.split(",") if name.strip()}
            assert wanted <= exported, f"{file.name} imports {wanted - exported} from {other}"


def test_the_document_has_nothing_inline_and_all_it_names() -> None:
    document = Elements((WEB / "index.html").read_text(encoding="utf-8"))
    assert not document.inline
    for tag, attributes in document.found:
        assert tag not in {"style", "base", "iframe", "object", "embed"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            address = attributes.get(name)
            if address is None or address.startswith("#"):
                continue
            assert address.startswith("/") and not address.startswith("//")
            if address.startswith("/web/"):
                assert (WEB / address.removeprefix("/web/")).is_file(), address
    sheets = {a["href"] for tag, a in document.found if tag == "link" and a.get("rel") == "stylesheet"}
    assert sheets == {f"/web/{file.name}" for file in SHEETS}


def test_every_hook_for_tests_is_in_the_sources() -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in FILES if file.suffix in {".js", ".html"})
    made = set(re.findall(r"""(?:testid|data-testid)["']?\]?\s*[:=]\s*["'`]([^"'`]+)["'`]""", sources))
    patterns = [re.escape(name).replace(r"\$\{", "${") for name in made if not name.startswith("${")]
    patterns = [re.sub(r"\$\{.*?\}", "[a-z-]+", pattern) for pattern in patterns]
    missing = {hook for hook in (*HOOKS, "no-such-hook") if not any(re.fullmatch(p, hook) for p in patterns)}
    assert missing == {"no-such-hook"}


def test_outside_links_give_nothing_away() -> None:
    for file in SCRIPTS:
        for call in re.findall(r"target: \"_blank\"[^}]*", code(file)):
            assert "noopener noreferrer" in call, file.name


def test_the_drawing_is_a_drawing_only() -> None:
    for file in WEB.glob("*.svg"):
        tags = {element.tag for element in xml.etree.ElementTree.parse(file).iter()}  # noqa: S314  (our own file)
        assert not {tag for tag in tags if tag.endswith(("script", "foreignObject", "image", "use"))}


def test_folder_holds_only_what_is_served(client: TestClient) -> None:
    for file in FILES:
        answer = client.get(f"/web/{file.name}")
        assert answer.status_code == 200, file.name
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == MEDIA_TYPES[file.suffix.removeprefix(".")]
        assert answer.headers["content-security-policy"] == CONTENT_POLICY


def test_root_is_the_document_and_is_never_stale(client: TestClient) -> None:
    first = client.get("/?q=golden+retriever")
    assert first.content == (WEB / "index.html").read_bytes()
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["content-security-policy"] == CONTENT_POLICY
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_changed_file_has_another_tag(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.js").write_text("1")
    monkeypatch.setattr(page, "WEB", tmp_path)
    old = client.get("/web/app.js").headers["etag"]
    (tmp_path / "app.js").write_text("2")
    answer = client.get("/web/app.js", headers={"If-None-Match": old})
    assert (answer.status_code, answer.text) == (200, "2")


def test_head_has_the_headers_and_no_content(client: TestClient) -> None:
    answer = client.head("/web/app.js")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] == client.get("/web/app.js").headers["etag"]


def test_favicon_is_the_icon(client: TestClient) -> None:
    answer = client.get("/favicon.ico")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.content == (WEB / "icon.svg").read_bytes()


def test_policy_allows_nothing_inline_and_nothing_outside() -> None:
    policy = dict(part.split(" ", 1) for part in CONTENT_POLICY.split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "....//app.py", "/etc/passwd",
        "%2fetc%2fpasswd", "app.js/", "app.js%00.html",  "App.js", "", ".", "sub/app.js", "app.py",
        "a" * 5000 + ".js",
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    folder = tmp_path / "web"
    (folder / "sub").mkdir(parents=True)
    (folder / "app.js").write_text("1")
    (folder / "app.py").write_text("secret")
    (folder / "sub" / "app.js").write_text("secret")
    (tmp_path / "app.py").write_text("secret")
    monkeypatch.setattr(page, "WEB", folder)
    answer = client.get(f"/web/{name}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:hubhound:problem:not-found"
    assert "secret" not in answer.text and str(tmp_path) not in answer.text


def test_a_folder_with_a_files_name_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    (tmp_path / "app.js").mkdir()
    monkeypatch.setattr(page, "WEB", tmp_path)
    assert client.get("/web/app.js").status_code == 404


def test_other_methods_are_refused(client: TestClient) -> None:
    assert client.post("/web/app.js").status_code == 405


def test_the_page_keeps_no_more_of_an_address_than_a_search_takes() -> None:
    """A link that holds more would be refused."""
    found = re.search(r"const MOST = \{ concepts: (\d+), where: (\d+), k: (\d+) \}", code(WEB / "state.js"))
    assert found is not None
    defaults = Settings.model_fields
    assert tuple(map(int, found.groups())) == (
        defaults["max_concepts"].default,
        bodies.MOST_CONDITIONS,
        defaults["max_hits"].default,
    )
