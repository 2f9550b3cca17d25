"""Tiny vision-language models with random weights, saved in open_clip's own format, and tasks and images for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP, CoCa
from PIL import Image
from safetensors.torch import save_file

from engine.performance import model_name
from engine.schema import Performance, Task
from engine.tasks import add_task, draw_task
from engine.writer import IndexWriter
from tests.support.small_index import make_index

SIZE = 16
BLOCKS = 2
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

_VISION: dict[str, Any] = {"image_size": SIZE, "layers": BLOCKS, "width": 16, "head_width": 8, "patch_size": 8}
_TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1}
CLIP_CONFIG: dict[str, Any] = {"embed_dim": 8, "vision_cfg": _VISION, "text_cfg": _TEXT}
COCA_CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {**_VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**_TEXT, "attn_pooler_heads": 1},
    "custom_text": True,
}


def save_vlm(folder: Path, seed: int = 0, config: dict[str, Any] = CLIP_CONFIG) -> str:
    """Saves a model as a folder that open_clip loads by ``local-dir:``; answers its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = CoCa if "multimodal_cfg" in config else CLIP
        model = kind(**{key: value for key, value in config.items() if key != "custom_text"})
        for parameter in model.visual.parameters():  # fresh ones are so small that all models are alike
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"}
    written = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model_name(f"local-dir:{folder}", "")


def inputs_of(path: Path) -> torch.Tensor:
    """What a model of ``save_vlm`` is shown of an image of its own size, float32 ``[3, SIZE, SIZE]``."""
    pixels = np.asarray(Image.open(path), np.float32) / 255
    return torch.from_numpy(((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1))


def write_photos(folder: Path, count: int, seed: int) -> list[Path]:
    """Images of noise around one colour, each of the size that the models take."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 200, 3)
    paths = [folder / f"{i:02d}.png" for i in range(count)]
    for path in paths:
        pixels = colour + rng.integers(0, 56, (SIZE, SIZE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return paths


def add_photo_task(writer: IndexWriter, folder: Path, name: str, count: int = 3, seed: int = 0) -> Task:
    """Adds a task of so many photos, all of them its sample; one that is there is replaced."""
    write_photos(folder / f"{name}-{seed}", count, seed)
    drawn = draw_task(name, folder / f"{name}-{seed}", count)
    add_task(writer, drawn, replace=True)
    return drawn.task


def put_accuracies(writer: IndexWriter, accuracies: dict[str, dict[str, float]]) -> None:
    """Writes known performance, by model and task."""
    writer.put_performance(
        [
            Performance(model=model, task=task, value=value)
            for model, values in accuracies.items()
            for task, value in values.items()
        ]
    )


TASKS = ("cars", "food", "pets")
N_STEPS = 4
PASSES = ("--n-steps", str(N_STEPS), "--device", "cpu", "--max-batch", "5")
"""Options of ``hubhound profile`` that make one pass an image."""


def make_task_index(folder: Path, models: list[str]) -> Path:
    """An index with three tasks of three photos and accuracies of some models, of which the last lacks one."""
    make_index(folder)
    with IndexWriter(folder) as writer:
        for i, task in enumerate(TASKS):
            add_photo_task(writer, folder.parent / "photos", task, seed=i)
        rng = np.random.default_rng(0)
        accuracies = {model: dict(zip(TASKS, rng.random(3).round(3).tolist(), strict=True)) for model in models}
        accuracies[models[-1]].pop(TASKS[0])
        put_accuracies(writer, accuracies)
        writer.export_knowledge()
    return folder
