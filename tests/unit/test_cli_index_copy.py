"""``hubhound index copy|backup|restore|export|migrate`` as a person meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.copy_source import MARKER
from engine.copy_stores import open_source
from engine.copy_target import _marker
from engine.files import write_json
from engine.store.address import ServerAddress
from engine.store.server_config import FORMAT
from engine.verify import verify
from query.cli.main import run
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.servers import Addresses, server_addresses


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo", models=1).folder


@pytest.fixture(scope="module")
def addresses(zoo: Path) -> Iterator[Addresses]:
    with server_addresses(zoo.parent / "server") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    with fast_folder(tmp_path) as made:
        yield made


def said(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert run([*map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if status:
        assert err.count("\n") == 1 and out == ""
    return out, err


def test_from_folder_to_backup_to_folder(zoo: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "index", "copy", zoo, folder / "copy")
    assert "outputs" in out and "read back and found equal" in err
    report = json.loads(said(capsys, "index", "backup", "--index", zoo, folder / "b", "--format", "json")[0])
    assert (report["outputs"], report["models"], report["profiles"], report["settled"]) == (11, 4, 3, True)
    assert report["to"] == str(folder / "b") and len(report["content"]) == 64 and report["seconds"] > 0
    assert set(report["parts"]) == {"outputs", "models", "profiles", "files"}
    again = said(capsys, "index", "restore", folder / "b", "--index", folder / "again", "--format", "quiet")[0]
    assert again.strip() == report["content"]
    assert verify(folder / "copy") == verify(folder / "again") == []
    lean = said(capsys, "index", "copy", zoo, folder / "lean", "--no-probes", "--format", "quiet")[0]
    assert lean.strip() == report["content"] and not (folder / "lean" / "probes").exists()


def test_an_export_for_people_and_for_programs(zoo: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "index", "export", "--index", zoo, "--parquet", folder / "tables")
    assert "performance" in out and "11" in out
    out, _ = said(capsys, "index", "export", "--index", zoo, "--parquet", folder / "x.parquet", "--format", "json")
    assert json.loads(out) == {"to": str(folder / "x.parquet"), "rows": {"outputs": 11}}
    assert pq.read_metadata(folder / "x.parquet").num_rows == 11
    _, err = said(capsys, "index", "export", "--index", zoo, "--parquet", folder / "x.parquet", status=1)
    assert "exists" in err


def test_what_cannot_be_done_is_told_in_one_line(zoo: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "letter").write_text("dear")
    for arguments, words in [
        (("copy", folder / "none", folder / "to"), "no index at"),
        (("copy", zoo, zoo), "there is an index at"),
        (("copy", zoo, folder / "letter"), "not an empty folder"),
        (("copy", zoo, folder / "letter" / "below"), "letter"),
        (("copy", zoo, "ftp://host/zoo"), "no address of an index"),
        (("copy", zoo, "qdrant://user:secret@host/zoo"), "cannot hold a name or key"),
        (("backup", "--index", zoo, folder / "letter"), "exists"),
        (("restore", folder / "none", "--index", folder / "to"), "there is no backup"),
        (("restore", folder / "letter", "--index", folder / "to"), "is no backup"),
        (("restore", zoo, "--index", folder / "to"), "is a folder"),
        (("export", "--index", zoo, "--parquet", folder / "letter"), "no folder"),
        (("migrate", "--index", folder / "none"), "no index at"),
    ]:
        _, err = said(capsys, "index", *arguments, status=1)
        assert words in err and "secret" not in err, arguments
    assert not (folder / "to").exists()
    assert run(["index", "copy", str(zoo)]) == run(["index", "export", "--index", str(zoo)]) == 2


def test_an_unfinished_copy_is_gone_on_with(zoo: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder / "copy"
    said(capsys, "index", "copy", zoo, copy)
    # As a kill leaves it just before the end.
    (copy / "manifest.json").unlink()
    shutil.rmtree(copy / "snapshots")
    with open_source(str(zoo)) as source:
        write_json(copy / MARKER, _marker(source))
    said(capsys, "index", "info", "--index", copy, status=1)
    report, err = said(capsys, "index", "copy", zoo, copy, "--format", "json")
    assert "unfinished copy: going on with it" in err
    assert (json.loads(report)["kept"], json.loads(report)["copied"]) == (4, 0)
    assert verify(copy) == []


def test_migrating(zoo: Path, folder: Path, addresses: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "index", "migrate", "--index", zoo)
    assert "nothing to do" in err
    text = addresses()
    said(capsys, "index", "copy", zoo, text, "--replicas", 2, "--write-consistency", 3, status=1)
    said(capsys, "index", "copy", zoo, text)
    assert "had the form of today" in said(capsys, "index", "migrate", "--index", text)[1]
    address = ServerAddress.parse(text)
    client = address.connect()
    client.update_collection(f"{address.name}_models", metadata={"format": 1})
    _, err = said(capsys, "index", "copy", text, folder / "copy", status=1)
    assert "index migrate" in err and not (folder / "copy").exists()
    _, err = said(capsys, "index", "migrate", "--index", text)
    assert f"brought from format 1 to {FORMAT}" in err
    said(capsys, "index", "copy", text, folder / "copy")
    client.update_collection(f"{address.name}_models", metadata={"format": FORMAT + 1})
    for command in (("migrate", "--index", text), ("copy", text, folder / "other"), ("copy", zoo, text)):
        assert "update hubhound" in said(capsys, "index", *command, status=1)[1]
    client.close()
