"""What an evaluation works on: the full responses of models whose outputs have a known meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.descriptors import FloatArray, divisive_gain


@dataclass(frozen=True)
class Zoo:
    """L outputs of several models, their responses over n probes, and the truth about them.

    Attributes:
        responses: Standardised responses (mean 0, standard deviation 1 over the probes), float32 ``[L, n]``.
        probes: Normalised probe embeddings, float32 ``[n, d]``.
        models: Repository ids, in the order of their rows.
        starts: First row of each model and, last, L: int64 ``[models + 1]``.
        output: Position of each row in its model's answer, int64 ``[L]``.
        labels: As declared, None where there is none; L entries.
        classes: The classes that each output stands for, acceptable answers to any of them; empty where the truth
            knows none. L entries.
    """

    responses: FloatArray
    probes: FloatArray
    models: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]
    labels: tuple[str | None, ...]
    classes: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def model_of(self) -> npt.NDArray[np.int64]:
        """The model of each row, as its place in ``models``, int64 ``[L]``."""
        return np.repeat(np.arange(len(self.models)), np.diff(self.starts))

    def with_probes(self, chosen: npt.NDArray[np.integer]) -> Zoo:
        """The same outputs over some of the probes, standardised anew.

        Args:
            chosen: Positions of the probes to keep.
        """
        part = self.responses[:, chosen]
        mean, std = part.mean(axis=1, dtype=np.float64), part.std(axis=1, dtype=np.float64)
        standard = (part - mean[:, None]) / np.maximum(std, 1e-12)[:, None]
        return replace(self, responses=standard.astype(np.float32), probes=self.probes[chosen])

    def divisive(self) -> Zoo:
        """The same outputs after divisive normalisation, model by model (``engine.descriptors.divisive_gain``)."""
        responses = np.empty_like(self.responses)
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if stop == start:
                continue
            z = self.responses[start:stop] * divisive_gain(self.responses[start:stop])
            z -= z.mean(axis=1, keepdims=True)
            responses[start:stop] = z / np.maximum(z.std(axis=1, keepdims=True), 1e-12)
        return replace(self, responses=responses)


@dataclass(frozen=True)
class Query:
    """One question with a known answer.

    Attributes:
        text: The concept.
        cls: The class whose outputs are right answers.
        groups: Subsets that it counts in beside ``all``, such as ``seen`` or ``unseen``.
    """

    text: str
    cls: str
    groups: tuple[str, ...] = ()
