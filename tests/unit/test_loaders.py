"""Loading good models: what comes out is what their libraries make of them."""

import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PPLCNetConfig,
    PPLCNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging as transformers_logging

import indexers.loaders
from engine.errors import ModelFailedError, ModelRefusedError, Reason
from indexers.loaders import Metadata, Repository, load
from tests.support.tiny_models import (
    ANIMALS,
    VIT,
    change_json,
    deit_with_teacher,
    repository,
    save_transformers,
    timm_model,
    vit_model,
    write_json,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def photograph(width=120, height=80, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def answer(model, image):
    with torch.inference_mode():
        pixels = model.preprocessing.to_pixels(image)[None]
        return model.forward(model.module, model.preprocessing.normalise(pixels))


def test_a_timm_model_answers_as_timm_makes_it(tmp_path):
    folder = timm_model(tmp_path / "org" / "resnet")
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(reference), is_training=False)
    image = photograph()
    with torch.inference_mode():
        expected = reference(transform(image)[None])
    model = load(repository(folder))
    torch.testing.assert_close(answer(model, image), expected, rtol=1e-5, atol=1e-5)
    assert model.library == "timm"
    assert model.architecture == "test_resnet"
    assert model.labels == tuple(ANIMALS)
    assert model.parameters == sum(parameter.numel() for parameter in reference.parameters())
    assert model.preprocessing.size == (64, 64)
    assert model.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)
    assert model.preprocessing.std == pytest.approx((0.229, 0.224, 0.225), abs=1e-6)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("architecture", ["test_vit", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_not_drawing_random_weights_changes_nothing(tmp_path, architecture):
    folder = timm_model(tmp_path / "org" / "name", architecture)
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    loaded = load(repository(folder)).module
    expected = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_a_transformers_model_answers_as_transformers_makes_it(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    image = photograph()
    reference = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = reference(**AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")).logits
    model = load(repository(folder))
    torch.testing.assert_close(answer(model, image), expected, rtol=1e-5, atol=1e-5)
    assert model.library == "transformers"
    assert model.architecture == "ViTForImageClassification"
    assert model.labels == tuple(ANIMALS)
    assert model.preprocessing.size == (32, 32)
    assert model.parameters == sum(parameter.numel() for parameter in reference.parameters())


@pytest.mark.parametrize("make", [timm_model, vit_model])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, make, dtype):
    folder = make(tmp_path / "org" / "name")
    tensors = load_file(folder / "model.safetensors")
    halved = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(halved, folder / "model.safetensors", {"format": "pt"})
    model = load(repository(folder))
    assert {tensor.dtype for tensor in model.module.state_dict().values()} <= {torch.float32, torch.int64}
    assert answer(model, photograph()).dtype == torch.float32


def test_a_distilled_model_gives_its_logits(tmp_path):
    model = load(repository(deit_with_teacher(tmp_path / "org" / "deit")))
    assert model.architecture == "DeiTForImageClassificationWithTeacher"
    assert answer(model, photograph()).shape == (1, 5)
    assert model.labels == (None,) * 5


def test_a_model_that_has_another_name_for_its_logits(tmp_path):
    config = PPLCNetConfig(scale=0.25, class_expand=32, num_labels=5)
    model = load(repository(save_transformers(tmp_path / "org" / "lcnet", PPLCNetForImageClassification, config)))
    assert answer(model, photograph()).shape == (1, 5)


def test_a_config_that_asks_for_tuples_gives_logits_all_the_same(tmp_path):
    model = load(repository(vit_model(tmp_path / "org" / "vit", return_dict=False, output_hidden_states=True)))
    assert answer(model, photograph()).shape == (1, 5)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_timm_model_saved_by_transformers(tmp_path, prefix):
    config = TimmWrapperConfig(
        architecture="test_resnet",
        num_labels=5,
        id2label=dict(enumerate(ANIMALS)),
        pretrained_cfg={"input_size": [3, 32, 32], "num_classes": 5, "classifier": "fc", "first_conv": "conv1.0"},
    )
    folder = tmp_path / "org" / "wrapped"
    wrapper = TimmWrapperForImageClassification(config).eval()
    wrapper.save_pretrained(folder)
    if not prefix:
        tensors = load_file(folder / "model.safetensors")
        tensors = {name.removeprefix("timm_model."): value for name, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors")
    model = load(repository(folder))
    assert model.library == "timm"
    assert model.labels == tuple(ANIMALS)
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.forward(model.module, pixels), wrapper(pixels).logits)


def test_sharded_weights(tmp_path):
    whole = vit_model(tmp_path / "org" / "whole")
    sharded = save_transformers(
        tmp_path / "org" / "sharded", ViTForImageClassification, ViTConfig(**VIT, num_labels=5), max_shard_size="10KB"
    )
    assert not (sharded / "model.safetensors").exists()
    assert len(list(sharded.glob("*.safetensors"))) > 1
    image = photograph()
    torch.testing.assert_close(answer(load(repository(sharded)), image), answer(load(repository(whole)), image))


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_weights_under_another_name(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    assert load(repository(folder)).labels == tuple(ANIMALS)


@pytest.mark.parametrize("make", [timm_model, vit_model])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pth"])
def test_pickles_are_opened_only_when_allowed(tmp_path, make, name):
    folder = make(tmp_path / "org" / "name")
    image = photograph()
    expected = answer(load(repository(folder)), image)
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelRefusedError, match="--allow-pickle") as caught:
        load(repository(folder))
    assert caught.value.reason is Reason.PICKLE_ONLY
    torch.testing.assert_close(answer(load(repository(folder), allow_pickle=True), image), expected)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_no_pickle_runs_code_even_when_allowed(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "created")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFailedError) as caught:
        load(repository(folder), allow_pickle=True)
    assert caught.value.reason is Reason.BROKEN_WEIGHTS
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_safetensors_are_preferred_to_a_pickle_beside_them(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(repository(folder), allow_pickle=True).labels == tuple(ANIMALS)


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_nothing_but_the_chosen_files_is_looked_at(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "else/where", "peft_type": "LORA"})
    (folder / "adapter_model.safetensors").write_bytes(b"rubbish")
    (folder / "model.py").write_text("raise SystemExit")
    (folder / "training_args.bin").write_bytes(b"rubbish")
    assert load(repository(folder)).labels == tuple(ANIMALS)


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_what_is_stated_about_a_model_goes_along(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    metadata = Metadata(licence="mit", tags=("a", "b"), downloads=7, likes=3, library="timm")
    model = load(Repository("org/name", "f" * 40, folder, metadata))
    assert (model.repo, model.revision) == ("org/name", "f" * 40)
    assert (model.licence, model.tags, model.downloads, model.likes) == ("mit", ("a", "b"), 7, 3)


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_loading_is_quiet_and_leaves_the_process_as_it_was(tmp_path, make, capfd):
    folder = make(tmp_path / "org" / "name")
    capfd.readouterr()
    levels = {name: logging.getLogger(name).level for name in ("timm", "transformers", "huggingface_hub")}
    bars, dtype, state = (
        transformers_logging.is_progress_bar_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state(),
    )
    load(repository(folder))
    change_json(folder / "config.json", architecture=None, architectures=["Nope"], model_type="nope")
    with pytest.raises(ModelRefusedError):
        load(repository(folder))
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_and_resizing_from_several_threads(tmp_path):
    folders = [timm_model(tmp_path / "org" / "timm"), vit_model(tmp_path / "org" / "vit")]
    images = [photograph(50 + 7 * seed, 90 - 3 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda folder: load(repository(folder)), folders * 3))
    for model in models[:2]:
        expected = [model.preprocessing.to_pixels(image) for image in images]
        barrier = threading.Barrier(6)

        def resize_all(model=model, barrier=barrier):
            barrier.wait()
            return [model.preprocessing.to_pixels(image) for image in images]

        with ThreadPoolExecutor(6) as pool:
            for found in [future.result() for future in [pool.submit(resize_all) for _ in range(6)]]:
                assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_public_names():
    assert indexers.loaders.__all__ == ["LoadedModel", "Metadata", "Preprocessing", "Repository", "load"]


def test_importing_the_loaders_imports_no_library():
    code = "import indexers.loaders, indexers.sources, json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "timm", "transformers", "numpy", "PIL", "huggingface_hub.hf_api"}
    assert not heavy & set(json.loads(result.stdout))
