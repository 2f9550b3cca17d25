"""``hubhound plan``: figures by hand, formulas that say what is computed, constants that say where they are from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engine.errors import InputError
from engine.planning import CONSTANTS, Figure, Wish, constants, plan, read_bytes, store_bytes
from query.cli.plan import amount
from query.cli.plan import plan as command

DOCS = Path(__file__).parents[2] / "docs"
VALUES = {name: constant.value for name, constant in CONSTANTS.items()}
WISHES = [
    Wish(models=1000),
    Wish(models=10**6, gpus=8, replicas=2, search_cores=64),
    Wish(models=7, outputs_per_model=2.5, probes=400, dimension=384, top_r=10, responses=False, cores=2),
]


def by_name(wish: Wish, **given: float) -> dict[str, Figure]:
    return {f"{figure.group}.{figure.name}": figure for figure in plan(wish, constants(given))}


def test_a_small_plan_by_hand() -> None:
    """2 models of 3 outputs, n = 10, d = 4, r = 2, all constants small whole numbers."""
    given = dict.fromkeys(CONSTANTS, 1.0) | {"side": 2.0, "gmac": 3600.0, "store_rate": 0.5, "gpu_tflop_s": 2.0}
    found = by_name(Wish(2, 3, 10, 4, 2, cores=4, gpus=3, search_cores=6, replicas=2), **given)
    value = {name: figure.value for name, figure in found.items()}
    assert value["bytes.store"] == 6 * (20 + 2 * 6 + 1 + 12 + 1 + 1 + 1)
    assert value["bytes.server"] == 2 * value["bytes.store"]
    assert value["bytes.server_memory"] == 6 * 2 * (1 + 1 + 1)
    assert value["bytes.server_cache"] == 6 * 2 * (3 + 20 + 6)
    assert value["bytes.graph"] == 6 * 2
    assert value["bytes.snapshot"] == 6 * (48 + 12 + 12)
    assert value["bytes.scan_memory"] == 6 * (28 + 12 + 4)
    assert value["bytes.responses"] == 6 * 2 * 10
    assert value["bytes.pixels"] == 10 * 3 * 2 * 2
    assert value["bytes.download"] == 2
    assert value["hours.gpu"] == pytest.approx(2 * (2 * 10 * 3600 / 2000 + 1) / 3600)
    assert value["hours.cpu_models"] == pytest.approx(2 * 10)
    assert value["hours.cpu_rest"] == pytest.approx((6 * (10 / 4000 / 1000 + 2) + 2 / 1000 + 10 / 1000) / 3600)
    assert value["hours.network"] == pytest.approx(2 / 1e6 / 3600)
    assert value["hours.elapsed"] == pytest.approx(value["hours.gpu"] / 3)
    assert value["queries_per_second.scan"] == pytest.approx(6000 / (2 + 6 * 44 / 840 / 1e6))
    assert value["queries_per_second.qdrant"] == pytest.approx(6000 / (2 + 6 * (5 / 513 + 2 / 50) / 1e6))
    assert value["queries_per_second.candidates"] == pytest.approx(6000 / 3)


@pytest.mark.parametrize("wish", WISHES, ids=["1,000", "1,000,000", "7"])
def test_the_formulas_say_what_is_computed(wish: Wish) -> None:
    """Each formula, as it is shown, is evaluated by Python."""
    names: dict[str, Any] = {"min": min, "max": max, "N": wish.outputs, "M": wish.models, "n": wish.probes}
    names |= {"d": wish.dimension, "r": wish.top_r, "responses": wish.responses, "replicas": wish.replicas}
    names |= {"gpus": wish.gpus, "cores": wish.cores, "search_cores": wish.search_cores, **VALUES}
    for figure in plan(wish):
        names_of_group = {f.name: f.value for f in plan(wish) if f.group == figure.group and f.name != figure.name}
        # A figure that has the name of a part of the wish is never meant by it.
        everything = {**names_of_group, **names}
        assert eval(figure.formula, {"__builtins__": {}}, everything) == pytest.approx(figure.value, rel=1e-12)  # noqa: S307


def test_bytes_agree_with_what_was_measured_of_the_store() -> None:
    """docs/index-format.md: 3,561 bytes an output at d = 384, r = 50; the snapshot's are exact."""
    assert store_bytes(Wish(1, dimension=384), VALUES, fields=1) == pytest.approx(3561, rel=0.01)
    text = (DOCS / "index-format.md").read_text()
    assert "3,561 bytes an output" in text
    assert "**Snapshot**: 348 + 3 d bytes" in text
    assert "at most 328 + d" in text
    assert read_bytes(Wish(1, dimension=512)) == 328 + 512
    assert by_name(Wish(10, 10, dimension=384))["bytes.snapshot"].value == 100 * (348 + 3 * 384)


@pytest.mark.parametrize(
    ("constant", "shown"),
    [
        ("scan_ns", "| 1,000,000 | `whitened` | 33 |"),
        ("http_ms", "**2.23 over the library**"),
        ("store_rate", "9,650 to 10,360 outputs/s"),
        ("query_ms", "in memory, as the service calls it | 7.28 |"),
        ("cpu_gmac_s", "prober, a kind it has seen | 12.6 |"),
        ("decode_ms", "took 0.71 s once"),
        ("model_ms", "writing to the index, 13.5 ms"),
    ],
)
def test_constants_stand_in_the_measurements_they_name(constant: str, shown: str) -> None:
    assert shown in (DOCS / "measurements.md").read_text()
    expected = {
        "scan_ns": 33e6 / 1e6,  # 33 ms over a million
        "http_ms": 2.23,
        "store_rate": 9650,
        "query_ms": 7.28 - 3.8,
        "cpu_gmac_s": 0.407 / 12.6e-3 / 2,
        "decode_ms": 710 / 400 * 2,
        "model_ms": 11 + 13.5,
    }[constant]
    assert CONSTANTS[constant].value == pytest.approx(expected, rel=0.01)


def test_the_fields_of_a_server_are_those_that_it_indexes() -> None:
    from engine.store.server_config import PAYLOAD_INDEXES

    assert CONSTANTS["server_fields"].value == len(PAYLOAD_INDEXES["outputs"])


def test_every_constant_says_where_it_is_from_and_changes_a_figure() -> None:
    wishes = [Wish(models=10**5, gpus=gpus) for gpus in (0, 8)] + [Wish(models=10)]
    for name, constant in CONSTANTS.items():
        assert constant.source
        assert constant.unit
        if constant.origin == "measured":
            assert "benchmarks/" in constant.source
            for program in re.findall(r"benchmarks/(\w+\.py)", constant.source):
                assert (DOCS.parent / "benchmarks" / program).exists()
        changed = [(plan(wish), plan(wish, constants({name: 3 * constant.value}))) for wish in wishes]
        assert any(a.value != b.value for before, after in changed for a, b in zip(before, after, strict=True)), name


def test_every_part_of_a_wish_changes_a_figure() -> None:
    bases = Wish(models=1000, gpus=2), Wish(models=1000)
    changes: dict[str, object] = {"models": 2000, "outputs_per_model": 3.0, "probes": 500, "dimension": 64, "top_r": 5}
    changes |= {"responses": False, "replicas": 3, "gpus": 1, "cores": 1, "search_cores": 1}
    assert set(changes) == set(vars(bases[0]))
    for name, value in changes.items():
        pairs = [(plan(base), plan(Wish(**{**vars(base), name: value}))) for base in bases]
        assert any(a.value != b.value for before, after in pairs for a, b in zip(before, after, strict=True)), name


def test_what_rests_on_an_assumption_says_so_until_it_is_given() -> None:
    found = by_name(Wish(models=1000, gpus=4))
    assert found["bytes.snapshot"].assumed == found["bytes.store"].assumed == ()
    assert found["hours.gpu"].assumed == ("gmac", "gpu_model_s", "gpu_tflop_s")
    # The longest of several rests on all that they rest on.
    assert set(found["hours.elapsed"].assumed) >= {"gmac", "gpu_tflop_s", "network_mb_s", "parameters"}
    given = by_name(Wish(models=1000, gpus=4), gmac=4.1, gpu_tflop_s=90, gpu_model_s=1)
    assert given["hours.gpu"].assumed == ()
    assert given["hours.gpu"].value == pytest.approx(1000 * (2 * 4000 * 4.1e9 / 90e12 + 1) / 3600)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"models": 0}, "models is 0: use a number above 0"),
        ({"models": 1, "outputs_per_model": math.nan}, "outputs per model is nan: use a number above 0"),
        ({"models": 1, "gpus": -1}, "gpus is -1: use 0 or more"),
        ({"models": 1, "probes": 40}, "top r is 50, of 40 probes: use at most as many"),
    ],
)
def test_impossible_wishes(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        Wish(**wish)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gigaflops": 1.0}, "no constant is called 'gigaflops': there are sparse_bytes, .*"),
        ({"gmac": 0.0}, "the constant gmac is 0: use a number above 0"),
        ({"gmac": math.inf}, "the constant gmac is inf: use a number above 0"),
    ],
)
def test_impossible_constants(given: dict[str, float], says: str) -> None:
    with pytest.raises(InputError) as error:
        constants(given)
    assert re.fullmatch(says, str(error.value))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_answers_programs_and_people() -> None:
    document = json.loads(run("--models", "1000", "--gpus", "4", "--constant", "gmac=4.1", "--format", "json"))
    expected = by_name(Wish(models=1000, gpus=4), gmac=4.1)
    groups = ("bytes", "hours", "queries_per_second")
    shown = {f"{group}.{name}": value for group in groups for name, value in document[group].items()}
    assert shown == {name: pytest.approx(figure.value, rel=1e-5) for name, figure in expected.items()}
    assert (document["models"], document["outputs"], document["gpus"]) == (1000, 100_000, 4)
    gmac = document["constants"]["gmac"]
    assert gmac == {"value": 4.1, "unit": CONSTANTS["gmac"].unit, "origin": "given", "source": "an option"}
    assert "hours.gpu" in document["assumed"]
    assert "bytes.store" not in document["assumed"]
    quiet = dict(line.split() for line in run("--models", "1000", "--format", "quiet").splitlines())
    assert float(quiet["bytes.snapshot"]) == pytest.approx(100_000 * (348 + 3 * 512))
    assert len(quiet) == len(expected)


def test_the_table_marks_what_was_assumed_and_explains_on_request() -> None:
    plain = run("--models", "1000")
    (gpu,) = [line for line in plain.splitlines() if line.lstrip().startswith("gpu ")]
    (snapshot,) = [line for line in plain.splitlines() if line.lstrip().startswith("snapshot ")]
    assert "*" in gpu
    assert "*" not in snapshot
    assert "188 MB" in snapshot  # 100,000 x 1,884
    assert "benchmarks/" not in plain
    explained = " ".join(run("--models", "1000", "--explain").split())
    assert "benchmarks/scan.py" in explained
    assert "N * (48 + 6 * r + 3 * d)" in explained


def test_a_constant_that_is_no_number_is_wrong_usage() -> None:
    import click

    for text in ("gmac", "gmac=much", "=1x"):
        with pytest.raises(click.BadParameter, match="NAME=NUMBER"):
            run("--models", "1", "--constant", text)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.23 KB"),
        (999_600, "1 MB"),
        (8e11, "800 GB"),
        (1.6e14, "160 TB"),
        (2.5e16, "25 PB"),
    ],
)
def test_amounts(count: float, shown: str) -> None:
    assert amount(count) == shown


def test_the_table_in_the_documentation_is_what_the_command_says() -> None:
    text = (DOCS / "planning.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, flags=re.MULTILINE)
    columns = [by_name(Wish(models=models, gpus=gpus)) for models, gpus in ((100, 1), (10_000, 1), (1_000_000, 8))]
    seen = set()
    for name, cells in rows:
        keys = [key for key in columns[0] if key.split(".")[1] == name and key.split(".")[0] != "constants"]
        shown = [cell.strip() for cell in cells.split("|")][:3]
        for key in keys:
            expected = [_cell(column[key]) for column in columns]
            if shown == expected:
                seen.add(key)
    assert seen == set(columns[0])


def _cell(figure: Figure) -> str:
    if figure.group == "bytes":
        return amount(figure.value)
    return f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.2g}"


def test_the_documentation_names_every_constant_with_its_value() -> None:
    text = (DOCS / "planning.md").read_text()
    for name, constant in CONSTANTS.items():
        (row,) = re.findall(rf"^\| `{name}` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
        assert float(row[0].replace(",", "")) == constant.value
        assert row[2].strip() == constant.origin
