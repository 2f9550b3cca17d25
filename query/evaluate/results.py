"""What an evaluation found, as records: the JSON of ``hubhound eval``, from which tables and plots are made."""

from __future__ import annotations

from pydantic import Field

from engine.schema import Record


class Figure(Record):
    """One measured number."""

    mean: float
    sd: float | None = Field(default=None, description="Standard deviation over the seeds; none with one.")


class Row(Record):
    """What one method reached on one group of queries."""

    method: str
    group: str = Field(description="all, or a subset of the queries such as seen or unseen.")
    queries: int = Field(
        description="How many; where the seeds differ (seen and unseen, with some of the probes), the mean over the "
        "seeds that have any, rounded. The figures are means over the same seeds."
    )
    figures: dict[str, Figure] = Field(description="By metric: hit@1, hit@5, mrr (0..1), half-coverage, ...")
    milliseconds: float | None = Field(default=None, description="Median time of one query.")


class Table(Record):
    """One task: text to output, text to model, naming, lists, images."""

    task: str
    rows: tuple[Row, ...]


class Curve(Record):
    """A curve of one method."""

    method: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class RetrievalReport(Record):
    """What ``hubhound eval retrieval`` found."""

    settings: dict[str, object] = Field(description="Everything that decides the numbers: seeds, r, k, background...")
    tables: tuple[Table, ...]
    hubness: tuple[Curve, ...] = Field(
        default=(), description="Share of the top-1 answers (y) covered by the most frequent outputs (x, a number)."
    )
    quality: tuple[Curve, ...] = Field(
        default=(), description="PR-AUC (y) of the output retrieved at a rank (x), mean over the queries."
    )
    seconds: float


class SweepPoint(Record):
    """One value of the swept setting."""

    value: str
    rows: tuple[Row, ...]


class SweepReport(Record):
    """What ``hubhound eval sweep`` found."""

    settings: dict[str, object]
    parameter: str
    unit: str
    points: tuple[SweepPoint, ...]
    seconds: float
