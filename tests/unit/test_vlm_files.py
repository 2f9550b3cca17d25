"""Vision-language models in open_clip's layout: which of their files are opened, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from open_clip import CustomTextCLIP
from safetensors.torch import save_file

from engine.errors import ModelError, ModelRefusedError, Reason
from indexers import vlm_files
from indexers.loaders.declined import Declined
from indexers.towers import LoadOptions, TowerSource, load_tower
from tests.support.tiny_vlm import CLIP_CONFIG, save_vlm

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("names", "pickles", "expected"),
    [
        ({"open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"}, False, "open_clip_model.safetensors"),
        ({"open_clip_pytorch_model.safetensors", "model.safetensors"}, False, "open_clip_pytorch_model.safetensors"),
        ({"open_clip_pytorch_model.bin", "open_clip_model.safetensors"}, True, "open_clip_model.safetensors"),
        ({"open_clip_pytorch_model.bin"}, True, "open_clip_pytorch_model.bin"),
        ({"open_clip_pytorch_model.pt"}, True, "open_clip_pytorch_model.pt"),
        ({"open_clip_pytorch_model.bin"}, False, Reason.PICKLE_ONLY),
        ({"model.safetensors", "sub/open_clip_model.safetensors"}, True, Reason.NO_WEIGHTS),
    ],
)
def test_the_weights_are_chosen_by_name(names: set[str], pickles: bool, expected: str | Reason) -> None:
    names |= {vlm_files.CONFIG}
    if isinstance(expected, Reason):
        with pytest.raises(Declined) as caught:
            vlm_files.choose_weights(names, allow_pickle=pickles)
        assert caught.value.reason is expected
        return
    chosen = vlm_files.choose_weights(names, allow_pickle=pickles)
    assert chosen.files == (expected,)
    assert chosen.pickled == (not expected.endswith(".safetensors"))


def test_another_layout_is_refused_with_what_is_needed() -> None:
    with pytest.raises(Declined) as caught:
        vlm_files.choose_weights({"config.json", "model.safetensors"}, allow_pickle=True)
    assert caught.value.reason is Reason.UNSUPPORTED_LIBRARY
    assert "open_clip's layout" in caught.value.detail


def test_a_folders_revision_follows_what_matters(tmp_path: Path) -> None:
    folder = tmp_path / "org" / "clip"
    save_vlm(folder)

    def revision() -> str:
        return vlm_files.revision_of("org/clip", folder)[0]

    seen = [revision()]
    (folder / "notes.txt").write_text("nothing")
    assert revision() == seen[0]
    for name in (vlm_files.CONFIG, "README.md", "open_clip_model.safetensors"):
        with (folder / name).open("ab") as stream:
            stream.write(b" ")
        seen.append(revision())
    assert len(set(seen)) == 4
    assert {len(one) for one in seen} == {40}


def text_tower(folder: Path) -> Path:
    """A model whose text tower is one of transformers, its config beside it."""
    folder.mkdir(parents=True)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **small).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    torch.manual_seed(0)
    model = CustomTextCLIP(8, CLIP_CONFIG["vision_cfg"], {**text, "hf_model_pretrained": False})
    written = {"embed_dim": 8, "vision_cfg": CLIP_CONFIG["vision_cfg"], "text_cfg": {**text, "hf_model_name": "bert-x"}}
    (folder / vlm_files.CONFIG).write_text(json.dumps({"model_cfg": written}))
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_a_folder_is_the_model_that_its_name_means(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "org" / "clip"
    name = save_vlm(folder) if kind == "open_clip" else f"open_clip:local-dir:{text_tower(folder)}"
    ours = load_tower(TowerSource("open_clip:hf-hub:org/clip", folder=folder), CPU)
    theirs = load_tower(TowerSource(name), CPU)
    assert (ours.name, ours.revision, ours.parameters) == (
        "open_clip:hf-hub:org/clip",
        theirs.revision,
        theirs.parameters,
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.forward(images), theirs.forward(images))


def test_a_text_tower_that_is_not_there_or_is_code_is_refused(tmp_path: Path) -> None:
    folder = text_tower(tmp_path / "org" / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": {"AutoModel": "x.Y"}}))
    for reason in (Reason.REMOTE_CODE, Reason.UNSUPPORTED_LIBRARY):
        with pytest.raises(ModelRefusedError) as caught:
            load_tower(TowerSource("open_clip:x", folder=folder), CPU)
        assert caught.value.reason is reason
        (folder / "config.json").unlink(missing_ok=True)


def test_a_pickle_is_opened_when_allowed_and_only_for_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "org" / "clip"
    save_vlm(folder)
    source = TowerSource("open_clip:x", folder=folder)
    expected = load_tower(source, CPU)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(expected.module.state_dict(), folder / "open_clip_pytorch_model.bin")
    assert load_tower(source, CPU, LoadOptions(allow_pickle=True)).revision == expected.revision
    canary = tmp_path / "canary"
    torch.save({"x": _Opens(str(canary))}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load_tower(source, CPU, LoadOptions(allow_pickle=True))
    assert caught.value.reason is Reason.BROKEN_WEIGHTS
    assert not canary.exists()


class _Opens:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")
