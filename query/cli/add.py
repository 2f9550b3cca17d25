"""``hubhound index add``."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.cli.output import Function, bars, data, data_json, format_option, index_option, note, seconds, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from indexers.adding import Outcome
    from indexers.probing import ProbeModel


MAX_SIZE = click.option(
    "--max-size", default="4GB", show_default=True, help="Larger repositories are refused before download."
)
ALLOW_PICKLE = click.option(
    "--allow-pickle", is_flag=True, help="Also open .bin and .pt weights, restricted to tensors."
)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    envvar="HUBHOUND_DEVICE",
    help="auto, cpu, cuda, cuda:1, mps.",
)


MODEL_MEMORY = click.option(
    "--model-memory", default="8GB", show_default=True, help="What one model may allocate in its process."
)
MODEL_TIMEOUT = click.option(
    "--model-timeout", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Seconds to load and probe."
)


PLACEMENT = (
    click.option(
        "--autocast",
        type=click.Choice(["auto", "off", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        envvar="HUBHOUND_AUTOCAST",
        help="Half precision for models whose descriptors it leaves in place; auto is float16 on CUDA, else off."
        "  [env: HUBHOUND_AUTOCAST]",
    ),
    click.option(
        "--compile",
        "compiler",
        type=click.Choice(["off", "cudagraphs"]),
        default="off",
        show_default=True,
        envvar="HUBHOUND_COMPILE",
        help="Backend of torch.compile.  [env: HUBHOUND_COMPILE]",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(1, 4096),
        default=512,
        show_default=True,
        envvar="HUBHOUND_MAX_BATCH",
        help="Images at once; the best number up to it is found.  [env: HUBHOUND_MAX_BATCH]",
    ),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0, 1, min_open=True),
        envvar="HUBHOUND_GPU_MEMORY",
        metavar="SHARE",
        help="Of a GPU's memory that one process may take.  [env: HUBHOUND_GPU_MEMORY; by default an even share]",
    ),
)
"""How models run on a device; ``indexers.crawl.limits.Setup`` takes them."""


def placement_options(function: Function) -> Function:
    """Adds the options that say how models run on a device: autocast, compiler, max_batch and gpu_memory."""
    for option in reversed(PLACEMENT):
        function = option(function)
    return function


def probing_options(function: Function) -> Function:
    """Adds the options of every command that fetches and runs models."""
    options = (
        MAX_SIZE,
        ALLOW_PICKLE,
        click.option(
            "--probes",
            "probe_folder",
            type=click.Path(),
            help="Where the probe images are now, if they were moved.",
        ),
        click.option(
            "--cache",
            type=click.Path(),
            envvar="HUBHOUND_CACHE",
            help="Where preprocessed probes are kept.  [env: HUBHOUND_CACHE; by default the user's cache folder]",
        ),
        click.option(
            "--cache-size",
            default="20GB",
            show_default=True,
            help="Preprocessed probes used longest ago go beyond this.",
        ),
        DEVICE,
        *PLACEMENT,
        MODEL_MEMORY,
        MODEL_TIMEOUT,
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    epilog="""
\b
Examples:
  hubhound index add --index zoo timm/resnet50.a1_in1k microsoft/resnet-18@main
  hubhound index add --index zoo ./models            # a folder of folders in Hub layout
  hubhound index add --index zoo @models.txt         # one id or folder a line
"""
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@index_option
@probing_options
@format_option
def add(models: tuple[str, ...], index_path: str, max_size: str, allow_pickle: bool, form: str, **given: Any) -> None:
    """Add MODELs to an index: Hub ids org/name[@revision], folders in Hub layout, folders of such folders, @FILE.

    A model that cannot be indexed is recorded with the reason and the run goes on. The same revision again is a no-op.
    Killing the run loses nothing that was finished; run it again to go on. Models run in a process of their own,
    without network and within limits.
    """
    from engine.writer import IndexWriter
    from indexers.adding import AddOptions, add_model
    from indexers.sources import expand

    sources = expand(models)
    options = AddOptions(parse_size(max_size), allow_pickle)
    outcomes: list[Outcome] = []
    folder = index_folder(index_path)
    with IndexWriter(folder) as writer, probing(folder, allow_pickle=allow_pickle, **given) as probe:
        from engine.conductance_cache import FILE, ConductanceCache

        places = ConductanceCache(writer.index.folder / FILE)
        try:
            with bars() as bar:
                overall = bar("models", "")
                current = bar("", "images")
                overall(0, len(sources))
                started = time.monotonic()
                for source in sources:

                    def tell(what: str, done: int, total: int, repo: str = source.repo) -> None:
                        current(done, total, f"{repo}: {what}")

                    outcomes.append(add_model(writer, probe, source, options, tell))
                    if source.folder is not None and outcomes[-1].state == "indexed":
                        places.remember_place(source.repo, str(source.folder))
                    writer.snapshot(force=False)
                    done = sum(outcome.outputs for outcome in outcomes if not outcome.already)
                    rate = done / (time.monotonic() - started)
                    overall(len(outcomes), len(sources), f"models, {done:,} outputs, {rate:,.0f} outputs/s")
        finally:
            writer.finish()
    _report(outcomes, form)


def probing(
    index: Path,
    *,
    allow_pickle: bool,
    probe_folder: str | None,
    cache: str | None,
    cache_size: str,
    device: str,
    autocast: str,
    compiler: str,
    max_batch: int,
    gpu_memory: float | None,
    model_memory: str,
    model_timeout: float,
) -> AbstractContextManager[ProbeModel]:
    """What runs models as the options of :func:`probing_options` want it."""
    from indexers.crawl.limits import Limits, Setup
    from indexers.probing import apart

    setup = Setup(
        index=index,
        probes=Path(probe_folder).expanduser() if probe_folder else None,
        cache=cache_folder(cache) / "pixels",
        cache_bytes=parse_size(cache_size),
        device=device,
        allow_pickle=allow_pickle,
        autocast=autocast,
        compiler=compiler,
        max_batch=max_batch,
        memory_share=gpu_memory or 1.0,
    )
    return apart(setup, Limits(memory_bytes=parse_size(model_memory), time_s=model_timeout))


def cache_folder(given: str | None) -> Path:
    """Where preprocessed probes are kept."""
    from platformdirs import user_cache_path

    return Path(given).expanduser() if given else user_cache_path("hubhound")


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB or 4GB.

    Raises:
        BadParameter: It is not a size.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    upper = text.strip().upper()
    unit = next((name for name in units if upper.endswith(name)), "")
    try:
        value = float(upper.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e18:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 4GB")
    return int(value)


def _report(outcomes: list[Outcome], form: str) -> None:
    from indexers.adding import STAGES

    indexed = [outcome for outcome in outcomes if outcome.state == "indexed"]
    failures: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.reason:
            failures[outcome.reason] = failures.get(outcome.reason, 0) + 1
    if form == "json":
        entries = [
            {
                "model": o.repo,
                "revision": o.revision,
                "state": o.state.value,
                "already": o.already,
                "outputs": o.outputs,
                "left_out": o.left_out,
                "reason": o.reason,
                "detail": o.detail,
                "seconds": {stage: round(o.seconds.get(stage, 0.0), 3) for stage in STAGES},
            }
            for o in outcomes
        ]
        data_json({"models": entries, "failures": failures})
    elif form == "quiet":
        for outcome in indexed:
            data(outcome.repo)
    else:
        rows = []
        for o in outcomes:
            state = "there already" if o.already else o.state.value
            if o.left_out:
                state += f", {o.left_out} outputs left out"
            if o.detail:
                state += f" ({o.reason}): {o.detail}"
            rows.append([o.repo, str(o.outputs), *[seconds(o.seconds.get(s, 0.0)) for s in STAGES], state])
        table(None, ["model", ("outputs", "right"), *[(f"{s} s", "right") for s in STAGES], "state"], rows)
    note(
        f"{len(indexed)} of {len(outcomes)} models are in the index"
        + "".join(f"; {count} {reason}" for reason, count in sorted(failures.items()))
    )
