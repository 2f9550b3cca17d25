"""The service against its own OpenAPI document: schemathesis asks everything that the document allows, and what not.

All its phases (examples, boundary values, random cases, chains of requests) with all its checks: no 500; only
documented statuses, media types and bodies; what does not fit the schema is refused; what fits is not. Answers with 400
count as accepted there: a schema cannot say that a model is not in the index or that two fields exclude each other, and
the problem ``invalid-request`` is documented for that. 503 is no fault where jobs wait, and a job that was cancelled is
not gone. The cases are drawn without chance.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import schemathesis_hooks
from tests.support.pretend_hubhound import PROGRAM
from tests.support.runnable_index import make_runnable_index
from tests.support.service import Served, serving

EXAMPLES = 25
OPTIONS = ("--rate-limit", "0", "--names", "no", "--job-grace-s", "0", "--request-timeout-s", "10")
CONFIG = f"""
hooks = "{Path(schemathesis_hooks.__file__).as_posix()}"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "413", "429", "503"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A service over three tiny models that really run, so that there are recommendations and jobs."""
    zoo = make_runnable_index(tmp_path)
    with serving(zoo, tmp_path / "log", *OPTIONS, "--models", str(tmp_path / "org"), program=PROGRAM) as running:
        yield running


def answered(served: Served) -> dict[tuple[str, str], set[str]]:
    """The statuses that each operation has answered with, from the metrics."""
    found: dict[tuple[str, str], set[str]] = {}
    text = httpx.get(f"{served.url}/metrics").text
    pattern = r'^hubhound_http_requests_total\{method="(\w+)",route="([^"]+)",status="(\d+)"\}'
    for method, route, status in re.findall(pattern, text, re.MULTILINE):
        found.setdefault((method, re.sub(r":\w+\}", "}", route)), set()).add(status)
    return found


@pytest.mark.slow
def test_the_service_does_what_its_document_says(served: Served, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    report = tmp_path / "report.json"
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(tmp_path / "schemathesis.toml")),
        *(
            "run",
            f"{served.url}/openapi.json",
            "--checks",
            "all",
            "--exclude-checks",
            "use_after_free",
            "--max-examples",
            str(EXAMPLES),
        ),
        *("--generation-deterministic", "--continue-on-failure", "--no-color"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = json.loads(report.read_text())
    sys.stdout.write(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2_000:]
    assert found["complete"]
    assert found["operations"]["tested"] == found["operations"]["total"] >= 13
    assert {name: phase["status"] for name, phase in found["phases"].items()} == dict.fromkeys(
        ("examples", "coverage", "fuzzing", "stateful"), "success"
    )
    assert found["test_cases"]["generated"] > 30 * found["operations"]["total"]
    assert found["test_cases"]["without_checks"] == found["test_cases"]["errored"] == 0
    assert "Traceback" not in served.told()
    statuses = answered(served)
    assert not any("500" in some for some in statuses.values())
    document = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    operations = {(method.upper(), path) for path, methods in document.items() for method in methods}
    never = {place for place in operations if not any(status[0] == "2" for status in statuses.get(place, ()))}
    assert never <= {("DELETE", "/v1/jobs/{job_id}")}  # its jobs have mostly ended when it comes
    assert "202" in statuses["POST", "/v1/recommend"]
