"""Known performance: which model does how well on which task, and the ranks that derive from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PerformanceTable:
    """Performance of models on tasks.

    Attributes:
        models: m names, in the order that breaks ties under the rule ``ordinal``.
        tasks: t names.
        values: Shares, larger is better, NaN where nothing is known, float64 ``[m, t]``.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    values: Float64Array
