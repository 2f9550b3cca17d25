"""Reranking of hits by what models make of the very images that were searched by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engine.conductance_cache import FILE, ConductanceCache, ProfileKey
from engine.errors import InputError, ModelFailedError, Reason
from engine.index import Index
from engine.schema import Performance, Profile, Task, TaskImage
from engine.transfer import divergence
from engine.writer import IndexWriter
from indexers.profiler import ImageFile, ProfiledImages
from query.answers import Hit, SearchAnswer
from query.cli.main import cli
from query.recommend import Candidate, TargetProfile
from query.request import SearchRequest
from query.rerank import HOME_PROBES, N_STEPS, Reranker, RerankSettings
from query.search import Searcher
from tests.support.small_index import encode, encode_images, make_filled_index, write_example


@dataclass
class PretendProfiler:
    """Profiles that depend on model and image only; remembers what it was asked."""

    broken: frozenset[str] = frozenset()
    asked: dict[str, list[ImageFile]] = field(default_factory=dict)
    recorded: dict[str, object] = field(default_factory=dict)

    def row(self, model: str, image: ImageFile) -> np.ndarray:
        seed = int(image.sha256[:8], 16) + sum(map(ord, model))
        return np.random.default_rng(seed).random(4) + 0.1

    def images(
        self, model: str, images: Sequence[ImageFile], recorded: object, revision: str | None = None
    ) -> ProfiledImages:
        if model in self.broken:
            raise ModelFailedError(Reason.MISSING, "it is gone", model)
        self.asked[model] = list(images)
        self.recorded[model] = recorded
        rows = np.stack([self.row(model, image) for image in images])
        return ProfiledImages(("a", "b", "c", "d"), rows, np.zeros(len(rows)), "r1", 1, len(rows))

    def __call__(self, candidate: Candidate, images: Sequence[ImageFile]) -> TargetProfile:
        found = self.images(candidate.model, images, candidate.profile)
        return TargetProfile(found.rows.mean(axis=0), 0.0, 0)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_filled_index(tmp_path_factory.mktemp("rerank") / "zoo")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_example(tmp_path / "owl.png", "owl")


def searched(index: Index, image: Path, k: int = 6, **how: object) -> tuple[Searcher, SearchAnswer]:
    searcher = Searcher(index, encode, encode_images=encode_images)
    return searcher, searcher.search(SearchRequest(images=(image,), k=k, **how))  # type: ignore[arg-type]


def reranked(
    index: Index, image: Path, profiler: PretendProfiler, weight: float, k: int = 6, **how: object
) -> tuple[SearchAnswer, SearchAnswer]:
    searcher, before = searched(index, image, **how)
    settings = RerankSettings(weight, top=6)
    after = Reranker(index, searcher.snapshot, profiler, settings).rerank(before, [image], k)  # type: ignore[arg-type]
    return before, after


def test_without_weight_the_order_stays_and_the_figures_are_told(index: Index, image: Path) -> None:
    before, after = reranked(index, image, PretendProfiler(), 0.0)
    assert [h.output for h in after.results[0].outputs] == [h.output for h in before.results[0].outputs]
    assert after.rerank is not None
    assert [h.was for h in after.rerank.hits] == [h.rank for h in after.rerank.hits] == [1, 2, 3, 4, 5, 6]
    assert all(h.divergence is not None and h.reason is None for h in after.rerank.hits)


def test_home_is_the_probes_that_the_matched_output_responds_to_most(index: Index, image: Path) -> None:
    profiler = PretendProfiler()
    searcher, before = searched(index, image, k=1)
    Reranker(index, searcher.snapshot, profiler, RerankSettings(0.5, 1)).rerank(before, [image], 1)  # type: ignore[arg-type]
    hit = before.results[0].outputs[0]
    with IndexWriter(index.folder) as writer:
        table = writer.store.outputs(hit.model, hit.revision)
    assert table is not None
    (row,) = np.nonzero(table.output == hit.output)[0]
    strongest = table.idx[row][np.argsort(-table.z[row])][:HOME_PROBES]
    _, *home = profiler.asked[hit.model]
    assert {one.sha256 for one in home} == {index.probe_files[i][1] for i in strongest}


def test_the_order_is_that_of_margins_and_divergences_standardised(index: Index, image: Path) -> None:
    profiler = PretendProfiler()
    weight = 0.7
    before, after = reranked(index, image, profiler, weight)
    assert after.rerank is not None
    hits = before.results[0].outputs
    told = {(h.model, h.output): h for h in after.rerank.hits}
    apart = np.array([told[h.model, h.output].divergence for h in hits], np.float64)
    margins = np.array([h.margin for h in hits])
    slow = (1 - weight) * (margins - margins.mean()) / margins.std() - weight * (apart - apart.mean()) / apart.std()
    order = np.argsort(-slow, kind="stable")
    assert [(h.model, h.output) for h in after.results[0].outputs] == [(hits[i].model, hits[i].output) for i in order]
    assert [h.rank for h in after.results[0].outputs] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([told[h.model, h.output].score for h in hits], slow, atol=1e-6)
    assert any(h.was != h.rank for h in after.rerank.hits)


def test_the_divergence_is_from_the_target_to_home(index: Index, image: Path) -> None:
    profiler = PretendProfiler()
    searcher, before = searched(index, image, k=1)
    after = Reranker(index, searcher.snapshot, profiler, RerankSettings(0.5, 1)).rerank(before, [image], 1)  # type: ignore[arg-type]
    [hit] = before.results[0].outputs
    target, *home = (profiler.row(hit.model, one) for one in profiler.asked[hit.model])
    assert after.rerank is not None
    assert after.rerank.hits[0].divergence == pytest.approx(float(divergence(target, np.mean(home, 0)[None])[0]))


def test_a_model_that_cannot_be_run_stays_neutral_and_says_why(index: Index, image: Path) -> None:
    broken = frozenset({"org/animals", "zoo/both"})
    before, after = reranked(index, image, PretendProfiler(broken), 1.0)
    assert after.rerank is not None
    told = [h for h in after.rerank.hits if h.model in broken]
    assert told
    assert all(h.divergence is None and "it is gone" in (h.reason or "") and h.score == 0 for h in told)
    assert len(after.results[0].hits) == len(before.results[0].hits)


def test_a_model_with_profiles_and_performance_is_judged_by_its_predicted_rank(tmp_path: Path, image: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    images = (TaskImage(file="a.png", sha256="0" * 64),)
    with IndexWriter(index.folder) as writer:
        for task in ("pets", "cars"):
            writer.put_task(Task(name=task, images=images, fingerprint=task, drawn_from=1))
        for repo, pets, cars in (("org/animals", 0.9, 0.1), ("org/things", 0.2, 0.8), ("zoo/both", 0.5, 0.5)):
            for task, value in (("pets", pets), ("cars", cars)):
                writer.put_performance([Performance(model=repo, task=task, value=value)])
                if repo == "org/animals":
                    profile = Profile(
                        model=repo,
                        revision="r1",
                        task=task,
                        task_fingerprint=task,
                        blocks=("a", "b", "c", "d"),
                        conductance=(1.0, 2.0, 3.0, 4.0),
                        images=1,
                        n_steps=N_STEPS,
                        completeness_gap=0.0,
                    )
                    writer.put_profiles([profile])
        writer.export_knowledge()
    _, after = reranked(Index(index.folder), image, PretendProfiler(), 0.5)
    assert after.rerank is not None
    for hit in after.rerank.hits:
        # Both tasks have the same profile, so that their ranks 1 and 3 count the same.
        assert hit.predicted_rank == (pytest.approx(2.0) if hit.model == "org/animals" else None)
        assert (hit.divergence is None) == (hit.model == "org/animals")


def test_models_are_reranked_by_all_their_matched_outputs(index: Index, image: Path) -> None:
    profiler = PretendProfiler()
    _, after = reranked(index, image, profiler, 0.5, level="model")
    assert after.rerank is not None
    assert all(hit.output is None for hit in after.rerank.hits)
    assert [hit.model for hit in after.results[0].models] == [hit.model for hit in after.rerank.hits]


def test_a_ceiling_orders_models_by_their_score(index: Index, image: Path) -> None:
    searcher = Searcher(index, encode, encode_images=encode_images)
    request = SearchRequest(concepts=("owl", "chair"), level="model", require="any", ceiling=1.0)
    before = searcher.search(request)
    reranker = Reranker(index, searcher.snapshot, PretendProfiler(), RerankSettings(0.3, 6))  # type: ignore[arg-type]
    after = reranker.rerank(before, [image], 6)
    assert after.rerank is not None
    hits = before.results[0].models
    told = {hit.model: hit for hit in after.rerank.hits}
    scores = np.array([hit.score for hit in hits], np.float64)
    apart = np.array([told[hit.model].divergence for hit in hits], np.float64)
    slow = 0.7 * (scores - scores.mean()) / scores.std() - 0.3 * (apart - apart.mean()) / apart.std()
    np.testing.assert_allclose([told[hit.model].score for hit in hits], slow, atol=1e-6)


def test_hits_below_the_top_keep_their_places(index: Index, image: Path) -> None:
    searcher, before = searched(index, image, k=6)
    reranker = Reranker(index, searcher.snapshot, PretendProfiler(), RerankSettings(1.0, 3))  # type: ignore[arg-type]
    after = reranker.rerank(before, [image], 5)
    hits = after.results[0].outputs
    assert len(hits) == 5
    assert [(h.model, h.output) for h in hits[3:]] == [(h.model, h.output) for h in before.results[0].outputs[3:5]]
    assert [h.rank for h in hits] == [1, 2, 3, 4, 5]
    assert after.rerank is not None
    assert len(after.rerank.hits) == 3


def test_what_is_remembered_of_a_classifier_spares_its_loading(index: Index, image: Path) -> None:
    profiler = PretendProfiler()
    key = ProfileKey("org/things", "r1", ("a", "b", "c", "d"), N_STEPS)
    ConductanceCache(index.folder / FILE).put(key, 1, {"0" * 64: (np.ones(4), 0.0)})
    reranked(index, image, profiler, 0.5)
    assert profiler.recorded["org/things"] == key
    assert profiler.recorded["org/animals"] is None


@pytest.mark.parametrize(("weight", "top", "part"), [(-0.1, 5, "--rerank-weight"), (1.5, 5, "--rerank-weight")])
def test_a_weight_out_of_range_is_refused(weight: float, top: int, part: str) -> None:
    with pytest.raises(InputError, match=part):
        RerankSettings(weight, top)


def test_no_hit_to_rerank_is_refused() -> None:
    with pytest.raises(InputError, match="--rerank-top"):
        RerankSettings(0.5, 0)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["owl", "--rerank", "dcd"], "give some with --images"),
        (["owl", "--rerank-top", "3"], "add --rerank dcd"),
        (["owl", "--rerank-weight", "0.5"], "add --rerank dcd"),
        (["owl", "--images", "IMAGE", "--evidence", "both", "--rerank", "dcd"], "orders by labels, too"),
    ],
)
def test_the_command_says_what_is_missing(index: Index, image: Path, arguments: list[str], part: str) -> None:
    arguments = [str(image) if argument == "IMAGE" else argument for argument in arguments]
    found = CliRunner().invoke(cli, ["search", *arguments, "--index", str(index.folder)])
    assert isinstance(found.exception, InputError)
    assert part in str(found.exception)


def test_an_answer_without_reranking_does_not_speak_of_it(index: Index, image: Path) -> None:
    _, before = searched(index, image)
    assert "rerank" not in before.to_json()
    assert isinstance(before.results[0].hits[0], Hit)
