"""Entry point of the ``hubhound`` command.

Commands are imported when they are used, so that help and errors come at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import click

from query.cli.output import fail

_COMMANDS = {
    "demo": ("query.cli.demo", "demo", "Everything on a small drawn world, without a network."),
    "index": ("query.cli.index", "index", "Make, fill and check an index."),
    "crawl": ("query.cli.crawl", "crawl", "Keep an index current with a hub, for weeks."),
    "search": ("query.cli.search", "search", "Find the models that recognise a concept."),
    "serve": ("query.cli.serve", "serve", "Answer over HTTP, and on a page to look at."),
    "eval": ("query.cli.evaluate", "evaluate", "Measure how good search is."),
    "recommend": ("query.cli.recommend", "recommend", "Find the vision-language model for some images."),
    "profile": ("query.cli.profile", "profile", "Compute models' conductance on tasks."),
    "task": ("query.cli.task", "task", "Keep samples of images that models are profiled on."),
    "performance": ("query.cli.performance", "performance", "Keep how well models are known to do on tasks."),
    "plan": ("query.cli.plan", "plan", "What a hub of so many models will take: bytes, hours, queries a second."),
    "describe": ("query.cli.describe", "describe", "Names for what a model's outputs recognise."),
}

EXAMPLES = """
\b
Examples:
  hubhound demo
  hubhound index create --index zoo --probes photos/ --encoder open_clip:ViT-B-32/laion2b_s34b_b79k
  hubhound index add --index zoo timm/resnet50.a1_in1k microsoft/resnet-18
  hubhound search "golden retriever" --index zoo
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed; their summaries need no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, name, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hubhound", message="hubhound %(version)s")
def cli() -> None:
    """Find pretrained models by what they do, not by what their cards say."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 an error with one clear line, 2 wrong usage, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Without the program's name; the process's own by default.

    Returns:
        The exit status.
    """
    # Idle threads of a small machine should sleep: while they spin, another program on the core they wait for can make
    # one forward pass take seconds. Read by the OpenMP runtime when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What goes wrong with a server is said once, by us; the library of gRPC, which reads this when loaded, says it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A table sent to a pager or to `head` must be able to end early without a complaint.
    if arguments is None and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        result: Any = cli.main(args=arguments, prog_name="hubhound", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.Abort:
        fail("interrupted")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    except Exception as error:
        if os.environ.get("HUBHOUND_TRACEBACK"):
            raise
        return _report(error)
    return result if isinstance(result, int) else 0


def _report(error: Exception) -> int:
    from engine.errors import HubhoundError

    if isinstance(error, HubhoundError):
        fail(str(error))
        return 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}: free some space or check the permissions, nothing finished is lost")
        return 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # what pathlib says of ~stranger/file
        fail("a path begins with ~ and a name that is no user of this machine: write the whole path")
        return 1
    fail(f"an error of ours, please report it: {type(error).__name__}: {error} (HUBHOUND_TRACEBACK=1 shows where)")
    return 1
