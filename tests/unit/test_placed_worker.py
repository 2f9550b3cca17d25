"""A model's process runs models where and how its setup says, and ends when its device is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import HubhoundError, ModelRefusedError
from engine.index import Index
from engine.placement import Placement
from indexers.crawl.worker import Limits, Nursery, Setup, Worker
from indexers.loaders import Repository, load
from indexers.pixels import PixelCache
from indexers.prober import Prober
from tests.support.small_index import make_index
from tests.support.tiny_models import vit_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed")
    make_index(folder / "index")
    vit_model(folder / "org" / "vit")
    (vit_model(folder / "org" / "pickled") / "model.safetensors").rename(folder / "org/pickled/pytorch_model.bin")
    return folder


@pytest.fixture
def worker(place: Path) -> Iterator[Worker]:
    setup = Setup(place / "index", None, place / "cache", 10**9, autocast="bfloat16", max_batch=3)
    nursery = Nursery(setup, Limits(), place / "scratch", preload="tests.support.broken_device")
    nursery.start()
    made = Worker(nursery)
    yield made
    made.close()
    nursery.close()


def test_models_run_as_the_setup_says_and_a_process_with_a_broken_device_ends(
    worker: Worker, place: Path, tmp_path: Path
) -> None:
    vit = Repository("org/vit", "r1", place / "org" / "vit")
    found = worker.probe(vit)
    probes = Index(place / "index").probes()
    here = Prober(probes, PixelCache(tmp_path), Placement(torch.device("cpu"), "bfloat16", max_batch=3))
    expected = here.probe(load(vit))
    assert expected.moved is not None
    assert expected.batch <= 3
    np.testing.assert_allclose(found.responses, expected.values, atol=1e-3 if expected.half is None else 2e-2)

    with pytest.raises(ModelRefusedError):  # with its own reason, not that of the device
        worker.probe(Repository("org/pickled", "r1", place / "org" / "pickled"))
    assert worker.children == 1
    again = worker.probe(vit)
    assert worker.children == 2
    np.testing.assert_allclose(again.responses, found.responses, atol=1e-2)


def test_a_setup_that_cannot_be_is_told_before_a_model_is_tried(place: Path) -> None:
    nursery = Nursery(
        Setup(place / "index", None, place / "cache", 10**9, compiler="cudagraphs"), Limits(), place / "other"
    )
    with pytest.raises(HubhoundError, match=r"cudagraphs of torch\.compile needs a CUDA device, not cpu"):
        nursery.start()
    nursery.close()
