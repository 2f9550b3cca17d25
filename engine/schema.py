"""Records that cross a border: into files, into the store, out of it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from math import isfinite

from pydantic import BaseModel, ConfigDict, Field, model_validator

POINT_NAMESPACE = uuid.UUID("5f0c1ab8-6d0f-5c6e-9a53-7a1f6b6e2d11")
"""Namespace of the version 5 UUIDs that identify outputs and models in a store."""


class Record(BaseModel):
    """Base of all records: unknown fields are an error, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelState(StrEnum):
    """What became of a model."""

    INDEXED = "indexed"
    COPY = "copy"  # answers as another one does, which is in the index for both
    FAILED = "failed"
    REFUSED = "refused"


class LeftOut(Record):
    """An output that carries no information and is therefore not in the index."""

    output: int = Field(ge=0, description="Position of the output in the model's answer.")
    reason: str = Field(description="constant, NaN or infinite.")


class Model(Record):
    """One model at one revision, and what became of it."""

    repo: str = Field(description="Repository id, org/name.")
    revision: str = Field(description="Commit sha of the repository, or content hash of a local folder.")
    library: str | None = Field(default=None, description="timm, transformers, ...")
    architecture: str | None = None
    parameters: int | None = Field(default=None, ge=0)
    input_size: tuple[int, int] | None = Field(default=None, description="Height and width in pixels.")
    licence: str | None = None
    tags: tuple[str, ...] = ()
    downloads: int | None = Field(default=None, ge=0)
    likes: int | None = Field(default=None, ge=0)
    outputs: int = Field(default=0, ge=0, description="Outputs in the index (those left out are not counted).")
    left_out: tuple[LeftOut, ...] = ()
    probabilities: bool = Field(default=False, description="It answers probabilities; their centred logs were used.")
    state: ModelState = ModelState.INDEXED
    reason: str | None = Field(default=None, description="Kind of failure or refusal, for counting.")
    detail: str | None = Field(default=None, description="One line on the failure, for a person.")
    calibration: str | None = Field(default=None, description="Fingerprint of the background behind its constants.")
    copy_of: str | None = Field(default=None, description="Repository id of the original, of a copy only.")
    copied_revision: str | None = Field(
        default=None, description="Revision of the original that a copy equals; without it in the index nobody sees it."
    )
    indexed_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _copies_name_their_original(self) -> Model:
        if (self.state is ModelState.COPY) != (self.copy_of is not None):
            raise ValueError(f"{self.repo}: a copy, and nothing else, names the model that it is a copy of")
        if self.copy_of == self.repo:
            raise ValueError(f"{self.repo} cannot be a copy of itself")
        if self.copy_of is None and self.copied_revision is not None:
            raise ValueError(f"{self.repo} names a revision of an original, and no original")
        if self.copy_of is not None and self.outputs:
            raise ValueError(f"{self.repo} is a copy of {self.copy_of}: it has no outputs of its own")
        return self

    @property
    def point_id(self) -> str:
        """The model's id in a store; one per repository, so that a new revision replaces the old one at once."""
        return str(uuid.uuid5(POINT_NAMESPACE, self.repo))


class TaskImage(Record):
    """One image of a task's sample."""

    file: str = Field(description="Its name in the task's folder.")
    sha256: str = Field(description="Of the file's bytes, hexadecimal.")


class Task(Record):
    """A source task: a sample of its images, whose conductance profiles say what the task is like."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", description="As performance tables name it.")
    images: tuple[TaskImage, ...] = Field(min_length=1, description="The sample, in the order it was drawn.")
    fingerprint: str = Field(description="SHA-256 over the ordered hashes of the sample (probes_fingerprint).")
    seed: int = Field(default=0, ge=0, description="Of the draw.")
    drawn_from: int = Field(ge=1, description="Images that there were to draw from.")
    classes: tuple[str, ...] = Field(default=(), description="Class names, where they are known.")

    @property
    def point_id(self) -> str:
        """The task's id in a store."""
        return str(uuid.uuid5(POINT_NAMESPACE, f"task {self.name}"))


class Profile(Record):
    """The conductance profile of one model on one task: the mean over the sample's images (equation 20)."""

    model: str = Field(description="As it was named: open_clip:ARCH/PRETRAINED ..., or a classifier's org/name.")
    revision: str = Field(description="Hash of a vision-language model's weights and preprocessing, or a classifier's.")
    task: str = Field(description="Name of the task.")
    task_fingerprint: str = Field(description="Of the sample that was profiled.")
    blocks: tuple[str, ...] = Field(min_length=1, description="Names of the blocks, from the input to the answer.")
    conductance: tuple[float, ...] = Field(description="Mean |conductance| of each block, over entries and images.")
    images: int = Field(ge=1, description="How many images it is the mean of.")
    n_steps: int = Field(ge=1, description="Steps of the path from the baseline to the image.")
    completeness_gap: float = Field(
        ge=0, description="Mean over the images of |sum over the last block - (F(x) - F(x'))| / |F(x) - F(x')|."
    )
    parameters: int | None = Field(default=None, ge=0, description="Of the whole model.")
    precision: str = Field(default="float32", description="What the passes were computed in.")
    profiled_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _fits(self) -> Profile:
        if len(self.blocks) != len(self.conductance):
            raise ValueError(f"{len(self.blocks)} blocks have {len(self.conductance)} conductances")
        if not all(isfinite(value) and value >= 0 for value in self.conductance):
            raise ValueError("a conductance is negative, NaN or infinite")
        return self

    @property
    def point_id(self) -> str:
        """The profile's id in a store; one per model and task, so that a new one replaces the old one."""
        return str(uuid.uuid5(POINT_NAMESPACE, f"profile {self.model} {self.task}"))


class Performance(Record):
    """How well one model does on one task, from a table that a user imported; ranks derive from it."""

    model: str = Field(description="As profiles name it.")
    task: str = Field(description="Name of the task; a task need not have images to be ranked on.")
    metric: str = Field(default="acc1", description="acc1: top-1 accuracy.")
    value: float = Field(ge=0, le=1, description="A share, larger is better.")
    source: str | None = Field(default=None, description="Where the figure was published.")

    @property
    def point_id(self) -> str:
        """The figure's id in a store; one per model, task and metric, so that a new one replaces the old one."""
        return str(uuid.uuid5(POINT_NAMESPACE, f"performance {self.model} {self.task} {self.metric}"))


def output_point_id(repo: str, revision: str, output: int) -> str:
    """The id of one output in a store: UUIDv5 of ``repo@revision#output``, so that every write is idempotent."""
    return str(uuid.uuid5(POINT_NAMESPACE, f"{repo}@{revision}#{output}"))
