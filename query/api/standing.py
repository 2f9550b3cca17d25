"""How a service stands to the server that its index is on."""

from __future__ import annotations

from pydantic import Field

from engine.schema import Record


class StoreStanding(Record):
    """The server of an index, as the service has last found it. Answers come from the service's own snapshot."""

    up: bool = Field(description="Whether it answers; while it does not, nothing new is taken over.")
    last_contact_s: float | None = Field(description="Seconds since it last answered; null if it never did.")
    replaced: bool = Field(
        description="Whether another index has the name now: the service answers from the one before until it is "
        "started again."
    )
    left_out_models: int = Field(
        description="Models that are not in the generation that answers, since outputs of theirs are missing there."
    )
