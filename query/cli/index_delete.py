"""``hubhound index delete``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from query.cli.output import data, data_json, format_option, index_option, note, progress, size

if TYPE_CHECKING:
    from engine.deletion import Doomed


@click.command(
    epilog="""
\b
Examples:
  hubhound index delete --index zoo
  hubhound index delete --index qdrant://db.example:6333/zoo --yes
"""
)
@index_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@format_option
def delete(index_path: str, yes: bool, form: str) -> None:
    """Delete an index: its files, or its collections on a server and what this machine keeps of them.

    What goes is told first, and asked about in a terminal. Nothing else goes: not the probe images of a folder of
    yours, not files that an index does not have, not the collections of other names. An index that is being written to
    is refused. A deletion that was interrupted is finished by the same command.
    """
    from engine.deletion import open_deletion
    from engine.errors import InputError
    from engine.store.address import ServerAddress

    if not index_path.strip():  # an unset variable of a script: it would be the current folder
        raise InputError("--index is empty: name the index to delete")
    if not yes and not sys.stdin.isatty():
        # As it reads in full: one with a key in it is refused first, without saying the key.
        named = ServerAddress.parse(index_path) if ServerAddress.is_server(index_path) else index_path
        raise InputError(f"{named} is not deleted: there is no terminal to ask in, give --yes")
    with open_deletion(index_path) as deletion:
        doomed = deletion.doomed
        if doomed.folder is not None:
            _refuse_crawl(doomed.folder, doomed.index)
        _tell(doomed)
        if not yes and not click.confirm("Delete all of this for good?", err=True):
            raise InputError(f"{doomed.index} is not deleted")
        started = time.monotonic()
        with progress("deleting", "parts") as advance:
            deletion.run(advance)
    if form == "json":
        data_json({**doomed.to_json(), "index": index_path, "seconds": round(time.monotonic() - started, 3)})
    elif form == "quiet":
        data(index_path)
    note(f"{doomed.index} is deleted" + (f"; what stays: {'; '.join(doomed.stays)}" if doomed.stays else ""))


def _tell(doomed: Doomed) -> None:
    from indexers.crawl.log import duration

    begun = "what is left of " if doomed.resumed else ""
    held = "" if doomed.models is None else f": {doomed.models:,} models, {doomed.outputs or 0:,} outputs"
    note(f"to be deleted: {begun}the index {doomed.index}{held}")
    for name, points in doomed.collections.items():
        note(f"  collection {name}: {points:,} points")
    if doomed.folder is not None:
        note(f"  folder {doomed.folder}: {doomed.files:,} files, {size(doomed.size_bytes)}")
    if doomed.lately_s is not None and doomed.collections:
        note(f"  last written to {duration(doomed.lately_s)} ago")
    for left in doomed.stays:
        note(f"stays: {left}")


def _refuse_crawl(folder: Path, index: str) -> None:
    """Refuses while a crawl runs, also one that only waits for new models and holds no lock on a server."""
    from engine.errors import InputError
    from indexers.crawl import heartbeat
    from indexers.crawl.home import home_of, shards_in
    from indexers.crawl.journal import FILE
    from indexers.crawl.profile_journal import HOME

    shards = [(int(i), int(n)) for i, n in (text.split("/") for text in shards_in(folder))]
    for home in (home_of(folder, shard, shared=True) for shard in (None, *shards)):
        for journal in (home / FILE, home / HOME / FILE):
            found = heartbeat.read(journal.with_name(heartbeat.FILE))
            if found is not None and found.alive:
                raise InputError(
                    f"a crawl is writing to {index} (process {found.beat.pid} on {found.beat.host}): end it first"
                )
