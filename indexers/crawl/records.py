"""What the parts of a crawl tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexers.loaders.base import Metadata


class State(StrEnum):
    """How far a revision of a model has come; a state is entered when what it names is done or begun."""

    LISTED = "listed"  # waits to be fetched, now or when its next try is due
    REFUSED = "refused"  # will not be tried: filtered out, unsafe, too large ...
    FETCHING = "fetching"
    FETCHED = "fetched"
    PROBING = "probing"
    STORED = "stored"  # in the index, as itself or as a copy of another model
    FAILED = "failed"  # was tried and did not work, for good
    GONE = "gone"  # deleted, made private, or replaced by a newer revision


UNDER_WAY = (State.FETCHING, State.FETCHED, State.PROBING)
"""What a process has in hand; after a kill these begin again."""


@dataclass(frozen=True)
class Listed:
    """One model as a listing names it, before anything of it is fetched.

    Attributes:
        repo: Id, ``org/name``.
        revision: Commit sha, or content hash of a local folder.
        folder: Where it lies, None for a model on the Hub.
        modified: When its repository last changed, ISO 8601 in UTC with a fixed width, so that texts compare as times;
            None where the source does not say.
        size_bytes: Of its files as far as the listing tells, None where it does not.
        parameters: As the listing states them.
        gated: Whether its authors want to be asked.
        metadata: Licence, tags, downloads, likes, library as stated.
    """

    repo: str
    revision: str
    folder: Path | None = None
    modified: str | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    gated: bool = False
    metadata: Metadata = field(default_factory=Metadata)


@dataclass(frozen=True)
class Refusal:
    """Why a model is not even fetched.

    Attributes:
        reason: One of ``engine.errors.Reason``'s values.
        detail: One line for a person.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Found:
    """What the index says has become of a revision, without our having done anything about it.

    Attributes:
        repo: Id.
        revision: Commit or content hash.
        state: ``stored``, ``refused`` or ``failed``.
        outputs: In the index, of a copy those of its original; 0 unless stored.
        copy_of: The repository that it is a copy of.
        copied_revision: The revision of that.
        reason: Why it was refused or failed.
        detail: One line on that.
    """

    repo: str
    revision: str
    state: State
    outputs: int = 0
    copy_of: str | None = None
    copied_revision: str | None = None
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Probed:
    """What a child process found out about one model; all of it is a stranger's word until it was checked.

    Attributes:
        library: ``timm``, ``transformers``, ``onnx``.
        architecture: As the library names it.
        parameters: Number of them.
        input_size: Height and width in pixels.
        labels: One per output as declared, None where there is none.
        responses: Logits or centred log-probabilities over the probes, float32 ``[n, outputs]``, in memory.
        probabilities: Whether it answers probabilities.
        seconds: By stage: ``load``, ``decode``, ``probe``.
        memory_bytes: Largest resident size of the child so far.
    """

    library: str
    architecture: str
    parameters: int
    input_size: tuple[int, int]
    labels: tuple[str | None, ...]
    responses: npt.NDArray[np.float32]
    probabilities: bool
    seconds: dict[str, float]
    memory_bytes: int


@dataclass(frozen=True)
class Profiled:
    """What a child process found out about one vision-language model; what `Probed` says of trust goes for it, too.

    Attributes:
        name: As profiles name it.
        revision: Hash of its weights and preprocessing.
        blocks: d names.
        parameters: Number of them, of the whole model.
        n_steps: Steps of the path.
        precision: Of the passes.
        rows: Mean |conductance| of each block, float64 ``[d]``, and the completeness gap, of each image that it was
            shown, by the SHA-256 of the image.
        again: It was shown the images of all tasks; otherwise its weights are those of its profiles, and it was shown
            only what these lack.
        seconds: By stage: ``load``, ``probe``.
        memory_bytes: Largest resident size of the child so far.
    """

    name: str
    revision: str
    blocks: tuple[str, ...]
    parameters: int
    n_steps: int
    precision: str
    rows: Mapping[str, tuple[npt.NDArray[np.float64], float]]
    again: bool
    seconds: dict[str, float]
    memory_bytes: int
