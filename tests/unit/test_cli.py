"""The command line: what it prints where, and the one line for everything a user can do wrong."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from engine.errors import Reason
from engine.index import Index
from engine.schema import Model, ModelState
from engine.writer import IndexWriter
from query.cli.add import parse_size
from query.cli.main import run
from tests.support.small_index import encode, make_filled_index, make_index

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    index = make_filled_index(tmp_path / "zoo")
    index.embed(["cat", "dog"], encode)
    return index.folder


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that an error is."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("hubhound: ")
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom query.cli.main import run\nrun(['--help'])\n"
        "heavy = {'numpy', 'torch', 'rich', 'pydantic', 'PIL'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["index"],
        ["search"],
        ["demo"],
        *[["index", c] for c in ("create", "info", "models", "verify", "snapshot", "calibrate", "rebuild", "add")],
    ],
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "Usage: hubhound" in capsys.readouterr().out


def test_search_prints_data_on_stdout_and_the_rest_on_stderr(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "cat", "--index", str(zoo)]) == 0
    captured = capsys.readouterr()
    assert "org/animals" in captured.out
    assert "14 outputs searched exactly" in captured.err
    assert run(["search", "cat", "dog", "--index", str(zoo), "--format", "json", "-k", "1", "--explain"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [len(result["hits"]) for result in answer["results"]] == [1, 1]
    assert answer["searched"] == 14
    assert captured.err == ""
    assert run(["search", "cat", "--index", str(zoo), "--format", "quiet", "-k", "2"]) == 0
    assert sorted(capsys.readouterr().out.split()) == ["org/animals#0", "zoo/both#0"]


def test_index_comes_from_the_environment(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBHOUND_INDEX", str(zoo))
    monkeypatch.setenv("HUBHOUND_FORMAT", "quiet")
    assert run(["index", "info"]) == 0
    assert capsys.readouterr().out.split() == ["org/animals@r1", "org/things@r1", "zoo/both@r1"]


def test_hostile_labels_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.small_index import put_model

    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "evil/m", ("cat",), labels=["\x1b[2J[bold red]boo[/] \u202e"])
        writer.finish()
    index.embed(["cat"], encode)
    assert run(["search", "cat", "--index", str(index.folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[bold red]boo[/]" in out


def test_wrong_usage_exits_2(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["search", "cat", "--index", str(zoo), "-k", "0"],
        ["search", "--index", str(zoo)],
        ["search", "cat"],
        ["nothing"],
        ["search", "cat", "--index", str(zoo), "--method", "cosine"],
        ["index", "create", "--index", "x", "--probes", "y", "--encoder", "z", "--top-r", "0"],
    ):
        assert run(arguments) == 2
        assert "Error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("concept", "part"), [("", "empty"), ("x" * 10_000, "10000 characters"), ("@nowhere.txt", "cannot be read")]
)
def test_bad_concepts(zoo: Path, concept: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", concept, "--index", str(zoo)]) == 1
    assert part in one_line(capsys)


def test_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["search", "cat"], ["index", "info"], ["index", "verify"], ["index", "snapshot"]):
        assert run([*command, "--index", str(tmp_path / "none")]) == 1
        assert "no index at" in one_line(capsys)
    assert run(["search", "cat", "--index", "qdrant://host:6333"]) == 1
    assert "the name of an index on a server" in one_line(capsys)


def test_another_encoder_is_named(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        fingerprint = "e" * 64
        spec = "open_clip:other"

    monkeypatch.setattr("engine.encoder.ConceptEncoder.load", lambda *_: Other())
    assert run(["search", "something new", "--index", str(zoo)]) == 1
    line = one_line(capsys)
    assert "encoder" in line
    assert "ffffffffffff" in line
    assert "eeeeeeeeeeee" in line


def test_bad_probe_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = ["--encoder", "open_clip:local-dir:nowhere"]
    empty = tmp_path / "empty"
    empty.mkdir()
    create = ["index", "create", "--index", str(tmp_path / "zoo"), *encoder, "--top-r", "2"]
    for source, part in ((str(empty), "holds 0 images"), (str(tmp_path / "no"), "does not exist")):
        assert run([*create, "--probes", source]) == 1
        assert part in one_line(capsys)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("clip", "use open_clip:ARCH/PRETRAINED"),
        ("open_clip:ViT-B-32", "pretrained weights are not named"),
        ("open_clip:NoSuch/thing", "no architecture 'NoSuch'"),
        ("open_clip:local-dir:nowhere", "does not exist"),
    ],
)
def test_bad_encoders(tmp_path: Path, spec: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_index(tmp_path / "other")
    probes = str(tmp_path / "images")
    assert run(["index", "create", "--index", str(tmp_path / "zoo"), "--probes", probes, "--encoder", spec]) == 1
    assert part in one_line(capsys)
    assert not (tmp_path / "zoo").exists()


def test_full_disk_is_one_line(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "gen-000002")

    monkeypatch.setattr("engine.snapshot.write_array", full)
    assert run(["index", "snapshot", "--index", str(zoo)]) == 1
    line = one_line(capsys)
    assert "No space left on device" in line
    assert "gen-000002" in line


def test_snapshot_can_be_made_again(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Index(zoo).snapshot().folder / "head_z.npy").write_bytes(b"damaged")
    assert run(["search", "cat", "--index", str(zoo)]) == 1
    assert "head_z" in one_line(capsys)
    assert run(["index", "snapshot", "--index", str(zoo)]) == 0
    assert run(["search", "cat", "--index", str(zoo)]) == 0


def test_verify_and_models(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with IndexWriter(zoo) as writer:
        writer.record(
            Model(
                repo="bad/one",
                revision="x",
                state=ModelState.REFUSED,
                reason=Reason.GATED.value,
                detail="ask for access",
            )
        )
    assert run(["index", "verify", "--index", str(zoo)]) == 0
    capsys.readouterr()
    assert run(["index", "models", "--index", str(zoo)]) == 0
    assert "ask for access" in capsys.readouterr().out
    assert run(["index", "models", "--index", str(zoo), "--format", "json"]) == 0
    assert {m["repo"]: m["state"] for m in json.loads(capsys.readouterr().out)}["bad/one"] == "refused"
    next((zoo / "responses").iterdir()).unlink()
    assert run(["index", "verify", "--index", str(zoo)]) == 1
    assert "responses are missing" in capsys.readouterr().out


def test_finding_nothing_says_why(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "cat", "--index", str(zoo), "--where", "library=onnx"]) == 0
    assert "no output in the index satisfies --where" in capsys.readouterr().err
    empty = make_index(tmp_path / "new" / "zoo")
    with IndexWriter(empty.folder) as writer:
        writer.finish()
    empty.embed(["cat"], encode)
    assert run(["search", "cat", "--index", str(empty.folder)]) == 0
    assert "the index is empty: add models" in capsys.readouterr().err


def test_info_in_every_form(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "info", "--index", str(zoo), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["models"] == 3
    assert facts["outputs"] == 14
    assert facts["libraries"] == {"timm": 2, "transformers": 1}
    assert run(["index", "info", "--index", str(zoo)]) == 0
    assert "60 phrases" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), ("10", 10), ("7kb", 7000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1MB", "lots"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_size(text)


def test_an_error_of_ours_says_so(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("query.search.Searcher.answer", broken)
    assert run(["search", "cat", "--index", str(zoo)]) == 1
    assert "please report it: ZeroDivisionError: oops" in one_line(capsys)
    monkeypatch.setenv("HUBHOUND_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["search", "cat", "--index", str(zoo)])


def test_interruption_exits_130(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("query.search.Searcher.answer", interrupted)
    assert run(["search", "cat", "--index", str(zoo)]) == 130
    assert one_line(capsys) == "hubhound: interrupted"


def test_the_home_of_a_stranger_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "cat", "--index", "~no-such-user/zoo"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "hubhound: a path begins with ~ and a name that is no user of this machine: write the whole path"
    ]
