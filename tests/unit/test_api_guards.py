"""What stands before the app, on a small app of the test's own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Body as BodyOf
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response, StreamingResponse

from query.api import guards as guards_module
from query.api.admission import hold_while
from query.api.errors import LOGGER, install
from query.api.guards import Guards
from query.api.metrics import Metrics
from query.api.settings import Settings

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdefgh"


class Guarded:
    """A small app behind guards, with a pool whose work the test ends."""

    def __init__(self, index: Path, **given: Any) -> None:
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(4)
        self.release = threading.Event()
        self.began = threading.Semaphore(0)
        self.app = app = FastAPI()
        install(app)

        @app.get("/v1/models/{name:path}")
        async def model(name: str) -> dict[str, str]:
            return {"name": name}

        @app.post("/v1/json")
        async def with_json(body: dict[str, Any] = BodyOf()) -> dict[str, int]:  # noqa: B008
            return {"fields": len(body)}

        @app.post("/v1/read")
        async def read(request: Request) -> dict[str, Any]:
            return {"bytes": len(await request.body()), "key": request.state.key}

        @app.post("/v1/scan")
        async def scan(request: Request) -> dict[str, bool]:
            future: Future[bool] = self.pool.submit(self.work)
            hold_while(future)
            return {"done": await asyncio.wrap_future(future)}

        @app.get("/v1/sleep")
        async def sleep() -> None:
            await asyncio.sleep(30)

        @app.get("/v1/fail")
        async def fail() -> None:
            raise ZeroDivisionError("secret")

        @app.get("/v1/half")
        async def half() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                yield b"half"
                raise ZeroDivisionError("secret")

            return StreamingResponse(parts())

        @app.get("/v1/timeout")
        async def timeout() -> None:
            raise TimeoutError("of something inside")

        @app.get("/v1/probes/{n}/image")
        async def image(n: int) -> Response:
            return Response(b"x", headers={"Cache-Control": "private", "X-Frame-Options": "SAMEORIGIN"})

        @app.get("/")
        @app.get("/web/{file:path}")
        @app.get("/healthz")
        @app.get("/readyz")
        @app.get("/favicon.ico")
        @app.get("/metrics")
        @app.get("/openapi2.json")
        async def plain() -> str:
            return "plain"

        self.guards = Guards(app, Settings(index=index, **given), self.metrics)

    def work(self) -> bool:
        self.began.release()
        return self.release.wait(10)

    def client(self, host: str = "localhost") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.guards, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")

    def ask(self, method: str, path: str, host: str = "localhost", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with self.client(host) as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def counted(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.metrics.render()[0].decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0.0


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made: list[Guarded] = []

    def make(**given: Any) -> Guarded:
        made.append(Guarded(tmp_path, **given))
        return made[-1]

    yield make
    for each in made:
        each.release.set()
        each.pool.shutdown()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice {ALICE}\nbob {BOB}\n")
    return path


Make = Callable[..., Guarded]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == answer.status_code
    assert told["instance"] == answer.headers["x-request-id"]
    return str(told["type"]).removeprefix("urn:hubhound:problem:")


# --- every answer ---


@pytest.mark.parametrize("path", ["/v1/models/a", "/v1/fail", "/v1/nowhere", "/nowhere", "/", "/healthz"])
def test_every_answer_has_an_id_and_makes_browsers_careful(make: Make, path: str) -> None:
    answer = make().ask("GET", path)
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers.get("cache-control") == ("no-store" if path.startswith("/v1/") else None)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_refusals_of_guards_have_them_too(make: Make) -> None:
    answer = make().ask("GET", "/v1/models/a", host="evil.example")
    assert problem(answer) == "unknown-host"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("origin", [None, "https://page.example", "https://other.example"])
@pytest.mark.parametrize("path", ["/", "/v1/models/a", "/v1/probes/3/image", "/v1/nowhere", "/v1/fail"])
def test_answers_vary_by_origin_where_some_may_read_them(make: Make, path: str, origin: str | None) -> None:
    """A cache that kept the answer for nobody, without Access-Control-Allow-Origin, would break the allowed page."""
    headers = {"Origin": origin} if origin else {}
    open_to_some = make(cors_origin=("https://page.example",)).ask("GET", path, headers=headers)
    assert open_to_some.headers.get_list("vary") == ["Origin"]
    assert "origin" not in make().ask("GET", path, headers=headers).headers.get("vary", "").lower()


def test_a_route_may_say_otherwise(make: Make) -> None:
    answer = make().ask("GET", "/v1/probes/3/image")
    assert answer.headers["cache-control"] == "private"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-DEF_123", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("é", False)],
)
def test_the_id_of_a_client_is_taken_over_if_it_is_harmless(make: Make, given: str, kept: bool) -> None:
    answer = make().ask("GET", "/v1/nowhere", headers={b"X-Request-ID": given.encode("latin-1")})
    assert (answer.headers["x-request-id"] == given) == kept
    assert problem(answer) == "not-found"


def test_what_fails_is_told_by_its_id_only_and_logged_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    answer = make().ask("GET", "/v1/fail")
    assert problem(answer) == "internal"
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert answer.headers["x-request-id"] in record.getMessage()


def test_a_timeout_inside_the_app_is_not_ours(make: Make) -> None:
    assert problem(make().ask("GET", "/v1/timeout")) == "internal"


def test_an_answer_that_breaks_in_the_middle_is_not_finished(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A client must not take the half for the whole: without its last part the server closes the connection."""
    guarded, sent = make(), []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded.guards(scope("GET", "/v1/half"), no_body(), send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"] is True
    assert len([record for record in caplog.records if record.exc_info]) == 1


def scope(method: str, path: str, *headers: tuple[bytes, bytes], host: bytes = b"localhost") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", host), *headers],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("10.1.2.3", 1),
    }


def no_body() -> Any:
    """A receive that has an empty body, and then nothing ever."""
    left = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return left.pop() if left else await asyncio.sleep(3600, {"type": "http.disconnect"})

    return receive


def test_routes_are_counted_by_template_and_what_is_none_under_one_name(make: Make) -> None:
    guarded = make()
    for name in ("a", "b/c", "d"):
        guarded.ask("GET", f"/v1/models/{name}")
        guarded.ask("GET", f"/nowhere/{name}")
        guarded.ask("GET", "/", host=f"{name[0]}.example")
    count = guarded.counted
    assert count("hubhound_http_requests_total", route="/v1/models/{name:path}", method="GET", status="200") == 3
    assert count("hubhound_http_requests_total", route="unmatched", method="GET", status="404") == 3
    assert count("hubhound_http_requests_total", route="refused", method="GET", status="421") == 3
    assert count("hubhound_http_rejected_total", reason="host") == 3
    assert "nowhere" not in guarded.metrics.render()[0].decode()


def test_a_line_of_the_log_holds_no_line_of_the_client(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        make().ask("GET", "/v1/models/%0afake%1b[31m" + "x" * 5000 + "?key=secret")
    facts = caplog.records[-1].facts  # type: ignore[attr-defined]
    assert facts["path"].startswith("/v1/models/ fake [31mxxx")
    assert len(facts["path"]) <= 200
    assert facts["status"] == 404  # a line break is in no name
    assert facts["key"] is None


def test_websockets_are_closed(make: Make) -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(make().guards({"type": "websocket", "path": "/v1/read", "headers": []}, no_body(), send))
    assert [message["type"] for message in sent] == ["websocket.close"]


# --- keys and rates ---


def test_all_but_the_page_and_the_probes_of_health_need_a_key(make: Make, keys: Path) -> None:
    guarded = make(api_key_file=keys)
    for path in ("/", "/web/app.js", "/healthz", "/readyz", "/favicon.ico"):
        assert guarded.ask("GET", path).status_code == 200
    for path in ("/v1/models/a", "/metrics", "/openapi.json", "/nowhere", "/webx", "/healthz/", "/Web/app.js"):
        answer = guarded.ask("GET", path)
        assert problem(answer) == "unauthorised"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.ask("GET", "/metrics", headers=bearer(BOB)).status_code == 200
    wrong = guarded.ask("GET", "/v1/models/a", headers=bearer(BOB + "x"))
    assert problem(wrong) == "unauthorised"
    assert guarded.counted("hubhound_http_rejected_total", reason="unauthorised") == 8


def test_the_app_knows_whose_key_it_was(make: Make, keys: Path) -> None:
    assert make(api_key_file=keys).ask("POST", "/v1/read", headers=bearer(BOB)).json()["key"] == "bob"
    assert make().ask("POST", "/v1/read", headers=bearer(BOB)).json()["key"] is None


def test_fifty_clients_get_exactly_what_the_bucket_holds(
    make: Make, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(guards_module, "RateLimit", frozen_rates(now))
    guarded = make(api_key_file=keys, rate_limit=120)

    async def storm(key: str, clients: int) -> list[httpx.Response]:
        async with guarded.client() as client:
            asked = [client.get("/v1/models/a", headers=bearer(key)) for _ in range(clients)]
            return list(await asyncio.gather(*asked))

    answers = asyncio.run(storm(ALICE, 50))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 30
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert problem(refused) == "rate-limited"
    assert refused.headers["retry-after"] == "1"  # half a second, in whole ones
    assert sum(answer.status_code == 200 for answer in asyncio.run(storm(BOB, 50))) == 20  # another bucket
    now[0] += 3
    assert sum(answer.status_code == 200 for answer in asyncio.run(storm(ALICE, 50))) == 6
    assert guarded.counted("hubhound_http_rejected_total", reason="rate") == 30 + 30 + 44


def frozen_rates(now: list[float]) -> Any:
    from query.api.rates import RateLimit

    return lambda per_minute: RateLimit(per_minute, lambda: now[0])


def test_wrong_keys_use_up_nobodys_bucket(make: Make, keys: Path) -> None:
    guarded = make(api_key_file=keys, rate_limit=0.001)
    for _ in range(50):
        assert guarded.ask("GET", "/v1/models/a", headers=bearer("x" * 20)).status_code == 401
    assert guarded.ask("GET", "/v1/models/a", headers=bearer(ALICE)).status_code == 200


def test_without_keys_strangers_are_limited_by_address_and_this_machine_is_not(make: Make) -> None:
    strangers = make(host="0.0.0.0", insecure=True, rate_limit=0.001)  # noqa: S104
    statuses = [strangers.ask("GET", "/v1/models/a").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert strangers.ask("GET", "/healthz").status_code == 200
    here = make(rate_limit=0.001)
    assert {here.ask("GET", "/v1/models/a").status_code for _ in range(12)} == {200}


def test_thumbnails_cost_a_twentieth(make: Make, keys: Path) -> None:
    guarded = make(api_key_file=keys, rate_limit=0.001)
    statuses = [guarded.ask("GET", "/v1/probes/3/image", headers=bearer(ALICE)).status_code for _ in range(201)]
    assert statuses == [200] * 200 + [429]
