"""What a stranger answers in a Hub's place, or has written into a model's files: it becomes a ModelError or nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from engine.errors import ModelError, ModelFailedError, ModelRefusedError, Reason, one_line
from engine.schema import Model
from engine.writer import IndexWriter
from indexers import folders, hub, vlm_files
from indexers.crawl.fetching import ClassifierFiles
from indexers.identity import identity_of
from indexers.keeping import describe_answers
from indexers.loaders.base import Metadata
from indexers.loaders.declined import Declined, first_line
from indexers.loaders.layout import MAX_JSON_BYTES, Weights, library_of, shards_of
from tests.support.small_index import N, make_index

SHA = "0123456789" * 4
FILES = [
    {"rfilename": "config.json", "size": 10, "blobId": "b" * 40},
    {"rfilename": "model.safetensors", "size": 100, "lfs": {"sha256": "c" * 64, "size": 100, "pointerSize": 130}},
]
GOOD = {"id": "org/m", "sha": SHA, "siblings": FILES, "tags": ["x"], "downloads": 1, "likes": 2, "library_name": "timm"}


class Stranger(BaseHTTPRequestHandler):
    """Says of every model what it was told to; of a file that it has so many bytes, and sends others."""

    def do_GET(self) -> None:
        server: Any = self.server
        if self.path.startswith("/api/models/"):
            self._begin(200, len(server.says))
            self.wfile.write(server.says)
        elif "/resolve/" in self.path:
            self._begin(200, len(server.sends) * server.times)
            with suppress(OSError):
                for _ in range(server.times if self.command == "GET" else 0):
                    self.wfile.write(server.sends)
                    server.sent += len(server.sends)
                    server.go_on.wait(server.pause_s)
        else:
            self._begin(404, 0)

    do_HEAD = do_GET

    def _begin(self, status: int, size: int) -> None:
        self.send_response(status)
        self.send_header("ETag", '"' + "a" * 64 + '"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        made: Any = server
        made.says, made.sends, made.times, made.pause_s, made.sent = b"", b"x" * 1000, 50, 0.0, 0
        made.go_on = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield made
        made.go_on.set()
        server.shutdown()
        thread.join()
    huggingface_hub.close_session()


def with_file(**changed: Any) -> dict[str, Any]:
    return {**GOOD, "siblings": [FILES[0], {**FILES[1], **changed}]}


NONSENSE = {
    "a page to log in": b"<html>",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "a long number": json.dumps(GOOD).replace('"likes": 2', '"likes": ' + "9" * 5000).encode(),
    **{f"{value}": json.dumps(value).encode() for value in ([], None, 5, "text", {}, {**GOOD, "siblings": "x"})},
    "no file": {**GOOD, "siblings": [None]},
    "no name": {**GOOD, "siblings": [{}]},
    "a number for a name": with_file(rfilename=5),
    "a list for a name": with_file(rfilename=["x"]),
    "no sha256": with_file(lfs={"size": 1}),
    "a text for lfs": with_file(lfs="x"),
    "a number for sha256": with_file(lfs={"size": 1, "sha256": 5, "pointerSize": 1}),
    "a text for a size": with_file(size="100"),
    "less than nothing": with_file(size=-5_000_000),
    "half a byte": with_file(size=1.5),
    "a number for a blob": with_file(lfs=None, blobId=7),
    "a text for a card": {**GOOD, "cardData": "x"},
    "a day": {**GOOD, "lastModified": "yesterday"},
    "a number for a sha": {**GOOD, "sha": 5},
    "a path for a sha": {**GOOD, "sha": "../../etc"},
    "half a sha": {**GOOD, "sha": SHA[:20]},
    "no sha": {**GOOD, "sha": None},
    "another sha": {**GOOD, "sha": "f" * 40},
    "itself": {**GOOD, "self": 1},
    "a number of safetensors": {**GOOD, "safetensors": 5},
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=[name[:30] for name in NONSENSE])
def test_nonsense_passes(stranger: Any, said: bytes | dict[str, Any]) -> None:
    stranger.says = json.dumps(GOOD).encode()
    assert hub.survey("org/m", SHA, waits_s=()).most_bytes(allow_pickle=False) == 110
    stranger.says = said if isinstance(said, bytes) else json.dumps(said).encode()
    with pytest.raises(ModelFailedError) as caught:
        hub.survey("org/m", SHA, waits_s=())
    assert (caught.value.reason, caught.value.revision) == (Reason.NETWORK, SHA)
    assert "\n" not in str(caught.value)


def test_nonsense_about_a_branch(stranger: Any) -> None:
    stranger.says = json.dumps(GOOD).encode()
    assert hub.revision_of("org/m", "main", waits_s=())[0] == SHA
    for said in (b"<html>", b"[]", json.dumps({**GOOD, "sha": "main"}).encode()):
        stranger.says = said
        with pytest.raises(ModelFailedError, match="nonsense") as caught:
            hub.revision_of("org/m", "main", waits_s=())
        assert caught.value.reason is Reason.NETWORK


@pytest.mark.parametrize(
    "said, expected",
    [
        ({}, Metadata(None, ("x",), 1, 2, "timm")),
        ({"tags": ["a", 5, "\ud800", "b\0", "y" * 201, "z"]}, Metadata(None, ("a", "z"), 1, 2, "timm")),
        ({"tags": "text"}, Metadata(None, (), 1, 2, "timm")),
        ({"tags": ["t"] * 300}, Metadata(None, ("t",) * 200, 1, 2, "timm")),
        ({"downloads": -1, "likes": "many"}, Metadata(None, ("x",), None, None, "timm")),
        ({"downloads": True, "likes": 2**63}, Metadata(None, ("x",), None, None, "timm")),
        ({"library_name": 5}, Metadata(None, ("x",), 1, 2, None)),
        ({"library_name": "l" * 201}, Metadata(None, ("x",), 1, 2, None)),
        ({"cardData": {"license": "\ud800"}}, Metadata(None, ("x",), 1, 2, "timm")),
        ({"cardData": {"license": "m" * 10_000_000}}, Metadata(None, ("x",), 1, 2, "timm")),
        ({"cardData": {"license": ["mit", "\ud800"]}}, Metadata("mit", ("x",), 1, 2, "timm")),
    ],
)
def test_what_of_its_word_is_kept(stranger: Any, said: dict[str, Any], expected: Metadata) -> None:
    stranger.says = json.dumps({**GOOD, **said}).encode()
    found = hub.survey("org/m", SHA, waits_s=()).metadata
    assert found == expected
    assert hub.revision_of("org/m", None, waits_s=())[1] == expected
    Model(
        repo="org/m",
        revision=SHA,
        licence=found.licence,
        tags=found.tags,
        downloads=found.downloads,
        likes=found.likes,
        library=found.library,
    ).model_dump_json()


def test_files_that_nobody_can_name_are_not_there(stranger: Any) -> None:
    for name in ("x\ud800.safetensors", "a\0b", "n" * 1025):
        stranger.says = json.dumps({**GOOD, "siblings": [*FILES, {"rfilename": name, "size": 1}]}).encode()
        assert list(hub.survey("org/m", SHA, waits_s=()).files) == ["config.json", "model.safetensors"]


def plan(tmp_path: Path, stated: int | None) -> hub.Plan:
    files = {name: hub.RemoteFile(stated, None, None) for name in ("config.json", "model.safetensors")}
    found = hub.Survey("org/m", SHA, files, Metadata())
    return hub.Plan(found, tmp_path / "cache", Weights(("model.safetensors",)), None)


def test_more_than_is_stated(stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    stranger.times, stranger.pause_s = 2000, 0.001
    wanted = plan(tmp_path, 10_000)
    with pytest.raises(ModelFailedError, match="sends more than the 10000 bytes it states") as caught:
        hub.download(wanted, cache=cache, waits_s=())
    assert caught.value.reason is Reason.CHECKSUM
    assert on_disk(cache) <= 12_000
    with pytest.raises(ModelFailedError, match=r"config\.json the Hub sends more") as caught:
        settle(wanted, cache)
    assert caught.value.reason is Reason.CHECKSUM
    # Where no size is stated there is a limit all the same.
    monkeypatch.setattr(hub, "MAX_JSON_BYTES", 20_000)
    with pytest.raises(ModelFailedError, match="more than the 20000"):
        settle(plan(tmp_path, None), tmp_path / "other")
    assert on_disk(tmp_path / "other") <= 22_000
    # What is as long as stated comes whole, also after what was too long.
    stranger.times, stranger.pause_s = 10, 0.0
    folder = hub.download(wanted, cache=tmp_path / "third", waits_s=()).folder
    assert folder == wanted.folder
    assert on_disk(tmp_path / "third") >= 10_000


def on_disk(folder: Path) -> int:
    """Bytes of the contents in a cache, whole and incomplete."""
    return sum(path.stat().st_size for path in folder.rglob("blobs/*"))


def settle(wanted: hub.Plan, cache: Path, progress: hub.Progress | None = None) -> hub.Plan:
    return hub.settle(
        wanted.survey, max_size_bytes=10**9, allow_pickle=False, cache=cache, waits_s=(), progress=progress
    )


@pytest.mark.parametrize("small", [False, True])
def test_a_file_that_trickles_ends_when_its_time_is_over(stranger: Any, tmp_path: Path, small: bool) -> None:
    stranger.pause_s = 0.1
    started = time.monotonic()

    def watch(_here: int, _total: int) -> None:
        if time.monotonic() > started + 0.5:
            raise TimeoutError("its time is over")

    with pytest.raises(ModelFailedError, match="time is over"):
        if small:
            settle(plan(tmp_path, 50_000), tmp_path / "cache", watch)
        else:
            hub.download(plan(tmp_path, 50_000), cache=tmp_path / "cache", progress=watch, waits_s=())
    assert time.monotonic() - started < 3.0  # it would have taken 5
    assert stranger.sent < 40_000


def test_small_files_of_a_vision_language_model_tell_of_themselves(stranger: Any, tmp_path: Path) -> None:
    stranger.times, seen = 1, []
    files = {name: hub.RemoteFile(1000, None, None) for name in (vlm_files.CONFIG, vlm_files.SAFE_WEIGHTS[0])}
    found = hub.Survey("org/m", SHA, files, Metadata())

    def watch(*step: int) -> None:
        seen.append(step)

    with pytest.raises(ModelError) as caught:  # a thousand times x is no config
        vlm_files.settle(
            found, max_size_bytes=10**9, allow_pickle=False, cache=tmp_path / "cache", waits_s=(), progress=watch
        )
    assert caught.value.reason is Reason.BROKEN_CONFIG
    assert len(seen) >= 2
    assert set(seen) == {(0, 0)}


@pytest.mark.parametrize(
    "text, line",
    [
        ("plain: try again", "plain: try again"),
        ("two\nlines\r\nand\ttabs", "two lines and tabs"),
        ("a\ud800b\udfff", "a\ufffdb\ufffd"),
        ("\x1b[31mred\x00\u202e", "[31mred"),
        ("é 模型 😀", "é 模型 😀"),
        ("", ""),
        ("x" * 300, "x" * 300),
        ("x" * 20_000_000, "x" * 299 + "…"),
    ],
)
def test_a_detail_is_one_line_that_can_be_kept(text: str, line: str) -> None:
    assert one_line(text) == line
    for error in (
        ModelFailedError(Reason.MISSING, text, "org/m", SHA),
        ModelRefusedError(Reason.GATED, text, "org/m"),
        Declined(Reason.MISSING, text),
    ):
        assert error.detail == line
        str(error).encode()
    assert len(first_line(ValueError(text))) <= 300
    first_line(ValueError(text)).encode()


@pytest.mark.parametrize("name", ["\ud800Foo", "x" * 20_000_000, "a\nb"])
def test_names_in_configs_do_not_reach_the_index(tmp_path: Path, name: str) -> None:
    with pytest.raises(Declined) as caught:
        library_of({"model_type": "x", "architectures": [name]}, [])
    assert (len(caught.value.detail) <= 300, caught.value.reason) == (True, Reason.NOT_A_CLASSIFIER)
    caught.value.detail.encode()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(Declined, match="which the repository does not have") as caught:
        shards_of(index, [])
    caught.value.detail.encode()


def nested(depth: int) -> dict[str, Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return {"architecture": "resnet18", "x": inner}


def test_configs_that_nest_deeply(tmp_path: Path) -> None:
    assert identity_of(nested(10), {}, ["a"]) is not None
    with pytest.raises(Declined, match="nested too deeply") as caught:
        identity_of(nested(5000), {}, ["a"])
    assert caught.value.reason is Reason.BROKEN_CONFIG
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": ' + "[" * 500 + "]" * 500 + "}}")
    with pytest.raises(Declined, match="no text"):
        shards_of(index, [])


def test_text_towers_that_cannot_be() -> None:
    parts = {"vision_cfg": {}, "text_cfg": {"hf_model_name": nested(5000)["x"]}}
    with pytest.raises(Declined) as caught:
        vlm_files.text_config_of({"model_cfg": parts}, [])
    assert caught.value.reason is Reason.BROKEN_CONFIG
    with pytest.raises(Declined) as caught:
        vlm_files.check_text_config({"auto_map": {"a": "b"}, "model_type": ["x"]})
    assert caught.value.reason is Reason.BROKEN_CONFIG


@pytest.mark.parametrize(
    "columns, said",
    [
        ("11", "all 2 outputs are the same for every probe"),
        ("ii", "all 2 outputs are NaN or infinite"),
        ("1i", "all 2 outputs are the same for every probe or NaN or infinite"),
    ],
)
def test_one_infinite_answer_is_not_the_same_for_every_probe(tmp_path: Path, columns: str, said: str) -> None:
    make_index(tmp_path / "index")
    infinite = np.random.default_rng(0).standard_normal(N)
    infinite[0] = np.inf
    values = np.stack([np.ones(N) if kind == "1" else infinite for kind in columns], axis=1).astype(np.float32)
    with (
        IndexWriter(tmp_path / "index") as writer,
        np.errstate(all="ignore"),
        pytest.raises(ModelFailedError) as caught,
    ):
        describe_answers(writer, Model(repo="org/m", revision=SHA), ("a", "b"), values)
    assert (caught.value.reason, caught.value.detail) == (Reason.NO_USABLE_OUTPUT, said)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "org" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def in_folder(folder: Path) -> str | None:
    how = {"max_size_bytes": 10**9, "allow_pickle": False}
    return ClassifierFiles().in_folder("org/m", SHA, folder, **how)[1]  # type: ignore[arg-type]


def broken(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        in_folder(folder)
    assert (caught.value.model, caught.value.revision) == ("org/m", SHA)
    return caught.value


def test_a_folder_with_what_no_model_has(local: Path) -> None:
    assert in_folder(local) is not None
    large = local / "preprocessor_config.json"
    large.touch()
    os.truncate(large, 3 * 2**30)  # takes no room
    assert broken(local).reason is Reason.BROKEN_CONFIG
    large.unlink()
    os.mkfifo(large)
    assert in_folder(local) is not None
    (local / "config.json").unlink()
    os.mkfifo(local / "config.json")
    assert "is no file" in broken(local).detail
    (local / "config.json").unlink()
    (local / "config.json").write_text(
        json.dumps({"architecture": "resnet18"})[:-1] + ', "x": ' + "[" * 989 + "]" * 989 + "}"
    )
    assert broken(local).reason is Reason.BROKEN_CONFIG


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "."])
def test_a_folder_that_changes_meanwhile(local: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    check = folders.fetch

    def fetch(*args: Any, **how: Any) -> Any:
        found = check(*args, **how)
        shutil.rmtree(local) if gone == "." else (local / gone).unlink()
        return found

    monkeypatch.setattr(folders, "fetch", fetch)
    broken(local)


def test_a_card_that_goes_meanwhile(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local / "README.md").write_text("---\nlicense: mit\n---\n")
    is_file, asked = Path.is_file, 0

    def goes(path: Path) -> bool:
        nonlocal asked
        found = is_file(path)
        asked += path.name == "README.md"
        if path.name == "README.md" and asked == 3:  # after the two listings of the folder
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", goes)
    with pytest.raises(ModelFailedError) as caught:
        folders.fetch("org/m", SHA, local, max_size_bytes=10**9, allow_pickle=False)
    assert caught.value.reason is Reason.MISSING


def test_a_vision_language_folder_with_a_large_text_config(tmp_path: Path) -> None:
    parts = {"vision_cfg": {}, "text_cfg": {"hf_model_name": "x"}}
    (tmp_path / vlm_files.CONFIG).write_text(json.dumps({"model_cfg": parts}))
    (tmp_path / vlm_files.SAFE_WEIGHTS[0]).write_bytes(b"weights")
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", MAX_JSON_BYTES + 1)
    with pytest.raises(ModelFailedError, match="larger than 32 MiB") as caught:
        vlm_files.in_folder("org/m", SHA, tmp_path, max_size_bytes=10**9, allow_pickle=False)
    assert caught.value.reason is Reason.BROKEN_CONFIG
