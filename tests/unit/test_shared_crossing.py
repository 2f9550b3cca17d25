"""Two write one model of an index on a server at once, each at every step of the other: its record has its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.index import Index
from engine.remote import index_folder
from engine.schema import Model, ModelState
from engine.store.base import Written
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from tests.support.crossing import KilledError, Steps, store_of
from tests.support.servers import server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, make_index, put_model

STEPS = ("upsert_outputs", "write_model", "count_revision", "change_model", "remove_model", "standing", "clear")
REPO = "org/m"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, IndexWriter]]:
    """The working folder of one machine, and a writer of another."""
    folder = tmp_path_factory.mktemp("crossing")
    with server_addresses(folder / "server") as addresses, pytest.MonkeyPatch.context() as patch:
        address = addresses()
        patch.setenv("HUBHOUND_DATA", str(folder / "first"))
        mine = to_server(make_index(folder / "embedded" / "zoo").folder, address)
        patch.setenv("HUBHOUND_DATA", str(folder / "second"))
        with IndexWriter(index_folder(address)) as other:
            put_model(other, "org/original", THINGS, seed=7)
            yield mine, other


@pytest.fixture
def writers(place: tuple[Path, IndexWriter]) -> Iterator[tuple[Callable[[], IndexWriter], IndexWriter]]:
    """Makes writers of one machine, and one of another machine; the model is not there yet."""
    mine, other = place
    yield lambda: IndexWriter(mine), other
    other.remove_model(REPO)
    assert store_of(other).count_outputs() == 3


def put(writer: IndexWriter, revision: str) -> None:
    """Of the same revision all put the same."""
    number = int(revision[1:])
    put_model(writer, REPO, ANIMALS if number % 2 else THINGS, revision=revision, seed=number)


def put_copy(writer: IndexWriter) -> None:
    writer.put_copy(Model(repo=REPO, revision="c", state=ModelState.COPY, copy_of="org/original"))


def whole(writer: IndexWriter) -> None:
    """The record has its outputs, all of them, its responses are there, and nothing else is."""
    store = store_of(writer)
    record = store.model(REPO)
    claimed = 0 if record is None else record.outputs
    if record is not None and record.state is ModelState.INDEXED:
        assert store.count_revision(REPO, record.revision) == claimed
        assert writer.index.responses.has(REPO, record.revision)
    assert store.count_outputs() - store.count_revision("org/original", "r1") == claimed


ACTS: dict[str, Callable[[IndexWriter], None]] = {
    "put another": lambda writer: put(writer, "r2"),
    "put the same": lambda writer: put(writer, "r1"),
    "put the former": lambda writer: put(writer, "r0"),
    "remove": lambda writer: writer.remove_model(REPO),
    "copy": put_copy,
}


@pytest.mark.parametrize(
    ("act", "fate"),
    [("put another", "goes on"), ("put the former", "goes on"), ("remove", "goes on"), ("put another", "is killed")],
)
def test_somebody_else_at_every_step_of_a_put(
    writers: tuple[Callable[[], IndexWriter], IndexWriter], act: str, fate: str
) -> None:
    make, other = writers
    at, crossed = 0, True

    def meanwhile() -> None:
        ACTS[act](other)
        if fate == "is killed":
            raise KilledError

    with make() as writer:
        while crossed:
            other.remove_model(REPO)
            put(other, "r0")
            with Steps(writer, STEPS, at, meanwhile) as steps, suppress(KilledError):
                put(writer, "r1")
            if steps.crossed and fate == "is killed":  # it was not acknowledged: it is done again
                put(writer, "r1")
            whole(other)
            at, crossed = at + 1, steps.crossed
    assert at > 5


@pytest.mark.parametrize(
    ("mine", "act"), [("remove", "put the former"), ("remove", "copy"), ("copy", "put the former")]
)
def test_somebody_else_at_every_step_of_a_removal(
    writers: tuple[Callable[[], IndexWriter], IndexWriter], mine: str, act: str
) -> None:
    make, other = writers
    at, crossed = 0, True
    with make() as writer:
        while crossed:
            put(other, "r0")
            with Steps(writer, STEPS, at, lambda: ACTS[act](other)) as steps:
                ACTS[mine](writer)
            whole(other)
            at, crossed = at + 1, steps.crossed
    assert at > 3


@pytest.mark.parametrize("act", ["remove", "put another"])
def test_the_other_way_round_in_the_middle_of_the_others_put(
    writers: tuple[Callable[[], IndexWriter], IndexWriter], act: str
) -> None:
    """Outputs that are written again after a change are not what its writer may still remove."""
    make, other = writers
    with make() as writer:
        for at in range(2):
            put(other, "r1")
            with Steps(writer, ("standing", "clear"), at, lambda: put(other, "r1")) as steps:
                ACTS[act](writer)
            assert steps.crossed
            whole(other)


def test_a_removal_that_comes_late_takes_nothing_from_a_record_that_was_written_since(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    """Another one has seen its own record, and removes by it after a third has taken its place."""
    make, other = writers
    put(other, "r0")
    clear, late = store_of(other).clear, list[tuple[str, str | None, int]]()

    def meanwhile() -> None:
        other.store.clear = lambda *given: late.append(given)  # type: ignore[attr-defined]
        put(other, "r2")
        del other.store.clear  # type: ignore[attr-defined]

    with make() as writer, Steps(writer, ("upsert_outputs",), 0, meanwhile):
        put(writer, "r1")
    ((repo, kept, number),) = late
    assert (repo, kept) == (REPO, "r2")
    clear(repo, kept, number)
    whole(other)
    record = other.store.model(REPO)
    assert record is not None and record.revision == "r1"


def test_a_failure_does_not_replace_a_model_that_was_put_meanwhile(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    failed = Model(repo=REPO, revision="r1", state=ModelState.FAILED, reason="out of memory", detail="x")
    with make() as writer:
        store = store_of(writer)
        read = store._records._payload

        def late(repo: str) -> dict[str, object]:
            """It has looked, and found nothing, when another one puts the model."""
            store._records._payload = read  # type: ignore[method-assign]
            found = read(repo)
            put(other, "r1")
            return found

        store._records._payload = late  # type: ignore[method-assign]
        writer.record(failed)
        record = store.model(REPO)
        assert record is not None and record.state is ModelState.INDEXED
        whole(other)
        writer.remove_model(REPO)
        writer.record(failed)
        assert store.model(REPO) == failed
        writer.record(failed.model_copy(update={"detail": "again"}))  # of failures the last one counts
        record = store.model(REPO)
        assert record is not None and record.detail == "again"


def test_changes_of_one_record_do_not_undo_each_other(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    put(other, "r1")
    with make() as writer:
        mine, theirs = store_of(writer), store_of(other)
        seen: list[int | None] = []

        def liked(now: Model | None) -> Model | None:
            assert now is not None
            if not seen:
                theirs.change_model(REPO, lambda now: now.model_copy(update={"downloads": 7}) if now else None)
            seen.append(now.downloads)
            return now.model_copy(update={"likes": 3})

        before, number = mine.standing(REPO)
        written = mine.change_model(REPO, liked)
        assert seen == [None, 7]
        record, now = mine.standing(REPO)
        assert record is not None and (record.downloads, record.likes) == (7, 3)
        assert written.seq == now > written.replaced > number
        assert written.before is not None and before is not None and written.before.downloads == 7
        assert mine.change_model(REPO, lambda now: None) == Written(record, now, 0)
        assert mine.standing(REPO) == (record, now)
        assert mine.change_model("never/there", lambda now: now) == Written(None, 0, 0)


def test_what_a_killed_writer_left_goes_with_the_next_put(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    put(other, "r1")
    with make() as writer:
        store = store_of(writer)
        clear = store.clear

        def killed(*given: object) -> None:
            raise KilledError

        store.clear = killed  # type: ignore[method-assign]
        with pytest.raises(KilledError):
            put(writer, "r2")
        assert store.count_outputs() == 3 + 4 + 3
        store.clear = clear  # type: ignore[method-assign]
        put(writer, "r2")
        assert store.count_outputs() == 3 + 3
        writer.remove_model(REPO)
        assert store.count_outputs() == 3


def test_a_removal_takes_what_a_killed_first_put_left(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    with make() as writer:
        store = store_of(writer)

        def killed(model: Model) -> Written:
            raise KilledError

        store.write_model = killed  # type: ignore[method-assign]
        with pytest.raises(KilledError):
            put(writer, "r1")
    assert isinstance(other.store, ServerStore)
    other.remove_model(REPO)
    whole(other)
    number = other.store.newest()
    other.remove_model(REPO)
    assert other.store.newest() == number, "what is not there is not removed again"


def unacknowledged(make: Callable[[], IndexWriter], other: IndexWriter, act: Callable[[IndexWriter], None]) -> Index:
    """A writer is killed before it looks whether its number had been passed, which it had; that reader."""
    reader = Index(other.index.folder)
    with make() as writer:
        store = store_of(writer)
        real = store._records._put

        def slow(*given: object) -> None:
            put_model(other, "org/quicker", THINGS, seed=3)
            reader.snapshot()
            real(*given)  # type: ignore[arg-type]
            raise KilledError

        store._records._put = slow  # type: ignore[method-assign]
        with pytest.raises(KilledError):
            act(writer)
    return reader


def shown(reader: Index) -> set[str]:
    return {model.repo for model in reader.snapshot().models}


def test_a_record_that_was_not_acknowledged_reaches_readers_with_the_next_run(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    reader = unacknowledged(make, other, lambda writer: put(writer, "r1"))
    assert shown(reader) == {"org/original", "org/quicker"}
    with make() as again:
        known = again.store.model(REPO)
        assert known is not None
        again.complete(known)
    assert shown(reader) == {"org/original", "org/quicker", REPO}
    assert other.store.count_outputs() == 3 + 3 + 4
    other.remove_model("org/quicker")


def test_what_nobody_acknowledged_reaches_readers_with_the_next_change(
    writers: tuple[Callable[[], IndexWriter], IndexWriter],
) -> None:
    make, other = writers
    reader = unacknowledged(make, other, lambda writer: put(writer, "r1"))
    put_model(other, "org/quicker", ANIMALS, revision="r2", seed=3)
    assert shown(reader) == {"org/original", "org/quicker", REPO}
    # And a removal.
    other.remove_model("org/quicker")
    reader = unacknowledged(make, other, lambda writer: writer.remove_model(REPO))
    assert shown(reader) == {"org/original", "org/quicker", REPO}
    other.remove_model("org/quicker")
    assert shown(reader) == {"org/original"}
