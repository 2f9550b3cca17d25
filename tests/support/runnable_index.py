"""A small index of tiny classifiers that really run: for what is recommended and reranked."""

from __future__ import annotations

from pathlib import Path

from engine.writer import IndexWriter
from indexers.sources import ModelSource, revision_of
from query.cli.main import run
from tests.support.small_index import make_index, put_model
from tests.support.tiny_models import timm_model, vit_model
from tests.support.tiny_vlm import PASSES, TASKS, add_photo_task, put_accuracies

CONCEPTS = {
    "org/one": ("cat", "dog", "horse", "owl", "ant"),
    "org/two": ("chair", "table", "lamp", "owl", "cat"),
    "org/three": ("owl", "car", "tree", "dog", "bee"),
}
"""What the outputs of each model recognise; it is drawn, their weights know nothing of it."""

PROFILED = ("org/one", "org/two")
"""Those that have profiles and known performance."""


def make_runnable_index(root: Path) -> Path:
    """The index, ``root/zoo``; the models' folders are in ``root/org``, the photographs of tasks beside them."""
    timm_model(root / "org/one", "test_resnet")
    vit_model(root / "org/two")
    timm_model(root / "org/three", "test_efficientnet")
    zoo = make_index(root / "zoo").folder
    with IndexWriter(zoo) as writer:
        for seed, (repo, concepts) in enumerate(CONCEPTS.items()):
            revision, _ = revision_of(ModelSource(repo, folder=root / repo))
            put_model(writer, repo, concepts, revision=revision, seed=seed, library="timm", licence="mit")
        writer.finish()
        for seed, task in enumerate(TASKS):
            add_photo_task(writer, root / "photos", task, seed=seed)
        put_accuracies(writer, {repo: dict(zip(TASKS, values, strict=True)) for repo, values in _ACCURACIES.items()})
        writer.export_knowledge()
    if run(["profile", *(str(root / repo) for repo in PROFILED), "--index", str(zoo), *PASSES]):
        raise RuntimeError("the models cannot be profiled")
    return zoo


_ACCURACIES = {"org/one": (0.9, 0.2, 0.6), "org/two": (0.1, 0.7, 0.5)}
