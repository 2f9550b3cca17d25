"""What docs/serving.md and docs/api.md say, held against the service: every example is sent, every table compared."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import httpx
import pytest
from click.testing import CliRunner
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from engine.writer import IndexWriter
from query.api import jobs
from query.api.bodies import SearchBody
from query.api.errors import Problem, ProblemKind
from query.api.metrics import METRICS
from query.api.routes.recommend import RecommendBody
from query.api.settings import Settings, flag, variable
from query.cli.serve import serve
from query.recommendation import Recommendation
from tests.support.service import Asked, asking, listening, small_app
from tests.support.small_index import make_index, put_model, write_example

REPOSITORY = Path(__file__).parents[2]
SERVING = (REPOSITORY / "docs" / "serving.md").read_text()
API = (REPOSITORY / "docs" / "api.md").read_text()
README = (REPOSITORY / "README.md").read_text()
KINDS = {"index": "folder", "models": "folder", "api_key_file": "file", "vocabulary": "file", "host": "address"}
KINDS |= {"port": "port", "allowed_host": "host name", "cors_origin": "origin", "hub_url": "URL", "device": "device"}
CONCEPTS = ("golden retriever", "school bus", "tabby")


def rows(heading: str, document: str) -> list[list[str]]:
    """Cells of the rows of every table whose first heading this is."""
    found: list[list[str]] = []
    inside = False
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] if line.startswith("|") else []
        if cells and not inside:
            inside = cells[0] == heading
        elif not cells:
            inside = False
        elif not set("".join(cells)) <= {"-", ":"}:
            found.append(cells)
    return found


def shown(value: object) -> str:
    """A default as the tables have it."""
    if value is PydanticUndefined or value is None or value in ((), []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def unit_of(name: str) -> str:
    """What the values of a setting are counted in, or are."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "yes or no" if field.default else "switch"
    return str(extra.get("unit") or KINDS[name])


def setting_rows() -> list[str]:
    """The table of settings, from the settings."""
    lines = []
    for name, field in Settings.model_fields.items():
        what = str(field.description).replace("|", "\\|")
        cells = (f"`{flag(name)}`", f"`{variable(name)}`", shown(field.default), unit_of(name), what)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def kind_of(annotation: Any) -> str:
    """A type as JSON has it."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    args = [part for part in get_args(annotation) if part is not type(None)]
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is list:
        return "list of texts"
    if all(isinstance(part, str) for part in args):
        return ", ".join(map(str, args))
    return kind_of(args[0])


def field_rows(model: type[BaseModel]) -> list[str]:
    """The table of a body's fields, from the model."""
    lines = []
    for name, field in model.model_fields.items():
        default = "false" if field.default is False else shown(field.default)
        described = str(field.description).replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {kind_of(field.annotation)} | {described} |")
    return lines


def test_every_setting_is_in_the_table_as_it_is() -> None:
    table = SERVING.partition("## All settings")[2]
    assert [line for line in table.splitlines() if line.startswith("| `")] == setting_rows()
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_that_are_measured_have_a_unit() -> None:
    measured = {name for name in Settings.model_fields if re.search(r"_(s|mb|px|megapixels)$|^max_|^rate_", name)}
    assert len(measured) > 12
    for name in measured:
        extra = Settings.model_fields[name].json_schema_extra
        assert isinstance(extra, dict) and extra["unit"], name


def test_the_command_has_the_documented_options_and_no_others() -> None:
    options = {name for parameter in serve.params for name in parameter.opts}
    assert {row[0].strip("`") for row in rows("option", SERVING)} == options
    told = CliRunner().invoke(serve, ["--help"]).output
    assert all(variable(name) in re.sub(r"\s", "", told) for name in Settings.model_fields)


def test_every_option_that_is_named_exists() -> None:
    prose = "\n".join(line for line in (SERVING + API).splitlines() if not line.startswith("$ "))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"`curl [^`]*`", "", prose)))
    assert named - {flag(name) for name in Settings.model_fields} <= {"--format"}  # of other commands
    assert len(named) > 20


@pytest.mark.parametrize(("heading", "model"), [("POST /v1/search", SearchBody), ("POST /v1/recommend", RecommendBody)])
def test_every_field_of_a_body_is_in_its_table(heading: str, model: type[BaseModel]) -> None:
    section = API.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == field_rows(model)


def test_the_metrics_are_those_of_the_service() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("metric", SERVING)} == METRICS
    assert set(re.findall(r"hubhound_[a-z]+_\w+", SERVING)) <= set(METRICS)


def test_every_problem_is_explained() -> None:
    table = rows("type, after `urn:hubhound:problem:`", API)
    assert [(row[0].strip("`"), int(row[1]), row[2]) for row in sorted(table)] == sorted(
        (kind.slug, kind.status, kind.title) for kind in ProblemKind
    )
    assert all(row[3] for row in table)


def test_every_state_of_a_job_is_explained() -> None:
    assert [row[0] for row in rows("state", API)] == list(get_args(jobs.State))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A service whose index has what the examples ask for."""
    root = tmp_path_factory.mktemp("docs")
    make_index(root / "zoo")
    facts: dict[str, Any] = {
        "library": "timm",
        "licence": "apache-2.0",
        "parameters": 25_557_032,
        "likes": 41,
        "downloads": 29_846_451,
    }
    with IndexWriter(root / "zoo") as writer:
        put_model(
            writer,
            "timm/resnet50.a1_in1k",
            CONCEPTS,
            architecture="resnet50",
            input_size=(224, 224),
            tags=("image-classification",),
            **facts,
        )
        put_model(writer, "microsoft/resnet-18", CONCEPTS[:2], library="transformers", seed=2)
        writer.finish()
    (root / "words.txt").write_text("\n".join((*CONCEPTS, "cat", "dog", "car")))
    with asking(small_app(root / "zoo", names=True, vocabulary=root / "words.txt")) as running:
        until = time.monotonic() + 30
        while running.get("/v1/models/microsoft/resnet-18").json()["names"]["state"] != "ready":
            assert time.monotonic() < until
            time.sleep(0.02)
        yield running


def test_every_route_has_a_section(service: Asked) -> None:
    routes = [route for route in service.app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    document = service.app.openapi()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in document.items() for method in methods}
    assert len(there) >= len(routes) - 1
    assert set(re.findall(r"^## ((?:GET|POST|DELETE|PUT) .+)$", API, re.MULTILINE)) == there


def examples() -> list[Any]:
    """Each documented request with the answer that stands below it, if there is one."""
    found = []
    for block, answer in re.findall(r"```console\n(.*?)```(?:\n\n```json\n(.*?)```)?", API, re.DOTALL):
        lines = [line[2:] for line in block.splitlines() if line.startswith("$ curl")]
        for line in lines:
            found.append(pytest.param(line, answer if len(lines) == 1 else "", id=line[8:90]))
    return found


def send(service: Asked, line: str, folder: Path) -> httpx.Response:
    """What curl would do."""
    words = shlex.split(line)[1:]
    method, url, body, headers, files = "GET", "", None, {}, []
    while words:
        word = words.pop(0)
        if word in {"-s", "-o"}:
            words = words[1:] if word == "-o" else words
        elif word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            method, body = "POST", words.pop(0).encode()
        elif word == "-F":
            method, (name, _, value) = "POST", words.pop(0).partition("=")
            image = write_example(folder / "example.png", CONCEPTS[0]).read_bytes()
            files.append((name, (value[1:], image) if value.startswith("@") else (None, value.encode())))
        else:
            assert not url and word.startswith("localhost:8080/"), word
            url = word.removeprefix("localhost:8080")
    return service.request(method, url, content=body, headers=headers, files=files or None)


def misses(expected: Any, answered: Any, where: str = "answer") -> list[str]:
    """Where a documented answer has what the real one has not, or of another type."""
    if where.endswith((".libraries", ".licences")):  # numbers by name
        return []
    if isinstance(expected, dict) and isinstance(answered, dict):
        missing = [f"{where}.{name}" for name in expected if name not in answered]
        return missing + [
            fault
            for name, value in expected.items()
            if name in answered
            for fault in misses(value, answered[name], f"{where}.{name}")
        ]
    if isinstance(expected, list) and isinstance(answered, list):
        return misses(expected[0], answered[0], f"{where}[0]") if expected and answered else []
    same = type(expected) is type(answered) or {type(expected), type(answered)} <= {int, float}
    return [] if same else [f"{where} is {answered!r}"]


@pytest.mark.parametrize(("line", "answer"), examples())
def test_every_example_is_answered_as_documented(service: Asked, tmp_path: Path, line: str, answer: str) -> None:
    if "/v1/recommend" in line or "/v1/jobs/" in line:
        # There is no model to recommend and no such job: the form of the request is right, and so is the answer's.
        response = send(service, line, tmp_path)
        assert response.json()["type"].rpartition(":")[2] in {"invalid-request", "job-not-found"}, response.text
        assert "source tasks" in response.text or response.status_code == 404
        if answer:
            (jobs.Job if "/v1/jobs/" in line else Recommendation).model_validate_json(answer)
        return
    response = send(service, line, tmp_path)
    assert response.status_code == 200, response.text
    if answer:
        assert misses(json.loads(answer), response.json()) == []
        if isinstance(json.loads(answer).get("results"), list):
            (expected,), (found,) = json.loads(answer)["results"], response.json()["results"]
            assert set(expected["hits"][0]) == set(found["hits"][0])


@pytest.mark.parametrize("document", [README, API], ids=["README.md", "docs/api.md"])
def test_the_program_with_the_client_runs(
    service: Asked, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = (code for code in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "query.client" in code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUBHOUND_KEY", raising=False)
    for name in ("one", "two"):
        write_example(tmp_path / f"{name}.png", name).rename(f"{name}.jpg")
    settings = service.app.state.service.settings
    again = small_app(settings.index, names=True, vocabulary=settings.vocabulary)
    with listening(again) as url:
        assert "http://127.0.0.1:8080" in program
        exec(program.replace("http://127.0.0.1:8080", url), {})  # noqa: S102
    told = capsys.readouterr().out.splitlines()
    hits = service.post("/v1/search", {"concepts": ["golden retriever"], "k": 3}).json()["results"][0]["hits"]
    assert [line.split() for line in told[:3]] == [
        [str(hit[name]) for name in ("model", "output", "margin")] for hit in hits
    ]
    if document is API:
        assert told[3:5] == ["microsoft/resnet-18 None None", "timm/resnet50.a1_in1k apache-2.0 25557032"]
        assert told[5].startswith("0 golden retriever ['")
        assert told[-1].startswith("400 urn:hubhound:problem:invalid-request ")  # there is nothing to recommend


def test_the_documented_problem_is_one(service: Asked) -> None:
    example = API.partition("## Problems")[2].partition("```json\n")[2].partition("```")[0]
    told = Problem.model_validate_json(example)
    answered = service.post("/v1/search", {"concepts": ["cat"], "k": 0})
    assert {**answered.json(), "instance": told.instance} == told.to_json()


def test_the_units_for_systemd_and_nginx_fit_the_command() -> None:
    (line,) = re.findall(r"^ExecStart=\S*/hubhound (.+)$", SERVING, re.MULTILINE)
    arguments = shlex.split(line)
    assert arguments.pop(0) == "serve"
    with serve.make_context("serve", arguments) as context:
        assert context.params["log_format"] == "json"
    (body_mb,) = re.findall(r"client_max_body_size (\d+)m", SERVING)
    assert int(body_mb) == Settings.model_fields["max_body_mb"].default
