"""Ranking models for a target: against the equations, number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import (
    BlocksError,
    ConductanceError,
    EncoderError,
    IndexMismatchError,
    InputError,
    ProbeError,
    StoreError,
)
from engine.index import Index
from engine.knowledge import Knowledge
from engine.schema import Performance, Profile, Task
from indexers.profiler import ImageFile
from query.recommend import Candidate, RecommendRequest, TargetProfile, choose, rank, read_target, recommend
from tests.support.knowledge import make_profile, make_task
from tests.support.slow_transfer import slow_divergence, slow_importance, slow_rank, slow_weights
from tests.support.small_index import make_index

MODELS = ("open_clip:a/x", "open_clip:b/y", "org/c", "open_clip:d/z")
TASKS = ("cars", "food", "pets")
IMAGES = (Path("one.png"),)
ASK = RecommendRequest(IMAGES)


def profiles_of(model: str, tasks: Sequence[str] = TASKS, blocks: int = 3, **facts: Any) -> list[Profile]:
    rng = np.random.default_rng(len(model) + sum(map(ord, model)))
    return [
        make_profile(model, task, blocks, conductance=tuple(rng.uniform(0.5, 2, blocks).tolist()), **facts)
        for task in tasks
    ]


def known(
    accuracies: Mapping[str, Sequence[float | None]], profiles: Sequence[Profile], tasks: Sequence[Task] | None = None
) -> Knowledge:
    """What an index knows; accuracies of each model on the ``TASKS`` in order, None where there is none."""
    figures = [
        Performance(model=model, task=task, value=value)
        for model, values in accuracies.items()
        for task, value in zip(TASKS, values, strict=True)
        if value is not None
    ]
    return Knowledge(tuple(tasks if tasks is not None else map(make_task, TASKS)), tuple(profiles), tuple(figures))


def slow_ranks(accuracies: Mapping[str, Sequence[float | None]], model: str, task: int) -> float | None:
    """1 + those that are better + half of those that are as good."""
    own = accuracies[model][task]
    if own is None:
        return None
    others = [values[task] for name, values in accuracies.items() if name != model and values[task] is not None]
    return 1 + sum(value > own for value in others) + sum(value == own for value in others) / 2


ACCURACIES: dict[str, tuple[float | None, ...]] = {
    MODELS[0]: (0.5, 0.9, 0.1),
    MODELS[1]: (0.7, 0.9, None),
    MODELS[2]: (0.5, None, 0.4),
    MODELS[3]: (0.2, 0.9, 0.3),
    "open_clip:seen/only": (0.6, 0.1, 0.2),
}


@pytest.fixture
def world() -> Knowledge:
    return known(ACCURACIES, [profile for model in MODELS for profile in profiles_of(model)])


def targets_for(candidates: Sequence[Candidate]) -> list[TargetProfile]:
    rng = np.random.default_rng(7)
    return [TargetProfile(rng.uniform(0.5, 2, candidate.sources.shape[1]), 0.25, 1) for candidate in candidates]


@pytest.mark.parametrize(("eta", "gamma"), [(2.0, 5.0), (0.0, 5.0), (2.0, 0.0), (7.0, 40.0)])
def test_predicted_ranks_are_the_slow_ones(eta: float, gamma: float, world: Knowledge) -> None:
    request = replace(ASK, eta=eta, gamma=gamma)
    candidates, left_out = choose("zoo", world, request)
    targets = targets_for(candidates)
    found = rank(candidates, targets, request, left_out)
    expected = {}
    for candidate, target in zip(candidates, targets, strict=True):
        places = [slow_ranks(ACCURACIES, candidate.model, i) for i in range(3)]
        rows = [profile for profile in profiles_of(candidate.model)]
        pairs = [(row.conductance, place) for row, place in zip(rows, places, strict=True) if place is not None]
        sources, ranks = [row for row, _ in pairs], [place for _, place in pairs]
        expected[candidate.model] = slow_rank(target.conductance.tolist(), sources, ranks, eta, gamma)
        one = next(one for one in found.ranking if one.model == candidate.model)
        divergences = [slow_divergence(target.conductance.tolist(), source, eta) for source in sources]
        names = [task for task, place in zip(TASKS, places, strict=True) if place is not None]
        slow = dict(zip(names, zip(slow_weights(divergences, gamma), divergences, ranks, strict=True), strict=True))
        assert {s.task: (s.weight, s.divergence, s.rank) for s in one.sources} == {
            task: pytest.approx(values, rel=1e-9) for task, values in slow.items()
        }
        weights = [source.weight for source in one.sources]
        assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1)
    assert {one.model: one.predicted_rank for one in found.ranking} == pytest.approx(expected, rel=1e-9)
    assert [one.model for one in found.ranking] == sorted(expected, key=lambda model: expected[model])
    assert [one.rank for one in found.ranking] == [1, 2, 3, 4]
    assert (found.eta, found.gamma, found.candidates) == (eta, gamma, 4)


def test_ranks_are_among_all_models_with_a_value_and_ties_share_a_place(world: Knowledge) -> None:
    candidates, left_out = choose("zoo", world, replace(ASK, candidates=MODELS[:2]))
    assert [candidate.model for candidate in candidates] == list(MODELS[:2]) and left_out == ()
    first, second = candidates
    assert first.tasks == TASKS and first.ranks.tolist() == [3.5, 2.0, 4.0] and first.counts == (5, 4, 4)
    assert second.tasks == TASKS[:2] and second.ranks.tolist() == [1.0, 2.0] and second.counts == (5, 4)


def test_equal_predictions_are_ordered_by_name() -> None:
    same = {"org/b": (0.5, None, None), "org/a": (0.5, None, None)}
    world = known(same, [*profiles_of("org/b", ["cars"]), *profiles_of("org/a", ["cars"])])
    candidates, _ = choose("zoo", world, ASK)
    found = rank(candidates, targets_for(candidates), ASK)
    assert [(one.model, one.predicted_rank) for one in found.ranking] == [("org/a", 1.5), ("org/b", 1.5)]


def test_a_single_source_task_decides_alone(world: Knowledge) -> None:
    one_task = replace(world, profiles=tuple(profile for profile in world.profiles if profile.task == "cars"))
    candidates, _ = choose("zoo", one_task, ASK)
    found = rank(candidates, targets_for(candidates), ASK)
    assert {one.model: one.predicted_rank for one in found.ranking} == {
        MODELS[0]: 3.5,
        MODELS[1]: 1.0,
        MODELS[2]: 3.5,
        MODELS[3]: 5.0,
    }
    assert all([source.weight for source in one.sources] == [1.0] for one in found.ranking)


def test_k_and_the_explanation(world: Knowledge) -> None:
    request = replace(ASK, k=2, explain=True)
    candidates, left_out = choose("zoo", world, request)
    targets = targets_for(candidates)
    found = rank(candidates, targets, request, left_out)
    assert len(found.ranking) == 2 and found.candidates == 4
    for one in found.ranking:
        i = [candidate.model for candidate in candidates].index(one.model)
        target = targets[i].conductance.tolist()
        assert one.blocks is not None and one.completeness_gap == 0.25
        assert [block.block for block in one.blocks] == list(profiles_of(one.model)[0].blocks)
        assert sum(block.importance for block in one.blocks) == pytest.approx(1)
        assert [block.importance for block in one.blocks] == pytest.approx(slow_importance(target, 2.0))
        assert [block.conductance for block in one.blocks] == target
        sources = {source.task: source.weight for source in one.sources}
        rows = {profile.task: profile.conductance for profile in profiles_of(one.model)}
        for b, block in enumerate(one.blocks):
            apart = sum(w * abs(target[b] - rows[task][b]) / (target[b] + 1e-8) for task, w in sources.items())
            assert block.deviation == pytest.approx(apart)
        total = sum(block.importance * block.deviation for block in one.blocks)
        assert total == pytest.approx(sum(source.weight * source.divergence for source in one.sources))
    assert all(one.blocks is None for one in rank(candidates, targets, ASK).ranking)


def test_the_json_of_the_contract(world: Knowledge) -> None:
    candidates, left_out = choose("zoo", world, ASK)
    images = (ImageFile(Path("a.png"), "aa"), ImageFile(Path("b.png"), "bb"))
    value: Any = rank(candidates, targets_for(candidates), ASK, left_out, images).to_json()
    assert set(value) == {"target", "ranking", "candidates", "left_out", "eta", "gamma", "profiled", "seconds"}
    assert value["target"]["images"] == ["a.png", "b.png"] and len(value["target"]["fingerprint"]) == 64
    assert set(value["ranking"][0]) == {"rank", "model", "predicted_rank", "sources", "completeness_gap"}
    assert set(value["ranking"][0]["sources"][0]) == {"task", "weight", "divergence", "rank", "of"}
    assert value["profiled"] == 4
    (out,) = value["left_out"]
    assert out == {
        "model": "open_clip:seen/only",
        "reason": "it has no profiles",
        "command": "hubhound profile open_clip:seen/only --index zoo",
    }


def left_out_of(world: Knowledge, model: str, request: RecommendRequest = ASK) -> tuple[str, str | None]:
    candidates, left_out = choose("zoo", world, request)
    assert model not in [candidate.model for candidate in candidates]
    (found,) = [one for one in left_out if one.model == model]
    return found.reason, found.command


def test_models_without_what_is_needed_are_named_with_the_command() -> None:
    good = profiles_of("org/good")
    accuracies: dict[str, tuple[float | None, ...]] = {
        "org/good": (0.5, 0.5, 0.5),
        "org/mixed": (0.5, 0.5, 0.5),
        "org/bare": (0.1, None, None),
        "org/elsewhere": (None, 0.5, None),
    }
    again = "hubhound profile org/mixed --again --index zoo"
    for odd in ({"n_steps": 10}, {"revision": "r2"}, {"precision": "float16"}, {"blocks": 2}):
        mixed = [*profiles_of("org/mixed", TASKS[:2]), *profiles_of("org/mixed", TASKS[2:], **odd)]  # type: ignore[arg-type]
        reason, command = left_out_of(known(accuracies, [*good, *mixed]), "org/mixed")
        assert "different weights, blocks, numbers of steps" in reason and command == again
    others = [*good, *profiles_of("org/unknown"), *profiles_of("org/elsewhere", ["cars"])]
    world = known(accuracies, others)
    assert left_out_of(world, "org/bare") == ("it has no profiles", "hubhound profile org/bare --index zoo")
    reason, command = left_out_of(world, "org/unknown")
    assert reason == "no performance of it is known" and command == "hubhound performance import FILE --index zoo"
    reason, command = left_out_of(world, "org/elsewhere")
    assert "none of the tasks it was profiled on" in reason and command is not None
    assert left_out_of(world, "org/new", replace(ASK, candidates=("org/good", "org/new")))[0] == "it has no profiles"


def test_profiles_of_samples_that_were_replaced_do_not_count(world: Knowledge) -> None:
    tasks = [make_task("cars"), make_task("food", fingerprint="e" * 64), make_task("pets")]
    candidates, _ = choose("zoo", replace(world, tasks=tuple(tasks)), ASK)
    assert all("food" not in candidate.tasks for candidate in candidates)
    stale = replace(world, tasks=tuple(task.model_copy(update={"fingerprint": "e" * 64}) for task in tasks))
    with pytest.raises(InputError, match="samples that have been replaced"):
        choose("zoo", stale, ASK)
    gone = replace(world, tasks=(make_task("other"),))
    with pytest.raises(InputError, match=r"replaced.*hubhound profile open_clip:a/x --index zoo"):
        choose("zoo", gone, ASK)


def test_the_largest_number_of_parameters() -> None:
    accuracies = {model: (0.5, 0.5, 0.5) for model in ("org/small", "org/large", "org/unsized")}
    sizes = {"org/small": 10, "org/large": 11, "org/unsized": None}
    world = known(accuracies, [p for model, n in sizes.items() for p in profiles_of(model, parameters=n)])
    candidates, left_out = choose("zoo", world, replace(ASK, max_parameters=10))
    assert [candidate.model for candidate in candidates] == ["org/small"]
    assert [one.reason for one in left_out] == [
        "it has more parameters, 10 are asked for",
        "it has an unknown number of parameters, 10 are asked for",
    ]
    assert len(choose("zoo", world, ASK)[0]) == 3


def test_a_task_that_one_model_alone_has_a_value_on_says_nothing_of_its_rank() -> None:
    accuracies = {"org/a": (0.01, 0.4, None), "org/b": (None, 0.9, 0.8), "org/c": (None, None, 0.7)}
    world = known(accuracies, [p for model in accuracies for p in profiles_of(model)])
    candidates, _ = choose("zoo", world, ASK)
    assert {one.model: len(one.tasks) for one in candidates} == {"org/a": 1, "org/b": 2, "org/c": 1}
    assert all(count == 2 for one in candidates for count in one.counts)
    lonely = known({"org/a": (0.01, 0.4, 0.5)}, profiles_of("org/a"))
    with pytest.raises(InputError, match="a known performance of it and of another model"):
        choose("zoo", lonely, ASK)


def test_nothing_to_rank_says_what_is_missing(world: Knowledge) -> None:
    with pytest.raises(InputError, match=r"no source tasks.*hubhound task add NAME --images DIR --index zoo"):
        choose("zoo", Knowledge(), ASK)
    with pytest.raises(InputError, match=r"knows no models.*performance import.*hubhound profile"):
        choose("zoo", known({}, []), ASK)
    with pytest.raises(InputError, match=r"of 5 the first is open_clip:a/x: it has no profiles: run 'hubhound profile"):
        choose("zoo", replace(world, profiles=()), ASK)
    with pytest.raises(InputError, match="no performance of it is known"):
        choose("zoo", replace(world, performance=()), ASK)
    with pytest.raises(InputError, match=r"it has an unknown number of parameters, 1 are asked for$"):
        choose("zoo", world, replace(ASK, candidates=("org/c",), max_parameters=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ()}, "no image"),
        ({"k": 0}, "-k 0"),
        ({"eta": -1.0}, "--eta"),
        ({"eta": math.nan}, "--eta"),
        ({"gamma": math.inf}, "--gamma"),
        ({"max_parameters": 0}, "--max-params"),
    ],
)
def test_requests_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(ASK, **change).check()


def test_the_target_counts_each_content_once(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name, "PNG")
    found = read_target([tmp_path / name for name in "abc"])
    assert [image.path.name for image in found] == ["a", "b"]
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ProbeError, match=r"text\.jpg is not an image"):
        read_target([tmp_path / "a", tmp_path / "text.jpg"])
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_target([path])


@pytest.fixture
def zoo(tmp_path: Path, world: Knowledge) -> Index:
    index = make_index(tmp_path / "zoo")
    world.write(index.folder)
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    return index


@pytest.mark.parametrize(
    "error",
    [
        EncoderError("it is gone", "spec"),
        IndexMismatchError("other weights", "weights", 1, 2),
        ConductanceError("NaN"),
        BlocksError("no blocks", None),
    ],
)
def test_a_model_that_fails_is_left_out_and_the_others_are_ranked(zoo: Index, error: Exception, tmp_path: Path) -> None:
    request = replace(ASK, images=(tmp_path / "one.png",))

    def profile(candidate: Candidate, images: Sequence[ImageFile]) -> TargetProfile:
        if candidate.model == MODELS[1]:
            raise error
        return TargetProfile(np.ones(3), 0.0, len(images))

    found = recommend(zoo, request, profile, "my zoo")
    assert {one.model for one in found.ranking} == set(MODELS) - {MODELS[1]} and found.candidates == 3
    assert (MODELS[1], str(error)) in [(one.model, one.reason) for one in found.left_out]
    assert found.profiled == 3
    with pytest.raises(type(error), match=str(error)):
        recommend(zoo, replace(request, candidates=(MODELS[1],)), profile)


@pytest.mark.parametrize(
    "error", [ProbeError("a bad image"), StoreError("disk", "store"), InputError("no such device")]
)
def test_what_is_wrong_for_all_models_stops(zoo: Index, error: Exception, tmp_path: Path) -> None:
    def profile(candidate: Candidate, images: Sequence[ImageFile]) -> TargetProfile:
        raise error

    with pytest.raises(type(error), match=str(error)):
        recommend(zoo, replace(ASK, images=(tmp_path / "one.png",)), profile)
