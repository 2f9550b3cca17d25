"""What a crawl tells whoever reads its standard error later: one line an event, for people or as JSON.

    2026-11-22 12:31:05 stored org/name@3f2a91c: outputs 1,000, seconds 4.1
    {"at": "2026-11-22T12:31:05.120Z", "level": "info", "event": "stored", "model": "org/name", ...}

The lines are records of the logger ``hubhound.crawl`` of Python's own logging. Much of what they say comes from
strangers: whatever a terminal would act on is written as an escape.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from typing import Literal, TextIO

from indexers.crawl.standing import STAGES, Snapshot

LOGGER = "hubhound.crawl"
STORE_LOGGER = "hubhound.store"
"""What is said about a server that does not answer (engine.store.patience)."""

FORMATS = ("text", "json")

Format = Literal["text", "json"]

MAX_TEXT = 2000
"""Characters of one value that are written; a stranger's error message can be as long as it likes."""

_RESERVED = ("at", "level", "event")
_REVISION = 7  # characters of a revision that people need


def event(name: str, /, **fields: object) -> None:
    """Logs that something happened.

    Args:
        name: What, in a word or two: ``stored``, ``failed``, ``listing trouble`` ...
        **fields: Facts: ``model``, ``revision``, ``stage``, ``reason``, ``seconds``, ``detail`` ...; None is left out.
            A name that ends in ``_s`` and a stage's name are of seconds.
    """
    logging.getLogger(LOGGER).info("%s", name, extra={"facts": fields})


def warning(name: str, /, **fields: object) -> None:
    """Logs something that is not as it should be; the crawl goes on. Arguments as in ``event``."""
    logging.getLogger(LOGGER).warning("%s", name, extra={"facts": fields})


def error(name: str, /, **fields: object) -> None:
    """Logs something that needs somebody. Arguments as in ``event``."""
    logging.getLogger(LOGGER).error("%s", name, extra={"facts": fields})


def placeless(name: str, /, **fields: object) -> str:
    """The line of an event that another process will write for us, with ``<text>`` or ``<utc>`` for the time.

    As the log's own lines are, where there is one, and else for people.
    """
    facts = {"event": name, **fields}
    formatters = (handler.formatter for handler in logging.getLogger(LOGGER).handlers)
    if any(isinstance(formatter, _Json) for formatter in formatters):
        return json.dumps({"at": "<utc>", "level": "info", **facts}, ensure_ascii=True)
    return f"<text> {_told(name, dict(fields))}"


def summary(now: Snapshot) -> None:
    """Logs how the crawl stands: a sentence for people, counts and rates by name in JSON."""
    means = {stage: taken.recent_mean_s for stage, taken in now.stages.items() if taken.recent_mean_s is not None}
    facts = {
        **now.counts(),
        "queue": now.queue,
        **now.rates(),
        "stage_seconds": {stage: round(mean_s, 3) for stage, mean_s in means.items()},
    }
    logging.getLogger(LOGGER).info("summary", extra={"facts": facts, "sentence": sentence(now)})


def metrics_on(url: str) -> None:
    """Logs where metrics are, for whoever reads the log and nothing else."""
    logging.getLogger(LOGGER).info("metrics", extra={"facts": {"url": url}})


def ended(now: Snapshot) -> None:
    """Logs what a run has done, for whoever reads the log and nothing else."""
    facts = {**now.counts(), "seconds": round(now.uptime_s, 3)}
    logging.getLogger(LOGGER).info("ended", extra={"facts": facts, "sentence": sentence(now, whole=True)})


def sentence(now: Snapshot, whole: bool = False) -> str:
    """How the crawl stands in one line: ``stored 1,204 (+63 copies), 12.1 models/min ...; fetch 1.2 s ... a model``.

    Args:
        now: How it stands.
        whole: Rates and times of the whole run, which has ended, instead of the last ten minutes.
    """
    copies = f" (+{now.copies:,} {'copy' if now.copies == 1 else 'copies'})" if now.copies else ""
    parts = [
        f"stored {now.stored:,}{copies}",
        f"{now.models_per_min_overall if whole else now.models_per_min:,.1f} models/min",
        f"{now.outputs_per_min_overall if whole else now.outputs_per_min:,.0f} outputs/min",
        f"{sum(now.refused.values()):,} refused",
        f"{sum(now.failed.values()):,} failed",
    ]
    if found := sum(now.found.values()):
        parts.append(f"{found:,} found in the index")
    if now.filtered:
        parts.append(f"{now.filtered:,} filtered out")
    if now.queue is not None:
        parts.append(f"{now.queue:,} waiting")
    if now.seconds_left and not whole:
        parts.append(f"about {duration(now.seconds_left)} left")
    means = {stage: taken.mean_s if whole else taken.recent_mean_s for stage, taken in now.stages.items()}
    told = [f"{name} {mean_s:.1f} s" for name, mean_s in means.items() if name != "list" and (mean_s or 0) >= 0.05]
    return ", ".join(parts) + (f"; {', '.join(told)} a model" if told else "")


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``4 h 10 min``, ``3 days 4 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


@contextmanager
def logging_to(form: Format, stream: TextIO | None = None) -> Iterator[logging.Logger]:
    """Writes what the crawl logs, from level INFO on, until the block ends.

    Args:
        form: ``text`` or ``json``.
        stream: Where to; None for standard error, whatever that is at the time of a line.

    Yields:
        The logger.
    """
    logger, store = logging.getLogger(LOGGER), logging.getLogger(STORE_LOGGER)
    handler = _Lines(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    before = [(one, one.level, one.propagate) for one in (logger, store)]
    for one in (logger, store):
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = False
    try:
        yield logger
    finally:
        for one, level, propagate in before:
            one.removeHandler(handler)
            one.level, one.propagate = level, propagate
        handler.close()


class _Lines(logging.Handler):
    """Lines to a stream; a log that cannot be written is no reason for the crawl to end."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        try:
            # Looked up each time: a live view puts itself in front of standard error while it is shown.
            stream = self._stream or sys.stderr
            stream.write(self.format(record) + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # the disk is full, the reader of the pipe has gone or the stream is closed


class _Json(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _moment(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage()[:MAX_TEXT],
        }
        line |= {name: _plain(value) for name, value in _facts(record).items() if name not in _RESERVED}
        return json.dumps(line, ensure_ascii=True, allow_nan=False)


class _Text(logging.Formatter):
    """One sentence a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = _moment(record).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        said = getattr(record, "sentence", None)
        return f"{moment} {level}{said or _told(record.getMessage(), _facts(record))}"


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = {name: value for name, value in getattr(record, "facts", {}).items() if value is not None}
    if record.exc_info:
        facts["traceback"] = logging.Formatter().formatException(record.exc_info)
    return facts


def _told(name: str, facts: dict[str, object]) -> str:
    """``failed org/name@3f2a91c: probe took too long, seconds 900.0: no answer in 900 s``."""
    model, revision = facts.pop("model", None), facts.pop("revision", None)
    last = [_shown(facts.pop(key)) for key in ("detail", "traceback") if key in facts]
    head = _shown(name)
    if model is not None:
        head += f" {_shown(model)}" + (f"@{_shown(revision)[:_REVISION]}" if revision is not None else "")
    elif revision is not None:
        head += f" {_shown(revision)[:_REVISION]}"
    told = [
        f"{_shown(key.removesuffix('_s'))} {_shown(value)}{' s' * (key.endswith('_s') or key in STAGES)}"
        for key, value in facts.items()
    ]
    return ": ".join(part for part in (head, ", ".join(told), *last) if part)


def _shown(value: object) -> str:
    """A value for people; what a terminal could take for a command is escaped."""
    plain = _plain(value)
    if isinstance(plain, bool) or plain is None:
        return str(plain).lower()
    if isinstance(plain, int):
        return f"{plain:,}"
    if isinstance(plain, float):
        return f"{plain:,.1f}" if abs(plain) >= 0.05 or plain == 0 else f"{plain:.2g}"
    if isinstance(plain, dict):
        return ", ".join(f"{_shown(key)} {_shown(item)}" for key, item in plain.items())
    if isinstance(plain, list):
        return ", ".join(map(_shown, plain))
    return escaped(str(plain))


def escaped(text: str) -> str:
    """A stranger's text without characters that a terminal or a reader of lines acts on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: object) -> object:
    """A value as JSON knows it; what is not finite is a text, not a number."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key)[:MAX_TEXT]: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return str(value)[:MAX_TEXT]
