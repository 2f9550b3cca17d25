"""What a crawl shows: a live view on a terminal, the log's summary line each minute elsewhere, a report at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from indexers.crawl import log
from indexers.crawl.log import duration, ended, escaped, sentence
from indexers.crawl.standing import STAGES, Snapshot
from indexers.crawl.watch import Watch
from query.cli.output import console, data_json, note, seconds, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

SUMMARY_EVERY_S = 60.0
"""Seconds from one summary line to the next, where there is no live view."""

_REDRAWN_EVERY_S = 0.2
_IN_HAND = 5  # models of a stage that are named
_REASONS = 5  # kinds of failure that are named
_BAR_WIDTH = 30


class CrawlView:
    """Shows how a crawl gets on for as long as the block lasts; data and results are none of its business.

    The live view is drawn where standard error is a terminal that can move its cursor and the log is for people;
    lines of the log appear above it.

    Args:
        watch: What the crawl counts in.
        form: Of the log, ``text`` or ``json``.
        every_s: Seconds between summary lines.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        watch: Watch,
        form: log.Format = "text",
        every_s: float = SUMMARY_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._every_s = every_s
        self._clock = clock
        self._last = clock()
        self._live: Live | None = None
        self.live = form == "text" and sys.stderr.isatty() and console().is_terminal and not console().is_dumb_terminal

    def __enter__(self) -> CrawlView:
        self._last = self._clock()
        if self.live:
            from rich.live import Live

            self._live = Live(console=console(), auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self) -> None:
        """Shows how things are, if it is time to; cheap enough to be called whenever the main loop comes by."""
        now = self._clock()
        if now - self._last < (_REDRAWN_EVERY_S if self.live else self._every_s):
            return
        self._last = now
        if not self.live:
            log.summary(self._watch.now())
        elif self._live is not None:
            try:
                self._live.update(panel(self._watch.now()), refresh=True)
            except OSError:  # the terminal has gone; the crawl goes on
                self.close()
                self.live = False

    def close(self) -> None:
        """Takes the live view away and gives the cursor back; harmless when done already."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()


def panel(now: Snapshot) -> RenderableType:
    """The live view: models and rates, a line for each stage, failures by reason."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    stages = Table.grid(padding=(0, 2), expand=True)
    stages.add_column(no_wrap=True)
    stages.add_column(no_wrap=True, justify="right")
    stages.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for stage in STAGES:
        taken = now.stages[stage]
        held = [f"{escaped(item.repo)} {_ticking(item.seconds)}" for item in now.in_hand if item.stage == stage]
        if taken.count or held:
            mean_s = taken.mean_s if taken.recent_mean_s is None else taken.recent_mean_s
            more = f" and {len(held) - _IN_HAND} more" if len(held) > _IN_HAND else ""
            mean = "" if mean_s is None else f"{seconds(mean_s)} s"
            stages.add_row(Text(stage, "cyan"), Text(mean), Text(", ".join(held[:_IN_HAND]) + more))
    lines = [
        Text(line, style, no_wrap=True, overflow="ellipsis")
        for line, style in (
            (_reasons("found in the index", {what: count for what, count in now.found.items() if count}), ""),
            (_reasons("refused", now.refused), ""),
            (_reasons("failed", now.failed), "yellow"),
            (_reasons("to be tried again", now.retried), ""),
            (f"listing: {escaped(now.listing_trouble)}" if now.listing_trouble else "", "yellow"),
        )
        if line
    ]
    return Group(_overall(now), stages, *lines)


def _overall(now: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = now.settled
    rates = [f"{now.models_per_min:,.1f} models/min", f"{now.outputs_per_min:,.0f} outputs/min"]
    if now.bytes_per_s:
        rates.append(f"{size(now.bytes_per_s)}/s")
    if now.queue is not None:
        rates.append(f"{now.queue:,} waiting")
    second = Text("  ".join(rates), no_wrap=True, overflow="ellipsis")
    if now.remaining is None:
        return Group(Text(f"{done:,} models", no_wrap=True, overflow="ellipsis"), second)
    total = done + now.remaining
    left = f"about {duration(now.seconds_left)} left" if now.seconds_left else ""
    first = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(total, 1), completed=done if total else 1, width=_BAR_WIDTH)
    first.add_row(bar, Text(f"{done:,}/{total:,} models", no_wrap=True), Text(left, no_wrap=True))
    return Group(first, second)


def _ticking(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else duration(value)


def _reasons(what: str, counts: Mapping[str, int]) -> str:
    """``failed 4: took too long 3, crashed 1``; empty where there are none."""
    if not counts:
        return ""
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{escaped(reason)} {count:,}" for reason, count in common[:_REASONS])
    return f"{what} {sum(counts.values()):,}: {named}{' ...' if len(common) > _REASONS else ''}"


def report(now: Snapshot, form: str, log_format: str = "text") -> None:
    """Writes what a run has done: seconds per stage, counts, failures by reason.

    Args:
        now: How it stood at its end.
        form: ``table`` or ``json``, on standard output; ``quiet`` leaves only the sentence on standard error.
        log_format: ``json`` makes an event of the sentence, for whoever reads standard error as a log.
    """
    if form == "json":
        data_json(as_json(now))
    elif form == "table":
        _report_stages(now)
        _report_counts(now)
    if log_format == "json":
        ended(now)
    else:
        note(f"{sentence(now, whole=True)}; in {duration(now.uptime_s)}")


def as_json(now: Snapshot) -> dict[str, Any]:
    """What a run has done, for programs."""
    counts: dict[str, Any] = dict(now.counts())
    counts |= {
        "found": dict(now.found),
        "refused": dict(now.refused),
        "failed": dict(now.failed),
        "retried": dict(now.retried),
    }
    return {
        **counts,
        "seconds": round(now.uptime_s, 3),
        "models_per_min": round(now.models_per_min_overall, 3),
        "outputs_per_min": round(now.outputs_per_min_overall, 3),
        "stages": {
            stage: {
                "count": taken.count,
                "seconds": round(taken.seconds, 3),
                "mean_s": None if taken.mean_s is None else round(taken.mean_s, 4),
            }
            for stage, taken in now.stages.items()
        },
    }


def _report_stages(now: Snapshot) -> None:
    rows = [
        [stage, f"{taken.count:,}", seconds(taken.seconds), "" if taken.mean_s is None else f"{taken.mean_s:.2f}"]
        for stage, taken in now.stages.items()
    ]
    table(None, ["stage", ("times", "right"), ("seconds", "right"), ("s each", "right")], rows)


def _report_counts(now: Snapshot) -> None:
    counts = {
        "listed": now.listed,
        "filtered out": now.filtered,
        "stored": now.stored,
        "copies": now.copies,
        "outputs": now.outputs,
        "gone": now.gone,
    }
    found = {what: count for what, count in now.found.items() if count}
    rows = [[name, "", f"{count:,}"] for name, count in counts.items()]
    rows += [["found in the index", what, f"{count:,}"] for what, count in found.items()]
    for name, reasons in (("refused", now.refused), ("failed", now.failed), ("tried again", now.retried)):
        rows += [[name, reason, f"{count:,}"] for reason, count in sorted(reasons.items(), key=lambda i: (-i[1], i[0]))]
    rows.append(["fetched", "", size(now.bytes_fetched)])
    table(None, ["models", "reason", ("count", "right")], rows)
