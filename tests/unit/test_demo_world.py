"""The drawn world: deterministic, varied, and never named by its background."""

from __future__ import annotations

import numpy as np

from query.demo.captions import background_phrases
from query.demo.world import CONCEPTS, draw


def test_about_sixty_concepts_of_every_kind() -> None:
    assert 55 <= len(CONCEPTS) <= 70
    assert len({concept.name for concept in CONCEPTS}) == len(CONCEPTS)
    kinds = [concept.kind for concept in CONCEPTS]
    assert len(set(kinds)) == 5
    assert min(kinds.count(kind) for kind in set(kinds)) >= 8


def test_every_concept_draws_by_its_seed_alone() -> None:
    for concept in CONCEPTS:
        first, again, other = (draw(concept, np.random.default_rng(seed), 48) for seed in (3, 3, 4))
        assert first.size == (48, 48)
        assert first.mode == "RGB"
        assert first.tobytes() == again.tobytes(), concept.name
        assert first.tobytes() != other.tobytes(), concept.name


def test_sizes() -> None:
    assert draw(CONCEPTS[0], np.random.default_rng(0), 96).size == (96, 96)


def test_concepts_look_different() -> None:
    """The mean drawings of two concepts differ: no two are the same picture under two names."""
    rng = np.random.default_rng(0)
    means = [
        np.mean([np.asarray(draw(concept, rng, 16).convert("RGB"), float).ravel() for _ in range(12)], axis=0)
        for concept in CONCEPTS
    ]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 1.0


def test_background_is_large_distinct_and_names_no_concept() -> None:
    phrases = background_phrases()
    assert len(phrases) >= 300
    assert len(set(phrases)) == len(phrases)
    assert not set(phrases) & {concept.name for concept in CONCEPTS}
    assert phrases == background_phrases()
