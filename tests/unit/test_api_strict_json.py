"""Bodies of a megabyte that are made to take long: each is read while all other requests wait."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable

import pytest
from fastapi.exceptions import RequestValidationError

from query.api.admission import JSON_BYTES
from query.api.bodies import SearchBody
from query.api.errors import ApiError, to_problem
from query.api.routes.outputs import OutputsBody
from query.api.routes.recommend import RecommendBody
from query.api.strict_json import DEPTH, MOST_NODES, parse_json, read_json

QUICK_S = 1.0
"""Bound for every body, of a processor: a tenth is expected, and what is quadratic takes seconds to minutes."""


def filled(begin: str, piece: Callable[[int], str], end: str) -> bytes:
    """As many pieces as fit into the largest body."""
    pieces: list[str] = []
    left = JSON_BYTES - len(begin) - len(end)
    while left > 0:
        pieces.append(piece(len(pieces)))
        left -= len(pieces[-1]) + 1
    return (begin + ",".join(pieces[:-1]) + end).encode()


BODIES = {
    "a name twice at the end": filled("{", lambda n: f'"{n}":0', ',"9":0}'),
    "unknown names": filled("{", lambda n: f'"{n}":0', "}"),
    "as many unknown names as may be": json.dumps({str(n): 0 for n in range(MOST_NODES // 2 - 1)}).encode(),
    "numbers for concepts": filled('{"concepts":[', lambda n: "0", "]}"),
    "as many numbers as may be": json.dumps({"concepts": [0] * (MOST_NODES - 3)}).encode(),
    "as many candidates as may be": json.dumps({"candidates": [0] * 9_999}).encode(),
    "lists for concepts": filled('{"concepts":[', lambda n: "[]", "]}"),
    "empty texts": filled('{"outputs":[', lambda n: '""', "]}"),
    "objects": filled('{"outputs":[', lambda n: "{}", "]}"),
    "objects with a name": filled('{"outputs":[', lambda n: '{"":0}', "]}"),
    "floats": filled('{"outputs":[', lambda n: "1.5", "]}"),
    "long numbers": filled('{"outputs":[', lambda n: "9" * 4300, "]}"),
    "deep lists": filled("[", lambda n: "[" * (DEPTH - 2) + "]" * (DEPTH - 2), "]"),
    "strings of marks and quotes": b'{"like":"' + b'\\",' * 240_000,
    "texts of one quote": filled('{"outputs":[', lambda n: '"\\""', "]}"),
    "a text of quotes without an end": b'{"like":"' + b',:\\"' * 240_000,
    "a long text": b'{"like":"' + "é".encode() * 450_000 + b'"}',
    "a long text with half a pair": b'{"like":"' + b"a" * 900_000 + b'\\ud800"}',
    "a long name": b'{"' + b"a" * 400_000 + b'":0,"' + b"a" * 400_000 + b'":0}',
    "long names": filled("{", lambda n: '"' + f"{n:05d}" * 200 + '":0', "}"),
    "escapes": b'{"like":"' + b"\\u0041" * 150_000 + b'"}',
    "white space": b'{"like":' + b" " * 900_000 + b"x}",
}


@pytest.mark.parametrize("model", [SearchBody, OutputsBody, RecommendBody])
@pytest.mark.parametrize("case", BODIES)
def test_no_body_takes_long(case: str, model: type[SearchBody]) -> None:
    assert len(BODIES[case]) <= JSON_BYTES
    gc.collect()  # what other tests left is none of its time, nor are other processes
    begun = time.thread_time()
    with pytest.raises((ApiError, RequestValidationError)) as caught:
        read_json(BODIES[case], model)
    problem = to_problem(caught.value)
    assert time.thread_time() - begun < QUICK_S
    assert problem.status in {400, 422}
    assert len(json.dumps(problem.to_json())) < 10_000


def test_values_and_names_are_counted() -> None:
    """A list is one, an object is one, a field is two."""
    assert len(parse_json(json.dumps([0] * (MOST_NODES - 1)).encode())) == MOST_NODES - 1
    fields = {str(number): [] for number in range((MOST_NODES - 1) // 2)}  # type: ignore[var-annotated]
    assert parse_json(json.dumps(fields).encode()) == fields
    for more in ([0] * MOST_NODES, {**fields, "one": 1}, [[0] * (MOST_NODES // 2)] * 2):
        with pytest.raises(ApiError, match="more than 20,000 values and names"):
            parse_json(json.dumps(more).encode())
    many = [[], {}] * ((MOST_NODES - 1) // 2)
    assert parse_json(json.dumps(many).encode()) == many
    text = ',:[{\\"' * 50_000  # in texts they count nothing
    assert parse_json(json.dumps([text, {text: text}]).encode()) == [text, {text: text}]


def test_the_name_that_comes_twice_is_told() -> None:
    with pytest.raises(ApiError, match="'b' is given twice"):
        parse_json(b'{"a": 1, "b": 2, "c": 3, "b": 4, "a": 5}')


def test_faults_are_counted_where_they_are_not_told() -> None:
    with pytest.raises(RequestValidationError) as caught:
        read_json(json.dumps({"concepts": [0] * 5000}).encode(), SearchBody)
    problem = to_problem(caught.value)
    assert problem.errors is not None
    assert [fault.where for fault in problem.errors] == [f"concepts.{number}" for number in range(20)]
    assert problem.detail.endswith("; and 4,997 more")


def test_of_many_faults_only_those_that_are_told_are_made() -> None:
    fault = {"loc": ("body", "concepts", 7), "msg": "Input should be a valid string", "type": "string_type"}
    begun = time.thread_time()
    problem = to_problem(RequestValidationError([fault] * 300_000))
    assert time.thread_time() - begun < QUICK_S
    assert problem.errors is not None and len(problem.errors) == 20
    assert problem.detail.endswith("; and 299,997 more")
