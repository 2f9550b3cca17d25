"""Crawls of `crawl.py`: a hub, the command, what it takes of the machine, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from indexers.crawl.journal import FILE, Journal
from indexers.crawl.journal_report import Event
from indexers.crawl.records import State
from tests.support import crawling
from tests.support.hub_crowd import Crowd, build_crowd
from tests.support.hub_server import HubServer
from tests.support.small_index import make_index

FETCHERS, LOOK_S = 8, 0.05


@contextlib.contextmanager
def no_orphans() -> Iterator[None]:
    """Whatever happens, no process that was started here stays."""
    try:
        yield
    finally:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


@contextlib.contextmanager
def a_hub(folder: Path, crowd: tuple[int, int, int], page: int = 100) -> Iterator[tuple[HubServer, Crowd]]:
    """A hub with so many good models, copies and bad ones."""
    good, copies, bad = crowd
    made = build_crowd(folder / "hub", good, bad, seed=0, copies=copies)
    with HubServer(made.root, page=page) as hub:
        made.tell(hub)
        yield hub, made


def a_crawl(hub: HubServer, folder: Path, *options: str) -> crawling.Crawl:
    """A crawl into a new index; all that it writes lies in the folder, its temporary files too."""
    (folder / "tmp").mkdir(parents=True)
    make_index(folder / "index")
    return crawling.Crawl(
        hub.url,
        folder / "index",
        folder / "cache",
        options=("--log-format", "json", "--fetchers", str(FETCHERS), *options),
        environment={"TMPDIR": str(folder / "tmp")},
    )


def left_by(crawl: crawling.Crawl) -> list[str]:
    """What a crawl has left beside the index, its journal, the preprocessed probes and the Hub library's own folder."""
    folder = crawl.index.parent
    found = [path for path in (crawl.index / "crawl").iterdir() if not path.name.startswith("journal.sqlite")]
    found = [path for path in found if path.is_file() or any(path.iterdir())]  # an empty folder for downloads may stay
    found += [*(folder / "tmp").iterdir(), *crawl.cache.rglob("scratch-*")]
    return sorted(str(path.relative_to(folder)) for path in found)


@dataclass
class Vitals(threading.Thread):
    """Looks at a process from outside, again and again.

    Attributes:
        pid: The process.
        every_s: Seconds between two looks.
        rows: Each look: moment, resident bytes, those of them that are no files, open files, threads,
            processor seconds.
        born: When the process that imports torch was started, None while it was not.
    """

    pid: int
    every_s: float = 1.0
    rows: list[tuple[float, int, int, int, int, float]] = field(default_factory=list)
    born: float | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Looks until the process has ended."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                if self.born is None and any("indexers.crawl.nursery" in c.cmdline() for c in process.children()):
                    self.born = time.time()
                memory, cpu = process.memory_info(), process.cpu_times()
                counts = process.num_fds(), process.num_threads()
                self.rows.append((time.time(), memory.rss, memory.rss - memory.shared, *counts, cpu.user + cpu.system))
                time.sleep(LOOK_S if self.born is None else self.every_s)


@dataclass(frozen=True)
class Run:
    """One crawl from its beginning to its end.

    Attributes:
        wall_s: Of the whole command.
        report: What the command printed.
        log: Its log's lines.
        events: What the journal remembers, by time.
        seconds: Of each stored model, by stage.
        vitals: The parent's.
    """

    wall_s: float
    report: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    events: Sequence[tuple[str, Event]]
    seconds: Mapping[str, Mapping[str, float]]
    vitals: Vitals

    def moments(self, state: State) -> list[tuple[float, str]]:
        """When models entered a state, the first time."""
        first: dict[str, float] = {}
        for repo, event in self.events:
            if event.state is state:
                first.setdefault(repo, event.at)
        return sorted((at, repo) for repo, at in first.items())


def run(crawl: crawling.Crawl, crowd: Crowd, every_s: float, at_end: Callable[[], None] = lambda: None) -> Run:
    """Crawls in peace, and calls what has to follow at once."""
    began = time.perf_counter()
    process = crawl.start("--once")
    vitals = Vitals(process.pid, every_s)
    vitals.start()
    status = process.wait()
    wall_s = time.perf_counter() - began
    vitals.join()
    if not status:
        at_end()
    text = (crawl.index.parent / "crawl.log").read_text()
    if status:
        raise SystemExit(f"the crawl ended with status {status}:\n{text[-3000:]}")
    report = json.JSONDecoder().raw_decode(text[("\n" + text).index("\n{\n") :])[0]
    events = events_of(crawl.index, crowd)
    with Journal(crawl.index / FILE, read_only=True) as journal:
        rows = {repo: journal.rows(repo) for repo in crowd.good}
    seconds = {repo: row.seconds for repo, found in rows.items() for row in found if row.state is State.STORED}
    return Run(wall_s, report, log_of(crawl), events, seconds, vitals)


def log_of(crawl: crawling.Crawl) -> list[dict[str, Any]]:
    """The lines that the log of a crawl's runs has; a killed one may have left half a line."""
    found = []
    for line in (crawl.index.parent / "crawl.log").read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line) if line.startswith('{"at"') else None)
    return [line for line in found if line]


def events_of(index: Path, crowd: Crowd) -> list[tuple[str, Event]]:
    """Everything that happened to the models of a crowd, by time."""
    with Journal(index / FILE, read_only=True) as journal:
        found = [(repo, event) for repo in crowd.expected for event in journal.history(repo)]
    return sorted(found, key=lambda item: item[1].at)
