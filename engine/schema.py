"""Records that cross a border: into files, into the store, out of it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

POINT_NAMESPACE = uuid.UUID("5f0c1ab8-6d0f-5c6e-9a53-7a1f6b6e2d11")
"""Namespace of the version 5 UUIDs that identify outputs and models in a store."""


class Record(BaseModel):
    """Base of all records: unknown fields are an error, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelState(StrEnum):
    """What became of a model."""

    INDEXED = "indexed"
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
    indexed_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def point_id(self) -> str:
        """The model's id in a store; one per repository, so that a new revision replaces the old one at once."""
        return str(uuid.uuid5(POINT_NAMESPACE, self.repo))


def output_point_id(repo: str, revision: str, output: int) -> str:
    """The id of one output in a store: UUIDv5 of ``repo@revision#output``, so that every write is idempotent."""
    return str(uuid.uuid5(POINT_NAMESPACE, f"{repo}@{revision}#{output}"))
