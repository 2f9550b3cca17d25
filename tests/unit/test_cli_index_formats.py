"""``hubhound index`` for programs: one JSON object on standard output with what the text says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.descriptors import FloatArray, normalise
from engine.encoder import ConceptEncoder
from engine.index import Index
from engine.schema import Model
from engine.store.edge import EdgeStore
from engine.store.server_config import FORMAT
from engine.writer import IndexWriter
from query.cli.main import run
from tests.support.full_index import leave_strays, make_full_index
from tests.support.output_tables import fast_folder
from tests.support.servers import Addresses, server_addresses
from tests.support.small_index import D, PretendEncoder, make_filled_index, make_index, write_probe_images

Said = Callable[..., tuple[str, str]]


class LookingEncoder(PretendEncoder):
    """Sees something in any image."""

    def encode_images(
        self, images: Iterable[Image.Image], count: int, progress: Callable[[int], None] | None = None
    ) -> FloatArray:
        seeds = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") for image in images]
        return normalise(np.stack([np.random.default_rng(seed).standard_normal(D) for seed in seeds]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(Index, "load_encoder", lambda *_: LookingEncoder())
    monkeypatch.setattr(ConceptEncoder, "load", lambda *_: LookingEncoder())
    with fast_folder(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with fast_folder(tmp_path_factory.mktemp("made")) as made, server_addresses(made) as found:
        yield found


@pytest.fixture
def zoo(folder: Path) -> Path:
    return make_filled_index(folder / "zoo").folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def say(*arguments: object, status: int = 0) -> tuple[str, str]:
        assert run(["index", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        return out, err

    return say


def answer(said: Said, *arguments: object, status: int = 0) -> dict[str, Any]:
    """The JSON object that a command answers with."""
    value = json.loads(said(*arguments, "--format", "json", status=status)[0])
    assert isinstance(value, dict)
    return value


def phrases(folder: Path, count: int = 40) -> Path:
    path = folder / f"phrases{count}.txt"
    path.write_text("".join(f"phrase {i}\n" for i in range(count)))
    return path


def test_verify(zoo: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(said, "verify", "--index", zoo) == {"index": str(zoo), "whole": True, "problems": [], "repair": []}
    for form in ("table", "quiet"):
        assert said("verify", "--index", zoo, "--format", form) == ("", f"{zoo} is whole\n")
    for file in (zoo / "responses").iterdir():
        file.unlink()
    found = answer(said, "verify", "--index", zoo, status=1)
    assert found["whole"] is False
    assert len(found["problems"]) == 3
    assert all("its responses are missing" in problem for problem in found["problems"])
    for form in ("table", "quiet"):
        out, err = said("verify", "--index", zoo, "--format", form, status=1)
        assert out.splitlines() == found["problems"]
        assert err == f"hubhound: {zoo}: 3 problem(s), see above\n"
    monkeypatch.setenv("HUBHOUND_FORMAT", "json")
    assert json.loads(said("verify", "--index", zoo, status=1)[0]) == found


def test_repair(folder: Path, said: Said) -> None:
    zoo = make_full_index(folder / "full" / "zoo", models=1).folder
    found = answer(said, "verify", "--index", zoo, status=1)
    assert (len(found["problems"]), found["repair"]) == (1, [])
    assert "14 outputs of no model" in found["problems"][0]
    mended = answer(said, "verify", "--index", zoo, "--repair")
    assert (mended["whole"], mended["problems"]) == (True, [])
    told = "\n".join(mended["repair"])
    assert "org/stray@r1: 7 outputs" in told
    assert "zoo/both@r0: 7 outputs" in told
    assert said("verify", "--index", zoo, "--repair") == ("", f"{zoo} is whole\n")
    with EdgeStore.open(zoo / "store") as store:
        assert store.count_outputs() == 11
    leave_strays(zoo)
    out, err = said("verify", "--index", zoo, "--repair")
    assert out == ""
    assert err.splitlines() == [*mended["repair"], f"{zoo} is whole"]


def test_snapshot(zoo: Path, folder: Path, said: Said) -> None:
    empty = make_index(folder / "new" / "zoo").folder
    nothing = {"index": str(empty), "generation": 1, "outputs": 0, "models": 0}
    assert answer(said, "snapshot", "--index", empty) == nothing
    found = answer(said, "snapshot", "--index", zoo)
    assert found == {"index": str(zoo), "generation": Index(zoo).snapshot().number, "outputs": 14, "models": 3}
    out, err = said("snapshot", "--index", zoo, "--format", "quiet")
    number = Index(zoo).snapshot().number
    assert (out, err) == (f"{number}\n", f"generation {number}: 14 outputs of 3 models\n")


def test_calibrate(zoo: Path, folder: Path, said: Said) -> None:
    found = answer(said, "calibrate", "--index", zoo, "--background", phrases(folder))
    part = Index(zoo).manifest.background
    assert (found["index"], found["models"]) == (str(zoo), 3)
    assert found["background"] == part.model_dump(mode="json")
    assert (part.count, part.source) == (40, str(phrases(folder)))
    out, err = said("calibrate", "--index", zoo, "--background", phrases(folder, 50), "--format", "quiet")
    assert out == f"{Index(zoo).manifest.background.fingerprint}\n"
    assert f"{zoo}: 3 models calibrated against 50 phrases" in err


def test_create_and_rebuild(folder: Path, said: Said, addresses: Addresses) -> None:
    images = write_probe_images(folder / "images", 60)
    options = ("--probes", images, "--encoder", "pretend", "--top-r", 20, "--background", phrases(folder))
    for index in (str(folder / "made"), addresses()):
        found = answer(said, "create", "--index", index, *options)
        assert found["index"] == index
        assert found["manifest"]["probes"]["count"] == 60
        assert found["manifest"]["top_r"] == 20
        assert found["manifest"] == answer(said, "info", "--index", index)["manifest"]
        written = answer(said, "snapshot", "--index", index)
        assert (written["index"], written["outputs"], written["models"]) == (index, 0, 0)
    out, err = said("create", "--index", folder / "more", *options, "--format", "quiet")
    assert out == f"{folder / 'more'}\n"
    assert "60 probes" in err
    with IndexWriter(folder / "made") as writer:
        values = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
        table, left_out = writer.describe("org/a", "r", tuple("abcd"), values)
        writer.put(Model(repo="org/a", revision="r", outputs=len(table), left_out=left_out), table, values)
        writer.finish()
    found = answer(said, "rebuild", "--index", folder / "made", "--to", folder / "again", "--top-r", 10)
    assert found == {"index": str(folder / "made"), "to": str(folder / "again"), "models": 1}
    assert said("rebuild", "--index", folder / "made", "--to", folder / "third", "--format", "quiet")[0] == (
        f"{folder / 'third'}\n"
    )


def test_migrate(zoo: Path, said: Said, addresses: Addresses) -> None:
    assert answer(said, "migrate", "--index", zoo) == {"index": str(zoo), "from": 2, "to": 2, "changed": False}
    address = addresses()
    copied = answer(said, "copy", zoo, address)
    assert (copied["to"], copied["outputs"]) == (address, 14)
    same = {"index": address, "from": FORMAT, "to": FORMAT, "changed": False}
    assert answer(said, "migrate", "--index", address) == same
    assert said("migrate", "--index", address, "--format", "quiet")[0] == f"{FORMAT}\n"


def test_a_folder_is_not_spread(zoo: Path, folder: Path, said: Said) -> None:
    """One clear line, before anything is done."""
    backup = folder / "zoo.backup"
    said("backup", "--index", zoo, backup)
    made = ("--probes", folder / "none", "--encoder", "pretend")
    for target, command in [
        (folder / "a", ("copy", zoo, folder / "a")),
        (folder / "b", ("restore", backup, "--index", folder / "b")),
        (folder / "c", ("create", "--index", folder / "c", *made)),
        (folder / "d", ("rebuild", "--index", zoo, "--to", folder / "d")),
    ]:
        for option in ("--shards", "--replicas", "--write-consistency"):
            out, err = said(*command, option, 2, status=1)
            told = "--shards, --replicas and --write-consistency are for an index on a server, leave them out"
            assert (out, err) == ("", f"hubhound: {target} is a folder: {told}\n")
        assert not target.exists()
    _, err = said("copy", zoo, "qdrant://127.0.0.1:1/x", "--write-consistency", 2, status=1)
    assert "2 copies cannot acknowledge a write where there are 1" in err  # before the server is asked


def test_an_address_is_told_as_it_is_given(said: Said, addresses: Addresses, folder: Path) -> None:
    address = addresses()
    for command in (("copy", address, folder / "x"), ("backup", "--index", address, folder / "y")):
        _, err = said(*command, status=1)
        assert f"no index at {address}" in err
        assert "http://" not in err
        assert "index create" not in err  # who copies wants none
    _, err = said("info", "--index", f"{address}/", status=1)
    assert f"no index at {address}:" in err
    _, err = said("info", "--index", address.replace("//", "/"), status=1)
    assert "has no two slashes after the colon: use qdrant://HOST" in err
