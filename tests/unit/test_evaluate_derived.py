"""Hubs derived from real models: what is drawn, what derived models answer, and that the index is a real one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import IndexUnusableError, InputError
from engine.index import Index, IndexSettings
from engine.probes import read_folder
from engine.schema import Model
from engine.verify import verify
from engine.writer import IndexWriter
from query.evaluate import derived
from query.evaluate.derived import Derivation, HubSettings, derived_responses, make_hub, plan
from query.evaluate.truth import Known, Truth, read_truth, read_zoo
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    TOP_R,
    N,
    PretendEncoder,
    answers,
    encode,
    make_filled_index,
    probe_embeddings,
    put_model,
    write_probe_images,
)

SMALL = HubSettings(6, min_classes=3, max_classes=5)
BOTH = (*ANIMALS, *THINGS)
CONCEPTS = {"org/animals": (ANIMALS, 1), "org/things": (THINGS, 2), "zoo/both": (BOTH, 3)}
TRUTH = Truth(
    Path("truth.json"),
    {
        "org/animals": {i: Known(name, (name,)) for i, name in enumerate(ANIMALS)},
        "zoo/both": {1: Known("hound", ("dog", "wolf")), 4: Known("seat", ())},
    },
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Only read from; knows the text cat."""
    index = make_filled_index(tmp_path_factory.mktemp("made") / "zoo")
    index.embed(["cat"], encode)
    return index


@pytest.fixture(scope="module")
def hub(source: Index, tmp_path_factory: pytest.TempPathFactory) -> Index:
    target = tmp_path_factory.mktemp("hub") / "hub"
    make_hub(source.folder, TRUTH, target, SMALL)
    return Index(target)


def model(repo: str, outputs: int, probabilities: bool = False) -> Model:
    return Model(repo=repo, revision="r", outputs=outputs, probabilities=probabilities)


def drawn(derivations: Sequence[Derivation]) -> list[tuple[object, ...]]:
    return [(d.repo, d.source.repo, d.rows.tolist(), d.probabilities, d.revision) for d in derivations]


def test_a_hub_follows_from_its_seed_and_begins_with_the_smaller_one() -> None:
    sources = [model("a/x", 300), model("b/y", 40)]
    settings = HubSettings(30)
    first = plan(sources, settings)
    assert drawn(first) == drawn(plan(sources, settings))
    assert drawn(first)[:10] == drawn(plan(sources, replace(settings, models=10)))
    assert drawn(first) != drawn(plan(sources, replace(settings, seed=1)))
    assert len({d.revision for d in first}) == 30
    assert {d.source.repo for d in first} == {"a/x", "b/y"}
    assert first[0].repo == f"derived/00001-{first[0].source.repo[2:]}"


def test_the_revision_says_what_a_model_was_made_from() -> None:
    made = plan([model("a/x", 300)], HubSettings(1))[0]
    others = [
        replace(made, source=model("a/z", 300)),
        replace(made, rows=made.rows[1:]),
        replace(made, probabilities=not made.probabilities),
        replace(made, noise=0.5),
        replace(made, seed=(9,)),
    ]
    assert len({made.revision, *(other.revision for other in others)}) == 6


def test_the_sizes_lie_within_their_bounds_and_small_models_are_the_rule() -> None:
    made = plan([model("a/x", 1000), model("b/y", 100), model("c/small", 14)], HubSettings(3000))
    sizes = {repo: np.asarray([len(d.rows) for d in made if d.source.repo == repo]) for repo in ("a/x", "b/y")}
    assert sum(map(len, sizes.values())) == 3000  # none from the small one
    assert sizes["a/x"].min() == 15
    assert 190 <= sizes["a/x"].max() <= 200
    # Density m^-1.5 between a and b: the mean is sqrt(a b), the median 4 / (a^-1/2 + b^-1/2)^2.
    assert sizes["a/x"].mean() == pytest.approx(math.sqrt(15 * 200), rel=0.06)
    assert np.median(sizes["a/x"]) == pytest.approx(4 / (15**-0.5 + 200**-0.5) ** 2, rel=0.06)
    assert sizes["b/y"].max() == 100
    for d in made[:50]:
        assert np.all(np.diff(d.rows) > 0)
        assert d.rows.min() >= 0
        assert d.rows.max() < d.source.outputs
    counts = np.bincount(np.concatenate([d.rows for d in made if d.source.repo == "b/y"]), minlength=100)
    assert counts.min() > 0.8 * counts.mean()  # every output is as likely as any other


def test_the_share_of_models_that_answer_probabilities() -> None:
    sources = [model("a/x", 300)]
    for share, low, high in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.3, 0.25, 0.35)):
        made = plan(sources, HubSettings(1000, probabilities=share))
        assert low <= np.mean([d.probabilities for d in made]) <= high
    made = plan([model("a/x", 300, probabilities=True)], HubSettings(5, probabilities=0.0))
    assert all(d.probabilities for d in made)


def test_bounds_change_the_sizes() -> None:
    made = plan([model("a/x", 300)], HubSettings(200, min_classes=2, max_classes=3))
    assert {len(d.rows) for d in made} == {2, 3}
    assert {d.noise for d in plan([model("a/x", 300)], HubSettings(3, noise=0.25))} == {0.25}


def test_settings_out_of_range() -> None:
    noises = [{"noise": value} for value in (-1.0, math.nan, math.inf, 1e200)]
    for wrong in ({"models": 0}, {"min_classes": 1}, {"min_classes": 9, "max_classes": 8}, *noises,
                  {"probabilities": 1.5}, {"probabilities": -0.1}):  # fmt: skip
        with pytest.raises(InputError):
            HubSettings(**{"models": 3, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no model has 15 outputs \(the largest has 7\)"):
        plan([model("a/x", 7), model("b/y", 3)], HubSettings(3))


def pieces(probabilities: bool, noise: float = 0.0) -> tuple[Derivation, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 5))
    derivation = Derivation("d/1", model("a/x", 9), np.arange(4), probabilities, noise, (0, 0, 1))
    return derivation, z, rng.normal(2, 1, 4), rng.uniform(0.5, 3, 4)


def test_a_model_of_logits_answers_what_the_real_one_does() -> None:
    derivation, z, mean, std = pieces(probabilities=False)
    got = derived_responses(derivation, z, mean, std)
    assert got.shape == (5, 4)
    for i in range(5):
        for j in range(4):
            assert got[i, j] == pytest.approx(z[j, i] * std[j] + mean[j])


def test_outputs_compete_in_the_softmax_of_their_own_subset() -> None:
    derivation, z, mean, std = pieces(probabilities=True)
    got = derived_responses(derivation, z, mean, std)
    for i in range(5):
        powers = [math.exp(z[j, i] * std[j] + mean[j]) for j in range(4)]
        logs = [math.log(power / sum(powers)) for power in powers]
        for j in range(4):
            assert got[i, j] == pytest.approx(logs[j] - sum(logs) / 4, abs=1e-5)


def test_large_logits_do_not_overflow() -> None:
    derivation, z, mean, std = pieces(probabilities=True)
    assert np.all(np.isfinite(derived_responses(derivation, z, mean + 5000, 300 * std)))


def test_noise_is_a_share_of_each_outputs_deviation() -> None:
    derivation = Derivation("d/1", model("a/x", 9), np.arange(3), False, 0.5, (0, 0, 1))
    z, mean, std = np.zeros((3, 4000)), np.asarray([0.0, 1.0, 2.0]), np.asarray([1.0, 10.0, 100.0])
    got = derived_responses(derivation, z, mean, std)
    np.testing.assert_allclose(got.std(axis=0), 0.5 * std, rtol=0.05)
    np.testing.assert_allclose(got.mean(axis=0), mean, atol=0.03 * std.max())
    assert np.array_equal(got, derived_responses(derivation, z, mean, std))
    assert not np.array_equal(got, derived_responses(replace(derivation, seed=(1,)), z, mean, std))
    np.testing.assert_array_equal(z, 0)


def test_the_derived_index_is_whole_and_its_responses_are_those_of_the_sources(source: Index, hub: Index) -> None:
    assert verify(hub.folder) == []
    derivations = {d.repo: d for d in plan(source.snapshot().models, SMALL)}
    zoo = read_zoo(hub, read_truth(hub.folder / "truth.json"))
    snapshot = hub.snapshot()
    assert len(snapshot.models) == 6
    assert {d.probabilities for d in derivations.values()} == {True, False}
    for i, found in enumerate(snapshot.models):
        d = derivations[found.repo]
        concepts, seed = CONCEPTS[d.source.repo]
        raw = answers(concepts, seed=seed).astype(np.float64)[:, d.rows]
        if d.probabilities:  # log-probabilities, centred: logits less their mean over the subset
            raw = raw - raw.mean(axis=1, keepdims=True)
        z = (raw - raw.mean(axis=0)) / raw.std(axis=0)
        rows = slice(int(zoo.starts[i]), int(zoo.starts[i + 1]))
        np.testing.assert_allclose(zoo.responses[rows], z.T, atol=0.02)  # twice through float16
        assert found.probabilities == d.probabilities
        assert (found.library, found.licence) == (d.source.library, d.source.licence)
        assert f"derived from {d.source.repo}@r1" in found.tags
        assert zoo.output[rows].tolist() == list(range(len(d.rows)))
        labels = [None] * 7 if d.source.repo == "zoo/both" else concepts
        assert zoo.labels[rows] == tuple(labels[row] for row in d.rows)
        known = TRUTH.models.get(d.source.repo, {})
        expected = [set(known[row].classes) if row in known else set() for row in d.rows.tolist()]
        assert [set(c) for c in zoo.classes[rows]] == expected


def test_the_rest_of_the_index_is_that_of_the_source(source: Index, hub: Index) -> None:
    same = {"created_at": None}
    assert hub.manifest.model_copy(update=same) == source.manifest.model_copy(update=same)
    np.testing.assert_array_equal(hub.probe_embeddings, source.probe_embeddings)
    assert hub.probe_files == source.probe_files
    assert hub.background().fingerprint == source.background().fingerprint

    def refuse(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(texts)

    np.testing.assert_array_equal(hub.embed(["cat"], refuse), source.embed(["cat"], refuse))


def test_making_a_hub_again_gives_the_same(source: Index, hub: Index, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = make_hub(source.folder, TRUTH, tmp_path / "again", SMALL, lambda *step: steps.append(step))
    assert steps == [(i + 1, 6) for i in range(6)]
    again = Index(tmp_path / "again")
    ours, theirs = again.snapshot(), hub.snapshot()
    assert [m.revision for m in ours.models] == [m.revision for m in theirs.models]
    np.testing.assert_array_equal(ours.arrays.h, theirs.arrays.h)
    assert (tmp_path / "again" / "truth.json").read_bytes() == (hub.folder / "truth.json").read_bytes()
    known = read_truth(tmp_path / "again" / "truth.json").models.values()
    meant = sum(bool(entry.classes) for entries in known for entry in entries.values())
    assert (made.models, made.outputs, made.known, made.skipped) == (6, len(ours), meant, 0)


def test_outputs_that_are_not_usable_do_not_count(
    source: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first output of every model is constant, and so are all of the models that answer probabilities."""
    honest = derived_responses

    def spoilt(derivation: Derivation, *parts: np.ndarray) -> np.ndarray:
        values = np.array(honest(derivation, *parts))
        values[:, : None if derivation.probabilities else 1] = 2.0
        return values

    monkeypatch.setattr(derived, "derived_responses", spoilt)
    made = make_hub(source.folder, TRUTH, tmp_path / "hub", SMALL)
    planned = plan(source.snapshot().models, SMALL)
    left = [d for d in planned if not d.probabilities]
    assert 0 < len(left) < len(planned)
    known = sum(
        bool(TRUTH.models.get(d.source.repo, {}).get(row, Known(None, ())).classes)
        for d in left
        for row in d.rows.tolist()[1:]
    )
    assert known > 0
    outputs = sum(len(d.rows) - 1 for d in left)
    assert (made.models, made.outputs, made.known, made.skipped) == (len(left), outputs, known, 6 - len(left))
    hub = Index(tmp_path / "hub")
    assert verify(hub.folder) == []
    assert {model.repo for model in hub.snapshot().models} == {d.repo for d in left}
    zoo = read_zoo(hub, read_truth(hub.folder / "truth.json"))
    assert (len(zoo), sum(map(bool, zoo.classes))) == (outputs, known)


def test_a_hub_without_a_usable_output_is_refused(
    source: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "derived_responses", lambda d, z, mean, std: np.full(z.T.shape, 2.0))
    with pytest.raises(InputError, match="no output of 6 derived models is usable"):
        make_hub(source.folder, TRUTH, tmp_path / "hub", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(source: Index, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_hub(source.folder, TRUTH, tmp_path / "hub", SMALL, fail)
    assert list(tmp_path.iterdir()) == []
    with IndexWriter(source.folder):
        pass  # the lock of the source is free again


def test_what_cannot_be_used_is_refused_before_anything_is_made(source: Index, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        make_hub(source.folder, TRUTH, occupied, SMALL)
    with pytest.raises(InputError, match="already"):
        make_hub(source.folder, TRUTH, source.folder, SMALL)
    strangers = Truth(Path("t.json"), {"who/else": {0: Known("a", ("b",))}})
    with pytest.raises(InputError, match="who/else"):
        make_hub(source.folder, strangers, tmp_path / "hub", SMALL)
    with pytest.raises(InputError, match="no model has 15 outputs"):
        make_hub(source.folder, TRUTH, tmp_path / "hub", HubSettings(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["occupied"]


def test_responses_must_have_been_kept(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo", responses="drop")
    with pytest.raises(IndexUnusableError, match="kept no responses"):
        make_hub(index.folder, TRUTH, tmp_path / "hub", SMALL)
    assert not (tmp_path / "hub").exists()


def test_probes_that_lie_in_the_index_are_copied(tmp_path: Path) -> None:
    images = write_probe_images(tmp_path / "images")
    names = tuple(f"background {i}" for i in range(20))
    settings = IndexSettings(TOP_R, "dual", "keep", ("{}",), names, "test", 10)
    Index.create(
        tmp_path / "zoo",
        read_folder(images),
        probe_embeddings(),
        PretendEncoder(),  # type: ignore[arg-type]
        settings,
        images,
    )
    with IndexWriter(tmp_path / "zoo") as writer:
        put_model(writer, "org/animals", ANIMALS)
        writer.finish()
    truth = Truth(TRUTH.path, {"org/animals": TRUTH.models["org/animals"]})
    make_hub(tmp_path / "zoo", truth, tmp_path / "hub", HubSettings(1, min_classes=2, max_classes=3))
    assert len(list((tmp_path / "hub" / "probes").iterdir())) == N
    assert verify(tmp_path / "hub") == []
