"""``hubhound index copy|backup|restore|export|migrate``: take an index elsewhere, and be sure that it arrived."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from query.cli.output import data, data_json, format_option, index_option, note, progress, seconds, table
from query.cli.places import server_choices

if TYPE_CHECKING:
    from engine.copy_report import CopyReport
    from engine.copy_source import CopySource

FORM = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "quiet"]),
    default="table",
    show_default=True,
    envvar="HUBHOUND_FORMAT",
    help="How the report is written: for people, for programs, or only the content hash.",
)
NO_PROBES = click.option(
    "--no-probes", is_flag=True, help="Leave the probe images where they are, and refer to them there."
)
PROBES = click.option(
    "--probes", "probe_folder", type=click.Path(), help="Where the probe images are now, if they were moved."
)
SHARDS = click.option(
    "--shards", type=click.IntRange(min=1), default=1, show_default=True, help="On a new server index: shards."
)
REPLICAS = click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="On a new server index: replicas."
)
CONSISTENCY = click.option(
    "--write-consistency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="On a new server index: replicas that must have a write before it counts.",
)


@click.command(
    epilog="""
\b
Examples:
  hubhound index copy zoo /mnt/disk/zoo
  hubhound index copy zoo qdrant://db.example:6333/zoo
  hubhound index copy qdrant://db.example:6333/zoo zoo-here
"""
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@NO_PROBES
@PROBES
@SHARDS
@REPLICAS
@CONSISTENCY
@FORM
def copy(
    source: str,
    target: str,
    no_probes: bool,
    probe_folder: str | None,
    shards: int,
    replicas: int,
    write_consistency: int,
    form: str,
) -> None:
    """Copy an index between folders and servers, and compare what arrived.

    TO must be new. A copy that was cut short goes on where it stopped when the same command is given again; until it is
    complete, TO is no index. Caches and the journal of a crawl stay behind.
    """
    from engine.copy_target import open_target
    from engine.copying import copy_index

    started = time.monotonic()
    choices = server_choices(target, shards, replicas, write_consistency)
    with _source(source, no_probes, probe_folder) as old, open_target(target, old, choices) as new:
        if new.resumed:
            note(f"{new.name} is an unfinished copy: going on with it")
        with progress("copying") as advance:
            report = copy_index(old, new, advance)
    _show(report, form, started)


@click.command(
    epilog="""
\b
Examples:
  hubhound index backup --index zoo zoo.backup
  hubhound index backup --index qdrant://db.example:6333/zoo /mnt/disk/zoo-2026-03-01.backup
"""
)
@index_option
@click.argument("file", type=click.Path())
@NO_PROBES
@PROBES
@FORM
def backup(index_path: str, file: str, no_probes: bool, probe_folder: str | None, form: str) -> None:
    """Write an index into one file, read the file back, and compare.

    FILE must be new; it has its name only when it is whole.
    """
    from engine.backup import backup_index

    started = time.monotonic()
    with _source(index_path, no_probes, probe_folder) as source, progress("backing up") as advance:
        report = backup_index(source, Path(file).expanduser(), advance)
    _show(report, form, started)


@click.command(
    epilog="""
\b
Examples:
  hubhound index restore zoo.backup --index zoo
  hubhound index restore zoo.backup --index qdrant://db.example:6333/zoo
"""
)
@click.argument("file", type=click.Path())
@index_option
@SHARDS
@REPLICAS
@CONSISTENCY
@FORM
def restore(file: str, index_path: str, shards: int, replicas: int, write_consistency: int, form: str) -> None:
    """Make an index from a backup, after checking every byte of it.

    The index must be new. A restoration that was cut short goes on when the same command is given again.
    """
    from engine.backup import BackupSource
    from engine.copy_target import open_target
    from engine.copying import copy_index
    from engine.errors import InputError

    started = time.monotonic()
    choices = server_choices(index_path, shards, replicas, write_consistency)
    path = Path(file).expanduser()
    if not path.exists():
        raise InputError(f"there is no backup {path}")
    with (
        progress("reading the backup") as advance,
        BackupSource(path, advance) as source,
        open_target(index_path, source, choices) as target,
    ):
        if target.resumed:
            note(f"{target.name} is half restored: going on with it")
        report = copy_index(source, target, advance)
    _show(report, form, started)


@click.command(
    epilog="""
\b
Examples:
  hubhound index export --index zoo --parquet zoo-tables
  hubhound index export --index zoo --parquet zoo.parquet
"""
)
@index_option
@click.option(
    "--parquet",
    "target",
    type=click.Path(),
    required=True,
    metavar="DIR|FILE",
    help="A new folder for all tables, or a new FILE.parquet with a row an output.",
)
@format_option
def export(index_path: str, target: str, form: str) -> None:
    """Write everything in an index as parquet tables: outputs, models, probes, tasks, profiles, performance."""
    from engine.export import export_index
    from query.cli.places import index_folder

    path = Path(target).expanduser()
    with progress("exporting") as advance:
        rows = export_index(index_folder(index_path), path, advance)
    if form == "json":
        data_json({"to": str(path), "rows": rows})
    elif form == "quiet":
        data(str(path))
    else:
        table(None, ["table", ("rows", "right")], [(name, f"{count:,}") for name, count in rows.items()])
        note(f"{path}: read back, whole")


@click.command(
    epilog="""
\b
Examples:
  hubhound index migrate --index qdrant://db.example:6333/zoo
"""
)
@index_option
@format_option
def migrate(index_path: str, form: str) -> None:
    """Bring an index that an older version made on a server to the form of today.

    Run it again after an interruption. An index that has the form of today gets what is missing. Nobody may write to
    the index with the older version meanwhile.
    """
    from engine.index import Index
    from engine.remote import Remote
    from engine.store.address import ServerAddress

    if ServerAddress.is_server(index_path):
        address = ServerAddress.parse(index_path)
    else:
        remote = Remote.of(Path(index_path).expanduser())
        if remote is None:
            made = Index(Path(index_path).expanduser()).manifest.format  # of another one: refused with what to do
            _tell(index_path, made, made, form)
            note(f"{index_path} is in a folder, whose form has not changed: nothing to do")
            return
        address = remote.address
    from engine.store.server_config import FORMAT
    from engine.store.server_migrate import migrate as bring

    with progress("migrating", "models") as advance:
        found = bring(address.connect(), address.name, None, advance)
    _tell(index_path, found, FORMAT, form)
    note(f"{address}: " + ("had the form of today" if found == FORMAT else f"brought from format {found} to {FORMAT}"))


def _source(index: str, no_probes: bool, probe_folder: str | None) -> CopySource:
    from engine.copy_stores import open_source
    from engine.errors import IndexMissingError, InputError

    try:
        return open_source(index, not no_probes, Path(probe_folder).expanduser() if probe_folder else None)
    except IndexMissingError as error:  # whose own words are for those who want to make one
        raise InputError(f"no index at {error.path}: there is nothing to copy, check the name") from error


def _tell(index: str, found: int, now: int, form: str) -> None:
    if form == "json":
        data_json({"index": index, "from": found, "to": now, "changed": found != now})
    elif form == "quiet":
        data(str(now))


def _show(report: CopyReport, form: str, started: float) -> None:
    took_s = time.monotonic() - started
    if not report.settled:
        note(f"{report.source} was written to meanwhile: every model is whole, as it was when it was read")
    if form == "json":
        data_json({**report.to_json(), "seconds": round(took_s, 3)})
    elif form == "quiet":
        data(report.content.sha256)
    else:
        rows = [(name, f"{content.count:,}", content.sha256[:16]) for name, content in report.content.parts().items()]
        table(None, ["", ("number", "right"), "content hash"], [*rows, ("all", "", report.content.sha256)])
        parts = [f"{report.copied:,} models copied"]
        if report.kept:
            parts.append(f"{report.kept:,} were there already")
        if report.repaired:
            parts.append(f"{report.repaired:,} copied again because they differed")
        note(f"{report.target}: {', '.join(parts)}; read back and found equal, {seconds(took_s)} s")
