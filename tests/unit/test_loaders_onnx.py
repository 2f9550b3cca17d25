"""ONNX models that load: which file is chosen, and that what comes out is what the graph says."""

import os
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from engine.errors import Reason
from engine.throughput import Runner, cpu_threads
from indexers import folders
from indexers.loaders import load
from indexers.loaders.layout import weights_in
from indexers.loaders.onnx_graph import read_graph
from tests.support.tiny_models import ANIMALS, change_json, declined, repository, vit_model
from tests.support.tiny_onnx import SIDE, by_hand, graph_of, onnx_model, put_outside, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
PREPROCESSOR = "preprocessor_config.json"


def pixel_values(count, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


def answers(model, pixels):
    with torch.inference_mode():
        return model.forward(model.module, torch.from_numpy(pixels)).numpy()


def test_a_graph_answers_what_it_says(tmp_path):
    model = load(repository(onnx_model(tmp_path / "org" / "name")))
    pixels = pixel_values(7)
    np.testing.assert_allclose(answers(model, pixels), by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)
    assert (model.library, model.architecture) == ("onnx", "ViTForImageClassification")
    assert model.labels == tuple(ANIMALS)
    assert model.parameters == 4 * 27 + 4 + 5 * 4 + 5
    assert model.preprocessing.size == (SIDE, SIDE)
    assert not model.module.training


def test_an_exported_network_answers_as_the_original(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    original = AutoModelForImageClassification.from_pretrained(folder).eval()
    (folder / "onnx").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            original,
            (torch.zeros(1, 3, 32, 32),),
            folder / "onnx" / "model.onnx",
            dynamo=False,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        )
    as_torch = load(repository(folder))
    assert as_torch.library == "transformers"  # safetensors come first
    (folder / "model.safetensors").unlink()
    as_onnx = load(repository(folder))
    assert as_onnx.library == "onnx"
    assert as_onnx.labels == as_torch.labels
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    with torch.inference_mode():
        expected = original(**AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")).logits.numpy()
    pixels = as_onnx.preprocessing.normalise(as_onnx.preprocessing.to_pixels(image)[None]).numpy()
    np.testing.assert_allclose(answers(as_onnx, pixels), expected, rtol=0, atol=1e-4)
    batch = np.random.default_rng(2).normal(0, 1, (5, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(answers(as_onnx, batch), answers(as_torch, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "switches, mean, scale",
    [
        ({}, 0.5, 1 / 255),
        ({"do_normalize": False}, 0.0, 1 / 255),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 1.0),
    ],
)
def test_the_switches_of_the_preprocessing_are_honoured(tmp_path, switches, mean, scale):
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, **switches)
    preprocessing = load(repository(onnx_model(tmp_path / "org" / "name", processor=processor))).preprocessing
    std = 0.5 if mean else 1.0
    grey = torch.full((3, SIDE, SIDE), 200, dtype=torch.uint8)
    expected = torch.full((3, SIDE, SIDE), (200 * scale - mean) / std)
    torch.testing.assert_close(preprocessing.normalise(grey), expected, rtol=1e-5, atol=1e-5)


def test_without_a_resize_the_size_would_follow_the_image(tmp_path):
    declined(
        onnx_model(tmp_path / "org" / "name", processor=ViTImageProcessor(do_resize=False)), Reason.BAD_PREPROCESSING
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_number_of_images(tmp_path, batch):
    model = load(repository(onnx_model(tmp_path / "org" / "name", graph_of(weights_of(), batch=batch))))
    for count in (1, 3, 7):
        pixels = pixel_values(count)
        np.testing.assert_allclose(answers(model, pixels), by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)


def centred_over_batch(weights):
    """A graph that takes batches, but whose answer to an image depends on the others."""
    model = graph_of(weights, output="raw")
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Mul", ["mean", "half"], ["part"]),
            helper.make_node("Sub", ["raw", "part"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]))
    return model


def test_images_that_would_change_each_other_run_one_by_one(tmp_path):
    model = load(repository(onnx_model(tmp_path / "org" / "name", centred_over_batch(weights_of()))))
    pixels = pixel_values(4)
    np.testing.assert_allclose(answers(model, pixels), 0.5 * by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)


def test_a_graph_that_only_says_it_takes_batches(tmp_path):
    graph = graph_of(weights_of(), output="raw")
    graph.graph.node.append(helper.make_node("Reshape", ["raw", "one_row"], ["logits"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 5]), "one_row"))
    graph.graph.output[0].name = "logits"
    model = load(repository(onnx_model(tmp_path / "org" / "name", graph)))
    pixels = pixel_values(4)
    np.testing.assert_allclose(answers(model, pixels), by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)


def test_half_precision(tmp_path):
    graph = graph_of(weights_of(), kind=TensorProto.FLOAT16)
    model = load(repository(onnx_model(tmp_path / "org" / "name", graph)))
    pixels = pixel_values(3)
    found = answers(model, pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(weights_of(), pixels), rtol=0, atol=1e-2)
    assert not np.allclose(found, by_hand(weights_of(), pixels), rtol=0, atol=1e-6)  # it really ran in half


def with_outputs(*extra):
    """The graph with three outputs: its own renamed, and two more with so many dimensions or columns."""
    graph = graph_of(weights_of(), output="scores")
    graph.graph.node.append(helper.make_node("Identity", ["features"], ["embedding"]))
    graph.graph.node.append(helper.make_node("Identity", ["maps"], ["last_hidden_state"]))
    own = graph.graph.output[0]
    named = {
        "scores": own,
        "embedding": helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 4]),
        "last_hidden_state": helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", 4, 7, 7]),
    }
    outputs = [onnx.ValueInfoProto.FromString(named[name].SerializeToString()) for name in extra]
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)
    return graph


@pytest.mark.parametrize(
    "outputs, config",
    [
        (("last_hidden_state", "scores", "embedding"), {"id2label": None}),  # the first row of numbers
        (("embedding", "last_hidden_state", "scores"), {}),  # the one with as many columns as labels
    ],
)
def test_the_right_one_of_three_outputs(tmp_path, outputs, config):
    model = load(repository(onnx_model(tmp_path / "org" / "name", with_outputs(*outputs), **config)))
    pixels = pixel_values(2)
    np.testing.assert_allclose(answers(model, pixels), by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)


def test_logits_go_before_any_other_output(tmp_path):
    graph = graph_of(weights_of())
    graph.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    graph.graph.output.insert(0, helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 5]))
    model = load(repository(onnx_model(tmp_path / "org" / "name", graph)))
    pixels = pixel_values(2)
    np.testing.assert_allclose(answers(model, pixels), by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)


def test_no_output_that_could_be_it(tmp_path):
    graph = with_outputs("last_hidden_state")
    declined(
        onnx_model(tmp_path / "org" / "name", graph), Reason.NOT_A_CLASSIFIER, "last_hidden_state ['any', 4, 7, 7]"
    )
    folder = onnx_model(
        tmp_path / "org" / "other", with_outputs("scores"), architectures=None, id2label=None, model_type="clip"
    )
    declined(folder, Reason.NOT_A_CLASSIFIER, "logits")


def test_the_runner_drives_a_graph_like_any_other_network(tmp_path):
    model = load(repository(onnx_model(tmp_path / "org" / "name")))
    pixels = pixel_values(150)
    runner = Runner(lambda images: model.forward(model.module, images), model.module, torch.device("cpu"))
    found = np.concatenate([a.numpy() for a in runner.run(lambda a, b: torch.from_numpy(pixels[a:b]), len(pixels))])
    np.testing.assert_allclose(found, by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)
    model.module.to(memory_format=torch.channels_last)
    strided = torch.from_numpy(pixels[:3]).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        np.testing.assert_allclose(model.module(strided).numpy(), found[:3], rtol=1e-5, atol=1e-6)


def test_torchs_number_of_threads_is_followed(tmp_path):
    module = load(repository(onnx_model(tmp_path / "org" / "name"))).module
    pixels = torch.from_numpy(pixel_values(2))
    alone = module(pixels)
    with cpu_threads(2):
        torch.testing.assert_close(module(pixels), alone)
        assert {session.get_session_options().intra_op_num_threads for session in module._sessions.values()} == {1, 2}
        for _ in range(10):
            module(pixels)
        # A copy for every number ever used would be a copy of the weights for each.
        assert [session.get_session_options().intra_op_num_threads for session in module._sessions.values()] == [2]
    torch.testing.assert_close(module(pixels), alone)


def test_a_failure_while_running_is_an_ordinary_error(tmp_path):
    module = load(repository(onnx_model(tmp_path / "org" / "name"))).module
    with pytest.raises(RuntimeError, match="Got invalid dimensions"):
        module(torch.zeros(1, 3, SIDE, SIDE + 1))


def test_loading_and_failing_are_quiet(tmp_path, capfd):
    folder = onnx_model(tmp_path / "org" / "name")
    capfd.readouterr()
    module = load(repository(folder)).module
    with pytest.raises(RuntimeError):
        module(torch.zeros(1, 3, SIDE, SIDE + 1))
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_onnxruntime_does_not_have(tmp_path):
    graph = graph_of(weights_of())
    graph.graph.node[1].domain = "org.custom"
    graph.opset_import.append(helper.make_opsetid("org.custom", 1))
    declined(onnx_model(tmp_path / "org" / "name", graph), Reason.UNKNOWN_ARCHITECTURE, "org.custom", "Relu")


def test_a_graph_of_a_later_format(tmp_path):
    graph = graph_of(weights_of())
    graph.ir_version = 1000
    declined(onnx_model(tmp_path / "org" / "name", graph), Reason.UNKNOWN_ARCHITECTURE, "onnxruntime")


@pytest.mark.parametrize(
    "inputs, reason, part",
    [
        ([], Reason.NOT_A_CLASSIFIER, "takes nothing"),
        ([("pixel_values", 1, ["b", 3, 16, 16]), ("input_ids", 7, ["b", 9])], Reason.NOT_A_CLASSIFIER, "input_ids"),
        ([("pixel_values", 1, ["b", 768])], Reason.NOT_A_CLASSIFIER, "['any', 768]"),
        ([("pixel_values", 7, ["b", 3, 16, 16])], Reason.NOT_A_CLASSIFIER, "no float images"),
        ([("pixel_values", 1, ["b", 1, 16, 16])], Reason.BAD_PREPROCESSING, "[1, 16, 16]"),
        ([("pixel_values", 1, ["b", 3, 20, 16])], Reason.BAD_PREPROCESSING, "[3, 20, 16]"),
        ([("pixel_values", 1, ["b", 16, 16, 3])], Reason.BAD_PREPROCESSING, "[16, 16, 3]"),
    ],
)
def test_inputs_that_are_no_images(tmp_path, inputs, reason, part):
    values = [helper.make_tensor_value_info(*one) for one in inputs]
    nodes = [helper.make_node("Identity", ["table"], ["logits"])]
    # Everything that is declared has to be used by something.
    nodes += [helper.make_node("Shape", [name], [f"shape of {name}"]) for name, *_ in inputs]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])]
    table = numpy_helper.from_array(np.zeros((1, 5), np.float32), "table")
    graph = helper.make_graph(nodes, "odd", values, outputs, [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    declined(onnx_model(tmp_path / "org" / "name", model), reason, part)


def test_a_missing_preprocessor(tmp_path):
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / PREPROCESSOR).unlink()
    declined(folder, Reason.BAD_PREPROCESSING, PREPROCESSOR)


def test_code_in_the_repository_does_not_matter_to_a_graph(tmp_path):
    remote = {"AutoConfig": "c.C", "AutoModelForImageClassification": "m.M"}
    folder = onnx_model(
        tmp_path / "org" / "name", model_type="odd", architectures=["OddForImageClassification"], auto_map=remote
    )
    assert load(repository(folder)).architecture == "OddForImageClassification"
    change_json(folder / PREPROCESSOR, auto_map={"AutoImageProcessor": "p.P"}, image_processor_type=None)
    declined(folder, Reason.REMOTE_CODE, "image processor")
    declined(
        onnx_model(tmp_path / "org" / "other", architectures=["ViTModel"]), Reason.NOT_A_CLASSIFIER, "it is a ViTModel"
    )


def big(weights):
    """The same answers from a linear layer with so many columns that its bytes stay outside the graph."""
    return {**weights, "linear": np.tile(weights["linear"], (1000, 1)), "bias": np.tile(weights["bias"], 1000)}


def outside(folder, weights=None, name="model.onnx_data"):
    """A graph with all its weights in one file beside it."""
    graph, content = graph_of(weights or weights_of()), b""
    for tensor in graph.graph.initializer:
        content += b"." * 3  # nothing is aligned
        content += put_outside(tensor, location=name, offset=len(content), length=len(tensor.raw_data))
    onnx_model(folder, graph)
    (folder / "onnx" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("make", [dict, big])
def test_weights_in_a_file_beside_the_graph(tmp_path, make):
    weights = make(weights_of())
    folder = outside(tmp_path / "org" / "name", weights)
    assert weights_in(folder, allow_pickle=False).files == ("onnx/model.onnx", "onnx/model.onnx_data")
    model = load(repository(folder))
    pixels = pixel_values(3)
    (folder / "onnx" / "model.onnx_data").unlink()
    with cpu_threads(2):  # another copy of the graph, after the files have gone
        found = answers(model, pixels)
    np.testing.assert_allclose(found, by_hand(weights, pixels), rtol=1e-4, atol=1e-5)
    assert model.parameters == sum(value.size for value in weights.values())


def test_large_tensors_are_not_copied_into_the_graph(tmp_path):
    weights = big(weights_of())
    folder = outside(tmp_path / "org" / "name", weights)
    graph = read_graph(repository(folder), weights_in(folder, allow_pickle=False))
    assert list(graph.tensors) == ["linear"]  # 80 KB; the others are below 64
    np.testing.assert_array_equal(graph.tensors["linear"], weights["linear"])
    assert 20_000 < len(graph.content) < 25_000  # the bias of 5,000 numbers is in it


def test_the_links_of_huggingface_hubs_cache_are_followed(tmp_path):
    made = outside(tmp_path / "made" / "name")
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "onnx").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate(("config.json", PREPROCESSOR, "onnx/model.onnx", "onnx/model.onnx_data")):
        (cache / "blobs" / str(number)).write_bytes((made / name).read_bytes())
        (snapshot / name).symlink_to(os.path.relpath(cache / "blobs" / str(number), (snapshot / name).parent))
    pixels = pixel_values(2)
    found = answers(load(repository(snapshot)), pixels)
    np.testing.assert_allclose(found, by_hand(weights_of(), pixels), rtol=1e-4, atol=1e-5)
    (snapshot / "onnx" / "model.onnx_data").unlink()
    (snapshot / "onnx" / "model.onnx_data").symlink_to(made / "onnx" / "model.onnx_data")
    declined(snapshot, Reason.BROKEN_WEIGHTS, "link out of the model's folder")


def test_a_folders_revision_and_size_are_those_of_all_its_files(tmp_path):
    folder = outside(tmp_path / "org" / "name", big(weights_of()))
    data = folder / "onnx" / "model.onnx_data"
    first, _ = folders.revision_of("org/name", folder)
    assert folders.fetch("org/name", first, folder, max_size_bytes=10**6, allow_pickle=False).folder == folder
    with pytest.raises(Exception, match=r"0\.000\d+ GB of weights") as caught:
        folders.fetch("org/name", first, folder, max_size_bytes=data.stat().st_size, allow_pickle=False)
    assert caught.value.reason is Reason.TOO_LARGE
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second, _ = folders.revision_of("org/name", folder)
    assert second != first
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="a link out of the model's folder") as caught:
        folders.fetch("org/name", first, folder, max_size_bytes=10**6, allow_pickle=False)
    assert caught.value.reason is Reason.BROKEN_WEIGHTS
    assert folders.revision_of("org/name", folder)[0] not in (first, second)


def test_safetensors_under_the_name_of_a_graph(tmp_path):
    folder = onnx_model(tmp_path / "org" / "name", file=None)
    save_file({"a": torch.zeros(3)}, folder / "model.onnx")
    declined(folder, Reason.BROKEN_WEIGHTS, "no ONNX file")
