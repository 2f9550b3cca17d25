"""Everything that hubhound raises on purpose.

The tree::

    HubhoundError
     ├── InputError                what the user gave cannot be used
     │    ├── ProbeError           a probe set that is empty, unreadable or too small (``path``)
     │    ├── EncoderError         an encoder that cannot be loaded or that answers nonsense (``spec``)
     │    ├── BlocksError          a network whose blocks are not known (``pattern``)
     │    ├── ConductanceError     a network that has no conductance: a constant objective, NaN
     │    └── ConceptError         a concept that is empty or too long (``concept``)
     ├── IndexUnusableError               an index that cannot be used
     │    ├── IndexMissingError    there is no index at the path (``path``)
     │    ├── IndexMismatchError   made with something else (``part``, ``expected``, ``found``)
     │    ├── IndexLockedError     another process is writing (``path``)
     │    └── IndexDamagedError    a file of the index is missing or unreadable (``path``)
     │         └── IndexReplacedError   another index has its name now (``path``)
     ├── StoreError                the store refused or could not be written (``path``)
     └── ModelError                one model could not be indexed (``model``, ``revision``, ``reason``)
          ├── ModelRefusedError    we decline: not a classifier, remote code, pickle only, too large, gated
          └── ModelFailedError     we tried: missing, broken, unknown architecture, NaN, out of memory

Every message is one line that says what failed, where, and what to do next. The command line prints it and exits 1.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

DETAIL_CHARACTERS = 300
"""Longest detail that is kept: libraries put whole lists of parameters into their messages, strangers anything."""


def one_line(text: str, characters: int = DETAIL_CHARACTERS) -> str:
    """Bring what libraries and strangers wrote into one line that a store and a terminal can take.

    Args:
        text: Anything, lone surrogates and control characters too.
        characters: Most that are kept, at least 1.
    """
    # Cut twice: what was sent to fill the memory is not looked through first.
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c if c.isprintable() else " "
        for c in text[: 8 * characters]
    )
    line = " ".join(shown.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


class HubhoundError(Exception):
    """Base of all errors that hubhound raises on purpose; the message is one line for a person."""


class InputError(HubhoundError):
    """What the user gave cannot be used."""


class ProbeError(InputError):
    """A probe set cannot be used.

    Args:
        message: One line for a person.
        path: The image or folder at fault, if there is one.
    """

    def __init__(self, message: str, path: Path | str | None = None) -> None:
        super().__init__(message)
        self.path = path


class EncoderError(InputError):
    """A concept encoder cannot be loaded or used.

    Args:
        message: One line for a person.
        spec: The encoder as the user named it.
    """

    def __init__(self, message: str, spec: str) -> None:
        super().__init__(message)
        self.spec = spec


class BlocksError(InputError):
    """The blocks of a network are not known, or a pattern names none.

    Args:
        message: One line for a person.
        pattern: As the user gave it, None if none was given.
    """

    def __init__(self, message: str, pattern: str | None) -> None:
        super().__init__(message)
        self.pattern = pattern


class ConductanceError(InputError):
    """A network has no conductance: its objective is constant, or it answers NaN."""


class ConceptError(InputError):
    """A concept cannot be searched for.

    Args:
        message: One line for a person.
        concept: The text as given.
    """

    def __init__(self, message: str, concept: str) -> None:
        super().__init__(message)
        self.concept = concept


class IndexUnusableError(HubhoundError):
    """An index cannot be used."""


class IndexMissingError(IndexUnusableError):
    """There is no index at the path.

    Args:
        path: Where one was looked for.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"no index at {path}: make one with 'hubhound index create --index {path} --probes ... --encoder ...'"
        )
        self.path = path


class IndexMismatchError(IndexUnusableError):
    """An index was made with something else than what it is opened or extended with.

    Args:
        message: One line for a person.
        part: Which part differs: ``probes``, ``encoder``, ``top_r``, ``background``, ``descriptor version`` ...
        expected: What the index was made with.
        found: What it met.
    """

    def __init__(self, message: str, part: str, expected: object, found: object) -> None:
        super().__init__(message)
        self.part = part
        self.expected = expected
        self.found = found


class IndexLockedError(IndexUnusableError):
    """Another process is writing to the index.

    Args:
        path: The index.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"the index {path} is being written by another process: wait for it to end (searching works meanwhile)"
        )
        self.path = path


class IndexDamagedError(IndexUnusableError):
    """A file of the index is missing or cannot be read.

    Args:
        message: One line for a person.
        path: The file at fault.
    """

    def __init__(self, message: str, path: Path | str) -> None:
        super().__init__(message)
        self.path = path


class IndexReplacedError(IndexDamagedError):
    """An index on a server was deleted and made again since it was opened.

    Args:
        message: One line for a person.
        path: The index.
    """


class StoreError(HubhoundError):
    """The store refused an operation or could not be read or written.

    Args:
        message: One line for a person.
        path: Folder or URL of the store.
    """

    def __init__(self, message: str, path: Path | str) -> None:
        super().__init__(message)
        self.path = path


class Reason(StrEnum):
    """Why a model is not in the index; the closed list that failures are counted by."""

    NOT_A_CLASSIFIER = "not an image classifier"
    REMOTE_CODE = "needs remote code"
    PICKLE_ONLY = "has only pickled weights"
    TOO_LARGE = "too large"
    GATED = "gated"
    MISSING = "not found"
    NO_WEIGHTS = "has no weights"
    BROKEN_WEIGHTS = "broken weights"
    BROKEN_CONFIG = "broken config"
    UNKNOWN_ARCHITECTURE = "unknown architecture"
    BAD_PREPROCESSING = "unusable preprocessing"
    NO_USABLE_OUTPUT = "no usable output"
    OUT_OF_MEMORY = "out of memory"
    NETWORK = "network"
    UNSUPPORTED_LIBRARY = "unsupported library"
    RUN_FAILED = "failed while running"
    TIMED_OUT = "took too long"
    CRASHED = "crashed"
    CHECKSUM = "wrong checksum"
    FILTERED = "not asked for"


class ModelError(HubhoundError):
    """One model could not be indexed; the run goes on.

    Args:
        reason: The kind of failure, to count by.
        detail: One line for a person: what was found and what to do; made one by `one_line`.
        model: Repository id ``org/name``.
        revision: Commit or content hash, if it is known by then.
        retry_after_s: Seconds to wait before the next try, where the Hub named them.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        model: str,
        revision: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        detail = one_line(detail)
        super().__init__(f"{model}: {reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
        self.model = model
        self.revision = revision
        self.retry_after_s = retry_after_s


class ModelRefusedError(ModelError):
    """We decline to load the model: running it would be unsafe, pointless or too expensive."""


class ModelFailedError(ModelError):
    """We tried to fetch, load or run the model and it did not work."""
