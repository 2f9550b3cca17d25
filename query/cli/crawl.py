"""``hubhound crawl``: the daemon, and the questions one asks its journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from query.cli.add import cache_folder, parse_size
from query.cli.crawl_journal import retry, status, why
from query.cli.crawl_options import (
    FLEET,
    VLMS,
    Given,
    fleet_options,
    listing_options,
    probing_options,
    running_options,
    watching_options,
)
from query.cli.output import format_option, note

if TYPE_CHECKING:
    from engine.writer import IndexWriter
    from indexers.crawl.crew import Crew
    from indexers.crawl.desk import Desk
    from indexers.crawl.filters import Filters
    from indexers.crawl.journal import Journal
    from indexers.crawl.kinds import Kind
    from indexers.crawl.limits import Limits, Setup
    from indexers.crawl.porter import FetchOptions
    from indexers.crawl.profile_journal import ProfileJournal
    from indexers.crawl.watch import Watch

_OF_ONE_MODEL = frozenset({"stored", "refused", "failed", "put off", "gone"})
"""Events that a log for people leaves out unless asked for them: there are thousands, and `status` counts them."""


@click.group(
    invoke_without_command=True,
    epilog="""
\b
Examples:
  hubhound crawl --index zoo --min-downloads 100 --follow
  hubhound crawl --index zoo --author timm --library timm --max-params 100M --limit 50
  hubhound crawl --index zoo --source models.txt --follow --metrics-port 9400
  hubhound crawl --index zoo --source ./hub-mirror --shard 0/4
  hubhound crawl --index zoo --ray 10.0.0.1:6379 --gpus-per-worker 0.25
  hubhound crawl --index zoo --task zero-shot-image-classification --author timm --device cuda
  hubhound crawl status --index zoo
  hubhound crawl why timm/resnet50.a1_in1k --index zoo
  hubhound crawl retry --reason network --index zoo
""",
)
@click.option(
    "--index",
    "index_path",
    type=click.Path(),
    envvar="HUBHOUND_INDEX",
    help="The index: a folder, or qdrant://HOST:PORT/NAME.  [env: HUBHOUND_INDEX]",
)
@listing_options
@running_options
@probing_options
@fleet_options
@watching_options
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

    With --ray the models are fetched and probed by workers on the nodes of a Ray cluster; list, journal and index stay
    with this process.
    """
    if context.invoked_subcommand is not None:
        return None
    if index_path is None:
        raise click.UsageError("Missing option '--index'.")
    if given["task"] != VLMS and (given["n_steps"] is not None or given["precision"] != "auto"):
        raise click.UsageError(f"--n-steps and --precision are for profiles: they need --task {VLMS}")
    _check_fleet(context, given)
    return _crawl(index_path, Given(**given))


crawl.add_command(status)
crawl.add_command(retry)
crawl.add_command(why)


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


def _check_fleet(context: click.Context, given: dict[str, Any]) -> None:
    """Refuses options that contradict each other."""
    if given["ray"] is None:
        for name in FLEET:
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name.replace('_', '-')} is for a Ray cluster: it needs --ray ADDRESS")
        return
    if context.get_parameter_source("workers") is not ParameterSource.DEFAULT:
        raise click.UsageError("--workers is for this machine alone: with --ray use --ray-workers")
    if given["keep_files"]:
        raise click.UsageError("--keep-files keeps files on this machine: with --ray they are on the nodes")
    if given["device"].startswith("cuda") and not given["gpus_per_worker"]:
        raise click.UsageError("--device cuda with --ray needs --gpus-per-worker, 1 or a part of one")


def _crawl(index_path: str, given: Given) -> int:
    # Read when huggingface_hub is imported: its cache of chunks would lie outside the space that downloads may take.
    os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
    from huggingface_hub.utils import logging as hub_logging

    from engine.remote import index_folder
    from engine.store.address import ServerAddress
    from engine.writer import IndexWriter
    from indexers.crawl import heartbeat, log, metrics
    from indexers.crawl.backoff import Backoff
    from indexers.crawl.daemon import CrawlOptions, Daemon
    from indexers.crawl.home import home_of
    from indexers.crawl.journal import FILE, Journal
    from indexers.crawl.limits import Limits
    from indexers.crawl.listing import open_source
    from indexers.crawl.porter import FetchOptions
    from indexers.crawl.profile_journal import HOME, ProfileJournal
    from indexers.crawl.watch import Watch
    from query.cli.crawl_view import CrawlView, report

    # What it has to say of its own accord, in lines of its own form, comes to us as an error or does not matter.
    hub_logging.set_verbosity(logging.CRITICAL)
    filters = _filters(given)
    source = open_source(given.source, filters)
    ray = _address(given)
    watch = Watch()
    vlms = given.task == VLMS
    index = index_folder(index_path)
    home = home_of(index, given.shard, shared=ServerAddress.is_server(index_path))
    path = home / HOME / FILE if vlms else home / FILE
    backoff = Backoff(given.retry_wait, longest_s=max(given.retry_wait, 3600.0), attempts=given.retries)
    fetching = FetchOptions(parse_size(given.max_size), given.allow_pickle, given.fetch_timeout, given.keep_files)
    limits = Limits(
        memory_bytes=given.model_memory, time_s=given.model_timeout, models_per_child=given.models_per_process
    )
    with ExitStack() as stack:
        writer = stack.enter_context(IndexWriter(index))
        _fetch_images(given, writer)
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = stack.enter_context((ProfileJournal if vlms else Journal)(path, backoff=backoff))
        kind = _kind(given, writer, journal, watch)
        _log(given, stack)
        if given.metrics_port is not None:
            server = stack.enter_context(metrics.serve(watch, given.metrics_port, given.metrics_host))
            log.metrics_on(server.url) if given.log_format == "json" else note(f"metrics are on {server.url}")
        beats = stack.enter_context(heartbeat.HeartbeatWriter(path.with_name(heartbeat.FILE), watch))
        view = stack.enter_context(CrawlView(watch, given.log_format))
        setup = _setup(given, index)
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
            fetching,
            setup,
            limits,
            watch,
            hire=None if ray is None else _fleet(ray, stack, given, journal, kind, fetching, setup, limits, watch),
        )

        def tick(phase: Any) -> None:
            beats.beat(phase)
            view.update()

        code = daemon.run(tick)
        view.close()
        report(watch.now(), given.form, given.log_format)
    _say_more(watch, given.log_format, f"{index_path}/{HOME}" if vlms else index_path)
    return code


def _fetch_images(given: Given, writer: IndexWriter) -> None:
    """What models are shown of an index on a server: their processes have no network to fetch it."""
    remote = writer.index.remote
    if remote is None:
        return
    if given.task == VLMS:
        remote.fetch("tasks")
    elif not given.probe_folder:
        remote.fetch_once("probes")


def _kind(given: Given, writer: IndexWriter, journal: Journal | ProfileJournal, watch: Watch) -> Kind[Any]:
    from indexers.crawl import kinds
    from indexers.crawl.profile_journal import ProfileJournal
    from indexers.crawl.standing_profiles import ProfileOptions

    if isinstance(journal, ProfileJournal):
        how = ProfileOptions(given.n_steps, given.precision)
        return kinds.vlms(writer, journal, watch, how, keep_gone=given.keep_gone)
    return kinds.classifiers(writer, journal, watch, keep_gone=given.keep_gone)


def _log(given: Given, stack: ExitStack) -> None:
    from indexers.crawl import log

    logger = stack.enter_context(log.logging_to(given.log_format))
    if given.log_format == "text" and not given.verbose:
        stack.callback(logger.removeFilter, _not_of_one_model)
        logger.addFilter(_not_of_one_model)


def _setup(given: Given, index: Path) -> Setup:
    from indexers.crawl.limits import Setup

    device, share = given.device, given.gpu_memory or 1 / given.workers
    if given.ray is not None:
        device = "cpu" if device == "auto" and not given.gpus_per_worker else device
        share = given.gpu_memory or min(1.0, given.gpus_per_worker or 1.0)
    return Setup(
        index=index,
        probes=Path(given.probe_folder) if given.probe_folder else None,
        cache=cache_folder(given.cache) / "pixels",
        cache_bytes=given.pixels_size,
        device=device,
        allow_pickle=given.allow_pickle,
        towers=given.task == VLMS,
        autocast=given.autocast,
        compiler=given.compiler,
        max_batch=given.max_batch,
        memory_share=share,
    )


def _address(given: Given) -> str | None:
    """Of the Ray cluster, which was found to answer: before the index is opened and anything is written."""
    if given.ray is None:
        return None
    from indexers.crawl.fleet.address import check

    return check(given.ray, note)


def _fleet(
    address: str,
    stack: ExitStack,
    given: Given,
    journal: Journal,
    kind: Kind[Any],
    fetching: FetchOptions,
    setup: Setup,
    limits: Limits,
    watch: Watch,
) -> Callable[[Desk], Crew]:
    from indexers.crawl.fleet.gathering import FleetOptions, fleet
    from indexers.crawl.fleet.ray_cluster import Need, RayCluster
    from indexers.crawl.local_crew import Size

    size = Size(given.fetchers, 1, given.prefetch, given.cache_size)
    source = Path(given.source).expanduser().absolute()
    options = FleetOptions(
        given.ray_workers,
        Path(given.cache).expanduser().absolute() if given.cache else None,
        source if source.is_dir() and given.source != "hub" else None,
    )
    need = Need(given.cpus_per_worker, given.gpus_per_worker, min(given.fetchers, given.prefetch + 1))
    cluster = RayCluster(address, need)
    stack.callback(cluster.close)
    return fleet(cluster, journal, kind, options, size, fetching, setup, limits, watch)


def _say_more(watch: Watch, log_format: str, index: str) -> None:
    now = watch.now()
    if log_format == "text" and (now.failed or now.refused):
        note(f"what failed and why: hubhound crawl status --index {index}")


def _not_of_one_model(record: logging.LogRecord) -> bool:
    return record.getMessage() not in _OF_ONE_MODEL
