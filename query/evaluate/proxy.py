"""How well gaps between tasks, as a model's profiles show them, foretell gaps in what it achieves; do models agree.

**Reliability of a proxy** (after equations 21 to 25). For one model and each pair of tasks it is known on::

    performance gap   |a_S - a_T|                                       a: accuracy, or the model's rank on the task
    conductance gap   D(T -> S) = sum_b alpha_b delta_b                 directed; as in engine.transfer
    cosine gap        1 - <v_T, v_S> / (|v_T| |v_S|)                    v: profiles, the mean over all their images
    jsd gap           the Jensen-Shannon distance of v_T / sum v_T and v_S / sum v_S
    text gap          1 - <e_T, e_S> / (|e_T| |e_S|)                    e: mean text embedding of the class names

A proxy's reliability on the model is Spearman's correlation between its gaps and the performance gaps over the pairs:
over the ordered pairs S != T for the conductance gap, over the unordered ones for the symmetric gaps (counting each
twice would not change Spearman's correlation). Its mean and standard deviation are over the models.

**Correlation of models** (after equation 26): of two models' matrices of pairwise D(T -> S), the correlation of the
entries off the diagonal, over the tasks that both have profiles of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.stats import pearsonr, spearmanr

from engine.errors import InputError
from engine.performance import PerformanceTable, ranks
from engine.profiles import ImageProfiles
from engine.schema import Record
from engine.transfer import ETA
from query.evaluate.recommenders import Sample, distances

Float64Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
Gap = Literal["accuracy", "rank"]

DCD, COSINE, JSD, TEXT = "dcd", "cosine", "jsd", "text"
MIN_PAIRS = 3
"""Of fewer pairs a correlation says nothing."""


class ModelReliability(Record):
    """What the proxies are worth on one model."""

    model: str
    tasks: int = Field(description="Tasks that have a profile and a known performance.")
    correlations: dict[str, float | None] = Field(
        description="By proxy: Spearman's correlation with the performance gaps, -1..1; none where it is not defined."
    )


class ProxyReliability(Record):
    """What one proxy is worth over the models."""

    proxy: str = Field(description="dcd, cosine, jsd or text.")
    mean: float | None = Field(description="Of the models' correlations, -1..1; none without any.")
    sd: float | None = Field(description="Their standard deviation (n - 1); none with fewer than two.")
    models: int = Field(description="How many models it is the mean of.")
    left_out: dict[str, int] = Field(description="Models without a correlation, by reason: constant, too few pairs.")


class ProxyReport(Record):
    """Reliability of proxies."""

    gap: Gap = Field(description="Of what the performance gap is.")
    eta: float
    proxies: tuple[ProxyReliability, ...]
    models: tuple[ModelReliability, ...]
    unknown: tuple[str, ...] = Field(description="Models that have profiles but no known performance.")


class CorrelationReport(Record):
    """How alike the tasks' distances are to different models."""

    kind: Literal["spearman", "pearson"]
    eta: float
    models: tuple[str, ...]
    families: tuple[str, ...] = Field(description="Family of each model.")
    matrix: tuple[tuple[float | None, ...], ...] = Field(
        description="Correlations [m, m], symmetric, 1 on the diagonal; none where one is not defined."
    )
    within: float | None = Field(description="Mean over the pairs of models of one family; none without any.")
    across: float | None = Field(description="Mean over the pairs of models of two families; none without any.")
    pairs_within: int = Field(description="How many pairs of models of one family have a correlation.")
    pairs_across: int
    left_out: dict[str, int] = Field(description="Pairs of models without a correlation, by reason.")


def gaps(proxy: str, vectors: npt.NDArray[np.floating[Any]], eta: float = ETA) -> Float64Array:
    """Gaps between all tasks of one model, row T, column S, float64 ``[t, t]``, 0 on the diagonal.

    Args:
        proxy: dcd, cosine or jsd of profiles; text of embeddings.
        vectors: ``[t, d]``, one row a task; profiles are not negative.
        eta: Sharpness of the importance of blocks; of dcd only.
    """
    rows = np.asarray(vectors, np.float64)[None]
    everywhere = np.ones(rows.shape[1], np.bool_)
    return np.asarray(distances(COSINE if proxy == TEXT else proxy, Sample(rows, rows, everywhere), eta)[0], np.float64)


def correlation(
    a: npt.NDArray[np.floating[Any]], b: npt.NDArray[np.floating[Any]], kind: str = "spearman"
) -> tuple[float | None, str]:
    """Correlation of two vectors, or the reason why there is none.

    Args:
        a: ``[n]``; entries that are NaN here or in ``b`` are left out.
        b: ``[n]``.
        kind: ``spearman`` or ``pearson``.

    Returns:
        -1..1 and an empty text; or None and ``too few pairs`` (fewer than MIN_PAIRS) or ``constant``.

    Raises:
        InputError: There is no such kind.
    """
    if kind not in {"spearman", "pearson"}:
        raise InputError(f"there is no correlation {kind!r}: use spearman or pearson")
    known = ~(np.isnan(a) | np.isnan(b))
    x, y = np.asarray(a, np.float64)[known], np.asarray(b, np.float64)[known]
    if len(x) < MIN_PAIRS:
        return None, "too few pairs"
    # What differs by rounding alone is constant: its correlation would be noise.
    if any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (x, y)):
        return None, "constant"
    return float((spearmanr if kind == "spearman" else pearsonr)(x, y).statistic), ""


def proxy_reliability(
    table: PerformanceTable,
    profiles: Mapping[str, ImageProfiles],
    gap: Gap = "accuracy",
    eta: float = ETA,
    text: npt.NDArray[np.floating[Any]] | None = None,
    ties: str = "average",
) -> ProxyReport:
    """How well each proxy foretells the performance gaps, model by model (the module says what is computed).

    Args:
        table: Known performance. Pairs of tasks of which a model lacks one are left out.
        profiles: By model; a task counts where the table has it too.
        gap: Between accuracies, or between ranks among all models of the table.
        eta: Sharpness of the importance of blocks, >= 0.
        text: Mean text embedding of the class names of each task of the table, ``[t, e]`` in the table's order; a row
            with a NaN is a task without one. Without it there is no proxy ``text``.
        ties: How ranks treat equal accuracies, as in :func:`engine.performance.ranks`.

    Raises:
        InputError: No model has profiles and known performance, the embeddings do not fit, or ``gap`` is unknown.
    """
    if gap not in {"accuracy", "rank"}:
        raise InputError(f"there is no performance gap of {gap!r}: use accuracy or rank")
    if text is not None and (text.ndim != 2 or len(text) != len(table.tasks)):
        raise InputError(f"text embeddings of shape {text.shape} do not fit {len(table.tasks)} tasks: one row a task")
    achieved = table.values if gap == "accuracy" else ranks(table.values, ties)
    rows = {model: i for i, model in enumerate(table.models) if not np.isnan(table.values[i]).all()}
    known = [own for model, own in profiles.items() if model in rows]
    if not known:
        raise InputError("no model has both profiles and known performance: import figures of the profiled models")
    found = [_of_model(own, table.tasks, achieved[rows[own.model]], eta, text) for own in known]
    names = (DCD, COSINE, JSD, *([TEXT] if text is not None else []))
    return ProxyReport(
        gap=gap,
        eta=eta,
        proxies=tuple(
            _over_models(name, [reasons for _, reasons in found], [own for own, _ in found]) for name in names
        ),
        models=tuple(own for own, _ in found),
        unknown=tuple(model for model in profiles if model not in rows),
    )


def model_correlation(
    profiles: Mapping[str, ImageProfiles],
    eta: float = ETA,
    kind: Literal["spearman", "pearson"] = "spearman",
    families: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CorrelationReport:
    """How far two models agree on which tasks are far from which (the module says what is computed).

    Args:
        profiles: By model, of at least two.
        eta: Sharpness of the importance of blocks, >= 0.
        kind: ``spearman`` or ``pearson``.
        families: Family of each model by name; by default :func:`tower_family`.
        progress: Told after each model how many are done, and of how many.

    Raises:
        InputError: There are fewer than two models, or there is no such kind.
    """
    count = len(profiles)
    if count < 2:
        raise InputError("a correlation of models needs the profiles of at least two: profile another one")
    family = [families[model] if families is not None else tower_family(own.blocks) for model, own in profiles.items()]
    tasks = tuple(dict.fromkeys(task for own in profiles.values() for task in own.images))
    apart = [_all_gaps(own, tasks, eta) for own in profiles.values()]
    matrix: list[list[float | None]] = [[1.0] * count for _ in profiles]
    pairs: dict[bool, list[float]] = {True: [], False: []}
    left_out: dict[str, int] = {}
    for i in range(count):
        for j in range(i):
            value, reason = correlation(apart[i], apart[j], kind)
            matrix[i][j] = matrix[j][i] = value
            if value is None:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                pairs[family[i] == family[j]].append(value)
        if progress is not None:
            progress(i + 1, count)
    return CorrelationReport(
        kind=kind,
        eta=eta,
        models=tuple(profiles),
        families=tuple(family),
        matrix=tuple(map(tuple, matrix)),
        within=mean(pairs[True]) if pairs[True] else None,
        across=mean(pairs[False]) if pairs[False] else None,
        pairs_within=len(pairs[True]),
        pairs_across=len(pairs[False]),
        left_out=left_out,
    )


def tower_family(blocks: Sequence[str]) -> str:
    """The family of a vision tower: what its blocks are called, numbers apart, and how many they are.

    ``visual.transformer.resblocks.0`` to ``.11`` are ``visual.transformer.resblocks.* x12``; towers of the same kind
    and depth are one family, whatever their width, patch size or training data.
    """
    kinds = dict.fromkeys(re.sub(r"\d+", "*", block) for block in blocks)
    return f"{', '.join(kinds)} x{len(blocks)}"


def _of_model(
    own: ImageProfiles,
    tasks: Sequence[str],
    achieved: Float64Array,
    eta: float,
    text: npt.NDArray[np.floating[Any]] | None,
) -> tuple[ModelReliability, dict[str, str]]:
    """The correlations of one model, and the reason by proxy where there is none."""
    used = [i for i, task in enumerate(tasks) if task in own.images and not np.isnan(achieved[i])]
    v = np.stack([own.mean(tasks[i]) for i in used]) if used else np.empty((0, len(own.blocks)))
    missed = np.abs(achieved[used][:, None] - achieved[used][None])
    correlations: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in (DCD, COSINE, JSD, *([TEXT] if text is not None else [])):
        off = ~np.eye(len(used), dtype=np.bool_) if name == DCD else np.triu(np.ones((len(used),) * 2, np.bool_), 1)
        apart = gaps(name, text[used] if name == TEXT and text is not None else v, eta) if used else missed
        correlations[name], reasons[name] = correlation(apart[off], missed[off])
    return ModelReliability(model=own.model, tasks=len(used), correlations=correlations), reasons


def _over_models(
    name: str, reasons: Sequence[Mapping[str, str]], models: Sequence[ModelReliability]
) -> ProxyReliability:
    values = [value for own in models if (value := own.correlations[name]) is not None]
    without = [own[name] for own in reasons if own[name]]
    return ProxyReliability(
        proxy=name,
        mean=mean(values) if values else None,
        sd=stdev(values) if len(values) > 1 else None,
        models=len(values),
        left_out={reason: without.count(reason) for reason in sorted(set(without))},
    )


def _all_gaps(own: ImageProfiles, tasks: Sequence[str], eta: float) -> Float64Array:
    """D(T -> S) of all ordered pairs of tasks, row by row, NaN on the diagonal and where a task has no profile."""
    made = np.full((len(tasks), len(tasks)), np.nan)
    has = [i for i, task in enumerate(tasks) if task in own.images]
    if has:
        made[np.ix_(has, has)] = gaps(DCD, np.stack([own.mean(tasks[i]) for i in has]), eta)
    np.fill_diagonal(made, np.nan)
    return made.ravel()
