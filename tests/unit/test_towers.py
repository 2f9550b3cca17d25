"""Which models a user means, and what is loaded for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.encoder import ConceptEncoder
from engine.errors import EncoderError, InputError, ModelFailedError, ModelRefusedError
from engine.probes import open_image
from indexers.loaders import load
from indexers.sources import ModelSource
from indexers.towers import LoadOptions, TowerSource, expand_towers, load_tower
from tests.support.tiny_models import repository, timm_model, vit_model
from tests.support.tiny_vlm import COCA_CONFIG, SIZE, inputs_of, save_vlm, write_photos

CPU = torch.device("cpu")


def names(*arguments: str) -> list[str]:
    return [source.name for source in expand_towers(arguments)]


def test_open_clip_names_stay_and_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names("open_clip:RN50/openai", "open_clip:hf-hub:org/a", "open_clip:local-dir:my/clip") == [
        "open_clip:RN50/openai",
        "open_clip:hf-hub:org/a",
        f"open_clip:local-dir:{tmp_path}/my/clip",
    ]
    (source,) = expand_towers(["open_clip:RN50/openai"])
    assert source == TowerSource("open_clip:RN50/openai") and source.place == "open_clip:RN50/openai"


def test_classifiers_of_the_hub_and_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zoo/b", "zoo/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = expand_towers(["timm/x.y@v2", "zoo"])
    assert [source.name for source in found] == ["timm/x.y", "zoo/a", "zoo/b"]
    assert found[0].classifier == ModelSource("timm/x.y", "v2") and found[0].place == "timm/x.y@v2"
    assert found[1].place == str(tmp_path / "zoo/a")


def test_a_file_names_models_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "# candidates",
        "",
        "open_clip:RN50/openai   # the first",
        "  org/one\t#tab",
        "open_clip:local-dir:a#b",
        "org/two",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    expected = ["open_clip:RN50/openai", "org/one", f"open_clip:local-dir:{tmp_path}/a#b", "org/two"]
    assert names("@list.txt") == expected
    assert names("org/two", "@list.txt", "org/zero") == ["org/two", *expected[:3], "org/zero"]


def test_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo/a").mkdir(parents=True)
    (tmp_path / "zoo/a/config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "zoo")
    assert names("open_clip:a/b", "org/a", "org/a", "open_clip:a/b") == ["open_clip:a/b", "org/a"]
    assert names("zoo/a", str(tmp_path / "zoo"), "open_clip:local-dir:x", f"open_clip:local-dir:{tmp_path}/x") == [
        "zoo/a",
        f"open_clip:local-dir:{tmp_path}/x",
    ]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for root in ("here", "there"):
        (tmp_path / root / "zoo/a").mkdir(parents=True)
        (tmp_path / root / "zoo/a/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"here/zoo/a and .*there/zoo/a are both called zoo/a"):
        expand_towers([str(tmp_path / "here"), str(tmp_path / "there")])
    with pytest.raises(InputError, match="both called org/a"):
        expand_towers(["org/a@v1", "org/a@v2"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nonsense", "neither a folder nor a model on the Hub"),
        ("", "neither a folder"),
        ("@missing.txt", "model file missing.txt cannot be read"),
        ("@empty.txt", "empty.txt names no model"),
        ("@nested.txt", "nested.txt: @empty.txt: a list of models cannot name another list"),
        ("@wrong.txt", "wrong.txt: 'nonsense' is neither"),
        ("@binary.txt", "cannot be read"),
    ],
)
def test_what_names_nothing(argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "nested.txt").write_text("org/a\n@empty.txt\n")
    (tmp_path / "wrong.txt").write_text("org/a\nnonsense\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        expand_towers([argument])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_argument_is_an_error() -> None:
    with pytest.raises(InputError, match="no model is named"):
        expand_towers([])


def test_a_vision_language_model(tmp_path: Path) -> None:
    name = save_vlm(tmp_path / "clip")
    (photo,) = write_photos(tmp_path / "photos", 1, 0)
    tower = load_tower(TowerSource(name), CPU)
    assert tower.name == name and not tower.module.training
    assert len(tower.revision) == 64
    state = load_file(tmp_path / "clip/open_clip_model.safetensors")
    assert tower.parameters == sum(value.numel() for value in state.values())
    assert not any(parameter.requires_grad for parameter in tower.module.parameters())
    image = tower.preprocess(open_image(photo))
    torch.testing.assert_close(image, inputs_of(photo))
    with torch.no_grad():
        embedding = tower.forward(image[None])
    assert embedding.shape == (1, 8) and abs(float(embedding.norm()) - 1) > 0.1
    unit = ConceptEncoder.load(name).encode_images([open_image(photo)], 1)
    torch.testing.assert_close(embedding / embedding.norm(), torch.from_numpy(unit), atol=1e-6, rtol=1e-5)


def test_other_weights_are_another_revision(tmp_path: Path) -> None:
    first = load_tower(TowerSource(save_vlm(tmp_path / "clip", 0)), CPU)
    same = load_tower(TowerSource(save_vlm(tmp_path / "copy", 0)), CPU)
    other = load_tower(TowerSource(save_vlm(tmp_path / "clip", 1)), CPU)
    assert first.revision == same.revision != other.revision


def test_other_preprocessing_of_the_same_weights_is_another_revision(tmp_path: Path) -> None:
    first = load_tower(TowerSource(save_vlm(tmp_path / "clip")), CPU)
    config = tmp_path / "clip" / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["preprocess_cfg"] = {**content.get("preprocess_cfg", {}), "mean": [0.1, 0.2, 0.3]}
    config.write_text(json.dumps(content))
    other = load_tower(TowerSource(first.name), CPU)
    assert first.revision != other.revision


def test_coca_does_not_normalise(tmp_path: Path) -> None:
    tower = load_tower(TowerSource(save_vlm(tmp_path / "coca", config=COCA_CONFIG)), CPU)
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding = tower.forward(images)
        unit = tower.module.encode_image(images)
    norms = embedding.norm(dim=1)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))  # its own way
    assert float(norms.max() - norms.min()) > 1e-3
    torch.testing.assert_close(embedding / norms[:, None], unit)


@pytest.mark.parametrize("make", [timm_model, vit_model])
def test_a_classifier_answers_as_its_loader_says(make: object, tmp_path: Path) -> None:
    folder = make(tmp_path / "org/a")  # type: ignore[operator]
    (source,) = expand_towers([str(folder)])
    tower = load_tower(source, CPU)
    loaded = load(repository(folder))
    image = Image.effect_noise((50, 70), 80).convert("RGB")
    inputs = tower.preprocess(image)
    expected = loaded.preprocessing.normalise(loaded.preprocessing.to_pixels(image))
    torch.testing.assert_close(inputs, expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(tower.forward(inputs[None]), loaded.forward(loaded.module, inputs[None]))
    assert (tower.name, tower.parameters) == ("org/a", loaded.parameters)
    assert len(tower.revision) == 40 and not tower.module.training
    assert not any(parameter.requires_grad for parameter in tower.module.parameters())


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="does not exist"):
        load_tower(TowerSource(f"open_clip:local-dir:{tmp_path}"), CPU)
    name = save_vlm(tmp_path / "clip")
    file = tmp_path / "clip/open_clip_model.safetensors"
    state = load_file(file)
    save_file({key: value[:1].clone() if value.ndim else value for key, value in state.items()}, file)
    with pytest.raises(EncoderError) as caught:
        load_tower(TowerSource(name), CPU)
    assert "\n" not in str(caught.value) and caught.value.spec == name
    with pytest.raises(EncoderError, match="use open_clip:ARCH/PRETRAINED"):
        load_tower(TowerSource("open_clip:"), CPU)
    with pytest.raises(EncoderError, match="no architecture 'Foo'"):
        load_tower(TowerSource("open_clip:Foo/bar"), CPU)


def test_limits_of_loading_a_classifier(tmp_path: Path) -> None:
    folder = timm_model(tmp_path / "org/a")
    (source,) = expand_towers([str(folder)])
    with pytest.raises(ModelRefusedError):
        load_tower(source, CPU, LoadOptions(max_size_bytes=1000))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelRefusedError):
        load_tower(source, CPU)
    assert load_tower(source, CPU, LoadOptions(allow_pickle=True)).name == "org/a"
    (folder / "config.json").write_text(json.dumps({"architecture": "no_such_net"}))
    with pytest.raises(ModelFailedError):
        load_tower(source, CPU, LoadOptions(allow_pickle=True))
