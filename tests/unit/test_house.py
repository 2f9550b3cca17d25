"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from query.cli.main import cli

REPOSITORY = Path(__file__).parents[2]
FLOORS = {"engine": {"engine"}, "indexers": {"engine", "indexers"}, "query": {"engine", "indexers", "query"}}
AT_QUERY_TIME = {"loaders", "prober", "pixels", "sources", "adding", "keeping", "profiler", "profiling", "towers"}
AT_QUERY_TIME |= {"crawl", "probing"}  # which the command line starts
MODULES = [path for floor in FLOORS for path in sorted((REPOSITORY / floor).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_imports_upwards_and_modules_stay_small(path: Path) -> None:
    floor = path.relative_to(REPOSITORY).parts[0]
    for name in imported(path):
        root, _, rest = name.partition(".")
        if root in FLOORS:
            assert root in FLOORS[floor], f"{path} imports {name}"
            if floor == "query" and root == "indexers":
                assert rest.split(".")[0] in AT_QUERY_TIME, f"{path} imports {name}"
    assert len(path.read_text().splitlines()) <= 420
    assert path.stem not in {"utils", "helpers", "common"}


def commands_of(document: Path) -> list[str]:
    lines = re.findall(r"^\s*(?:\$ )?(hubhound .+)$", document.read_text(), flags=re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines]


DOCUMENTED = [
    pytest.param(line, id=f"{path.name}: {line[:60]}")
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
    for line in commands_of(path)
]


def parse(command: click.Command, arguments: list[str], name: str) -> None:
    with command.make_context(name, list(arguments)) as context:
        left = [*context._protected_args, *context.args]  # what the command's own options leave
        if isinstance(command, click.Group) and left:
            child, sub, rest = command.resolve_command(context, left)
            assert sub is not None
            parse(sub, rest, child or "")


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_commands_are_understood(line: str) -> None:
    """Every option and argument in the documents exists and takes the value it is given."""
    parse(cli, shlex.split(line)[1:], "hubhound")


def test_examples_of_the_help_are_understood() -> None:
    def walk(command: click.Command) -> list[click.Command]:
        if not isinstance(command, click.Group):
            return [command]
        context = click.Context(command)
        subs = [command.get_command(context, name) for name in command.list_commands(context)]
        return [command, *[leaf for sub in subs if sub for leaf in walk(sub)]]

    found = [
        line
        for command in walk(cli)
        for line in re.findall(r"^\s*(hubhound .+)$", str(command.epilog or ""), flags=re.MULTILINE)
    ]
    assert len(found) > 10
    for line in found:
        parse(cli, shlex.split(line.split("  #")[0])[1:], "hubhound")


def test_benchmarks_that_use_what_the_tests_have_find_it() -> None:
    """Run as documented, ``python benchmarks/NAME.py``, Python looks beside the program only."""
    programs = [path for path in (REPOSITORY / "benchmarks").glob("*.py") if "__main__" in path.read_text()]
    using = {path.name: path.read_text() for path in programs if "from tests." in path.read_text()}
    assert "server.py" in using
    for name, text in using.items():
        assert 0 < text.find("sys.path.insert(") < text.find("from tests."), name


def test_the_documents_link_to_what_exists() -> None:
    for document in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_no_document_has_an_unfilled_place() -> None:
    for document in (REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *(REPOSITORY / "docs").glob("*.md")):
        assert not re.findall(r"[A-Z0-9]+_(?:TABLE|SECONDS)|MEASURED", document.read_text()), document.name
