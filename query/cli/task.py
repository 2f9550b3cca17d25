"""``hubhound task``: samples of images that stand for what models are used for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from query.cli.output import bars, data, data_json, format_option, index_option, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.knowledge import Knowledge
    from engine.schema import Task
    from engine.tasks import DrawnTask


@click.group()
def task() -> None:
    """Keep samples of images that models are profiled on."""


@dataclass(frozen=True)
class _Added:
    task: Task
    added: bool


@task.command(
    epilog="""
\b
Examples:
  hubhound task add pets --index zoo --images photos/pets
  hubhound task add pets --index zoo --images photos/pets --sample 50 --seed 1 --replace
  hubhound task add --each --index zoo --images photos     # every folder in photos is a task of its name
"""
)
@click.argument("name", required=False)
@index_option
@click.option("--images", "images", type=click.Path(), required=True, metavar="DIR", help="A folder of images.")
@click.option("--each", is_flag=True, help="Every folder in DIR is a task of its name; give no NAME.")
@click.option(
    "--sample", type=click.IntRange(min=1), default=25, show_default=True, help="Images drawn; fewer if DIR has fewer."
)
@click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True, help="Of the draw.")
@click.option(
    "--replace", is_flag=True, help="Put another sample in place of a task's former one, and drop its profiles."
)
@click.option("--skip-bad", is_flag=True, help="Draw another image in place of one that cannot be read.")
@format_option
def add(
    name: str | None,
    index_path: str,
    images: str,
    each: bool,
    sample: int,
    seed: int,
    replace: bool,
    skip_bad: bool,
    form: str,
) -> None:
    """Draw a sample of a folder's images and keep it as the task NAME.

    The images are copied into the index. If they lie in subfolders, the names of these are the classes. The same sample
    again is a no-op.
    """
    from engine.tasks import add_task, draw_task
    from engine.writer import IndexWriter

    if each == (name is not None):
        raise click.UsageError("give the NAME of a task, or --each for every folder in DIR")
    with IndexWriter(index_folder(index_path)) as writer:
        folder = Path(images).expanduser()
        chosen = _subfolders(folder) if each else {str(name): folder}
        done: list[_Added] = []
        try:
            with bars() as bar:
                overall = bar("tasks", "")
                current = bar("", "images")
                for task_name, task_path in chosen.items():

                    def drawing(now: int, total: int, text: str = task_name) -> None:
                        current(now, total, f"{text}: drawing")

                    drawn = draw_task(task_name, task_path, sample, seed, skip_bad, drawing)
                    done.append(_Added(drawn.task, add_task(writer, drawn, replace)))
                    _tell(drawn)
                    overall(len(done), len(chosen))
        finally:
            writer.export_knowledge(force=False)
    _report(done, form)
    if any(entry.added for entry in done):
        note(f"next: hubhound profile MODEL... --index {index_path}")


@task.command(
    "list",
    epilog="""
\b
Examples:
  hubhound task list --index zoo
  hubhound task list --index zoo --format json
""",
)
@index_option
@format_option
def list_(index_path: str, form: str) -> None:
    """List the tasks, and how much is known about each."""
    from engine.index import Index

    knowledge = Index(index_folder(index_path)).knowledge()
    profiled, ranked = _counts(knowledge)
    if form == "json":
        entries = [
            {
                **_facts(task),
                "classes": list(task.classes),
                "fingerprint": task.fingerprint,
                "profiles": profiled.get(task.name, 0),
                "performance": ranked.get(task.name, 0),
            }
            for task in knowledge.tasks
        ]
        data_json({"tasks": entries})
    elif form == "quiet":
        for task in knowledge.tasks:
            data(task.name)
    else:
        rows = [
            [
                task.name,
                str(len(task.images)),
                str(task.drawn_from),
                str(len(task.classes) or "-"),
                str(profiled.get(task.name, 0)),
                str(ranked.get(task.name, 0)),
            ]
            for task in knowledge.tasks
        ]
        numbers = ("images", "drawn from", "classes", "models profiled", "models with performance")
        table(None, ["task", *[(title, "right") for title in numbers]], rows)
    without = sorted(set(ranked) - {task.name for task in knowledge.tasks})
    if without:
        note(f"performance is known, but no images, of {', '.join(without)}: hubhound task add NAME --images DIR")


@task.command(
    epilog="""
\b
Examples:
  hubhound task remove pets --index zoo
"""
)
@click.argument("name")
@index_option
def remove(name: str, index_path: str) -> None:
    """Remove the task NAME with its images and profiles; known performance stays."""
    from engine.tasks import drop_task
    from engine.writer import IndexWriter

    with IndexWriter(index_folder(index_path)) as writer:
        profiles = len(writer.store.profiles(task=name))
        drop_task(writer, name)
        writer.export_knowledge()
    note(f"{name} and its {profiles} profiles are gone")


def _subfolders(folder: Path) -> dict[str, Path]:
    from engine.errors import ProbeError
    from engine.probes import find_images
    from engine.tasks import check_task_name

    if not folder.is_dir():
        raise ProbeError(f"the folder {folder} does not exist: --each takes a folder of folders of images", folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if find_images(path):
            found[check_task_name(path.name)] = path
        else:
            note(f"left out: {path} holds no images")
    if not found:
        raise ProbeError(f"no folder in {folder} holds images: --each takes a folder of folders of images", folder)
    return found


def _tell(drawn: DrawnTask) -> None:
    for error in drawn.skipped:
        note(f"left out: {error}")
    if len(drawn.task.images) < drawn.asked:
        note(
            f"{drawn.task.name}: {len(drawn.task.images)} different images are all there are, "
            f"{drawn.asked} were asked for"
        )


def _report(done: list[_Added], form: str) -> None:
    if form == "json":
        data_json({"tasks": [{**_facts(entry.task), "added": entry.added} for entry in done]})
    elif form == "quiet":
        for entry in done:
            data(entry.task.name)
    else:
        rows = [
            [
                entry.task.name,
                str(len(entry.task.images)),
                str(entry.task.drawn_from),
                str(len(entry.task.classes) or "-"),
                "added" if entry.added else "there already",
            ]
            for entry in done
        ]
        numbers = ("images", "drawn from", "classes")
        table(None, ["task", *[(title, "right") for title in numbers], "state"], rows)


def _facts(task: Task) -> dict[str, object]:
    return {"name": task.name, "images": len(task.images), "drawn_from": task.drawn_from, "seed": task.seed}


def _counts(knowledge: Knowledge) -> tuple[dict[str, int], dict[str, int]]:
    """How many models have a profile, and how many a known performance, on each task."""
    profiled: dict[str, int] = {}
    for profile in knowledge.profiles:
        profiled[profile.task] = profiled.get(profile.task, 0) + 1
    ranked: dict[str, set[str]] = {}
    for record in knowledge.performance:
        ranked.setdefault(record.task, set()).add(record.model)
    return profiled, {name: len(models) for name, models in ranked.items()}
