"""The listing of a hub over real HTTP that is not to be trusted."""

import json
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import huggingface_hub
import pytest

from engine.errors import HubhoundError, InputError, ModelError, Reason
from indexers.crawl import hub_source
from indexers.crawl.filters import Filters
from indexers.crawl.hub_entry import entry_of
from indexers.crawl.hub_source import HubSource
from indexers.crawl.listing import CursorExpiredError, PassingError
from tests.support.hub_server import HubServer

SHA = "0123456789" * 4


def make_model(root, repo, note=0, task="image-classification", **card):
    """A repository with nothing but a card and a config; another note is another revision."""
    folder = root / "models" / repo
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}: {value}" for name, value in {"pipeline_tag": task, **card}.items() if value is not None]
    (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    (folder / "config.json").write_text(f'{{"note": {note}}}')
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for i in range(5):
        make_model(tmp_path / "hub", f"org/m{i}", i)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    with HubServer(tmp_path / "hub", page=2) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def stranger(tmp_path):
    """Another host, which must never hear of us."""
    with HubServer(tmp_path / "stranger") as server:
        yield server


def listed(source, cursor=None, newest_first=False):
    return [entry.repo for page in source.pages(cursor, newest_first) for entry in page.entries]


def test_pages_and_cursors(hub):
    for i in range(5):
        hub.touch(f"org/m{i}", created=f"2026-01-0{i + 1}T00:00:00.000Z", modified=f"2026-02-0{5 - i}T00:00:00.000Z")
    source = HubSource(Filters())
    assert source.name.startswith(f"hub:{hub.url}?task=image-classification")
    pages = list(source.pages(None, newest_first=False))
    assert [[entry.repo for entry in page.entries] for page in pages] == [
        ["org/m4", "org/m3"],
        ["org/m2", "org/m1"],
        ["org/m0"],
    ]
    assert pages[-1].cursor is None
    assert listed(source, pages[0].cursor) == ["org/m2", "org/m1", "org/m0"]
    assert listed(source, newest_first=True) == ["org/m0", "org/m1", "org/m2", "org/m3", "org/m4"]
    first = pages[0].entries[0]
    assert (first.revision, first.modified) == (hub.commit_of("org/m4"), "2026-02-01T00:00:00.000Z")


def test_what_is_asked_for(hub):
    make_model(hub.root, "org/other", task="object-detection")
    make_model(hub.root, "other/m", tags="[medical, vision]", license="mit", library_name="timm")
    make_model(hub.root, "other/zero", task="zero-shot-image-classification")
    hub.facts["other/m"] = {"downloads": 7, "likes": 3, "gated": "auto"}
    assert listed(HubSource(Filters(author="other"))) == ["other/m"]
    query = parse_qs(hub.requests[-1].query)
    assert (query["author"], query["pipeline_tag"], query["limit"]) == (["other"], ["image-classification"], ["1000"])
    source = HubSource(Filters(tags=("medical", "vision"), licences=("mit",)), page=3)
    (entry,) = next(source.pages(None, newest_first=True)).entries
    assert parse_qs(hub.requests[-1].query)["filter"] == ["medical", "vision"]
    assert parse_qs(hub.requests[-1].query)["limit"] == ["3"]
    assert entry.gated
    stated = entry.metadata
    assert (stated.licence, stated.tags, stated.library) == ("mit", ("medical", "vision"), "timm")
    assert (stated.downloads, stated.likes) == (7, 3)
    assert listed(HubSource(Filters(task="zero-shot-image-classification"))) == ["other/zero"]
    # A hub that does not mind what it is asked for: the same link without the task.
    everything = f"{hub.url}/api/models?expand=sha&expand=pipeline_tag&expand=tags"
    assert sorted(listed(HubSource(Filters()), everything)) == [*(f"org/m{i}" for i in range(5)), "other/m"]


def test_sizes_are_those_of_the_weights():
    stated = {"parameters": {"F32": 1000, "I64": 10}, "total": 1010}
    entry = entry_of({"id": "org/m", "sha": SHA, "safetensors": stated, "usedStorage": 10**9})
    assert (entry.parameters, entry.size_bytes) == (1010, 4080)
    unknown = entry_of({"id": "org/m", "sha": SHA, "safetensors": {"parameters": {"X1": 5}, "total": 5}})
    assert (unknown.parameters, unknown.size_bytes) == (5, None)


@pytest.mark.parametrize(
    "wrong",
    [
        None, 7, "org/m", [], {}, {"id": None}, {"id": 5}, {"id": "org"}, {"id": "../x"}, {"id": "org/.."},
        {"id": "/etc/x"}, {"id": "a/b/c"}, {"id": "org/a b"}, {"id": "org/a\x1b[31m"}, {"id": "org/\n"},
        {"id": "org/m\n"}, {"id": "org/\ud800"}, {"id": "org/\uff41"}, {"id": "x" * 5000 + "/" + "y" * 5000},
        {"id": "org/m.git"}, {"id": "org/-m"}, {"id": ["org/m"]}, {"sha": None}, {"sha": 5}, {"sha": ""},
        {"sha": "main"}, {"sha": SHA.upper() + "A"}, {"sha": SHA[:-1]}, {"sha": "../../" + SHA[6:]},
        {"sha": SHA + "\n"},
    ],
)  # fmt: skip
def test_entries_that_cannot_be(wrong):
    assert entry_of({"id": "org/m", "sha": SHA}) is not None
    assert entry_of({"id": "org/m", "sha": SHA, **wrong} if isinstance(wrong, dict) and wrong else wrong) is None


@pytest.mark.parametrize("value", [None, 5, -1, True, 2**63, 1.5, "", "\x00", "\ud800", [], [None, 5], {}, {"a": []}])
def test_nonsense_in_what_is_stated_counts_as_not_stated(value):
    names = ("lastModified", "library_name", "tags", "downloads", "likes", "safetensors", "cardData", "pipeline_tag")
    for name in names:
        entry = entry_of({"id": "org/m", "sha": SHA, name: value})
        count = 5 if value == 5 and value is not True else None
        assert entry.modified is None
        assert entry.metadata.tags == ()
        assert entry.metadata.downloads == (count if name == "downloads" else None)
        assert entry.metadata.library is None
        assert (entry.parameters, entry.size_bytes, entry.metadata.licence) == (None, None, None)
    deep = {"parameters": {"F32": 2**62, "F16": -1}, "total": "many"}
    assert entry_of({"id": "org/m", "sha": SHA, "safetensors": deep}).size_bytes is None
    card = {"license": ["mit", value]}
    assert entry_of({"id": "org/m", "sha": SHA, "cardData": card}).metadata.licence in ("mit", None)


def test_a_date_in_the_future_is_none():
    later = datetime.now(UTC) + timedelta(days=3)
    assert entry_of({"id": "org/m", "sha": SHA, "lastModified": later.isoformat()}).modified is None
    assert entry_of({"id": "org/m", "sha": SHA, "lastModified": "2026-01-01T01:00:00+01:00"}).modified == (
        "2026-01-01T00:00:00.000Z"
    )


def test_broken_entries_are_counted_and_the_others_are_listed(hub):
    hub.facts["org/m0"] = {"id": "../../etc"}
    hub.facts["org/m1"] = {"sha": None}
    hub.facts["org/m2"] = {"tags": "all", "library_name": 7, "lastModified": 12, "safetensors": [], "downloads": "lots"}
    pages = list(HubSource(Filters()).pages(None, newest_first=False))
    assert sum(page.broken for page in pages) == 2
    assert sorted(entry.repo for page in pages for entry in page.entries) == ["org/m2", "org/m3", "org/m4"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 0])
def test_what_passes(hub, status):
    source = HubSource(Filters())
    with hub.failing("/api/models", status=status), pytest.raises(PassingError) as caught:
        listed(source)
    assert "\n" not in caught.value.detail
    assert not caught.value.limited
    assert len(listed(source)) == 5


@pytest.mark.parametrize("fault", [{"cut": 10}, {"reset": True}, {"cut": 10, "reset": True}])
def test_connections_that_break_pass(hub, fault):
    source = HubSource(Filters())
    with hub.failing("/api/models", **fault), pytest.raises(PassingError):
        listed(source)
    assert len(listed(source)) == 5


def test_no_hub_there_passes(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PassingError):
        listed(HubSource(Filters()))


@pytest.mark.parametrize(
    "headers, least_s, most_s",
    [
        ({"Retry-After": "17"}, 17, 17),
        ({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=7200), usegmt=True)}, 3000, 7200),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55, 55),
        ({"Retry-After": "soon"}, None, None),
    ],
)
def test_the_wait_that_the_hub_asks_for(hub, headers, least_s, most_s):
    with hub.failing("/api/models", status=429, headers=headers), pytest.raises(PassingError) as caught:
        listed(HubSource(Filters()))
    asked_s = caught.value.retry_after_s
    assert asked_s is None if least_s is None else least_s <= asked_s <= most_s


@pytest.mark.parametrize("status", [400, 410])
def test_cursors_expire(hub, status):
    source = HubSource(Filters())
    cursor = next(source.pages(None, False)).cursor
    hub.expire_cursors(status)
    with pytest.raises(CursorExpiredError):
        listed(source, cursor)
    with pytest.raises(CursorExpiredError):
        listed(source, f"{hub.url}/api/models?cursor=nonsense")


@pytest.mark.parametrize(
    "status, said", [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (400, "HF_ENDPOINT"), (404, "HF_ENDPOINT")]
)
def test_a_hub_that_refuses(hub, status, said):
    with hub.failing("/api/models", status=status), pytest.raises(HubhoundError, match=said) as caught:
        listed(HubSource(Filters()))
    assert "\n" not in str(caught.value)


class Fixed(BaseHTTPRequestHandler):
    """Always gives the same answer."""

    def do_GET(self):
        self.send_response(200)
        for name, value in self.server.fixed_headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            for part in self.server.fixed_body:
                self.wfile.write(part)

    def log_message(self, format, *args):
        pass


@contextmanager
def always(body, monkeypatch, **headers):
    with HTTPServer(("127.0.0.1", 0), Fixed) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        server.fixed_body = [body] if isinstance(body, bytes) else body
        server.fixed_headers = {name: value.format(url=url) for name, value in headers.items()}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield
        server.shutdown()
        thread.join()


NONSENSE = (
    b"", b"<html>", b'{"a": "no"}', b"[" * 100_000, b"[" + b"1" * 5000 + b"]x", b"\xff\xfe", b'[{"id": "m"', b"null",
)  # fmt: skip


@pytest.mark.parametrize("body", NONSENSE)
def test_nonsense_instead_of_a_listing(monkeypatch, body):
    with always(body, monkeypatch), pytest.raises(PassingError) as caught:
        listed(HubSource(Filters()))
    assert caught.value.limited


def test_an_answer_without_end(monkeypatch):
    monkeypatch.setattr(hub_source, "MAX_ANSWER_BYTES", 2**20)
    with always((b" " * 65536 for _ in range(1000)), monkeypatch), pytest.raises(PassingError, match="MiB"):
        listed(HubSource(Filters()))
    monkeypatch.setattr(hub_source, "ANSWER_TIMEOUT_S", 0.2)

    def drops():
        for _ in range(100):
            time.sleep(0.02)
            yield b" "

    with always(drops(), monkeypatch), pytest.raises(PassingError, match="took more than"):
        listed(HubSource(Filters()))


def test_a_listing_that_leads_to_itself(monkeypatch):
    with always(b"[]", monkeypatch, Link='<{url}/api/models?cursor=1>; rel="next"'):
        source = HubSource(Filters())
        with pytest.raises(HubhoundError, match="never ends"):
            listed(source)
    with always(b"[]", monkeypatch, Link='garbage,;;= <x>; rel=next", <'):
        assert listed(HubSource(Filters())) == []


class Circle(BaseHTTPRequestHandler):
    """Every page leads to one that follows it, and after the last of the circle comes the first."""

    def do_GET(self):
        number = int(parse_qs(self.path.partition("?")[2]).get("cursor", ["0"])[0])
        self.server.asked.append(number)
        after = number + 1 if self.server.circle is None else (number + 1) % self.server.circle
        self.send_response(200)
        self.send_header("Link", f'<http://{self.headers["Host"]}/api/models?cursor={after}>; rel="next"')
        self.end_headers()
        named = number % 3 if self.server.circle is None else number
        task = "image-classification"
        self.wfile.write(json.dumps([{"id": f"org/m{named}", "sha": SHA, "pipeline_tag": task}]).encode())

    def log_message(self, format, *args):
        pass


@pytest.mark.parametrize("circle", [2, 7, None])
def test_links_in_a_circle(monkeypatch, circle):
    with HTTPServer(("127.0.0.1", 0), Circle) as server:
        server.asked, server.circle = [], circle
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(HubhoundError, match="never ends") as caught:
            for count, _ in enumerate(HubSource(Filters()).pages(None, newest_first=False)):
                assert count < 200, "it goes on and on"
        server.shutdown()
        thread.join()
    assert "\n" not in str(caught.value)
    # A circle shows when it closes; new links to the same three models after fifty pages that name nothing new.
    assert len(server.asked) == (53 if circle is None else circle + 1)


def test_redirects_in_a_circle(hub):
    there = {"Location": f"{hub.url}/api/models"}
    with hub.failing("/api/models", status=307, headers=there, times=-1), pytest.raises(PassingError) as caught:
        listed(HubSource(Filters()))
    assert caught.value.limited
    assert len(hub.requests) == 6


ELSEWHERE = (
    "{stranger}/api/models?cursor=1", "//{bare}/api/models", "{hub}@{bare}/", "ftp://{host}/x", "http://[::1", "http://h\\@x",
    "https://{host}/api/models", "http://user:word@{host}/api/models", "\x01", "http://{host}/" + "x" * 9000,
)  # fmt: skip


@pytest.mark.parametrize("header", ["Link", "Location"])
def test_links_to_elsewhere_are_not_followed(hub, stranger, monkeypatch, header):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    host, bare = hub.url.removeprefix("http://"), stranger.url.removeprefix("http://")
    source = HubSource(Filters())
    for link in ELSEWHERE:
        there = link.format(stranger=stranger.url, hub=hub.url, host=host, bare=bare)
        headers = {"Link": f'<{there}>; rel="next"'} if header == "Link" else {"Location": there}
        with hub.failing("/api/models", status=200 if header == "Link" else 302, headers=headers, times=2):
            with pytest.raises(HubhoundError, match="HF_ENDPOINT") as caught:
                listed(source)
            assert str(caught.value).isprintable()
            if header == "Location":
                with pytest.raises(HubhoundError, match="HF_ENDPOINT"):
                    source.check("org/m1")
    # Nor is a cursor, whoever wrote it into the journal.
    with pytest.raises(HubhoundError, match="HF_ENDPOINT"):
        listed(source, f"{stranger.url}/api/models")
    assert stranger.requests == []


def test_the_token_goes_to_the_hub(hub, monkeypatch):
    hub.private.add("org/m1")
    assert "org/m1" not in listed(HubSource(Filters()))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "org/m1" in listed(HubSource(Filters()))
    assert hub.requests[-1].headers["authorization"] == f"Bearer {hub.token}"
    assert "hubhound" in hub.requests[-1].headers["user-agent"]


def test_looking_one_model_up(hub, monkeypatch):
    source = HubSource(Filters())
    assert source.check("org/m1").revision == hub.commit_of("org/m1")
    assert len(hub.requests) == 1
    hub.gated.add("org/m1")
    assert source.check("org/m1").gated
    hub.private.add("org/m1")
    assert source.check("org/m1") is None
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert source.check("org/m1") is not None
    make_model(hub.root, "org/m2", task="object-detection")
    assert source.check("org/m2") is None
    shutil.rmtree(hub.root / "models" / "org" / "m3")
    assert source.check("org/m3") is None
    hub.renamed["old/m4"] = "org/m4"
    assert source.check("old/m4").repo == "org/m4"


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 404}, {"status": 429}, {"status": 0}, {"cut": 5}, {"status": 200}]
)
def test_what_does_not_mean_that_a_model_is_gone(hub, fault):
    with hub.failing("/api/models/org/m1", **fault), pytest.raises(ModelError) as caught:
        HubSource(Filters()).check("org/m1")
    assert caught.value.reason is Reason.NETWORK


def test_a_token_that_is_none_does_not_empty_the_index(hub):
    with hub.failing("/api/models/org/m1", status=401), pytest.raises(HubhoundError, match="HF_TOKEN") as caught:
        HubSource(Filters()).check("org/m1")
    assert not isinstance(caught.value, ModelError)


def test_renamed_in_a_circle(hub):
    hub.renamed.update({"org/a": "org/b", "org/b": "org/a"})
    with pytest.raises(ModelError) as caught:
        HubSource(Filters()).check("org/a")
    assert caught.value.reason is Reason.NETWORK


def test_settings_that_cannot_be(hub, monkeypatch):
    with pytest.raises(InputError, match="1 to 1000"):
        HubSource(Filters(), page=0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        listed(HubSource(Filters()))
    for wrong in ("hub", "ftp://hub", "http://", "http://a b", "http://user@hub"):
        monkeypatch.setenv("HF_ENDPOINT", wrong)
        with pytest.raises(InputError, match="HF_ENDPOINT"):
            HubSource(Filters())
