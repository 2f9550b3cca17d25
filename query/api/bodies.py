"""The body of a search, and the request that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.coverage import Require
from engine.distance import Method
from query.api.errors import ApiError, ProblemKind
from query.api.settings import Settings
from query.filters import parse_conditions
from query.request import Evidence, Level, SearchRequest

MOST_CONDITIONS = 20
"""Conditions of one search."""

Concept = Annotated[str, Field(max_length=10_000)]
"""Longer ones than a search takes are let through here: what is too long is told by the search."""

ShortText = Annotated[str, Field(max_length=300)]

EXAMPLES: dict[str, dict[str, Any]] = {
    "concepts": {
        "summary": "Outputs that recognise concepts",
        "value": {"concepts": ["golden retriever", "school bus"], "k": 5},
    },
    "models": {
        "summary": "Models that recognise all of a list",
        "value": {"concepts": ["cat", "dog", "car"], "level": "model", "k": 3},
    },
    "conditions": {
        "summary": "Small models of one library, with the probes behind each hit",
        "value": {
            "concepts": ["forklift"],
            "where": ["library=timm", "max-parameters=10M"],
            "explain": True,
            "evidence": "both",
        },
    },
    "like": {"summary": "What other models have that does the same", "value": {"like": "timm/resnet50.a1_in1k#207"}},
}
"""Bodies for the OpenAPI document."""


class SearchBody(BaseModel):
    """What is searched for; images are uploaded beside it."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [example["value"] for example in EXAMPLES.values()]}
    )

    concepts: list[Concept] = Field(
        default=[],
        max_length=100_000,
        description="Words or phrases. At the level of outputs each is a question of its own, at that of models they "
        "are one list.",
    )
    like: ShortText | None = Field(
        default=None, description="An output whose equals are sought, org/name#17; with level model a model, org/name."
    )
    level: Level = Field(default="output", description="Find outputs, or models that cover the whole list of concepts.")
    k: int = Field(default=10, ge=1, le=2**31 - 1, description="Hits per question.")
    where: list[ShortText] = Field(
        default=[],
        max_length=MOST_CONDITIONS,
        description="Conditions KEY=VALUE: model, library, licence, architecture (* and ? allowed), max-parameters, "
        "min-downloads, label=yes|no. Different keys must all hold, of one key any.",
    )
    method: Method | None = Field(default=None, description="How evidence becomes a margin; null for the index's.")
    evidence: Evidence = Field(default="probes", description="What speaks for an output.")
    require: Require | None = Field(
        default=None,
        description="With level model: must every concept be covered, or does a model that lacks some rank lower? "
        "null for all, or any with like.",
    )
    ceiling: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="With level model: above this margin a concept counts a hundredth.",
    )
    explain: bool = Field(default=False, description="Show the probes behind each hit.")
    rerank: Literal["dcd"] | None = Field(
        default=None, description="With images: reorder the best hits by how well their models cover the images."
    )
    rerank_weight: float | None = Field(
        default=None, ge=0, le=1, description="Share of the conductance in the order; null for 0, which leaves it."
    )
    rerank_top: int | None = Field(default=None, ge=1, le=100, description="Hits that are reranked; null for 10.")

    @property
    def reranks(self) -> bool:
        """Whether anything about reranking was said."""
        return self.rerank is not None or self.rerank_weight is not None or self.rerank_top is not None

    def request(self, settings: Settings, images: Sequence[Path] = ()) -> SearchRequest:
        """As a search takes it.

        Args:
            settings: For the limits.
            images: Where the uploads are.

        Raises:
            ApiError: It asks for more than the service gives.
            InputError: It makes no sense.
        """
        if len(self.concepts) > settings.max_concepts:
            raise _too_many("concepts", len(self.concepts), settings.max_concepts)
        if self.k > settings.max_hits:
            raise _too_many("k", self.k, settings.max_hits)
        check_size(len(self.concepts), self.k, settings)
        request = SearchRequest(
            concepts=tuple(self.concepts),
            k=self.k,
            method=self.method,
            where=parse_conditions(self.where),
            explain=self.explain,
            images=tuple(images),
            like=self.like,
            level=self.level,
            require=self.require,
            evidence=self.evidence,
            ceiling=self.ceiling,
        )
        request.check()
        return request


def check_size(concepts: int, k: int, settings: Settings) -> None:
    """Refuses answers that would take all memory and minutes to write.

    Args:
        concepts: How many there are.
        k: Hits for each.
        settings: For the limit.

    Raises:
        ApiError: They are too many together.
    """
    most = settings.max_total_hits
    if concepts * k > most:
        raise ApiError(
            ProblemKind.INVALID_REQUEST,
            f"{concepts:,} concepts with {k:,} hits each: this service gives at most {most:,} hits in one answer",
            most=most,
        )


def _too_many(what: str, given: int, most: int) -> ApiError:
    return ApiError(
        ProblemKind.INVALID_REQUEST, f"{what}: {given:,} are asked for, this service gives at most {most:,}", most=most
    )
