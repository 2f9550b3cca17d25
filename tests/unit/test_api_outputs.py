"""How outputs are asked for: strict JSON alone, numbers with and without zeros before them."""

from __future__ import annotations

import pytest

from tests.support.service import Asked
from tests.unit.test_api_models import folder, service

__all__ = ["folder", "service"]


def test_a_number_of_an_output_may_begin_with_zeros(service: Asked) -> None:
    for asked, number in (("0" * 20 + "1", 1), ("0" * 300, 0), ("002", 2)):
        answer = service.post("/v1/outputs", {"outputs": [f"org/things#{asked}"], "names": 0})
        assert answer.json()["outputs"][0]["output"] == number


def test_a_number_longer_than_any_model_is_no_output(service: Asked) -> None:
    answer = service.post("/v1/outputs", {"outputs": ["org/things#1" + "0" * 18]})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:hubhound:problem:output-not-found")


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b'{"outputs": []}', "application/json; charset=utf-8", 200),
        (b'{"outputs": []}', "text/plain", 415),
        (b'{"outputs": []}', "multipart/form-data; boundary=x", 415),
        (b'{"outputs": [], "outputs": []}', "application/json", 400),
        (b'{"outputs": [], "names": NaN}', "application/json", 400),
        (b'{"outputs": ["\\ud800"]}', "application/json", 400),
        (b"", "application/json", 400),
    ],
)
def test_outputs_are_asked_for_in_strict_json(service: Asked, content: bytes, media_type: str, status: int) -> None:
    answer = service.request("POST", "/v1/outputs", content=content, headers={"Content-Type": media_type})
    assert answer.status_code == status, answer.text
