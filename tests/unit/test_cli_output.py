"""Progress where nobody watches: a line now and then, not silence and not a bar."""

from __future__ import annotations

import pytest

from query.cli import output


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with output.progress("copying", "models") as advance:
        for done in range(1, 101):
            now[0] += 1.0
            advance(done, 100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["copying: 30 of 100", "copying: 60 of 100", "copying: 90 of 100"]


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("copying", "models") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""
