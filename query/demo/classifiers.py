"""The tiny classifiers of the drawn world: what each is taught, how, and how well it learnt it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from query.demo.batches import shuffled_batches
from query.demo.blueprints import BLUEPRINTS, Blueprint, build_model, logits
from query.demo.gallery import Gallery
from query.demo.muon import Muon, one_cycle
from query.demo.world import CONCEPTS

_BATCH = 32
_RATE, _ADAM_RATE = 0.04, 5e-3
_SMALLEST, _LARGEST = 8, 20
_EVERY_NAMELESS = 3


@dataclass(frozen=True)
class Assignment:
    """What one classifier is and what it is to learn.

    Attributes:
        name: The last part of the model id.
        blueprint: Its architecture.
        concepts: The numbers of the concepts it tells apart, in the order of its outputs.
        named: Whether it declares its labels; if not, it has the library's placeholders only.
        seed: Names its training run.
    """

    name: str
    blueprint: Blueprint
    concepts: tuple[int, ...]
    named: bool
    seed: int

    @property
    def labels(self) -> list[str] | None:
        """The declared labels, or None."""
        return [CONCEPTS[i].name for i in self.concepts] if self.named else None


def deal_concepts(n_hands: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Deals every classifier a random hand of concepts.

    Args:
        n_hands: Number of classifiers.
        rng: Source of randomness.

    Returns:
        Per classifier, 8 to 20 different concept numbers. No concept is dealt again before all others have been dealt
        as often, as far as a hand without repetitions allows.
    """
    dealt = np.zeros(len(CONCEPTS), dtype=np.int64)
    hands = []
    for _ in range(n_hands):
        size = int(rng.integers(_SMALLEST, _LARGEST + 1))
        rarest_first = np.argsort(dealt + rng.random(len(CONCEPTS)))
        hand = rng.permutation(rarest_first[:size])
        dealt[hand] += 1
        hands.append(tuple(hand.tolist()))
    return hands


def assign(n_classifiers: int, seed: int) -> tuple[Assignment, ...]:
    """Decides which classifiers there are.

    Args:
        n_classifiers: How many.
        seed: Names the world.

    Returns:
        The classifiers, timm's and transformers' taking turns; every third has no names for its outputs.
    """
    hands = deal_concepts(n_classifiers, np.random.default_rng((seed, 12)))
    assignments = []
    for i, hand in enumerate(hands):
        blueprint = BLUEPRINTS[i % len(BLUEPRINTS)]
        name = f"model-{i + 1:02d}-{blueprint.family}"
        named = i % _EVERY_NAMELESS != _EVERY_NAMELESS - 1
        assignments.append(Assignment(name, blueprint, hand, named, seed + i))
    return tuple(assignments)


def _only(gallery: Gallery, concepts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Picks the drawings of some concepts, with their places among these as classes."""
    places = torch.full((len(CONCEPTS),), -1)
    places[torch.tensor(concepts)] = torch.arange(len(concepts))
    classes = places[gallery.concepts]
    kept = classes >= 0
    return gallery.images[kept], classes[kept]


class ClassifierLesson:
    """A classifier and what it learns from. The weights come from PyTorch's global generator.

    Args:
        assignment: What it is to learn.
        gallery: The drawings, of all concepts.
    """

    def __init__(self, assignment: Assignment, gallery: Gallery) -> None:
        self.assignment = assignment
        self.model: nn.Module = build_model(assignment.blueprint, assignment.labels, len(assignment.concepts))
        self._gallery = gallery

    def steps(self, steps: int) -> int:
        """Tells how many steps this classifier takes where the usual one takes so many.

        Args:
            steps: The usual one's steps.

        Returns:
            This one's.
        """
        return round(steps * self.assignment.blueprint.pace)

    def run(self, steps: int, advance: Callable[[], object]) -> None:
        """Trains the classifier.

        Args:
            steps: Number of steps of the usual classifier.
            advance: Called after each step.
        """
        blueprint = self.assignment.blueprint
        rng = np.random.default_rng((self.assignment.seed, 13))
        images, classes = _only(self._gallery, self.assignment.concepts)
        resized = blueprint.preprocessing.resized(images)
        model = self.model.to(memory_format=torch.channels_last).train()
        tables = [p for name, p in model.named_parameters() if "position" in name or "pos_embed" in name]
        optimiser = Muon(model.parameters(), _RATE, _ADAM_RATE, adam_only=tables)
        total = self.steps(steps)
        for step, (batch, shift) in enumerate(shuffled_batches(len(resized), _BATCH, total, rng)):
            answer = logits(blueprint, model, blueprint.preprocessing.inputs(resized[batch], shift))
            torch.autograd.backward(functional.cross_entropy(answer, classes[batch], label_smoothing=0.05))
            optimiser.step(one_cycle(step, total))
            advance()
        model.to(memory_format=torch.contiguous_format).eval()

    @torch.inference_mode()
    def accuracy(self, gallery: Gallery) -> float:
        """Measures how often the classifier is right.

        Args:
            gallery: Drawings it has not seen, of all concepts.

        Returns:
            The share of the drawings of its own concepts that it recognises.
        """
        blueprint = self.assignment.blueprint
        images, classes = _only(gallery, self.assignment.concepts)
        inputs = blueprint.preprocessing.inputs(blueprint.preprocessing.resized(images))
        return float((logits(blueprint, self.model, inputs).argmax(1) == classes).float().mean())
