"""Zoos to measure recommendation on: 48 models of open_clip or a list of one's own, and what an index lacks of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from engine.errors import HubhoundError, InputError, ProbeError, StoreError
from engine.performance import model_name
from engine.probes import find_images
from engine.tasks import add_task, check_task_name, draw_task, task_images
from engine.writer import IndexWriter
from indexers.profiler import ImageFile, ProfileSettings
from indexers.profiling import profile_model
from indexers.towers import TowerSource, expand_towers
from query.evaluate.inputfiles import named
from query.evaluate.openclip48 import MODELS, NAME


class Screen(Protocol):
    """Where a user sees what is done."""

    def note(self, text: str) -> None:
        """Shows a line."""

    def overall(self, what: str, done: int, total: int) -> None:
        """Shows how many tasks or models are done."""

    def current(self, what: str, done: float, total: float) -> None:
        """Shows how much of one of them is done, in images; a total of 0 is not known."""


@dataclass(frozen=True)
class ZooRequest:
    """What an evaluation needs of an index.

    Attributes:
        sources: The models.
        folders: Images of each task by its name; none for the tasks that the index has.
        images: To draw, with seed 0, of each task that the index lacks, at least 1; a folder with fewer gives all.
        n_steps: Steps of the path of a profile.
    """

    sources: Sequence[TowerSource]
    folders: Mapping[str, Path]
    images: int = 100
    n_steps: int = 50


@dataclass(frozen=True)
class PreparedZoo:
    """What an index has of a zoo.

    Attributes:
        models: Those that have profiles of all tasks, in the order of the zoo.
        tasks: Those that are profiled and have known performance.
        left_out: The other models of the zoo, and why.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    left_out: Mapping[str, str]


def zoo_sources(zoo: str) -> list[TowerSource]:
    """The models of a zoo.

    Args:
        zoo: ``openclip48``, or a file with the name of a model a line, as ``hubhound profile @FILE`` takes it.

    Raises:
        InputError: The file cannot be read or names no model.
    """
    if zoo == NAME:
        return expand_towers([model_name(*pair) for pair in MODELS])
    return expand_towers([f"@{Path(zoo).expanduser()}"])


def task_folders(folder: Path) -> dict[str, Path]:
    """The folders of images in a folder, by name: each is a task.

    Raises:
        ProbeError: The folder does not exist, or no folder in it holds images.
        InputError: The name of one cannot be a task's.
    """
    if not folder.is_dir():
        raise ProbeError(f"the folder of tasks {folder} does not exist: it must have a folder of images a task", folder)
    places = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = {check_task_name(path.name): path for path in places if find_images(path)}
    if not found:
        raise ProbeError(f"no folder in {folder} holds images: it must have a folder of images a task", folder)
    return found


def prepare(
    writer: IndexWriter,
    request: ZooRequest,
    measured: Mapping[str, Collection[str]],
    device: str,
    settings_of: Callable[[TowerSource], ProfileSettings],
    screen: Screen,
) -> PreparedZoo:
    """Adds the tasks and makes the profiles that an index lacks of a zoo; what is there is kept.

    Every task and every image is remembered as it is done: an interrupted run goes on where it was.

    Args:
        writer: The index.
        request: What is wanted.
        measured: Tasks that each model has a known performance on; others are not worth profiling.
        device: Where the models run.
        settings_of: How the profiles of a model are computed.
        screen: Shown what is done.

    Raises:
        InputError: The zoo cannot be read, a model has profiles made with another number of steps, or fewer than two
            models or two tasks are left.
        HubhoundError: The images of a task cannot be used, or the index cannot be written.
    """
    sources = [source for source in request.sources if measured.get(source.name)]
    left_out = {own.name: "no known performance" for own in request.sources if own not in sources}
    worth = {task for source in sources for task in measured[source.name]}
    offered = list(request.folders) or [task.name for task in writer.store.tasks()]
    tasks = tuple(task for task in offered if task in worth)
    if len(sources) < 2 or len(tasks) < 2:
        raise InputError(
            f"{len(sources)} of {len(request.sources)} models of the zoo have known performance, and on {len(tasks)} "
            f"of {len(offered)} tasks ({named(offered) or 'add some with --tasks'}): at least two of each are needed"
        )
    if len(tasks) < len(offered):
        unknown = [task for task in offered if task not in worth]
        screen.note(f"tasks left out, the reference or without known performance ({len(unknown)}): {named(unknown)}")
    _check_steps(writer, sources, request.n_steps)
    try:
        _add_missing(
            writer, {task: request.folders[task] for task in tasks if task in request.folders}, request, screen
        )
        left_out |= _profile_missing(writer, sources, tasks, device, settings_of, screen)
    finally:
        writer.export_knowledge()
    models = tuple(source.name for source in sources if source.name not in left_out)
    if len(models) < 2:
        name = next(source.name for source in sources if source.name in left_out)
        raise InputError(
            f"{len(models)} of {len(sources)} models of the zoo could be profiled, and at least two are needed; the "
            f"first that could not is {name}: {left_out[name]}"
        )
    return PreparedZoo(models, tasks, left_out)


def _check_steps(writer: IndexWriter, sources: Sequence[TowerSource], n_steps: int) -> None:
    """Refuses a number of steps that some model's profiles were not made with, before hours go into the others."""
    for source in sources:
        for known in writer.store.profiles(model=source.name):
            if known.n_steps != n_steps:
                raise InputError(
                    f"{source.name} has profiles made with {known.n_steps} steps, and {n_steps} were asked for: use "
                    f"--n-steps {known.n_steps}, or make them anew with "
                    f"'hubhound profile {source.place} --again --n-steps {n_steps}'"
                )


def _add_missing(writer: IndexWriter, folders: Mapping[str, Path], request: ZooRequest, screen: Screen) -> None:
    known = {task.name: task for task in writer.store.tasks()}
    for place, (name, folder) in enumerate(folders.items()):
        screen.overall("tasks", place, len(folders))
        if name in known:
            count = len(known[name].images)
            if count < min(request.images, known[name].drawn_from):
                screen.note(f"{name} is a task of {count} images already and stays so: {request.images} were asked for")
            continue
        drawn = draw_task(name, folder, request.images, skip_bad=True, progress=partial(screen.current, name))
        for error in drawn.skipped:
            screen.note(f"left out of {name}: {error}")
        add_task(writer, drawn)


def _profile_missing(
    writer: IndexWriter,
    sources: Sequence[TowerSource],
    tasks: Sequence[str],
    device: str,
    settings_of: Callable[[TowerSource], ProfileSettings],
    screen: Screen,
) -> dict[str, str]:
    """Makes profiles; the models that have none of some task, and why."""
    folder = writer.index.folder
    there = {task.name: task for task in writer.store.tasks()}
    chosen = {}
    for task in (there[name] for name in tasks):
        hashes = [image.sha256 for image in task.images]
        chosen[task] = tuple(map(ImageFile, task_images(folder, task), hashes))
    left_out: dict[str, str] = {}
    for place, source in enumerate(sources):
        screen.overall("models", place, len(sources))

        def tell(what: str, done: float, total: float, name: str = source.name) -> None:
            screen.current(f"{name}: {what}", done, total)

        try:
            profile_model(writer, source, chosen, device, settings_of(source), progress=tell)
        except StoreError:
            raise
        except HubhoundError as error:
            left_out[source.name] = str(error)
            screen.note(f"{source.name} is left out: {error}")
    return left_out
