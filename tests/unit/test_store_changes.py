"""The models of a store on a server change in one order, which nobody who follows it misses, whoever writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from engine.schema import Model, ModelState
from engine.store.base import StoreLayout
from engine.store.server import Change, ServerStore
from tests.support.output_tables import fast_folder, make_table
from tests.support.stores import GRPC_KINDS, SERVER_KINDS, server_place, standin_url

LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)


@pytest.fixture(params=[*SERVER_KINDS, *GRPC_KINDS])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], ServerStore]]:
    """Opens the same store again and again; over local mode all share one client, of which there can be one only."""
    with fast_folder(tmp_path) as folder, server_place(request.param, folder) as (client, name):
        first = client()
        ServerStore.create(first, name, LAYOUT)
        clients = [first]

        def again() -> ServerStore:
            if request.param != "local":
                clients.append(client())
            return ServerStore.open(clients[-1], name)

        yield again
        for each in clients:
            each.close()


@pytest.fixture
def store(opener: Callable[[], ServerStore]) -> ServerStore:
    return opener()


def model(repo: str, revision: str = "r1", **facts: Any) -> Model:
    return Model.model_validate({"repo": repo, "revision": revision, **facts})


class Follower:
    """Keeps a copy of the models by following the changes, as a mirror does."""

    def __init__(self, store: ServerStore) -> None:
        self.store = store
        self.since = 0
        self.models: dict[str, Model] = {}

    def catch_up(self) -> list[Change]:
        found = list(self.store.changes(self.since))
        for change in found:
            assert change.seq > self.since
            self.since = change.seq
            if change.model is None:
                self.models.pop(change.repo, None)
            else:
                self.models[change.repo] = change.model
        return found

    def is_right(self) -> bool:
        return sorted(self.models.values(), key=lambda one: one.repo) == self.store.models()


def test_changes_come_once_in_order_and_with_the_time(store: ServerStore) -> None:
    assert store.newest() == 0 and list(store.changes(0)) == []
    before = time.time_ns() // 1000
    for repo in ("org/b", "org/a", "org/c"):
        store.upsert_model(model(repo))
    after = time.time_ns() // 1000
    changes = list(store.changes(0))
    assert [change.repo for change in changes] == ["org/b", "org/a", "org/c"]
    assert [change.model for change in changes] == [store.model(repo) for repo in ("org/b", "org/a", "org/c")]
    assert before <= changes[0].seq < changes[1].seq < changes[2].seq == store.newest() <= after
    assert list(store.changes(changes[0].seq)) == changes[1:]
    assert list(store.changes(changes[2].seq)) == []
    store.upsert_model(model("org/b", "r2"))
    (again,) = store.changes(changes[2].seq)
    assert (again.repo, again.model) == ("org/b", store.model("org/b")) and again.seq > changes[2].seq
    assert [change.repo for change in store.changes(0)] == ["org/a", "org/c", "org/b"]


def test_a_removed_model_leaves_a_change_and_nothing_else(store: ServerStore) -> None:
    follower = Follower(store)
    for repo in ("org/a", "org/b"):
        store.upsert_model(model(repo))
    copy = model("z/copy", state=ModelState.COPY, copy_of="org/b", copied_revision="r1")
    store.upsert_model(copy)
    follower.catch_up()
    store.delete_model("z/copy")
    store.delete_model("org/a")
    newest = store.newest()
    store.delete_model("org/a")
    store.delete_model("never/there")
    assert store.newest() == newest, "what is not there is not removed again"
    assert [(c.repo, c.model) for c in follower.catch_up()] == [("z/copy", None), ("org/a", None)]
    assert follower.is_right() and list(follower.models) == ["org/b"]
    assert store.model("org/a") is None and store.copies("org/b") == [] and store.count("models") == 1
    assert store.records_of(["org/a", "org/b", "never/there"]) == {"org/b": follower.models["org/b"]}
    assert [point.payload["repo"] for point in store.stored("models")] == ["org/b"]
    store.upsert_model(model("org/a", "r3"))
    assert [c.model for c in follower.catch_up()] == [store.model("org/a")] and follower.is_right()


def test_a_clock_that_is_behind_does_not_hide_a_change(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, behind = opener(), opener()
    follower = Follower(opener())
    now = time.time_ns()
    monkeypatch.setattr("engine.store.server_models.time.time_ns", lambda: now + 10**12)
    ahead.upsert_model(model("org/a"))
    follower.catch_up()
    monkeypatch.setattr("engine.store.server_models.time.time_ns", lambda: now - 10**12)
    behind.upsert_model(model("org/b"))
    behind.delete_model("org/a")
    assert [change.repo for change in follower.catch_up()] == ["org/b", "org/a"]
    assert follower.is_right()


def test_a_write_that_was_passed_is_found_all_the_same(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = opener(), opener()
    follower = Follower(opener())
    put = slow._records._put
    first: list[int] = []

    def late(payloads: Any, numbers: dict[str, int], *more: Any) -> None:
        if not first:  # the number is taken; now another writes and the follower passes it
            first.extend(numbers.values())
            quick.upsert_model(model("org/quick"))
            follower.catch_up()
            assert follower.since > first[0]
        put(payloads, numbers, *more)

    monkeypatch.setattr(slow._records, "_put", late)
    slow.upsert_model(model("org/slow"))
    assert [change.repo for change in follower.catch_up()] == ["org/slow"]
    assert follower.is_right()


def test_two_that_take_the_same_number_do_not_share_it(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opener(), opener()
    follower = Follower(opener())
    clock = iter([10**15] * 2)
    real = time.time_ns
    monkeypatch.setattr("engine.store.server_models.time.time_ns", lambda: next(clock, real()))
    put = one._records._put
    done: list[bool] = []

    def meanwhile(payloads: Any, numbers: dict[str, int], *more: Any) -> None:
        if not done:
            done.append(True)
            two.upsert_model(model("org/two"))
            follower.catch_up()
            assert set(numbers.values()) == {follower.since}
        put(payloads, numbers, *more)

    monkeypatch.setattr(one._records, "_put", meanwhile)
    one.upsert_model(model("org/one"))
    assert [change.repo for change in follower.catch_up()] == ["org/one"]
    assert follower.is_right()


def test_a_request_that_is_executed_late_undoes_nothing(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, follower = opener(), Follower(opener())
    kept: list[tuple[Any, ...]] = []
    put = store._records._put

    def keep(*given: Any) -> None:
        kept.append(given)
        put(*given)

    monkeypatch.setattr(store._records, "_put", keep)
    store.upsert_model(model("org/a", "old"))
    store.upsert_model(model("org/a", "new"))
    store.delete_model("org/a")
    store.upsert_model(model("org/b"))
    follower.catch_up()
    for given in kept:  # every request comes once more, as from a network that had held it back
        put(*given)
    assert follower.catch_up() == []
    assert [one.repo for one in store.models()] == ["org/b"] and follower.is_right()


def test_two_writers_of_one_model_agree_with_who_follows(
    opener: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opener(), opener()
    follower = Follower(opener())
    put = one._records._put
    done: list[bool] = []

    def meanwhile(*given: Any) -> None:
        if not done:
            done.append(True)
            two.upsert_model(model("org/a", "two"))
            follower.catch_up()
        put(*given)

    monkeypatch.setattr(one._records, "_put", meanwhile)
    one.upsert_model(model("org/a", "one"))
    follower.catch_up()
    assert follower.models["org/a"].revision == "one" and follower.is_right()


def test_many_models_are_restored_with_numbers_of_their_own(store: ServerStore) -> None:
    follower = Follower(store)
    store.upsert_model(model("org/000"))
    source = [model(f"org/{i:03d}", outputs=i) for i in range(300)]
    points = [type(next(store.stored("models")))(one.point_id, _payload(one), [], [], []) for one in source]
    follower.catch_up()
    store.restore("models", points)
    changes = follower.catch_up()
    assert len(changes) == 300 and len({change.seq for change in changes}) == 300
    assert follower.is_right() and store.models() == source


def test_followers_miss_nothing_of_many_writers(tmp_path: Path) -> None:
    url, name = standin_url(), f"many_{tmp_path.name}_{time.time_ns()}"
    writers, each = 4, 8
    store = ServerStore.create(_client(url), name, LAYOUT)
    follower = Follower(ServerStore.open(_client(url), name))
    trouble: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with ServerStore.open(_client(url), name) as mine:
                for i in range(each):
                    repo = f"org/{i % 3 if number % 2 else f'{number}-{i}'}"  # some models are written by several
                    if i == 5:
                        mine.delete_model(repo)
                    else:
                        mine.upsert_model(model(repo, f"{number}-{i}"))
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    passes = 0
    while any(thread.is_alive() for thread in threads):
        follower.catch_up()
        passes += 1
    for thread in threads:
        thread.join()
    follower.catch_up()
    assert trouble == [] and passes > 1
    assert follower.is_right() and len(follower.models) >= writers // 2 * (each - 1)
    store.destroy()
    for one in (store, follower.store):
        one.close()


def test_outputs_of_many_models_in_few_requests(store: ServerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for i in range(30):
        table = make_table(LAYOUT, f"org/{i:02d}", seed=i, m=3)
        store.upsert_outputs(table)
        models.append(model(f"org/{i:02d}", outputs=3))
    gone = model("org/05", "gone", outputs=3)
    asked = []
    scroll = store.client.scroll
    monkeypatch.setattr(store.client, "scroll", lambda *given, **more: asked.append(given) or scroll(*given, **more))
    order = [models[7], gone, models[2], *models[10:]]
    for read in (store.iter_outputs, store.outputs_of):
        assert [table.repo for table in read(order)] == [one.repo for one in (models[7], models[2], *models[10:])]
    assert len(asked) == 2
    monkeypatch.setattr("engine.store.server_query._OUTPUTS", 10)
    assert [table.repo for table in store.iter_outputs(order)] == [order[0].repo, *(m.repo for m in order[2:])]
    assert len(asked) == 2 + 8, "never more than ten outputs together"


def test_who_is_calibrated_otherwise(store: ServerStore) -> None:
    assert not store.calibrated_otherwise("f" * 64)
    store.upsert_model(model("org/a", calibration="f" * 64))
    store.upsert_model(model("org/b", state=ModelState.FAILED))
    store.upsert_model(model("org/c", state=ModelState.COPY, copy_of="org/a", copied_revision="r1"))
    assert not store.calibrated_otherwise("f" * 64) and store.calibrated_otherwise("e" * 64)
    store.upsert_model(model("org/d"))
    assert store.calibrated_otherwise("f" * 64), "a model without constants of this background"
    store.delete_model("org/d")
    assert not store.calibrated_otherwise("f" * 64)


def _client(url: str) -> QdrantClient:
    from engine.store.address import connect

    return connect(url)


def _payload(one: Model) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_none=True)
