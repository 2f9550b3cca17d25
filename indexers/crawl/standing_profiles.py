"""Which profiles of vision-language models an index has, and what a job for one of them has to ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from engine.schema import Profile
from engine.specs import absolute_spec
from indexers.crawl.messages import ProfileJob, Recorded
from indexers.crawl.samples import Samples
from indexers.towers import VLM

N_STEPS = 50
"""``engine.conductance.N_STEPS``, whose module imports torch."""

Precision = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class ProfileOptions:
    """How a crawl profiles.

    Attributes:
        n_steps: Steps of the path; None for those of a model's other profiles, or else 50.
        precision: Of the passes; ``auto`` for that of a model's other profiles, or else the device's.
    """

    n_steps: int | None = None
    precision: Precision = "auto"


@dataclass(frozen=True)
class Standing:
    """What profiles there are of one model, all made alike.

    Attributes:
        revision: Hash of the weights they were made with.
        blocks: Names of their blocks.
        n_steps: Steps of the path.
        precision: Of the passes.
        tasks: Whose present sample they are of.
        newest: When the last of them was made.
    """

    revision: str
    blocks: tuple[str, ...]
    n_steps: int
    precision: str
    tasks: frozenset[str]
    newest: datetime


def name_of(repo: str, folder: Path | None) -> str:
    """What the profiles of a model are called, as ``hubhound profile`` names the same model.

    Args:
        repo: Id, ``org/name``.
        folder: Where it lies, None for a model on the Hub.
    """
    return f"{VLM}hf-hub:{repo}" if folder is None else absolute_spec(f"{VLM}local-dir:{folder}")


class Standings:
    """What profiles there are of all models; the storing thread changes it, the others look.

    Args:
        samples: The tasks.
        options: How new profiles are made.
        profiles: All that the index has.
    """

    def __init__(self, samples: Samples, options: ProfileOptions, profiles: Iterable[Profile]) -> None:
        self.samples = samples
        self._options = options
        self._standings: dict[str, Standing] = {}
        found: dict[str, list[Profile]] = {}
        for profile in profiles:
            if profile.model.startswith(VLM):
                found.setdefault(profile.model, []).append(profile)
        for name, some in found.items():
            self.note(name, some)

    def of(self, name: str) -> Standing | None:
        """What there is of a model; None without profiles, or where they are not all alike."""
        return self._standings.get(name)

    def note(self, name: str, profiles: Iterable[Profile]) -> None:
        """These are the profiles of a model now."""
        some = list(profiles)
        if len({(one.revision, one.blocks, one.n_steps, one.precision) for one in some}) != 1:
            self._standings.pop(name, None)
            return
        tasks = self.samples.tasks
        fitting = [one for one in some if one.task in tasks and tasks[one.task].fingerprint == one.task_fingerprint]
        one = some[0]
        self._standings[name] = Standing(
            one.revision,
            one.blocks,
            one.n_steps,
            one.precision,
            frozenset(profile.task for profile in fitting),
            max(profile.profiled_at for profile in some),
        )

    def missing(self, name: str) -> tuple[str, ...]:
        """The tasks that a model has no profile of."""
        standing = self.of(name)
        return tuple(task for task in self.samples.tasks if standing is None or task not in standing.tasks)

    def conflict(self, name: str) -> str | None:
        """Why more profiles of a model cannot be made as they are asked for; None if they can."""
        standing, options = self.of(name), self._options
        if standing is None:
            return None
        for what, option, there, asked in (
            ("n_steps", "--n-steps", standing.n_steps, options.n_steps),
            (
                "precision",
                "--precision",
                standing.precision,
                None if options.precision == "auto" else options.precision,
            ),
        ):
            if asked is not None and asked != there:
                return (
                    f"{name} has profiles made with {what} {there}, and {asked} was asked for: leave {option} out, or "
                    f"make them anew with 'hubhound profile {name} --again {option} {asked}'"
                )
        return None

    def job(self, name: str, folder: Path) -> ProfileJob:
        """What to ask of a model's process.

        Args:
            name: Of the model.
            folder: Where its files are now.
        """
        standing, options = self.of(name), self._options
        recorded = None
        if standing is not None:
            missing = () if self.conflict(name) else self.missing(name)
            recorded = Recorded(revision=standing.revision, blocks=standing.blocks, missing=missing)
        precision = options.precision
        if precision == "auto" and standing is not None:
            precision = standing.precision  # type: ignore[assignment]
        return ProfileJob(
            number=0,
            name=name,
            folder=str(folder.absolute()),
            n_steps=options.n_steps or (standing.n_steps if standing is not None else N_STEPS),
            precision=precision,
            tasks={task: self.samples.images(task) for task in self.samples.tasks},
            recorded=recorded,
        )
