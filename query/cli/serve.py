"""``hubhound serve``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from query.api.settings import Settings, flag, variable
from query.cli.output import note
from query.cli.places import index_folder

Function = TypeVar("Function", bound=Callable[..., Any])

_METAVARS = {"index": "PATH", "api_key_file": "FILE", "vocabulary": "FILE", "models": "DIR", "cors_origin": "ORIGIN"}
_METAVARS |= {"allowed_host": "HOST", "host": "ADDRESS", "hub_url": "URL", "device": "DEVICE"}


def settings_options(function: Function) -> Function:
    """Adds an option for every setting; what is not given stays None."""
    for name, field in reversed(Settings.model_fields.items()):
        function = _option(name, field)(function)
    return function


def _option(name: str, field: FieldInfo) -> Callable[[Function], Function]:
    kind = field.annotation
    told: dict[str, Any] = {"help": _help(name, field), "metavar": _METAVARS.get(name)}
    if kind is bool and not field.default:
        return click.option(flag(name), name, is_flag=True, default=None, help=told["help"])
    if kind is bool:
        told |= {"type": click.BOOL, "metavar": "yes|no"}
    elif get_origin(kind) is Literal:
        told |= {"type": click.Choice([str(value) for value in get_args(kind)])}
    elif get_origin(kind) is tuple:
        told |= {"type": str, "multiple": True}
    elif kind in {int, float}:
        told |= {"type": _range(kind, field)}
    return click.option(flag(name), name, default=None, **told)


def _range(kind: object, field: FieldInfo) -> click.IntRange | click.FloatRange:
    bounds = {
        key: getattr(rule, key) for rule in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if kind is int:
        return click.IntRange(low, high)
    return click.FloatRange(low, high, min_open="gt" in bounds, max_open="lt" in bounds)


def _help(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    facts = [f"env: {variable(name)}"]
    default = field.default
    if not (default is PydanticUndefined or default is None or default is False or default == ()):
        shown = "yes" if default is True else f"{default:g}" if isinstance(default, float) else str(default)
        unit = extra.get("unit")
        facts.append(f"default: {shown} {unit}" if unit else f"default: {shown}")
    return f"{field.description}  [{'; '.join(facts)}]"


@click.command(
    epilog="""
\b
Examples:
  hubhound serve --index zoo                                    # http://127.0.0.1:8080 shows a page
  hubhound serve --index zoo --port 0 --preload no              # a free port, at once
  hubhound serve --index zoo --host 0.0.0.0 --api-key-file keys.txt --allowed-host models.example.org
  curl -s localhost:8080/v1/search -H 'Content-Type: application/json' -d '{"concepts": ["golden retriever"]}'
  curl -s localhost:8080/v1/search -F images=@photo.jpg -F 'request={"k": 3}'

\b
A file of keys has a line NAME KEY for each; python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one.
SIGTERM and Ctrl-C let requests end; a second one does not.
"""
)
@settings_options
def serve(**given: Any) -> None:
    """Answer searches and recommendations over HTTP, for programs and, at /, for people.

    A newer snapshot of the index is taken over while requests are answered.
    """
    values = {name: value for name, value in given.items() if value is not None and value != ()}
    if "index" not in values and not any(os.environ.get(name) for name in ("HUBHOUND_INDEX", "HUBHOUND_SERVE_INDEX")):
        raise click.UsageError("Missing option '--index'.")
    index = values.get("index") or os.environ.get("HUBHOUND_SERVE_INDEX") or os.environ["HUBHOUND_INDEX"]
    from engine.store.address import ServerAddress

    server = ServerAddress.is_server(str(index))
    settings = Settings.read(values | {"index": index_folder(str(index))} if server else values)
    from query.api.server import serve as run

    run(settings, note if settings.log_format == "text" else _log)


def _log(message: str) -> None:
    """One line of information as an event of the service's log, which programs read from its first line on."""
    from query.api.errors import LOGGER

    logging.getLogger(LOGGER).info("service", extra={"facts": {"detail": message}})
