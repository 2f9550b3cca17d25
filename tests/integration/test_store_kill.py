"""The embedded store under kill -9: whatever it acknowledged is there and whole afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from engine.outputs import OutputTable
from engine.schema import Model
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from tests.support.output_tables import assert_same, fast_folder, make_table

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = StoreLayout(probes=400, top_r=50, dimension=256)
ROUNDS = 12


def table_of(number: int, revision: str) -> OutputTable:
    """The outputs of the model of that number, the same in every process."""
    m = 100 + number % 5 * 50
    return make_table(LAYOUT, f"org/{number}", revision, m=m, seed=1000 * number + len(revision))


def write_for_ever(path: str, first: int) -> None:
    """The child: new models, and new revisions of old ones; a line for each that the store has acknowledged."""
    with EdgeStore.open(path) as store:
        store.optimize()
        for number in count(first):
            for target, revision in ((number, "a"), (number // 2, "a" * (2 + number))):
                table = table_of(target, revision)
                store.upsert_outputs(table)
                store.upsert_model(Model(repo=table.repo, revision=revision, outputs=len(table)))
                sys.stdout.write(f"{target} {revision}\n")
                sys.stdout.flush()
                store.delete_outputs(table.repo, keep_revision=revision)
            if number % 6 == 0:
                store.flush()
            if number % 4 == 0:
                store.optimize()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


def test_what_was_acknowledged_survives_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "engine.store.edge_config._INDEX_FROM_KB", 500
    )  # kept by the store: optimising has something to do
    path = folder / "store"
    EdgeStore.create(path, LAYOUT).close()
    moments = random.Random(5)
    acknowledged: dict[int, str] = {}
    for _ in range(ROUNDS):
        first = max(acknowledged, default=-1) + 1
        child = subprocess.Popen(
            [sys.executable, __file__, str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        end = threading.Timer(moments.uniform(0.0, 0.5), os.kill, (child.pid, signal.SIGKILL))
        end.start()
        lines += child.stdout.readlines()
        assert child.wait(timeout=30) == -signal.SIGKILL
        child.stdout.close()
        reported = dict(line.split() for line in lines if line.endswith("\n"))
        with EdgeStore.open(path) as store:
            for model in store.models():
                number = int(model.repo.removeprefix("org/"))
                # The last write may have been done and not yet have been reported: newer is as good.
                assert len(model.revision) >= len(reported.pop(str(number), acknowledged.get(number, "")))
                if acknowledged.get(number) != model.revision:
                    check_whole(store, model)
                    acknowledged[number] = model.revision
            assert not reported, "acknowledged and lost"
    with EdgeStore.open(path) as store:
        models = store.models()
        assert {model.repo: model.revision for model in models} == {f"org/{k}": v for k, v in acknowledged.items()}
        for model in models:
            check_whole(store, model)
    assert len(models) > ROUNDS


def check_whole(store: EdgeStore, model: Model) -> None:
    expected = table_of(int(model.repo.removeprefix("org/")), model.revision)
    assert len(expected) == model.outputs
    assert_same(store.outputs(model.repo, model.revision), expected)


if __name__ == "__main__":
    write_for_ever(sys.argv[1], int(sys.argv[2]))
