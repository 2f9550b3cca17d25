"""Repositories that cannot be indexed, one small function a kind; each says which reason a crawler has to give."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import Reason
from indexers.loaders.layout import has_onnxruntime
from tests.support.hub_bases import write_card
from tests.support.hub_cases import WEIGHTS, Case, Kind

HEADER_BYTES = 100_000_000

BAD_KINDS: dict[str, Kind] = {}
"""All kinds that are bad for good, by name."""

PASSING_KINDS: dict[str, Kind] = {}
"""Kinds that a crawler tries several times before it gives up; not part of a crowd unless asked for."""


def _kind(
    reason: Reason, why: str, *, passing: bool = False, needs_onnx: bool = False, **how: bool
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(spoil: Callable[[Case], None]) -> Callable[[Case], None]:
        name = spoil.__name__.strip("_")
        if needs_onnx and not has_onnxruntime():
            return spoil
        (PASSING_KINDS if passing else BAD_KINDS)[name] = Kind(name, reason, why, spoil, **how)
        return spoil

    return register


@_kind(Reason.NOT_A_CLASSIFIER, "its config is an object detector's")
def _detector(case: Case) -> None:
    case.good("vit")
    case.config(architectures=["YolosForObjectDetection"], model_type="yolos")


@_kind(Reason.NOT_A_CLASSIFIER, "timm's config says that it has no classes")
def _features(case: Case) -> None:
    case.good("timm-vit")
    case.config(num_classes=0)


@_kind(Reason.REMOTE_CODE, "its architecture is Python in the repository, which would create a file")
def _remote_code(case: Case) -> None:
    case.good("vit")
    code = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    case.config(architectures=["OwnForImageClassification"], model_type="own", auto_map=code)
    (case.folder / "code.py").write_text(f"open({str(case.canary)!r}, 'w')\n")


@_kind(Reason.REMOTE_CODE, "its image processor is Python in the repository, which would create a file")
def _remote_processor(case: Case) -> None:
    case.good("vit")
    case.processor(image_processor_type="OwnProcessor", auto_map={"AutoImageProcessor": "code.OwnProcessor"})
    (case.folder / "code.py").write_text(f"open({str(case.canary)!r}, 'w')\n")


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


@_kind(Reason.PICKLE_ONLY, "its weights are a pickle that creates a file when it is loaded")
def _pickle(case: Case) -> None:
    case.good("vit")
    (case.folder / WEIGHTS).unlink()
    (case.folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Opens(case.canary)))


@_kind(Reason.UNSUPPORTED_LIBRARY, "a Keras file with a Lambda layer, and no config")
def _keras_lambda(case: Case) -> None:
    write_card(case.folder, "keras")
    (case.folder / "model.keras").write_bytes(b"PK\x03\x04" + case.rng.bytes(3000))
    layer = {"class_name": "Lambda", "config": {"function": f"lambda x: open({str(case.canary)!r}, 'w')"}}
    (case.folder / "metadata.json").write_text(json.dumps({"layers": [layer]}))


@_kind(Reason.NO_WEIGHTS, "a config in transformers' form, and weights for TensorFlow only")
def _tensorflow(case: Case) -> None:
    case.good("vit")
    (case.folder / WEIGHTS).rename(case.folder / "tf_model.h5")


@_kind(Reason.UNSUPPORTED_LIBRARY, "a GGUF file")
def _gguf(case: Case) -> None:
    write_card(case.folder, "gguf")
    (case.folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + case.rng.bytes(4000))


@_kind(Reason.UNSUPPORTED_LIBRARY, "weights without a config")
def _no_config(case: Case) -> None:
    case.good("timm-vit")
    case.only(WEIGHTS)


@_kind(Reason.UNSUPPORTED_LIBRARY, "a config that names neither an architecture nor a model type")
def _foreign_config(case: Case) -> None:
    case.good("vit")
    (case.folder / "config.json").write_text('{"backbone": "yolo", "nc": 80}')


@_kind(Reason.UNSUPPORTED_LIBRARY, "quantised weights")
def _quantised(case: Case) -> None:
    case.good("vit")
    case.config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


@_kind(Reason.BROKEN_CONFIG, "a config that ends in the middle")
def _broken_config(case: Case) -> None:
    case.good("resnet")
    text = (case.folder / "config.json").read_text()
    (case.folder / "config.json").write_text(text[: len(text) // 2])


@_kind(Reason.BROKEN_CONFIG, "a config that is nested 100,000 deep")
def _deep_config(case: Case) -> None:
    case.good("vit")
    (case.folder / "config.json").write_text("[" * 100_000)


@_kind(Reason.BROKEN_CONFIG, "a config that asks for a thousand million labels")
def _billion_labels(case: Case) -> None:
    case.good("vit")
    case.config(num_labels=10**9, id2label=None, label2id=None)


@_kind(Reason.BROKEN_CONFIG, "a config of a network of a terabyte, with weights of a few kilobytes")
def _huge_network(case: Case) -> None:
    case.good("vit")
    case.config(hidden_size=2**17, intermediate_size=2**20, num_attention_heads=16)


@_kind(Reason.NO_WEIGHTS, "no weights")
def _no_weights(case: Case) -> None:
    case.good("convnext")
    (case.folder / WEIGHTS).unlink()


@_kind(Reason.NO_WEIGHTS, "only an adapter for another model")
def _adapter(case: Case) -> None:
    case.good("vit")
    (case.folder / WEIGHTS).rename(case.folder / "adapter_model.safetensors")


@_kind(Reason.BROKEN_WEIGHTS, "weights that end in the middle")
def _truncated(case: Case) -> None:
    case.good("timm-resnet")
    size = (case.folder / WEIGHTS).stat().st_size
    os.truncate(case.folder / WEIGHTS, size // 2)


@_kind(Reason.BROKEN_WEIGHTS, "weights that claim a header of 100 MB in a file of a few bytes")
def _header_claimed(case: Case) -> None:
    case.good("timm-vit")
    case.raw(b"{}", claimed=HEADER_BYTES)


@_kind(Reason.BROKEN_WEIGHTS, "weights with a header that is 100 MB long", heavy=True)
def _header_long(case: Case) -> None:
    case.good("vit")
    case.raw(b'{"a": ', claimed=HEADER_BYTES)
    os.truncate(case.folder / WEIGHTS, 8 + HEADER_BYTES)


@_kind(Reason.BROKEN_WEIGHTS, "weights with a tensor of 2^40 numbers in a file of a few bytes")
def _shape(case: Case) -> None:
    case.good("vit")
    tensor = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 8]}
    case.raw(json.dumps({"classifier.weight": tensor}).encode(), bytes(8))


@_kind(Reason.BROKEN_WEIGHTS, "a NaN in its weights")
def _nan(case: Case) -> None:
    base = case.good("timm-convnext")
    case.weights(lambda tensors: tensors[f"{base.head}.weight"].__setitem__((0, 0), np.nan))


@_kind(Reason.NO_USABLE_OUTPUT, "it answers the same to every image", loads=True)
def _constant(case: Case) -> None:
    base = case.good("timm-vit")
    case.weights(lambda tensors: tensors[f"{base.head}.weight"].fill(0))


@_kind(Reason.NO_USABLE_OUTPUT, "its answers overflow", loads=True)
def _overflow(case: Case) -> None:
    # The last normalisation makes every feature positive: what a head of the largest numbers makes of them is infinite.
    base = case.good("timm-resnet")
    case.weights(lambda tensors: tensors["layer4.0.bn2.bias"].fill(100))
    case.weights(lambda tensors: tensors[f"{base.head}.weight"].fill(3e38))


@_kind(Reason.BROKEN_WEIGHTS, "its body is wider than the config says")
def _wrong_shapes(case: Case) -> None:
    case.good("vit")
    case.config(hidden_size=32)


@_kind(Reason.BROKEN_WEIGHTS, "its config declares more labels than its head has outputs")
def _labels_mismatch(case: Case) -> None:
    case.good("vit")
    case.config(id2label={str(output): f"thing {output} of it" for output in range(9)}, label2id=None)


@_kind(Reason.BROKEN_WEIGHTS, "a layer is missing in its weights")
def _layer_missing(case: Case) -> None:
    base = case.good("resnet")
    case.weights(lambda tensors: tensors.pop(f"{base.head}.weight"))


@_kind(Reason.BAD_PREPROCESSING, "its preprocessing asks for images of 100,000 pixels")
def _huge_images(case: Case) -> None:
    case.good("vit")
    case.processor(size={"height": 100_000, "width": 100_000})


@_kind(Reason.BAD_PREPROCESSING, "no preprocessing")
def _no_preprocessor(case: Case) -> None:
    case.good("vit")
    (case.folder / "preprocessor_config.json").unlink()


@_kind(Reason.UNKNOWN_ARCHITECTURE, "an architecture that timm does not have")
def _unknown_timm(case: Case) -> None:
    case.good("timm-vit")
    case.config(architecture="vit_of_next_year")


@_kind(Reason.UNKNOWN_ARCHITECTURE, "a model type that transformers does not have")
def _unknown_transformers(case: Case) -> None:
    case.good("vit")
    case.config(architectures=["NextYearForImageClassification"], model_type="next_year")


@_kind(Reason.GATED, "its authors want to be asked")
def _gated(case: Case) -> None:
    case.good("vit")
    case.told.gated.add(case.repo)


@_kind(Reason.MISSING, "deleted between listing and fetch")
def _deleted(case: Case) -> None:
    case.good("vit")
    case.told.vanished[case.repo] = 404


@_kind(Reason.MISSING, "made private between listing and fetch")
def _made_private(case: Case) -> None:
    case.good("timm-vit")
    case.told.vanished[case.repo] = 401


@_kind(Reason.TOO_LARGE, "weights of ten terabytes")
def _too_large(case: Case) -> None:
    case.good("vit")
    case.told.sizes[case.repo, WEIGHTS] = 10**13


@_kind(Reason.NO_WEIGHTS, "weights under a name that leads out of the repository")
def _hostile_name(case: Case) -> None:
    case.good("vit")
    (case.folder / WEIGHTS).rename(case.folder / "weights.dat")
    hostile = (f"../../../{case.canary.name}.safetensors", f"{case.canary}.safetensors")
    case.told.aliases[case.repo] = dict.fromkeys(hostile, "weights.dat")


@_kind(Reason.BROKEN_WEIGHTS, "an index of shards that names a file outside the repository")
def _hostile_shard(case: Case) -> None:
    case.good("vit")
    (case.folder / WEIGHTS).rename(case.folder / "weights.dat")
    shard = f"../{case.canary.name}.safetensors"
    index = {"metadata": {"total_size": 10}, "weight_map": {"classifier.weight": shard}}
    (case.folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    case.told.aliases[case.repo] = {shard: "weights.dat"}


@_kind(Reason.BROKEN_WEIGHTS, "its weights are a symbolic link to a file of the machine")
def _linked_weights(case: Case) -> None:
    case.good("timm-resnet")
    (case.folder / WEIGHTS).unlink()
    (case.folder / WEIGHTS).symlink_to("/etc/hostname")


@_kind(Reason.BROKEN_CONFIG, "its config is a symbolic link out of the repository")
def _linked_config(case: Case) -> None:
    case.good("vit")
    (case.folder / "config.json").unlink()
    (case.folder / "config.json").symlink_to("../../../../etc/passwd")


def _onnx(case: Case, change: Callable[[Any], object]) -> None:
    """A good ONNX repository with a change to its graph."""
    from tests.support.tiny_onnx import graph_of, onnx_model, weights_of

    model = graph_of(weights_of(seed=int(case.rng.integers(2**31))))
    change(model)
    onnx_model(case.folder, model)
    write_card(case.folder, "onnx")


@_kind(Reason.BROKEN_WEIGHTS, "an ONNX graph whose numbers lie in a file outside the repository", needs_onnx=True)
def _onnx_outside(case: Case) -> None:
    from tests.support.tiny_onnx import put_outside

    _onnx(case, lambda model: put_outside(model.graph.initializer[0], location="../../../../etc/hostname", length=8))


@_kind(Reason.BROKEN_WEIGHTS, "an ONNX graph with a tensor of 2^40 numbers", needs_onnx=True)
def _onnx_shape(case: Case) -> None:
    def claim(model: Any) -> None:
        model.graph.initializer[0].dims[:] = [2**20, 2**20]

    _onnx(case, claim)


@_kind(Reason.BROKEN_WEIGHTS, "bytes that are no ONNX graph", needs_onnx=True)
def _onnx_garbage(case: Case) -> None:
    _onnx(case, lambda model: None)
    (case.folder / "onnx" / "model.onnx").write_bytes(case.rng.bytes(5000))


@_kind(Reason.CHECKSUM, "its weights arrive damaged", passing=True)
def _damaged(case: Case) -> None:
    case.good("vit")
    case.told.corrupt.add((case.repo, WEIGHTS))
