"""A Hub that has what the files of ``deploy/`` ask for, under the names that they use, only smaller."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.hub_crowd import Crowd, build_crowd
from tests.support.hub_server import HubServer
from tests.support.tiny_models import timm_model
from tests.support.tiny_vlm import save_vlm

DATA, ENCODER = "zh-plus/tiny-imagenet", "timm/ViT-B-16-SigLIP"
ROWS = 80
PROBES = 64
"""The least number of probes is that of the kept ones, 50."""

_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}


@contextmanager
def deployed_hub(root: Path, mirrored: tuple[str, ...] = ()) -> Iterator[tuple[HubServer, Crowd]]:
    """The Hub and what a crawl must make of it: four models, a copy, two that are refused; one that nobody downloads.

    Args:
        root: Its folder.
        mirrored: More models, which its listing does not call classifiers.
    """
    crowd = build_crowd(root, 4, 2, 3, copies=1)
    unpopular = crowd.add()
    del crowd.expected[unpopular]
    save_vlm(root / "models" / ENCODER)
    for name in mirrored:
        timm_model(root / "models" / name, classes=3 + len(name) % 3)
    _write_images(root / "datasets" / DATA / "data" / "valid-00000-of-00001.parquet")
    with HubServer(root) as hub:
        crowd.tell(hub)
        for repo in crowd.expected:
            hub.facts.setdefault(repo, {})["downloads"] = 1000
        hub.facts.setdefault(unpopular, {})["downloads"] = 99
        yield hub, crowd


def _write_images(path: Path) -> None:
    path.parent.mkdir(parents=True)
    rows = []
    for row in range(ROWS):
        noise = np.random.default_rng(row).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{row}.png"})
    table = pa.table({"image": pa.array(rows)})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(_FEATURES)}), path, row_group_size=10)
