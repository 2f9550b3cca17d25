"""The samples of an index's tasks, as a crawl shows them: found and checked without a library that decodes images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import IndexDamagedError, InputError
from engine.schema import Task
from indexers.crawl.messages import Shown
from indexers.hub import sha256_of

_FOLDER = "tasks"  # engine.tasks.TASKS, whose module imports Pillow


@dataclass(frozen=True)
class Samples:
    """The tasks of an index.

    Attributes:
        index: Its folder.
        tasks: At least one, by name.
    """

    index: Path
    tasks: dict[str, Task]

    @classmethod
    def of(cls, index: Path, tasks: Sequence[Task]) -> Samples:
        """The tasks of an index, their images checked.

        Args:
            index: Its folder.
            tasks: Their records.

        Raises:
            InputError: There are none.
            IndexDamagedError: An image is missing or has changed.
        """
        if not tasks:
            raise InputError(
                f"the index {index} has no tasks to profile models on: add some with "
                f"'hubhound task add NAME --images DIR --index {index}'"
            )
        samples = cls(index, {task.name: task for task in tasks})
        samples.check()
        return samples

    def images(self, name: str) -> tuple[Shown, ...]:
        """The images of a task's sample, in order."""
        task = self.tasks[name]
        folder = self.index.absolute() / _FOLDER / name
        return tuple(Shown(path=str(folder / image.file), sha256=image.sha256) for image in task.images)

    def check(self) -> None:
        """Looks whether all images are those that were drawn.

        Raises:
            IndexDamagedError: One is missing or has changed.
        """
        for name, task in self.tasks.items():
            for image in self.images(name):
                path = Path(image.path)
                try:
                    what = None if sha256_of(path) == image.sha256 else "has changed"
                except OSError as error:
                    what = f"cannot be read ({error.strerror or error})"
                if what is not None:
                    raise IndexDamagedError(
                        f"the image {path} of task {name} {what}: add the task again from its images "
                        f"(--sample {len(task.images)} --seed {task.seed})",
                        path,
                    )
