"""``hubhound crawl``: the daemon, and the questions one asks its journal."""

from __future__ import annotations

import logging
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.cli.add import ALLOW_PICKLE, DEVICE, MAX_SIZE, cache_folder, parse_size
from query.cli.crawl_journal import retry, status, why
from query.cli.output import Function, format_option, note

if TYPE_CHECKING:
    from indexers.crawl.filters import Filters
    from indexers.crawl.watch import Watch

_OF_ONE_MODEL = frozenset({"stored", "refused", "failed", "put off", "gone"})
"""Events that a log for people leaves out unless asked for them: there are thousands, and `status` counts them."""

_VLMS = "zero-shot-image-classification"

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 30s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def _size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    return parse_size(text)


def _count(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number such as 500000, 25M or 1.5B")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[match[2]])


def _shard(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise click.BadParameter(f"{text!r} is not a shard: 0/4, 1/4, 2/4 and 3/4 are the four shards of four")
    return int(match[1]), int(match[2])


def _listing_options(function: Function) -> Function:
    options = (
        click.option("--source", default="hub", show_default=True, metavar="hub|FILE|DIR", help="What is listed."),
        click.option(
            "--task",
            default="image-classification",
            show_default=True,
            help=f"The Hub's task; {_VLMS} profiles vision-language models on the index's tasks.",
        ),
        click.option("--library", multiple=True, help="Only this library; may be repeated for several."),
        click.option("--author", help="Only this user or organisation."),
        click.option("--tag", multiple=True, help="Only with this tag; may be repeated for all of several."),
        click.option("--licence", multiple=True, help="Only under this licence; may be repeated for several."),
        click.option("--min-downloads", type=click.IntRange(min=0), default=0, help="Of the last 30 days, at least."),
        click.option("--updated-since", metavar="DATE", help="Only if changed since, as 2026-01-31."),
        click.option("--max-params", callback=_count, metavar="NUMBER", help="Only with at most so many, as 100M."),
        MAX_SIZE,
        ALLOW_PICKLE,
        click.option("--shard", callback=_shard, metavar="I/N", help="Only the I-th of N parts, from 0."),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="End after N models were tried; one that is tried again counts again.",
        ),
    )
    return _all(options, function)


def _running_options(function: Function) -> Function:
    options = (
        click.option("--once/--follow", "once", default=True, help="End when all is done, or go on for ever.  [once]"),
        click.option(
            "--interval", callback=_duration, default="10m", show_default=True, help="Between looks for new models."
        ),
        click.option(
            "--full-every",
            callback=_duration,
            default="1d",
            show_default=True,
            help="Between listings of everything, which find what is gone.",
        ),
        click.option("--keep-gone", is_flag=True, help="Keep models that the hub no longer has."),
        click.option("--keep-files", is_flag=True, help="Keep downloaded files."),
        click.option(
            "--cache-size",
            callback=_size,
            default="50GB",
            show_default=True,
            help="Downloads never take more space than this.",
        ),
        click.option("--fetchers", type=click.IntRange(1, 64), default=8, show_default=True, help="Fetched at once."),
        click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Probed at once."),
        click.option(
            "--prefetch",
            type=click.IntRange(1, 1000),
            default=4,
            show_default=True,
            help="Fetched models that wait to be probed.",
        ),
        click.option(
            "--fetch-timeout", callback=_duration, default="1h", show_default=True, help="For one model's files."
        ),
        click.option("--retries", type=click.IntRange(1, 100), default=8, show_default=True, help="Tries of a model."),
        click.option(
            "--retry-wait",
            callback=_duration,
            default="10s",
            show_default=True,
            help="Longest wait before the second try; doubles each time.",
        ),
    )
    return _all(options, function)


def _probing_options(function: Function) -> Function:
    options = (
        click.option(
            "--model-memory", callback=_size, default="8GB", show_default=True, help="What one model may allocate."
        ),
        click.option(
            "--model-timeout",
            callback=_duration,
            default="15m",
            show_default=True,
            help="To load and probe one model, or to profile it on one task.",
        ),
        click.option(
            "--models-per-process",
            type=click.IntRange(min=1),
            default=100,
            show_default=True,
            help="So many models, and their process is replaced.",
        ),
        click.option(
            "--n-steps",
            type=click.IntRange(min=1),
            help="Of profiles: steps of the path.  [default: those of the model's other profiles, or else 50]",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
            default="auto",
            show_default=True,
            help="Of profiles: auto is that of the model's other profiles, or else the device's.",
        ),
        click.option("--probes", "probe_folder", type=click.Path(), help="Where the probe images are now, if moved."),
        click.option(
            "--cache",
            type=click.Path(),
            envvar="HUBHOUND_CACHE",
            help="Where preprocessed probes are kept.  [env: HUBHOUND_CACHE; by default the user's cache folder]",
        ),
        click.option(
            "--pixels-size",
            callback=_size,
            default="20GB",
            show_default=True,
            help="Preprocessed probes used longest ago go beyond this.",
        ),
        DEVICE,
    )
    return _all(options, function)


def _watching_options(function: Function) -> Function:
    options = (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            envvar="HUBHOUND_LOG_FORMAT",
            help="Of the log on standard error.",
        ),
        click.option("-v", "--verbose", is_flag=True, help="Log a line for each model."),
        click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics on this port."),
        click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address to serve them on."),
    )
    return _all(options, function)


def _all(options: tuple[Any, ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


@click.group(
    invoke_without_command=True,
    epilog="""
\b
Examples:
  hubhound crawl --index zoo --min-downloads 100 --follow
  hubhound crawl --index zoo --author timm --library timm --max-params 100M --limit 50
  hubhound crawl --index zoo --source models.txt --follow --metrics-port 9400
  hubhound crawl --index zoo --source ./hub-mirror --shard 0/4
  hubhound crawl --index zoo --task zero-shot-image-classification --author timm --device cuda
  hubhound crawl status --index zoo
  hubhound crawl why timm/resnet50.a1_in1k --index zoo
  hubhound crawl retry --reason network --index zoo
""",
)
@click.option("--index", "index_path", type=click.Path(), envvar="HUBHOUND_INDEX", help="The index: a folder.")
@_listing_options
@_running_options
@_probing_options
@_watching_options
@format_option
@click.pass_context
def crawl(context: click.Context, /, index_path: str | None, **given: Any) -> int | None:
    """Keep an index current with a hub: list models, fetch what is new, probe it, store it.

    The source is the Hub (HF_ENDPOINT and HF_TOKEN are respected), a FILE with one model a line, or a folder DIR of
    models in Hub layout. Every model runs in a process of its own, without network and within limits. Killing the
    crawl at any moment loses nothing that was finished; run it again to go on. The first interrupt lets the models in
    hand finish, the second ends it at once.

    With --task zero-shot-image-classification vision-language models in open_clip's layout are profiled on the index's
    tasks, so that 'hubhound recommend' knows them. That crawl has a journal of its own: ask it with --index INDEX/vlms.
    """
    if context.invoked_subcommand is not None:
        return None
    if index_path is None:
        raise click.UsageError("Missing option '--index'.")
    if given["task"] != _VLMS and (given["n_steps"] is not None or given["precision"] != "auto"):
        raise click.UsageError(f"--n-steps and --precision are for profiles: they need --task {_VLMS}")
    return _crawl(Path(index_path).expanduser(), Given(**given))


crawl.add_command(status)
crawl.add_command(retry)
crawl.add_command(why)


@dataclass(frozen=True)
class Given:
    """The options as the command line gives them; see their help."""

    source: str
    task: str
    library: tuple[str, ...]
    author: str | None
    tag: tuple[str, ...]
    licence: tuple[str, ...]
    min_downloads: int
    updated_since: str | None
    max_params: int | None
    max_size: str
    allow_pickle: bool
    shard: tuple[int, int] | None
    limit: int | None
    once: bool
    interval: float
    full_every: float
    keep_gone: bool
    keep_files: bool
    cache_size: int
    fetchers: int
    workers: int
    prefetch: int
    fetch_timeout: float
    retries: int
    retry_wait: float
    model_memory: int
    model_timeout: float
    models_per_process: int
    n_steps: int | None
    precision: Any
    probe_folder: str | None
    cache: str | None
    pixels_size: int
    device: str
    log_format: Any
    verbose: bool
    metrics_port: int | None
    metrics_host: str
    form: str


def _filters(given: Given) -> Filters:
    from indexers.crawl.filters import Filters

    return Filters(
        task=given.task,
        libraries=given.library,
        author=given.author,
        tags=given.tag,
        min_downloads=given.min_downloads,
        updated_since=given.updated_since,
        max_size_bytes=parse_size(given.max_size),
        max_parameters=given.max_params,
        licences=given.licence,
        shard=given.shard,
    )


def _crawl(index: Path, given: Given) -> int:
    # Read when huggingface_hub is imported: its cache of chunks would lie outside the space that downloads may take.
    os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
    from huggingface_hub.utils import logging as hub_logging

    from engine.writer import IndexWriter
    from indexers.crawl import heartbeat, kinds, log, metrics
    from indexers.crawl.backoff import Backoff
    from indexers.crawl.daemon import CrawlOptions, Daemon
    from indexers.crawl.fetching import FetchOptions
    from indexers.crawl.journal import FILE, Journal
    from indexers.crawl.limits import Limits, Setup
    from indexers.crawl.listing import open_source
    from indexers.crawl.profile_journal import HOME, ProfileJournal
    from indexers.crawl.standing_profiles import ProfileOptions
    from indexers.crawl.watch import Watch
    from query.cli.crawl_view import CrawlView, report

    # What it has to say of its own accord, in lines of its own form, comes to us as an error or does not matter.
    hub_logging.set_verbosity(logging.CRITICAL)
    filters = _filters(given)
    source = open_source(given.source, filters)
    watch = Watch()
    vlms = given.task == _VLMS
    path = index / HOME / FILE if vlms else index / FILE
    backoff = Backoff(given.retry_wait, longest_s=max(given.retry_wait, 3600.0), attempts=given.retries)
    with ExitStack() as stack:
        writer = stack.enter_context(IndexWriter(index))
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = stack.enter_context((ProfileJournal if vlms else Journal)(path, backoff=backoff))
        kind: kinds.Kind[Any]
        if isinstance(journal, ProfileJournal):
            how = ProfileOptions(given.n_steps, given.precision)
            kind = kinds.vlms(writer, journal, watch, how, keep_gone=given.keep_gone)
        else:
            kind = kinds.classifiers(writer, journal, watch, keep_gone=given.keep_gone)
        logger = stack.enter_context(log.logging_to(given.log_format))
        if given.log_format == "text" and not given.verbose:
            stack.callback(logger.removeFilter, _not_of_one_model)
            logger.addFilter(_not_of_one_model)
        if given.metrics_port is not None:
            server = stack.enter_context(metrics.serve(watch, given.metrics_port, given.metrics_host))
            note(f"metrics are on {server.url}")
        beats = stack.enter_context(heartbeat.HeartbeatWriter(path.with_name(heartbeat.FILE), watch))
        view = stack.enter_context(CrawlView(watch, given.log_format))
        daemon = Daemon(
            writer,
            journal,
            kind,
            source,
            filters,
            CrawlOptions(
                follow=not given.once,
                interval_s=given.interval,
                full_every_s=given.full_every,
                fetchers=given.fetchers,
                workers=given.workers,
                prefetch=given.prefetch,
                downloads_bytes=given.cache_size,
                limit=given.limit,
            ),
            FetchOptions(parse_size(given.max_size), given.allow_pickle, given.fetch_timeout, given.keep_files),
            Setup(
                index=index,
                probes=Path(given.probe_folder) if given.probe_folder else None,
                cache=cache_folder(given.cache) / "pixels",
                cache_bytes=given.pixels_size,
                device=given.device,
                allow_pickle=given.allow_pickle,
                towers=vlms,
            ),
            Limits(
                memory_bytes=given.model_memory,
                time_s=given.model_timeout,
                models_per_child=given.models_per_process,
            ),
            watch,
        )

        def tick(phase: Any) -> None:
            beats.beat(phase)
            view.update()

        code = daemon.run(tick)
        view.close()
        report(watch.now(), given.form)
    _say_more(watch, path.parents[1])
    return code


def _not_of_one_model(record: logging.LogRecord) -> bool:
    return record.getMessage() not in _OF_ONE_MODEL


def _say_more(watch: Watch, index: Path) -> None:
    now = watch.now()
    if now.failed or now.refused:
        note(f"what failed and why: hubhound crawl status --index {index}")
