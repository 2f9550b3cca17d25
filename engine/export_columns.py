"""The columns of an export: names, types and what they mean, as the files themselves and the documents say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
"""Version of the columns; new ones may be added without a new version."""


class Column(NamedTuple):
    """One column."""

    name: str
    type: str
    """``string``, ``int32`` ..., ``timestamp``; ``list<T>``; ``T[r]``, ``T[d]`` with the index's r and d."""
    meaning: str


MODEL_FACTS = (
    Column("library", "string", "timm, transformers, ..."),
    Column("architecture", "string", "as its configuration names it"),
    Column("licence", "string", "as the model's card declares it"),
    Column("parameters", "int64", "number of parameters"),
    Column("downloads", "int64", "when it was indexed"),
)
"""Facts on a model that stand beside every output where all is one file."""

OUTPUTS = (
    Column("model", "string", "repository id, org/name"),
    Column("revision", "string", "commit, or content hash of a local folder"),
    Column("output", "int32", "position in the model's answer, from 0"),
    Column("label", "string", "as the model declares it, null where it declares none"),
    Column("mean", "float64", "mean response over all probes, as the model gave them"),
    Column("std", "float64", "standard deviation of the responses over all probes (ddof 0)"),
    Column("probes", "uint16[r]", "the probes of the r largest z, by descending z"),
    Column("z", "float32[r]", "standardised responses on those probes; in a divisive index after each probe's gain"),
    Column("anchor", "float32[d]", "(1/n) sum of z (p - mean p) over all n probes, p a probe's embedding"),
    Column("h_uniform", "float32", "mean of the k smallest distances to the background, unweighted (probelog)"),
    Column("h", "float32", "the same with cubic weights (all other methods)"),
    Column("s", "float32", "standard deviation of those distances"),
    Column("g", "float32", "mean of the k largest correlations with the background"),
    Column("q", "float32", "standard deviation of the correlations"),
    Column("g_white", "float32", "mean of the k largest correlations with the background's discriminants (whitened)"),
    Column("q_white", "float32", "their standard deviation"),
    Column("prior", "float32", "what whitened grants an output before any concept is known"),
)

MODELS = (
    Column("model", "string", "repository id, org/name"),
    Column("revision", "string", "commit, or content hash of a local folder"),
    Column("state", "string", "indexed, copy, failed or refused"),
    *MODEL_FACTS,
    Column("likes", "int64", "when it was indexed"),
    Column("tags", "list<string>", "of its card"),
    Column("input_height", "int32", "pixels"),
    Column("input_width", "int32", "pixels"),
    Column("outputs", "int32", "outputs in the index"),
    Column("left_out", "list<int32>", "outputs without information, which are not in the index"),
    Column("left_out_reasons", "list<string>", "of each: constant, NaN or infinite"),
    Column("probabilities", "bool", "it answers probabilities; their centred logs were used"),
    Column("reason", "string", "kind of failure or refusal"),
    Column("detail", "string", "one line on it"),
    Column("calibration", "string", "fingerprint of the background behind the constants"),
    Column("copy_of", "string", "of a copy: the model that answers the same"),
    Column("copied_revision", "string", "of a copy: the original's revision"),
    Column("indexed_at", "timestamp", "UTC"),
)

PROBES = (
    Column("probe", "uint16", "number of the probe, which outputs refer to"),
    Column("file", "string", "its image"),
    Column("sha256", "string", "of the image file"),
    Column("embedding", "float32[d]", "normalised, of the index's encoder"),
)

TASKS = (
    Column("task", "string", "name"),
    Column("images", "list<string>", "file names of the sample, in order"),
    Column("sha256", "list<string>", "of each image file"),
    Column("fingerprint", "string", "of the sample"),
    Column("seed", "int64", "of the draw"),
    Column("drawn_from", "int64", "images that there were"),
    Column("classes", "list<string>", "class names, where they are known"),
)

PROFILES = (
    Column("model", "string", "as it was named: open_clip:ARCH/PRETRAINED ..., or org/name"),
    Column("revision", "string", "of its weights"),
    Column("task", "string", "name of the task"),
    Column("task_fingerprint", "string", "of the sample that was profiled"),
    Column("blocks", "list<string>", "from the input to the answer"),
    Column("conductance", "list<float64>", "mean |conductance| of each block, over entries and images"),
    Column("images", "int32", "how many images it is the mean of"),
    Column("n_steps", "int32", "steps of the path from the baseline to the image"),
    Column("completeness_gap", "float64", "mean relative gap of the completeness axiom"),
    Column("parameters", "int64", "of the whole model"),
    Column("precision", "string", "of the passes"),
    Column("profiled_at", "timestamp", "UTC"),
)

PERFORMANCE = (
    Column("model", "string", "as profiles name it"),
    Column("task", "string", "name of the task"),
    Column("metric", "string", "acc1: top-1 accuracy"),
    Column("value", "float64", "a share from 0 to 1"),
    Column("source", "string", "where the figure was published"),
)

TABLES = {
    "outputs": OUTPUTS,
    "models": MODELS,
    "probes": PROBES,
    "tasks": TASKS,
    "profiles": PROFILES,
    "performance": PERFORMANCE,
}
"""The files of an export to a folder: ``NAME.parquet`` each."""

ONE_FILE = (*OUTPUTS[:4], *MODEL_FACTS, *OUTPUTS[4:])
"""The columns where all is one file: a row an output, with facts on its model."""


def schema(columns: tuple[Column, ...], top_r: int, dimension: int, metadata: dict[str, str]) -> pa.Schema:
    """The columns as a parquet file has them, each with its meaning as the field's ``description``.

    Args:
        columns: Of one table.
        top_r: The index's r.
        dimension: The index's d.
        metadata: Of the file.
    """
    import pyarrow as pa

    sizes = {"r": top_r, "d": dimension}
    fields = [pa.field(name, _type(kind, sizes), metadata={"description": meaning}) for name, kind, meaning in columns]
    return pa.schema(fields, metadata=metadata)


def _type(kind: str, sizes: dict[str, int]) -> pa.DataType:
    import pyarrow as pa

    if kind.startswith("list<"):
        return pa.list_(_type(kind[5:-1], sizes))
    if kind.endswith("]"):
        item, _, size = kind[:-1].partition("[")
        return pa.list_(_type(item, sizes), sizes[size])
    if kind == "timestamp":
        return pa.timestamp("us", tz="UTC")
    return {"string": pa.string(), "bool": pa.bool_(), "float32": pa.float32(), "float64": pa.float64()}.get(
        kind
    ) or getattr(pa, kind)()
