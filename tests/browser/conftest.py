"""One Chromium for all tests of the page, and the services that it looks at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.browser.page import Page
from tests.browser.zoos import make_hostile_zoo, make_zoo
from tests.support.service import listening, small_app
from tests.support.small_index import write_example

_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,900",
    # A headless browser believes that it has no mouse.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
)


def _program(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser: an installed one with its own driver, never one that is downloaded."""
    driver = os.environ.get("HUBHOUND_CHROMEDRIVER") or _program("chromedriver")
    binary = os.environ.get("HUBHOUND_CHROMIUM") or _program("chromium", "chromium-browser", "google-chrome", "chrome")
    if not driver or not binary:
        pytest.skip("needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not run as root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=ChromeService(executable_path=driver))
    browser.set_script_timeout(30)
    browser.set_page_load_timeout(30)
    yield browser
    browser.quit()


def _fresh_tab(browser: Chrome) -> None:
    """Leaves one new tab, in which nothing is emulated and nobody has been anywhere."""
    old = browser.window_handles
    browser.switch_to.new_window("tab")
    new = browser.current_window_handle
    for handle in old:
        browser.switch_to.window(handle)
        with suppress(WebDriverException):
            browser.close()
    browser.switch_to.window(new)
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})  # as if it stood in front


@pytest.fixture
def visit(chromium: Chrome) -> Iterator[Callable[[str], Page]]:
    """Makes the page of a service, in a tab without a past; checked when the test has ended."""
    _fresh_tab(chromium)
    made: list[Page] = []

    def make(base: str) -> Page:
        chromium.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": base, "storageTypes": "all"})
        for log in ("browser", "performance"):
            chromium.get_log(log)
        made.append(Page(chromium, base))
        return made[-1]

    yield make
    for page in made:
        page.check()


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes images in which the pretend encoder sees concepts."""

    def write(*concepts: str) -> list[Path]:
        return [write_example(tmp_path / f"{concept} {i}.png", concept, i) for i, concept in enumerate(concepts)]

    return write


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ordinary index."""
    return make_zoo(tmp_path_factory.mktemp("ordinary") / "zoo")


@pytest.fixture(scope="session")
def hostile_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index made by an enemy."""
    return make_hostile_zoo(tmp_path_factory.mktemp("hostile") / "zoo")


@contextmanager
def served(index: Path, **given: Any) -> Iterator[str]:
    """A service that really listens, with found names and without a limit on requests."""
    options = {"names": True, "vocabulary": index.parent / "words.txt", "rate_limit": 0, **given}
    with listening(small_app(index, **options)) as base:
        yield base


@pytest.fixture(scope="session")
def service(zoo: Path) -> Iterator[str]:
    """Where the ordinary index is served."""
    with served(zoo) as base:
        yield base


@pytest.fixture(scope="session")
def hostile_service(hostile_index: Path) -> Iterator[str]:
    """Where the enemy's index is served."""
    with served(hostile_index) as base:
        yield base


@pytest.fixture
def page(visit: Callable[[str], Page], service: str) -> Page:
    """The page over the ordinary index; not opened yet."""
    return visit(service)


@pytest.fixture
def hostile_page(visit: Callable[[str], Page], hostile_service: str) -> Page:
    """The page over the enemy's index; not opened yet."""
    return visit(hostile_service)
