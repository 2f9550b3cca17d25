"""What is asked about a model's outputs and what is answered; the JSON of ``hubhound describe``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from engine.schema import Record


@dataclass(frozen=True)
class DescribeRequest:
    """What to describe.

    Attributes:
        k: Names per output, >= 1; fewer where the vocabulary has fewer.
        method: None for the index's default.
        outputs: Positions in the model's answer; None for all.
    """

    k: int = 3
    method: str | None = None
    outputs: tuple[int, ...] | None = None


class FoundName(Record):
    """One phrase that an output responds to."""

    name: str
    margin: float = Field(description="Larger is better; above 0 is closer than the background.")
    score: float = Field(description="The margin, measured against the phrase's margins on a sample of all outputs.")


class OutputNames(Record):
    """One output and what it responds to."""

    output: int
    label: str | None = Field(description="As the model declares it.")
    agrees: bool | None = Field(
        description="false where the declared label disagrees clearly with what the output does; null where there is "
        "no label, or one without words that the encoder knows."
    )
    concepts: tuple[FoundName, ...] = Field(description="Best first.")


class DescribeAnswer(Record):
    """Names for the outputs of a model."""

    model: str
    revision: str
    outputs: tuple[OutputNames, ...]
    vocabulary: int = Field(description="Phrases that were compared.")
    seconds: float
    copy_of: str | None = Field(default=None, description="The original whose outputs these are; left out if none.")

    def to_json(self) -> dict[str, object]:
        """Plain values under the names of the contract."""
        return self.model_dump(mode="json", exclude_unset=True)
