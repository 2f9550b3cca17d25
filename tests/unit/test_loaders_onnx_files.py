"""Which files of a repository make an ONNX model, and when something else is loaded instead."""

import sys

import pytest
import torch
from transformers import AutoModelForImageClassification

from engine.errors import Reason
from indexers.loaders import load
from indexers.loaders.layout import choose_weights, library_of
from tests.support.tiny_models import declined, repository, timm_model, vit_model
from tests.support.tiny_onnx import CONFIG, onnx_model

pytestmark = pytest.mark.usefixtures("one_thread")
PREPROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    "files, chosen",
    [
        (["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"], ["onnx/model.onnx"]),
        (["model.onnx", "onnx/model_quantized.onnx"], ["model.onnx"]),
        (["model.onnx", "onnx/model.onnx"], ["onnx/model.onnx"]),
        (["resnet50.onnx"], ["resnet50.onnx"]),
        (["onnx/model_q4.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx"], ["onnx/model_fp16.onnx"]),
        (["onnx/model_q4.onnx"], ["onnx/model_q4.onnx"]),
        (["a.onnx", "b.onnx"], None),
        (["elsewhere/model.onnx"], None),
        (["onnx/model.onnx", "model.safetensors"], ["model.safetensors"]),
        (["onnx/model.onnx", "a.safetensors", "b.safetensors"], ["onnx/model.onnx"]),
        (["onnx/model.onnx", "pytorch_model.bin"], ["onnx/model.onnx"]),
        (
            ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1", "onnx/model_fp16.onnx_data"],
            ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1"],
        ),
        (["model.onnx", "model.onnx.data", "onnx/model.onnx_data", "data.csv"], ["model.onnx", "model.onnx.data"]),
    ],
)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_which_files_are_chosen(files, chosen, allow_pickle):
    names = ["config.json", PREPROCESSOR, *files]
    try:
        weights = choose_weights(names, allow_pickle=allow_pickle)
    except Exception as error:
        assert chosen is None, error
        assert error.reason is Reason.NO_WEIGHTS
        return
    assert weights.files == tuple(chosen or ())
    assert weights.onnx is weights.files[0].endswith(".onnx") is (library_of(CONFIG, names) == "onnx")
    assert not weights.pickled


def test_without_onnxruntime_the_extra_is_named_and_pickles_still_load(tmp_path, monkeypatch):
    folder = onnx_model(tmp_path / "org" / "name")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    declined(folder, Reason.UNSUPPORTED_LIBRARY, "pip install 'hubhound[onnx]'")
    original = AutoModelForImageClassification.from_pretrained(vit_model(tmp_path / "org" / "vit"))
    torch.save(original.state_dict(), tmp_path / "org" / "vit" / "pytorch_model.bin")
    (tmp_path / "org" / "vit" / "model.safetensors").unlink()
    (tmp_path / "org" / "vit" / "model.onnx").write_bytes(b"never opened")
    assert load(repository(tmp_path / "org" / "vit"), allow_pickle=True).library == "transformers"
    declined(tmp_path / "org" / "vit", Reason.UNSUPPORTED_LIBRARY, "hubhound[onnx]")


def test_safe_torch_weights_beside_a_graph_are_what_is_loaded(tmp_path):
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / "onnx" / "model.onnx").write_bytes(b"never opened")
    vit = vit_model(tmp_path / "org" / "vit")
    for name in ("model.safetensors", "config.json", PREPROCESSOR):
        (folder / name).write_bytes((vit / name).read_bytes())
    assert load(repository(folder)).library == "transformers"


def test_a_pickle_beside_a_graph_is_never_opened(tmp_path):
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(repository(folder), allow_pickle=True).library == "onnx"


def test_a_timm_config_with_a_preprocessor_beside_its_graph(tmp_path):
    folder = timm_model(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(tmp_path / "away")
    source = onnx_model(tmp_path / "org" / "source")
    (folder / PREPROCESSOR).write_bytes((source / PREPROCESSOR).read_bytes())
    (folder / "model.onnx").write_bytes((source / "onnx" / "model.onnx").read_bytes())
    model = load(repository(folder))
    assert (model.library, model.architecture) == ("onnx", "test_resnet")
