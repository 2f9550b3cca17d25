"""Recommendation: a few images in, models ranked by how well they are predicted to do on them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
import numpy.typing as npt

from engine.errors import (
    BlocksError,
    ConductanceError,
    EncoderError,
    HubhoundError,
    IndexMismatchError,
    InputError,
    ModelError,
)
from engine.index import Index
from engine.knowledge import Knowledge
from engine.performance import ranks, table_of
from engine.probes import hash_file, open_image, probes_fingerprint
from engine.schema import Profile
from engine.transfer import ETA, GAMMA, deviations, importance, predicted_rank, source_weights
from indexers.profiler import ImageFile
from query.recommendation import Block, LeftOutModel, Recommendation, Recommended, SourceTask, Target

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecommendRequest:
    """A recommendation that is asked for.

    Attributes:
        images: Of the target, at least one.
        candidates: Names of models; empty for every model that is known.
        k: Models shown.
        max_parameters: Larger models are left out; None for no limit.
        eta: Sharpness of the importance of blocks, >= 0.
        gamma: Sharpness of the weights of source tasks, >= 0.
        explain: Say what each block contributed.
    """

    images: tuple[Path, ...]
    candidates: tuple[str, ...] = ()
    k: int = 10
    max_parameters: int | None = None
    eta: float = ETA
    gamma: float = GAMMA
    explain: bool = False

    def check(self) -> None:
        """Refuses what makes no sense.

        Raises:
            InputError: A number is out of range, or there is no image.
        """
        if not self.images:
            raise InputError("there is no image to recommend a model for: name some with --images")
        if self.k < 1:
            raise InputError(f"-k {self.k}: ask for at least one model")
        for name, value in (("eta", self.eta), ("gamma", self.gamma)):
            if not 0 <= value < float("inf"):
                raise InputError(f"--{name} {value:g}: it must be a number from 0")
        if self.max_parameters is not None and self.max_parameters < 1:
            raise InputError(f"--max-params {self.max_parameters}: it must be at least 1")


@dataclass(frozen=True)
class Candidate:
    """A model that can be ranked.

    Attributes:
        model: Its name.
        profile: One of its profiles: its revision, blocks and settings.
        tasks: s source tasks: those that it has both a profile of and a known rank on.
        sources: Its profiles on them, float64 ``[s, d]``.
        ranks: Its ranks on them, float64 ``[s]``.
        counts: How many models have a rank on each.
    """

    model: str
    profile: Profile
    tasks: tuple[str, ...]
    sources: Float64Array
    ranks: Float64Array
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TargetProfile:
    """What a candidate makes of the target.

    Attributes:
        conductance: Mean |conductance| of each block over the images, float64 ``[d]``.
        completeness_gap: Mean over the images.
        computed: Images that had to be computed.
    """

    conductance: Float64Array
    completeness_gap: float
    computed: int


ProfileTarget = Callable[[Candidate, Sequence[ImageFile]], TargetProfile]
"""Profiles the target's images with a candidate."""


def read_target(images: Sequence[Path]) -> tuple[ImageFile, ...]:
    """The target's images with their hashes, each content once.

    Raises:
        InputError: An image cannot be read.
        ProbeError: Likewise.
    """
    found: dict[str, ImageFile] = {}
    for path in images:
        try:
            sha256 = hash_file(path)
        except OSError as error:
            raise InputError(f"the image {path} cannot be read: {error.strerror or error}") from error
        if sha256 not in found:
            open_image(path)  # what cannot be read is told before a model is loaded, which takes longer
            found[sha256] = ImageFile(path, sha256)
    return tuple(found.values())


def choose(
    index_name: str, knowledge: Knowledge, request: RecommendRequest
) -> tuple[tuple[Candidate, ...], tuple[LeftOutModel, ...]]:
    """Which models can be ranked, and why the others cannot.

    Ranks on a source task are those among all models with a known value there; a task that only one model has a value
    on says nothing of its rank.

    Args:
        index_name: For the commands that would help.
        knowledge: What the index knows.
        request: What is asked.

    Raises:
        InputError: No model can be ranked; the message says what is missing and how to add it.
    """
    table = table_of(knowledge.performance)
    known = ranks(table.values)
    row = {model: i for i, model in enumerate(table.models)}
    column = {task: i for i, task in enumerate(table.tasks)}
    counts = np.isfinite(table.values).sum(axis=0)
    names = request.candidates or tuple(dict.fromkeys((*table.models, *knowledge.models())))
    found: list[Candidate] = []
    left_out: list[LeftOutModel] = []
    for model in dict.fromkeys(names):
        all_profiles = knowledge.profiles_of(model)
        profiles = [profile for profile in all_profiles if _current(knowledge, profile)]
        reason, command = _obstacle(index_name, model, profiles, row, request)
        if all_profiles and not profiles:
            reason = "its profiles are of samples that have been replaced since"
        if reason is None:
            usable = [
                profile
                for profile in profiles
                if profile.task in column
                and np.isfinite(known[row[model], column[profile.task]])
                and counts[column[profile.task]] > 1
            ]
            if usable:
                places = [column[profile.task] for profile in usable]
                found.append(
                    Candidate(
                        model,
                        usable[0],
                        tuple(profile.task for profile in usable),
                        np.array([profile.conductance for profile in usable], np.float64),
                        known[row[model], places],
                        tuple(int(counts[place]) for place in places),
                    )
                )
                continue
            reason = "none of the tasks it was profiled on has a known performance of it and of another model"
            command = f"hubhound performance import FILE --index {quote(index_name)}"
        left_out.append(LeftOutModel(model=model, reason=reason, command=command))
    if not found:
        raise InputError(_nothing(index_name, knowledge, left_out))
    return tuple(found), tuple(left_out)


def rank(
    candidates: Sequence[Candidate],
    targets: Sequence[TargetProfile],
    request: RecommendRequest,
    left_out: Sequence[LeftOutModel] = (),
    images: Sequence[ImageFile] = (),
) -> Recommendation:
    """Ranks candidates by the rank that is predicted for each (:mod:`engine.transfer`).

    Args:
        candidates: At least one.
        targets: Each candidate's profile of the target.
        request: What is asked.
        left_out: Models that could not be ranked.
        images: Of the target.
    """
    started = time.perf_counter()
    scored = []
    for candidate, target in zip(candidates, targets, strict=True):
        alpha = importance(target.conductance, request.eta)
        delta = deviations(target.conductance, candidate.sources)
        apart = delta @ alpha
        weights = source_weights(apart, request.gamma)
        scored.append((predicted_rank(weights, candidate.ranks), candidate, target, alpha, delta, apart, weights))
    scored.sort(key=lambda one: (round(one[0], 9), one[1].model))  # sums of equal weights are not exact
    ranking = [
        Recommended(
            rank=place,
            model=candidate.model,
            predicted_rank=predicted,
            sources=_sources(candidate, apart, weights),
            parameters=candidate.profile.parameters,
            completeness_gap=target.completeness_gap,
            blocks=_blocks(candidate, target, alpha, weights @ delta) if request.explain else None,
        )
        for place, (predicted, candidate, target, alpha, delta, apart, weights) in enumerate(
            scored[: request.k], start=1
        )
    ]
    return Recommendation(
        target=Target(
            images=tuple(str(image.path) for image in images),
            fingerprint=probes_fingerprint(image.sha256 for image in images),
        ),
        ranking=tuple(ranking),
        candidates=len(candidates),
        left_out=tuple(left_out),
        eta=request.eta,
        gamma=request.gamma,
        profiled=sum(target.computed for target in targets),
        seconds=time.perf_counter() - started,
    )


def recommend(
    index: Index, request: RecommendRequest, profile: ProfileTarget, index_name: str | None = None
) -> Recommendation:
    """Recommends models for some images; one that cannot be run any more is left out with the reason.

    Args:
        index: The index.
        request: What is asked.
        profile: Profiles the target's images with a candidate.
        index_name: The index as the user named it, for the commands that would help.

    Raises:
        InputError: The request makes no sense, or no model can be ranked.
        HubhoundError: An image cannot be read, or no model can be run.
    """
    request.check()
    images = read_target(request.images)
    candidates, left_out = choose(index_name or str(index.folder), index.knowledge(), request)
    able: list[Candidate] = []
    targets: list[TargetProfile] = []
    failures: list[HubhoundError] = []
    for candidate in candidates:
        try:
            targets.append(profile(candidate, images))
        except (EncoderError, BlocksError, ConductanceError, IndexMismatchError, ModelError) as error:
            failures.append(error)  # of one model; the others can be ranked
            left_out = (*left_out, LeftOutModel(model=candidate.model, reason=str(error)))
        else:
            able.append(candidate)
    if not able:
        raise failures[0]
    return rank(able, targets, request, left_out, images)


def _current(knowledge: Knowledge, profile: Profile) -> bool:
    """Whether a profile is of the task's present sample."""
    task = knowledge.task(profile.task)
    return task is not None and task.fingerprint == profile.task_fingerprint


def _obstacle(
    index_name: str, model: str, profiles: Sequence[Profile], row: Mapping[str, int], request: RecommendRequest
) -> tuple[str | None, str | None]:
    """Why a model cannot be ranked, and the command that would change it; None if nothing is known to stand against."""
    if not profiles:
        return "it has no profiles", f"hubhound profile {quote(model)} --index {quote(index_name)}"
    kinds = {(profile.revision, profile.blocks, profile.n_steps, profile.precision) for profile in profiles}
    again = f"hubhound profile {quote(model)} --again --index {quote(index_name)}"
    if len(kinds) > 1:
        return "its profiles were made with different weights, blocks, numbers of steps or precisions", again
    parameters = profiles[0].parameters
    if request.max_parameters is not None and (parameters is None or parameters > request.max_parameters):
        more = "an unknown number of parameters" if parameters is None else "more parameters"
        return f"it has {more}, {request.max_parameters:,} are asked for", None
    if model not in row:
        return "no performance of it is known", f"hubhound performance import FILE --index {quote(index_name)}"
    return None, None


def _sources(candidate: Candidate, apart: Float64Array, weights: Float64Array) -> tuple[SourceTask, ...]:
    return tuple(
        SourceTask(
            task=candidate.tasks[i],
            weight=float(weights[i]),
            divergence=float(apart[i]),
            rank=float(candidate.ranks[i]),
            of=candidate.counts[i],
        )
        for i in np.argsort(-weights, kind="stable")
    )


def _blocks(
    candidate: Candidate, target: TargetProfile, alpha: Float64Array, deviation: Float64Array
) -> tuple[Block, ...]:
    return tuple(
        Block(block=name, importance=float(a), deviation=float(delta), conductance=float(v))
        for name, a, delta, v in zip(candidate.profile.blocks, alpha, deviation, target.conductance, strict=True)
    )


def _nothing(index_name: str, knowledge: Knowledge, left_out: Sequence[LeftOutModel]) -> str:
    if not knowledge.tasks:
        return (
            f"the index {index_name} has no source tasks to learn from: add some with "
            f"'hubhound task add NAME --images DIR --index {index_name}', then profile models on them"
        )
    if not left_out:
        return (
            f"the index {index_name} knows no models to recommend: import their performance with "
            f"'hubhound performance import FILE --index {index_name}' and profile them with "
            f"'hubhound profile MODEL... --index {index_name}'"
        )
    first = next((one for one in left_out if knowledge.profiles_of(one.model)), left_out[0])
    then = f": run '{first.command}'" if first.command else ""
    return f"no model can be ranked; of {len(left_out)} the first is {first.model}: {first.reason}{then}"
