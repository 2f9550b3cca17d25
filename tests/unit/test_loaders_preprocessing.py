"""Splitting preprocessing: bytes and an affine map together are what the library does; equal keys, equal bytes."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from transformers import (
    AutoImageProcessor,
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    DonutImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PoolFormerImageProcessor,
    ViTImageProcessor,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from indexers.loaders import load
from indexers.loaders.preprocessing import difference
from tests.support.tiny_models import change_json, repository, timm_model, vit_model

SQUARE = {"height": 32, "width": 32}


pytestmark = pytest.mark.usefixtures("one_thread")


def pictures():
    generator = np.random.default_rng(1)
    for width, height in [(97, 61), (30, 30), (20, 300), (640, 480), (33, 32)]:
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        slope = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), dtype=np.uint8)
        yield Image.fromarray(noise)
        yield Image.fromarray(slope)


PROCESSORS = [
    ViTImageProcessor(size=SQUARE),
    ViTImageProcessor(size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
    ViTImageProcessor(size=SQUARE, do_normalize=False),
    ViTImageProcessor(size=SQUARE, do_rescale=False, do_normalize=False),
    ViTImageProcessor(size=SQUARE, do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3),
    ViTImageProcessor(size=SQUARE, rescale_factor=1 / 127.5, do_normalize=False),
    ViTImageProcessor(size=SQUARE, resample=0),
    ViTImageProcessorPil(size=SQUARE),
    DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=SQUARE),
    BeitImageProcessor(size={"height": 40, "width": 40}, crop_size=SQUARE, do_center_crop=True),
    BitImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),
    BitImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE),  # the crop pads
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.7),
    DonutImageProcessor(size=SQUARE, do_align_long_axis=False),
    EfficientNetImageProcessor(size=SQUARE),
    EfficientNetImageProcessor(size=SQUARE, rescale_offset=True, rescale_factor=1 / 127.5),
    EfficientNetImageProcessor(size=SQUARE, rescale_offset=True, rescale_factor=1 / 127.5, include_top=False),
    LevitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),  # blue, green, red
    MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE, do_flip_channel_order=False),
    PerceiverImageProcessor(size=SQUARE, crop_size={"height": 40, "width": 40}),
    PoolFormerImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE, crop_pct=0.8),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_the_parts_of_a_transformers_preprocessing_are_the_whole(tmp_path, processor):
    folder = vit_model(tmp_path / "org" / "vit", processor=processor)
    preprocessing = load(repository(folder)).preprocessing
    # What transformers makes of the saved settings, which need not be the class that saved them.
    processor = AutoImageProcessor.from_pretrained(folder)
    assert preprocessing.size == (32, 32)
    for picture in pictures():
        pixels = preprocessing.to_pixels(picture)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 32, 32)
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        assert difference(preprocessing.normalise(pixels), expected) < 1e-5


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [[3, 64, 64], [3, 48, 64]])
def test_the_parts_of_a_timm_preprocessing_are_the_whole(tmp_path, mode, interpolation, size):
    data = {
        "input_size": size,
        "interpolation": interpolation,
        "crop_mode": mode,
        "crop_pct": 0.9,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    preprocessing = load(repository(timm_model(tmp_path / "org" / "timm", pretrained_cfg=data))).preprocessing
    assert preprocessing.size == tuple(size[1:])
    whole = create_transform(**data, is_training=False)
    for picture in pictures():
        pixels = preprocessing.to_pixels(picture)
        assert pixels.dtype == torch.uint8
        assert difference(preprocessing.normalise(pixels), whole(picture)) < 1e-5


def test_pictures_that_are_not_rgb_are_made_so(tmp_path):
    preprocessing = load(repository(timm_model(tmp_path / "org" / "timm"))).preprocessing
    grey = Image.effect_noise((80, 90), 50)
    assert torch.equal(preprocessing.to_pixels(grey), preprocessing.to_pixels(grey.convert("RGB")))


def test_normalising_leaves_the_pixels_and_their_memory_format(tmp_path):
    preprocessing = load(repository(timm_model(tmp_path / "org" / "timm"))).preprocessing
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8).to(memory_format=torch.channels_last)
    before = pixels.clone()
    values = preprocessing.normalise(pixels)
    assert torch.equal(pixels, before)
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(values, (pixels * preprocessing.scale - mean) / std)


def keys_of_transformers(tmp_path, settings):
    folder = vit_model(tmp_path / "org" / "vit", processor=BitImageProcessor(size={"shortest_edge": 36}))
    change_json(folder / "preprocessor_config.json", crop_size=SQUARE, **settings)
    return load(repository(folder)).preprocessing.key


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.1, 0.2, 0.3]},
        {"image_std": [0.1, 0.2, 0.3]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 0.5},
        {"processor_class": "SomethingProcessor"},
        {"pad_size": {"height": 99, "width": 99}},
        {"feature_extractor_type": "BitFeatureExtractor"},
    ],
)
def test_equal_keys_where_only_the_affine_part_differs(tmp_path, settings):
    assert keys_of_transformers(tmp_path / "a", settings) == keys_of_transformers(tmp_path / "b", {})


@pytest.mark.parametrize("settings", [{"resample": 2}, {"size": {"shortest_edge": 40}}, {"size": SQUARE}])
def test_other_keys_where_the_bytes_differ(tmp_path, settings):
    assert keys_of_transformers(tmp_path / "a", settings) != keys_of_transformers(tmp_path / "b", {})


def test_keys_of_timm(tmp_path):
    variants = {
        "plain": {},
        "mean": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "same size": {"crop_pct": 0.8751},
        "crop": {"crop_pct": 0.9},
        "size": {"input_size": [3, 96, 96]},
        "interpolation": {"interpolation": "bilinear"},
        "mode": {"crop_mode": "squash"},
        "border": {"crop_mode": "border"},
        "border, other mean": {"crop_mode": "border", "mean": [0.5, 0.5, 0.5]},
    }
    keys = {
        name: load(repository(timm_model(tmp_path / "org" / name, pretrained_cfg=data))).preprocessing.key
        for name, data in variants.items()
    }
    same = {"plain", "mean", "same size"}
    for one, other in itertools.combinations(variants, 2):
        assert (keys[one] == keys[other]) == ({one, other} <= same), (one, other)
