"""Published models and real photographs: they recognise what they should, through preprocessing that is their own."""

import csv
import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, AutoModelForImageClassification

from indexers.loaders import load
from indexers.loaders.preprocessing import difference
from indexers.sources import expand, fetch, revision_of

REALHUB = Path(os.environ.get("HUBHOUND_TEST_REALHUB", Path(__file__).parents[3] / "shared" / "realhub"))
PHOTOGRAPHS = 40

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (REALHUB / "models").is_dir(), reason=f"there are no real models in {REALHUB}"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photographs():
    with (REALHUB / "images.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    rows = rows[:: len(rows) // PHOTOGRAPHS][:PHOTOGRAPHS]
    images = []
    for row in rows:
        with Image.open(REALHUB / row["file"]) as image:
            images.append((image.convert("RGB"), int(row["class_index"])))
    return images


def get(name):
    (source,) = expand([str(REALHUB / "models" / name)])
    return load(fetch(source, revision_of(source)[0]))


# Top-1 on 1000 such photographs, measured with the libraries alone.
@pytest.mark.parametrize(
    "name, expected, background",
    [
        ("timm/tf_efficientnet_lite0.in1k", 0.875, 0),
        ("google/mobilenet_v2_1.0_224", 0.872, 1),
        ("google/mobilenet_v1_0.25_128", 0.449, 1),
    ],
)
def test_models_recognise_photographs(photographs, name, expected, background):
    model = get(name)
    with torch.inference_mode():
        pixels = torch.stack([model.preprocessing.to_pixels(image) for image, _ in photographs])
        batches = [model.preprocessing.normalise(batch) for batch in pixels.split(8)]
        answers = torch.cat([model.forward(model.module, batch) for batch in batches])
    assert answers.shape == (PHOTOGRAPHS, 1000 + background)
    right = sum(int(row.argmax()) == truth + background for row, (_, truth) in zip(answers, photographs, strict=True))
    # Three standard errors of a proportion among so few.
    assert right / PHOTOGRAPHS == pytest.approx(expected, abs=3 * (expected * (1 - expected) / PHOTOGRAPHS) ** 0.5)
    assert model.licence == "apache-2.0"
    assert model.labels[background] == "tench, Tinca tinca"


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0.in1k", "tf_efficientnet_lite2.in1k"])
def test_timm_preprocessing_and_answers(photographs, name):
    folder = REALHUB / "models" / "timm" / name
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(reference), is_training=False)
    compare(get(f"timm/{name}"), transform, reference, photographs)


@pytest.mark.parametrize(
    "name",
    [
        "google/mobilenet_v1_0.25_128",
        "google/mobilenet_v1_0.75_192",
        "google/mobilenet_v2_1.0_224",
        "coral/mobilenet_v2_inat_bird",
    ],
)
def test_transformers_preprocessing_and_answers(photographs, name):
    folder = REALHUB / "models" / name
    processor = AutoImageProcessor.from_pretrained(folder)
    reference = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    compare(
        get(name),
        lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
        lambda pixels: reference(pixel_values=pixels).logits,
        photographs,
    )


def compare(model, transform, run, photographs):
    differences = []
    for image, _ in photographs:
        pixels = model.preprocessing.to_pixels(image)
        assert pixels.dtype == torch.uint8
        differences.append(difference(model.preprocessing.normalise(pixels), transform(image)))
    assert max(differences) < 1e-5
    few = [image for image, _ in photographs[:4]]
    with torch.inference_mode():
        expected = run(torch.stack([transform(image) for image in few]))
        pixels = torch.stack([model.preprocessing.to_pixels(image) for image in few])
        found = model.forward(model.module, model.preprocessing.normalise(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_models_with_the_same_resizing_share_it():
    assert get("google/mobilenet_v2_1.0_224").preprocessing.key == get("coral/mobilenet_v2_inat_bird").preprocessing.key


def test_all_of_the_folder_is_found():
    sources = expand([str(REALHUB / "models")])
    assert len(sources) == 6
    assert [source.repo for source in sources] == sorted(source.repo for source in sources)
