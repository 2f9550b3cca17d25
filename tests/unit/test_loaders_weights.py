"""Every way in which weights can be unusable: which reason a model gets, and what the one line says."""

import json
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file

from engine.errors import Reason
from indexers.loaders import load
from tests.support.tiny_models import (
    change_json,
    change_weights,
    declined,
    repository,
    timm_model,
    vit_model,
    write_json,
)

pytestmark = pytest.mark.usefixtures("one_thread")


both = pytest.mark.parametrize("make", [timm_model, vit_model])


@both
def test_no_weights(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").unlink()
    declined(folder, Reason.NO_WEIGHTS, "no safetensors file")


@pytest.mark.parametrize(
    "make, foreign, name",
    [
        (timm_model, "tf_model.h5", "TensorFlow"),
        (vit_model, "tf_model.h5", "TensorFlow"),
        # A timm config says how images are made for timm only, so that there is nothing to run the graph with.
        (timm_model, "model.onnx", "ONNX"),
    ],
)
def test_weights_for_another_library_only(tmp_path, make, foreign, name):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / foreign)
    declined(folder, Reason.NO_WEIGHTS, name)


@both
def test_an_adapter_only(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    declined(folder, Reason.NO_WEIGHTS, "adapter")


@both
def test_several_weights_under_odd_names(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    declined(folder, Reason.NO_WEIGHTS, "a.safetensors, b.safetensors", "not clear")


@both
def test_pickles_only(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    declined(folder, Reason.PICKLE_ONLY, "pytorch_model.bin", "--allow-pickle")


@both
@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_file_cut_short(tmp_path, make, keep):
    file = make(tmp_path / "org" / "name") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    declined(file.parent, Reason.BROKEN_WEIGHTS, "model.safetensors", "download it again")


@both
def test_rubbish_for_weights(tmp_path, make):
    file = make(tmp_path / "org" / "name") / "model.safetensors"
    file.write_bytes(b"<!DOCTYPE html><html>please log in</html>" * 100)
    declined(file.parent, Reason.BROKEN_WEIGHTS, "no safetensors header")
    file.write_bytes(struct.pack("<Q", 20) + b"{'this is no JSON..}")
    declined(file.parent, Reason.BROKEN_WEIGHTS, "garbage")


@both
@pytest.mark.parametrize("shape", [[2**40], [-1], ["a"], [2.5], None, [[1]]])
def test_impossible_shapes(tmp_path, make, shape):
    file = make(tmp_path / "org" / "name") / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    declined(file.parent, Reason.BROKEN_WEIGHTS)


@both
def test_a_huge_header(tmp_path, make):
    file = make(tmp_path / "org" / "name") / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_000))
        stream.truncate(100_000_008)
    declined(file.parent, Reason.BROKEN_WEIGHTS, "no safetensors header")


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, make, value):
    folder = make(tmp_path / "org" / "name")
    name, tensor = next(
        (name, tensor) for name, tensor in load_file(folder / "model.safetensors").items() if tensor.ndim > 1
    )
    tensor.view(-1)[3] = value
    change_weights(folder, **{name: tensor})
    declined(folder, Reason.BROKEN_WEIGHTS, name, "NaN or infinite")


def test_weights_whose_sum_overflows_are_fine(tmp_path):
    folder = vit_model(tmp_path / "org" / "name")
    change_weights(folder, classifier__bias=torch.full((5,), 3e38))
    assert load(repository(folder)).parameters > 0


def test_a_classifier_that_is_not_in_the_weights(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_weights(folder, classifier__weight=None, classifier__bias=None)
    declined(folder, Reason.BROKEN_WEIGHTS, "classifier.bias (and 1 more) is not in the weights")
    folder = timm_model(tmp_path / "org" / "timm")
    change_weights(folder, fc__weight=None, fc__bias=None)
    declined(folder, Reason.BROKEN_WEIGHTS, "fc.weight")


def test_a_classifier_for_another_number_of_classes(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_weights(folder, classifier__weight=torch.zeros(9, 16), classifier__bias=torch.zeros(9))
    declined(folder, Reason.BROKEN_WEIGHTS, "classifier.bias (and 1 more) in the weights has another shape")
    folder = timm_model(tmp_path / "org" / "timm")
    change_json(folder / "config.json", num_classes=9)
    declined(folder, Reason.BROKEN_WEIGHTS, "size mismatch")


def test_a_classifier_that_timm_would_leave_random(tmp_path):
    folder = timm_model(tmp_path / "org" / "timm")
    change_json(folder / "config.json", model_args={"num_classes": 9})
    # This is what makes the check necessary: it loads without a word.
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 9
    declined(folder, Reason.BROKEN_WEIGHTS, "fc.weight", "not for so many classes")


def test_other_weights_missing(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_weights(folder, vit__embeddings__cls_token=None)
    declined(folder, Reason.BROKEN_WEIGHTS, "vit.embeddings.cls_token")
    folder = timm_model(tmp_path / "org" / "timm")
    change_weights(folder, bn1__running_mean=None)
    declined(folder, Reason.BROKEN_WEIGHTS, "bn1.running_mean")


@both
def test_the_weights_of_another_model(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    other = (timm_model if make is vit_model else vit_model)(tmp_path / "org" / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    declined(folder, Reason.BROKEN_WEIGHTS)


@both
@pytest.mark.parametrize(
    "weight_map, part",
    [
        ({"a": "../../etc/passwd"}, "../../etc/passwd"),
        ({"a": "missing.safetensors"}, "missing.safetensors"),
        ({}, "names no shards"),
        ("x", "names no shards"),
    ],
)
def test_an_index_of_shards_that_are_not_there(tmp_path, make, weight_map, part):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    declined(folder, Reason.BROKEN_WEIGHTS, part)


def test_timm_reads_no_shards(tmp_path):
    folder = timm_model(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "shard.safetensors"}})
    declined(folder, Reason.NO_WEIGHTS, "sharded")


@both
def test_running_out_of_memory(tmp_path, make, monkeypatch):
    folder = make(tmp_path / "org" / "name")
    message = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate"

    def no_memory(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr(torch.nn.Module, "float", no_memory)
    declined(folder, Reason.OUT_OF_MEMORY, "can't allocate memory")
    monkeypatch.setattr(torch.nn.Module, "float", lambda *args: (_ for _ in ()).throw(MemoryError()))
    declined(folder, Reason.OUT_OF_MEMORY, "MemoryError")
