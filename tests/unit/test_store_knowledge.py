"""Tasks, profiles and performance: in every store, and in the file that queries read."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import qdrant_edge as qe
from qdrant_client import QdrantClient

from engine.errors import IndexDamagedError, StoreError
from engine.index import Index
from engine.knowledge import Knowledge
from engine.schema import Model, Performance
from engine.store.base import DescriptorStore, StoreLayout
from engine.store.edge import EdgeStore
from engine.store.knowledge import known_batches, known_payload, known_record
from engine.store.server import ServerStore
from engine.store.shard import Shard
from engine.writer import IndexWriter
from tests.support.knowledge import bits, make_profile, make_task
from tests.support.output_tables import fast_folder, make_table
from tests.support.small_index import make_index
from tests.support.stores import KINDS, Place, store_place

REPOSITORY = Path(__file__).parents[2]
LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)

ODD = (5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 2.0**-1074 * 3, 1 + 2.0**-52, -0.0, 123456789.12345679)
"""Numbers whose last bit a careless way through decimals loses."""

EVERYTHING = [
    make_task("birds", classes=("a", "été 東京 🐕"), seed=2**63 - 1),
    make_task("cars", images=1),
    make_profile("m", "cars", parameters=2**40, precision="float16"),
    make_profile("open_clip:a/b", "birds", 8, conductance=ODD, completeness_gap=float("inf")),
    make_profile("open_clip:a/b", "cars", 24, seed=2),
    Performance(model="m", task="cars", value=0.1 + 0.2, source="mödel card"),
    Performance(model="m", task="cars", metric="recall", value=1.0),
    Performance(model="open_clip:a/b", task="birds", value=0.0),
]
"""In the order in which a store lists them."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    with store_place(request.param, folder) as made:
        yield made


@pytest.fixture
def store(place: Place) -> Iterator[DescriptorStore]:
    with place.create(LAYOUT) as made:
        yield made


def test_everything_comes_back_bit_for_bit_and_in_order(place: Place) -> None:
    with place.create(LAYOUT) as store:
        store.upsert_knowledge(EVERYTHING[::-1])
        assert list(map(bits, store.knowledge())) == list(map(bits, EVERYTHING))
    with place.open() as store:
        assert list(map(bits, store.tasks())) == list(map(bits, EVERYTHING[:2]))
        assert list(map(bits, store.profiles())) == list(map(bits, EVERYTHING[2:5]))
        assert list(map(bits, store.performance())) == list(map(bits, EVERYTHING[5:]))


def test_profiles_are_selected(store: DescriptorStore) -> None:
    store.upsert_knowledge(EVERYTHING)
    assert store.profiles(model="open_clip:a/b") == EVERYTHING[3:5]
    assert store.profiles(task="cars") == [EVERYTHING[2], EVERYTHING[4]]
    assert store.profiles("m", "cars") == [EVERYTHING[2]]
    assert store.profiles("m", "birds") == store.profiles("birds") == []


def test_the_same_again_replaces(store: DescriptorStore) -> None:
    store.upsert_knowledge(EVERYTHING)
    new = [make_task("cars", 2), make_profile("m", "cars", 5, seed=9), Performance(model="m", task="cars", value=0.5)]
    store.upsert_knowledge(new)
    assert len(store.knowledge()) == len(EVERYTHING)
    assert [*store.tasks()[1:], *store.profiles("m"), store.performance()[0]] == new


def test_a_task_goes_with_its_profiles_and_nothing_else(store: DescriptorStore) -> None:
    store.upsert_knowledge(EVERYTHING)
    store.delete_task("cars")
    assert store.knowledge() == [EVERYTHING[0], EVERYTHING[3], *EVERYTHING[5:]]
    store.delete_task("cars")
    store.delete_profiles("open_clip:a/b")
    assert store.knowledge() == [EVERYTHING[0], *EVERYTHING[5:]]


def test_a_store_without_knowledge(place: Place) -> None:
    with place.create(LAYOUT) as store:
        for _ in range(2):
            assert store.knowledge() == store.tasks() == store.profiles("m") == store.performance() == []
            store.delete_task("cars")
            store.delete_profiles("m")
            store.upsert_knowledge([])
            store.optimize()
            store.flush()
    with place.open() as store:
        assert store.knowledge() == []


def test_knowledge_leaves_models_and_outputs_alone(store: DescriptorStore) -> None:
    store.upsert_outputs(make_table(LAYOUT))
    store.upsert_model(Model(repo="org/a", revision="r1"))
    store.upsert_knowledge(EVERYTHING)
    store.delete_task("birds")
    store.optimize()
    store.flush()
    assert store.count_outputs() == 7 and [model.repo for model in store.models()] == ["org/a"]
    store.delete_outputs("org/a")
    store.delete_model("org/a")
    assert len(store.knowledge()) == len(EVERYTHING) - 2


def test_a_copy_to_a_server_and_back_is_the_same(folder: Path) -> None:
    with (
        EdgeStore.create(folder / "one", LAYOUT) as one,
        ServerStore.create(QdrantClient(":memory:"), "x", LAYOUT) as server,
        EdgeStore.create(folder / "two", LAYOUT) as two,
    ):
        one.upsert_knowledge(EVERYTHING)
        server.upsert_knowledge(one.knowledge())
        two.upsert_knowledge(server.knowledge())
        assert list(map(bits, two.knowledge())) == list(map(bits, EVERYTHING))


def test_an_embedded_store_has_the_shard_from_the_first_record_on(folder: Path) -> None:
    with EdgeStore.create(folder / "store", LAYOUT) as store:
        store.knowledge()
        assert not (folder / "store" / "profiles").exists()
        store.upsert_knowledge(EVERYTHING[:1])
        assert (folder / "store" / "profiles").is_dir()
    with pytest.raises(StoreError, match="closed"):
        store.tasks()
    with pytest.raises(StoreError, match="closed"):
        store.upsert_knowledge(EVERYTHING)


def test_an_interrupted_making_of_the_shard_is_made_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EdgeStore.create(folder / "store", LAYOUT) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.upsert_knowledge(EVERYTHING)
        assert store.knowledge() == []
    (folder / "store" / "profiles.new" / "edge_config.json").unlink()
    with EdgeStore.open(folder / "store") as store:
        assert store.knowledge() == []
        store.upsert_knowledge(EVERYTHING)
        assert store.knowledge() == EVERYTHING


def test_what_is_acknowledged_survives_a_kill(folder: Path) -> None:
    EdgeStore.create(folder / "store", LAYOUT).close()
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom engine.store.edge import EdgeStore\n"
        "from tests.support.knowledge import make_profile, make_task\n"
        "store = EdgeStore.open(Path(sys.argv[1]))\nstore.upsert_knowledge([make_task()])\n"
        "store.upsert_knowledge([make_profile(seed=5)])\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder / "store")], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -9, done.stderr
    with EdgeStore.open(folder / "store") as store:
        assert store.tasks() == [make_task()]
        assert [profile.conductance for profile in store.profiles()] == [make_profile(seed=5).conductance]


def test_a_store_on_a_server_made_anew_knows_nothing() -> None:
    client = QdrantClient(":memory:")
    ServerStore.create(client, "x", LAYOUT).upsert_knowledge(EVERYTHING)
    client.delete_collection("x_models")
    with ServerStore.create(client, "x", LAYOUT) as store:
        assert store.knowledge() == []


def test_the_collection_may_have_been_made_by_another_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    one, two = ServerStore.create(client, "x", LAYOUT), ServerStore.open(client, "x")
    two.upsert_knowledge(EVERYTHING[:1])
    answers = iter([False])
    exists = client.collection_exists
    monkeypatch.setattr(client, "collection_exists", lambda name: next(answers, exists(name)))
    one.upsert_knowledge(EVERYTHING[1:2])
    assert one.tasks() == EVERYTHING[:2]


def test_many_records_are_written_in_batches(folder: Path) -> None:
    records = [make_profile(f"m{i:03d}", "cars", 100, seed=i) for i in range(300)]
    batches = list(known_batches(records))
    assert len(batches) > 1 and sum(len(made) for made, _ in batches) == 300
    for made, size_bytes in batches:
        assert size_bytes == sum(len(json.dumps(payload)) for _, payload in made) <= 1 << 19
    huge = make_task(images=10_000)
    assert [len(made) for made, _ in known_batches([records[0], huge, records[1]])] == [1, 1, 1]
    with EdgeStore.create(folder / "store", LAYOUT) as store:
        store.upsert_knowledge([*records, huge])
        assert store.knowledge() == [huge, *records]


def test_the_payload_is_what_its_module_says() -> None:
    payload = known_payload(EVERYTHING[3])
    raw = base64.b64decode(payload["exact"])
    assert raw == struct.pack("<9d", *ODD, float("inf"))
    assert "conductance" not in payload and "parameters" not in payload and payload["kind"] == "profile"
    assert len({record.point_id for record in EVERYTHING}) == len(EVERYTHING)
    assert all(str(uuid.UUID(record.point_id)) == record.point_id for record in EVERYTHING)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "secret"},
        {"kind": None},
        {"exact": 3},
        {"exact": ""},
        {"exact": "AAAA"},
        {"exact": base64.b64encode(struct.pack("<3d", 1, 2, 3)).decode()},
        {"exact": base64.b64encode(struct.pack("<9d", *[float("nan")] * 9)).decode()},
        {"more": 1},
    ],
)
def test_a_payload_that_is_no_record_is_refused(change: dict[str, object]) -> None:
    for record in EVERYTHING[3], EVERYTHING[5]:
        with pytest.raises(ValueError):
            known_record({**known_payload(record), **change})


def test_a_damaged_record_in_a_store_is_one_line(folder: Path) -> None:
    with EdgeStore.create(folder / "store", LAYOUT) as store:
        store.upsert_knowledge(EVERYTHING)
        assert isinstance(store._profiles, Shard)
        store._profiles.upsert([qe.Point(str(uuid.uuid4()), {}, {"kind": "profile", "task": "x"})], 100)
        with pytest.raises(StoreError, match="damaged") as caught:
            store.knowledge()
        assert "\n" not in str(caught.value)
        assert store.tasks() == EVERYTHING[:2]


# -- the file that queries read ---------------------------------------------------------------------------------------


def test_the_file_is_bit_for_bit_and_small(tmp_path: Path) -> None:
    known = Knowledge.of(EVERYTHING)
    known.write(tmp_path)
    read = Knowledge.read(tmp_path)
    assert list(map(bits, (*read.tasks, *read.profiles, *read.performance))) == list(map(bits, EVERYTHING))
    many = Knowledge(profiles=tuple(make_profile("m", f"t{i}", 24, seed=i) for i in range(200)))
    many.write(tmp_path)
    assert Knowledge.read(tmp_path) == many
    assert (tmp_path / "knowledge.json").read_text().count("visual.transformer.resblocks.7") == 1


def test_looking_things_up() -> None:
    known = Knowledge.of(EVERYTHING)
    assert known.task("cars") == EVERYTHING[1] and known.task("boats") is None
    assert known.profiles_of("open_clip:a/b") == tuple(EVERYTHING[3:5]) and known.profiles_of("x") == ()
    assert known.models() == ("m", "open_clip:a/b")


def test_an_index_that_knows_nothing(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    assert index.knowledge() == Knowledge()
    with IndexWriter(index.folder) as writer:
        writer.finish()
    assert not (index.folder / "knowledge.json").exists() and not (index.folder / "store" / "profiles").exists()


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        writer.put_task(make_task())
        writer.put_performance([Performance(model="m", task="pets", value=0.5)])
        good = writer.export_knowledge()
    path = index.folder / "knowledge.json"
    whole = json.loads(path.read_text())
    profile = {**known_payload(make_profile()), "blocks": 7}
    bad = [
        b"",
        path.read_bytes()[:-20],
        b"\xff\xfe",
        b"[]",
        b"{}",
        json.dumps({**whole, "format": 2}).encode(),
        json.dumps({**whole, "records": [3]}).encode(),
        json.dumps({**whole, "records": [{"kind": "task"}]}).encode(),
        json.dumps({**whole, "records": [profile]}).encode(),
    ]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(IndexDamagedError, match=r"knowledge\.json cannot be read: .*index snapshot") as caught:
            index.knowledge()
        assert "\n" not in str(caught.value) and caught.value.path == path
    path.unlink()
    path.mkdir()
    with pytest.raises(IndexDamagedError, match="cannot be read"):
        index.knowledge()
    path.rmdir()
    path.write_bytes(b"{")
    with IndexWriter(index.folder) as writer:
        writer.snapshot()
    assert index.knowledge() == good


def test_the_writer_exports_when_it_is_told(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    profiles = [make_profile("m", f"t{i}", seed=i) for i in range(3)]
    with IndexWriter(index.folder) as writer:
        writer.put_task(make_task())
        assert index.knowledge() == Knowledge(), "nothing before the export"
        assert writer.export_knowledge(force=False) == index.knowledge() == Knowledge(tasks=(make_task(),))
        assert writer.export_knowledge(force=False) is None, "nothing changed"
        writer._export_due = float("inf")
        writer.put_profiles(profiles)
        assert writer.export_knowledge(force=False) is None, "too soon"
        assert index.knowledge().profiles == ()
        writer.finish()
        assert index.knowledge().profiles == tuple(profiles)
        writer.remove_task("pets")
        writer.export_knowledge()
    assert index.knowledge() == Knowledge(profiles=tuple(profiles))


def test_a_killed_run_is_exported_by_the_next_one(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    profile = make_profile()
    with IndexWriter(index.folder) as writer:
        writer.put_task(make_task())
        writer.export_knowledge()
    with IndexWriter(index.folder) as writer:
        writer.put_profiles([profile])  # and no more: killed
    assert index.knowledge().profiles == ()
    with IndexWriter(index.folder) as writer:
        writer.finish()
    assert index.knowledge().profiles == (profile,)
    (index.folder / "knowledge.json").unlink()
    with IndexWriter(index.folder) as writer:
        writer.finish()
    assert index.knowledge() == Knowledge(tasks=(make_task(),), profiles=(profile,))


def test_reading_needs_no_lock(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    now = datetime.now(UTC)
    with IndexWriter(index.folder) as writer:
        writer.put_profiles([make_profile(profiled_at=now)])
        writer.export_knowledge()
        assert Index(index.folder).knowledge().profiles == (make_profile(profiled_at=now),)
