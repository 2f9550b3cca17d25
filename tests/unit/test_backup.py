"""Backups: one file that is whole or refused."""

from __future__ import annotations

import errno
import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.backup import BackupSource, backup_index
from engine.backup_file import HEAD, BackupWriter, pack_points, unpack_points
from engine.copy_report import CopyReport
from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index, read_content
from engine.errors import IndexDamagedError, IndexMismatchError, IndexUnusableError, InputError
from engine.index import Index
from engine.store.base import StoredPoint
from engine.store.edge import EdgeStore
from engine.verify import verify
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.unit.test_copying import Busy


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo").folder


@pytest.fixture(scope="module")
def made(zoo: Path) -> tuple[Path, CopyReport]:
    return zoo.parent / "zoo.backup", run_backup(zoo, zoo.parent / "zoo.backup")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as folder:
        yield folder


def run_backup(folder: Path, file: Path) -> CopyReport:
    with open_source(str(folder)) as source:
        return backup_index(source, file)


def restore(file: Path, folder: Path) -> CopyReport:
    with BackupSource(file) as source, open_target(str(folder), source) as target:
        return copy_index(source, target)


def content(folder: Path) -> str:
    with open_source(str(folder)) as source:
        return read_content(source).sha256


def test_what_is_restored_is_what_was_backed_up(made: tuple[Path, CopyReport], zoo: Path, tmp_path: Path) -> None:
    file, report = made
    restored = restore(file, tmp_path / "again")
    assert report.content.sha256 == restored.content.sha256 == content(zoo) == content(tmp_path / "again")
    assert verify(tmp_path / "again") == []
    with EdgeStore.open(zoo / "store") as one, EdgeStore.open(tmp_path / "again" / "store") as other:
        assert one.models() == other.models()
        claimed = {(model.repo, model.revision) for model in one.models()}
        points = [p for p in one.stored("outputs") if (p.payload["repo"], p.payload["revision"]) in claimed]
        assert points == list(other.stored("outputs"))
    assert Index(tmp_path / "again").probes().fingerprint == Index(zoo).probes().fingerprint
    assert not list(file.parent.glob("*.part"))


def test_a_backup_is_an_archive_that_others_can_read(made: tuple[Path, CopyReport], zoo: Path) -> None:
    with tarfile.open(made[0]) as archive:
        names = archive.getnames()
        assert names[0] == HEAD and names[-1] == "end.json" and names[-3] == "index/manifest.json"
        member = archive.extractfile("outputs/000001.parquet")
        assert member is not None
        table = pq.read_table(io.BytesIO(member.read()))
        assert table.num_rows == 19 and table.column_names == ["id", "payload", "indices", "values", "dense"]
        one = archive.extractfile("index/probes/000.png")
        assert one is not None and one.read() == (Index(zoo).probe_folder / "000.png").read_bytes()


def test_one_altered_byte_is_found_wherever_it_is(made: tuple[Path, CopyReport], tmp_path: Path) -> None:
    whole = made[0].read_bytes()
    rng = random.Random(1)
    # Ends, headers, padding, the last member byte by byte, and anywhere.
    places = [*range(0, 520, 13), *range(len(whole) - 5700, len(whole), 41), *rng.sample(range(len(whole)), 150)]
    places += [0, 511, 512, len(whole) - 1, len(whole) - 1024, len(whole) - 1025, len(whole) - 5632, len(whole) - 5633]
    altered = tmp_path / "altered.backup"
    shutil.copyfile(made[0], altered)
    with altered.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << rng.randrange(8)]))
            file.flush()
            with pytest.raises((IndexDamagedError, IndexMismatchError, InputError)) as caught:
                BackupSource(altered)
            assert "\n" not in str(caught.value)
            file.seek(place)
            file.write(whole[place : place + 1])
    assert altered.read_bytes() == whole
    BackupSource(altered).close()


@pytest.mark.parametrize("left", [0.999, 0.5, 0.1])
def test_a_backup_that_was_cut_short_is_refused(made: tuple[Path, CopyReport], tmp_path: Path, left: float) -> None:
    whole = made[0].read_bytes()
    for end in {int(len(whole) * left), len(whole) - 1, len(whole) - 512, len(whole) - 5632, 1024}:
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(IndexDamagedError, match="cut short or altered"):
            restore(tmp_path / "cut", tmp_path / "again")
    (tmp_path / "cut").write_bytes(whole + b"\0")
    with pytest.raises(IndexDamagedError, match="cut short or altered"):
        restore(tmp_path / "cut", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_is_no_backup_is_refused(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear " * 4000)
    (tmp_path / "empty").write_bytes(b"")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(zoo / "manifest.json", "manifest.json")
    for name in ("letter", "empty", "other.tar"):
        with pytest.raises(InputError, match="is no backup"):
            restore(tmp_path / name, tmp_path / "again")
    with pytest.raises(InputError, match="is a folder"):
        restore(tmp_path, tmp_path / "again")


def test_a_backup_of_the_future_names_its_version(tmp_path: Path) -> None:
    with (tmp_path / "new").open("wb") as file:
        BackupWriter(file).add(HEAD, json.dumps({"format": 2, "program": "hubhound 9.1"}).encode())
    with pytest.raises(IndexMismatchError, match=r"format 2, this hubhound reads 1: restore it with hubhound 9\.1"):
        BackupSource(tmp_path / "new")


def test_a_file_that_is_there_is_left_alone(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo.backup").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        run_backup(zoo, tmp_path / "zoo.backup")
    assert (tmp_path / "zoo.backup").read_text() == "precious"


def test_what_a_killed_run_left_is_written_anew(zoo: Path, made: tuple[Path, CopyReport], tmp_path: Path) -> None:
    (tmp_path / "zoo.backup.part").write_bytes(made[0].read_bytes()[:5000] * 1000)
    report = run_backup(zoo, tmp_path / "zoo.backup")
    assert report.content.sha256 == made[1].content.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.backup"]


def test_a_disk_that_fills_up_leaves_nothing(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BackupWriter._write

    def full(self: BackupWriter, block: bytes) -> None:
        if self._offset > 40_000:
            raise OSError(errno.ENOSPC, "No space left on device", "zoo.backup.part")
        plain(self, block)

    monkeypatch.setattr(BackupWriter, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        run_backup(zoo, tmp_path / "zoo.backup")
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_the_disk_altered_are_found_when_reading_back(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = BackupWriter._write

    def faulty(self: BackupWriter, block: bytes) -> None:
        plain(self, block)
        if b"PAR1" in block[:4] and len(block) > 5000:
            self._file.seek(-2000, io.SEEK_CUR)
            self._file.write(b"\0")
            self._file.seek(0, io.SEEK_END)

    monkeypatch.setattr(BackupWriter, "_write", faulty)
    with pytest.raises(IndexDamagedError, match="altered"):
        run_backup(zoo, tmp_path / "zoo.backup")
    assert list(tmp_path.iterdir()) == []


def test_files_outside_the_index_are_not_written(made: tuple[Path, CopyReport], tmp_path: Path) -> None:
    with BackupSource(made[0]) as source:
        victim = next(path for path in source._files if path.startswith("responses/"))
        file, place = source._files.pop(victim)
        source._files["../escaped.npy"] = file._replace(path="../escaped.npy"), place
        with open_target(str(tmp_path / "again"), source) as target, pytest.raises(IndexDamagedError):
            copy_index(source, target)
    assert not (tmp_path / "escaped.npy").exists()
    with pytest.raises(IndexUnusableError):
        Index(tmp_path / "again")


def test_a_restoration_goes_on_where_it_stopped(
    made: tuple[Path, CopyReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.copying._GROUP", 4)

    def stop(done: float, _total: float, what: str) -> None:
        if what == "copying outputs" and done >= 8:
            raise KeyboardInterrupt

    with (
        BackupSource(made[0]) as source,
        open_target(str(tmp_path / "again"), source) as target,
        pytest.raises(KeyboardInterrupt),
    ):
        copy_index(source, target, stop)
    report = restore(made[0], tmp_path / "again")
    assert report.resumed and report.kept >= 2 and report.kept + report.copied == 6
    assert report.content.sha256 == made[1].content.sha256 == content(tmp_path / "again")


@pytest.mark.parametrize("changes", [1, 3])
def test_an_index_that_is_written_to_meanwhile(zoo: Path, tmp_path: Path, changes: int) -> None:
    copy = Path(shutil.copytree(zoo, tmp_path / "zoo"))
    with Busy(copy, changes) as source:
        report = backup_index(source, tmp_path / "zoo.backup")
    assert report.settled and report.rounds == changes + 1
    restored = restore(tmp_path / "zoo.backup", tmp_path / "again")
    assert restored.content.sha256 == report.content.sha256
    with EdgeStore.open(tmp_path / "again" / "store") as store:
        model = store.model("org/animals-0")
        assert model is not None and model.revision == f"new-{changes}"
        assert store.count("outputs") == 19


def test_points_survive_to_the_bit() -> None:
    points = [
        StoredPoint("a", {"label": "é\u2028", "n": 2**53 + 1}, [1, 5], [0.1, -3e-39], [1e38, -0.0]),
        StoredPoint("b", {}, [], [], []),
    ]
    import numpy as np

    [one, two] = unpack_points(pack_points(points))
    assert one.payload == points[0].payload and one.indices == [1, 5] and two == points[1]
    assert np.array(one.values, "f4").tobytes() == np.array(points[0].values, "f4").tobytes()
    assert np.array(one.dense, "f4").tobytes() == np.array(points[0].dense, "f4").tobytes()
    with pytest.raises(ValueError, match="no points"):
        unpack_points(b"PAR1 nothing of the kind PAR1")
