"""What docs/crawl.md and docs/safety.md say about the crawl, held against the program."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from engine.errors import Reason
from indexers.crawl import sandbox, standing, watchdog
from indexers.crawl.heartbeat import Beat, Held, Phase
from indexers.crawl.metrics import METRICS
from indexers.crawl.watch import Watch
from query.cli.crawl import crawl
from query.cli.main import cli

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "crawl.md").read_text()
SAFETY = (REPOSITORY / "docs" / "safety.md").read_text()
OPTIONS = {name: option for option in crawl.params if isinstance(option, click.Option) for name in option.opts}
OPTIONS |= {name: option for option in crawl.params for name in option.secondary_opts}


def rows(heading: str, document: str = DOCUMENT) -> list[list[str]]:
    """Cells of the rows of the table whose first heading this is."""
    found: list[list[str]] = []
    inside = False
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and not inside:
            inside = cells[0] == heading
        elif not cells:
            inside = False
        elif not set("".join(cells)) <= {"-", ":"}:
            found.append(cells)
    return found


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def default_of(option: click.Option) -> str:
    if option.secondary_opts:
        name = (option.opts if option.default else option.secondary_opts)[0]
        return name.removeprefix("--")
    if option.is_flag:
        return "off"
    value = option.default
    return str(value) if isinstance(value, str | int | float) and value is not None else "-"


def test_every_option_is_in_the_table_with_its_default() -> None:
    documented = {name: row for row in rows("option") for name in names_in(row[0]) if row[0]}
    assert set(documented) == set(OPTIONS)
    for name, row in documented.items():
        option = OPTIONS[name]
        assert row[1] == default_of(option), name
        environment = option.envvar
        if isinstance(environment, str):
            assert f"`{environment}`" in row[3], name
        if isinstance(option.type, click.Choice):
            assert all(str(choice) in row[2] for choice in option.type.choices), name


def test_every_option_that_is_named_exists() -> None:
    known = set(OPTIONS)
    assert isinstance(crawl, click.Group)
    for command in crawl.commands.values():
        known |= {name for parameter in command.params for name in parameter.opts}
    prose = "\n".join(line for line in DOCUMENT.splitlines() if not re.match(r"\s*(\$ )?hubhound ", line))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose))
    elsewhere = {"--like"}  # of `search`
    assert named - known <= elsewhere
    assert len(named) > 20


def test_the_metrics_are_those_of_the_program() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("metric")} == METRICS
    assert set(re.findall(r"hubhound_crawl_\w+", DOCUMENT)) == set(METRICS)


def test_every_reason_is_explained_once() -> None:
    table = rows("reason")
    assert sorted(row[0] for row in table) == sorted(reason.value for reason in Reason)
    assert all(len(row) == 3 and all(row) for row in table)


def test_every_field_of_the_heartbeat_is_explained() -> None:
    fields = rows("field")
    assert set().union(*(names_in(row[0]) for row in fields)) == set(Beat.model_fields)
    explained = {row[0].strip("`"): names_in(row[1]) for row in fields}
    now = Watch().now()
    assert explained["counts"] == set(now.counts())
    assert explained["rates"] == set(now.rates())
    assert explained["in_hand"] == set(Held.model_fields)
    assert explained["state"] == set(get_args(Phase))


def test_the_live_view_shows_the_stages() -> None:
    view = DOCUMENT.partition("list     1.3 s")[2].partition("```")[0]
    assert all(re.search(rf"^{stage}\s+<?\d", view, re.MULTILINE) for stage in standing.STAGES if stage != "list")


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Name, level and fields of every event that the crawl's code logs."""
    for path in sorted((REPOSITORY / "indexers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in ("event", "warning", "error")
            ):
                level = "info" if node.func.attr == "event" else node.func.attr
                fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                for name in strings_of(node.args[0]):
                    yield name, level, fields


def strings_of(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return strings_of(node.body) + strings_of(node.orelse)
    assert isinstance(node, ast.Constant)
    return [str(node.value)]


def test_every_event_of_the_log_is_in_the_table_with_its_fields() -> None:
    table = {row[0].strip("`"): row for row in rows("event")}
    fields: dict[str, set[str]] = {"stored": {f"{stage}_s" for stage in ("load", "decode", "probe", "store")}}
    for name, level, some in logged():
        assert name in table, name
        assert table[name][1] == level, name
        fields[name] = fields.get(name, set()) | some
    assert {*fields, "summary", "ended", "metrics"} == set(table)  # these come from functions of their names
    for name, expected in fields.items():
        assert names_in(table[name][2]) in (expected, {"listed"}), name


def test_the_unit_for_systemd_starts_a_command_that_is_understood() -> None:
    (line,) = re.findall(r"^ExecStart=\S*/hubhound (.+)$", DOCUMENT, re.MULTILINE)
    arguments = shlex.split(line)
    assert arguments.pop(0) == "crawl"
    with crawl.make_context("crawl", arguments) as context:
        given: dict[str, Any] = context.params
    assert given["once"] is False
    assert given["log_format"] == "json"


def test_every_layer_of_protection_is_explained() -> None:
    table = rows("layer, as the log names it", SAFETY)
    assert [row[0].strip("`") for row in table] == [*sandbox.LAYERS, watchdog.NAME]


@pytest.mark.parametrize("name", ["status", "why", "retry"])
def test_the_commands_on_the_journal_are_shown(name: str) -> None:
    assert isinstance(cli.get_command(click.Context(cli), "crawl"), click.Group)
    assert re.search(rf"^\$ hubhound crawl {name} ", DOCUMENT, re.MULTILINE)
