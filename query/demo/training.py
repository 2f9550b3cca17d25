"""A drawn world on disk: probe images, a tiny encoder and tiny classifiers, made in two minutes without a network."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock
from open_clip.model import CLIP
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine.errors import InputError
from query.demo.captions import background_phrases
from query.demo.classifiers import Assignment, ClassifierLesson, assign
from query.demo.encoder import EncoderLesson, save_encoder, zero_shot_accuracy
from query.demo.gallery import draw_gallery
from query.demo.hub_folder import save_classifier
from query.demo.world import CONCEPTS, draw

VERSION = 2
"""Raised whenever the same specification would make another world."""

T = TypeVar("T")
_Job = Callable[[Callable[[], None]], tuple[T, float]]

_MARKER = "world.json"
_OURS = {"probes", "probes.csv", "encoder", "models", "labels.json", "queries.txt", "background.txt", _MARKER}


@dataclass(frozen=True)
class WorldSpec:
    """What kind of world to make.

    Attributes:
        seed: Names the world: the same seed draws and teaches the same.
        probes: Number of probe images.
        probe_px: Side of the probe images in pixels.
        classifiers: Number of classifiers.
        drawings: How often each concept is drawn to learn from.
        drawing_px: Side of those drawings in pixels.
        held_out: How often each concept is drawn to measure accuracies.
        encoder_steps: Training steps of the encoder.
        classifier_steps: Training steps of a classifier of the usual pace.
    """

    seed: int
    probes: int
    probe_px: int
    classifiers: int
    drawings: int
    drawing_px: int
    held_out: int
    encoder_steps: int
    classifier_steps: int

    @classmethod
    def demo(cls) -> "WorldSpec":
        """The world of ``hubhound demo``."""
        return cls(
            seed=7,
            probes=600,
            probe_px=96,
            classifiers=14,
            drawings=120,
            drawing_px=48,
            held_out=20,
            encoder_steps=320,
            classifier_steps=300,
        )

    @classmethod
    def test(cls) -> "WorldSpec":
        """A smaller world for tests."""
        return cls(
            seed=7,
            probes=240,
            probe_px=96,
            classifiers=4,
            drawings=50,
            drawing_px=48,
            held_out=6,
            encoder_steps=170,
            classifier_steps=160,
        )


@dataclass(frozen=True)
class World:
    """A world on disk.

    Attributes:
        folder: Where it is.
        probes: The folder of probe images.
        probe_concepts: CSV with the columns file and concept.
        encoder: The folder of the encoder, for ``open_clip:local-dir:``.
        models: The folder that holds the classifiers as ``tiny/NAME``.
        labels: JSON: per model id a list of index, declared label or null, and true concept.
        queries: The concepts that some classifier knows, one a line.
        background: Phrases for calibration, one a line.
        classifier_accuracy: Per model id, the share of held-out drawings of its concepts that it recognises.
        encoder_accuracy: The share of held-out drawings whose nearest concept name is the right one.
    """

    folder: Path
    probes: Path
    probe_concepts: Path
    encoder: Path
    models: Path
    labels: Path
    queries: Path
    background: Path
    classifier_accuracy: Mapping[str, float]
    encoder_accuracy: float


def _open_world(folder: Path, classifier_accuracy: Mapping[str, float], encoder_accuracy: float) -> World:
    return World(
        folder,
        folder / "probes",
        folder / "probes.csv",
        folder / "encoder",
        folder / "models",
        folder / "labels.json",
        folder / "queries.txt",
        folder / "background.txt",
        classifier_accuracy,
        encoder_accuracy,
    )


def _made_before(folder: Path, spec: WorldSpec) -> World | None:
    """Opens the world in a folder, unless it is another one or unfinished."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if marker["version"] == VERSION and marker["spec"] == asdict(spec):
            return _open_world(folder, marker["classifier_accuracy"], marker["encoder_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def build_world(folder: Path, spec: WorldSpec, progress: bool = True) -> World:
    """Makes a world in a folder, or opens it if it is already there.

    Args:
        folder: Where to. What an earlier version or another specification left there is replaced.
        spec: What to make.
        progress: Whether to show progress bars on standard error.

    Returns:
        The world.

    Raises:
        InputError: The folder holds something that is not a world.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        world = _made_before(folder, spec)
        if world is not None:
            return world
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in _OURS) if folder.is_dir() else []
        if strangers:
            raise InputError(
                f"{folder} holds {strangers[0]}, which is no part of a drawn world: choose another folder."
            )
        building = folder.parent / f".{folder.name}.building"
        replaced = folder.parent / f".{folder.name}.replaced"
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        try:
            accuracies = _Build(building, spec, progress).run()
            if folder.exists():
                folder.rename(replaced)  # whole until the moment the new one takes its place
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
        return _open_world(folder, *accuracies)


def _n_workers() -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, affinity))


@contextmanager
def _quiet_torch(seed: int) -> Iterator[None]:
    """Seeds PyTorch and gives every training thread one core, and leaves no trace of either.

    Several models at a time with one thread each learn faster than one model at a time with several threads, which
    wait for each other at every small operation.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Stopped(Exception):
    """Ends a training thread whose result nobody waits for any more."""


class _Crew:
    """Threads that train, and stop soon when the caller fails or is interrupted."""

    def __init__(self, n_workers: int) -> None:
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="train")
        self._stop = Event()

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def start(self, job: "_Job[T]") -> Future[tuple[T, float]]:
        """Runs a job in one of the threads.

        Args:
            job: The job, given a function to call now and then.

        Returns:
            Its result to be.
        """
        return self._pool.submit(job, self._check)


class _Build:
    """One run that makes a world."""

    def __init__(self, folder: Path, spec: WorldSpec, progress: bool) -> None:
        self._folder = folder
        self._spec = spec
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not progress,
        )

    def run(self) -> tuple[dict[str, float], float]:
        """Makes the world.

        Returns:
            The accuracy of each classifier by model id, and that of the encoder.
        """
        assignments = assign(self._spec.classifiers, self._spec.seed)
        self._folder.mkdir(parents=True)
        with self._progress:
            self._draw_probes()
            self._write_lists(assignments)
            accuracies = self._teach(assignments)
        marker = {
            "version": VERSION,
            "spec": asdict(self._spec),
            "classifier_accuracy": accuracies[0],
            "encoder_accuracy": accuracies[1],
        }
        _write_json(self._folder / _MARKER, marker)
        return accuracies

    def _advancer(self, task: TaskID) -> Callable[[], None]:
        return lambda: self._progress.advance(task)

    def _draw_probes(self) -> None:
        spec = self._spec
        task = self._progress.add_task("draw probe images", total=spec.probes)
        order = np.random.default_rng((spec.seed, 0)).permutation(spec.probes)
        rows = []
        (self._folder / "probes").mkdir()
        for i, place in enumerate(order.tolist()):
            concept = CONCEPTS[place % len(CONCEPTS)]
            image = draw(concept, np.random.default_rng((spec.seed, 1, i)), spec.probe_px)
            name = f"{i:04d}_{concept.kind}.png"
            image.save(self._folder / "probes" / name, compress_level=1)
            rows.append((name, concept.name))
            self._progress.advance(task)
        with (self._folder / "probes.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file", "concept"), *rows])

    def _write_lists(self, assignments: tuple[Assignment, ...]) -> None:
        labels = {}
        for assignment in assignments:
            declared: Sequence[str | None] = assignment.labels or [None] * len(assignment.concepts)
            labels[f"tiny/{assignment.name}"] = [
                {"index": i, "label": label, "concept": CONCEPTS[number].name}
                for i, (label, number) in enumerate(zip(declared, assignment.concepts, strict=True))
            ]
        _write_json(self._folder / "labels.json", labels)
        known = {number for assignment in assignments for number in assignment.concepts}
        _write_lines(self._folder / "queries.txt", [c.name for i, c in enumerate(CONCEPTS) if i in known])
        _write_lines(self._folder / "background.txt", background_phrases())

    def _teach(self, assignments: tuple[Assignment, ...]) -> tuple[dict[str, float], float]:
        spec = self._spec
        n_drawings = len(CONCEPTS) * (spec.drawings + spec.held_out)
        task = self._progress.add_task("draw training images", total=n_drawings)
        advance = self._advancer(task)
        seen = draw_gallery(spec.drawings, spec.drawing_px, (spec.seed, 2), advance)
        unseen = draw_gallery(spec.held_out, spec.drawing_px, (spec.seed, 3), advance)
        with _quiet_torch(spec.seed), _Crew(_n_workers()) as crew:
            # Everything that takes from the global generator is made here, in order; what runs in threads has its own.
            encoder_lesson = EncoderLesson(seen, spec.seed)
            lessons = [ClassifierLesson(assignment, seen) for assignment in assignments]

            def teach_encoder(advance: Callable[[], None]) -> tuple[CLIP, float]:
                encoder = encoder_lesson.run(spec.encoder_steps, advance)
                return encoder, zero_shot_accuracy(encoder, unseen)

            def teach(lesson: ClassifierLesson, advance: Callable[[], None]) -> tuple[ClassifierLesson, float]:
                lesson.run(spec.classifier_steps, advance)
                return lesson, lesson.accuracy(unseen)

            encoder_run = crew.start(self._reported("encoder", spec.encoder_steps, teach_encoder))
            runs = [
                crew.start(
                    self._reported(
                        f"tiny/{lesson.assignment.name}", lesson.steps(spec.classifier_steps), partial(teach, lesson)
                    )
                )
                for lesson in lessons
            ]
            accuracies = {}
            for run in runs:
                lesson, accuracy = run.result()
                name = f"tiny/{lesson.assignment.name}"
                save_classifier(lesson.assignment, lesson.model, self._folder / "models" / name)
                accuracies[name] = accuracy
            encoder, encoder_accuracy = encoder_run.result()
            save_encoder(encoder, self._folder / "encoder")
        return accuracies, encoder_accuracy

    def _reported(self, name: str, steps: int, job: Callable[[Callable[[], None]], tuple[T, float]]) -> _Job[T]:
        """Gives a training job a line of its own, which ends with the accuracy it reached."""
        task = self._progress.add_task(f"train {name}", total=steps, start=False)

        def run(check: Callable[[], None]) -> tuple[T, float]:
            self._progress.start_task(task)

            def advance() -> None:
                check()
                self._progress.advance(task)

            result, accuracy = job(advance)
            self._progress.update(task, description=f"train {name}: {accuracy:.0%} right")
            return result, accuracy

        return run


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
