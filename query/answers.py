"""What a search answers; the JSON of the command line and of every other way to ask."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import AliasChoices, Field

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
    scale: float = Field(description="What the difference is divided by; 1 for weighted and probelog.")


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
    margin: float = Field(description="What the probes say. Larger is better; above 0 is closer than the background.")
    percentile: float = Field(description="Standing among the output's background concepts, per cent from the top.")
    local: LocalEvidence
    global_: GlobalEvidence | None = Field(
        default=None, serialization_alias="global", validation_alias=AliasChoices("global", "global_")
    )
    prior: float | None = Field(default=None, description="What the output is granted before any concept is known.")
    witnesses: tuple[str, ...] | None = Field(default=None, description="Who speaks for the hit: probes, labels.")
    label_margin: float | None = Field(
        default=None, description="How much closer the label is to the concept than to the background's words."
    )
    probes: tuple[ProbeEvidence, ...] | None = None
    copies: tuple[str, ...] = Field(default=(), description="Repositories with the same model; left out if none.")


class Query(Record):
    """What was asked; only what was given is there."""

    text: str | None = None
    texts: tuple[str, ...] | None = Field(default=None, description="A list that one model must cover.")
    images: tuple[str, ...] | None = None
    like: str | None = Field(default=None, description="An output, org/name#17, or a model, org/name.")
    copy_of: str | None = Field(default=None, description="The original, if the model that was named is a copy of one.")


class Matched(Record):
    """What one concept of a list was matched to in a model."""

    concept: str
    output: int | None = Field(description="null where nothing in the model recognises the concept.")
    label: str | None
    margin: float | None
    probes: tuple[ProbeEvidence, ...] | None = None


class ModelHit(Record):
    """One model that covers a list of concepts, each by an output of its own."""

    rank: int
    model: str
    revision: str
    margin: float = Field(description="Mean over the concepts; one without an output counts 0.")
    score: float | None = Field(default=None, description="What it is ranked by, where a ceiling was asked for.")
    covered: int = Field(description="Concepts whose margin is above 0.")
    outputs: tuple[Matched, ...]
    copies: tuple[str, ...] = Field(default=(), description="Repositories with the same model; left out if none.")


class Result(Record):
    """The hits of one question."""

    query: Query
    hits: tuple[Hit | ModelHit, ...]

    @property
    def outputs(self) -> tuple[Hit, ...]:
        """The hits that are outputs: all, unless models were asked for."""
        return tuple(hit for hit in self.hits if isinstance(hit, Hit))

    @property
    def models(self) -> tuple[ModelHit, ...]:
        """The hits that are models."""
        return tuple(hit for hit in self.hits if isinstance(hit, ModelHit))


class Reranked(Record):
    """What reranking did to one hit."""

    model: str
    output: int | None = Field(default=None, description="Of a hit that is an output.")
    was: int = Field(description="Rank by the margin.")
    rank: int = Field(description="Rank by the score.")
    margin: float
    score: float = Field(description="Margin and conductance, each standardised over the candidates, by weight.")
    divergence: float | None = Field(default=None, description="From the images to the model's home profile.")
    predicted_rank: float | None = Field(default=None, description="From the ranks that are known of the model.")
    reason: str | None = Field(default=None, description="Why conductance says nothing of it.")


class Rerank(Record):
    """How hits were reranked, in the new order."""

    method: str
    weight: float = Field(description="Share of the conductance in the score; 0 leaves the order as it was.")
    images: int = Field(description="Images that were shown to the candidates.")
    hits: tuple[Reranked, ...]


class SearchAnswer(Record):
    """The answer to a search."""

    results: tuple[Result, ...]
    searched: int = Field(description="Outputs that were compared.")
    exact: bool
    seconds: float
    rerank: Rerank | None = None
    note: str | None = Field(
        default=None, description="Why the answer may be older than the index; left out where it is not."
    )

    def model_post_init(self, _: object, /) -> None:
        """Has no note where there is nothing to say."""
        if self.note is None:
            self.model_fields_set.discard("note")

    def to_json(self) -> dict[str, object]:
        """Plain values under the names of the contract; what was not asked for is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class ServedAnswer(SearchAnswer):
    """The answer to a search with candidates from a server; ``exact`` says whether no other output can be better."""

    engine: str = Field(description="What found the candidates.")
    candidates: int = Field(description="Outputs that were fetched and compared for a question, most of all questions.")
    rounds: int = Field(description="How often the server was asked for more, most of all questions.")
    why: str | None = Field(default=None, description="Why it is not certain to be exact; left out where it is.")


def also(copies: Sequence[str], most: int = 2) -> str:
    """The copies of a hit for people: ``also: org/b, org/c (+12 more)``.

    Args:
        copies: Repository ids, at least one.
        most: How many are named.
    """
    more = f" (+{len(copies) - most:,} more)" if len(copies) > most else ""
    return f"also: {', '.join(copies[:most])}{more}"
