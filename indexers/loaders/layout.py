"""Which files of a repository matter, and what its config says it is; decided before any library is imported.

The same decisions are made twice: from the names alone before a download, and again on the folder before loading.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from engine.errors import Reason
from indexers.loaders.declined import SCRATCH_PREFIX, Declined, stage

CONFIG = "config.json"
CARD = "README.md"
PREPROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")

MAX_JSON_BYTES = 32 * 2**20
"""Largest JSON file that is read; a config with the labels of 22,000 classes takes two."""

MAX_OUTPUTS = 1_000_000
"""Most outputs a config may ask for: a library builds a dictionary of as many labels before anything else."""

SAFE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)
"""Weights files in the order in which they are preferred; an index stands for the shards it names."""

PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pth", "model.pth")
"""The same, for files that are opened only when the user allows pickles."""

ONNX_FOLDER = "onnx"
"""The one folder below a repository's own in which weights are looked for."""

ONNX_WEIGHTS = ("onnx/model.onnx", "model.onnx")
"""The same, for ONNX: chosen where no safetensors can be, and before any pickle."""

ONNX_VARIANTS = ("fp16", "quantized", "int8", "q8", "uint8", "q4f16", "q4", "bnb4")
"""Endings of the names of ONNX files in lower precision, best first; opened only where there is no full precision."""

_ONNX_FILE = re.compile(rf"({ONNX_FOLDER}/)?[^/]+\.onnx")
_ONNX_VARIANT = re.compile(rf"(?P<base>.+)_(?P<variant>{'|'.join(ONNX_VARIANTS)})")
_ONNX_EXTRA = "hubhound[onnx]"

_SHOWN = 100  # characters of a stranger's word in a message, so that the rest of it is not cut off

_PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
_FOREIGN_WEIGHTS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".keras": "Keras",
    ".tflite": "TFLite",
    ".gguf": "GGUF",
    ".ot": "Rust",
    ".mlpackage": "Core ML",
}
WEIGHT_SUFFIXES = (".safetensors", *_PICKLE_SUFFIXES, *_FOREIGN_WEIGHTS)
"""Endings by which a folder is recognised as a model's."""

_ADAPTERS = frozenset({"adapter_model.safetensors", "adapter_model.bin"})
_NOT_WEIGHTS = re.compile(r"(adapter_model|training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.\w+")


@dataclass(frozen=True)
class Weights:
    """The one set of weights that a loader will open.

    Attributes:
        files: File names, directly in the repository's folder or, for ONNX, in its folder ``onnx``. For ONNX the first
            is the graph, the others are the files beside it that can hold its tensors.
        index: Name of the index that lists the shards, None for a single file.
        pickled: Whether they are pickles.
    """

    files: tuple[str, ...]
    index: str | None = None
    pickled: bool = False

    @property
    def onnx(self) -> bool:
        """Whether it is an ONNX graph."""
        return bool(self.files) and self.files[0].endswith(".onnx")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Args:
        path: The file.

    Raises:
        Declined: If it is missing, too large, or no JSON object.
    """
    try:
        content = json.loads(read_small(path))
    except FileNotFoundError as error:
        raise Declined(Reason.BROKEN_CONFIG, f"{path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Declined(Reason.BROKEN_CONFIG, f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise Declined(Reason.BROKEN_CONFIG, f"{path.name} holds no JSON object")
    return content


def read_small(path: Path) -> bytes:
    """Content of a file of at most `MAX_JSON_BYTES`.

    Args:
        path: The file.

    Raises:
        Declined: If it is larger, or no file.
        OSError: If it cannot be read.
    """
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise Declined(Reason.BROKEN_CONFIG, f"{path.name} is no file")
    with path.open("rb") as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise Declined(Reason.BROKEN_CONFIG, f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    return content


def library_of(config: Mapping[str, object], names: Collection[str]) -> str:
    """Decide from the config which loader is the right one, or why none is.

    Args:
        config: Content of the repository's config.json.
        names: Names of the repository's files, as paths relative to its folder.

    Returns:
        ``timm``, ``transformers``, or ``onnx`` where ONNX is what `choose_weights` chooses.

    Raises:
        Declined: For anything that is certainly no image classifier we can load.
    """
    with stage(Reason.BROKEN_CONFIG):
        for key in ("num_labels", "num_classes"):
            value = config.get(key)
            if isinstance(value, int) and value > MAX_OUTPUTS:
                raise Declined(Reason.BROKEN_CONFIG, f"{CONFIG} asks for {value:,} outputs")
        model_type = config.get("model_type")
        onnx = has_onnxruntime() and _safe_weights(names) is None and _onnx_weights(names) is not None
        if isinstance(config.get("architecture"), str) and model_type in (None, "timm_wrapper"):
            if config.get("num_classes") == 0:
                raise Declined(Reason.NOT_A_CLASSIFIER, "a feature extractor, num_classes is 0")
            return "onnx" if onnx else "timm"
        # A graph needs no architecture: that its outputs have names is enough to know what it is for.
        named = onnx and isinstance(config.get("id2label"), dict)
        if not isinstance(model_type, str) and not config.get("architectures") and not named:
            raise Declined(Reason.UNSUPPORTED_LIBRARY, f"{CONFIG} is neither timm's nor that of a transformers model")
        if config.get("quantization_config") is not None:
            raise Declined(Reason.UNSUPPORTED_LIBRARY, "quantised weights: use the repository with the full weights")
        _check_architectures(config, graph=onnx)
        if not any(name in names for name in PREPROCESSOR_CONFIGS):
            raise Declined(
                Reason.BAD_PREPROCESSING,
                f"there is no {PREPROCESSOR_CONFIGS[0]}, and how a model wants its images is never guessed",
            )
        return "onnx" if onnx else "transformers"


def _check_architectures(config: Mapping[str, object], *, graph: bool) -> None:
    architectures = config.get("architectures") or []
    auto_map = config.get("auto_map") or {}
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise Declined(Reason.BROKEN_CONFIG, f"architectures in {CONFIG} is no list of names")
    if not isinstance(auto_map, dict):
        raise Declined(Reason.BROKEN_CONFIG, f"auto_map in {CONFIG} is no object")
    # The names may carry an ending, as in DeiTForImageClassificationWithTeacher.
    classifies = any("ForImageClassification" in name for name in architectures)
    coded = auto_map and (classifies or "AutoModelForImageClassification" in auto_map) and not is_native(config)
    if coded and not graph:  # a graph carries its architecture in itself, whatever code made it
        raise Declined(Reason.REMOTE_CODE, "its architecture is code in the repository, which is never run")
    if architectures and not classifies:
        raise Declined(Reason.NOT_A_CLASSIFIER, f"it is a {architectures[0][:_SHOWN]}")


def is_native(config: Mapping[str, object]) -> bool:
    """Whether transformers itself has the config's model type; when in doubt yes, the loader then finds out.

    Args:
        config: Content of the repository's config.json.
    """
    try:
        # The one list of model types that can be imported without torch.
        from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
    except ImportError:
        return True
    return config.get("model_type") in CONFIG_MAPPING_NAMES


def choose_weights(names: Collection[str], *, allow_pickle: bool) -> Weights:
    """Choose the weights to open.

    Args:
        names: Names of the repository's files, as paths relative to its folder.
        allow_pickle: Whether pickles may be chosen where there is nothing else.

    Returns:
        The choice. For an index its shards are not known yet, only the index itself names them: see `shards_of`.

    Raises:
        Declined: If there is nothing that may be opened.
    """
    safe = _at_top(names, (".safetensors", ".safetensors.index.json"))
    pickles = _at_top(names, (*_PICKLE_SUFFIXES, ".bin.index.json"))
    if name := _safe_weights(names):
        return _weights(name, pickled=False)
    onnx = _onnx_weights(names)
    if onnx is not None and has_onnxruntime():
        return onnx
    if not safe and allow_pickle and (name := _preferred(PICKLED_WEIGHTS, pickles)):
        return _weights(name, pickled=True)
    if ambiguous := safe or (pickles if allow_pickle else []):
        raise Declined(Reason.NO_WEIGHTS, f"which of {', '.join(ambiguous[:4])} to load is not clear")
    if onnx is not None:
        raise Declined(
            Reason.UNSUPPORTED_LIBRARY,
            f"its weights are {onnx.files[0]}, which needs onnxruntime: pip install '{_ONNX_EXTRA}'",
        )
    if pickles:
        raise Declined(
            Reason.PICKLE_ONLY,
            f"the only weights are {pickles[0]}, and opening a pickle can run code: "
            "if you trust its author, allow pickles (--allow-pickle)",
        )
    if any(name in _ADAPTERS for name in names):
        raise Declined(Reason.NO_WEIGHTS, "it holds only an adapter: index the model that it was merged into")
    graphs = [name for name in sorted(names) if _ONNX_FILE.fullmatch(name)]
    if len(graphs) > 1:
        raise Declined(Reason.NO_WEIGHTS, f"which of {', '.join(graphs[:4])} to load is not clear")
    foreign = sorted({kind for name in names for ending, kind in _FOREIGN_WEIGHTS.items() if name.endswith(ending)})
    if foreign:
        raise Declined(Reason.NO_WEIGHTS, f"only weights for {', '.join(foreign)}, none in safetensors")
    raise Declined(Reason.NO_WEIGHTS, "there is no safetensors file in its top folder")


def has_onnxruntime() -> bool:
    """Whether the packages of the extra ``onnx`` are installed; they are not imported."""
    return all(find_spec(package) is not None for package in ("onnxruntime", "onnx"))


def _at_top(names: Collection[str], endings: tuple[str, ...]) -> list[str]:
    top = (name for name in sorted(names) if "/" not in name and not _NOT_WEIGHTS.fullmatch(name))
    return [name for name in top if name.endswith(endings)]


def _safe_weights(names: Collection[str]) -> str | None:
    return _preferred(SAFE_WEIGHTS, _at_top(names, (".safetensors", ".safetensors.index.json")))


def _onnx_weights(names: Collection[str]) -> Weights | None:
    """The ONNX graph to open and what may hold its tensors; None without one, or if which one is not clear."""
    if not any(name in names for name in PREPROCESSOR_CONFIGS):
        return None  # nothing in a graph says how it wants its images
    graphs = [PurePosixPath(name) for name in sorted(names) if _ONNX_FILE.fullmatch(name)]
    variants = {path: match for path in graphs if (match := _ONNX_VARIANT.fullmatch(path.stem))}
    full = [path for path in graphs if path not in variants]
    chosen = next((PurePosixPath(name) for name in ONNX_WEIGHTS if name in names), None)
    if chosen is None and len(full) == 1:
        chosen = full[0]
    if chosen is None and not full and len({match["base"] for match in variants.values()}) == 1:
        chosen = min(variants, key=lambda path: ONNX_VARIANTS.index(variants[path]["variant"]))
    if chosen is None:
        return None
    stem, suffix = re.escape(chosen.stem), re.escape(chosen.suffix)
    data = re.compile(rf"{stem}({suffix})?[._]data([._-]?\d+)?|weights\.pb")
    beside = (name for name in sorted(names) if PurePosixPath(name).parent == chosen.parent)
    return Weights((str(chosen), *(name for name in beside if data.fullmatch(PurePosixPath(name).name))))


def _preferred(order: tuple[str, ...], names: list[str]) -> str | None:
    chosen = next((name for name in order if name in names), None)
    # A single file under another name is unambiguous.
    return names[0] if chosen is None and len(names) == 1 else chosen


def _weights(name: str, *, pickled: bool) -> Weights:
    return Weights((), index=name, pickled=pickled) if name.endswith(".json") else Weights((name,), pickled=pickled)


def weights_in(folder: Path, *, allow_pickle: bool) -> Weights:
    """Choose the weights to open from a folder, and name the shards.

    Args:
        folder: The repository's folder.
        allow_pickle: Whether pickles may be chosen where there is nothing else.

    Raises:
        Declined: If there is nothing that may be opened.
    """
    names = files_in(folder)
    weights = choose_weights(names, allow_pickle=allow_pickle)
    if weights.index is None:
        return weights
    return replace(weights, files=shards_of(folder / weights.index, names))


def files_in(folder: Path) -> list[str]:
    """Names of a repository's files that matter to a loader.

    Args:
        folder: The repository's folder.

    Returns:
        Names of the files directly in it, and paths of those in its folder ``onnx``, sorted.
    """
    found = [entry.name for entry in folder.iterdir() if entry.is_file()]
    inner = folder / ONNX_FOLDER
    if inner.is_dir():
        found += [f"{ONNX_FOLDER}/{entry.name}" for entry in inner.iterdir() if entry.is_file()]
    return sorted(found)


def escapes(folder: Path, name: str) -> bool:
    """Whether a file of a repository is in truth a link to elsewhere.

    Args:
        folder: The repository's folder.
        name: Path relative to it.
    """
    return not (folder / name).resolve().is_relative_to(folder.resolve())


def shards_of(index: Path, names: Collection[str]) -> tuple[str, ...]:
    """The shards that an index names.

    Args:
        index: The index file.
        names: Names of the repository's files.

    Raises:
        Declined: If the index is malformed or names a file that the repository does not have in its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Declined(Reason.BROKEN_WEIGHTS, f"{index.name} names no shards")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise Declined(Reason.BROKEN_WEIGHTS, f"{index.name} names shards that are no text")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if "/" in shard or "\\" in shard or shard not in names:
            raise Declined(
                Reason.BROKEN_WEIGHTS, f"{index.name} names {shard[:_SHOWN]}, which the repository does not have"
            )
    return tuple(shards)


def check_size(size_bytes: int, max_size_bytes: int) -> None:
    """Refuse weights that are too large.

    Args:
        size_bytes: Size of all files together.
        max_size_bytes: The limit.

    Raises:
        Declined: If they are larger.
    """
    if size_bytes > max_size_bytes:
        raise Declined(
            Reason.TOO_LARGE,
            f"{size_bytes / 1e9:.3g} GB of weights, the limit is {max_size_bytes / 1e9:.3g} GB (--max-size)",
        )


@contextmanager
def staged(folder: Path, weights: Weights) -> Iterator[Path]:
    """A temporary folder with links to the chosen files and to nothing else.

    Libraries look for more than they were asked for: adapters that name another repository, code, other weights. They
    find only what was chosen, under the names that they expect. ONNX weights are not among the links: onnxruntime gets
    their content, not their names.

    Args:
        folder: The repository's folder.
        weights: The chosen weights.
    """
    links = {name: name for name in (CONFIG, *PREPROCESSOR_CONFIGS)}
    if weights.index is not None:
        links |= {name: name for name in (weights.index, *weights.files)}
    elif not weights.onnx:
        links["pytorch_model.bin" if weights.pickled else "model.safetensors"] = weights.files[0]
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        for name, source in links.items():
            if (folder / source).is_file():
                (Path(scratch) / name).symlink_to((folder / source).resolve())
        yield Path(scratch)
