"""The log of a crawl: a line an event, for people and for programs, whatever strangers write into it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest

from engine.errors import Reason
from indexers.crawl import log
from indexers.crawl.watch import Watch

REPOSITORY = Path(__file__).parents[2]
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
NASTY = "a\nb\r\x1b[2J\x07\x00\x7f\x9b31m\u2028\u202e\ud800 ünï"


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def text_of(**fields: object) -> str:
    stream = StringIO()
    with log.logging_to("text", stream):
        log.event("stored", **fields)
    line = stream.getvalue()
    assert re.match(STAMP, line)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    return line[20:-1]


def json_of(**fields: object) -> dict[str, object]:
    stream = StringIO()
    with log.logging_to("json", stream):
        log.event("stored", **fields)
    assert stream.getvalue().count("\n") == 1
    line: dict[str, object] = json.loads(stream.getvalue())
    return line


def test_a_line_for_people() -> None:
    assert text_of() == "stored"
    assert text_of(model="org/a", revision="0123456789abcdef", outputs=1000, seconds=4.123, detail="all well") == (
        "stored org/a@0123456: outputs 1,000, seconds 4.1: all well"
    )
    assert text_of(revision="0123456789abcdef") == "stored 0123456"
    assert text_of(model="org/a", fetch=1.25, wait_s=0.001, copy=True, tags=["x", "y"], none=None) == (
        "stored org/a: fetch 1.2 s, wait 0.001 s, copy true, tags x, y"
    )
    assert text_of(reason=Reason.TIMED_OUT, path=Path("/a/b")) == "stored: reason took too long, path /a/b"


def test_a_line_for_programs() -> None:
    before = datetime.now(UTC)
    line = json_of(
        model="org/a", outputs=1000, seconds=4.123, reason=Reason.GATED, path=Path("/a"), each={"load": 0.5}, no=None
    )
    at = datetime.fromisoformat(str(line.pop("at")))
    assert abs((at - before).total_seconds()) < 20
    assert line == {
        "level": "info",
        "event": "stored",
        "model": "org/a",
        "outputs": 1000,
        "seconds": 4.123,
        "reason": "gated",
        "path": "/a",
        "each": {"load": 0.5},
    }


@pytest.mark.parametrize(("call", "level"), [(log.event, "info"), (log.warning, "warning"), (log.error, "error")])
def test_levels(call: object, level: str) -> None:
    assert callable(call)
    for form in log.FORMATS:
        stream = StringIO()
        with log.logging_to(form, stream):  # type: ignore[arg-type]
            call("failed", model="org/a", level="mine", event="mine", at="mine")
        if form == "json":
            line = json.loads(stream.getvalue())
            assert (line["level"], line["event"]) == (level, "failed")  # a field cannot pass for what it is not
            assert line["at"] != "mine"
        else:
            assert stream.getvalue()[20:].startswith("failed" if level == "info" else f"{level}: failed")


def test_what_strangers_write_cannot_act_on_a_terminal_or_make_lines() -> None:
    line = text_of(model=NASTY, detail=NASTY, **{"k\n": NASTY, "list": [NASTY]})
    assert line.isprintable()
    assert "a\\nb\\r\\x1b[2J\\x07\\x00\\x7f\\x9b31m\\u2028\\u202e\\ud800 ünï" in line
    stream = StringIO()
    with log.logging_to("json", stream):
        log.event(NASTY, model=NASTY, detail={NASTY: [NASTY]})
    raw = stream.getvalue()
    assert raw[:-1].isascii()
    assert raw[:-1].isprintable()
    line_of = json.loads(raw)
    assert (line_of["event"], line_of["model"], line_of["detail"]) == (NASTY, NASTY, {NASTY: [NASTY]})


def test_what_strangers_write_is_cut() -> None:
    assert len(text_of(detail="x" * 1_000_000)) < log.MAX_TEXT + 100
    assert json_of(detail="x" * 1_000_000)["detail"] == "x" * log.MAX_TEXT


def test_numbers_that_json_does_not_know() -> None:
    assert json_of(a=float("nan"), b=[float("inf")])["a"] == "nan"
    assert text_of(a=float("-inf")) == "stored: a -inf"


def test_an_exception_is_one_line_too() -> None:
    for form in log.FORMATS:
        stream = StringIO()
        with log.logging_to(form, stream) as logger:  # type: ignore[arg-type]
            try:
                raise ValueError("two\nlines")
            except ValueError:
                logger.exception("gave up on %s", "org/a")
        assert stream.getvalue().count("\n") == 1
        if form == "json":
            line = json.loads(stream.getvalue())
            assert line["event"] == "gave up on org/a"
            assert line["traceback"].startswith("Traceback")
            assert line["traceback"].endswith("ValueError: two\nlines")
        else:
            assert stream.getvalue()[20:].startswith("error: gave up on org/a: Traceback (most recent call last):\\n")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    closed = (tmp_path / "log").open("w")
    closed.close()
    with log.logging_to("text", closed):
        log.event("stored")
    code = (
        "import os\nfrom indexers.crawl import log\n"
        "with log.logging_to('text'):\n    log.event('one')\n    os.read(0, 1)\n"
        "    log.event('two')\n    log.event('three')\n"
        "os._exit(7)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stdin is not None
    assert process.stderr.readline().endswith(b" one\n")
    process.stderr.close()  # as `2>&1 | head -1` does
    process.stdin.write(b"x")
    process.stdin.close()
    assert process.wait(timeout=30) == 7


def test_only_its_own_lines_and_only_here(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(log.LOGGER)
    before = (list(logger.handlers), logger.level, logger.propagate)
    stream = StringIO()
    with log.logging_to("text", stream):
        logger.debug("not this")
        logging.getLogger("hubhound.crawl.deeper").info("but %s", "this")
        logging.getLogger("elsewhere").error("nor this")
    assert stream.getvalue()[20:] == "but this\n"
    assert caplog.messages == ["nor this"]  # of whoever else listens; no line comes twice
    assert (list(logger.handlers), logger.level, logger.propagate) == before  # left as it was


def test_standard_error_is_looked_up_at_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with log.logging_to("text"):
        for _ in range(2):
            stream = StringIO()
            monkeypatch.setattr(sys, "stderr", stream)
            log.event("stored")
            assert stream.getvalue().endswith("stored\n")


def test_the_time_for_people_is_local() -> None:
    code = "from indexers.crawl import log\nwith log.logging_to('text'):\n    log.event('x')\n"

    def hour(zone: str) -> int:
        environment = {**os.environ, "TZ": zone}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=environment
        )
        return int(done.stderr[11:13])

    assert (hour("HUB-5") - hour("UTC")) % 24 in {5, 6}  # six where the hour turned in between


def crawled() -> Watch:
    clock = Clock()
    watch = Watch(clock)
    watch.listing_began()
    watch.listed(1500, 0, 2310, None)
    watch.listing_ended()
    for _ in range(100):
        clock.now += 3
        watch.stored(700, copy=False)
        watch.ended("fetch", "org/a", 1.21)
        watch.ended("load", "org/a", 0.4)
        watch.ended("decode", "org/a", 0.001)
        watch.ended("probe", "org/a", 3.32)
        watch.ended("list", "hub", 9.0)
    watch.stored(700, copy=True)
    watch.stored(700, copy=True)
    for _ in range(15):
        watch.refused("gated")
    for _ in range(3):
        watch.failed("crashed")
    watch.gauge("queue", 6000)
    return watch


def test_the_summary_for_people() -> None:
    stream = StringIO()
    with log.logging_to("text", stream):
        log.summary(crawled().now())
    # In 300 s: 102 models and 70,000 outputs came in, 120 came to an end, so that 6,000 take 15,000 s.
    assert re.fullmatch(STAMP + ".*\n", stream.getvalue())
    assert stream.getvalue()[20:-1] == (
        "stored 100 (+2 copies), 20.4 models/min, 14,000 outputs/min, 15 refused, 3 failed, 2,310 filtered out, "
        "6,000 waiting, about 4 h 10 min left; fetch 1.2 s, load 0.4 s, probe 3.3 s a model"
    )


def test_the_summary_for_programs() -> None:
    stream = StringIO()
    watch = crawled()
    with log.logging_to("json", stream):
        log.summary(watch.now())
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == ("summary", "info")
    assert {name: line[name] for name in watch.now().counts()} == watch.now().counts()
    assert (line["models_per_min"], line["outputs_per_min"], line["queue"], line["seconds_left"]) == (
        20.4,
        14000,
        6000,
        15000,
    )
    assert line["stage_seconds"] == {"list": 9.0, "fetch": 1.21, "load": 0.4, "decode": 0.001, "probe": 3.32}


def test_the_sentence_of_a_fresh_and_of_an_ended_run() -> None:
    clock = Clock()
    watch = Watch(clock)
    assert log.sentence(watch.now()) == "stored 0, 0.0 models/min, 0 outputs/min, 0 refused, 0 failed"
    watch.stored(60, copy=False)
    watch.stored(60, copy=True)
    watch.ended("probe", "org/a", 2.0)
    clock.now += 3600
    now = watch.now()
    assert log.sentence(now) == "stored 1 (+1 copy), 0.0 models/min, 0 outputs/min, 0 refused, 0 failed"
    assert log.sentence(now, whole=True) == (
        "stored 1 (+1 copy), 0.0 models/min, 1 outputs/min, 0 refused, 0 failed; probe 2.0 s a model"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (15000, "4 h 10 min"),
        (47.9 * 3600, "47 h 54 min"),
        (76 * 3600, "3 days 4 h"),
        (71.9 * 3600, "3 days 0 h"),
    ],
)
def test_times_for_people(seconds: float, said: str) -> None:
    assert log.duration(seconds) == said
