"""A seeded sample of an image dataset on the Hugging Face Hub, or on whatever ``HF_ENDPOINT`` names.

Datasets that lie there as parquet files, or that the Hub itself has converted to parquet, are read without downloading
them: the row counts from the files' footers, then the row groups that hold a drawn row, and of these the images only.
"""

from __future__ import annotations

import fnmatch
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ProbeError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub import HfApi, HfFileSystem

CONVERTED = "refs/convert/parquet"
"""The branch where the Hub keeps its own conversion of a dataset."""

FOOTER_READERS = 8
GROUP_READERS = 4
"""Files read at once: footers take only waiting, row groups also memory."""

INFO_TIMEOUT_S = 30.0

_NUMBER = re.compile(r"(part-)?\d+(-[0-9a-f-]+)?")
_PIECE = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?")


@dataclass(frozen=True)
class _Shard:
    """One parquet file of a split, and where its rows lie in the split."""

    path: str
    footer: pq.FileMetaData
    group_rows: tuple[int, ...]
    column: str

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


def sample_hub_dataset(
    repo: str,
    split: str,
    count: int,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a uniform sample of a split's images, drawn without replacement over all of its rows.

    Args:
        repo: Dataset id, ``org/name``.
        split: Name of the split.
        count: How many images.
        seed: Of the draw; the same seed draws the same rows of the same files.
        folder: Where the images go, each as the bytes it is, called by its row number in the split.
        progress: Called with the images written and the images in all.

    Returns:
        The files, ordered by row number.

    Raises:
        ProbeError: If the dataset or split does not exist, has too few rows or no images, or the Hub cannot be reached.
    """
    with _hub_errors(repo):
        api, files_of = _connect()
        paths = _files_of_split(api, repo, split)
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            shards = list(pool.map(lambda path: _read_footer(files_of(), path, repo), paths))
    total = sum(shard.rows for shard in shards)
    if count > total:
        raise ProbeError(f"split {split!r} of the dataset {repo} has {total:,} rows: draw at most as many", repo)
    rows = sorted(random.Random(seed).sample(range(total), count))  # noqa: S311 - a draw, not a secret
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(6, len(str(total - 1)))
    written: list[Path] = []
    with _hub_errors(repo), ThreadPoolExecutor(GROUP_READERS) as pool:
        wanted = list(_wanted_groups(shards, rows))
        # A few row groups ahead, not all at once: one can hold hundreds of megabytes.
        for start in range(0, len(wanted), GROUP_READERS):
            batch = wanted[start : start + GROUP_READERS]
            for found in pool.map(lambda group: _read_group(files_of(), *group), batch):
                for row, content in found:
                    path = folder / f"{row:0{digits}d}.{_extension(content, row, repo)}"
                    _write(path, content)
                    written.append(path)
                    if progress is not None:
                        progress(len(written), count)
    return written


def _connect() -> tuple[HfApi, Callable[[], HfFileSystem]]:
    from huggingface_hub import HfApi, HfFileSystem

    # huggingface_hub reads the variable once, when it is imported; a program that sets it later means it too.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    # Its own instance: the shared one remembers what a dataset looked like before.
    files = HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
    return HfApi(endpoint=endpoint, library_name="hubhound"), lambda: files


def _files_of_split(api: HfApi, repo: str, split: str) -> list[str]:
    from huggingface_hub.errors import RevisionNotFoundError

    info = api.dataset_info(repo, timeout=INFO_TIMEOUT_S)
    names = _parquet_names(api, repo, str(info.sha))
    card = info.card_data
    by_config = _splits_of_card(names, card.get("configs") if card is not None else None) or _splits_by_name(names)
    revision = str(info.sha)
    if not by_config:
        try:
            revision = str(api.dataset_info(repo, revision=CONVERTED, timeout=INFO_TIMEOUT_S).sha)
        except RevisionNotFoundError:
            raise ProbeError(f"the dataset {repo} has no parquet files, and the Hub has not made any", repo) from None
        by_config = _splits_by_name(_parquet_names(api, repo, revision))
    splits = _only_config(repo, by_config)
    if split not in splits:
        there = ", ".join(sorted(splits)) or "none"
        raise ProbeError(f"the dataset {repo} has no split {split!r}: there are {there}", repo)
    return [f"datasets/{repo}@{revision}/{name}" for name in splits[split]]


def _parquet_names(api: HfApi, repo: str, revision: str) -> list[str]:
    entries = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
    return sorted(entry.path for entry in entries if entry.path.endswith(".parquet"))


_Splits = dict[str, list[str]]


def _splits_of_card(names: Sequence[str], configs: object) -> dict[str, _Splits]:
    """What the dataset card says which file belongs to which split; empty where it says nothing that is there."""
    found: dict[str, _Splits] = {}
    for config in configs if isinstance(configs, list) else []:
        files = config.get("data_files") if isinstance(config, dict) else None
        for entry in files if isinstance(files, list) else []:
            if not isinstance(entry, dict) or "split" not in entry:
                continue
            paths = entry.get("path")
            patterns = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
            fitting = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
            if fitting:
                name = "default" if config.get("default") else str(config.get("config_name", "default"))
                found.setdefault(name, {})[str(entry["split"])] = fitting
    return found


def _splits_by_name(names: Sequence[str]) -> dict[str, _Splits]:
    """Which file belongs to which split by the usual names.

    ``data/train-00000-of-00002.parquet``, ``train.parquet``, ``train/0000.parquet``, ``config/train-*.parquet`` and
    ``config/train/0000.parquet``, the Hub's own way.
    """
    found: dict[str, _Splits] = {}
    for name in names:
        *folders, file = name.removesuffix(".parquet").split("/")
        if folders and _NUMBER.fullmatch(file):
            split = folders.pop()
        else:
            match = _PIECE.fullmatch(file)
            split = match["split"] if match else file
        # The Hub converts only the beginning of what is very large.
        split = split.removeprefix("partial-")
        config = "/".join(folder for folder in folders if folder != "data") or "default"
        found.setdefault(config, {}).setdefault(split, []).append(name)
    return found


def _only_config(repo: str, by_config: Mapping[str, _Splits]) -> _Splits:
    if len(by_config) == 1:
        return next(iter(by_config.values()))
    if "default" in by_config:
        return by_config["default"]
    raise ProbeError(
        f"the dataset {repo} comes in several configurations ({', '.join(sorted(by_config))}) without a default: "
        "save the images you want in a folder and use that",
        repo,
    )


def _read_footer(files: HfFileSystem, path: str, repo: str) -> _Shard:
    with _parquet(files, path) as parquet:
        metadata = parquet.metadata
        groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return _Shard(path, metadata, groups, _image_column(parquet.schema_arrow, repo))


@contextmanager
def _parquet(files: HfFileSystem, path: str, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    import pyarrow.parquet as pq

    # No read-ahead: pyarrow asks for whole column chunks, and more would be thrown away.
    with (
        files.open(path, "rb", cache_type="none") as stream,
        pq.ParquetFile(stream, metadata=footer, pre_buffer=True) as parquet,
    ):
        yield parquet


def _image_column(schema: pa.Schema, repo: str) -> str:
    """The column with the images: as the datasets library declares it, or the first that holds bytes like one."""
    import pyarrow as pa

    declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    columns = [
        name for name, feature in declared.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    columns += [
        field.name
        for field in schema
        if (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0) or _is_binary(field.type)
    ]
    for name in columns:
        if name in schema.names:
            kind = schema.field(name).type
            return f"{name}.bytes" if pa.types.is_struct(kind) else name
    raise ProbeError(f"the dataset {repo} has no column of images: there are {', '.join(schema.names)}", repo)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _wanted_groups(shards: Sequence[_Shard], rows: Sequence[int]) -> Iterator[tuple[_Shard, int, int, list[int]]]:
    """The row groups that hold a drawn row: shard, group, number of its first row in the split, rows in it."""
    first = 0
    left = iter(rows)
    row = next(left, None)
    for shard in shards:
        for group, length in enumerate(shard.group_rows):
            inside = []
            while row is not None and row < first + length:
                inside.append(row - first)
                row = next(left, None)
            if inside:
                yield shard, group, first, inside
            first += length


def _read_group(
    files: HfFileSystem, shard: _Shard, group: int, first: int, inside: Sequence[int]
) -> list[tuple[int, bytes]]:
    with _parquet(files, shard.path, shard.footer) as parquet:
        column = parquet.read_row_group(group, columns=[shard.column]).column(0)
    return [(first + row, _bytes_of(column[row].as_py())) for row in inside]


def _bytes_of(content: Any) -> bytes:
    if isinstance(content, dict):
        content = content.get("bytes")
    return content if isinstance(content, bytes) else b""


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ProbeError(f"the probe image {path} cannot be written: {error.strerror}", path) from error


def _extension(content: bytes, row: int, repo: str) -> str:
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith(b"BM"):
        return "bmp"
    what = "no JPEG, PNG, WebP or BMP image" if content else "empty: its image lies outside the parquet file"
    raise ProbeError(f"row {row:,} of the dataset {repo} is {what}", repo)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ProbeError(
            f"the dataset {repo} is gated: accept its terms on its page, and set HF_TOKEN", repo
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ProbeError(
            f"there is no dataset {repo} on the Hub, or it is private: check its name, or set HF_TOKEN", repo
        ) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise ProbeError(f"the dataset {repo} cannot be read now: {_first_line(error)}", repo) from error
    except Exception as error:
        import pyarrow as pa

        if isinstance(error, pa.ArrowInvalid):
            raise ProbeError(f"the dataset {repo} has a damaged parquet file: {_first_line(error)}", repo) from error
        # By name: huggingface_hub has changed the package it speaks HTTP with, and will again.
        if any(kind.__module__.partition(".")[0] in ("httpx", "httpx2") for kind in type(error).__mro__):
            raise ProbeError(f"the Hub cannot be reached for {repo}: {_first_line(error)}", repo) from error
        raise


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
