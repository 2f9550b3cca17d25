"""``hubhound plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from query.cli.output import data, data_json, format_option, note, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.planning import Constant, Figure, Wish

_GROUPS = {"bytes": "Bytes", "hours": "Hours", "queries_per_second": "Queries per second"}


def _constants(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    given = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER, such as gmac=17.6") from None
    return given


@click.command(
    epilog="""
\b
Examples:
  hubhound plan --models 1000000 --gpus 8
  hubhound plan --models 20000 --outputs-per-model 1000 --constant gmac=17.6 --constant gpu_tflop_s=90
  hubhound plan --models 1000 --format json
"""
)
@click.option("--models", type=click.IntRange(min=1), required=True, metavar="N", help="Models of the hub.")
@click.option(
    "--outputs-per-model", type=click.FloatRange(0, min_open=True), default=100.0, show_default=True, help="On average."
)
@click.option("--probes", type=click.IntRange(1, 65_535), default=4000, show_default=True, help="Images of the index.")
@click.option("--dimension", type=click.IntRange(min=1), default=512, show_default=True, help="Of the encoder.")
@click.option("--top-r", type=click.IntRange(min=1), default=50, show_default=True, help="Kept probes of an output.")
@click.option(
    "--responses", type=click.Choice(["keep", "drop"]), default="keep", show_default=True, help="Whether they are kept."
)
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Of the store on a cluster.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="That run models; 0: cores do.")
@click.option("--cores", type=click.IntRange(min=1), default=16, show_default=True, help="That index.")
@click.option("--search-cores", type=click.IntRange(min=1), default=16, show_default=True, help="That answer.")
@click.option(
    "--constant",
    "given",
    multiple=True,
    callback=_constants,
    metavar="NAME=NUMBER",
    help="In place of a measured or assumed one; may be repeated.",
)
@click.option("--explain", is_flag=True, help="Also every formula and every constant, with its origin.")
@format_option
def plan(responses: str, given: dict[str, float], explain: bool, form: str, **wished: Any) -> None:
    """What an index of N models takes: bytes, hours and queries per second.

    Nothing is run: figures follow from constants that were measured, or assumed where it says so. The formulas and
    where each constant comes from are in docs/planning.md.
    """
    from engine import planning

    _refuse_unknown(given, planning.CONSTANTS)
    wish = planning.Wish(responses=responses == "keep", **wished)
    known = planning.constants(given)
    figures = planning.plan(wish, known)
    if form == "json":
        data_json(_document(wish, figures, known))
    elif form == "quiet":
        for figure in figures:
            data(f"{figure.group}.{figure.name} {figure.value:.6g}")
    else:
        _print(figures, known, explain)
        resting = sorted({name for figure in figures for name in figure.assumed})
        note(f"{wish.outputs:,.0f} outputs of {wish.models:,} models")
        if resting:
            note(f"* rests on what was not measured: {', '.join(resting)}; --constant NAME=NUMBER replaces it")


def _refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a constant that there is not, and names those that look like it: all of them would fill the screen."""
    from difflib import get_close_matches

    from engine.errors import InputError, one_line

    known = list(known)
    for name in given:
        if name not in known:
            near = (
                get_close_matches(name[:50].lower(), known, 3, 0.5)
                or [one for one in known if name and name in one][:3]
            )
            told = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(f"no constant is called {one_line(name, 50)!r}: {told}--explain lists all {len(known)}")


def _document(wish: Wish, figures: Iterable[Figure], known: dict[str, Constant]) -> dict[str, object]:
    groups: dict[str, dict[str, float]] = {group: {} for group in _GROUPS}
    for figure in figures:
        groups[figure.group][figure.name] = float(f"{figure.value:.6g}")
    return {
        **vars(wish),
        "outputs": wish.outputs,
        **groups,
        "formulas": {f"{figure.group}.{figure.name}": figure.formula for figure in figures},
        "assumed": {f"{figure.group}.{figure.name}": list(figure.assumed) for figure in figures if figure.assumed},
        "constants": {name: vars(constant) for name, constant in known.items()},
    }


def _print(figures: Iterable[Figure], known: dict[str, Constant], explain: bool) -> None:
    for group, title in _GROUPS.items():
        rows = [
            [figure.name, _shown(figure), "*" if figure.assumed else "", figure.what]
            + ([figure.formula] if explain else [])
            for figure in figures
            if figure.group == group
        ]
        table(title, ["figure", ("", "right"), "", "what", *(["formula"] if explain else [])], rows)
    if explain:
        rows = [[name, f"{c.value:g}", c.unit, c.origin, c.source] for name, c in known.items()]
        table("Constants", ["constant", ("value", "right"), "unit", "origin", "source"], rows)


def _shown(figure: Figure) -> str:
    if figure.group == "bytes":
        return amount(figure.value)
    if figure.value >= 100:
        return f"{figure.value:,.0f}"
    return f"{figure.value:.2g}" if figure.value < 10 else f"{figure.value:.0f}"


def amount(count: float) -> str:
    """Bytes for people, up to petabytes."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} PB"
