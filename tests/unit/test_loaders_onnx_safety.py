"""ONNX files that lie: about where their tensors are, how large they are, and what they are at all."""

import os
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import Reason
from indexers.loaders import load
from indexers.loaders.layout import Weights
from indexers.loaders.onnx_graph import read_graph
from tests.support.tiny_models import declined, repository
from tests.support.tiny_onnx import graph_of, onnx_model, put_outside, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = "model.onnx_data"


def initialiser(model):
    """The linear layer's weights, 80 bytes."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == "linear")


def constant(model):
    """A tensor in an attribute."""
    model.graph.node.append(helper.make_node("Constant", [], ["spare"], value=spare()))
    return model.graph.node[-1].attribute[0].t


def in_subgraph(model):
    """A tensor two graphs down."""
    inner = helper.make_graph([], "then", [], [helper.make_tensor_value_info("spare", 1, [20])], [spare("spare")])
    outer = helper.make_graph(
        [helper.make_node("If", ["yes"], ["spare_out"], then_branch=inner, else_branch=inner)],
        "outer",
        [],
        [helper.make_tensor_value_info("spare_out", 1, [20])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "sure"))
    model.graph.node.append(helper.make_node("If", ["sure"], ["out"], then_branch=outer, else_branch=outer))
    return model.graph.node[-1].attribute[0].g.node[0].attribute[0].g.initializer[0]


def in_function(model):
    """A tensor in a function of the model's own."""
    body = [helper.make_node("Constant", [], ["y"], value=spare())]
    model.functions.append(helper.make_function("own", "F", [], ["y"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", [], ["spare"], domain="own"))
    return model.functions[0].node[0].attribute[0].t


def sparse(model):
    """The values of a sparse tensor."""
    indices = numpy_helper.from_array(np.arange(20), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(spare("sparse"), indices, [40]))
    return model.graph.sparse_initializer[0].values


def spare(name="spare"):
    return numpy_helper.from_array(np.arange(20, dtype=np.float32), name)


everywhere = pytest.mark.parametrize("find", [initialiser, constant, in_subgraph, in_function, sparse])


@everywhere
def test_a_tensor_in_a_file_beside_the_graph_is_found_wherever_it_hides(tmp_path, find):
    model = graph_of(weights_of())
    content = put_outside(find(model), location=DATA, length=80)
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).write_bytes(content)
    load(repository(folder))


@everywhere
@pytest.mark.parametrize("place", ["../secret", "{absolute}", "sub/../../secret", "..\\secret", "", "other.bin"])
def test_a_tensor_in_a_file_elsewhere(tmp_path, find, place):
    secret = tmp_path / "org" / "name" / "secret"
    model = graph_of(weights_of())
    put_outside(find(model), location=place.format(absolute=secret), length=80)
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / "sub").mkdir()
    # They are all there and long enough: it is their place that is wrong.
    for name in ("secret", "onnx/..\\secret", "onnx/other.bin", f"onnx/{DATA}"):
        (folder / name).write_bytes(b"\0" * 80)
    declined(folder, Reason.BROKEN_WEIGHTS, "other.bin" if place == "other.bin" else "outside the repository")


@everywhere
def test_a_tensor_behind_a_link(tmp_path, find):
    model = graph_of(weights_of())
    (tmp_path / "secret").write_bytes(put_outside(find(model), location=DATA, length=80))
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).symlink_to(tmp_path / "secret")
    declined(folder, Reason.BROKEN_WEIGHTS, "link out of the model's folder")


def test_a_folder_or_a_graph_that_is_a_link(tmp_path):
    elsewhere = onnx_model(tmp_path / "org" / "elsewhere")
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx" / "model.onnx").symlink_to(elsewhere / "onnx" / "model.onnx")
    declined(folder, Reason.BROKEN_WEIGHTS, "link out of the model's folder")
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx").rmdir()
    (folder / "onnx").symlink_to(elsewhere / "onnx")
    declined(folder, Reason.BROKEN_WEIGHTS, "link out of the model's folder")


def test_a_tensor_at_an_address_in_memory(tmp_path):
    """A location that onnxruntime takes for a pointer, with a file of that very name to go with it."""
    model = graph_of(weights_of())
    put_outside(initialiser(model), location="*/_ORT_MEM_ADDR_/*", offset=4096, length=80)
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "onnx" / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(b"\0" * 8192)
    declined(folder, Reason.BROKEN_WEIGHTS, "outside the repository")


@pytest.mark.parametrize(
    "place, part",
    [
        ({"length": 80, "offset": 1}, "ends at byte 81"),
        ({"offset": 81}, "ends at byte 81"),
        ({"length": 2**70}, "no usable offset"),
        ({"length": -80}, "no usable offset"),
        ({"offset": "-1"}, "no usable offset"),
        ({"offset": "0x0"}, "no usable offset"),
        ({"length": 76}, "20 numbers in 76 bytes"),
        ({"offset": 4}, "20 numbers in 76 bytes"),
    ],
)
def test_a_tensor_that_is_not_all_in_its_file(tmp_path, place, part):
    model = graph_of(weights_of())
    content = put_outside(initialiser(model), location=DATA, **place)
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).write_bytes(content)
    declined(folder, Reason.BROKEN_WEIGHTS, part, "linear")


def test_an_empty_file_of_tensors_and_none(tmp_path):
    model = graph_of(weights_of())
    put_outside(initialiser(model), location=DATA)
    folder = onnx_model(tmp_path / "org" / "name", model)
    declined(folder, Reason.BROKEN_WEIGHTS, "linear", DATA)
    (folder / "onnx" / DATA).touch()
    declined(folder, Reason.BROKEN_WEIGHTS, "20 numbers in 0 bytes")


@everywhere
@pytest.mark.parametrize("dims", [[2**40], [2**20, 2**20], [-1], [2**62, 2**62], [21]])
def test_a_tensor_that_claims_more_numbers_than_it_has(tmp_path, find, dims):
    model = graph_of(weights_of())
    tensor = find(model)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    folder = onnx_model(tmp_path / "org" / "name", model)
    tracemalloc.start()
    try:
        declined(folder, Reason.BROKEN_WEIGHTS, tensor.name)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_huge_tensor_of_typed_numbers(tmp_path):
    model = graph_of(weights_of())
    tensor = initialiser(model)
    tensor.ClearField("raw_data")
    tensor.float_data.extend([0.5] * 20)
    folder = onnx_model(tmp_path / "org" / "name", model)
    assert load(repository(folder)).parameters == 4 * 27 + 4 + 5 * 4 + 5
    tensor.dims[0] = 2**40
    declined(onnx_model(tmp_path / "org" / "other", model), Reason.BROKEN_WEIGHTS, "linear")


def test_many_claims_on_one_file(tmp_path):
    model = graph_of(weights_of())
    for number in range(100):
        tensor = numpy_helper.from_array(np.zeros(10_000, np.float32), f"t{number}")
        put_outside(tensor, location=DATA, length=40_000)
        model.graph.initializer.append(tensor)
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).write_bytes(b"\0" * 40_000)
    declined(folder, Reason.BROKEN_WEIGHTS, "claim 4,0", "bytes of files with")


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.UNDEFINED, 99])
def test_tensors_of_types_that_no_file_can_hold(tmp_path, kind):
    model = graph_of(weights_of())
    put_outside(initialiser(model), location=DATA)
    initialiser(model).data_type = kind
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).write_bytes(b"\0" * 80)
    declined(folder, Reason.BROKEN_WEIGHTS, "linear", "type")


@pytest.mark.parametrize("kind", ["float32", "float16", "float64"])
@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_are_not_numbers(tmp_path, kind, beside):
    model = graph_of(weights_of())
    values = np.ones(100_000, kind)
    values[77] = np.nan
    tensor = numpy_helper.from_array(values, "spare")
    model.graph.initializer.append(tensor)
    content = put_outside(model.graph.initializer[-1], location=DATA) if beside else b""
    folder = onnx_model(tmp_path / "org" / "name", model)
    (folder / "onnx" / DATA).write_bytes(content)
    declined(folder, Reason.BROKEN_WEIGHTS, "spare", "NaN")


def test_infinite_values_in_masks_are_fine(tmp_path):
    model = graph_of(weights_of())
    model.graph.initializer.append(numpy_helper.from_array(np.full(9, -np.inf, np.float32), "mask"))
    assert load(repository(onnx_model(tmp_path / "org" / "name", model))).parameters == 4 * 27 + 4 + 5 * 4 + 5 + 9


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>please log in</html>" * 100, b"\x80\x04cposix\n", b"\0" * 999]
)
def test_garbage_for_a_graph(tmp_path, content):
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / "onnx" / "model.onnx").write_bytes(content)
    declined(folder, Reason.BROKEN_WEIGHTS, "download it again")


@pytest.mark.parametrize("keep", [5, 0.3, 0.9, 0.999])
def test_a_graph_cut_short(tmp_path, keep):
    file = onnx_model(tmp_path / "org" / "name") / "onnx" / "model.onnx"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    declined(file.parent.parent, Reason.BROKEN_WEIGHTS)


@pytest.mark.parametrize("seed", range(40))
def test_a_graph_with_flipped_bits_loads_or_is_declined(tmp_path, seed):
    file = onnx_model(tmp_path / "org" / "name") / "onnx" / "model.onnx"
    content = bytearray(file.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(content), 3):
        content[place] ^= 1 << int(generator.integers(8))
    file.write_bytes(content)
    try:
        assert load(repository(file.parent.parent)).library == "onnx"
    except Exception as error:
        assert type(error).__name__ in ("ModelFailedError", "ModelRefusedError"), error
        assert "\n" not in str(error)


def test_a_file_larger_than_the_format_allows_is_not_read(tmp_path):
    file = onnx_model(tmp_path / "org" / "name") / "onnx" / "model.onnx"
    os.truncate(file, 2**31)  # sparse
    declined(file.parent.parent, Reason.BROKEN_WEIGHTS, "2 GiB")


def test_a_graph_whose_nodes_would_make_a_huge_tensor(tmp_path):
    model = graph_of(weights_of(), output="raw")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**24, 5]), "shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["raw", "sum"], ["logits"]))
    model.graph.output[0].name = "logits"
    declined(onnx_model(tmp_path / "org" / "name", model), Reason.OUT_OF_MEMORY, "where there is more memory")


def test_what_is_not_looked_at_does_not_reach_onnxruntime(tmp_path):
    model = graph_of(weights_of())
    model.training_info.add().initialization.initializer.append(spare())
    content = model.SerializeToString() + b"\xfa\x7f\x03abc"  # field 2047, of which nobody knows anything
    folder = onnx_model(tmp_path / "org" / "name")
    (folder / "onnx" / "model.onnx").write_bytes(content)
    graph = read_graph(repository(folder), Weights(("onnx/model.onnx",)))
    assert b"\xfa\x7f\x03abc" not in graph.content
    kept = onnx.ModelProto.FromString(graph.content)
    assert not kept.training_info
    assert kept.graph == model.graph


def test_content_that_pretends_to_be_in_onnxruntimes_own_format(tmp_path):
    """Bytes 4 to 8 decide it, and a graph's producer can choose them."""
    model = graph_of(weights_of())
    model.producer_name = "ORTM" + "." * 30
    assert model.SerializeToString()[4:8] == b"ORTM"
    assert load(repository(onnx_model(tmp_path / "org" / "name", model))).library == "onnx"
