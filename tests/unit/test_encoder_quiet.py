"""While an encoder is at work, other threads' log is written."""

from __future__ import annotations

import logging

import pytest

from engine.encoder import _quiet


@pytest.mark.parametrize("loading", [False, True])
def test_only_the_libraries_are_kept_quiet(loading: bool, caplog: pytest.LogCaptureFixture) -> None:
    levels = {name: logging.getLogger(name).level for name in ("transformers", "timm")}
    with caplog.at_level(logging.INFO), _quiet(loading), _quiet():
        logging.getLogger("hubhound.serve").info("a line of ours")
        logging.getLogger("transformers").warning("advice")
        logging.getLogger("transformers.tokenization_utils_base").warning("advice")
        logging.warning("advice to the root")
        logging.getLogger("transformers").error("an error")
        logging.error("an error at the root")
    told = [record.getMessage() for record in caplog.records]
    assert "a line of ours" in told
    assert not [line for line in told if line.startswith("advice")]
    assert "an error at the root" in told
    assert {name: logging.getLogger(name).level for name in levels} == levels
    logging.getLogger("hubhound.serve").warning("still")
    logging.warning("heard again")
    assert "heard again" in caplog.text
