"""The outputs of one model as arrays: the unit in which descriptors are computed, stored and read back."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MIXED = "mixed"
"""Stands for the fingerprint of a background where outputs of one model have constants of several."""


@dataclass(frozen=True)
class Calibration:
    """Calibration constants of m outputs, each float32 ``[m]``, against one background set.

    Attributes:
        h_uniform: Hubness with w = 1 (method ``probelog``): mean of the k smallest background distances.
        h: Hubness with cubic weights (all other methods).
        s: Standard deviation of the background distances with cubic weights, > 0.
        g: Mean of the k largest background correlations.
        q: Standard deviation of the background correlations, > 0.
        g_white: Mean of the k largest correlations with the background's linear discriminants (``whitened``).
        q_white: Their standard deviation, > 0.
        prior: What ``whitened`` grants an output before any concept is known; large for outputs without sharp peaks.
    """

    h_uniform: FloatArray
    h: FloatArray
    s: FloatArray
    g: FloatArray
    q: FloatArray
    g_white: FloatArray
    q_white: FloatArray
    prior: FloatArray

    def take(self, rows: npt.NDArray[np.intp] | slice) -> Calibration:
        """The constants of some of the outputs."""
        return Calibration(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class OutputTable:
    """m outputs of one model at one revision.

    Attributes:
        repo: Repository id.
        revision: Commit sha or content hash.
        output: Position in the model's answer, int64 ``[m]``, ascending.
        labels: As declared, None where there is none; m entries.
        mean: Mean response over all n probes, float64 ``[m]``.
        std: Standard deviation of the responses (ddof 0), float64 ``[m]``, > 0.
        idx: Probes of the r largest responses, uint16 ``[m, r]``, by descending response, ties by probe order.
        z: Standardised responses on those probes, float32 ``[m, r]``, descending along each row.
        anchor: ``(1/n) sum_i z[i] (p_i - mean p)``, float32 ``[m, d]``.
        calibration: Constants of every method.
        background: Fingerprint of the background behind the constants, ``MIXED`` if that is not the same for all; None
            where only the model's record says it.
    """

    repo: str
    revision: str
    output: npt.NDArray[np.int64]
    labels: tuple[str | None, ...]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    idx: npt.NDArray[np.uint16]
    z: FloatArray
    anchor: FloatArray
    calibration: Calibration
    background: str | None = None

    def __len__(self) -> int:
        return len(self.output)

    def with_calibration(self, calibration: Calibration, background: str | None = None) -> OutputTable:
        """The same outputs with other constants.

        Args:
            calibration: The constants.
            background: Fingerprint of the background behind them, if it is to be known.
        """
        return replace(self, calibration=calibration, background=background)

    def calibrated_with(self, fingerprint: str, claimed: str | None) -> bool:
        """Whether all constants were made with a background.

        Args:
            fingerprint: Of the background.
            claimed: What the model's record says (``Model.calibration``), for outputs that do not say it themselves.
        """
        return (claimed if self.background is None else self.background) == fingerprint


def empty_table(repo: str, revision: str, r: int, d: int) -> OutputTable:
    """A table without outputs."""
    none = np.zeros(0, np.float32)
    return OutputTable(
        repo,
        revision,
        np.zeros(0, np.int64),
        (),
        np.zeros(0),
        np.zeros(0),
        np.zeros((0, r), np.uint16),
        np.zeros((0, r), np.float32),
        np.zeros((0, d), np.float32),
        Calibration(*[none] * len(fields(Calibration))),
    )
