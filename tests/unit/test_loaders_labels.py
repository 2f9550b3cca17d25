"""Labels as configs declare them."""

import pytest

from indexers.loaders import Repository, load
from indexers.loaders.labels import imagenet_labels, tidy
from tests.support.tiny_models import ANIMALS, change_json, repository, timm_model, vit_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "name",
    ["", "  ", "LABEL_0", "label_0", "Label 0", "LABEL_17", "class_0", "class 0", "Category-3", "output0", "0", None],
)
def test_placeholders_are_no_labels(name):
    assert tidy([name], 1) == (None,)


@pytest.mark.parametrize(
    "name", ["cat", "7", "1990", "class of 1990", "labelled", "Label", "B-52", "output", "2 cats", "unknown"]
)
def test_labels_that_only_look_a_bit_like_placeholders(name):
    assert tidy([name], 1) == (name,)


def test_labels_are_brought_into_one_per_output():
    assert tidy(["a", " b\n c "], 4) == ("a", "b c", None, None)
    assert tidy(["a", "b", "c"], 2) == ("a", "b")
    assert tidy({2: "c", 0: "a"}, 3) == ("a", None, "c")
    assert tidy(["a", 12.5, True], 3) == ("a", "12.5", "True")


def test_wordnet_ids_become_words():
    assert tidy(["n01440764", "n02123045", "n99999999"], 3) == ("tench, Tinca tinca", "tabby, tabby cat", "n99999999")
    assert tidy(["n01440764", "x"], 2, {"n01440764": "a fish", "x": "not asked for"}) == ("a fish", "x")
    assert tidy(["n01440764"], 1, {"n01440764": ["no text"]}) == ("tench, Tinca tinca",)


@pytest.mark.parametrize(
    "tag, outputs, first",
    [
        ("a1_in1k", 1000, "tench, Tinca tinca"),
        ("augreg_in21k_ft_in1k", 1000, "tench, Tinca tinca"),
        ("augreg_in21k", 21843, "organism, being"),
        ("sw_in12k", 11821, None),
        ("a1_in1k", 10, ""),
        ("lvd142m", 1000, ""),
        ("", 1000, ""),
    ],
)
def test_tags_that_name_a_version_of_imagenet(tag, outputs, first):
    labels = imagenet_labels(tag, outputs)
    if first == "":
        assert labels is None
    else:
        assert len(labels) == outputs
        assert first in (None, labels[0])


def test_where_timm_configs_keep_labels(tmp_path):
    folder = timm_model(tmp_path / "org" / "timm")
    config = folder / "config.json"
    assert load(repository(folder)).labels == tuple(ANIMALS)
    change_json(config, label_names=["n01440764", *ANIMALS[1:]], label_descriptions={"n01440764": "a fish"})
    assert load(repository(folder)).labels == ("a fish", *ANIMALS[1:])
    change_json(config, label_names=["0", "LABEL_1", "c"], label_descriptions=["zero", "one", "sea"])
    assert load(repository(folder)).labels == ("zero", "one", "c", None, None)
    change_json(config, label_names=None, label_descriptions=None)
    assert load(repository(folder)).labels == (None,) * 5
    legacy = {"architecture": "test_resnet", "num_classes": 5, "labels": ANIMALS, "input_size": [3, 64, 64]}
    change_json(config, pretrained_cfg=None, **legacy)
    assert load(repository(folder)).labels == tuple(ANIMALS)


def test_timm_models_whose_name_says_imagenet(tmp_path):
    folder = timm_model(tmp_path / "org" / "timm", classes=1000)
    change_json(folder / "config.json", label_names=None)
    labels = load(Repository("timm/test_resnet.r160_in1k", "0" * 40, folder)).labels
    assert labels[0] == "tench, Tinca tinca"
    assert load(Repository("org/test_resnet", "0" * 40, folder)).labels == (None,) * 1000
    change_json(folder / "config.json", pretrained_cfg={"tag": "r160_in1k"})
    assert load(Repository("org/test_resnet", "0" * 40, folder)).labels == labels


def test_labels_of_transformers_models(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    change_json(folder / "config.json", id2label={"0": "LABEL_0", "1": "bee", "2": "2", "3": "n02123045", "4": " eel "})
    assert load(repository(folder)).labels == (None, "bee", None, "tabby, tabby cat", "eel")
