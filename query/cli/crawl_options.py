"""The options of ``hubhound crawl``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from query.cli.add import ALLOW_PICKLE, DEVICE, MAX_SIZE, PLACEMENT, parse_size
from query.cli.output import Function

VLMS = "zero-shot-image-classification"
"""The Hub's task that vision-language models are for."""

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


def shard_of(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Reads ``--shard``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise click.BadParameter(f"{text!r} is not a shard: 0/4, 1/4, 2/4 and 3/4 are the four shards of four")
    return int(match[1]), int(match[2])


def listing_options(function: Function) -> Function:
    """Adds the options that say which models are crawled."""
    options = (
        click.option("--source", default="hub", show_default=True, metavar="hub|FILE|DIR", help="What is listed."),
        click.option(
            "--task",
            default="image-classification",
            show_default=True,
            help=f"The Hub's task; {VLMS} profiles vision-language models on the index's tasks.",
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
        click.option("--shard", callback=shard_of, metavar="I/N", help="Only the I-th of N parts, from 0."),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="End after N models were tried; one that is tried again counts again.",
        ),
    )
    return _all(options, function)


def running_options(function: Function) -> Function:
    """Adds the options that say how the crawl goes about it."""
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


def probing_options(function: Function) -> Function:
    """Adds the options that say how models are probed."""
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
        *PLACEMENT,
    )
    return _all(options, function)


def watching_options(function: Function) -> Function:
    """Adds the options that say how one watches it."""
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


def _workers(_context: click.Context, _parameter: click.Parameter, text: str) -> int | None:
    if text.strip().lower() == "auto":
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}", text.strip()):
        raise click.BadParameter(f"{text!r} is neither a number of workers nor auto")
    return int(text)


FLEET = ("ray_workers", "cpus_per_worker", "gpus_per_worker")
"""Parameters that mean nothing without ``--ray``."""


def fleet_options(function: Function) -> Function:
    """Adds the options that have models fetched and probed on a Ray cluster."""
    options = (
        click.option(
            "--ray",
            metavar="ADDRESS",
            envvar="HUBHOUND_RAY",
            help="Fetch and probe on this Ray cluster: HOST:PORT, or auto for the one of this machine."
            "  [env: HUBHOUND_RAY]",
        ),
        click.option(
            "--ray-workers",
            callback=_workers,
            default="auto",
            show_default=True,
            metavar="N|auto",
            help="Workers on the cluster; auto: as many as its nodes have room for, now and later.",
        ),
        click.option(
            "--cpus-per-worker",
            type=click.FloatRange(0.01, 1024),
            default=1.0,
            show_default=True,
            help="CPUs that a worker takes of its node.",
        ),
        click.option(
            "--gpus-per-worker",
            type=click.FloatRange(0, 64),
            default=0.0,
            show_default=True,
            help="GPUs that a worker takes of its node; 0.25 puts four on one.",
        ),
    )
    return _all(options, function)


def _all(options: tuple[Any, ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


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
    autocast: str
    compiler: str
    max_batch: int
    gpu_memory: float | None
    ray: str | None
    ray_workers: int | None
    cpus_per_worker: float
    gpus_per_worker: float
    log_format: Any
    verbose: bool
    metrics_port: int | None
    metrics_host: str
    form: str
