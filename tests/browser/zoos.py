"""Indexes that the page is shown over: an ordinary one, one made by an enemy, one with source tasks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.descriptors import FloatArray
from engine.schema import Model, ModelState, Task
from engine.writer import IndexWriter
from tests.support.knowledge import make_profile
from tests.support.small_index import ANIMALS, THINGS, PretendEncoder, make_index, put_model
from tests.support.tiny_vlm import add_photo_task

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROFILED = {"pets": (1.0, 2.0, 4.0, 8.0, 3.0), "cars": (5.0, 4.0, 3.0, 2.0, 1.0)}
"""Conductance of five blocks of org/animals, by task."""

OTHERS = tuple(
    f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("boat", "house", "leaf", "shoe")
)
VOCABULARY = (*ANIMALS, *THINGS, "zebra", *OTHERS)
"""What found names are chosen from."""


def make_zoo(folder: Path) -> Path:
    """Four models, one of which says submarine where it sees horses, a copy of the first, and its profiles."""
    make_index(folder)
    (folder.parent / "words.txt").write_text("\n".join(VOCABULARY))
    with IndexWriter(folder) as writer:
        facts = {"architecture": "resnet18", "input_size": (224, 224), "tags": ("pets", "small"), "likes": 3}
        put_model(
            writer, "org/animals", ANIMALS, revision=COMMIT, library="timm", licence="mit", parameters=1000,
            downloads=50, seed=1, **facts,
        )  # fmt: skip
        put_model(
            writer, "org/things", THINGS, library="transformers", licence="apache-2.0", parameters=5_000_000,
            downloads=9_000, architecture="ViTForImageClassification", seed=2,
        )  # fmt: skip
        both = (*ANIMALS, *THINGS)
        put_model(writer, "zoo/both", both, labels=[None] * len(both), library="timm", seed=3)
        put_model(
            writer, "zoo/wrong", ("horse", "lamp"), labels=("submarine", "lamp"), library="onnx",
            parameters=90_000_000, seed=4,
        )  # fmt: skip
        for repo in ("mirror/animals", "mirror/pets"):
            writer.put_copy(
                Model(repo=repo, revision="c1", state=ModelState.COPY, copy_of="org/animals", library="timm")
            )
        put_profiles(writer, folder)
        writer.finish()
    return folder


def put_profiles(writer: IndexWriter, folder: Path) -> None:
    """The tasks of ``PROFILED`` and the profiles of org/animals on them."""
    tasks: list[Task] = [
        add_photo_task(writer, folder.parent / "photos", name, seed=i) for i, name in enumerate(PROFILED)
    ]
    writer.put_profiles(
        [
            make_profile(
                "org/animals", task.name, len(PROFILED[task.name]), revision=COMMIT,
                task_fingerprint=task.fingerprint, conductance=PROFILED[task.name], completeness_gap=0.01,
            )
            for task in tasks
        ]
    )  # fmt: skip
    writer.export_knowledge()


HOSTILE_LABELS: tuple[str, ...] = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "'\"><iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "javascript:window.pwned=1",
    "\u202egnihsihp\u2066 reversed \u2067",
    "line one\nline two\r\n\tline three",
    "x" * 5000,
    "",
    "${window.pwned=1} {{constructor.constructor('window.pwned=1')()}}",
    "&lt;b&gt;not bold&lt;/b&gt; &amp;amp;",
    "\u0000\u0007\ufeff zero \U0001f600 \u0301\u0301\u0301\u0301",
)
"""Labels that a model card may declare, one an output."""

HOSTILE_CONCEPTS = tuple(f"{animal} of kind {i}" for i, animal in enumerate(ANIMALS * 3))
LONG_REPO = "o" * 96 + "/" + "n" * 95 + "~"
STRANGE_REPO = "we&ird/<img src=x onerror=window.pwned=1>\"'?q=%2e#&amp;"
JS_REPO = "javascript:window.pwned=1/x"


def make_hostile_zoo(folder: Path) -> Path:
    """Models whose labels, licences, tags and names attack whoever shows them."""
    make_index(folder)
    (folder.parent / "words.txt").write_text("\n".join((*HOSTILE_CONCEPTS, *OTHERS, HOSTILE_LABELS[0])))
    bad = "<img src=x onerror=window.pwned=2>"
    with IndexWriter(folder) as writer:
        for seed, repo in enumerate(("evil/labels", LONG_REPO, STRANGE_REPO, JS_REPO)):
            put_model(
                writer, repo, HOSTILE_CONCEPTS, labels=HOSTILE_LABELS, seed=seed, library=f"timm{bad}"[: 4 + 60 * seed],
                licence=f"{bad}<script>window.pwned=3</script>\n\u202e", tags=(bad, "\n", "t" * 3000),
                architecture=f"resnet{bad}", parameters=2**62, downloads=2**62, likes=0,
            )  # fmt: skip
        writer.put_copy(
            Model(repo=f"copy/{bad}", revision=bad, state=ModelState.COPY, copy_of="evil/labels", licence=bad)
        )
        writer.finish()
    return folder


class HeldEncoder(PretendEncoder):
    """An encoder that waits with texts until it is let go, and cannot do some at all."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.mends = False
        self.waiting = False

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        self.waiting = not self.go.is_set()
        assert self.go.wait(60)
        if not self.mends and any("broken" in text for text in texts):
            raise RuntimeError("a mistake in the encoder, which nobody outside should read")
        return super().encode_texts(texts, templates)


def write_photo(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> Path:
    """A picture of coloured noise, PNG or JPEG by its name."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
