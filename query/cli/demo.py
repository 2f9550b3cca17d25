"""``hubhound demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--folder", type=click.Path(), help="Where the world is kept; by default the user's cache folder.")
@click.option("--fresh", is_flag=True, help="Draw and train everything again.")
def demo(folder: str | None, fresh: bool) -> None:
    """Draw a small world, train tiny models on it, then index and search them: everything real, no network needed."""
    from platformdirs import user_cache_path

    from query.demo.run import run_demo

    run_demo(Path(folder).expanduser() if folder else user_cache_path("hubhound") / "demo", fresh)
