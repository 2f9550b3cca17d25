"""Whether two models answer the same: float noise passes, everything that a person would call a difference does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.descriptors import FloatArray, Normalisation, normalise, output_descriptors
from engine.outputs import Calibration, OutputTable, empty_table
from engine.similarity import REACH, same_responses, sketch
from indexers.loaders import load
from indexers.loaders.base import LoadedModel
from tests.support.tiny_models import repository, timm_model, vit_model

N, M, D, R = 300, 40, 32, 50
PROBES = normalise(np.random.default_rng(1).standard_normal((N, D)))


def described(responses: np.ndarray, normalisation: Normalisation = "divisive") -> OutputTable:
    """The table of a model with these responses ``[n, outputs]``; constants play no part."""
    d = output_descriptors(responses, normalise(PROBES[: len(responses)]), R, normalisation)
    none = Calibration(*[np.zeros(len(d.output), np.float32)] * len(fields(Calibration)))
    return OutputTable("org/a", "r1", d.output, (None,) * len(d.output), d.mean, d.std, d.idx, d.z, d.anchor, none)


def responses_of(seed: int = 0, m: int = M) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread, level = rng.uniform(0.3, 3, m), rng.normal(0, 3, m)
    return rng.standard_normal((N, D)) @ rng.standard_normal((D, m)) / 5 * spread + level


def moved(a: OutputTable, b: OutputTable) -> float:
    return max(abs(x - y) for x, y in zip(sketch(a), sketch(b), strict=True))


@pytest.mark.parametrize("normalisation", ["none", "divisive"])
def test_float_noise_passes_and_hardly_moves_the_sketch(normalisation: Normalisation) -> None:
    values = responses_of()
    table = described(values, normalisation)
    for seed in range(5):
        noise = 1 + 1e-6 * np.random.default_rng(100 + seed).standard_normal(values.shape)
        again = described((values * noise).astype(np.float32), normalisation)
        assert same_responses(table, again)
        assert same_responses(again, table)
        assert moved(table, again) < 1e-6
        assert not same_responses(table, again, tolerance=1e-9)


def test_labels_revision_and_place_of_the_noise_play_no_part() -> None:
    table = described(responses_of())
    other = replace(table, repo="org/b", revision="r2", labels=("x",) * M)
    assert same_responses(table, other)
    assert sketch(table) == sketch(other)


def test_the_sketch_is_that_of_the_formula() -> None:
    def uniform(output: int, stream: int) -> float:
        x = (2 * output + stream + 1) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return ((x ^ x >> 31) >> 11) / 2**53

    # Steele, Lea and Flood's generator, seeded with 0: its first number, as every implementation prints it.
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53
    table = replace(described(responses_of()), output=np.arange(M, dtype=np.int64) * 7)
    mean, std = table.mean.tolist(), table.std.tolist()
    a = sum((2 * uniform(7 * i, 0) - 1) * mean[i] for i in range(M)) / sum(map(math.hypot, mean, std))
    b = math.log(sum((1 - uniform(7 * i, 1)) * std[i] for i in range(M)))
    assert sketch(table) == pytest.approx((a, b), rel=1e-12)


def test_a_common_factor_moves_the_sketch_by_its_logarithm() -> None:
    values = responses_of()
    a, b = sketch(described(values))
    louder = sketch(described(values * (1 + 1e-5)))
    assert louder[0] == pytest.approx(a, abs=1e-12)
    assert louder[1] - b == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-2, 0.1])
def test_no_pair_that_passes_is_out_of_the_sketch_s_reach(tolerance: float) -> None:
    """The worst noise that passes: every mean and deviation moved as far as is allowed, in the worst directions."""
    for seed in range(20):
        table = described(responses_of(seed))
        rng = np.random.default_rng(seed)
        worst = np.sign(np.stack([sketch_weight(table, i) for i in range(len(table))]))
        for signs in (worst, -worst, rng.choice([-1, 1], M)):
            other = replace(
                table,
                mean=table.mean + 0.999 * tolerance * signs * table.std,
                std=table.std * np.exp(0.999 * tolerance * rng.choice([-1, 1])),
            )
            assert same_responses(table, other, tolerance)
            assert moved(table, other) <= REACH * tolerance


def sketch_weight(table: OutputTable, i: int) -> float:
    """In which direction the first number moves with one output's mean."""
    mean = table.mean.copy()
    mean[i] += 1e-6
    return sketch(replace(table, mean=mean))[0] - sketch(table)[0]


def test_sketches_of_unrelated_models_are_far_apart() -> None:
    drawn = np.array([sketch(described(responses_of(seed, m=10))) for seed in range(60)])
    near = np.abs(drawn[:, None] - drawn[None]).max(axis=2) < REACH * 1e-3
    assert near.sum() == len(drawn)  # each with itself


def larger(values: np.ndarray) -> np.ndarray:
    values[:, 3] *= 1.01
    return values


def shifted(values: np.ndarray) -> np.ndarray:
    values[:, 3] += 0.01 * values[:, 3].std()
    return values


def noisy(values: np.ndarray) -> np.ndarray:
    values[:, 3] += 0.01 * values[:, 3].std() * np.random.default_rng(5).standard_normal(N)
    return values


def tuned(values: np.ndarray) -> np.ndarray:
    drift = np.random.default_rng(6).standard_normal((M, M)) / math.sqrt(M)
    return values @ (np.eye(M) + 0.02 * drift)


DIFFERENT: list[Callable[[np.ndarray], np.ndarray]] = [
    larger,
    shifted,
    noisy,
    tuned,
    lambda values: values[:, [1, 0, *range(2, M)]],  # two outputs exchanged
    lambda values: np.roll(values, 1, axis=1),
    lambda values: values[:, :-1],
    lambda values: -values,
    lambda values: values[np.roll(np.arange(N), 1)],  # the same values on other probes: only anchors can tell
]


@pytest.mark.parametrize("change", DIFFERENT)
def test_differences_do_not_pass(change: Callable[[np.ndarray], np.ndarray]) -> None:
    table, other = described(responses_of()), described(change(responses_of()))
    assert not same_responses(table, other)
    assert not same_responses(other, table)


@pytest.mark.parametrize("part", ["mean", "std", "z", "anchor", "output"])
def test_every_part_counts(part: str) -> None:
    table = described(responses_of())
    changed = getattr(table, part).copy()
    changed[7] = changed[7] * 1.005 + 0.005 if part != "output" else 999
    assert not same_responses(table, replace(table, **{part: changed}))


@pytest.mark.parametrize("part", ["mean", "std", "z", "anchor"])
def test_nan_equals_nothing(part: str) -> None:
    table = described(responses_of())
    broken = getattr(table, part).copy()
    broken[7] = np.nan
    other = replace(table, **{part: broken})
    assert not same_responses(table, other)
    assert not same_responses(other, other)
    if part in {"mean", "std"}:
        assert all(map(math.isnan, sketch(other)))


def test_nothing_is_known_of_tables_without_outputs_and_without_spread() -> None:
    none = empty_table("org/a", "r1", R, D)
    assert not same_responses(none, none)
    assert all(map(math.isnan, sketch(none)))
    table = described(responses_of())
    flat = replace(table, std=np.zeros(M))
    assert not same_responses(flat, flat)
    assert all(map(math.isnan, sketch(flat)))
    assert all(map(math.isnan, sketch(replace(table, mean=np.full(M, np.inf)))))


def test_tables_of_two_indexes_cannot_be_compared() -> None:
    table = described(responses_of())
    for part in ("z", "anchor"):
        with pytest.raises(ValueError, match="not of one index"):
            same_responses(table, replace(table, **{part: getattr(table, part)[:, :-1]}))


def test_real_networks_in_other_batches(tmp_path: Path) -> None:
    """The same weights at other batch sizes pass; rounded to half precision, or one output 1 % larger, they do not."""
    images = torch.nn.functional.interpolate(
        torch.randn((96, 3, 8, 8), generator=torch.Generator().manual_seed(0)), size=64, mode="bicubic"
    )

    def run(model: LoadedModel, batch: int, size: int) -> FloatArray:
        with torch.inference_mode():
            parts = [model.forward(model.module, part[..., :size, :size]) for part in images.split(batch)]
        return torch.cat(parts).numpy()

    for make, size in ((timm_model, 64), (vit_model, 32)):
        folder = make(tmp_path / make.__name__ / "model")
        model = load(repository(folder))
        table = described(run(model, 32, size))
        for batch in (1, 5, 96):
            again = described(run(model, batch, size))
            assert same_responses(table, again)
            assert moved(table, again) < 1e-5
        weights = {name: value.clone() for name, value in model.module.state_dict().items()}
        for value in weights.values():
            if value.shape[:1] == (5,):  # the classifier's weights and offsets
                value[2] *= 1.01
        model.module.load_state_dict(weights)
        assert not same_responses(table, described(run(model, 32, size)))
        fresh = load(repository(folder))
        half = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in fresh.module.state_dict().items()}
        fresh.module.load_state_dict(half)
        assert not same_responses(table, described(run(fresh, 32, size)))
        assert same_responses(table, described(run(fresh, 32, size)), tolerance=0.1)
