"""An ONNX file, read and checked before onnxruntime sees anything of it.

An ONNX graph can name files that hold its tensors, in any folder of this machine, and even addresses in memory; and it
can claim tensors of any size. Here all tensors are found, wherever they hide, and checked against the files. Then
onnxruntime gets the graph's content and the tensors, and not one file name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from engine.errors import Reason
from indexers.loaders.base import Repository
from indexers.loaders.declined import Declined, stage
from indexers.loaders.layout import Weights, escapes

MAX_GRAPH_BYTES = 2**31 - 1
"""Largest file that the format allows; larger tensors lie in files beside it."""

INLINE_BYTES = 2**16
"""Tensors up to this size are put into the graph: shapes have to be known before any other tensor is looked at."""

_BITS = {
    name: bits
    for bits, names in {
        128: "COMPLEX128",
        64: "DOUBLE INT64 UINT64 COMPLEX64",
        32: "FLOAT INT32 UINT32",
        16: "FLOAT16 BFLOAT16 INT16 UINT16",
        8: "BOOL INT8 UINT8 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
        4: "INT4 UINT4 FLOAT4E2M1",
        2: "INT2 UINT2",
    }.items()
    for name in names.split()
}
_NUMPY = {
    name: np.dtype(kind)
    for name, kind in {
        "DOUBLE": "<f8",
        "FLOAT": "<f4",
        "FLOAT16": "<f2",
        "INT8": "i1",
        "UINT8": "u1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
    }.items()
}
"""Sizes of the format's types of numbers, and those that numpy and onnxruntime share."""

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_NUMBERS_PER_ENTRY = 4
"""Most numbers that one entry of a typed field can hold, packed."""

_ELSEWHERE = "supplied by hubhound"


@dataclass(frozen=True)
class Graph:
    """An ONNX graph that is safe to give to onnxruntime.

    Attributes:
        content: The graph, serialised; without training information and anything this version of onnx does not know.
        tensors: Initialisers that are not in it, by name: views of the files beside it.
        parameters: Numbers in all initialisers.
    """

    content: bytes
    tensors: dict[str, npt.NDArray[Any]]
    parameters: int


def read_graph(repository: Repository, weights: Weights) -> Graph:
    """Read an ONNX file and check everything in it that names a file or asks for memory.

    Args:
        repository: Where the files are.
        weights: The graph's file, and the files that may hold its tensors.

    Raises:
        Declined: If it is garbage, names a file outside the repository, or claims what the files do not hold.
    """
    return _Reader(repository.folder, weights).read()


class _Reader:
    def __init__(self, folder: Path, weights: Weights) -> None:
        self._folder = folder
        self._file = weights.files[0]
        self._beside = {str(PurePosixPath(name)): folder / name for name in weights.files[1:]}
        self._maps: dict[str, npt.NDArray[np.uint8]] = {}
        for name in weights.files:
            self._check_link(name)
        sizes = [(folder / name).stat().st_size for name in weights.files]
        if sizes[0] > MAX_GRAPH_BYTES:
            raise Declined(Reason.BROKEN_WEIGHTS, f"{self._file} is larger than the 2 GiB that the format allows")
        self._size_bytes = sum(sizes)

    def read(self) -> Graph:
        model = onnx.ModelProto()
        try:
            model.ParseFromString((self._folder / self._file).read_bytes())
        except MemoryError:
            raise
        except Exception as error:  # protobuf's own class, whose place in it has moved
            raise Declined(Reason.BROKEN_WEIGHTS, f"{self._file} is no ONNX file: download it again") from error
        if not model.graph.node or not model.opset_import:
            raise Declined(Reason.BROKEN_WEIGHTS, f"{self._file} holds no ONNX graph: download it again")
        # What we do not know onnxruntime may, and could be told by it to open a file.
        model.DiscardUnknownFields()
        model.ClearField("training_info")
        tensors = list(_tensors(model))
        # All of them before any is copied: many small claims on one file add up as well.
        claimed_bytes = sum(self._check_size(tensor) for tensor in tensors)
        if claimed_bytes > 2 * self._size_bytes:
            raise Declined(
                Reason.BROKEN_WEIGHTS,
                f"the tensors of {self._file} claim {claimed_bytes:,} bytes of files with {self._size_bytes:,}",
            )
        initialisers = {id(tensor): tensor.name for tensor in model.graph.initializer}
        supplied: dict[str, npt.NDArray[Any]] = {}
        for tensor in tensors:
            if _is_external(tensor):
                array = self._attach(tensor, initialiser=id(tensor) in initialisers)
                if array is not None:
                    supplied[tensor.name] = array
            if id(tensor) in initialisers:
                _check_numbers(tensor, supplied.get(tensor.name))
        parameters = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        with stage(Reason.BROKEN_WEIGHTS):
            return Graph(model.SerializeToString(), supplied, parameters)

    def _check_size(self, tensor: onnx.TensorProto) -> int:
        """Bytes of a tensor, after a check that they are there."""
        kind = _kind(tensor)
        if any(side < 0 for side in tensor.dims):
            raise Declined(Reason.BROKEN_WEIGHTS, f"{_name(tensor)} has the shape {list(tensor.dims)[:8]}")
        numbers = math.prod(tensor.dims)
        if kind == "STRING" and not _is_external(tensor) and not tensor.raw_data:
            return sum(len(text) for text in tensor.string_data)
        if kind not in _BITS:
            raise Declined(Reason.BROKEN_WEIGHTS, f"{_name(tensor)} is of type {kind}, which cannot be read")
        needed_bytes = (numbers * _BITS[kind] + 7) // 8
        if _is_external(tensor):
            _, _, length = self._place(tensor)
            enough = length == needed_bytes
        elif tensor.HasField("raw_data"):
            length = len(tensor.raw_data)
            enough = length == needed_bytes
        else:
            length = max(len(getattr(tensor, field)) for field in _TYPED_FIELDS)
            enough = numbers <= _NUMBERS_PER_ENTRY * length
        if not enough:
            raise Declined(Reason.BROKEN_WEIGHTS, f"{_name(tensor)} claims {numbers:,} numbers in {length:,} bytes")
        return int(needed_bytes)

    def _place(self, tensor: onnx.TensorProto) -> tuple[str, int, int]:
        """File, offset and length in bytes of a tensor that lies in a file, after a check that the file has them."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or set("\\:*\0") & set(location):
            raise Declined(
                Reason.BROKEN_WEIGHTS, f"{_name(tensor)} lies in {location!r}, outside the repository: not opened"
            )
        name = str(PurePosixPath(self._file).parent / path)
        if name not in self._beside:
            # One that is a link gets no further either, but deserves to be called what it is.
            self._check_link(name)
            raise Declined(
                Reason.BROKEN_WEIGHTS,
                f"{_name(tensor)} lies in {location!r}, which is not one of the files that belong to {self._file}",
            )
        size_bytes = self._beside[name].stat().st_size
        offset, length = entries.get("offset", "0"), entries.get("length")
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in (offset, length or "0")):
            raise Declined(Reason.BROKEN_WEIGHTS, f"{_name(tensor)} has no usable offset and length")
        start = int(offset)
        count = int(length) if length is not None else max(0, size_bytes - start)
        if start + count > size_bytes:
            raise Declined(
                Reason.BROKEN_WEIGHTS,
                f"{_name(tensor)} ends at byte {start + count:,} of {name}, which has {size_bytes:,}",
            )
        return name, start, count

    def _attach(self, tensor: onnx.TensorProto, *, initialiser: bool) -> npt.NDArray[Any] | None:
        """Put a tensor that lies in a file into the graph, or give a view of the file where that is better."""
        name, start, count = self._place(tensor)
        if name not in self._maps:
            empty = not self._beside[name].stat().st_size
            self._maps[name] = np.zeros(0, np.uint8) if empty else np.memmap(self._beside[name], np.uint8, mode="r")
        content = self._maps[name][start : start + count]
        del tensor.external_data[:]
        kind = _kind(tensor)
        if initialiser and tensor.name and count > INLINE_BYTES and kind in _NUMPY:
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", _ELSEWHERE
            # Tensors in files are aligned as a rule, not by rule.
            return np.frombuffer(content, _NUMPY[kind]).reshape(tuple(tensor.dims))
        tensor.ClearField("data_location")
        tensor.raw_data = content.tobytes()
        return None

    def _check_link(self, name: str) -> None:
        if not escapes(self._folder, name):
            return
        # In the cache of huggingface_hub every file is a link into one folder beside the snapshots.
        blobs = self._folder.absolute().parent.parent / "blobs"
        in_cache = self._folder.absolute().parent.name == "snapshots" and blobs.is_dir()
        if not in_cache or not (self._folder / name).resolve().is_relative_to(blobs.resolve()):
            raise Declined(Reason.BROKEN_WEIGHTS, f"{name} is a link out of the model's folder, which is not followed")


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors anywhere in a message: initialisers, attributes, subgraphs, functions, sparse tensors."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if hasattr(value, "ListFields") else value:
            yield from _tensors(inner)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data)


def _kind(tensor: onnx.TensorProto) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"number {tensor.data_type}"


def _name(tensor: onnx.TensorProto) -> str:
    return f"tensor {tensor.name[:80]!r}"


def _check_numbers(tensor: onnx.TensorProto, supplied: npt.NDArray[Any] | None) -> None:
    # Infinite values are common in masks, that something is not a number never is meant.
    if supplied is not None:
        values = supplied
    elif tensor.HasField("raw_data") and _kind(tensor) in _NUMPY:
        values = np.frombuffer(tensor.raw_data, _NUMPY[_kind(tensor)])
    else:
        values = np.asarray(tensor.float_data, np.float32)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise Declined(Reason.BROKEN_WEIGHTS, f"{_name(tensor)} holds NaN values")
