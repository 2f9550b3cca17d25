"""``hubhound plan`` with constants that there are not."""

from __future__ import annotations

import pytest

from engine.planning import CONSTANTS
from query.cli.main import run


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gmacs", "did you mean gmac or cpu_gmac_s? "),
        ("tflop", "did you mean gpu_tflop_s? "),
        ("GMAC", "did you mean gmac or cpu_gmac_s? "),
        ("foo", ""),
        ("", ""),
    ],
)
def test_an_unknown_constant_is_told_with_those_like_it(
    name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "--models", "10", "--constant", f"{name}=3"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"hubhound: no constant is called {name!r}: {told}--explain lists all {len(CONSTANTS)}\n"


def test_a_long_name_does_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--models", "10", "--constant", f"{'x' * 9999}=3"]) == 1
    assert len(capsys.readouterr().err) < 200
