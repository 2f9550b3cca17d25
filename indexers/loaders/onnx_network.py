"""An ONNX graph as a torch module: tensors in, tensors out, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from engine.errors import DETAIL_CHARACTERS, Reason
from indexers.loaders.declined import Declined, is_out_of_memory

if TYPE_CHECKING:
    from indexers.loaders.onnx_graph import Graph

FEW_COPIES_BYTES = 2**29
"""Above this size a graph keeps the number of threads it began with: another number needs another copy of it."""

_SETTLED_RUNS = 8
"""After so many runs with one number of threads the copies for other numbers are dropped."""

_FLOATS: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : (/onnxruntime_src/\S+:\d+ .*?\)( const)? (?=\w))?")
_UNKNOWN_OPERATOR = re.compile(
    r"is not a registered function/op|NOT_IMPLEMENTED|Unsupported model IR version|is under development|"
    r"No opset import for domain"
)

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        name: In the graph.
        dtype: Type of its numbers, None for anything but tensors of floating-point numbers.
        shape: Sides; None for one that depends on the input. Empty also where nothing is declared.
    """

    name: str
    dtype: type[np.floating[Any]] | None
    shape: tuple[int | None, ...]


class OnnxNetwork(torch.nn.Module):
    """Runs a graph on images; follows torch's number of threads and the device that it is moved to.

    On CUDA it runs where onnxruntime has the provider for that (not tested: no such machine was at hand), and on the
    CPU elsewhere. The memory format makes no difference.

    Args:
        graph: The graph, checked.

    Attributes:
        inputs: What the graph takes.
        outputs: What it answers.
        batch: Images that it takes at once, None for any number.
        output: The output that is the answer; the first unless another is chosen.

    Raises:
        Declined: If onnxruntime does not take the graph.
    """

    _place: torch.Tensor

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        # Tells where the module has been moved.
        self.register_buffer("_place", torch.zeros(0), persistent=False)
        self._graph = graph
        size_bytes = len(graph.content) + sum(array.nbytes for array in graph.tensors.values())
        self._threads = torch.get_num_threads() if size_bytes > FEW_COPIES_BYTES else None
        self._sessions: dict[tuple[int, str], onnxruntime.InferenceSession] = {}
        self._settled = 0
        try:
            session = self._session()
        except Exception as error:
            raise _declined(error) from error
        self.inputs = [_port(port) for port in session.get_inputs()]
        self.outputs = [_port(port) for port in session.get_outputs()]
        self.output = self.outputs[0]
        self.batch: int | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Answers to images.

        Args:
            pixels: Pixel values, float32 ``[b, 3, height, width]``, on any device.

        Returns:
            What the chosen output says, float32 ``[b, outputs]``, on the same device.

        Raises:
            MemoryError: If there is not enough.
            RuntimeError: If onnxruntime fails.
        """
        images = pixels.detach().cpu().contiguous().numpy().astype(self.inputs[0].dtype or np.float32, copy=False)
        batch = self.batch or len(images)
        try:
            parts = [self._run(images[start : start + batch]) for start in range(0, len(images), batch)]
        except Exception as error:
            kind = MemoryError if is_out_of_memory(error) else RuntimeError
            raise kind(_said(error)) from error
        answer = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(answer.astype(np.float32, copy=False)).to(pixels.device)

    def _run(self, images: Floats) -> Floats:
        count = len(images)
        if self.batch is not None and count < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - count, axis=0)])
        (answer,) = self._session().run([self.output.name], {self.inputs[0].name: images})
        # One image is taken as it is, whoever tries a model out says what is wrong with its answer.
        if len(images) > 1 and (np.ndim(answer) == 0 or len(answer) != len(images)):
            raise RuntimeError(f"it answers an array of shape {list(np.shape(answer))} for {len(images)} images")
        found: Floats = answer[:count] if count < len(images) else answer
        return found

    def _session(self) -> onnxruntime.InferenceSession:
        key = (self._threads or torch.get_num_threads(), str(self._place.device))
        if key in self._sessions:
            self._settled += 1
            if self._settled >= _SETTLED_RUNS and len(self._sessions) > 1:
                self._sessions = {key: self._sessions[key]}
        else:
            self._settled = 0
            self._sessions[key] = _open(self._graph, key[0], self._place.device)
        return self._sessions[key]


def _open(graph: Graph, threads: int, device: torch.device) -> onnxruntime.InferenceSession:
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only what is fatal: errors are raised besides
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take a core from whoever shares this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Content can also say that it is in onnxruntime's own format, which nobody has checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    names = list(graph.tensors)
    options.add_external_initializers(
        names, [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(graph.tensors[name])) for name in names]
    )
    providers: list[object] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    return onnxruntime.InferenceSession(graph.content, options, providers=providers)


def _port(node: onnxruntime.NodeArg) -> Port:
    shape: Sequence[object] = node.shape or ()
    sides = tuple(side if isinstance(side, int) and side > 0 else None for side in shape)
    return Port(node.name, _FLOATS.get(node.type), sides)


def _said(error: Exception) -> str:
    """The first line of what onnxruntime says, without where in its source it says it."""
    said = _NOISE.sub("", next(iter(str(error).strip().splitlines()), type(error).__name__))
    return said[: DETAIL_CHARACTERS - 100]  # what it means is said beside it


def _declined(error: Exception) -> Declined:
    if is_out_of_memory(error):
        return Declined(Reason.OUT_OF_MEMORY, f"{_said(error)}: run it where there is more memory")
    if _UNKNOWN_OPERATOR.search(str(error)):
        return Declined(
            Reason.UNKNOWN_ARCHITECTURE, f"onnxruntime {onnxruntime.__version__} cannot run it: {_said(error)}"
        )
    return Declined(Reason.BROKEN_WEIGHTS, f"onnxruntime does not take it: {_said(error)}")
