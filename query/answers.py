"""What a search answers; the JSON of the command line and of every other way to ask."""

from __future__ import annotations

from pydantic import Field

from engine.schema import Record


class ProbeEvidence(Record):
    """One probe that speaks for a match."""

    probe: int = Field(description="Position in the probe set.")
    file: str
    response: float = Field(description="Standardised response of the output.")
    concept: float = Field(description="Standardised similarity of the concept.")


class LocalEvidence(Record):
    """The truncated distance and what it is measured against."""

    distance: float
    hubness: float
    scale: float = Field(description="What the difference is divided by; 1 unless the method is dual.")


class GlobalEvidence(Record):
    """The correlation over all probes and what it is measured against."""

    correlation: float
    hubness: float
    scale: float


class Hit(Record):
    """One output that recognises the concept."""

    rank: int
    model: str
    revision: str
    output: int
    label: str | None = Field(description="As the model declares it.")
    margin: float = Field(description="Larger is better; above 0 is closer than the background.")
    percentile: float = Field(description="Standing among the output's background concepts, per cent from the top.")
    local: LocalEvidence
    global_: GlobalEvidence | None = Field(default=None, serialization_alias="global")
    probes: tuple[ProbeEvidence, ...] | None = None


class TextQuery(Record):
    """What was asked."""

    text: str


class ConceptResult(Record):
    """The hits of one concept."""

    query: TextQuery
    hits: tuple[Hit, ...]


class SearchAnswer(Record):
    """The answer to a search."""

    results: tuple[ConceptResult, ...]
    searched: int = Field(description="Outputs that were compared.")
    exact: bool
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain values under the names of the contract; what was not asked for is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
