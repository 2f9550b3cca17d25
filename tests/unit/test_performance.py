"""Tables of known performance, and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.performance import model_name, ranks, read_models, read_performance, table_of
from engine.schema import Performance

HEADER = "model,pretrained,dataset,acc1"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    numbers = count()

    def write(text: str) -> Path:
        path = tmp_path / f"table{next(numbers)}.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("model", "pretrained", "name"),
    [
        ("ViT-B-32", "openai", "open_clip:ViT-B-32/openai"),
        ("open_clip:ViT-B-32", "openai", "open_clip:ViT-B-32/openai"),
        ("open_clip:RN50/cc12m", "", "open_clip:RN50/cc12m"),
        ("open_clip:hf-hub:org/name", "", "open_clip:hf-hub:org/name"),
        ("hf-hub:org/name", "", "open_clip:hf-hub:org/name"),
        ("open_clip:local-dir:/a/b/../c", "", "open_clip:local-dir:/a/c"),
        ("timm/resnet18.a1_in1k", "", "timm/resnet18.a1_in1k"),
    ],
)
def test_names_of_models(model: str, pretrained: str, name: str) -> None:
    assert model_name(model, pretrained) == name


def test_a_local_folder_is_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_name("open_clip:local-dir:mine", "") == f"open_clip:local-dir:{tmp_path.resolve() / 'mine'}"


def test_a_table_is_read(write: Callable[[str], Path]) -> None:
    path = write(
        "\ufeffdataset, model ,pretrained,acc1,note,source\n"
        "cars,RN50,openai, 0.5,,paper\n"
        "\n"
        'pets,RN50,openai,,"not, published"\n'
        "cars,org/net,,1\n"
        "pets,org/net,,0,,,more cells than columns\n"
    )
    found = read_performance(path)
    assert (found.rows, found.missing) == (4, 1)
    assert found.records == (
        Performance(model="open_clip:RN50/openai", task="cars", value=0.5, source="paper"),
        Performance(model="org/net", task="cars", value=1.0),
        Performance(model="org/net", task="pets", value=0.0),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "model, pretrained, dataset, acc1"]),
        ("model,dataset,acc1\n", ["no column pretrained", "found: model, dataset, acc1"]),
        ("model;pretrained;dataset;acc1\n", ["no column model", "separated by commas"]),
        ("model,pretrained,dataset,acc1,acc1\n", ["more than one column acc1"]),
        (HEADER + "\n", ["no rows"]),
        (HEADER + "\nRN50,openai,cars,good\n", ["line 2", "'good'", "no number"]),
        (HEADER + "\nRN50,openai,cars,NaN\n", ["line 2", "no number", "empty"]),
        (HEADER + "\nRN50,openai,cars,-0.1\n", ["line 2", "share from 0 to 1", "not -0.1"]),
        (HEADER + "\nRN50,openai,cars,inf\n", ["line 2", "not inf"]),
        (HEADER + "\n\nRN50,openai,cars,63.2\n", ["line 3", "63.2 looks like per cent, divide by 100"]),
        (HEADER + "\nRN50,openai,cars,163\n", ["line 2", "share from 0 to 1, not 163"]),
        (HEADER + "\nRN50,openai,cars,0.1\nRN50,a,cars,0.1\nRN50,openai,cars,\n", ["line 4", "first is line 2"]),
        (HEADER + "\nopen_clip:RN50/a,,x,0.1\nRN50,a,x,0.1\n", ["line 3", "open_clip:RN50/a has a second row"]),
        (HEADER + "\nRN50,openai,the cars,0.5\n", ["line 2", "'the cars' cannot name a dataset"]),
        (HEADER + "\nRN50,openai,,0.5\n", ["line 2", "cannot name a dataset"]),
        (HEADER + "\n,openai,cars,0.5\n", ["line 2", "names no model"]),
        (HEADER + "\nRN50,,cars,0.5\n", ["line 2", "RN50 has no tag", "org/name"]),
        (HEADER + '\n"RN50,openai,cars,0.5\n', ["cannot be read"]),
    ],
)
def test_unusable_tables(write: Callable[[str], Path], text: str, parts: list[str]) -> None:
    path = write(text)
    with pytest.raises(InputError) as caught:
        read_performance(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in [str(path), *parts]:
        assert part in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"model,pretrained,dataset,acc1\n\xe9,a,b,0\n")
    for name in ("none.csv", ".", "latin.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_performance(tmp_path / name)


def test_lists_of_models(write: Callable[[str], Path]) -> None:
    names = ("open_clip:RN50/openai", "org/net")
    assert read_models(write("open_clip:RN50/openai\n\norg/net\norg/net\n")) == names
    assert read_models(write("flops,model,pretrained\n1,RN50,openai\n2,org/net\n")) == names
    for text, part in (("", "is empty"), ("RN50\n", "line 1: RN50 has no tag")):
        with pytest.raises(InputError, match=part):
            read_models(write(text))


def test_records_as_a_table() -> None:
    def record(model: str, task: str, value: float, metric: str = "acc1") -> Performance:
        return Performance(model=model, task=task, value=value, metric=metric)

    records = [record("b", "y", 0.1), record("a", "x", 0.2), record("b", "x", 0.3), record("b", "y", 0.4)]
    records += [record("c", "z", 0.5, "map")]
    table = table_of(records)
    assert (table.models, table.tasks) == (("b", "a"), ("y", "x"))
    np.testing.assert_array_equal(table.values, [[0.4, 0.3], [np.nan, 0.2]])
    table = table_of(records, ("a", "new", "b"), ("x",))
    np.testing.assert_array_equal(table.values, [[0.2], [np.nan], [0.3]])
    assert table_of(records, metric="map").tasks == ("z",)
    assert table_of([]).values.shape == (0, 0)


def slow_ranks(column: list[float], ties: str) -> list[float]:
    known = [value for value in column if not math.isnan(value)]
    found = []
    for place, value in enumerate(column):
        better = sum(other > value for other in known)
        equal = known.count(value)
        before = sum(other == value for other in column[:place])
        found.append(better + {"min": 1.0, "ordinal": 1.0 + before, "average": (equal + 1) / 2}[ties])
    return [float("nan") if math.isnan(value) else rank for rank, value in zip(found, column, strict=True)]


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, float("nan")]), min_size=width, max_size=width),
            min_size=1,
            max_size=8,
        )
    ),
    st.sampled_from(["average", "ordinal", "min"]),
)
def test_ranks_are_those_of_counting(rows: list[list[float]], ties: str) -> None:
    values = np.array(rows)
    given_before = values.copy()
    expected = np.array([slow_ranks(column, ties) for column in values.T.tolist()]).T
    np.testing.assert_array_equal(ranks(values, ties), expected)
    np.testing.assert_array_equal(values, given_before)


def test_ties_share_their_mean_place_by_default() -> None:
    np.testing.assert_array_equal(ranks(np.array([[0.5], [0.9], [0.5], [np.nan]]))[:, 0], [2.5, 1, 2.5, np.nan])
    assert ranks(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(InputError, match=r"no rule 'dense'.*average, ordinal, min"):
        ranks(np.zeros((2, 2)), "dense")
