"""What an index of so many models takes: bytes, hours and queries per second, from constants that say their origin.

Nothing is run. Every figure is a formula over what is wished for (`Wish`) and `CONSTANTS`, each of which was measured,
is exact by the layout of a file, or is an assumption; what rests on an assumption says so. docs/planning.md explains
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import InputError, one_line

Origin = Literal["exact", "measured", "assumed", "given"]
"""Exact by a file's layout, measured as the source says, assumed, or given by the user."""


@dataclass(frozen=True)
class Constant:
    """A number that figures are made of.

    Attributes:
        value: The number, > 0.
        unit: What it counts.
        origin: How far it can be trusted.
        source: Where it was measured, or why it is assumed.
    """

    value: float
    unit: str
    origin: Origin
    source: str


_STORE = "benchmarks/store.py at d = 384, r = 50, 60,000 outputs; docs/index-format.md"
_PROBING = "benchmarks/probing.py: EfficientNet-Lite0 (0.407 GMAC), 12.6 ms an image on two cores"
_SCAN = "benchmarks/scan.py: whitened, 1,000,000 outputs, d = 512, r = 50, one core"
_FOOTPRINT = "benchmarks/footprint.py: embedded engine, d = 512, 60,000 and 160,000 outputs"

CONSTANTS: Mapping[str, Constant] = {
    "sparse_bytes": Constant(6.44, "bytes a non-zero", "measured", _STORE),
    "sparse_index_bytes": Constant(5.52, "bytes a non-zero", "measured", _STORE),
    "payload_bytes": Constant(373, "bytes an output, beside 6 r", "measured", _STORE),
    "field_index_bytes": Constant(69, "bytes an output and indexed field", "measured", _STORE),
    "id_bytes": Constant(44, "bytes an output", "measured", _STORE),
    "log_bytes": Constant(31, "bytes an output", "measured", _STORE),
    "server_fields": Constant(11, "indexed fields of an output", "exact", "engine/store/server_config.py"),
    "engine_own_bytes": Constant(3, "bytes an output", "measured", _FOOTPRINT),
    "held_share": Constant(
        1, "of ids and indexed fields", "assumed", "a server keeps them in memory, the embedded engine maps them"
    ),
    "engine_dense_ns": Constant(104, "core-ns an output at d = 512", "measured", _FOOTPRINT),
    "engine_sparse_ns": Constant(502, "core-ns an output at r = 50", "measured", _FOOTPRINT),
    "scan_ns": Constant(33, "core-ns an output of 840 bytes", "measured", _SCAN),
    "query_ms": Constant(
        3.5, "core-ms a query", "measured", "benchmarks/http.py: 7.28 ms over 85,306 outputs, less the scan's 3.8"
    ),
    "http_ms": Constant(2.23, "core-ms a query", "measured", "benchmarks/http.py: POST /v1/search over the library"),
    "rounds": Constant(2, "widenings until certified", "assumed", "benchmarks/server.py: 1 to 8, by concept and index"),
    "graph_bytes": Constant(
        1535, "bytes an output at 514 numbers", "measured", "benchmarks/candidates.py: 101,287 outputs, float16"
    ),
    "candidates_ms": Constant(
        9.3,
        "core-ms a query",
        "assumed",
        "benchmarks/candidates.py over 101,287 outputs; more of them take a little more",
    ),
    "memory_gb_s": Constant(100, "GB/s of one machine's memory", "assumed", "eight channels of DDR5, a third of them"),
    "describe_ms": Constant(
        0.84, "core-ms an output at 4,000 probes", "measured", "benchmarks/footprint.py: descriptors and calibration"
    ),
    "store_rate": Constant(
        9650, "outputs/s of one process", "measured", "benchmarks/store.py on an idle machine, the slowest run"
    ),
    "model_ms": Constant(
        24.5, "core-ms a model", "measured", "benchmarks/crawl.py: 11 ms of the daemon and 13.5 ms of writing"
    ),
    "decode_ms": Constant(
        3.55, "core-ms a probe and preprocessing", "measured", "benchmarks/probing.py: 400 probes in 0.71 s, two cores"
    ),
    "cpu_gmac_s": Constant(16.2, "GMAC/s of a core", "measured", _PROBING),
    "gmac": Constant(5, "GMAC an image, mean of the models", "assumed", "ResNet-50 has 4.1, ViT-B/16 17.6"),
    "parameters": Constant(40e6, "parameters, mean of the models", "assumed", "ResNet-50 has 26 million, ViT-B/16 86"),
    "parameter_bytes": Constant(4, "bytes a parameter", "exact", "float32 safetensors"),
    "preprocessings": Constant(100, "distinct preprocessings", "assumed", "sizes, crops and filters in use"),
    "side": Constant(224, "pixels", "assumed", "most classifiers' input"),
    "gpu_tflop_s": Constant(20, "effective TFLOP/s of a GPU", "assumed", "no GPU was at hand; float16, batches found"),
    "gpu_model_s": Constant(3, "GPU-s a model", "assumed", "no GPU was at hand; loading, first batches, the search"),
    "network_mb_s": Constant(100, "MB/s of one machine", "assumed", "a tenth of ten-gigabit Ethernet"),
}
"""All constants by name; `constants` replaces some."""


@dataclass(frozen=True)
class Wish:
    """What is to be planned.

    Attributes:
        models: Models, >= 1.
        outputs_per_model: Mean of the models, > 0.
        probes: n, 1..65,535.
        dimension: d, of the encoder.
        top_r: r, kept probes, 1..n.
        responses: Whether the archive of responses is kept.
        replicas: Copies of the store on a cluster.
        gpus: Run the models; 0 where cores do.
        cores: Of all machines that index.
        search_cores: Of the machine, or the cluster, that answers.
    """

    models: int
    outputs_per_model: float = 100.0
    probes: int = 4000
    dimension: int = 512
    top_r: int = 50
    responses: bool = True
    replicas: int = 1
    gpus: int = 0
    cores: int = 16
    search_cores: int = 16

    def __post_init__(self) -> None:
        for name in (
            "models",
            "outputs_per_model",
            "probes",
            "dimension",
            "top_r",
            "replicas",
            "cores",
            "search_cores",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name.replace('_', ' ')} is {value:g}: use a number above 0")
        if self.gpus < 0:
            raise InputError(f"gpus is {self.gpus}: use 0 or more")
        if self.top_r > self.probes:
            raise InputError(f"top r is {self.top_r}, of {self.probes} probes: use at most as many")

    @property
    def outputs(self) -> float:
        """Of all models together."""
        return self.models * self.outputs_per_model


@dataclass(frozen=True)
class Figure:
    """One result.

    Attributes:
        group: ``bytes``, ``hours`` or ``queries_per_second``.
        name: Within the group.
        value: In the unit of the group.
        what: For people.
        formula: How it follows, as Python writes it: N outputs, M models, n probes, d dimensions, r kept probes, the
            rest of the wish, constants, and other figures of the group by their names.
        assumed: Constants it rests on that are neither measured nor given.
    """

    group: str
    name: str
    value: float
    what: str
    formula: str
    assumed: tuple[str, ...] = ()


def constants(given: Mapping[str, float]) -> dict[str, Constant]:
    """All constants, some of them replaced.

    Args:
        given: Values by name.

    Raises:
        InputError: A name is unknown or a value is not a number above 0.
    """
    found = dict(CONSTANTS)
    for name, value in given.items():
        if name not in found:
            raise InputError(f"no constant is called {one_line(name, 50)!r}: there are {', '.join(found)}")
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"the constant {name} is {value:g}: use a number above 0")
        found[name] = replace(found[name], value=value, origin="given", source="an option")
    return found


def plan(wish: Wish, known: Mapping[str, Constant] = CONSTANTS) -> tuple[Figure, ...]:
    """Everything about an index of a size.

    Args:
        wish: What is to be planned.
        known: All constants.

    Returns:
        The figures, by group.
    """
    c = {name: constant.value for name, constant in known.items()}
    figures = (*_bytes(wish, c), *_hours(wish, c), *_queries(wish, c))
    return tuple(replace(figure, assumed=tuple(sorted(_assumed(figure, figures, known)))) for figure in figures)


def read_bytes(wish: Wish) -> int:
    """Bytes of one output that a scan may read: exact by the snapshot's layout (docs/index-format.md)."""
    return 28 + 6 * wish.top_r + wish.dimension


def store_bytes(wish: Wish, c: Mapping[str, float], fields: float) -> float:
    """Bytes of one output in the store, with so many indexed fields."""
    vectors = 4 * (wish.dimension + 1) + (c["sparse_bytes"] + c["sparse_index_bytes"]) * (2 * wish.top_r + 2)
    return (
        vectors + c["payload_bytes"] + 6 * wish.top_r + fields * c["field_index_bytes"] + c["id_bytes"] + c["log_bytes"]
    )


def _bytes(wish: Wish, c: Mapping[str, float]) -> list[Figure]:
    outputs, n, d, r = wish.outputs, wish.probes, wish.dimension, wish.top_r
    held = c["engine_own_bytes"] + c["held_share"] * (c["id_bytes"] + c["server_fields"] * c["field_index_bytes"])
    read = 4 * (d + 1) + c["sparse_index_bytes"] * (2 * r + 2)
    in_memory = "engine_own_bytes + held_share * (id_bytes + server_fields * field_index_bytes)"
    output = (
        "4 * (d + 1) + (sparse_bytes + sparse_index_bytes) * (2 * r + 2) + payload_bytes + 6 * r + id_bytes + log_bytes"
    )

    def figure(name: str, value: float, what: str, formula: str) -> Figure:
        return Figure("bytes", name, value, what, formula)

    return [
        figure(
            "store",
            outputs * store_bytes(wish, c, 1),
            "embedded store, on disk",
            f"N * ({output} + field_index_bytes)",
        ),
        figure(
            "server",
            outputs * store_bytes(wish, c, c["server_fields"]) * wish.replicas,
            "store on a Qdrant server, all replicas, on disk",
            f"N * replicas * ({output} + server_fields * field_index_bytes)",
        ),
        figure(
            "server_memory",
            outputs * wish.replicas * held,
            "memory that Qdrant must have",
            f"N * replicas * ({in_memory})",
        ),
        figure(
            "server_cache",
            outputs * wish.replicas * (held + read),
            "memory with which Qdrant searches without its disk",
            f"N * replicas * ({in_memory} + 4 * (d + 1) + sparse_index_bytes * (2 * r + 2))",
        ),
        figure(
            "graph",
            outputs * wish.replicas * c["graph_bytes"],
            "candidates' graph on a Qdrant server, on disk",
            "N * replicas * graph_bytes",
        ),
        figure("snapshot", outputs * (48 + 6 * r + 3 * d), "snapshot, on disk", "N * (48 + 6 * r + 3 * d)"),
        figure("scan_memory", outputs * read_bytes(wish), "memory with which a scan is fast", "N * (28 + 6 * r + d)"),
        figure("responses", outputs * 2 * n * wish.responses, "archive of responses", "N * 2 * n * responses"),
        figure(
            "pixels",
            c["preprocessings"] * n * 3 * c["side"] ** 2,
            "preprocessed probes, if all are kept",
            "preprocessings * n * 3 * side**2",
        ),
        figure(
            "download",
            wish.models * c["parameters"] * c["parameter_bytes"],
            "downloaded in all",
            "M * parameters * parameter_bytes",
        ),
    ]


def _hours(wish: Wish, c: Mapping[str, float]) -> list[Figure]:
    outputs, models, n = wish.outputs, wish.models, wish.probes
    gpu = models * (2e9 * n * c["gmac"] / (1e12 * c["gpu_tflop_s"]) + c["gpu_model_s"]) / 3600
    forward = models * n * c["gmac"] / c["cpu_gmac_s"] / 3600
    writing = outputs * (c["describe_ms"] * n / 4000 / 1e3 + 1 / c["store_rate"]) + models * c["model_ms"] / 1e3
    rest = (writing + c["preprocessings"] * n * c["decode_ms"] / 1e3) / 3600
    download = models * c["parameters"] * c["parameter_bytes"] / (1e6 * c["network_mb_s"]) / 3600
    if wish.gpus:
        elapsed = max(gpu / wish.gpus, rest / wish.cores, download)
        longest = "max(gpu / gpus, cpu_rest / cores, network)"
    else:
        elapsed = max((forward + rest) / wish.cores, download)
        longest = "max((cpu_models + cpu_rest) / cores, network)"

    def figure(name: str, value: float, what: str, formula: str) -> Figure:
        return Figure("hours", name, value, what, formula)

    return [
        figure(
            "gpu",
            gpu,
            "GPU hours, where GPUs run the models",
            "M * (2e9 * n * gmac / (1e12 * gpu_tflop_s) + gpu_model_s) / 3600",
        ),
        figure("cpu_models", forward, "core hours, where cores run the models", "M * n * gmac / cpu_gmac_s / 3600"),
        figure(
            "cpu_rest",
            rest,
            "core hours to decode, describe and store",
            "(N * (describe_ms * n / 4000 / 1e3 + 1 / store_rate) + M * model_ms / 1e3"
            " + preprocessings * n * decode_ms / 1e3) / 3600",
        ),
        figure(
            "network",
            download,
            "hours of one machine's network",
            "M * parameters * parameter_bytes / (1e6 * network_mb_s) / 3600",
        ),
        figure("elapsed", elapsed, f"hours from start to end with {_hardware(wish)}", longest),
    ]


def _queries(wish: Wish, c: Mapping[str, float]) -> list[Figure]:
    outputs, cores = wish.outputs, wish.search_cores
    scanned_ms = c["query_ms"] + c["http_ms"] + outputs * c["scan_ns"] * read_bytes(wish) / 840 / 1e6
    engine_ns = c["engine_dense_ns"] * (wish.dimension + 1) / 513 + c["engine_sparse_ns"] * wish.top_r / 50
    asked_ms = c["query_ms"] + c["http_ms"] + outputs * c["rounds"] * engine_ns / 1e6
    near_ms = c["candidates_ms"] + c["query_ms"] + c["http_ms"]

    def figure(name: str, value: float, what: str, formula: str) -> Figure:
        return Figure("queries_per_second", name, value, what, formula)

    return [
        figure(
            "scan",
            min(1e3 * cores / scanned_ms, 1e9 * c["memory_gb_s"] / (outputs * read_bytes(wish))),
            "exact, by scanning a snapshot",
            "min(1e3 * search_cores / (query_ms + http_ms + N * scan_ns * (28 + 6 * r + d) / 840 / 1e6),"
            " 1e9 * memory_gb_s / (N * (28 + 6 * r + d)))",
        ),
        figure(
            "qdrant",
            1e3 * cores / asked_ms,
            "exact, by a Qdrant server without a graph",
            "1e3 * search_cores / (query_ms + http_ms"
            " + N * rounds * (engine_dense_ns * (d + 1) / 513 + engine_sparse_ns * r / 50) / 1e6)",
        ),
        figure(
            "candidates",
            1e3 * cores / near_ms,
            "approximate, by a Qdrant server with a graph",
            "1e3 * search_cores / (candidates_ms + query_ms + http_ms)",
        ),
    ]


def _assumed(figure: Figure, figures: Sequence[Figure], known: Mapping[str, Constant]) -> set[str]:
    """Assumed constants in a formula, and in those of the figures of its group that it names."""
    words = set(re.findall("[a-z_]+", figure.formula))
    found = {name for name, constant in known.items() if name in words and constant.origin == "assumed"}
    for other in figures:
        if other.group == figure.group and other.name != figure.name and other.name in words:
            found |= _assumed(other, figures, known)
    return found


def _hardware(wish: Wish) -> str:
    cores = f"{wish.cores:,} core{'s' * (wish.cores != 1)}"
    return f"{wish.gpus:,} GPU{'s' * (wish.gpus != 1)} and {cores}" if wish.gpus else cores
