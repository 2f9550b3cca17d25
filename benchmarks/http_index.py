"""The indexes of `http.py`, what it asks them, and the process that changes one while it is asked."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from engine.descriptors import normalise
from engine.errors import HubhoundError
from engine.index import Index
from engine.schema import Model
from engine.writer import IndexWriter
from query.cli.main import run as hubhound

MODELS, SMALL_MODELS, SMALL_OUTPUTS = 1_530, 50, 100
COMES_AND_GOES = "bench/comes-and-goes"
NEAR = ("beside", "behind", "in front of", "under", "above", "without", "painted on", "far from")


def large_index(work: Path, realhub: Path, source: Path | None) -> Path:
    """An index of about 85,000 outputs, derived from real classifiers, with a real encoder.

    Args:
        work: Where it is kept.
        realhub: Encoder, photographs, models and their labels.
        source: An index of these models, None to make it.
    """
    folder = work / f"derived-{MODELS}"
    if folder.exists():
        return folder
    base = source or work / "real"
    if not base.exists():
        encoder = f"open_clip:local-dir:{realhub / 'encoder'}"
        command("index", "create", "--index", base, "--probes", realhub / "images", "--encoder", encoder)
        command("index", "add", "--index", base, realhub / "models")
    truth = realhub / "labels.json"
    command("eval", "make-hub", "--from", base, "--truth", truth, "--out", folder, "--models", MODELS)
    return folder


def small_index(work: Path) -> Path:
    """5,000 synthetic outputs, and a text tower with random weights: what it answers means nothing, but takes time."""
    from tests.support.tiny_vlm import CLIP_CONFIG, save_vlm

    folder = work / "synthetic"
    if folder.exists():
        return folder
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    save_vlm(work / "encoder", config={**CLIP_CONFIG, "embed_dim": 64, "text_cfg": text})
    (work / "background.txt").write_text("\n".join(f"background {i}" for i in range(100)))
    encoder = f"open_clip:local-dir:{work / 'encoder'}"
    command(
        *("index", "create", "--index", folder, "--probes", "dead-leaves:200", "--encoder", encoder),
        *("--background", work / "background.txt"),
    )
    rng = np.random.default_rng(0)
    words = [
        f"{how} {what}" for what in ("cup", "bird", "boat", "tree", "shoe") for how in ("red", "old", "wet", "tin")
    ]
    with IndexWriter(folder) as writer:
        probes = writer.index.probe_embeddings
        for number in range(SMALL_MODELS):
            meant = probes @ normalise(rng.standard_normal((SMALL_OUTPUTS, probes.shape[1]))).T
            values = (3 * (meant - meant.mean(0)) / meant.std(0) + rng.standard_normal(meant.shape)).astype(np.float32)
            labels = tuple(words[i % len(words)] for i in range(SMALL_OUTPUTS))
            table, left_out = writer.describe(f"bench/model-{number:02}", "r1", labels, values)
            record = {"repo": table.repo, "revision": "r1", "outputs": len(table), "left_out": left_out}
            writer.put(Model.model_validate({**record, "library": "timm"}), table, values)
        writer.finish()
    return folder


def command(*arguments: object) -> None:
    """One command of hubhound, in this process."""
    status = hubhound([str(argument) for argument in arguments])
    if status:
        raise HubhoundError(f"the command 'hubhound {arguments[0]}' ended with status {status}")


def concepts_of(index: Index, count: int) -> list[str]:
    """The first words of labels of the index, each once."""
    labels = [label.split(",")[0] for label in index.snapshot().labels if label]
    distinct = list(dict.fromkeys(label for label in labels if label.isascii()))
    order = np.random.default_rng(0).permutation(len(distinct))
    return [distinct[i] for i in order[:count]]


def new_phrases(index: Index, count: int) -> Iterator[str]:
    """Phrases that were never asked of the index, all different."""
    words, rng, given = concepts_of(index, 1_000), np.random.default_rng(), set[str]()
    while len(given) < count:
        draws = rng.integers(0, (len(words), len(NEAR), len(words), 1_000), (count, 4)).tolist()
        phrases = [f"{words[a]} {NEAR[b]} {words[c]} number {d}" for a, b, c, d in draws]
        known = index.concepts.get(phrases)
        for phrase in phrases:
            if phrase not in known and phrase not in given and len(given) < count:
                given.add(phrase)
                yield phrase


def _keep_changing(folder: Path, every_s: float, pipe: Connection) -> None:
    """Adds a model's outputs under another name, removes them, and so on; answers which generations it wrote."""
    written: list[tuple[int, int]] = []
    with IndexWriter(folder) as writer:
        model = next(model for model in writer.store.models() if model.outputs)
        outputs = writer.store.outputs(model.repo, model.revision)
        assert outputs is not None
        added = replace(outputs, repo=COMES_AND_GOES)
        record = model.model_copy(update={"repo": COMES_AND_GOES, "indexed_at": datetime.now(UTC)})

        def change(there: bool) -> None:
            if there:
                writer.put(record, added, None)
            else:
                writer.remove_model(COMES_AND_GOES)
            snapshot = writer.snapshot()
            assert snapshot is not None
            written.append((snapshot.number, len(snapshot)))

        pipe.send(None)
        there, wait_s = False, 0.0
        while not pipe.poll(wait_s):
            began = time.monotonic()
            there = not there
            change(there)
            wait_s = max(0.0, every_s - (time.monotonic() - began))
        change(False)
    pipe.send(written)


class Changing:
    """The process that changes an index; use it as a context manager.

    Args:
        folder: Of the index.
        every_s: Between two generations.
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_keep_changing, args=(folder, every_s, other), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Changing:
        self._pipe.recv()  # the store is open
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> list[tuple[int, int]]:
        """Number and outputs of each generation that was written."""
        self._pipe.send(None)
        written: list[tuple[int, int]] = self._pipe.recv()
        return written


def without_seconds(answer: bytes | dict[str, object]) -> dict[str, object]:
    """An answer without the one thing in it that differs from one time to the next."""
    values: dict[str, object] = json.loads(answer) if isinstance(answer, bytes) else answer
    return {name: value for name, value in values.items() if name != "seconds"}


def middle(values: Sequence[float]) -> float:
    """The median, of seconds in milliseconds."""
    return round(1e3 * float(np.median(values)), 3)
