"""The header of a safetensors file, read without any library: is the file whole, and how much is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from engine.errors import Reason
from indexers.loaders.declined import Declined

MAX_HEADER_BYTES = 16 * 2**20
"""Longest header that is read; one of 10,000 tensors takes one MiB, and parsing takes ten times the length."""

SLACK_NUMBERS = 50_000_000
"""Numbers that a model may hold beyond its weights: masks, position tables and other things it computes itself."""


def count_numbers(files: Sequence[Path]) -> int:
    """Check that safetensors files are whole and count the numbers in them.

    Args:
        files: The files, one or all shards.

    Returns:
        Number of elements of all tensors together.

    Raises:
        Declined: If a header is garbage, or a file shorter or longer than its header says.
    """
    return sum(_count_in_file(file) for file in files)


def check_demand(demand: int, supply: int) -> None:
    """Refuse a config that asks for far more memory than its weights could fill.

    Args:
        demand: Numbers that the model as configured would allocate.
        supply: Numbers in its weights.

    Raises:
        Declined: If it is out of proportion.
    """
    if demand > 2 * supply + SLACK_NUMBERS:
        raise Declined(
            Reason.BROKEN_CONFIG, f"the config describes a model of {demand:,} numbers, the weights hold {supply:,}"
        )


def _count_in_file(file: Path) -> int:
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or length > min(MAX_HEADER_BYTES, size_bytes - 8):
            raise Declined(Reason.BROKEN_WEIGHTS, f"{file.name} has no safetensors header: download it again")
        try:
            header = json.loads(stream.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            numbers = sum(_count_in_tensor(entry["shape"]) for entry in tensors)
            end_bytes = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise Declined(Reason.BROKEN_WEIGHTS, f"the header of {file.name} is garbage: download it again") from error
    if size_bytes != end_bytes:
        raise Declined(
            Reason.BROKEN_WEIGHTS,
            f"{file.name} has {size_bytes:,} bytes where its header promises {end_bytes:,}: download it again",
        )
    if numbers > 8 * size_bytes:  # not even one bit for each
        raise Declined(Reason.BROKEN_WEIGHTS, f"{file.name} claims {numbers:,} numbers in {size_bytes:,} bytes")
    return numbers


def _count_in_tensor(shape: Sequence[int]) -> int:
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(shape)
    return math.prod(shape)
