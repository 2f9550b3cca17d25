"""Small evaluation reports with figures that are easy to recognise."""

from __future__ import annotations

from query.evaluate.results import Curve, Figure, RetrievalReport, Row, SweepPoint, SweepReport, Table


def row(method: str, group: str, one: float, five: float, *, sd: float | None = None, **more: float) -> Row:
    """One row; ``more`` are further metrics, ``half`` is half-coverage."""
    names = {"half": "half-coverage"}
    figures = {"hit@1": Figure(mean=one, sd=sd), "hit@5": Figure(mean=five, sd=sd)}
    figures |= {names.get(name, name): Figure(mean=value, sd=sd) for name, value in more.items()}
    queries = {"all": 1000, "seen": 800}.get(group, 200)
    return Row(method=method, group=group, queries=queries, figures=figures, milliseconds=1.234)


def retrieval_report(sd: float | None = None) -> RetrievalReport:
    """Two methods, two tasks, both curves."""
    output = (
        row("plain", "all", 0.5, 0.75, sd=sd, mrr=0.6, half=3),
        row("plain", "unseen", 0.25, 0.5, sd=sd, mrr=0.3, half=2),
        row("plain", "seen", 0.5625, 0.8, sd=sd, mrr=0.65, half=3),
        row("fine", "all", 0.875, 0.958, sd=sd, mrr=0.91, half=428),
        row("fine", "unseen", 0.585, 0.815, sd=sd, mrr=0.7, half=90),
        row("fine", "seen", 0.9475, 0.99375, sd=sd, mrr=0.95, half=400),
    )
    return RetrievalReport(
        settings={"r": 50, "seeds": [0, 1], "index": "a|b"},
        tables=(Table(task="output", rows=output), Table(task="images-5", rows=output[:1])),
        hubness=(
            Curve(method="plain", x=(1, 2, 3, 4), y=(0.4, 0.55, 0.8, 1.0)),
            Curve(method="fine", x=(1, 2, 3, 4), y=(0.25, 0.4, 0.75, 1.0)),
        ),
        quality=(
            Curve(method="plain", x=(1, 2, 3), y=(0.5, 0.5, 0.5)),
            Curve(method="fine", x=(1, 2, 3), y=(0.9, 0.6, 0.3)),
        ),
        seconds=12.34,
    )


def sweep_report(parameter: str = "r", values: tuple[str, ...] = ("5", "50")) -> SweepReport:
    """Two methods at each value; ``fine`` is best at the last."""
    points = tuple(
        SweepPoint(
            value=value,
            rows=(
                row("plain", "all", 0.5, 0.7),
                row("plain", "unseen", 0.2, 0.4),
                row("fine", "all", 0.6 + i / 10, 0.8, sd=0.01),
                row("fine", "unseen", 0.3 + i / 10, 0.5, sd=0.01),
            ),
        )
        for i, value in enumerate(values)
    )
    return SweepReport(settings={"k": 10}, parameter=parameter, unit="kept probes", points=points, seconds=3.0)
