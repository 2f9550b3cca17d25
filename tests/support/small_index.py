"""A small index made of numbers instead of models: quick enough for unit tests, real in every file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.descriptors import FloatArray, normalise
from engine.index import Index, IndexSettings
from engine.probes import open_image, read_folder
from engine.schema import Model
from engine.writer import IndexWriter

D = 24
N = 80
TOP_R = 20


def vector(text: str, d: int = D) -> FloatArray:
    """A fixed random direction for a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return normalise(np.random.default_rng(seed).standard_normal((1, d)))[0]


def encode(texts: Sequence[str]) -> FloatArray:
    """What the pretend encoder makes of texts."""
    return np.stack([vector(text) for text in texts])


def write_example(path: Path, concept: str, variant: int = 0) -> Path:
    """An example image of a concept: its pixels hold what the pretend encoder sees in it."""
    text = f"{concept}|{variant}".encode()
    Image.frombytes("RGB", (8, 8), text.ljust(192, b"\0")).save(path)
    return path


def see(image: Image.Image) -> FloatArray:
    """What the pretend encoder makes of an example image: about the concept, no two variants quite alike."""
    concept, _, variant = image.tobytes().rstrip(b"\0").decode().partition("|")
    return normalise((vector(concept) + 0.7 * vector(f"variant {variant} of {concept}"))[None])[0]


def encode_images(paths: Sequence[Path]) -> FloatArray:
    """What the pretend encoder makes of files written by ``write_example``."""
    return np.stack([see(open_image(path)) for path in paths])


class PretendEncoder:
    """Has the face of a ConceptEncoder."""

    spec = "pretend"
    fingerprint = "f" * 64
    dimension = D

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        return encode(texts)

    def encode_images(self, images: Iterable[Image.Image], count: int) -> FloatArray:
        return np.stack([see(image) for image in images])


def probe_embeddings(n: int = N) -> FloatArray:
    return normalise(np.random.default_rng(1).standard_normal((n, D)))


def write_probe_images(folder: Path, n: int = N) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def make_index(
    folder: Path,
    *,
    top_r: int = TOP_R,
    method: str = "whitened",
    responses: str = "keep",
    background: Sequence[str] | None = None,
) -> Index:
    """An empty index beside a folder of probe images."""
    images = write_probe_images(folder.parent / "images")
    names = tuple(background or (f"background {i}" for i in range(60)))
    settings = IndexSettings(top_r, method, responses, ("{}",), names, "test", 10)
    return Index.create(folder, read_folder(images), probe_embeddings(), PretendEncoder(), settings)  # type: ignore[arg-type]


def answers(concepts: Sequence[str], noise: float = 0.5, seed: int = 0) -> FloatArray:
    """Responses ``[n, outputs]`` of a model whose outputs recognise these concepts."""
    similarity = probe_embeddings() @ encode(concepts).T
    z = (similarity - similarity.mean(0)) / similarity.std(0)
    return (3 * z + noise * np.random.default_rng(seed).standard_normal(z.shape) + 1).astype(np.float32)


def put_model(
    writer: IndexWriter,
    repo: str,
    concepts: Sequence[str],
    *,
    revision: str = "r1",
    labels: Sequence[str | None] | None = None,
    seed: int = 0,
    **facts: object,
) -> None:
    """Adds a model whose outputs recognise the concepts."""
    values = answers(concepts, seed=seed)
    table, left_out = writer.describe(repo, revision, tuple(labels or concepts), values)
    model = Model.model_validate(
        {"repo": repo, "revision": revision, "outputs": len(table), "left_out": left_out, **facts}
    )
    writer.put(model, table, values if writer.index.manifest.responses == "keep" else None)


ANIMALS = ("cat", "dog", "horse", "owl")
THINGS = ("chair", "table", "lamp")


def make_filled_index(folder: Path, **options: object) -> Index:
    """An index of three models: animals, things, and both without labels."""
    make_index(folder, **options)  # type: ignore[arg-type]
    with IndexWriter(folder) as writer:
        put_model(writer, "org/animals", ANIMALS, library="timm", licence="mit", parameters=1000, downloads=50, seed=1)
        put_model(writer, "org/things", THINGS, library="transformers", parameters=5_000_000, seed=2)
        both = (*ANIMALS, *THINGS)
        put_model(writer, "zoo/both", both, labels=[None] * len(both), library="timm", seed=3)
        writer.finish()
    return Index(folder)
