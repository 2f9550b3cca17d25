"""A small index on a server whose candidates are made, and what is asked about them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from engine.index import Index
from engine.joint_making import MakingSettings
from engine.remote import Remote
from engine.store.joint import JointCollection, need_joint
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from tests.support.servers import Addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, make_index, put_model

SETTINGS = MakingSettings(rank=16, concepts=60, held_out=10)


def new_index(addresses: Addresses, scratch: Path) -> Path:
    """Working folder of an empty index."""
    index = make_index(scratch / "zoo")
    shutil.copytree(index.probe_folder, index.folder / "probes")
    return to_server(index.folder, addresses())


def fill(folder: Path) -> Path:
    """Adds three models with 14 outputs."""
    with IndexWriter(folder) as writer:
        put_model(writer, "org/animals", ANIMALS, seed=1)
        put_model(writer, "org/things", THINGS, seed=2)
        put_model(writer, "zoo/both", (*ANIMALS, *THINGS), seed=3)
        writer.finish()
    return folder


def fingerprint(folder: Path) -> str:
    """Of the index's background."""
    return Index(folder).manifest.background.fingerprint


def store_of(folder: Path) -> ServerStore:
    """The index's store."""
    remote = Remote.of(folder)
    assert remote is not None
    return remote.store


def joint_of(folder: Path) -> JointCollection:
    """The index's candidates."""
    return need_joint(folder, store_of(folder), fingerprint(folder))


def outputs_in(joint: JointCollection) -> set[tuple[str, str, int]]:
    """The outputs that a collection has vectors of."""
    vector = np.zeros(joint.code.size, np.float32)
    vector[0] = 1
    return {(hit.repo, hit.revision, hit.output) for hit in joint.candidates(vector, 1000, 1000)}
