"""Imported into a nursery, it makes every device seem broken after a model that failed."""

from __future__ import annotations

import torch

from indexers.crawl import child


def broken(device: torch.device) -> bool:
    """What is said of a device whose context an error has spoilt."""
    return False


child.still_works = broken
