"""Tiny classifiers as ONNX graphs with known weights, in Hub layout, and what they answer by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers import ViTImageProcessor

from tests.support.tiny_models import ANIMALS, CARD, write_json

SIDE = 16
CONFIG = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "id2label": {str(number): name for number, name in enumerate(ANIMALS)},
}
Array = npt.NDArray[Any]


def weights_of(classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """The numbers of the graph: a convolution of 3 x 3 with stride 2, and a linear layer."""
    generator = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3, 3, 3), "offset": (4,), "linear": (classes, 4), "bias": (classes,)}
    return {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def by_hand(weights: Mapping[str, Array], pixels: Array) -> Array:
    """Convolution, ReLU, mean over positions, linear layer: float64 ``[b, 3, h, w] -> [b, classes]``."""
    kernel, pixels = weights["kernel"].astype(np.float64), pixels.astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    maps = np.einsum("bchwij,ocij->bohw", windows, kernel) + weights["offset"].astype(np.float64)[:, None, None]
    features = np.maximum(maps, 0).mean((2, 3))
    return features @ weights["linear"].astype(np.float64).T + weights["bias"].astype(np.float64)


def graph_of(
    weights: Mapping[str, Array],
    batch: str | int = "batch",
    kind: int = TensorProto.FLOAT,
    shape: tuple[Any, ...] = (3, SIDE, SIDE),
    output: str = "logits",
) -> onnx.ModelProto:
    """The graph, with its weights in it."""
    classes = len(weights["bias"])
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel", "offset"], ["maps"], strides=[2, 2]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("Gemm", ["features", "linear", "bias"], [output], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixel_values", kind, [batch, *shape])],
        [helper.make_tensor_value_info(output, kind, [batch, classes])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def onnx_model(
    folder: Path,
    model: onnx.ModelProto | None = None,
    file: str | None = "onnx/model.onnx",
    processor: Any = None,
    **config: Any,
) -> Path:
    """Save a graph (our own unless another is given) in Hub layout; further arguments go into its config.json."""
    (folder / "onnx").mkdir(parents=True)
    if file is not None:
        (folder / file).write_bytes((model or graph_of(weights_of())).SerializeToString())
    settings = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    write_json(folder / "config.json", settings)
    (processor or ViTImageProcessor(size={"height": SIDE, "width": SIDE})).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def put_outside(tensor: onnx.TensorProto, **place: Any) -> bytes:
    """Take a tensor's bytes out of a graph, and say that they lie at this place."""
    content = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return content
