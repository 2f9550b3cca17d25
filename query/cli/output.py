"""How the command line speaks: data on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

METHOD_NAMES = ("whitened", "dual", "weighted", "probelog")
"""``engine.distance.METHODS``, which cannot be imported where help must come at once."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Advance(Protocol):
    """Moves a progress bar; a total of 0 is unknown."""

    def __call__(self, done: float, total: float, description: str | None = None, /) -> None:
        """Shows how far things are."""


def fail(message: str) -> None:
    """One line about what went wrong."""
    line = " ".join(message.split())
    click.secho(f"hubhound: {line}", fg="red" if sys.stderr.isatty() else None, err=True)


def note(message: str) -> None:
    """One line of information."""
    click.echo(message, err=True)


def data(text: str) -> None:
    """Writes data."""
    click.echo(text)


def data_json(value: object) -> None:
    """Writes one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def format_option(function: Function) -> Function:
    """Adds ``--format table|json|quiet``."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json", "quiet"]),
        default="table",
        show_default=True,
        envvar="HUBHOUND_FORMAT",
        help="How data is written: for people, for programs, or only the names, one a line.",
    )(function)


def index_option(function: Function) -> Function:
    """Adds ``--index``."""
    return click.option(
        "--index",
        "index_path",
        type=click.Path(),
        required=True,
        envvar="HUBHOUND_INDEX",
        help="The index: a folder, or qdrant://HOST:PORT/NAME.  [env: HUBHOUND_INDEX]",
    )(function)


def method_option(function: Function) -> Function:
    """Adds ``--method``, None for the index's default."""
    return click.option(
        "--method",
        type=click.Choice(METHOD_NAMES),
        envvar="HUBHOUND_METHOD",
        help="How evidence becomes a margin; by default the index's.  [env: HUBHOUND_METHOD]",
    )(function)


LOGGED_S = 30.0
"""Between two lines about progress where standard error is no terminal."""


@functools.cache
def console() -> Console:
    """The console for progress and hints, on standard error."""
    from rich.console import Console

    return Console(stderr=True)


def table(
    title: str | None, columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[str | Sequence[str]]]
) -> None:
    """Writes a table to standard output; lines are not cut where the output is not a terminal.

    Args:
        title: Above the table.
        columns: Headings; a pair adds the justification.
        rows: Cells, each a text or several lines; text is taken as it is, never as markup.
    """
    from rich.console import Console
    from rich.text import Text

    out = Console(width=None if sys.stdout.isatty() else 200)
    view = new_table(title)
    for column in columns:
        name, justify = column if isinstance(column, tuple) else (column, "left")
        view.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        view.add_row(*[Text("\n".join(map(_printable, [cell] if isinstance(cell, str) else cell))) for cell in row])
    out.print(view)


def new_table(title: str | None) -> Table:
    """An empty table in the house style."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title) if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _printable(text: str) -> str:
    """A label is a stranger's text: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def progress(description: str, unit: str = "") -> Iterator[Advance]:
    """A progress bar on standard error; where that is no terminal, a line every half minute.

    Args:
        description: What is being done.
        unit: What is counted, for the rate.

    Yields:
        A function to call with (done, total).
    """
    with bars() as bar:
        yield bar(description, unit)


@contextmanager
def bars() -> Iterator[Callable[[str, str], Advance]]:
    """Several progress bars below each other.

    Yields:
        ``(description, unit) -> advance``.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console(),
        disable=not console().is_terminal,
        transient=True,
    ) as live:
        due = [time.monotonic() + LOGGED_S]

        def log(description: str, done: float, total: float) -> None:
            """In a log file, where a bar would be noise, a line now and then says that it goes on."""
            if live.disable and time.monotonic() >= due[0]:
                due[0] = time.monotonic() + LOGGED_S
                note(f"{description}: {done:,.0f}" + (f" of {total:,.0f}" if total else ""))

        def add(description: str, unit: str) -> Advance:
            task = live.add_task(description, total=None, rate="")

            def advance(done: float, total: float, text: str | None = None, /) -> None:
                now = live.tasks[live.task_ids.index(task)]
                if text is not None and text != now.description:
                    # Another thing is being counted when it starts again from less: its rate and time are its own.
                    live.reset(task, description=text) if done < now.completed else live.update(task, description=text)
                speed = live.tasks[live.task_ids.index(task)].speed
                rate = f"{speed:,.0f} {unit}/s" if speed and unit else ""
                live.update(task, completed=done, total=total or None, rate=rate)
                log(text or description, done, total)

            return advance

        yield add


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.1f}" if value >= 0.05 else ("0" if value == 0 else "<0.1")


def size(value: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError  # pragma: no cover
