"""Code that loads a model and says how probable one of its outputs is for a photo, to be copied and run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from engine.errors import InputError
from engine.schema import Model, Record

_COMMIT = re.compile(r"[0-9a-f]{40}")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

_LIKELY = "The softmax is right for models that give an image one class. "


class Usage(Record):
    """Python that uses one output of a model."""

    model: str
    output: int
    library: str
    code: str = Field(description="Prints the output's probability for photo.jpg.")
    requirements: tuple[str, ...] = Field(description="Packages that it needs, as pip names them.")
    note: str | None = Field(default=None, description="What the index does not know and the code therefore assumes.")


@dataclass(frozen=True)
class _Asked:
    """What the code is written for; everything in it is a stranger's text and only ever quoted."""

    repo: str
    revision: str | None
    output: int
    label: str | None
    outputs: int
    probabilities: bool
    architecture: str

    @property
    def names(self) -> list[str]:
        """The lines that hold what may be anything."""
        lines = [f"REPOSITORY = {self.repo!r}"]
        if self.revision:
            lines.append(f"REVISION = {self.revision!r}")
        return [*lines, f"OUTPUT = {self.output}", f"LABEL = {self.label!r}"]

    @property
    def pin(self) -> str:
        """The argument that asks for the commit."""
        return ", revision=REVISION" if self.revision else ""


def is_hub_id(repo: str) -> bool:
    """Whether an id can be one of the Hub's: ``org/name`` of letters, digits, dots, dashes and underscores."""
    return _HUB_ID.fullmatch(repo) is not None and ".." not in repo


def usage(model: Model, output: int, label: str | None, outputs: int | None = None) -> Usage:
    """Code that loads a model at its revision and prints the probability of one of its outputs for a photo.

    Args:
        model: Its record; of a copy the copy's own.
        output: Position in the model's answer, >= 0.
        label: As the model declares it.
        outputs: How many outputs the model has, those included that the index left out; by default as its record says.

    Raises:
        InputError: The model's library is none that code is known for.
    """
    library = model.library or ""
    if library not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise InputError(f"no code is known that loads {model.repo}: its library is {library!r}, known are {known}")
    commit = model.revision if _COMMIT.fullmatch(model.revision) else None
    total = model.outputs + len(model.left_out) if outputs is None else outputs
    asked = _Asked(model.repo, commit, output, label, total, model.probabilities, model.architecture or "")
    write, requirements = _WRITERS[library]
    lines, note = write(asked)
    notes = [note] if note else []
    if commit is None:
        notes.append(
            "The index has this model from a folder, not from a commit: the repository of this name, if there is one, "
            "may be another model."
        )
    return Usage(
        model=model.repo,
        output=output,
        library=library,
        code="\n".join(lines) + "\n",
        requirements=requirements,
        note=" ".join(notes) or None,
    )


def _timm(asked: _Asked) -> tuple[list[str], str | None]:
    place = "'hf-hub:' + REPOSITORY" + (" + '@' + REVISION" if asked.revision else "")
    chosen, note = _probability(asked, "answer")
    return [
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        *asked.names,
        "",
        f"model = timm.create_model({place}, pretrained=True).eval()",
        "settings = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**settings, is_training=False)",
        "",
        "image = Image.open('photo.jpg').convert('RGB')",
        "with torch.inference_mode():",
        "    answer = model(transform(image).unsqueeze(0))[0]",
        f"probability = {chosen}[OUTPUT].item()",
        _PRINT,
    ], note


def _transformers(asked: _Asked) -> tuple[list[str], str | None]:
    # PP-LCNet calls its logits something else.
    logits = "last_hidden_state" if asked.architecture.startswith("PPLCNet") else "logits"
    lines = [
        "import torch",
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification",
        "",
        *asked.names,
        "",
        f"processor = AutoImageProcessor.from_pretrained(REPOSITORY{asked.pin})",
        f"model = AutoModelForImageClassification.from_pretrained(REPOSITORY{asked.pin}).eval().float()",
        "",
        "image = Image.open('photo.jpg').convert('RGB')",
        "with torch.inference_mode():",
        f"    answer = model(**processor(image, return_tensors='pt')).{logits}[0]",
    ]
    if asked.probabilities or asked.outputs == 1:
        chosen, note = _probability(asked, "answer")
        return [*lines, f"probability = {chosen}[OUTPUT].item()", _PRINT], note
    return [
        *lines,
        "several = model.config.problem_type == 'multi_label_classification'",
        "probability = (answer.sigmoid() if several else answer.softmax(-1))[OUTPUT].item()",
        _PRINT,
    ], _LIKELY + "The config of one that gives several may say so, then the code takes the sigmoid."


def _onnx(asked: _Asked) -> tuple[list[str], str | None]:
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from huggingface_hub import hf_hub_download, list_repo_files",
        "from PIL import Image",
        "from transformers import AutoImageProcessor",
        "",
        *asked.names,
        "",
        f"files = list_repo_files(REPOSITORY{asked.pin})",
        "graphs = [name for name in files if name.endswith('.onnx')]",
        "graph = next((name for name in ('onnx/model.onnx', 'model.onnx') if name in graphs), graphs[0])",
        "for name in files:",
        "    if name.startswith(graph) and name != graph:  # large tensors lie in files beside the graph",
        f"        hf_hub_download(REPOSITORY, name{asked.pin})",
        f"session = onnxruntime.InferenceSession(hf_hub_download(REPOSITORY, graph{asked.pin}))",
        f"processor = AutoImageProcessor.from_pretrained(REPOSITORY{asked.pin})",
        "",
        "image = Image.open('photo.jpg').convert('RGB')",
        "pixels = processor(image, return_tensors='np')['pixel_values']",
        "kind = np.float16 if session.get_inputs()[0].type == 'tensor(float16)' else np.float32",
        "names = [output.name for output in session.get_outputs()]",
        "name = 'logits' if 'logits' in names else names[0]",
        "answer = session.run([name], {session.get_inputs()[0].name: pixels.astype(kind)})[0][0].astype(np.float64)",
    ]
    where = (
        "A graph does not say how it wants its images: the code does what the repository's preprocessor_config.json "
        "says. Which file of the repository was indexed is not recorded: the code takes onnx/model.onnx, else "
        "model.onnx, else the first graph."
    )
    if asked.probabilities:
        return [*lines, "probability = answer[OUTPUT].item()", _PRINT], where
    if asked.outputs == 1:
        return [*lines, "probability = (1 / (1 + np.exp(-answer)))[OUTPUT].item()", _PRINT], f"{where} {_ONE}"
    return [
        *lines,
        "powers = np.exp(answer - answer.max())",
        "probability = (powers / powers.sum())[OUTPUT].item()",
        _PRINT,
    ], f"{where} {_LIKELY}{_SEVERAL}"


_ONE = "The model has one output: its sigmoid is taken for the probability, the usual meaning."

_SEVERAL = "Take the sigmoid instead if yours gives it several; the index does not know."

_PRINT = "print(f'{LABEL or OUTPUT}: {probability:.6f}')"


def _probability(asked: _Asked, answer: str) -> tuple[str, str | None]:
    """What makes probabilities of a torch tensor of answers, and what is assumed."""
    if asked.probabilities:
        return answer, None  # it was seen to answer them as the index was made
    if asked.outputs == 1:
        return f"{answer}.sigmoid()", _ONE
    return f"{answer}.softmax(-1)", _LIKELY + _SEVERAL


_WRITERS: dict[str, tuple[Callable[[_Asked], tuple[list[str], str | None]], tuple[str, ...]]] = {
    "timm": (_timm, ("timm", "torch", "pillow")),
    "transformers": (_transformers, ("transformers", "torch", "torchvision", "pillow")),
    "onnx": (_onnx, ("onnxruntime", "transformers", "torchvision", "huggingface_hub", "numpy", "pillow")),
}
