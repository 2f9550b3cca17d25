"""What a crawl shows on a terminal, elsewhere and at its end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console

from indexers.crawl import log
from indexers.crawl.watch import Watch
from query.cli.crawl_view import CrawlView, panel, report
from tests.support.clock import Clock

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch(clock)


def lines_of(watch: Watch, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(panel(watch.now()))
    return [line.rstrip() for line in captured.get().splitlines()]


def crawl(watch: Watch, clock: Clock) -> None:
    """Ten minutes of it, worked out by hand: 40 models come to an end in 200 s, 120 remain."""
    watch.listing_began()
    watch.listed(160, 0, 30, None)
    watch.listing_ended()
    watch.gauge("queue", 118)
    for _ in range(20):
        clock.now += 10
        watch.stored(250, copy=False)
        watch.ended("fetch", "org/a", 1.5)
        watch.ended("probe", "org/a", 3.0)
    for reason, count in (("gated", 8), ("too large", 2)):
        for _ in range(count):
            watch.refused(reason)
    for _ in range(9):
        watch.failed("took too long")
    watch.failed("crashed")
    watch.started("probe", "org/slow")
    clock.now += 75
    watch.started("fetch", "org/next")
    clock.now += 2.5
    watch.fetched(555_000_000)
    watch.retried("network", 3.0)


def test_the_view_of_a_crawl_whose_length_is_known(watch: Watch, clock: Clock) -> None:
    crawl(watch, clock)
    first, *rest = lines_of(watch)
    # 40 in 277.5 s, so 120 take 832.5 s, which is 14 min; 20 models and 5,000 outputs were stored.
    assert first == "━" * 7 + "╸" + " " * 22 + "  40/160 models  about 14 min left"  # a quarter of thirty
    assert rest == [
        "4.3 models/min  1,081 outputs/min  2.0 MB/s  118 waiting",
        "fetch  1.5 s  org/next 2.5 s",
        "probe  3.0 s  org/slow 1 min",
        "refused 10: gated 8, too large 2",
        "failed 10: took too long 9, crashed 1",
        "to be tried again 1: network 1",
    ]


def test_what_was_found_in_the_index_is_shown_apart(
    watch: Watch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    crawl(watch, clock)
    watch.found({"stored": 2000, "copies": 40})
    first, rates, *rest = lines_of(watch)
    assert "2,080/2,200 models" in first
    assert rates.startswith("4.3 models/min")
    assert "found in the index 2,040: stored 2,000, copies 40" in rest
    report(watch.now(), "table")
    captured = capsys.readouterr()
    rows = [re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines()]
    assert ["found in the index", "stored", "2,000"] in rows and ["found in the index", "copies", "40"] in rows
    assert not any(row[:2] == ["found in the index", "failed"] for row in rows)
    assert ", 2,040 found in the index, 30 filtered out" in captured.err


def test_the_view_while_the_length_is_not_known(watch: Watch, clock: Clock) -> None:
    assert lines_of(watch) == ["0 models", "0.0 models/min  0 outputs/min"]
    watch.listed(1000, 0, 0, None)
    watch.gauge("queue", 1000)
    watch.listing_trouble("the Hub answers 504 \x1b[2J\nand more")
    watch.started("list", "hub: image-classification")
    clock.now += 1
    assert lines_of(watch) == [
        "0 models",
        "0.0 models/min  0 outputs/min  1,000 waiting",
        "list    hub: image-classification 1.0 s",
        r"listing: the Hub answers 504 \x1b[2J\nand more",
    ]
    watch.listed(0, 0, 0, None)
    assert len(lines_of(watch)) == 3


def test_the_view_keeps_to_its_lines(watch: Watch, clock: Clock) -> None:
    """Long and hostile names and hundreds of reasons make neither more lines nor longer ones."""
    watch.listing_ended()
    watch.gauge("queue", 10**9)
    for i in range(200):
        watch.started("fetch", f"org/{'x' * i}\x1b[31m\n")
        watch.failed(f"reason {i} \x1b[31m" + "y" * 200)
        watch.refused(f"reason {i}")
        watch.retried(f"reason {i}", 1)
    clock.now += 1e6
    watch.listing_trouble("z" * 1000)
    for width in (40, 80, 200):
        lines = lines_of(watch, width)
        assert len(lines) == 7
        assert all(len(line) <= width for line in lines)
        assert all(line.isprintable() for line in lines)
    assert "and 195 more" in lines_of(watch, 5000)[2]
    assert lines_of(watch, 5000)[4].endswith(" ...")


def test_a_panel_is_cheap(watch: Watch, clock: Clock) -> None:
    crawl(watch, clock)
    lines_of(watch)
    best = min(_timed(lambda: lines_of(watch)) for _ in range(10))
    assert best < 0.05  # four times a second for weeks


def _timed(call: object) -> float:
    assert callable(call)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def test_without_a_terminal_a_summary_each_minute(
    watch: Watch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with log.logging_to("text"), CrawlView(watch, clock=clock) as view:
        assert not view.live
        for _ in range(4 * 150):  # the main loop comes by four times a second for two and a half minutes
            clock.now += 0.25
            view.update()
            if clock.now == 61:
                watch.stored(10, copy=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line[20:] for line in captured.err.splitlines()] == [
        "stored 0, 0.0 models/min, 0 outputs/min, 0 refused, 0 failed",
        "stored 1, 0.5 models/min, 5 outputs/min, 0 refused, 0 failed",
    ]


def test_the_interval_can_be_set(watch: Watch, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with log.logging_to("json"), CrawlView(watch, "json", every_s=10, clock=clock) as view:
        for _ in range(35):
            clock.now += 1
            view.update()
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["summary"] * 3


PROGRAM = """
import sys, time
from indexers.crawl import log
from indexers.crawl.watch import Watch
from query.cli.crawl_view import CrawlView

watch = Watch()
watch.listing_began(); watch.listed(10, 0, 0, None); watch.listing_ended(); watch.gauge("queue", 7)
with log.logging_to(sys.argv[1]), CrawlView(watch, sys.argv[1], every_s=0.4) as view:
    for i in range(3):
        watch.started("probe", f"org/m{i}")
        time.sleep(0.25)
        view.update()
        log.event("stored", model=f"org/m{i}")
        watch.ended("probe", f"org/m{i}", 0.25)
        watch.failed("crashed")
    log.warning("failed", model="org/bad\\x1b[2J", reason="crashed")
log.event("not shown")
print("the end", file=sys.stderr)
"""


def on_a_terminal(form: str, **environment: str) -> str:
    """What the program writes to a real terminal of 80 columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, form],
        cwd=REPOSITORY,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other end has closed
        while chunk := os.read(ours, 65536):
            said += chunk
    os.close(ours)
    assert process.wait(timeout=30) == 0, said.decode()
    return said.decode()


def test_the_live_view_on_a_terminal() -> None:
    said = on_a_terminal("text")
    for expected in ("0/8 models", "2/10 models", "org/m0", "org/m2", "failed 2: crashed 2", "7 waiting"):
        assert expected in said
    assert re.search(r"\x1b\[\d+m", said)  # in colours
    assert "\x1b[1A" in said  # drawn over
    assert said.index("\x1b[?25l") < said.index("\x1b[?25h")  # the cursor is given back
    # Above the view, which is wiped first.
    assert re.search(r"\x1b\[2K[-\d]{10} [:\d]{8} warning: failed org/bad\\x1b\[2J: reason crashed", said)
    assert said.count(" stored org/m0\r\n") == 1
    assert said.endswith("the end\r\n")


def test_no_color_is_respected() -> None:
    said = on_a_terminal("text", NO_COLOR="1")
    assert "org/m1" in said
    assert not re.search(r"\x1b\[[\d;]*[349]\d[\d;]*m", said)


@pytest.mark.parametrize(("form", "environment"), [("text", {"TERM": "dumb"}), ("json", {})])
def test_terminals_without_a_cursor_and_logs_for_programs_get_lines(form: str, environment: dict[str, str]) -> None:
    said = on_a_terminal(form, **environment)
    assert "\x1b" not in said
    lines = said.splitlines()
    assert lines[-1] == "the end"
    told = [json.loads(line)["event"] if form == "json" else line[20:].split()[0] for line in lines[:-1]]
    assert told[-1] in {"failed", "warning:"}
    assert told.count("stored") >= 3
    assert len(told) >= 5  # the events and a summary at least


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}], ids=["noticed", "not noticed"])
def test_a_terminal_that_goes_away_stops_nothing(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    code = PROGRAM.replace('print("the end", file=sys.stderr)', "import os; os._exit(7)")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "text"],
        cwd=REPOSITORY,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert process.wait(timeout=30) == 7


def test_the_report_as_json(watch: Watch, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    crawl(watch, clock)
    report(watch.now(), "json")
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said.pop("stages") == {
        "list": {"count": 0, "seconds": 0, "mean_s": None},
        "fetch": {"count": 20, "seconds": 30, "mean_s": 1.5},
        "load": {"count": 0, "seconds": 0, "mean_s": None},
        "decode": {"count": 0, "seconds": 0, "mean_s": None},
        "probe": {"count": 20, "seconds": 60, "mean_s": 3.0},
        "store": {"count": 0, "seconds": 0, "mean_s": None},
    }
    assert said == {
        "listed": 190,
        "new": 160,
        "known": 0,
        "filtered": 30,
        "stored": 20,
        "copies": 0,
        "found": {"stored": 0, "copies": 0, "refused": 0, "failed": 0},
        "outputs": 5000,
        "refused": {"gated": 8, "too large": 2},
        "failed": {"took too long": 9, "crashed": 1},
        "retried": {"network": 1},
        "gone": 0,
        "bytes_fetched": 555_000_000,
        "children": 0,
        "seconds": 277.5,
        "models_per_min": pytest.approx(4.324, abs=1e-3),
        "outputs_per_min": pytest.approx(1081.081, abs=1e-3),
    }
    assert captured.err == (
        "stored 20, 4.3 models/min, 1,081 outputs/min, 10 refused, 10 failed, 30 filtered out, 118 waiting; "
        "fetch 1.5 s, probe 3.0 s a model; in 5 min\n"
    )


def test_the_report_as_a_table(watch: Watch, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    crawl(watch, clock)
    watch.failed("\x1b[2J")
    report(watch.now(), "table")
    captured = capsys.readouterr()
    rows = [re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines()]
    for row in (
        ["fetch", "20", "30.0", "1.50"],
        ["probe", "20", "60.0", "3.00"],
        ["load", "0", "0"],
        ["listed", "190"],
        ["filtered out", "30"],
        ["stored", "20"],
        ["outputs", "5,000"],
        ["refused", "gated", "8"],
        ["refused", "too large", "2"],
        ["failed", "took too long", "9"],
        ["tried again", "network", "1"],
        ["fetched", "555.0 MB"],
    ):
        assert row in rows
    assert "\x1b" not in captured.out


def test_the_report_of_names_only_has_none(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    report(watch.now(), "quiet")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_a_log_for_programs_ends_with_an_object(
    watch: Watch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stream = io.StringIO()
    with log.logging_to("json", stream):
        report(watch.now(), "quiet", "json")
    assert capsys.readouterr().err == ""
    (line,) = stream.getvalue().splitlines()
    ended = json.loads(line)
    assert (ended["event"], ended["stored"]) == ("ended", watch.now().stored)


def test_showing_nothing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nimport query.cli.crawl_view, indexers.crawl.heartbeat, indexers.crawl.metrics\n"
        "heavy = {'torch', 'timm', 'transformers', 'PIL', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
