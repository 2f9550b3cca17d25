"""``hubhound crawl status``, ``why`` and ``retry``: the questions one asks a crawl's journal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from query.cli.crawl_options import shard_of
from query.cli.output import data, data_json, format_option, index_option, note, size, table

if TYPE_CHECKING:
    from indexers.crawl.heartbeat import Heartbeat
    from indexers.crawl.journal import Journal
    from indexers.crawl.journal_report import Event, Failure, Queue, Rates, Row, SourceState

_HOUR_S = 3600.0
_SHOWN_FAILURES = 20

_SHARD = click.option(
    "--shard",
    callback=shard_of,
    metavar="I/N",
    help="Of an index on a server: the part that was crawled from this machine.",
)


@click.command(
    epilog="""
\b
Examples:
  hubhound crawl status --index zoo
  hubhound crawl status --index zoo --format json
"""
)
@index_option
@_SHARD
@format_option
def status(index_path: str, shard: tuple[int, int] | None, form: str) -> None:
    """Tell how far a crawl is: models by state, rates, failures by reason, the queue and the listings.

    Works while the crawl runs, after it, and after it was killed. The quiet format is the states with their counts.
    """
    from indexers.crawl.heartbeat import FILE as HEARTBEAT
    from indexers.crawl.heartbeat import read

    with _journal(index_path, shard, read_only=True) as journal:
        heartbeat = read(journal.path.with_name(HEARTBEAT))
        counts = {state.value: count for state, count in journal.counts().items()}
        found = journal.adopted()
        failures, queue, sources, now = journal.failures(), journal.queue(), journal.sources(), journal.now()
        rates = {"last hour": journal.rates(_HOUR_S), "since the start": journal.rates()}
    if form == "quiet":
        for state, count in counts.items():
            data(f"{state} {count}")
        return
    if form == "json":
        data_json(
            {
                "running": _is_running(heartbeat),
                "pid": heartbeat.beat.pid if heartbeat is not None else None,
                "heartbeat_age_s": _rounded(heartbeat.age_s if heartbeat is not None else None),
                "models": counts,
                "found_in_index": found,
                "queue": {
                    "due": queue.due,
                    "waiting": queue.waiting,
                    "oldest_s": _rounded(queue.oldest_s),
                    "next_try_s": _rounded(queue.next_try_s),
                },
                "rates": {name.replace(" ", "_"): _rates_json(value) for name, value in rates.items()},
                "failures": [
                    {"state": f.state.value, "reason": f.reason, "count": f.count, "model": f.repo, "detail": f.detail}
                    for f in failures
                ],
                "sources": [_source_json(source) for source in sources],
            }
        )
        return
    table(None, ["state", ("models", "right")], [[state, f"{count:,}"] for state, count in counts.items()])
    _show_rates(rates)
    if failures:
        _show_failures(failures)
    if sources:
        _show_sources(sources, now)
    if found:
        note(f"{found:,} of those stored were found in the index: no crawl of this journal has probed them")
    note(_running(heartbeat))
    note(_waiting(queue))
    if failures:
        note(f"more about one: hubhound crawl why MODEL --index {_place(index_path, shard)}")


@click.command(
    epilog="""
\b
Examples:
  hubhound crawl retry --index zoo --reason network
  hubhound crawl retry --index zoo org/name org/other
  hubhound crawl retry --index zoo --reason gated org/name
"""
)
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@index_option
@click.option("--reason", help="All that failed or were refused for it, as 'crawl status' names it.")
@_SHARD
@format_option
def retry(
    models: tuple[str, ...], index_path: str, reason: str | None, shard: tuple[int, int] | None, form: str
) -> None:
    """Put models that failed or were refused back into the queue, and end the wait of those that would be tried later.

    Give MODELs, or a --reason, or both for those of the MODELs with that reason. Works while the crawl runs; what the
    crawl's filters refuse will be refused again when it is listed next.
    """
    from engine.errors import InputError

    if not models and reason is None:
        raise click.UsageError("give a --reason, or one MODEL at least")
    with _journal(index_path, shard, read_only=True) as journal:
        reasons = journal.reasons()
        for model in models:
            if not journal.rows(model):
                raise InputError(_unknown(model, index_path, shard, "retry"))
    if reason is not None and reason not in reasons:
        there = ", ".join(repr(name) for name in reasons) or "none, nothing failed or was refused"
        raise InputError(f"there is no reason {reason!r} to try again, there are: {there}")
    with _journal(index_path, shard, read_only=False) as journal:
        if models:
            put_back = {model: journal.retry(reason, model) for model in dict.fromkeys(models)}
            total = sum(put_back.values())
        else:
            put_back, total = {}, journal.retry(reason)
    if form == "json":
        data_json({"put_back": total, "models": put_back})
    elif form == "quiet":
        data(str(total))
    for model, count in put_back.items():
        if not count:
            note(f"{model} was left as it is: it neither failed, nor was refused, nor waits")
    note(f"{total:,} put back" + (", the crawl takes them next" if total else ""))


@click.command(
    epilog="""
\b
Examples:
  hubhound crawl why timm/resnet50.a1_in1k --index zoo
  hubhound crawl why timm/resnet50.a1_in1k --index zoo --format json
"""
)
@click.argument("model")
@index_option
@_SHARD
@format_option
def why(model: str, index_path: str, shard: tuple[int, int] | None, form: str) -> None:
    """Tell what became of a MODEL, revision by revision, and what can be done about it.

    The quiet format is one line a revision, with its state.
    """
    from engine.errors import InputError

    with _journal(index_path, shard, read_only=True) as journal:
        rows, events, now = journal.rows(model), journal.history(model), journal.now()
        if not rows:
            raise InputError(_unknown(model, index_path, shard, "why"))
        copies = journal.copies_of(model)
    if form == "json":
        revisions = [_row_json(row, [event for event in events if event.revision == row.revision]) for row in rows]
        data_json({"model": model, "revisions": revisions, "copies": copies})
        return
    if form == "quiet":
        for row in rows:
            data(f"{row.revision} {row.state}")
        return
    for row in rows:
        data(f"{_clean(model)}@{row.revision}: {_clean(_fate(row, now))}")
    if copies:
        data(f"copies of it: {', '.join(copies)}")
    history = [
        [_moment(event.at), event.revision[:12], event.state.value, _because(event.reason, event.detail)]
        for event in events
    ]
    if history:
        table(None, ["when (UTC)", "revision", "state", "why"], history)
    for row in rows:
        hint = _hint(row, model, _place(index_path, shard))
        if hint:
            note(hint)


def _journal(index_path: str, shard: tuple[int, int] | None, *, read_only: bool) -> Journal:
    from engine.errors import InputError
    from engine.remote import index_folder
    from engine.store.address import ServerAddress
    from indexers.crawl.home import home_of, shards_in
    from indexers.crawl.journal import FILE, Journal

    index = index_folder(index_path, offline=True)
    shared = ServerAddress.is_server(index_path)
    path = home_of(index, shard, shared=shared) / FILE
    if not path.is_file():
        parts = shards_in(index) if shared else []
        part = "" if shard is None else f"part {shard[0]}/{shard[1]} of "
        if parts:
            told = (
                f"no crawl of {part}the index {index_path}" if part else f"the index {index_path} was crawled in parts"
            )
            raise InputError(f"{told}, name one: --shard {' or '.join(parts)}")
        raise InputError(
            f"there has been no crawl of {part}the index {index_path}: begin one with "
            f"'hubhound crawl --index {_place(index_path, shard)} --source hub'"
        )
    return Journal(path, read_only=read_only)


def _unknown(model: str, index_path: str, shard: tuple[int, int] | None, command: str) -> str:
    from indexers.crawl.filters import part_of

    if shard is not None and (part := part_of(model, shard[1])) != shard[0]:
        there = _place(index_path, (part, shard[1]))
        return (
            f"{model!r} belongs to part {part}/{shard[1]}, not to {shard[0]}/{shard[1]}: where that is crawled, ask "
            f"'hubhound crawl {command} {model} --index {there}'"
        )
    return (
        f"the crawl has not met a model {model!r}: check its name, or add it with "
        f"'hubhound index add {model} --index {index_path}'"
    )


def _fate(row: Row, now: float) -> str:
    """What became of a revision, in words."""
    because = _because(row.reason, row.detail)
    took = sum(row.seconds.values())
    match row.state.value:
        case "listed" if row.next_try > now:
            fate = f"will be tried again in {_span(row.next_try - now)}, after {_times(row.attempts)}: {because}"
        case "listed":
            fate = "waits to be fetched" + (f" again ({because})" if because else "")
        case "refused":
            fate = "was refused" + ("" if row.attempts else " when it was listed, before anything was fetched")
            fate += f": {because}"
        case "failed":
            fate = f"failed after {_times(row.attempts)}: {because}"
        case "stored" if row.copy_of is not None:
            fate = f"is in the index as a copy of {row.copy_of}"
        case "stored":
            how = f", it took {_span(took)}" if took else ", and was found there" * (not row.attempts)
            fate = f"is in the index with {row.outputs:,} outputs{how}"
        case "gone":
            fate = f"is gone: {because}"
        case under_way:
            fate = f"is under way, {under_way} since {_span(now - row.changed_at)}, {_times(row.attempts)} so far"
    return fate


def _place(index_path: str, shard: tuple[int, int] | None) -> str:
    """As a command takes it."""
    return index_path if shard is None else f"{index_path} --shard {shard[0]}/{shard[1]}"


def _hint(row: Row, model: str, place: str) -> str | None:
    """What one can do about a revision."""
    state = row.state.value
    if state == "refused" and not row.attempts:
        return "the crawl's filters refuse it: crawl with others, it is taken when it is listed again"
    if state in ("failed", "refused") or (state == "listed" and row.reason is not None):
        return f"try it again: hubhound crawl retry {model} --index {place}"
    if row.in_hand:
        return "if no crawl runs it was killed: the next one begins with this model again"
    if state == "listed":
        return f"see whether the crawl runs: hubhound crawl status --index {place}"
    return None


def _show_rates(rates: dict[str, Rates]) -> None:
    stages = list(next(iter(rates.values())).seconds)
    columns: list[str | tuple[str, str]] = [
        "",
        *[(name, "right") for name in ("time", "models", "/min", "outputs", "/min", "fetched")],
    ]
    rows = []
    for name, rate in rates.items():
        means = [f"{value:.2f}" if value is not None else "-" for value in rate.seconds.values()]
        numbers = [f"{rate.models:,}", f"{rate.models_per_min:.1f}", f"{rate.outputs:,}", f"{rate.outputs_per_min:.0f}"]
        rows.append([name, _span(rate.span_s), *numbers, size(rate.size_bytes), *means])
    table(None, [*columns, *[(f"{stage} s", "right") for stage in stages]], rows)


def _show_failures(failures: list[Failure]) -> None:
    rows = [
        ["tried again" if f.state == "listed" else f.state.value, f.reason, f"{f.count:,}", f.repo, f.detail or ""]
        for f in failures[:_SHOWN_FAILURES]
    ]
    table(None, ["state", "reason", ("models", "right"), "for example", "what was found"], rows)
    if len(failures) > _SHOWN_FAILURES:
        note(f"{len(failures) - _SHOWN_FAILURES} more reasons: --format json has them all")


def _show_sources(sources: list[SourceState], now: float) -> None:
    rows = []
    for source in sources:
        last = f"{_span(now - source.last_full)} ago" if source.last_full is not None else "never"
        unfinished = f"{source.unfinished}, {source.entries:,} entries so far" if source.unfinished else "-"
        rows.append([source.name, last, source.watermark or "-", unfinished])
    table(None, ["source", "last full pass", "seen up to", "unfinished pass"], rows)


def _is_running(heartbeat: Heartbeat | None) -> bool:
    from indexers.crawl.heartbeat import STALE_S

    return heartbeat is not None and heartbeat.alive and heartbeat.age_s < STALE_S


def _running(heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return "no crawl runs"
    who = f"process {heartbeat.beat.pid} on {heartbeat.beat.host}"
    if _is_running(heartbeat):
        return f"the crawl runs: {who}, {heartbeat.beat.state}"
    age = _span(heartbeat.age_s)
    if heartbeat.alive:
        return f"the crawl hangs: {who} runs, but has given no sign of life for {age}"
    return f"no crawl runs: {who} ended without a word, its last sign of life was {age} ago"


def _waiting(queue: Queue) -> str:
    text = f"{queue.due:,} due"
    if queue.oldest_s is not None:
        text += f", the oldest for {_span(queue.oldest_s)}"
    if queue.next_try_s is not None:
        text += f"; {queue.waiting:,} wait for another try, the next in {_span(queue.next_try_s)}"
    return text


def _rates_json(rates: Rates) -> dict[str, Any]:
    return {
        "span_s": _rounded(rates.span_s),
        "models": rates.models,
        "copies": rates.copies,
        "outputs": rates.outputs,
        "size_bytes": rates.size_bytes,
        "models_per_min": _rounded(rates.models_per_min),
        "outputs_per_min": _rounded(rates.outputs_per_min),
        "seconds": {stage: _rounded(value) for stage, value in rates.seconds.items()},
    }


def _source_json(source: SourceState) -> dict[str, Any]:
    return {
        "source": source.name,
        "watermark": source.watermark,
        "last_full": _iso(source.last_full),
        "unfinished": None
        if source.unfinished is None
        else {"kind": source.unfinished, "entries": source.entries, "started": _iso(source.started_at)},
    }


def _row_json(row: Row, events: list[Event]) -> dict[str, Any]:
    return {
        "revision": row.revision,
        "source": row.source,
        "state": row.state.value,
        "reason": row.reason,
        "detail": row.detail,
        "attempts": row.attempts,
        "next_try": _iso(row.next_try) if row.state == "listed" and row.next_try else None,
        "listed": _iso(row.listed_at),
        "changed": _iso(row.changed_at),
        "size_bytes": row.size_bytes,
        "outputs": row.outputs,
        "copy_of": row.copy_of,
        "seconds": {stage: _rounded(value) for stage, value in row.seconds.items()},
        "history": [
            {"at": _iso(e.at), "state": e.state.value, "reason": e.reason, "detail": e.detail, "pid": e.pid}
            for e in events
        ],
    }


def _because(reason: str | None, detail: str | None) -> str:
    return ": ".join(part for part in (reason, detail) if part)


def _times(count: int) -> str:
    return "one attempt" if count == 1 else f"{count} attempts"


def _clean(text: str) -> str:
    """Details quote strangers: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    left = round(seconds)
    if left < 60:
        return f"{max(0.0, seconds):.1f} s" if seconds < 10 else f"{left} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, length in units:
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))
