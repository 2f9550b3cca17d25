"""A page in a tab of a real browser, by the words of its tests."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
PATIENCE_S = 20.0
AXE_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")

_READ = """
const of = (root, id) => root.querySelector(`[data-testid="${id}"]`);
const text = (root, id) => of(root, id)?.innerText.trim() ?? null;
"""

_DROP = """
const [where, files, kind] = arguments;
const transfer = new DataTransfer();
for (const [name, type, content] of files) {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  transfer.items.add(new File([bytes], name, {type}));
}
const event = (name) => kind === "paste"
  ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
  : new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true});
if (kind === "paste") return !where.dispatchEvent(event("paste"));
for (const name of ["dragenter", "dragover"]) where.dispatchEvent(event(name));
return !where.dispatchEvent(event("drop"));
"""


class Page:
    """One tab, with everything that it said and fetched.

    Args:
        driver: Of the browser; its current window is this page's.
        base: Where the service is, ``http://127.0.0.1:PORT``.
    """

    def __init__(self, driver: WebDriver, base: str) -> None:
        self.driver = driver
        self.base = base
        self.errors_expected: tuple[str, ...] = ()
        """Parts of what the console may say at the end of the test."""

    # -- going and waiting

    def open(self, path: str = "/") -> None:
        """Goes to an address and waits until a view is there."""
        self.driver.get(self.base + path)
        self.until(lambda: self.js("return !!document.querySelector('#view h1')"), f"a view at {path}")

    def until(self, ready: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
        """What ``ready`` answers as soon as it is true."""
        end = time.monotonic() + patience_s
        while True:
            found = ready()
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come within {patience_s:g} s; the page says: {self.text[:2000]}")
            time.sleep(0.03)

    def js(self, script: str, *arguments: object) -> Any:
        """Runs a script; its ``return``."""
        return self.driver.execute_script(script, *arguments)

    def cdp(self, command: str, **arguments: object) -> Any:
        """One command of the browser's own protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    # -- looking

    @property
    def path(self) -> str:
        """Path and query string of the address."""
        return str(self.js("return location.pathname + location.search"))

    @property
    def title(self) -> str:
        return self.driver.title

    @property
    def text(self) -> str:
        """All that can be read."""
        return str(self.js("return document.body.innerText"))

    def all(self, testid: str, inside: WebElement | None = None) -> list[WebElement]:
        """The elements of a hook, in the order of the page."""
        found: list[WebElement] = self.js(
            'return [...(arguments[1] ?? document).querySelectorAll(`[data-testid="${arguments[0]}"]`)]',
            testid,
            inside,
        )
        return found

    def shown(self, testid: str) -> list[WebElement]:
        """Those elements of a hook that take up room on the page."""
        return [
            element for element in self.all(testid) if self.js("return arguments[0].getClientRects().length", element)
        ]

    def one(self, testid: str, inside: WebElement | None = None) -> WebElement:
        """The only element of a hook, waited for."""
        found = self.until(lambda: self.all(testid, inside), f"an element {testid}")
        assert len(found) == 1, f"{len(found)} elements {testid}"
        return found[0]

    def first(self, testid: str, inside: WebElement | None = None) -> WebElement:
        """The first element of a hook, waited for."""
        return self.until(lambda: self.all(testid, inside), f"an element {testid}")[0]

    def gone(self, testid: str) -> None:
        """Waits until no element of a hook is left."""
        self.until(lambda: not self.all(testid), f"the end of {testid}")

    def read(self, testid: str) -> list[str]:
        """What each element of a hook says, as it can be seen."""
        found: list[str] = self.js(
            'return [...document.querySelectorAll(`[data-testid="${arguments[0]}"]`)].map((e) => e.innerText.trim())',
            testid,
        )
        return found

    def hits(self) -> list[dict[str, Any]]:
        """The hits that are shown."""
        found: list[dict[str, Any]] = self.js(
            _READ
            + """
            return [...document.querySelectorAll('[data-testid="hit"]')].map((hit) => ({
              model: text(hit, "hit-model"), label: text(hit, "hit-label"), name: text(hit, "hit-name"),
              margin: text(hit, "hit-margin"), percentile: text(hit, "hit-percentile"), facts: text(hit, "hit-facts"),
              href: of(hit, "hit-link")?.getAttribute("href") ?? null, text: hit.innerText,
              thumbs: hit.querySelectorAll('[data-testid="probe-thumb"]').length,
            }));"""
        )
        return found

    def models(self) -> list[str]:
        """The models of the hits, in order."""
        return [hit["model"] for hit in self.hits()]

    def loaded_thumbs(self, inside: WebElement | None = None) -> list[int]:
        """Widths in pixels of the probe images that have arrived; those without are 0."""
        widths: list[int] = self.js(
            """
            const thumbs = [...(arguments[0] ?? document).querySelectorAll('[data-testid="probe-thumb"]')];
            return thumbs.map((thumb) => thumb.matches("img") ? thumb : thumb.querySelector("img"))
              .map((image) => image && image.complete ? image.naturalWidth : 0);""",
            inside,
        )
        return widths

    def focused(self) -> dict[str, Any]:
        """Which element has the focus: hook, tag, text, and whether one sees it."""
        found: dict[str, Any] = self.js(
            """
            const e = document.activeElement;
            const style = getComputedStyle(e);
            const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
            const box = e.getBoundingClientRect();
            let ring = outlined || style.boxShadow !== "none";
            if (!ring && e.matches("input")) { // drawn round the label, or round the box that it is a part of
              const around = [e.closest("label"), e.closest("[data-testid=drop-zone]")].filter(Boolean);
              const drawn = (part) => {
                const style = getComputedStyle(part);
                return `${style.outline} ${style.boxShadow}`;
              };
              const still = (part) => { // with all transitions at their end
                for (const one of part.getAnimations()) one.finish();
                return drawn(part);
              };
              const with_ = around.map(still);
              e.blur();
              const without = around.map(still);
              e.focus({focusVisible: true, preventScroll: true});
              ring = with_.some((one, i) => one !== without[i]);
            }
            return {testid: e.dataset.testid ?? null, tag: e.tagName.toLowerCase(), text: e.innerText ?? "",
                    ring, seen: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight,
                    visible: e.matches(":focus-visible")};"""
        )
        return found

    # -- doing

    def search(self, *concepts: str) -> None:
        """Types concepts, each ended with Enter, and starts the search if Enter has not."""
        box = self.one("search-box")
        for concept in concepts:
            box.send_keys(concept + "\n")
        self.settle()

    def search_without_waiting(self, concept: str) -> None:
        """Types a concept and Enter."""
        self.one("search-box").send_keys(concept + "\n")

    def wait_s(self, seconds: float) -> None:
        """Gives something the time to happen that must not happen."""
        time.sleep(seconds)

    def settle(self) -> None:
        """Waits until what was asked has been answered in one way or another."""
        self.until(
            lambda: self.js(
                """
                const all = (id) => [...document.querySelectorAll(`[data-testid="${id}"]`)];
                const has = (id) => all(id).some((e) => e.getClientRects().length > 0);
                const busy = document.querySelector("[aria-busy=true]");
                return !busy && !has("loading-state") && (has("hit") || has("empty-state") || has("error-state"));"""
            ),
            "an answer",
        )

    def click(self, element: WebElement | str) -> None:
        """Clicks as a mouse does, in the middle of what is seen."""
        target = self.first(element) if isinstance(element, str) else element
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", target)
        target.click()

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other, wherever the focus is."""
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def press_back(self) -> None:
        """Presses Tab with Shift."""
        keys = ActionChains(self.driver, duration=0).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT)
        keys.perform()

    def give(self, paths: Sequence[Path], where: WebElement | None = None, kind: str = "drop") -> bool:
        """Drops or pastes files; answers whether the page took them rather than the browser."""
        target = where if where is not None else self.js("return document.body")
        kinds = {".png": "image/png", ".jpg": "image/jpeg", ".txt": "text/plain"}
        content = [(p.name, kinds[p.suffix], base64.b64encode(p.read_bytes()).decode()) for p in paths]
        return bool(self.js(_DROP, target, content, kind))

    def another_tab(self, path: str) -> None:
        """Goes on in a fresh tab, as somebody who was sent the address."""
        self.driver.switch_to.new_window("tab")
        self.open(path)

    # -- how it looks

    def prefer(self, scheme: str, motion: str = "no-preference") -> None:
        """What the system prefers: light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int = 800) -> None:
        """The size of the viewport in CSS pixels."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def luminance(self, selector: str = "body", what: str = "backgroundColor") -> float:
        """Relative luminance of a colour (WCAG), 0 to 1."""
        numbers = self.js(
            """
            const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
            const context = canvas.getContext("2d", {willReadFrequently: true});
            context.fillStyle = getComputedStyle(document.querySelector(arguments[0]))[arguments[1]];
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data];""",
            selector,
            what,
        )
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in numbers[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def axe(self) -> list[str]:
        """What axe-core finds against WCAG 2 A and AA, one line a violation."""
        self.calm()
        if not self.js("return !!window.axe"):
            self.js((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            """
            const done = arguments[arguments.length - 1];
            axe.run(document, {runOnly: {type: "tag", values: arguments[0]}, resultTypes: ["violations"]})
              .then((all) => done(all.violations), (error) => done([{id: String(error), nodes: []}]));""",
            list(AXE_RULES),
        )
        return [
            f"{one['id']}: {node['html'][:160]} ({node.get('failureSummary', '')[:300]})"
            for one in found
            for node in (one["nodes"] or [{"html": ""}])
        ]

    def calm(self) -> None:
        """Waits until nothing moves: colours are only themselves when transitions have ended."""
        self.until(
            lambda: self.js("return document.getAnimations().every((a) => a.playState !== 'running' || !isFinite("
                            "a.effect?.getComputedTiming().endTime ?? Infinity))"),
            "the end of all transitions",
        )  # fmt: skip

    def shoot(self, name: str, *, whole: bool = False) -> Path | None:
        """A picture of the page, in the folder that HUBHOUND_SCREENSHOTS names, if it does."""
        folder = os.environ.get("HUBHOUND_SCREENSHOTS")
        if not folder:
            return None
        self.calm()
        path = Path(folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    # -- what it did

    def console(self) -> list[str]:
        """Warnings and errors since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self) -> list[str]:
        """Addresses that the tab asked for since it was last asked."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def outside(self, urls: Sequence[str]) -> list[str]:
        """Those addresses that are not the service's."""
        own = urlsplit(self.base)
        return [
            url
            for url in urls
            if urlsplit(url).scheme not in {"blob", "data", "about"} and urlsplit(url)[:2] != (own.scheme, own.netloc)
        ]

    def leave(self) -> None:
        """Goes away from a service that is about to end, which what is still loaded would complain of."""
        self.check()
        self.driver.get("about:blank")

    def check(self) -> None:
        """What holds at the end of every test: nothing asked elsewhere, nothing run, nothing to complain of."""
        assert self.outside(self.requests()) == []
        assert self.js("return window.pwned ?? null") is None
        unexpected = [line for line in self.console() if not any(part in line for part in self.errors_expected)]
        assert unexpected == []
