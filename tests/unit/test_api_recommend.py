"""``POST /v1/recommend``: the command's answers, at once or as a job, and what becomes of jobs and images."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

import indexers.profiler as profiler_module
from engine.conductance_cache import FILE
from engine.index import Index
from engine.writer import IndexWriter
from query.cli.main import run
from tests.support.job_programs import FACTS, HANG, held, program
from tests.support.job_programs import loading as loading_program
from tests.support.service import Asked, asking, small_app
from tests.support.small_index import make_index
from tests.support.tiny_models import timm_model
from tests.support.tiny_vlm import COCA_CONFIG, PASSES, make_task_index, save_vlm, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIER = "org/classifier"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside each other: an index with the profiles of three models, and these."""
    root = tmp_path_factory.mktemp("made")
    models = [save_vlm(root / "one", 0), save_vlm(root / "coca", 2, COCA_CONFIG)]
    folder = timm_model(root / CLASSIFIER)
    make_task_index(root / "zoo", [CLASSIFIER, *models])
    assert run(["profile", *models, str(folder), "--index", str(root / "zoo"), *PASSES]) == 0
    return root


@pytest.fixture
def models(made: Path) -> list[str]:
    return [f"open_clip:local-dir:{made}/one", f"open_clip:local-dir:{made}/coca", CLASSIFIER]


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    """The index without its store, which is large and only of use to those who write."""
    return Path(shutil.copytree(made / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("store")))


@pytest.fixture
def changing(made: Path, zoo: Path) -> Path:
    """The whole index."""
    shutil.copytree(made / "zoo" / "store", zoo / "store")
    return zoo


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "target", 2, 77)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where uploads go; at the end nothing is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def loading(asked: Asked, location: str) -> Any:
    """A job as soon as its process loads a model."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        job = asked.get(location).json()
        if job["progress"] and job["progress"]["what"] == "loading":
            return job
        assert not job["finished"], job
        time.sleep(0.02)
    raise AssertionError("no model is loaded")


def files(photos: Sequence[Path], **body: object) -> dict[str, Any]:
    parts: list[Any] = [("images", (path.name, path.read_bytes(), "image/png")) for path in photos]
    return {"files": [("request", (None, json.dumps(body), "application/json")), *parts]}


def ask(asked: Asked, photos: Sequence[Path], key: str | None = None, **body: object) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return asked.post("/v1/recommend", headers=headers, **files(photos, **body))


def queued(asked: Asked, photos: Sequence[Path], **body: object) -> str:
    """Where the job of a request is."""
    response = ask(asked, photos, **body)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/v1/jobs/{response.json()['id']}"
    return str(response.headers["Location"])


def finished(asked: Asked, location: str) -> Any:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        job = asked.get(location).json()
        if job["finished"]:
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["type"].rpartition(":")[2]


def local(capsys: pytest.CaptureFixture[str], zoo: Path, photos: Sequence[Path], *options: object) -> Any:
    """What the command answers, as a client of the service would see it."""
    capsys.readouterr()
    images = [part for path in photos for part in ("--images", str(path))]
    assert run(["recommend", "--index", str(zoo), "--format", "json", *images, *map(str, options)]) == 0
    found = json.loads(capsys.readouterr().out.replace(str(zoo), "INDEX"))
    found["target"]["images"] = [path.name for path in photos]
    return comparable(found)


def comparable(found: Any) -> Any:
    return {name: value for name, value in found.items() if name not in {"seconds", "profiled"}}


def test_what_has_to_be_computed_is_a_job_and_then_remembered(
    zoo: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with asking(small_app(zoo, job_grace_s=0)) as asked:
        location = queued(asked, photos)
        job = finished(asked, location)
        assert (job["kind"], job["state"], job["problem"]) == ("recommend", "done", None)
        assert job["result"]["profiled"] == 6
        told = job["progress"]
        assert (told["model_number"], told["models"], told["what"]) == (3, 3, "profiling")
        assert told["done"] == told["total"] == 2 and told["model"] in {
            one["model"] for one in job["result"]["ranking"]
        }
        again = ask(asked, photos)
        assert again.status_code == 200 and again.headers["Cache-Control"] == "no-store"
        assert again.json()["profiled"] == 0
        assert comparable(again.json()) == comparable(job["result"]) == local(capsys, zoo, photos)
        assert problem(asked.request("DELETE", location)) == (409, "job-finished")


def test_what_is_computed_within_the_grace_is_no_job(zoo: Path, photos: list[Path]) -> None:
    with asking(small_app(zoo, job_grace_s=25)) as asked:
        response = ask(asked, photos[:1])
        assert response.status_code == 200 and response.json()["profiled"] == 3


def test_every_part_of_a_body_changes_the_answer_as_the_command_s_option_does(
    zoo: Path, photos: list[Path], models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    usual = local(capsys, zoo, photos)
    size = min(one["parameters"] for one in usual["ranking"])
    options: list[tuple[dict[str, object], list[object]]] = [
        ({"k": 1}, ["-k", 1]),
        ({"eta": 40}, ["--eta", 40]),
        ({"gamma": 0.5}, ["--gamma", 0.5]),
        ({"explain": True}, ["--explain"]),
        ({"max_parameters": size}, ["--max-params", size]),
    ]
    with asking(small_app(zoo)) as asked:
        for body, given in options:
            response = ask(asked, photos, **body)
            assert response.status_code == 200
            assert comparable(response.json()) == local(capsys, zoo, photos, *given) != usual, body
        some = ask(asked, photos, candidates=models[1:]).json()
        assert comparable(some) == local(capsys, zoo, photos, "--candidates", models[1], "--candidates", CLASSIFIER)
        limited = ask(asked, photos, k=1001)
        assert problem(limited) == (400, "invalid-request")


def test_an_image_that_comes_twice_counts_once(zoo: Path, photos: list[Path]) -> None:
    twice = photos[0].with_name("again.png")
    shutil.copy(photos[0], twice)
    with asking(small_app(zoo, job_grace_s=25)) as asked:
        found = ask(asked, [photos[0], twice, photos[1]]).json()
        assert found["target"]["images"] == ["00.png", "01.png"]
        assert found["ranking"] == ask(asked, photos).json()["ranking"]


def test_bodies_that_do_not_fit(zoo: Path, photos: list[Path]) -> None:
    bodies: list[dict[str, object]] = [
        *({"k": 0}, {"k": "3"}, {"eta": -1}, {"gamma": "x"}, {"max_parameters": 0}, {"more": 1}, {"explain": 1}),
        *({"candidates": "org/a"}, {"candidates": [7]}),
    ]
    with asking(small_app(zoo)) as asked:
        for body in bodies:
            assert problem(ask(asked, photos, **body)) == (422, "invalid-body"), body


def test_mistakes_are_told_at_once_and_not_by_a_job(
    changing: Path, photos: list[Path], tmp_path: Path, models: list[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:200])
    with IndexWriter(changing) as writer:
        writer.drop_profiles(models[0])
        writer.export_knowledge()
    with asking(small_app(changing, job_grace_s=0)) as asked:
        assert problem(asked.post("/v1/recommend", {})) == (400, "invalid-request")
        assert problem(ask(asked, [])) == (400, "invalid-request")
        response = ask(asked, [photos[0], broken])
        assert problem(response) == (400, "invalid-request") and "broken.png" in response.json()["detail"]
        response = ask(asked, photos, candidates=[models[0]])
        assert problem(response) == (400, "invalid-request")
        assert "it has no profiles" in response.json()["detail"]
    empty = make_index(tmp_path / "empty" / "zoo").folder
    with asking(small_app(empty)) as asked:
        response = ask(asked, photos)
        assert problem(response) == (400, "invalid-request")
        assert "the index INDEX has no source tasks" in response.json()["detail"] and str(tmp_path) not in response.text


def test_a_candidate_is_a_name_and_never_a_path_or_an_address(
    zoo: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(timm_model(tmp_path / "secret" / "model").parent)
    (tmp_path / "secret" / "list").write_text("org/classifier\n")
    touched: list[str] = []
    watching = True

    def spy(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and (event == "socket.connect" or (event in {"open", "os.listdir", "os.scandir"})):
            touched.append(f"{event} {arguments}")

    sys.addaudithook(spy)
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *more, **how: touched.append(f"stat {path}") or stat(path, *more, **how)
    )
    with socket.create_server(("127.0.0.1", 0)) as server, asking(small_app(zoo, job_grace_s=0)) as asked:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        secret = str(tmp_path / "secret")
        strange = [
            *("../../etc", "/etc/passwd", "..", "~", "~root/x", "", ".", "model", "secret/model", "@list"),
            *(secret, f"{secret}/model", f"@{secret}/list", f"file://{secret}", f"open_clip:local-dir:{secret}"),
            *(f"{address}/a", f"hf:{address}", "org/nobody-has-it", "org/nobody@main", "open_clip:ViT-B-32/openai"),
        ]
        for name in strange:
            response = ask(asked, photos, candidates=[CLASSIFIER, name])
            assert problem(response) == (404, "model-not-found"), name
        with contextlib.suppress(TimeoutError):
            server.accept()
            pytest.fail("it followed an address")
    watching = False
    monkeypatch.undo()
    names = (secret, "passwd", "nobody", "list", "/etc/", "ViT-B-32")
    assert [event for event in touched if any(name in event for name in names)] == []
    assert any(str(zoo) in event for event in touched)  # it does watch


def test_without_running_models_only_what_is_remembered_is_answered(
    zoo: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["recommend", "--index", str(zoo), "--images", str(photos[0])]) == 0
    monkeypatch.setattr(profiler_module, "load_tower", lambda *_: pytest.fail("a model was loaded"))
    with asking(small_app(zoo, run_models=False)) as asked:
        assert ask(asked, photos[:1]).json()["profiled"] == 0
        for unknown in (photos, photos[1:]):
            assert problem(ask(asked, unknown)) == (409, "models-not-run")
        (zoo / FILE).unlink()
        response = ask(asked, photos[:1])
        assert problem(response) == (409, "models-not-run")
        assert response.json()["model"] in Index(zoo).knowledge().models()


def test_a_model_that_cannot_be_run_is_left_out_and_no_path_is_told(
    changing: Path, photos: list[Path], models: list[str], made: Path, tmp_path: Path
) -> None:
    with IndexWriter(changing) as writer:
        for profile in writer.store.profiles(model=CLASSIFIER):
            writer.put_profiles([profile.model_copy(update={"revision": "0" * 40})])
        writer.export_knowledge()
    with asking(small_app(changing, job_grace_s=25)) as asked:
        found = ask(asked, photos).json()
        assert {one["model"] for one in found["ranking"]} == set(models[:2])
        (out,) = [one for one in found["left_out"] if one["model"] == CLASSIFIER]
        assert "weights" in out["reason"] and str(made) not in out["reason"] and str(tmp_path) not in out["reason"]
        alone = ask(asked, photos, candidates=[CLASSIFIER])
        assert problem(alone)[0] in {409, 503} and str(made) not in alone.text and "weights" in alone.text
    with asking(small_app(changing, job_grace_s=0)) as asked:
        job = finished(asked, queued(asked, photos, candidates=[CLASSIFIER]))
        assert (job["state"], job["result"]) == ("failed", None)
        assert {"type", "title", "status", "detail", "instance"} == set(job["problem"])
        assert job["problem"]["detail"] == alone.json()["detail"]


def test_the_folders_that_the_service_was_given(
    zoo: Path, photos: list[Path], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (zoo / FILE).unlink()  # nobody remembers where the classifier was
    with asking(small_app(zoo, job_grace_s=25, models=(made / "org",))) as asked:
        assert ask(asked, photos, candidates=[CLASSIFIER]).json()["profiled"] == 2


def test_progress_and_cancelling_while_it_runs(
    zoo: Path, photos: list[Path], tmp_path: Path, temporary: Path, models: list[str]
) -> None:
    app = small_app(zoo, job_grace_s=0)
    app.state.service.jobs.program = held(tmp_path / "gate")
    with asking(app) as asked:
        location = queued(asked, photos)
        first = asked.get(location).json()
        if first["state"] == "running":
            assert first["progress"]["what"] == "starting" and first["progress"]["models"] == 3
        job = loading(asked, location)
        assert job["state"] == "running" and job["result"] is None
        assert (job["progress"]["model_number"], job["progress"]["models"]) == (1, 3)
        assert job["progress"]["model"] in models
        assert len(list(temporary.glob("hubhound-job-*/*.png"))) == 2
        started = time.monotonic()
        response = asked.request("DELETE", location)
        assert response.status_code == 202
        job = finished(asked, location)
        assert time.monotonic() - started < 3
        assert (job["state"], job["result"], job["problem"]) == ("cancelled", None, None)
        assert job["progress"]["model_number"] == 1 and list(temporary.iterdir()) == []


def test_a_model_that_ends_its_process_fails_the_job_and_nothing_else(
    zoo: Path, photos: list[Path], made: Path
) -> None:
    app = small_app(zoo, job_grace_s=0, models=(made / "org",))
    jobs = app.state.service.jobs
    with asking(app) as asked:
        jobs.program = program("loading('org/classifier'); os.kill(os.getpid(), signal.SIGSEGV)")
        job = finished(asked, queued(asked, photos, candidates=[CLASSIFIER]))
        assert (job["state"], job["problem"]["type"]) == ("failed", "urn:hubhound:problem:model-unusable")
        assert "signal 11" in job["problem"]["detail"] and CLASSIFIER in job["problem"]["detail"]
        # One that takes more memory than a job may have: its own library is told so.
        jobs.program = loading_program("import numpy; numpy.ones(3 * 10**9)")
        job = finished(asked, queued(asked, photos, candidates=[CLASSIFIER]))
        assert job["state"] == "failed" and "llocate" in job["problem"]["detail"], job
        jobs.program = loading_program(FACTS)
        job = finished(asked, queued(asked, photos, candidates=[CLASSIFIER]))
        facts = dict(part.split("=") for part in job["problem"]["detail"].partition("facts ")[2].split())
        assert facts == {"nice": "10", "core": "0", "leads": "True", "oom": "1000"}
        assert asked.get("/healthz").status_code == 200


def test_cancelling_while_it_waits_and_a_full_queue(zoo: Path, photos: list[Path], temporary: Path) -> None:
    app = small_app(zoo, job_grace_s=0, max_jobs=2)
    app.state.service.jobs.program = program(HANG)
    with asking(app) as asked:
        first, second = queued(asked, photos), queued(asked, photos[:1])
        assert asked.get(second).json()["state"] == "queued" and asked.get(second).json()["progress"] is None
        full = ask(asked, photos)
        assert problem(full) == (503, "busy") and int(full.headers["Retry-After"]) >= 1
        assert len(list(temporary.iterdir())) == 2
        response = asked.request("DELETE", second)
        assert response.status_code == 202 and response.json()["state"] == "cancelled"
        assert len(list(temporary.iterdir())) == 1
        third = queued(asked, photos)
        assert asked.request("DELETE", first).status_code == 202
        assert finished(asked, first)["state"] == "cancelled"
        assert loading(asked, third)["state"] == "running"
        assert asked.get(second).json()["state"] == "cancelled"


def test_what_is_remembered_does_not_wait_for_a_running_job(
    zoo: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    known = local(capsys, zoo, photos[:1])
    app = small_app(zoo, job_grace_s=0, max_jobs=1)
    app.state.service.jobs.program = program(HANG)
    with asking(app) as asked:
        location = queued(asked, photos)
        loading(asked, location)
        again = ask(asked, photos[:1])
        assert again.status_code == 200 and again.json()["ranking"] == known["ranking"]
        assert asked.get(location).json()["state"] == "running"


def test_a_job_belongs_to_its_key(zoo: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-has-a-long-key\nbob bob-has-another-long-key\n")
    app = small_app(zoo, job_grace_s=0, api_key_file=tmp_path / "keys")
    app.state.service.jobs.program = program(HANG)
    with asking(app) as asked:
        alice, bob = (
            {"Authorization": f"Bearer {key}"} for key in ("alice-has-a-long-key", "bob-has-another-long-key")
        )
        assert problem(ask(asked, photos)) == (401, "unauthorised")
        response = ask(asked, photos, key="alice-has-a-long-key")
        location = response.headers["Location"]
        for method in ("GET", "DELETE"):
            assert problem(asked.request(method, location, headers=bob)) == (404, "job-not-found")
            assert problem(asked.request(method, location)) == (401, "unauthorised")
            assert problem(asked.request(method, "/v1/jobs/nothing", headers=alice)) == (404, "job-not-found")
        assert asked.get(location, headers=alice).json()["state"] in {"queued", "running"}
        assert asked.request("DELETE", location, headers=alice).status_code == 202


def test_the_service_ends_while_a_job_hangs(zoo: Path, photos: list[Path], temporary: Path) -> None:
    app = small_app(zoo, job_grace_s=0)
    app.state.service.jobs.program = program(HANG)
    with asking(app) as asked:
        jobs = asked.app.state.service.jobs
        places = [queued(asked, photos) for _ in range(2)]
        loading(asked, places[0])
        assert len(list(temporary.iterdir())) == 2
        started = time.monotonic()
    assert time.monotonic() - started < 3 and list(temporary.iterdir()) == []
    assert [jobs.get(place.rpartition("/")[2]).state for place in places] == ["cancelled"] * 2


def test_a_client_that_goes_away_within_the_grace_leaves_no_job(
    zoo: Path, photos: list[Path], temporary: Path, tmp_path: Path
) -> None:
    app = small_app(zoo, job_grace_s=25, request_timeout_s=2)
    app.state.service.jobs.program = program(f"open({str(tmp_path / 'begun')!r}, 'w')\n{HANG}")
    with asking(app) as asked:
        assert problem(ask(asked, photos)) == (504, "timeout")
        assert (tmp_path / "begun").exists()
        until = time.monotonic() + 10
        while list(temporary.iterdir()) and time.monotonic() < until:
            time.sleep(0.02)
        assert list(temporary.iterdir()) == []
