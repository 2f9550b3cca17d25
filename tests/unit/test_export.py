"""Exports: what parquet readers get is what the store has, and every column is documented."""

from __future__ import annotations

import hashlib
import json
import re
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import HubhoundError, IndexDamagedError, IndexLockedError, InputError, StoreError
from engine.export import INVENTORY, export_index
from engine.export_columns import MODEL_FACTS, ONE_FILE, TABLES
from engine.index import Index
from engine.outputs import OutputTable
from engine.store.edge import EdgeStore
from engine.writer import IndexWriter
from tests.support.full_index import TASK_MODEL, make_full_index
from tests.support.output_tables import fast_folder
from tests.support.small_index import TOP_R, D, N

DOCUMENT = Path(__file__).parents[2] / "docs" / "moving.md"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo").folder


@pytest.fixture(scope="module")
def exported(zoo: Path) -> Path:
    assert export_index(zoo, zoo.parent / "tables") == {
        "outputs": 19,
        "models": 6,
        "probes": N,
        "tasks": 1,
        "profiles": 1,
        "performance": 1,
    }
    return zoo.parent / "tables"


def tables_of(zoo: Path) -> dict[str, OutputTable]:
    with EdgeStore.open(zoo / "store") as store:
        return {m.repo: t for m in store.models() if (t := store.outputs(m.repo, m.revision)) is not None}


def test_every_number_of_every_output(zoo: Path, exported: Path) -> None:
    rows = pq.read_table(exported / "outputs.parquet")
    assert rows.schema.field("z").type == pa.list_(pa.float32(), TOP_R)
    assert rows.schema.field("anchor").type == pa.list_(pa.float32(), D)
    start = 0
    for repo, table in tables_of(zoo).items():
        part = rows.slice(start, len(table))
        start += len(table)
        assert set(part["model"].to_pylist()) == {repo} and set(part["revision"].to_pylist()) == {"r1"}
        assert tuple(part["label"].to_pylist()) == table.labels
        expected = {"output": table.output, "mean": table.mean, "std": table.std, "h": table.calibration.h}
        expected |= {"prior": table.calibration.prior, "q_white": table.calibration.q_white, "g": table.calibration.g}
        for name, column in expected.items():
            assert part[name].to_numpy().tolist() == column.tolist(), name
        for name, matrix in {"probes": table.idx, "z": table.z, "anchor": table.anchor}.items():
            assert np.array(part[name].to_pylist(), dtype=matrix.dtype).tolist() == matrix.tolist(), name
    assert start == rows.num_rows


def test_a_descriptor_can_be_computed_from_the_tables_alone(zoo: Path, exported: Path) -> None:
    """The anchor of every output agrees with the responses that the index kept, by its own definition."""
    rows = pq.read_table(exported / "outputs.parquet", filters=[("model", "=", "zoo/both")])
    embeddings = np.array(pq.read_table(exported / "probes.parquet")["embedding"].to_pylist())
    z = np.load(zoo / "responses" / "zoo--both@r1.npy").astype(np.float64)
    variance = z.var(axis=0)  # the index is a divisive one
    z *= (variance / variance.mean()) ** (-0.5 * 7 / (7 + 100))
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    anchor = z @ (embeddings - embeddings.mean(0)) / N
    np.testing.assert_allclose(np.array(rows["anchor"].to_pylist()), anchor, atol=2e-3)
    probes = np.array(rows["probes"].to_pylist())
    np.testing.assert_allclose(np.take_along_axis(z, probes, 1), np.array(rows["z"].to_pylist()), atol=4e-3)


def test_the_other_tables(zoo: Path, exported: Path) -> None:
    with EdgeStore.open(zoo / "store") as store:
        models, knowledge = store.models(), store.knowledge()
    rows = pq.read_table(exported / "models.parquet").to_pylist()
    assert [row["model"] for row in rows] == [model.repo for model in models]
    by_name = {row["model"]: row for row in rows}
    assert (by_name["zoo/again"]["state"], by_name["zoo/again"]["copy_of"]) == ("copy", "zoo/both")
    assert (by_name["org/broken"]["state"], by_name["org/broken"]["detail"]) == ("failed", "why")
    assert by_name["org/animals-0"]["licence"] == "mit" and by_name["org/animals-0"]["left_out"] == []
    assert [row["indexed_at"] for row in rows] == [model.indexed_at for model in models]
    [task] = pq.read_table(exported / "tasks.parquet").to_pylist()
    assert task["task"] == "pets" and len(task["images"]) == len(task["sha256"]) == 4
    [profile] = pq.read_table(exported / "profiles.parquet").to_pylist()
    assert profile["model"] == TASK_MODEL and tuple(profile["conductance"]) == knowledge[1].conductance  # type: ignore[union-attr]
    [performance] = pq.read_table(exported / "performance.parquet").to_pylist()
    assert performance["value"] == 0.1 + 0.2
    probes = pq.read_table(exported / "probes.parquet").to_pylist()
    assert [(row["file"], row["sha256"]) for row in probes] == list(Index(zoo).probe_files)


def test_one_file_has_facts_on_the_models(zoo: Path, exported: Path, tmp_path: Path) -> None:
    assert export_index(zoo, tmp_path / "deep" / "zoo.parquet") == {"outputs": 19}
    one = pq.read_table(tmp_path / "deep" / "zoo.parquet")
    assert one.column_names == [column.name for column in ONE_FILE]
    tables = pq.read_table(exported / "outputs.parquet")
    assert one.select(tables.column_names).equals(tables)
    facts = {row["model"]: row for row in pq.read_table(exported / "models.parquet").to_pylist()}
    names = [column.name for column in MODEL_FACTS]
    for row in one.select(["model", *names]).to_pylist():
        assert [row[name] for name in names] == [facts[row["model"]][name] for name in names]


def test_files_say_what_they_are(zoo: Path, exported: Path) -> None:
    inventory = json.loads((exported / INVENTORY).read_text())
    for name, columns in TABLES.items():
        path = exported / f"{name}.parquet"
        fields = pq.read_schema(path)
        for column in columns:
            assert fields.field(column.name).metadata[b"description"].decode() == column.meaning
        manifest = json.loads(fields.metadata[b"hubhound.manifest"])
        assert manifest["probes"]["fingerprint"] == Index(zoo).manifest.probes.fingerprint
        assert inventory["tables"][name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert inventory["tables"][name]["rows"] == pq.read_metadata(path).num_rows
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        [INVENTORY, *(f"{name}.parquet" for name in TABLES)]
    )


def test_every_column_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, columns in TABLES.items():
        section = text.split(f"`{name}.parquet`", 1)[1].split("\n\n|", 1)[1].split("\n\n", 1)[0]
        documented = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+?) \|$", section, flags=re.MULTILINE)
        assert documented == [(c.name, c.type, c.meaning.replace("|", "\\|")) for c in columns], name


def test_occupied_places_are_left_alone(zoo: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        export_index(zoo, exported)
    (tmp_path / "there.parquet").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        export_index(zoo, tmp_path / "there.parquet")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="no folder"):
        export_index(zoo, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "outputs.csv").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        export_index(zoo, tmp_path / "full")
    assert (tmp_path / "there.parquet").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "begun").mkdir()  # by a run that was killed
    (tmp_path / "begun" / "outputs.parquet.part").write_text("half")
    (tmp_path / "begun" / "models.parquet").write_text("whole, but nothing says so")
    assert export_index(zoo, tmp_path / "begun")["outputs"] == 19
    assert pq.read_table(tmp_path / "begun" / "models.parquet").num_rows == 6


def test_locks_and_damage_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_folder(tmp_path) as folder:
        own = make_full_index(folder / "zoo", models=1).folder
        with IndexWriter(own), pytest.raises(IndexLockedError):
            export_index(own, folder / "out")
        usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 100)
        with monkeypatch.context() as patch:
            patch.setattr("engine.store.shard.shutil.disk_usage", lambda _: usage)
            with pytest.raises(StoreError, match="disk is full"):
                export_index(own, folder / "out")
        with EdgeStore.open(own / "store") as store:
            store.delete_outputs("zoo/both")
        with pytest.raises(IndexDamagedError, match="4 outputs instead of 11"):
            export_index(own, folder / "out")
        assert list((folder / "out").iterdir()) == []


def test_a_file_that_the_disk_altered_is_refused(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import export

    plain = export._read_back

    def altered(path: Path, rows: int, progress: object) -> None:
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        plain(path, rows, None)

    monkeypatch.setattr(export, "_read_back", altered)
    with pytest.raises(HubhoundError, match="cannot be read back"):
        export_index(zoo, tmp_path / "zoo.parquet")
    assert list(tmp_path.iterdir()) == []
