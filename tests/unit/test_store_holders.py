"""On a server every output knows who has it, so that a search can be limited; it never knows too few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.schema import Model, ModelState, output_point_id
from engine.store import records
from engine.store.base import StoreFilter, StoreHit, StoreLayout
from engine.store.server import ServerStore
from tests.support.output_tables import fast_folder, make_table
from tests.support.stores import SERVER_KINDS, server_place

N, D = 40, 4
LAYOUT = StoreLayout(probes=N, top_r=6, dimension=D)
QUERY = np.random.default_rng(3).standard_normal(D + 1).astype(np.float32)


@pytest.fixture(params=SERVER_KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], ServerStore]]:
    with fast_folder(tmp_path) as folder, server_place(request.param, folder) as (client, name):
        first = client()
        ServerStore.create(first, name, LAYOUT)
        yield lambda: ServerStore.open(first, name)
        first.close()


@pytest.fixture
def store(opener: Callable[[], ServerStore]) -> ServerStore:
    return opener()


def put(store: ServerStore, repo: str, revision: str = "r1", m: int = 4, **facts: Any) -> Model:
    model = Model.model_validate({"repo": repo, "revision": revision, "outputs": m, **facts})
    store.upsert_outputs(make_table(LAYOUT, repo, revision, m=m))
    store.upsert_model(model)
    store.delete_outputs(repo, keep_revision=revision)
    return model


def copy(repo: str, original: str, revision: str = "r1", **facts: Any) -> Model:
    given = {"repo": repo, "revision": "x", "state": "copy", "copy_of": original, "copied_revision": revision, **facts}
    return Model.model_validate(given)


def holders(store: ServerStore, repo: str, revision: str = "r1", output: int = 0) -> list[str] | None:
    """Whom an output names, None if it names nobody yet."""
    (point,) = store.client.retrieve(f"{store.name}_outputs", [output_point_id(repo, revision, output)])
    found = (point.payload or {}).get("holders")
    return None if found is None else [one["model"] for one in found]


def repos(hits: list[StoreHit]) -> set[str]:
    return {hit.repo for hit in hits}


def test_filters_agree_with_the_records(store: ServerStore) -> None:
    models = [
        put(store, "org/A", library="Timm", licence="MIT", architecture="ViT", parameters=100, downloads=5),
        put(store, "org/b", library="timm", licence="apache-2.0", parameters=5_000_000_000, downloads=0),
        put(store, "x/c", library="transformers", licence="mit", architecture="resnet"),
        put(store, "x/d"),
    ]
    copies = [copy("z/one", "x/d", library="onnx", parameters=7), copy("z/two", "x/d", licence="mit", downloads=9)]
    for one in copies:
        store.upsert_model(one)
    texts = {"library": ["timm", "onnx"], "licence": ["mit"], "architecture": ["vit"], "model": ["org/a", "z/two"]}
    cases = [
        StoreFilter({key: tuple(values)}, most, least)
        for key, values in texts.items()
        for most in (None, 7, 4e9)
        for least in (None, 5)
    ]
    cases += [
        StoreFilter({"library": ("timm", "transformers"), "licence": ("mit",)}),
        StoreFilter({}),
        StoreFilter({"model": ()}),
    ]
    sizes = set()
    for where in cases:
        expected = set()
        for model in models:
            holding = [model, *(one for one in copies if one.copy_of == model.repo)]
            if any(satisfies(one, where) for one in holding):
                expected.add(model.repo)
        assert repos(store.query_global(QUERY, 100, where)) == expected, where
        sparse = records.local_query(np.ones(N), 0.0)
        assert repos(store.query_local(*sparse, 100, where=where)) == expected, where
        assert store.count_outputs(where) == 4 * len(expected)
        sizes.add(len(expected))
    assert sizes >= {0, 1, 2, 3, 4}
    assert store.count_outputs() == 16


def satisfies(model: Model, where: StoreFilter) -> bool:
    facts = {"model": model.repo, **{key: getattr(model, key) for key in ("library", "licence", "architecture")}}
    texts = all(facts[key] is not None and facts[key].lower() in values for key, values in where.texts.items())
    most = where.max_parameters is None or (model.parameters is not None and model.parameters <= where.max_parameters)
    least = where.min_downloads is None or (model.downloads is not None and model.downloads >= where.min_downloads)
    return texts and most and least


def test_outputs_with_and_without_labels(store: ServerStore) -> None:
    put(store, "org/a", m=7, library="timm")  # every other output has a label
    with_label = store.query_global(QUERY, 100, StoreFilter({}, labelled=True))
    without = store.query_global(QUERY, 100, StoreFilter({"library": ("timm",)}, labelled=False))
    assert {hit.output for hit in with_label} == {0, 4, 8, 12} and {hit.output for hit in without} == {2, 6, 10}
    assert store.count_outputs(StoreFilter({}, labelled=True)) == 4
    assert store.query_global(QUERY, 100, StoreFilter({"library": ("onnx",)}, labelled=True)) == []


def test_filters_and_thresholds_together(store: ServerStore) -> None:
    for i in range(3):
        put(store, f"org/{i}", library="timm" if i else "onnx", m=8)
    sparse = records.local_query(np.random.default_rng(1).standard_normal(N), 0.2)
    every = store.query_local(*sparse, 100)
    threshold = every[10].score
    found = store.query_local(*sparse, 100, threshold, StoreFilter({"library": ("timm",)}))
    assert found == [hit for hit in every if hit.score > threshold and hit.repo != "org/0"]


def test_distinct_values_of_holders(store: ServerStore) -> None:
    assert store.distinct("library") == []
    put(store, "org/a", library="Timm", licence="MIT")
    put(store, "org/b", library="timm")
    store.upsert_model(copy("z/one", "org/b", library="ONNX"))
    assert store.distinct("library") == ["onnx", "timm"] and store.distinct("licence") == ["mit"]
    assert store.distinct("model") == ["org/a", "org/b", "z/one"] and store.distinct("architecture") == []
    assert store.distinct("model", limit=3) is not None and store.distinct("model", limit=2) is None


def test_holders_follow_copies_and_revisions(store: ServerStore) -> None:
    put(store, "org/a")
    put(store, "org/b")
    store.upsert_model(copy("z/c", "org/a"))
    store.upsert_model(copy("a/c", "org/a"))
    store.upsert_model(copy("z/stale", "org/a", "r0"))
    assert holders(store, "org/a") == ["org/a", "a/c", "z/c"]
    store.upsert_model(copy("z/c", "org/b"))  # moves
    assert holders(store, "org/a") == ["org/a", "a/c"] and holders(store, "org/b") == ["org/b", "z/c"]
    put(store, "a/c")  # is a model of its own
    assert holders(store, "org/a") == ["org/a"] and holders(store, "a/c") == ["a/c"]
    store.delete_model("z/c")
    assert holders(store, "org/b") == ["org/b"]
    store.upsert_model(copy("n/next", "org/b", "r2"))  # as a writer does just before the original's new revision
    assert holders(store, "org/b") == ["org/b"]
    put(store, "org/b", "r2")
    assert holders(store, "org/b", "r2") == ["org/b", "n/next"]


def test_outputs_that_are_written_again_keep_their_holders(store: ServerStore) -> None:
    put(store, "org/a", library="timm")
    store.upsert_model(copy("z/c", "org/a"))
    store.upsert_outputs(make_table(LAYOUT, "org/a", "r1", m=4, seed=9))
    assert holders(store, "org/a") == ["org/a", "z/c"]
    points = [point for point in store.stored("outputs")]
    assert not any({"holders", "labelled"} & set(point.payload) for point in points)
    store.restore("outputs", points)
    assert holders(store, "org/a") == ["org/a", "z/c"] and store.count_outputs(StoreFilter({}, labelled=True)) == 2
    store.upsert_outputs(make_table(LAYOUT, "org/a", "r2", m=4))
    assert holders(store, "org/a", "r2") is None, "nobody has them before the record says so"


def test_restored_models_get_their_holders_in_any_order(store: ServerStore) -> None:
    put(store, "org/a", library="timm")
    put(store, "org/b")
    store.upsert_model(copy("z/c", "org/a", licence="mit"))
    models, outputs = list(store.stored("models")), list(store.stored("outputs"))
    for order in itertools.permutations(models):
        for repo in ("z/c", "org/a", "org/b"):
            store.delete_model(repo)
            store.delete_outputs(repo)
        store.restore("outputs", outputs)
        assert holders(store, "org/a") is None
        for point in order:
            store.restore("models", [point])
        assert holders(store, "org/a") == ["org/a", "z/c"] and holders(store, "org/b") == ["org/b"]


def test_writers_of_copies_do_not_lose_each_other(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opener(), opener()
    put(one, "org/a")
    replace = one._records._replace
    done: list[bool] = []

    def meanwhile(*given: Any) -> int:
        if not done:
            done.append(True)
            two.upsert_model(copy("z/two", "org/a"))
        return replace(*given)

    monkeypatch.setattr(one._records, "_replace", meanwhile)
    one.upsert_model(copy("z/one", "org/a"))
    assert holders(one, "org/a") == ["org/a", "z/one", "z/two"]
    write = one._records._set_holders
    done.clear()

    def overtaken(made: Any) -> None:  # what is about to be written is out of date by then
        if not done:
            done.append(True)
            two.delete_model("z/two")
        write(made)

    monkeypatch.setattr(one._records, "_set_holders", overtaken)
    one.upsert_model(copy("z/three", "org/a"))
    assert holders(one, "org/a") == ["org/a", "z/one", "z/three"]


class Killed(BaseException):
    """Stands for the end of the process."""


STEPS: dict[str, Callable[[ServerStore], object]] = {
    "a new revision": lambda store: put(store, "org/a", "r2", m=3, library="onnx"),
    "other facts": lambda store: put(store, "org/a", library="onnx"),
    "a copy": lambda store: store.upsert_model(copy("z/new", "org/a", library="onnx")),
    "a copy that moves": lambda store: store.upsert_model(copy("z/c", "org/b", library="onnx")),
    "a copy of its own": lambda store: put(store, "z/c", "r1", library="onnx"),
    "a copy that goes": lambda store: store.delete_model("z/c"),
    "a model that goes": lambda store: (store.delete_model("org/b"), store.delete_outputs("org/b")),
}


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_a_kill_at_any_request_leaves_holders_enough_and_is_made_good(
    name: str, executed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = STEPS[name]
    with fast_folder(tmp_path) as folder, server_place("local", folder) as (client, index):
        shared = client()
        for at in itertools.count(1):
            store = ServerStore.create(shared, f"{index}_{at}", LAYOUT)
            put(store, "org/a", library="timm")
            put(store, "org/b", library="timm")
            store.upsert_model(copy("z/c", "org/a", library="mine"))
            with monkeypatch.context() as patch:
                counter = dying(patch, store, at, executed)
                with suppress(Killed):
                    step(store)
            assert counter[0] <= at
            check_holders(ServerStore.open(shared, store.name))
            step(store)  # whoever repeats it finds it as if nothing had been
            check_holders(store, exactly=True)
            if counter[0] < at:
                break
        assert at > 2, "there was more than one request to be killed at"
        shared.close()


def dying(patch: pytest.MonkeyPatch, store: ServerStore, at: int, executed: bool) -> list[int]:
    """Makes the process end at one of its writing requests; counts them."""
    counter = [0]

    def request(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        counter[0] += 1
        if counter[0] == at and not executed:
            raise Killed
        answer = call(*given, **more)
        if counter[0] == at:
            raise Killed
        return answer

    for method in ("upsert", "batch_update_points", "delete", "set_payload"):
        patch.setattr(store.client, method, partial(request, getattr(store.client, method)))
    return counter


def check_holders(store: ServerStore, exactly: bool = False) -> None:
    """Every output that counts names all that have it, with the facts of their records; exactly: nobody else."""
    models = {model.repo: model for model in store.models()}
    for model in models.values():
        if model.state is not ModelState.INDEXED:
            continue
        own = [one for one in models.values() if one.copy_of == model.repo and one.copied_revision == model.revision]
        expected = [{key: value for key, value in facts(one).items() if value is not None} for one in (model, *own)]
        points, _ = store.client.scroll(
            f"{store.name}_outputs", limit=100, with_payload=True, scroll_filter=None, with_vectors=False
        )
        mine = [p.payload or {} for p in points if (p.payload or {})["repo"] == model.repo]
        mine = [payload for payload in mine if payload["revision"] == model.revision]
        assert len(mine) == model.outputs
        for payload in mine:
            missing = [one for one in expected if one not in payload["holders"]]
            assert missing == []
            if exactly:
                assert payload["holders"] == expected


def facts(model: Model) -> dict[str, Any]:
    texts = {"model": model.repo, "library": model.library, "licence": model.licence}
    lower = {key: value and value.lower() for key, value in texts.items()}
    return {**lower, "parameters": model.parameters, "downloads": model.downloads}
