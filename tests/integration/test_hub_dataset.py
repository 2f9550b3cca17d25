"""Samples of image datasets on a Hub, over real HTTP."""

import errno
import io
import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.errors import ProbeError
from engine.hub_dataset import sample_hub_dataset
from tests.support.hub_server import HubServer

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}


def picture(row, kind="PNG"):
    """A picture that knows its row."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(row).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def write(path, pictures, group=4, struct=True, declared=True, column="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(pictures)]
    columns = {"label": [1] * len(rows), column: pa.array(rows) if struct else pa.array(pictures, pa.binary())}
    if declared:
        # Something else that holds bytes comes first, and it is heavy.
        heavy = np.random.default_rng(7).bytes(50_000)
        columns = {"extra": pa.array([{"bytes": heavy, "path": "x"}] * len(rows)), **columns}
        features = {"extra": {"bytes": {"_type": "Value"}}, "label": {"_type": "Value"}, column: {"_type": "Image"}}
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    else:
        table = pa.table(columns)
    pq.write_table(
        table, path, row_group_size=group, compression="none", use_dictionary=False, write_statistics=["label"]
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    (tmp_path / "hub" / "datasets").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def dataset(hub):
    return hub.root / "datasets" / "org" / "data"


@pytest.fixture
def pictures():
    return [picture(row, list(FORMATS)[row % 4]) for row in range(40)]


def fill(dataset, pictures):
    write(dataset / "data" / "train-00000-of-00002.parquet", pictures[:25])
    write(dataset / "data" / "train-00001-of-00002.parquet", pictures[25:])
    write(dataset / "data" / "test-00000-of-00001.parquet", pictures[:3])


def test_a_sample_is_rows_as_they_are(hub, dataset, pictures, tmp_path):
    fill(dataset, pictures)
    steps = []
    paths = sample_hub_dataset("org/data", "train", 12, 3, tmp_path / "out", lambda *step: steps.append(step))
    rows = [int(path.stem) for path in paths]
    assert rows == sorted(set(rows))
    assert len(rows) == 12
    assert max(rows) >= 25 > min(rows)
    for row, path in zip(rows, paths, strict=True):
        assert path == tmp_path / "out" / f"{row:06d}.{list(FORMATS.values())[row % 4]}"
        assert path.read_bytes() == pictures[row]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in paths]
    assert steps == [(number, 12) for number in range(1, 13)]


def test_the_seed_decides(hub, dataset, pictures, tmp_path):
    fill(dataset, pictures)
    draws = [
        [path.name for path in sample_hub_dataset("org/data", "train", 10, seed, tmp_path / str(number))]
        for number, seed in enumerate([1, 1, 2])
    ]
    assert draws[0] == draws[1] != draws[2]


def test_every_row_is_as_likely(hub, dataset, tmp_path):
    write(dataset / "train.parquet", [picture(row) for row in range(8)], group=3)
    counts = np.zeros(8)
    for seed in range(60):
        for path in sample_hub_dataset("org/data", "train", 2, seed, tmp_path / str(seed)):
            counts[int(path.stem)] += 1
    assert counts.sum() == 120
    # Three standard deviations of a binomial with 120 draws and probability 1/8.
    assert np.abs(counts - 15).max() < 3 * np.sqrt(120 * 7 / 64)


def test_the_whole_split(hub, dataset, pictures, tmp_path):
    fill(dataset, pictures)
    paths = sample_hub_dataset("org/data", "train", 40, 0, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == pictures


def test_only_what_is_needed_is_read(hub, dataset, tmp_path):
    write(dataset / "train.parquet", [picture(row) for row in range(400)], group=10)
    size = (dataset / "train.parquet").stat().st_size
    sample_hub_dataset("org/data", "train", 2, 0, tmp_path / "out")
    ranges = [request.range for request in hub.requests if "/resolve/" in request.path]
    assert None not in ranges
    read = sum(int(last) - int(first) + 1 for first, last in (text[6:].split("-") for text in ranges))
    # Of two of the forty row groups the pictures, a thirtieth of what is in them; and once the footer, 64 KiB.
    assert read < 2 / 40 * size / 25 + 2**16
    assert len(ranges) <= 4


@pytest.mark.parametrize(
    "name",
    [
        "data/train-00000-of-00001.parquet",
        "data/train-00000-of-00001-0123456789abcdef.parquet",
        "data/train.parquet",
        "data/train/0000.parquet",
        "train-00000-of-00001.parquet",
        "train.parquet",
        "train/0000.parquet",
        "train/part-00000-abc.parquet",
        "plain_text/train-00000-of-00001.parquet",
        "default/train/0000.parquet",
        "default/partial-train/0000.parquet",
    ],
)
def test_where_the_files_of_a_split_lie(hub, dataset, tmp_path, name):
    write(dataset / name, [picture(row) for row in range(5)])
    assert len(sample_hub_dataset("org/data", "train", 5, 0, tmp_path / "out")) == 5


def test_what_the_card_says_comes_first(hub, dataset, tmp_path):
    write(dataset / "a" / "one.parquet", [picture(row) for row in range(5)])
    write(dataset / "b" / "two.parquet", [picture(row) for row in range(5, 8)])
    card = {
        "configs": [
            {"config_name": "small", "data_files": [{"split": "train", "path": ["b/*"]}]},
            {"config_name": "big", "default": True, "data_files": [{"split": "train", "path": ["a/*", "b/*"]}]},
        ]
    }
    (dataset / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    assert len(sample_hub_dataset("org/data", "train", 8, 0, tmp_path / "out")) == 8


def test_the_conversion_of_the_hub(hub, dataset, tmp_path):
    dataset.mkdir(parents=True)
    (dataset / "images.zip").write_bytes(b"PK")
    converted = dataset.parent / "data@refs%2Fconvert%2Fparquet" / "default"
    write(converted / "train" / "0000.parquet", [picture(row) for row in range(5)])
    write(converted / "train" / "0001.parquet", [picture(row) for row in range(5, 9)])
    paths = sample_hub_dataset("org/data", "train", 9, 0, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [picture(row) for row in range(9)]


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("declared", [True, False])
def test_where_the_pictures_are(hub, dataset, tmp_path, struct, declared):
    write(dataset / "train.parquet", [picture(row) for row in range(5)], struct=struct, declared=declared, column="img")
    paths = sample_hub_dataset("org/data", "train", 5, 0, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [picture(row) for row in range(5)]


def fails(message, *arguments):
    with pytest.raises(ProbeError, match=message) as caught:
        sample_hub_dataset(*arguments)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_drawn(hub, dataset, pictures, tmp_path):
    out = tmp_path / "out"
    fails("no dataset org/data on the Hub", "org/data", "train", 1, 0, out)
    dataset.mkdir(parents=True)
    fails("no parquet files", "org/data", "train", 1, 0, out)
    fill(dataset, pictures)
    fails("no split 'validation': there are test, train", "org/data", "validation", 1, 0, out)
    fails("'train' of the dataset org/data has 40 rows", "org/data", "train", 41, 0, out)
    assert not out.exists()
    for name in ("a", "b"):
        write(hub.root / "datasets" / "org" / "two" / name / "train-0-of-1.parquet", pictures[:2])
    fails(r"several configurations \(a, b\)", "org/two", "train", 1, 0, out)


def test_what_is_no_picture(hub, dataset, tmp_path):
    write(dataset / "train.parquet", [picture(0), b"GIF89a...", picture(2)])
    fails("row 1 of the dataset org/data is no JPEG", "org/data", "train", 3, 0, tmp_path / "out")
    write(dataset / "train.parquet", [picture(0), None, picture(2)])
    fails("row 1 of the dataset org/data is empty", "org/data", "train", 3, 0, tmp_path / "out")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), dataset / "train.parquet")
    fails("no column of images: there are text, label", "org/data", "train", 1, 0, tmp_path / "out")
    (dataset / "train.parquet").write_bytes(b"PAR1" + b"rubbish" * 20 + b"PAR1")
    fails("damaged parquet file", "org/data", "train", 1, 0, tmp_path / "out")


def test_gated_private_and_unreachable(hub, dataset, pictures, tmp_path, monkeypatch):
    fill(dataset, pictures)
    hub.gated.add("org/data")
    fails("gated: accept its terms", "org/data", "train", 1, 0, tmp_path / "out")
    hub.private.add("org/data")
    fails("private: check its name, or set HF_TOKEN", "org/data", "train", 1, 0, tmp_path / "out")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert len(sample_hub_dataset("org/data", "train", 1, 0, tmp_path / "out")) == 1
    with hub.failing("/api/datasets", status=500):
        fails("cannot be read now: .*500", "org/data", "train", 1, 0, tmp_path / "out")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fails("Hub cannot be reached", "org/data", "train", 1, 0, tmp_path / "out")


def test_a_full_disk(hub, dataset, pictures, tmp_path, monkeypatch):
    fill(dataset, pictures)

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    fails(r"000\d\d\d\.\w+ cannot be written: No space left", "org/data", "train", 1, 0, tmp_path / "out")
