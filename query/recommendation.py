"""What a recommendation answers; the JSON of the command line and of every other way to ask."""

from __future__ import annotations

from pydantic import Field

from engine.schema import Record


class Target(Record):
    """The images that a model is wanted for."""

    images: tuple[str, ...] = Field(description="Files, as they were named.")
    fingerprint: str = Field(description="SHA-256 over the ordered hashes of the images.")


class SourceTask(Record):
    """A source task that speaks for a model's rank on the target."""

    task: str
    weight: float = Field(description="Share in the predicted rank; the weights of a model sum to 1.")
    divergence: float = Field(description="Directional conductance divergence from the target; 0 is alike.")
    rank: float = Field(description="The model's known rank on it, 1 is best; equal values share their mean place.")
    of: int = Field(description="Models that have a known rank on it.")


class Block(Record):
    """What one block says."""

    block: str
    importance: float = Field(description="Its share in the divergence; the importances of a model sum to 1.")
    deviation: float = Field(description="Relative deviation from the source tasks, their mean by weight.")
    conductance: float = Field(description="Mean |conductance| on the target.")


class Recommended(Record):
    """One model of the ranking."""

    rank: int
    model: str
    predicted_rank: float
    sources: tuple[SourceTask, ...] = Field(description="By weight, heaviest first.")
    parameters: int | None = None
    completeness_gap: float | None = Field(default=None, description="Of its passes over the target's images, mean.")
    blocks: tuple[Block, ...] | None = None


class LeftOutModel(Record):
    """A candidate that cannot be ranked."""

    model: str
    reason: str
    command: str | None = Field(default=None, description="What would change that.")


class Recommendation(Record):
    """The answer to a recommendation."""

    target: Target
    ranking: tuple[Recommended, ...]
    candidates: int = Field(description="Models that were ranked, shown or not.")
    left_out: tuple[LeftOutModel, ...] = ()
    eta: float
    gamma: float
    profiled: int = Field(default=0, description="Pairs of model and image that had to be computed.")
    seconds: float = Field(description="Of the ranking itself, without profiling the target.")

    def to_json(self) -> dict[str, object]:
        """Plain values under the names of the contract; what was not asked for is left out."""
        return self.model_dump(mode="json", exclude_none=True)
