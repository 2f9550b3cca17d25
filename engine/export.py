"""Exporting an index to parquet files, for whoever wants to compute with what is in it.

A folder gets a file a table and, last, ``export.json`` (counts, hashes, what the index was made with); a single file
has a row an output. Columns are those of :mod:`engine.export_columns`. Files have another name until they are whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.calibration import calibrate
from engine.copy_source import Progress
from engine.errors import IndexDamagedError, InputError, StoreError
from engine.export_columns import FORMAT, MODEL_FACTS, ONE_FILE, TABLES, Column, schema
from engine.files import write_json
from engine.index import Index
from engine.knowledge import Knowledge
from engine.outputs import OutputTable
from engine.probes import hash_file
from engine.remote import open_store
from engine.schema import Model, ModelState, Performance, Profile, Task

if TYPE_CHECKING:
    import pyarrow as pa

INVENTORY = "export.json"
"""Written last: a folder with it is a whole export."""

SUFFIX = ".parquet"
_PART = ".part"
_ROWS = 4_096
"""Rows of a row group: 10 MB at r = 50 and d = 512."""

_CONSTANTS = ("h_uniform", "h", "s", "g", "q", "g_white", "q_white", "prior")


def export_index(folder: Path, target: Path, progress: Progress | None = None) -> dict[str, int]:
    """Writes an index as parquet files and reads them back.

    The store is locked meanwhile, where it is embedded; models that are replaced on a server meanwhile are exported as
    they were, or not at all where their outputs have gone: the count tells.

    Args:
        folder: Of the index, or to work with one on a server (``engine.remote.index_folder``).
        target: A file whose name ends in ``.parquet``, or a folder that is new, empty or an unfinished export.
        progress: Called with (outputs done, outputs in all, what is being done).

    Returns:
        Rows by table.

    Raises:
        InputError: Something else is there.
        IndexDamagedError: A model has more or fewer outputs than its record says.
        StoreError: The store cannot be read, or what was written cannot be read back.
        OSError: The files cannot be written.
    """
    index = Index(folder)
    single = target.suffix == SUFFIX
    _refuse_occupied(target, single)
    names = ["outputs"] if single else list(TABLES)
    files = {name: target if single else target / f"{name}{SUFFIX}" for name in names}
    (target.parent if single else target).mkdir(parents=True, exist_ok=True)
    written: dict[str, int] = {}
    try:
        with open_store(folder) as store:
            models = store.models()
            knowledge = Knowledge.of(store.knowledge())
            indexed = [model for model in models if model.state is ModelState.INDEXED]
            columns = {name: ONE_FILE if single else TABLES[name] for name in names}
            for name in names:
                if name != "outputs":
                    rows = _rows_of(name, index, models, knowledge)
                    with _writer(files[name], columns[name], index) as write:
                        for start in range(0, len(rows), _ROWS):
                            write(_transposed(rows[start : start + _ROWS], columns[name]))
                    written[name] = len(rows)
            with _writer(files["outputs"], columns["outputs"], index) as write:
                tables = _calibrated(index, store.iter_outputs(indexed), indexed)
                written["outputs"] = _write_outputs(tables, indexed, write, single, progress)
        expected = sum(model.outputs for model in indexed)
        if written["outputs"] != expected and not (folder / "server.json").exists():
            raise IndexDamagedError(
                f"the store of {folder} has {written['outputs']:,} outputs instead of {expected:,}: "
                "see 'hubhound index verify'",
                folder,
            )
        for name, path in files.items():
            _read_back(_part(path), written[name], progress)
            _part(path).replace(path)
        if not single:
            _write_inventory(target, index, files, written)
    except BaseException:
        for path in files.values():
            with suppress(OSError):
                _part(path).unlink(missing_ok=True)
        raise
    return written


def _refuse_occupied(target: Path, single: bool) -> None:
    if single:
        if target.exists():
            raise InputError(f"{target} exists: choose another name, or remove it first")
        return
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is no folder: choose another one, or a name that ends in {SUFFIX}")
    ours = {f"{name}{SUFFIX}{end}" for name in TABLES for end in ("", _PART)}
    there = {path.name for path in target.iterdir()} if target.exists() else set()
    if INVENTORY in there or there - ours:
        raise InputError(f"{target} is not empty: choose another folder, or remove what is in it")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}{_PART}")


@contextmanager
def _writer(path: Path, columns: Sequence[Column], index: Index) -> Iterator[Any]:
    """Yields a function that takes columns by name and writes them as a row group; rows wait until there are enough."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = index.manifest
    about = {"hubhound.export": str(FORMAT), "hubhound.manifest": manifest.model_dump_json()}
    fields = schema(tuple(columns), manifest.top_r, manifest.encoder.dimension, about)
    # Vectors hardly compress, and a dictionary of numbers that are all different only costs time.
    repeated = [column.name for column in columns if column.type == "string"]
    waiting: list[pa.RecordBatch] = []

    with pq.ParquetWriter(
        _part(path), fields, compression="zstd", use_dictionary=repeated, write_page_checksum=True
    ) as file:

        def flush() -> None:
            if waiting:
                file.write_table(pa.Table.from_batches(waiting).combine_chunks())
                waiting.clear()

        def write(values: Mapping[str, Any]) -> None:
            arrays = [_array(values[field.name], field.type) for field in fields]
            waiting.append(pa.record_batch(arrays, schema=fields))
            if sum(batch.num_rows for batch in waiting) >= _ROWS:
                flush()

        yield write
        flush()


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind) and hasattr(values, "dtype"):
        flat = pa.array(values.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)


def _calibrated(index: Index, tables: Iterable[OutputTable], models: Sequence[Model]) -> Iterator[OutputTable]:
    """The tables with the constants that the records name, also where a calibration has not come to its end."""
    claimed = {model.repo: model.calibration for model in models}
    for table in tables:
        fingerprint = claimed[table.repo]
        if fingerprint is None or table.calibrated_with(fingerprint, fingerprint):
            yield table
        else:
            constants = calibrate(table.idx, table.z, table.anchor, index.background(fingerprint))
            yield table.with_calibration(constants, fingerprint)


def _write_outputs(
    tables: Iterator[OutputTable], models: Sequence[Model], write: Any, single: bool, progress: Progress | None
) -> int:
    facts = {model.repo: model for model in models}
    total, done = sum(model.outputs for model in models), 0
    for table in tables:
        for start in range(0, len(table), _ROWS):
            write(_output_rows(table, facts[table.repo] if single else None, slice(start, start + _ROWS)))
        done += len(table)
        if progress:
            progress(done, total, "exporting outputs")
    return done


def _output_rows(table: OutputTable, model: Model | None, rows: slice) -> dict[str, Any]:
    output = table.output[rows]
    count = len(output)
    constants = table.calibration.take(rows)
    values: dict[str, Any] = {
        "model": [table.repo] * count,
        "revision": [table.revision] * count,
        "output": output.astype("int32"),
        "label": [None if label is None else _text(label) for label in table.labels[rows]],
        "mean": table.mean[rows],
        "std": table.std[rows],
        "probes": table.idx[rows],
        "z": table.z[rows],
        "anchor": table.anchor[rows],
        **{name: getattr(constants, name) for name in _CONSTANTS},
    }
    if model is not None:
        values |= {column.name: [getattr(model, column.name)] * count for column in MODEL_FACTS}
    return values


def _rows_of(name: str, index: Index, models: Sequence[Model], knowledge: Knowledge) -> list[dict[str, Any]]:
    if name == "models":
        return [_model_row(model) for model in models]
    if name == "probes":
        vectors = index.probe_embeddings
        return [
            {"probe": i, "file": file, "sha256": sha256, "embedding": vectors[i].tolist()}
            for i, (file, sha256) in enumerate(index.probe_files)
        ]
    if name == "tasks":
        return [_task_row(task) for task in knowledge.tasks]
    if name == "profiles":
        return [_plain(profile) for profile in knowledge.profiles]
    return [_plain(performance) for performance in knowledge.performance]


def _model_row(model: Model) -> dict[str, Any]:
    height, width = model.input_size or (None, None)
    return {
        **_plain(model),
        "model": model.repo,
        "state": model.state.value,
        "input_height": height,
        "input_width": width,
        "left_out": [one.output for one in model.left_out],
        "left_out_reasons": [one.reason for one in model.left_out],
    }


def _task_row(task: Task) -> dict[str, Any]:
    return {
        **_plain(task),
        "task": task.name,
        "images": [image.file for image in task.images],
        "sha256": [image.sha256 for image in task.images],
    }


def _plain(record: Model | Task | Profile | Performance) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in record}


def _text(label: str) -> str:
    return label.encode("utf-8", "replace").decode()  # a store's text is always whole, an older one's may not be


def _transposed(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> dict[str, list[Any]]:
    return {column.name: [row[column.name] for row in rows] for column in columns}


def _read_back(path: Path, rows: int, progress: Progress | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = 0
            for batch in file.iter_batches(_ROWS):
                found += batch.num_rows
                if progress:
                    progress(found, rows, f"verifying {path.name.removesuffix(_PART)}")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read back ({error}): check the disk, run again", path) from error
    if found != rows:
        raise StoreError(f"{path} has {found:,} rows instead of {rows:,}: check the disk, run again", path)


def _write_inventory(folder: Path, index: Index, files: Mapping[str, Path], written: Mapping[str, int]) -> None:
    tables = {
        name: {
            "file": path.name,
            "rows": written[name],
            "sha256": hash_file(path),
            "columns": {column.name: {"type": column.type, "meaning": column.meaning} for column in TABLES[name]},
        }
        for name, path in files.items()
    }
    manifest = index.manifest.model_dump(mode="json")
    write_json(folder / INVENTORY, {"format": FORMAT, "manifest": manifest, "tables": tables})
