"""Candidates and their certificate, against a scan of everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import prefetch as module
from engine.distance import METHODS, Method, correlations, distances, margins
from engine.outputs import OutputTable
from engine.prefetch import EASE, SLACK, Prefetch, finish, threshold_query
from engine.schema import Model, ModelState
from engine.store.base import StoreFilter, StoreHit, StoreLayout
from engine.store.records import global_documents, global_query, local_constants, local_documents, local_query
from tests.support.candidate_stores import ArrayStore, EdgeCandidates, Hub, make_hub, packed, scanned, stored_as

TWO_PARTS: tuple[Method, ...] = ("whitened", "dual")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """First rounds of a few outputs, so that small hubs need several."""
    monkeypatch.setattr(module, "FIRST", 4)
    monkeypatch.setattr(module, "PER_HIT", 1)


def store_of(hub: Hub) -> ArrayStore:
    return ArrayStore(hub.layout, hub.tables, hub.models())


def keys(hits: object) -> list[tuple[str, int]]:
    return [(hit.repo, hit.output) for hit in hits]  # type: ignore[attr-defined]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_certified_candidates_hold_the_best_of_all_outputs(few: None, method: Method, apart: bool) -> None:
    hub = make_hub(method, concepts=4, apart=apart)
    rounds: Counter[int] = Counter()
    for c in range(len(hub.concepts)):
        for k in (1, 5, 30):
            store = store_of(hub)
            found = Prefetch(store).candidates(hub.concepts, c, k)
            assert found.certified
            rounds[found.rounds] += 1
            done = finish(store, found.near, hub.concepts, c, method, k)
            assert list(done.hits) == scanned(hub.tables, hub.concepts, c, k, method)  # margins to the last bit
    assert max(rounds) > 1 or method not in TWO_PARTS, "the first round must not always be enough, or little is tested"


@pytest.mark.parametrize("method", METHODS)
def test_the_best_are_those_of_the_readable_form(method: Method) -> None:
    hub = make_hub(method)
    every = [
        (float(m), table.repo, int(output))
        for table in hub.tables
        for m, output in zip(
            margins(table.idx, table.z, table.anchor, table.calibration, hub.concepts, method)[2],
            table.output,
            strict=True,
        )
    ]
    expected = sorted(every, key=lambda row: -row[0])[:7]
    store = store_of(hub)
    done = finish(store, Prefetch(store).candidates(hub.concepts, 2, 7).near, hub.concepts, 2, method, 7)
    assert keys(done.hits) == [row[1:] for row in expected]
    np.testing.assert_allclose([hit.score for hit in done.hits], [row[0] for row in expected], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_on_the_embedded_engine(few: None, method: Method, tmp_path: Path) -> None:
    hub = make_hub(method, models=6, apart=True)
    store = EdgeCandidates(tmp_path / "store", hub.layout, hub.tables, hub.models())
    with store.store:
        for c in range(len(hub.concepts)):
            found = Prefetch(store).candidates(hub.concepts, c, 5)
            assert found.certified
            done = finish(store, found.near, hub.concepts, c, method, 5)
            assert list(done.hits) == scanned(stored_as(hub.tables, method), hub.concepts, c, 5, method)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_certificate_is_never_wrong(data: st.DataObject) -> None:
    """Any hub with equal outputs, stale ones, and limits small enough that some searches cannot be certified."""
    method = data.draw(st.sampled_from(METHODS))
    hub = make_hub(method, models=5, outputs=12, concepts=3, seed=data.draw(st.integers(0, 20)), apart=True)
    twin = replace(hub.tables[0], repo="org/twin")
    old = [replace(table, revision="r1") for table in hub.tables[: data.draw(st.integers(0, 5))]]
    gone = [replace(table, repo=table.repo + "-gone") for table in hub.tables[: data.draw(st.integers(0, 5))]]
    live = [*hub.tables, twin]
    models = [Model(repo=table.repo, revision=table.revision) for table in live]
    store = ArrayStore(hub.layout, [*live, *old, *gone], models)
    k, most = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 64))
    found = Prefetch(store, most=most).candidates(hub.concepts, 1, k)
    if found.certified:
        done = finish(store, found.near, hub.concepts, 1, method, k)
        assert list(done.hits) == scanned(live, hub.concepts, 1, k, method)


def outcomes(most: int) -> Iterator[tuple[bool, bool]]:
    """For several hubs: whether the best ten were certified, and whether they are right."""
    for seed in range(12):
        hub = make_hub("whitened", models=5, outputs=12, concepts=4, seed=seed, apart=True)
        store = store_of(hub)
        for c in range(4):
            found = Prefetch(store, most=most).candidates(hub.concepts, c, 10)
            done = finish(store, found.near, hub.concepts, c, "whitened", 10)
            yield found.certified, list(done.hits) == scanned(hub.tables, hub.concepts, c, 10, "whitened")


def test_without_a_certificate_the_answer_may_be_wrong(few: None) -> None:
    """Were it always right, or always certified, the certificate would not be tested."""
    count = Counter(outcomes(12))
    assert count[False, False] > 0
    assert count[True, False] == 0
    assert count[True, True] > 0
    assert set(Counter(outcomes(64))) == {(True, True)}


def table_of(layout: StoreLayout, local: list[float], whole: list[float], concepts: object, repo: str) -> OutputTable:
    """Outputs with given local and global parts for the first concept, made by moving hubness and prior."""
    hub = make_hub("whitened", models=1, outputs=len(local))
    table = hub.tables[0]
    d = distances(table.idx, table.z, hub.concepts.z[:1], "whitened")[0].astype(np.float64)
    rho = correlations(table.anchor, hub.concepts, True)[0].astype(np.float64)
    c = table.calibration
    constants = replace(
        c,
        h=(np.array(local) * c.s + d).astype(np.float32),
        prior=(np.array(whole) - (rho - c.g_white) / c.q_white).astype(np.float32),
    )
    return replace(table, repo=repo, calibration=constants)


def test_an_output_that_is_good_in_both_parts_and_best_in_neither_is_found(few: None) -> None:
    """Margins by hand: fillers 3 + -2 = 1 and -2 + 3 = 1, the best one 1.5 + 1.5 = 3, in no list of two rounds."""
    local = [*[3.0] * 10, *[-2.0] * 10, 1.5]
    whole = [*[-2.0] * 10, *[3.0] * 10, 1.5]
    hub = make_hub("whitened", models=1, outputs=21)
    table = table_of(hub.layout, local, whole, hub.concepts, "org/a")
    store = ArrayStore(hub.layout, [table], [Model(repo="org/a", revision="r2")])
    narrow = Prefetch(store, most=8).candidates(hub.concepts, 0, 1)
    assert not narrow.certified
    assert (narrow.rounds, narrow.near[0].score) == (2, pytest.approx(1, abs=SLACK))  # 4 of each part, then 8
    assert {hit.output for hit in narrow.near}.isdisjoint({20})
    found = Prefetch(store).candidates(hub.concepts, 0, 1)
    assert found.certified
    assert (found.near[0].output, found.rounds) == (20, 3)
    assert found.near[0].score == pytest.approx(3, abs=SLACK)
    assert len(found.near) == 1


def test_outputs_of_replaced_and_removed_models_are_dropped_wherever_they_stand(few: None) -> None:
    """A hundred of them lead both lists: they take the places of those that count, which are found behind them."""
    hub = make_hub("whitened", models=1, outputs=20)
    live = table_of(hub.layout, [1.0] * 19 + [2.0], [1.0] * 20, hub.concepts, "org/a")
    better = table_of(hub.layout, [5.0] * 20, [5.0] * 20, hub.concepts, "org/a")
    stale = [replace(better, revision="r1"), *(replace(better, repo=f"org/gone{i}") for i in range(3))]
    became_copy = replace(better, repo="org/copy")
    failed = replace(better, repo="org/failed")
    models = [
        Model(repo="org/a", revision="r2"),
        Model(repo="org/copy", revision="r2", state=ModelState.COPY, copy_of="org/a", copied_revision="r2"),
        Model(repo="org/failed", revision="r2", state=ModelState.FAILED),
    ]
    store = ArrayStore(hub.layout, [live, *stale, became_copy, failed], models)
    found = Prefetch(store).candidates(hub.concepts, 0, 1)
    assert found.certified
    assert found.rounds > 1
    assert keys(found.near) == [("org/a", 19)]
    assert list(finish(store, found.near, hub.concepts, 0, "whitened", 1).hits) == scanned(
        [live], hub.concepts, 0, 1, "whitened"
    )
    # Candidates of another origin are checked, too.
    everything = [
        StoreHit(t.repo, t.revision, int(o), 0.0) for t in (live, *stale, became_copy, failed) for o in t.output
    ]
    assert keys(finish(store, everything, hub.concepts, 0, "whitened", 3).hits)[0] == ("org/a", 19)
    assert {hit.repo for hit in finish(store, everything, hub.concepts, 0, "whitened", 200).hits} == {"org/a"}
    # With every place taken by outputs that do not count there is no certificate.
    assert not Prefetch(store, most=50).candidates(hub.concepts, 0, 1).certified


@pytest.mark.parametrize("method", METHODS)
def test_equal_margins_are_all_candidates(few: None, method: Method) -> None:
    """Ten models that are the same: the scan shows them by their names."""
    hub = make_hub(method, models=3)
    tables = [*hub.tables, *(replace(hub.tables[0], repo=f"org/t{i}") for i in range(10))]
    store = ArrayStore(hub.layout, tables, [Model(repo=t.repo, revision="r2") for t in tables])
    for k in (1, 3, 11):
        found = Prefetch(store).candidates(hub.concepts, 0, k)
        assert found.certified
        done = finish(store, found.near, hub.concepts, 0, method, k)
        assert list(done.hits) == scanned(tables, hub.concepts, 0, k, method)


def test_more_hits_than_outputs_and_no_outputs_at_all(few: None) -> None:
    hub = make_hub("dual", models=2, outputs=5)
    found = Prefetch(store_of(hub)).candidates(hub.concepts, 0, 100)
    assert found.certified
    assert len(found.near) == found.looked_at == 10
    nothing = Prefetch(ArrayStore(hub.layout, [], [])).candidates(hub.concepts, 0, 10)
    assert nothing == ((), True, 0, 1)
    for method in ("weighted", "probelog"):
        layout = replace(hub.layout, method=method)
        assert Prefetch(ArrayStore(layout, [], [])).candidates(hub.concepts, 0, 10).certified


def test_outputs_that_disappear_between_two_requests_are_no_candidates() -> None:
    hub = make_hub("whitened")
    store = store_of(hub)
    first = Prefetch(store).candidates(hub.concepts, 0, 1).near[0]
    store.gone = {(first.repo, first.revision, first.output)}
    near = Prefetch(store).candidates(hub.concepts, 0, 3).near
    assert first.output not in {hit.output for hit in near if hit.repo == first.repo}
    store.gone = set()
    prefetch = Prefetch(store)
    near = prefetch.candidates(hub.concepts, 0, 3).near
    store.gone = {(hit.repo, hit.revision, hit.output) for hit in near}
    assert prefetch.finish(near, hub.concepts, 0, 3).hits == ()


def test_a_filter_that_lets_too_many_through(few: None) -> None:
    """While facts change, a server shows outputs that a filter excludes: they must not raise the threshold."""
    hub = make_hub("whitened", models=6, apart=True)
    store = store_of(hub)
    where = StoreFilter({"model": ("org/m01", "org/m02")})
    store.slips = {"org/m03", "org/m04"}
    looked: list[set[str]] = []

    def allowed(records: object) -> set[str]:
        looked.append(set(records))  # type: ignore[call-overload]
        return {"org/m01", "org/m02"} & looked[-1]

    for c in range(len(hub.concepts)):
        found = Prefetch(store, where, allowed).candidates(hub.concepts, c, 5)
        assert found.certified
        done = finish(store, found.near, hub.concepts, c, "whitened", 5)
        assert list(done.hits) == scanned(hub.tables[1:3], hub.concepts, c, 5, "whitened")
    assert set().union(*looked) == {"org/m01", "org/m02", "org/m03", "org/m04"}


def test_what_was_fetched_is_not_fetched_again() -> None:
    hub = make_hub("whitened", models=4)
    store = store_of(hub)
    prefetch = Prefetch(store)
    first = prefetch.candidates(hub.concepts, 0, 5)
    assert store.asked["outputs read", True] == 0, "candidates need no anchors"
    read, asked = store.asked["outputs read", False], store.asked["records_of"]
    assert prefetch.candidates(hub.concepts, 0, 5) == first
    assert (store.asked["outputs read", False], store.asked["records_of"]) == (read, asked)
    prefetch.finish(first.near, hub.concepts, 0, 5)
    assert store.asked["outputs read", True] == len(first.near) < 20
    assert prefetch.records() == store.live


def test_vectors_of_another_method_are_refused() -> None:
    hub = make_hub("whitened", models=1)
    with pytest.raises(ValueError, match="serve whitened, not dual"):
        finish(store_of(hub), [], hub.concepts, 0, "dual", 3)


@pytest.mark.parametrize("method", METHODS)
def test_scores_above_a_threshold_hold_every_margin_above_it(method: Method) -> None:
    """Up to h / s exactly those; beyond, where no output has such a margin, a score may be above and means nothing."""
    hub = make_hub(method, models=6)
    false = 0
    for table in hub.tables:
        h, s = local_constants(table.calibration, method)
        margin = (h - distances(table.idx, table.z, hub.concepts.z, method).astype(np.float64)) / s
        dimensions, values = local_documents(table, hub.layout)
        for c in range(len(hub.concepts)):
            for t in (-3.0, -0.5, 0.0, 1.0, 4.0, 20.0):
                query = np.zeros(2 * hub.layout.probes + 2)
                places, numbers = local_query(hub.concepts.z[c], t)
                query[places] = numbers
                score = (values * query[dimensions]).sum(axis=1)
                assert (score > t - SLACK)[margin[c] > t].all()
                false += int(((score > t + SLACK) & (margin[c] < t - SLACK)).sum())
                assert ((score < t + SLACK) | (margin[c] > t - SLACK) | (t > h / s)).all()
    assert false > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_query_misses_no_margin_above_it(method: Method) -> None:
    hub = make_hub(method, models=6)
    above = 0
    passed: Counter[float] = Counter()
    for table in hub.tables:
        h, s = local_constants(table.calibration, method)
        margin = (h - distances(table.idx, table.z, hub.concepts.z, method).astype(np.float64)) / s
        dimensions, values = local_documents(table, hub.layout)
        for c in range(len(hub.concepts)):
            for t in (-3.0, -0.5, 0.0, 0.3, 1.0, 2.0, float(margin[c].max()) - 0.1):
                above += int((margin[c] > t).sum())
                for ease in (0.0, 0.3, EASE, 1.0):
                    query = np.zeros(2 * hub.layout.probes + 2)
                    places, numbers, least = threshold_query(hub.concepts.z[c], t, ease)
                    query[places] = numbers
                    score = (values * query[dimensions]).sum(axis=1)
                    assert (score > least - 1e-4)[margin[c] > t].all()
                    if t > 0:  # below, every query asks for the threshold itself
                        h_s = h / s
                        assert (score < least + 1e-4)[(h_s < t) & (h_s > ease**2 * t)].all()
                    passed[ease] += int((score > least).sum())
    assert 0 < above <= passed[EASE] < passed[0.0]


def test_outputs_that_cannot_reach_the_threshold_do_not_crowd_the_list(few: None) -> None:
    """Two hundred outputs with h / s = 1 or 5 and d / s = 0.5, while the best have 2 + 8: t = 10 - 2 = 8.

    Their scores above t itself would be (h/s - t)² > (d/s)², at least 9 > 0.25: every one of them.
    """
    hub = make_hub("whitened", models=1, outputs=200)
    best = table_of(hub.layout, [2.0] * 3 + [0.0] * 3, [8.0] * 3 + [2.0] * 3, hub.concepts, "org/a")
    low = table_of(hub.layout, [0.0] * 200, [-15.0] * 200, hub.concepts, "org/low")
    d = low.calibration.h.astype(np.float64)  # the local part is 0: h is the distance
    z_c = hub.concepts.z[0]
    for ratio, rounds in ((5.0, 1), (1.0, 2)):
        s, h = (2 * d).astype(np.float32), (2 * d * ratio).astype(np.float32)
        many = replace(low, calibration=replace(low.calibration, s=s, h=h))
        store = ArrayStore(hub.layout, [best, many], [Model(repo=t.repo, revision="r2") for t in (best, many)])
        assert len(store.query_local(*local_query(z_c, 8.0), 1000, 8.0)) >= 200
        found = Prefetch(store).candidates(hub.concepts, 0, 2)
        assert (found.certified, found.rounds) == (True, rounds)
        assert found.looked_at < 20
        assert {hit.repo for hit in found.near} == {"org/a"}


@pytest.mark.parametrize("method", TWO_PARTS)
def test_the_slack_is_many_times_the_rounding(method: Method) -> None:
    hub = make_hub(method)
    arrays, _ = packed(hub.tables)
    worst = 0.0
    for c in range(len(hub.concepts)):
        exact = np.concatenate(
            [margins(t.idx, t.z, t.anchor, t.calibration, hub.concepts, method)[c] for t in hub.tables]
        )
        vector = global_query(hub.concepts.take(c).directions(method == "whitened")[0])
        dense = np.concatenate([global_documents(t, method) for t in hub.tables]) @ vector
        h, s = local_constants(arrays.constants(slice(None)), method)
        idx, z = arrays.kept(slice(None))
        local = (h - distances(idx, z, hub.concepts.z[c : c + 1], method)[0]) / s
        worst = max(worst, float(np.abs(local + dense - exact).max()))
    assert 0 < worst < SLACK / 10
