"""The recommend tab: real images, real profiles of small models, progress, cancelling, the ranking and its reasons."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from query.cli.main import run
from tests.browser.page import Page
from tests.support.service import listening, small_app
from tests.support.tiny_vlm import COCA_CONFIG, PASSES, make_task_index, save_vlm, write_photos

GRACE_S = 0.3


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small vision-language models with profiles on three tasks, one with none."""
    root = tmp_path_factory.mktemp("tasks")
    names = [save_vlm(root / "vlm/one", 0), save_vlm(root / "vlm/two", 1)]
    unprofiled = save_vlm(root / "vlm/coca", 2, COCA_CONFIG)
    make_task_index(root / "zoo", [*names, unprofiled])
    assert run(["profile", *names, "--index", str(root / "zoo"), *PASSES]) == 0
    return root / "zoo"


HELD = """
import sys, time
from pathlib import Path
import engine.conductance as conductance
real, held, began = conductance.layer_conductance, Path(sys.argv[1]), Path(sys.argv[2])

def waiting(*arguments, **options):
    began.touch()
    while held.exists():
        time.sleep(0.05)
    return real(*arguments, **options)

conductance.layer_conductance = waiting
from query.api.job_child import main
main()
"""
"""The process of a job, which waits before every pass through a network as long as a file is there."""


class Gate:
    """Holds up every pass through a network while it is closed.

    Args:
        folder: For two files that the processes of jobs look at and make.
    """

    def __init__(self, folder: Path) -> None:
        self._held, self._began = folder / "held", folder / "began"

    @property
    def program(self) -> tuple[str, ...]:
        """What is run for a job."""
        return (sys.executable, "-c", HELD, str(self._held), str(self._began))

    @property
    def reached(self) -> bool:
        """Whether a job stands before it, or went through."""
        return self._began.exists()

    def close(self) -> None:
        self._held.touch()
        self._began.unlink(missing_ok=True)

    def open(self) -> None:
        self._held.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def advice(tasks: Path) -> Iterator[tuple[str, Gate]]:
    """Where recommendations are given, and what can hold them up; what takes longer than a moment is a job."""
    app = small_app(tasks, rate_limit=0, job_grace_s=GRACE_S)
    gate = Gate(tasks.parent)
    app.state.service.jobs.program = gate.program
    with listening(app) as base:
        yield base, gate


@pytest.fixture
def advisor(advice: tuple[str, Gate]) -> str:
    """Where recommendations are given."""
    return advice[0]


@pytest.fixture
def gate(advice: tuple[str, Gate]) -> Iterator[Gate]:
    """Closed, and open again at the end."""
    advice[1].close()
    yield advice[1]
    advice[1].open()


@pytest.fixture
def tab(visit: Callable[[str], Page], advisor: str) -> Page:
    page = visit(advisor)
    page.open("/?view=recommend")
    return page


def give(page: Page, paths: list[Path]) -> None:
    page.give(paths, page.one("recommend-drop"))
    page.until(lambda: len(page.all("image-chip")) == len(paths), "the images")


def ranked(page: Page) -> list[str]:
    return page.until(lambda: page.read("ranked"), "a ranking", patience_s=60)


def told(advisor: str, paths: list[Path]) -> dict[str, object]:
    """The service's own ranking, once all profiles are known."""
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in paths]
    found = httpx.post(f"{advisor}/v1/recommend", files=files, data={"request": json.dumps({"k": 10})}, timeout=60)
    assert found.status_code == 200, found.text
    answer: dict[str, object] = found.json()
    return answer


def test_images_are_needed(tab: Page) -> None:
    assert not tab.one("recommend-start").is_enabled() and "image" in tab.text


def test_dropped_images_are_ranked_for(tab: Page, advisor: str, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "mine", 3, 77)
    give(tab, paths)
    assert all(
        tab.js("return [...document.querySelectorAll('[data-testid=image-chip] img')].map((i) => i.naturalWidth)")
    )
    tab.click("recommend-start")
    cards = ranked(tab)
    answer = told(advisor, paths)
    ranking: list[dict] = answer["ranking"]  # type: ignore[assignment, type-arg]
    assert len(cards) == len(ranking) == 2
    for text, one in zip(cards, ranking, strict=True):
        assert one["model"].split("/")[-1] in text and f"{one['predicted_rank']:.1f}".removesuffix(".0") in text
    weights = [source["weight"] for one in ranking for source in one["sources"]]
    shown = tab.js(
        """return [...document.querySelectorAll("[data-testid=source-bar]")].map((row) =>
          row.querySelector(".tally-fill").getBoundingClientRect().width
          / row.querySelector(".tally-track").getBoundingClientRect().width)"""
    )
    assert shown == pytest.approx([weight / max(weights) for weight in weights], abs=0.02)
    tasks = tab.js("return [...document.querySelectorAll('.source-task')].map((e) => e.innerText)")
    assert tasks == [source["task"] for one in ranking for source in one["sources"]]
    assert "coca" in tab.one("left-out").text and "hubhound profile" in tab.one("left-out").text
    tab.shoot("recommendation", whole=True)
    assert tab.axe() == []


def test_progress_is_shown_and_a_reload_goes_on(tab: Page, gate: Gate, tmp_path: Path) -> None:
    give(tab, write_photos(tmp_path / "mine", 2, 78))
    tab.click("recommend-start")
    panel = tab.one("recommend-progress")
    tab.until(lambda: "Model 1 of 2" in panel.text, "which model it is at")
    bar = tab.js("return document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')")
    assert bar is not None and 0 <= float(bar) < 100
    assert "job=" in tab.path and not tab.one("recommend-start").is_enabled()
    tab.shoot("recommend-progress")
    assert tab.axe() == []
    tab.driver.refresh()
    tab.one("recommend-progress")
    gate.open()
    assert len(ranked(tab)) == 2 and not tab.all("recommend-progress")
    tab.driver.refresh()
    assert len(ranked(tab)) == 2  # the address still leads to the result


def test_a_recommendation_is_cancelled(tab: Page, gate: Gate, tmp_path: Path) -> None:
    give(tab, write_photos(tmp_path / "mine", 2, 79))
    tab.click("recommend-start")
    tab.until(lambda: gate.reached, "the first pass")
    tab.click("recommend-cancel")
    tab.until(lambda: not tab.one("recommend-cancel").is_enabled() if tab.all("recommend-cancel") else True, "a sign")
    gate.open()
    tab.one("recommend-cancelled")
    assert "job=" not in tab.path and tab.one("recommend-start").is_enabled() and not tab.all("ranked")


def test_leaving_and_coming_back(tab: Page, gate: Gate, tmp_path: Path) -> None:
    give(tab, write_photos(tmp_path / "mine", 1, 80))
    tab.click("recommend-start")
    tab.one("recommend-progress")
    tab.click("tab-index")
    tab.one("index-view")
    gate.open()
    tab.driver.back()
    assert len(ranked(tab)) == 2


def test_a_job_that_is_gone(visit: Callable[[str], Page], advisor: str) -> None:
    page = visit(advisor)
    page.errors_expected = ("404 (Not Found)",)
    page.open("/?view=recommend&job=nobody-knows-it")
    assert "gone" in page.until(lambda: page.shown("empty-state"), "an empty state")[0].text
    assert "job=" not in page.path


def test_models_that_are_too_large_are_left_out(tab: Page, tmp_path: Path) -> None:
    give(tab, write_photos(tmp_path / "mine", 1, 77))
    field = tab.one("recommend-most")
    field.send_keys("lots")
    tab.click("recommend-start")
    assert tab.js("return !arguments[0].checkValidity()", field) and not tab.all("ranked")
    field.clear()
    field.send_keys("1")
    tab.errors_expected = ("400 (Bad Request)",)
    tab.click("recommend-start")
    tab.until(lambda: tab.shown("error-state") or tab.shown("empty-state"), "that there is none")
    field.clear()
    field.send_keys("1B")
    tab.click("recommend-start")
    assert len(ranked(tab)) == 2


def test_images_are_pasted_chosen_and_removed(tab: Page, tmp_path: Path) -> None:
    one, two, three = write_photos(tmp_path / "mine", 3, 82)
    tab.js("return document.querySelector('[data-testid=recommend-input]')").send_keys(f"{one}\n{two}")
    tab.until(lambda: len(tab.all("image-chip")) == 2, "two images")
    tab.give([three], kind="paste")
    tab.until(lambda: len(tab.all("image-chip")) == 3, "three images")
    tab.click(tab.all("chip-remove")[0])
    tab.until(lambda: len(tab.all("image-chip")) == 2, "two images")
    assert one.name not in " ".join(tab.read("image-chip"))


def test_a_service_that_knows_no_task_says_what_to_do(
    page: Page, service: str, pictures: Callable[..., list[Path]]
) -> None:
    page.errors_expected = ("400 (Bad Request)",)
    page.open("/?view=recommend")
    page.give(pictures("cat"), page.one("recommend-drop"))
    page.click(
        page.until(lambda: page.one("recommend-start") if page.one("recommend-start").is_enabled() else None, "a start")
    )
    page.until(lambda: page.shown("error-state") or page.shown("empty-state"), "an answer")
    assert "hubhound" in page.text.replace("hubhound\n", "", 1)
