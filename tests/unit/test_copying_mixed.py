"""Copies and exports of an index on a server whose calibration was interrupted.

Some outputs then have constants of another background than the record of their model says; what tells that is not
part of what is copied, so the copy must not take the record's word for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.copy_stores import open_source
from engine.copy_target import open_target
from engine.copying import copy_index
from engine.export import export_index
from engine.index import Index
from engine.outputs import Calibration
from engine.remote import index_folder
from engine.store.address import ServerAddress
from engine.store.server import ServerStore
from engine.verify import repair, verify
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.servers import Addresses, server_addresses


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield folder


@pytest.fixture(scope="module")
def zoo(place: Path) -> Path:
    return make_full_index(place / "zoo", models=1).folder


@pytest.fixture(scope="module")
def addresses(place: Path) -> Iterator[Addresses]:
    with server_addresses(place / "server") as made:
        yield made


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))


def copied(source: str | Path, target: str | Path) -> None:
    with open_source(str(source)) as old, open_target(str(target), old) as new:
        assert copy_index(old, new).settled


def spoil(address: str) -> None:
    """Writes the outputs of one model as a calibration does that was killed before it wrote the record."""
    parsed = ServerAddress.parse(address)
    with ServerStore.open(parsed.connect(), parsed.name) as store:
        (table,) = store.outputs_of([model for model in store.models() if model.repo == "zoo/both"])
        other = Calibration(**{name: 2 * column for name, column in vars(table.calibration).items()})
        store.upsert_outputs(replace(table, calibration=other, background="f" * 64))


@pytest.fixture(scope="module")
def mixed(zoo: Path, addresses: Addresses) -> str:
    address = addresses()
    copied(zoo, address)
    spoil(address)
    return address


def test_a_copy_in_a_folder_is_calibrated(mixed: str, tmp_path: Path) -> None:
    copied(mixed, tmp_path / "copy")
    assert verify(tmp_path / "copy") == []


def test_a_copy_on_a_server_can_be_mended(mixed: str, addresses: Addresses) -> None:
    other = addresses()
    copied(mixed, other)
    problems = verify(index_folder(other))
    assert [problem.partition(": ")[0] for problem in problems] == ["zoo/both"]
    repair(index_folder(other))
    assert verify(index_folder(other)) == []


def test_what_is_spoilt_while_it_is_copied_is_seen(zoo: Path, addresses: Addresses, tmp_path: Path) -> None:
    address = addresses()
    copied(zoo, address)
    with open_source(address) as source, open_target(str(tmp_path / "copy"), source) as target:
        outputs, once = source.outputs, iter([None])

        def late(models: object) -> object:
            for _ in once:
                spoil(address)
            return outputs(models)  # type: ignore[arg-type]

        source.outputs = late  # type: ignore[method-assign,assignment]
        copy_index(source, target)
    assert verify(tmp_path / "copy") == []


def test_an_export_has_the_constants_that_the_record_names(zoo: Path, mixed: str, tmp_path: Path) -> None:
    export_index(zoo, tmp_path / "right.parquet")
    export_index(index_folder(mixed), tmp_path / "mixed.parquet")
    right, found = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("right", "mixed"))
    assert right["output"] == found["output"]
    for name in ("h_uniform", "h", "s", "g", "q", "g_white", "q_white", "prior"):
        assert found[name] == pytest.approx(right[name], abs=1e-5), name
    assert Index(index_folder(mixed)).manifest.background == Index(zoo).manifest.background
