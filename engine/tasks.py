"""Source tasks: a seeded sample of a folder's images, copied into the index so that profiles can always be made again.

::

    INDEX/tasks/NAME/000-cat.jpg    the sample, in the order it was drawn
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from engine.errors import IndexDamagedError, InputError, ProbeError
from engine.files import new_folder
from engine.probes import Progress, find_images, hash_file, open_image, probes_fingerprint
from engine.remote import Remote
from engine.schema import Task, TaskImage
from engine.writer import IndexWriter

TASKS = "tasks"
"""Name of the folder in an index's folder that holds the samples."""

COUNT = 25
"""Images of a sample unless told."""

_LARGEST_SEED = 2**63 - 1  # what a store's JSON holds
_STEM = 60  # characters of a file's former name that are kept


@dataclass(frozen=True)
class DrawnTask:
    """A task whose sample still lies in the user's folder.

    Attributes:
        task: Its record.
        sources: Where each image of the sample is, in order.
        asked: How many images were asked for; the folder may have had fewer.
        skipped: Why images that were drawn could not be used.
    """

    task: Task
    sources: tuple[Path, ...]
    asked: int
    skipped: tuple[ProbeError, ...]


def check_task_name(name: str) -> str:
    """Refuses a name that no folder and no table should have to bear.

    Raises:
        InputError: It is not 1 to 100 letters, digits, ``_``, ``.`` and ``-``, beginning with a letter or digit.
    """
    try:
        Task(name=name, images=(TaskImage(file="", sha256=""),), fingerprint="", drawn_from=1)
    except ValidationError as error:
        raise InputError(
            f"the task name {name!r} cannot be used: 1 to 100 letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit"
        ) from error
    return name


def draw_task(
    name: str,
    folder: Path,
    count: int = COUNT,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> DrawnTask:
    """Draws the sample of a task from a folder of images; nothing is written.

    The images are sorted by path and shuffled with the seed, and the first that differ in content are taken: the same
    folder gives the same sample everywhere, and only as many files are read as are needed. The draw takes no account of
    classes.

    Args:
        name: Of the task.
        folder: Searched recursively. If all images lie in subfolders, the names of its immediate ones are the classes.
        count: Images to draw, at least 1; a folder with fewer gives all it has.
        seed: Of the draw.
        skip_bad: Draw another image in place of one that cannot be read, instead of stopping.
        progress: Called with (images drawn, images to draw).

    Returns:
        The task, its sample in the order it was drawn.

    Raises:
        InputError: The name, the count or the seed cannot be used.
        ProbeError: The folder is missing or holds no images, or an image cannot be read; ``path`` says which.
    """
    check_task_name(name)
    if count < 1 or not 0 <= seed <= _LARGEST_SEED:
        raise InputError(
            f"a sample of {count} images with seed {seed}: draw at least 1, with a seed from 0 to 2^63 - 1"
        )
    if not folder.is_dir():
        raise ProbeError(f"the image folder {folder} of task {name} does not exist", folder)
    paths = find_images(folder)
    if not paths:
        raise ProbeError(f"the image folder {folder} of task {name} holds no images (JPEG, PNG, WebP, BMP)", folder)
    sample: dict[str, Path] = {}  # by hash: equal files are one image
    skipped: list[ProbeError] = []
    for i in np.random.default_rng(seed).permutation(len(paths)).tolist():
        try:
            sha256 = _checked_hash(paths[i])
        except ProbeError as error:
            if not skip_bad:
                raise ProbeError(f"task {name}: {error} (--skip-bad draws another in its place)", error.path) from error
            skipped.append(error)
            continue
        sample.setdefault(sha256, paths[i])
        if progress:
            progress(len(sample), min(count, len(paths)))
        if len(sample) == count:
            break
    if not sample:
        raise ProbeError(f"task {name}: none of the {len(paths)} images in {folder} can be read", folder)
    images = tuple(TaskImage(file=_file_name(i, path), sha256=h) for i, (h, path) in enumerate(sample.items()))
    task = Task(
        name=name,
        images=images,
        fingerprint=probes_fingerprint(sample),
        seed=seed,
        drawn_from=len(paths),
        classes=_classes(folder, paths),
    )
    return DrawnTask(task, tuple(sample.values()), count, tuple(skipped))


def add_task(writer: IndexWriter, drawn: DrawnTask, replace: bool = False) -> bool:
    """Makes a task part of an index: copies its sample and writes its record.

    A task that is there with the same sample stays as it is; if its images were damaged, they are copied again.

    Args:
        writer: Of the index.
        drawn: The task.
        replace: Put it in place of a task of this name with another sample, whose profiles go with it.

    Returns:
        Whether anything was added.

    Raises:
        InputError: There is a task of this name with another sample.
        ProbeError: An image has changed since it was drawn, or is gone.
        OSError: The images cannot be copied.
    """
    name, folder = drawn.task.name, writer.index.folder
    known = next((task for task in writer.store.tasks() if task.name == name), None)
    if known and known.fingerprint == drawn.task.fingerprint:
        try:
            task_images(folder, known)
        except IndexDamagedError:
            _copy(drawn, known, task_folder(folder, name), lambda: None)
            writer.publish_task(name)
        return False
    if known and not replace:
        raise InputError(
            f"there is a task {name} with another sample already ({len(known.images)} images, seed {known.seed}): "
            "choose another name, or add --replace, which also drops its profiles"
        )
    _copy(drawn, drawn.task, task_folder(folder, name), lambda: writer.remove_task(name))
    writer.put_task(drawn.task)
    return True


def drop_task(writer: IndexWriter, name: str) -> None:
    """Takes a task out of an index: its record, its profiles, its images. Performance on it stays.

    Raises:
        InputError: There is no such task.
    """
    names = [task.name for task in writer.store.tasks()]
    if name not in names:
        raise InputError(f"there is no task {name!r} in {writer.index.name}: it has {', '.join(names) or 'none'}")
    writer.remove_task(name)
    shutil.rmtree(task_folder(writer.index.folder, name), ignore_errors=True)
    writer.publish_task(name)


def task_folder(index_folder: Path, name: str) -> Path:
    """Where the images of a task are."""
    return index_folder / TASKS / name


def task_images(index_folder: Path, task: Task) -> tuple[Path, ...]:
    """The images of a task's sample in order, checked to be the ones that were drawn.

    Args:
        index_folder: Of the index.
        task: Its record.

    Raises:
        IndexDamagedError: An image is missing or has changed.
        StoreError: They are on a server, which refused or did not answer.
    """
    try:
        return _checked_images(index_folder, task)
    except IndexDamagedError:
        remote = Remote.of(index_folder)
        if remote is None:
            raise
        remote.fetch("tasks", f"{TASKS}/{task.name}")
        return _checked_images(index_folder, task)


def _checked_images(index_folder: Path, task: Task) -> tuple[Path, ...]:
    folder = task_folder(index_folder, task.name)
    paths = tuple(folder / image.file for image in task.images)
    for path, image in zip(paths, task.images, strict=True):
        try:
            same = hash_file(path) == image.sha256
        except OSError as error:
            raise _damaged(task, path, f"cannot be read ({error.strerror or error})") from error
        if not same:
            raise _damaged(task, path, "has changed")
    return paths


def _damaged(task: Task, path: Path, what: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"the image {path} of task {task.name} {what}: add the task again from its images "
        f"(--sample {len(task.images)} --seed {task.seed})",
        path,
    )


def _checked_hash(path: Path) -> str:
    try:
        sha256 = hash_file(path)
    except OSError as error:
        raise ProbeError(f"the image {path} cannot be read: {error.strerror or error}", path) from error
    open_image(path)
    return sha256


def _classes(folder: Path, paths: list[Path]) -> tuple[str, ...]:
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) == 1 for part in parts):
        return ()
    # The name of a folder may hold bytes that are no text; a store takes text only.
    return tuple(sorted({part[0].encode("utf-8", "replace").decode() for part in parts}))


def _file_name(i: int, path: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:_STEM]
    return f"{i:03d}-{stem}{path.suffix.lower()}"


def _copy(drawn: DrawnTask, task: Task, target: Path, before: Callable[[], None]) -> None:
    """Copies a sample under the names of a record, in place of what is there.

    Args:
        drawn: The sample.
        task: Its record.
        target: Folder of the task.
        before: Called when all is copied, before the old images go.
    """
    with new_folder(target) as new:
        for source, image in zip(drawn.sources, task.images, strict=True):
            copy = new / image.file
            try:
                shutil.copyfile(source, copy)
            except FileNotFoundError as error:
                raise ProbeError(f"the image {source} was removed while it was copied: run again", source) from error
            if hash_file(copy) != image.sha256:
                raise ProbeError(f"the image {source} was changed while it was copied: run again", source)
        before()
        if target.exists():
            shutil.rmtree(target)
