"""Every way in which a config can be unusable: which reason a model gets, and what the one line says."""

import pytest
from safetensors.torch import load_file
from transformers import BitImageProcessor, CLIPConfig, CLIPModel, ImageGPTImageProcessor, TextNetImageProcessor

from engine.errors import ModelError, Reason
from indexers.loaders import load
from tests.support.tiny_models import (
    change_json,
    change_weights,
    declined,
    repository,
    save_transformers,
    timm_model,
    vit_model,
    write_json,
)

pytestmark = pytest.mark.usefixtures("one_thread")


both = pytest.mark.parametrize("make", [timm_model, vit_model])


@both
@pytest.mark.parametrize(
    "content, part",
    [
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
    ids=["open", "empty", "list", "binary", "deep"],
)
def test_a_broken_config(tmp_path, make, content, part):
    folder = make(tmp_path / "org" / "name")
    (folder / "config.json").write_bytes(content)
    declined(folder, Reason.BROKEN_CONFIG, "config.json", part)


@both
def test_a_missing_or_enormous_config(tmp_path, make):
    folder = make(tmp_path / "org" / "name")
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(40 * 2**20)
    declined(folder, Reason.BROKEN_CONFIG, "larger than 32 MiB")
    (folder / "config.json").unlink()
    declined(folder, Reason.BROKEN_CONFIG, "config.json is missing")


def test_settings_of_the_wrong_kind(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", hidden_size="wide")
    declined(folder, Reason.BROKEN_CONFIG)
    folder = timm_model(tmp_path / "org" / "timm")
    change_json(folder / "config.json", model_args={"no_such_argument": 1})
    declined(folder, Reason.BROKEN_CONFIG, "no_such_argument")
    change_json(folder / "config.json", model_args=["a"])
    declined(folder, Reason.BROKEN_CONFIG)


def test_a_config_that_asks_for_more_memory_than_its_weights(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", hidden_size=200_000, intermediate_size=800_000)
    declined(folder, Reason.BROKEN_CONFIG, "the config describes a model of", "the weights hold")
    folder = timm_model(tmp_path / "org" / "timm", "test_vit")
    change_json(folder / "config.json", model_args={"embed_dim": 200_000})
    declined(folder, Reason.BROKEN_CONFIG, "the config describes a model of")


@pytest.mark.parametrize("make, key", [(timm_model, "num_classes"), (vit_model, "num_labels")])
def test_a_config_that_asks_for_absurdly_many_outputs(tmp_path, make, key):
    folder = make(tmp_path / "org" / "name")
    change_json(folder / "config.json", **{key: 10**12})
    declined(folder, Reason.BROKEN_CONFIG, "1,000,000,000,000 outputs")


def test_unknown_architectures(tmp_path):
    folder = timm_model(tmp_path / "org" / "timm")
    change_json(folder / "config.json", architecture="resnet_of_tomorrow")
    declined(folder, Reason.UNKNOWN_ARCHITECTURE, "resnet_of_tomorrow", "update timm")
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", architectures=["ViT9ForImageClassification"])
    declined(folder, Reason.UNKNOWN_ARCHITECTURE, "ViT9ForImageClassification")
    change_json(folder / "config.json", architectures=None, model_type="vit9")
    declined(folder, Reason.UNKNOWN_ARCHITECTURE, "vit9")


def test_a_model_type_alone_is_enough(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", architectures=None)
    assert load(repository(folder)).architecture == "ViTForImageClassification"


def test_remote_code(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    code = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    (folder / "code.py").write_text(f"open({str(tmp_path / 'created')!r}, 'w')")
    change_json(folder / "config.json", auto_map=code)
    assert load(repository(folder)).architecture == "ViTForImageClassification"  # native code is there, and is used
    change_json(folder / "config.json", architectures=["MyForImageClassification"])
    declined(folder, Reason.REMOTE_CODE, "never run")
    change_json(folder / "config.json", model_type="my_own", architectures=["MyOwnModel"])
    declined(folder, Reason.REMOTE_CODE, "never run")
    assert not (tmp_path / "created").exists()


def test_remote_code_for_the_images(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'created')!r}, 'w')")
    mapped = {"AutoImageProcessor": "code.Processor"}
    change_json(folder / "preprocessor_config.json", image_processor_type="MyProcessor", auto_map=mapped)
    change_json(folder / "config.json", model_type="swin", architectures=["SwinForImageClassification"])
    with pytest.raises(ModelError) as caught:
        load(repository(folder))
    assert caught.value.reason in (Reason.REMOTE_CODE, Reason.BROKEN_WEIGHTS)  # a native processor may stand in
    assert not (tmp_path / "created").exists()


def test_models_that_do_something_else(tmp_path):
    folder = timm_model(tmp_path / "org" / "features")
    change_json(folder / "config.json", num_classes=0)
    declined(folder, Reason.NOT_A_CLASSIFIER, "num_classes is 0")
    change_json(folder / "config.json", num_classes=5, model_args={"num_classes": 0})
    declined(folder, Reason.NOT_A_CLASSIFIER)
    folder = timm_model(tmp_path / "org" / "map", "test_vit", model_args={"global_pool": ""})
    declined(folder, Reason.NOT_A_CLASSIFIER, "shape")
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    clip = CLIPConfig(text_config={**tiny, "vocab_size": 9}, vision_config={**tiny, "image_size": 8, "patch_size": 4})
    declined(save_transformers(tmp_path / "org" / "clip", CLIPModel, clip), Reason.NOT_A_CLASSIFIER, "CLIPModel")
    folder = vit_model(tmp_path / "org" / "bert")
    change_json(folder / "config.json", architectures=None, model_type="bert")
    declined(folder, Reason.NOT_A_CLASSIFIER, "bert")


@pytest.mark.parametrize("config", [{}, {"class_name": "Functional"}, {"architectures": []}, {"model_type": 3}])
def test_other_libraries(tmp_path, config):
    folder = timm_model(tmp_path / "org" / "name")
    write_json(folder / "config.json", config)
    declined(folder, Reason.UNSUPPORTED_LIBRARY, "neither timm's nor")


def test_quantised_weights(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    declined(folder, Reason.UNSUPPORTED_LIBRARY, "quantised")


def test_images_with_more_or_fewer_channels(tmp_path):
    folder = timm_model(tmp_path / "org" / "timm", pretrained_cfg={"input_size": [1, 28, 28]})
    stem = load_file(folder / "model.safetensors")["conv1.0.weight"]
    change_weights(folder, conv1__0__weight=stem[:, :1].contiguous())
    declined(folder, Reason.BAD_PREPROCESSING, "1 channels")
    folder = vit_model(tmp_path / "org" / "vit", num_channels=4)
    declined(folder, Reason.RUN_FAILED, "channel")


def test_images_of_another_size_than_the_model_takes(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "preprocessor_config.json", size={"height": 40, "width": 40})
    declined(folder, Reason.RUN_FAILED, "40")


def test_no_preprocessing(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    (folder / "preprocessor_config.json").unlink()
    declined(folder, Reason.BAD_PREPROCESSING, "preprocessor_config.json", "never guessed")


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"size": {"height": 100_000, "width": 100_000}}, "100000 pixels"),
        ({"size": {"shortest_edge": 100_000}, "do_center_crop": True, "crop_size": 32}, "100000 pixels"),
        ({"size": {"height": 0, "width": 32}}, "0 pixels"),
        ({"size": {"shortest_edge": 32}}, "depends on the image"),
        ({"image_std": [0, 1, 1]}, ""),
        ({"image_std": [float("nan"), 1, 1]}, ""),
        ({"image_mean": [0.5, 0.5]}, ""),
        ({"resample": 77}, ""),
        ({"size": "large"}, ""),
        ({"image_processor_type": "NoSuchImageProcessor"}, ""),
    ],
)
def test_unusable_preprocessing(tmp_path, changes, part):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "preprocessor_config.json", **changes)
    change_json(folder / "config.json", model_type="vit")
    with pytest.raises(ModelError) as caught:
        load(repository(folder))
    assert caught.value.reason is Reason.BAD_PREPROCESSING, caught.value
    assert part in caught.value.detail


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"input_size": [3, 100_000, 100_000]}, "100000 pixels"),
        ({"crop_pct": 0.0001}, "input_size / crop_pct"),
        ({"crop_pct": -1}, "crop_pct is -1"),
        ({"std": [0, 1, 1]}, ""),
        ({"mean": [0.5, 0.5]}, ""),
        ({"interpolation": "psychic"}, "psychic"),
        ({"input_size": [3, 0, 64]}, ""),
        ({"input_size": "large"}, ""),
    ],
)
def test_unusable_preprocessing_of_timm(tmp_path, changes, part):
    folder = timm_model(tmp_path / "org" / "timm", pretrained_cfg=changes)
    with pytest.raises(ModelError) as caught:
        load(repository(folder))
    expected = Reason.BROKEN_CONFIG if changes.get("input_size") == "large" else Reason.BAD_PREPROCESSING
    assert caught.value.reason is expected, caught.value
    assert part in caught.value.detail


def test_preprocessing_that_makes_no_pixels(tmp_path):
    processor = ImageGPTImageProcessor(clusters=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], size={"height": 8, "width": 8})
    folder = vit_model(tmp_path / "org" / "gpt", processor=processor)
    declined(folder, Reason.BAD_PREPROCESSING, "input_ids")


def test_preprocessing_whose_size_follows_the_image(tmp_path):
    folder = vit_model(tmp_path / "org" / "text", processor=TextNetImageProcessor())
    declined(folder, Reason.BAD_PREPROCESSING, "depends on the image")


def test_padding_after_scaling_is_not_mistaken_for_pixels(tmp_path):
    processor = BitImageProcessor(
        size={"height": 20, "width": 20}, do_center_crop=False, do_pad=True, pad_size={"height": 32, "width": 32}
    )
    folder = vit_model(tmp_path / "org" / "padded", processor=processor)
    declined(folder, Reason.BAD_PREPROCESSING, "more than a resize, a crop and a scaling")
