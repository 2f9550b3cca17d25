"""A small index that has one of everything: copies, failures, tasks, profiles, leftovers of a killed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.index import Index
from engine.schema import Model, ModelState, Performance
from engine.store.edge import EdgeStore
from engine.tasks import add_task, draw_task
from engine.writer import IndexWriter
from tests.support.knowledge import make_profile
from tests.support.small_index import ANIMALS, THINGS, make_index, put_model, write_probe_images

TASK_MODEL = "open_clip:a/b"


def make_full_index(folder: Path, models: int = 3) -> Index:
    """An index with some models of four outputs, a larger one, a copy, a failure, a task, and outputs of no model."""
    make_index(folder)
    photos = write_probe_images(folder.parent / "photos", 4)
    with IndexWriter(folder) as writer:
        for i in range(models):
            put_model(writer, f"org/animals-{i}", ANIMALS, library="timm", licence="mit", seed=i)
        put_model(writer, "zoo/both", (*ANIMALS, *THINGS), labels=["é", None, *"abcde"], seed=99)
        original = writer.store.model("zoo/both")
        assert original is not None
        writer.put_copy(Model(repo="zoo/again", revision="c", state=ModelState.COPY, copy_of=original.repo))
        writer.record(Model(repo="org/broken", revision="x", state=ModelState.FAILED, reason="r", detail="why"))
        drawn = draw_task("pets", photos)
        add_task(writer, drawn)
        writer.put_profiles([make_profile(TASK_MODEL, task_fingerprint=drawn.task.fingerprint)])
        writer.put_performance([Performance(model=TASK_MODEL, task="pets", value=0.1 + 0.2)])
        writer.finish()
    leave_strays(folder)
    return Index(folder)


def leave_strays(folder: Path) -> None:
    """Outputs and responses that no record claims, as a killed run leaves them."""
    with EdgeStore.open(folder / "store") as store:
        both = store.outputs("zoo/both", "r1")
        assert both is not None
        store.upsert_outputs(replace(both, repo="org/stray"))
        store.upsert_outputs(replace(both, revision="r0"))
    (folder / "responses" / "org--stray@r1.npy").write_bytes(b"left")
