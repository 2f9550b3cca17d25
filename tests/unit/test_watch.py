"""The counters of a crawl: rates worked out by hand on a clock of our own."""

from __future__ import annotations

import random
import sys
import threading

import pytest

from indexers import adding
from indexers.crawl.standing import BUCKETS_S, STAGES
from indexers.crawl.watch import MAX_REASONS, OTHER, Watch
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch(clock)


def test_the_stages_are_those_of_adding() -> None:
    assert STAGES == adding.STAGES


def test_a_fresh_watch(watch: Watch) -> None:
    now = watch.now()
    assert set(now.counts().values()) == {0}
    assert (now.models_per_min, now.outputs_per_min, now.bytes_per_s) == (0, 0, 0)
    assert (now.queue, now.remaining, now.share_done, now.seconds_left, now.since_stored_s) == (None,) * 5
    assert {taken.mean_s for taken in now.stages.values()} == {None}
    assert now.in_hand == ()


def test_what_is_counted(watch: Watch, clock: Clock) -> None:
    watch.listed(5, 3, 2, None)
    watch.listed(1, 0, 0, None)
    watch.stored(10, copy=False)
    watch.stored(1000, copy=True)
    watch.refused("gated")
    watch.refused("gated")
    watch.refused("too large")
    watch.failed("crashed")
    watch.retried("network", 7.5)
    watch.retried("network", 2.5)
    watch.gone()
    watch.child_born()
    watch.fetched(700)
    watch.fetched(300)
    watch.found({"stored": 40, "copies": 3})
    watch.found({"stored": 2, "failed": 1})
    clock.now += 4
    now = watch.now()
    assert now.counts() == {
        "listed": 11,
        "new": 6,
        "known": 3,
        "filtered": 2,
        "stored": 1,
        "copies": 1,
        "found": 46,
        "outputs": 10,  # a copy's were not written
        "refused": 3,
        "failed": 1,
        "retried": 2,
        "gone": 1,
        "bytes_fetched": 1000,
        "children": 1,
    }
    assert (now.refused, now.failed, now.retried) == ({"gated": 2, "too large": 1}, {"crashed": 1}, {"network": 2})
    assert now.retry_wait_s == 10
    assert now.found == {"stored": 42, "copies": 3, "refused": 0, "failed": 1}
    assert now.settled == 6 + 46
    assert now.models_per_min_overall == 2 * 60 / 4  # what was found is no work of ours
    assert (now.uptime_s, now.since_stored_s) == (4, 4)
    assert now.bytes_per_s == 250


def test_rates_of_a_short_run_are_of_all_of_it(watch: Watch, clock: Clock) -> None:
    for _ in range(4):
        clock.now += 30
        watch.stored(50, copy=False)
    now = watch.now()  # 4 models and 200 outputs in two minutes
    assert now.models_per_min == now.models_per_min_overall == 2
    assert now.outputs_per_min == now.outputs_per_min_overall == 100


def test_rates_of_a_long_run_are_of_the_last_ten_minutes(watch: Watch, clock: Clock) -> None:
    for _ in range(120):  # a model every second for two minutes, then one every 20 s for ten
        clock.now += 1
        watch.stored(1000, copy=False)
    for _ in range(30):
        clock.now += 20
        watch.stored(7, copy=False)
        watch.fetched(4000)
    now = watch.now()
    # 720 s have passed: the slot in hand began at 720 and the ring reaches back to 130: the models at 140, 160 ... 720.
    assert now.uptime_s == 720
    assert now.models_per_min == pytest.approx(60 * 30 / 590)
    assert now.outputs_per_min == pytest.approx(60 * 210 / 590)
    assert now.bytes_per_s == pytest.approx(120_000 / 590)
    assert now.models_per_min_overall == pytest.approx(150 / 12)
    assert now.outputs_per_min_overall == pytest.approx((120_000 + 210) / 12)


def test_rates_fall_to_nothing_when_nothing_happens(watch: Watch, clock: Clock) -> None:
    clock.now += 1000
    watch.stored(10, copy=False)
    clock.now += 585  # 1585: the ring reaches back to 990
    assert watch.now().models_per_min == pytest.approx(60 / 595)
    clock.now += 5
    assert watch.now().models_per_min == pytest.approx(60 / 590)  # 1590: to 1000, the model's own slot
    clock.now += 10
    assert watch.now().models_per_min == 0
    clock.now += 1e7  # and after months of quiet at once
    watch.stored(10, copy=False)
    assert watch.now().models_per_min == pytest.approx(0.1, rel=0.02)


def test_recent_rates_agree_with_a_list_of_events(watch: Watch, clock: Clock) -> None:
    """The ring against the slow way: remember everything and count it."""
    draw = random.Random(3)
    began, events = clock.now, []
    for _ in range(3000):
        clock.now += draw.choice([0.0, 0.3, 2.0, 11.0, 200.0 * draw.random() ** 8])
        outputs = draw.randrange(1, 1000)
        watch.stored(outputs, copy=False)
        events.append((clock.now - began, outputs))
        if draw.random() < 0.2:
            clock.now += draw.random() * 30
            elapsed = clock.now - began
            reach = max(0.0, elapsed // 10 * 10 - 590)
            seconds = elapsed - reach
            within = [outputs for at, outputs in events if at >= reach]
            if seconds > 1:
                assert watch.now().models_per_min == pytest.approx(60 * len(within) / seconds)
                assert watch.now().outputs_per_min == pytest.approx(60 * sum(within) / seconds)


def test_seconds_of_a_stage(watch: Watch, clock: Clock) -> None:
    for seconds in (0.1, 0.2, 30.0, 5000.0):
        watch.ended("fetch", "org/a", seconds)
    clock.now += 2000
    watch.ended("fetch", "org/a", 4.0)
    fetch = watch.now().stages["fetch"]
    assert fetch.count == 5
    assert fetch.seconds == pytest.approx(5034.3)
    assert fetch.mean_s == pytest.approx(1006.86)
    assert fetch.recent_mean_s == 4.0  # the others are more than ten minutes ago
    below = dict(zip(BUCKETS_S, fetch.buckets, strict=False))
    assert (below[0.03], below[0.1], below[0.3], below[3.0], below[10.0], below[30.0], below[1000.0]) == (
        0,
        1,
        2,
        2,
        3,
        4,
        4,
    )
    assert fetch.buckets[-1] == 5
    assert watch.now().stages["probe"].count == 0


def test_what_is_in_hand(watch: Watch, clock: Clock) -> None:
    watch.started("probe", "org/slow")
    clock.now += 10
    watch.started("fetch", "org/b")
    watch.started("fetch", "org/c")
    clock.now += 2
    watch.ended("fetch", "org/b", 2.0)
    held = [(item.stage, item.repo, item.seconds) for item in watch.now().in_hand]
    assert held == [("probe", "org/slow", 12), ("fetch", "org/c", 2)]
    watch.ended("fetch", "org/never-started", 1.0)  # counts, and harms nothing
    assert watch.now().stages["fetch"].count == 2


def test_time_left_once_the_listing_has_ended(watch: Watch, clock: Clock) -> None:
    watch.listing_began()
    watch.listed(40, 0, 60, None)
    watch.gauge("queue", 40)
    assert watch.now().remaining is None
    assert watch.now().seconds_left is None
    watch.listing_ended()
    watch.gauge("queue", 28)
    watch.started("probe", "org/a")
    watch.started("decode", "org/a")  # the same model
    watch.started("fetch", "org/b")
    watch.started("list", "hub")  # not a model
    clock.now += 120
    for _ in range(6):
        watch.stored(5, copy=False)
    for _ in range(2):
        watch.failed("crashed")
        watch.refused("gated")
    now = watch.now()
    assert now.remaining == 30
    assert now.share_done == 10 / 40
    assert now.seconds_left == pytest.approx(30 * 12)  # ten came to an end in 120 s
    assert now.rates()["seconds_left"] == pytest.approx(360)


def test_time_left_while_a_listing_of_known_length_runs(watch: Watch, clock: Clock) -> None:
    watch.listing_began(entries=1000)  # an earlier run got so far
    watch.listed(25, 50, 25, 1500)
    watch.gauge("queue", 10)
    clock.now += 60
    watch.stored(5, copy=False)
    now = watch.now()
    assert now.remaining == 10 + 100  # of the 400 entries to come a quarter will be new, as so far
    assert now.seconds_left == 110 * 60
    watch.listing_began()  # the next pass: the total is not known again
    assert watch.now().remaining is None


def test_nothing_left(watch: Watch, clock: Clock) -> None:
    watch.listing_ended()
    assert watch.now().remaining == 0
    assert watch.now().share_done is None  # of nothing
    watch.stored(1, copy=True)
    assert (watch.now().share_done, watch.now().seconds_left) == (1, 0)
    watch.gauge("queue", 5)
    clock.now += 5000
    assert watch.now().seconds_left is None  # there is work but it stands still


def test_trouble_with_the_listing_lasts_until_the_next_page(watch: Watch) -> None:
    watch.listing_trouble("504")
    watch.listing_trouble("503 " + "x" * 10_000)
    now = watch.now()
    assert now.listing_troubles == 2
    assert now.listing_trouble is not None
    assert now.listing_trouble.startswith("503")
    assert len(now.listing_trouble) < 500
    watch.listed(1, 0, 0, None)
    assert (watch.now().listing_troubles, watch.now().listing_trouble) == (2, None)


def test_levels(watch: Watch) -> None:
    watch.gauge("disk_bytes", 10)
    watch.gauge("disk_bytes", 7)
    watch.gauge("queue", 3)
    assert watch.now().gauges == {"disk_bytes": 7, "queue": 3}
    assert watch.now().queue == 3


def test_names_that_do_not_exist_are_a_mistake_of_the_program(watch: Watch) -> None:
    for call in (
        lambda: watch.gauge("temperature", 1),
        lambda: watch.started("cook", "org/a"),
        lambda: watch.ended("cook", "org/a", 1),
    ):
        with pytest.raises(ValueError, match="is not one of"):
            call()


def test_a_snapshot_does_not_change(watch: Watch) -> None:
    watch.failed("crashed")
    watch.gauge("queue", 1)
    watch.ended("load", "org/a", 1.0)
    before = watch.now()
    copy = (dict(before.failed), dict(before.gauges), before.stages["load"])
    watch.failed("crashed")
    watch.gauge("queue", 9)
    watch.ended("load", "org/a", 1.0)
    assert (before.failed, before.gauges, before.stages["load"]) == copy


def test_threads_lose_no_count() -> None:
    watch = Watch()
    rounds, workers = 1500, 8
    interval = sys.getswitchinterval()
    seen: list[int] = []
    done = threading.Event()

    def work(number: int) -> None:
        for i in range(rounds):
            repo = f"org/{number}"
            watch.started("probe", repo)
            watch.ended("probe", repo, 0.5)
            watch.stored(2, copy=False)
            watch.failed("crashed")
            watch.retried(f"reason {i % 3}", 1.0)
            watch.fetched(3)
            watch.listed(1, 1, 1, None)

    def read() -> None:
        while not done.is_set():
            now = watch.now()
            assert now.outputs == 2 * now.stored  # of one moment
            assert now.stages["probe"].buckets[-1] == now.stages["probe"].count
            seen.append(now.stored)

    try:
        sys.setswitchinterval(1e-4)
        reader = threading.Thread(target=read)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        reader.join()
    finally:
        sys.setswitchinterval(interval)
    now = watch.now()
    total = rounds * workers
    assert (now.stored, now.failed["crashed"], now.outputs) == (total, total, 2 * total)
    assert (sum(now.retried.values()), now.bytes_fetched, now.listed) == (total, 3 * total, 3 * total)
    assert (now.stages["probe"].count, now.in_hand) == (total, ())
    assert now.stages["probe"].seconds == pytest.approx(total / 2)
    assert seen == sorted(seen)
    assert seen


def size_of(thing: object, seen: set[int]) -> int:
    """Bytes of an object and of everything that it holds."""
    if id(thing) in seen or callable(thing):
        return 0
    seen.add(id(thing))
    inside: list[object] = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    if isinstance(thing, dict):
        inside += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set):
        inside += thing
    return sys.getsizeof(thing) + sum(size_of(item, seen) for item in inside)


def test_memory_stays_where_it_was_over_a_million_events(watch: Watch, clock: Clock) -> None:
    def events(count: int) -> None:
        # Strangers' names and texts differ every time, and not every stage that begins is told to end.
        for i in range(count // 10):
            clock.now += 0.5
            text = f"org/model-{clock.now:012.1f}"
            watch.started("fetch", text)
            watch.ended("fetch", text, 0.1)
            watch.started("probe", text)
            watch.fetched(i)
            watch.stored(10, copy=False)
            watch.failed(text)
            watch.refused(text)
            watch.retried(text, 1.0)
            watch.listing_trouble(text)
            watch.gauge("queue", i)

    events(30_000)  # everything that is bounded is full now
    before = size_of(watch, set())
    events(1_000_000)
    assert 100_000 < before < 1_000_000
    assert size_of(watch, set()) < before + 5000  # larger numbers, no more
    now = watch.now()
    assert now.stored == 103_000
    assert len(now.failed) <= MAX_REASONS + 1
    assert now.failed[OTHER] == 103_000 - MAX_REASONS
    assert len(now.in_hand) <= 1000


def test_half_a_surrogate_pair_can_be_written(watch: Watch) -> None:
    watch.failed("bad \ud800")
    assert next(iter(watch.now().failed)).encode() == b"bad \\ud800"
