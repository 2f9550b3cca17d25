"""What the daemon and a model's process say to each other; what comes from the process is a stranger's word.

A message is a length in four bytes, most significant first, and JSON of that length.
"""

from __future__ import annotations

import socket
import struct
import time
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engine.errors import Reason
from indexers.loaders.layout import MAX_OUTPUTS

MAX_MESSAGE_BYTES = 16 * 2**20
"""Labels of 22,000 classes take some two million bytes."""

RESPONSES = "responses.npy"
"""File in the scratch folder that holds a model's responses, float32 ``[n, outputs]``."""

MAX_DETAIL = 500
MAX_LABEL = 2000
_MAX_SECONDS = 10.0**9
_HEAD = struct.Struct(">I")
_PIECE_BYTES = 2**18

Stage = Literal["loading", "decoding probes", "probing"]
PIXELS = r"[0-9a-f]{16}/[A-Za-z0-9][A-Za-z0-9._=-]{0,149}\.npy"
"""What preprocessed probes are called beneath their cache; no part of it begins with a dot."""

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Side = Annotated[int, Field(ge=1, le=100_000)]
_Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS, allow_inf_nan=False)]
_PixelsName = Annotated[str, Field(pattern=f"^{PIXELS}$")]


class Blame(StrEnum):
    """Whose fault a failure is, as the model's process sees it."""

    MODEL = "model"
    PROBES = "probes"  # an image that cannot be read
    DISK = "disk"  # which is full


class GarbageError(Exception):
    """The other side said something that cannot be meant; the message is a part of a sentence that says what."""


class ClosedError(Exception):
    """The other side has closed its end, most likely by dying."""

    def __init__(self) -> None:
        super().__init__("it has closed its connection")


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Job(_Message):
    """One model to load and probe.

    Attributes:
        number: Counts the jobs of a process.
        repo: Id, ``org/name``.
        revision: Commit or content hash.
        folder: Where its files are.
    """

    number: int
    repo: str
    revision: str
    folder: str


class Hello(_Message):
    """The first thing a process says, before it has touched any model.

    Attributes:
        layers: Of its sandbox, those in force.
    """

    kind: Literal["hello"] = "hello"
    layers: tuple[str, ...]


class Telling(_Message):
    """How far a process is with its model.

    Attributes:
        what: What it is doing.
        done: Of it.
        total: 0 where it is unknown.
    """

    kind: Literal["telling"] = "telling"
    what: Stage
    done: _Count
    total: _Count


class Answer(_Message):
    """A model was loaded and probed; its responses lie in the scratch folder.

    Attributes:
        number: Of the job.
        library: ``timm``, ``transformers`` ...
        architecture: As the library names it.
        parameters: Number of them.
        input_size: Height and width in pixels.
        labels: One per output.
        shape: Of the responses, ``[n, outputs]``.
        probabilities: Whether it answers probabilities.
        seconds: By stage.
        pixels: The preprocessed probes it used, beneath the cache.
        new_pixels: They were not there, and lie in the scratch folder now.
    """

    kind: Literal["answer"] = "answer"
    number: int
    library: Annotated[str, Field(max_length=100)]
    architecture: Annotated[str, Field(max_length=1000)]
    parameters: _Count
    input_size: tuple[_Side, _Side]
    labels: Annotated[tuple[Annotated[str, Field(max_length=MAX_LABEL)] | None, ...], Field(max_length=MAX_OUTPUTS)]
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=MAX_OUTPUTS)]]
    probabilities: bool
    seconds: dict[Literal["load", "decode", "probe"], _Seconds]
    pixels: _PixelsName
    new_pixels: bool


class Failure(_Message):
    """A model could not be loaded or probed.

    Attributes:
        number: Of the job.
        blame: Whose fault it is.
        reason: The kind of failure.
        detail: One line.
    """

    kind: Literal["failure"] = "failure"
    number: int
    blame: Annotated[Blame, Field(strict=False)]
    reason: Annotated[Reason, Field(strict=False)]
    detail: Annotated[str, Field(max_length=MAX_DETAIL, pattern=r"^[^\r\n]*$")]


Reply = Hello | Telling | Answer | Failure
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


def read_reply(data: bytes) -> Reply:
    """What a model's process said.

    Raises:
        GarbageError: It is none of the messages there are.
    """
    try:
        return _REPLIES.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(ascii(str(part))[1:-1][:40] for part in first["loc"]) or "the message"
        raise GarbageError(f"said what cannot be meant ({where}: {ascii(first['msg'])[1:-1][:120]})") from error
    except RecursionError as error:
        raise GarbageError("said what cannot be meant (nested too deep)") from error


class Channel:
    """Messages over one end of a stream of bytes.

    Args:
        end: A connected socket; it is closed with the channel.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._received = bytearray()

    def send(self, message: _Message, timeout_s: float | None = None) -> None:
        """Says something.

        Args:
            message: It.
            timeout_s: How long the other side may take to make room.

        Raises:
            ClosedError: Nobody is there to hear it, or it does not listen.
        """
        data = message.model_dump_json(exclude_none=False).encode()
        self.socket.settimeout(timeout_s)
        try:
            self.socket.sendall(_HEAD.pack(len(data)) + data)
        except OSError as error:
            raise ClosedError from error

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next message.

        Args:
            timeout_s: How long to wait for it; None for as long as it takes.

        Returns:
            Its JSON, None if it is not complete by then.

        Raises:
            ClosedError: There will be none.
            GarbageError: It is too long.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if len(self._received) >= _HEAD.size:
                size = _HEAD.unpack_from(self._received)[0]
                if size > MAX_MESSAGE_BYTES:
                    raise GarbageError(f"began a message of {size:,} bytes, or wrote what is no message")
                if len(self._received) >= _HEAD.size + size:
                    data = bytes(self._received[_HEAD.size : _HEAD.size + size])
                    del self._received[: _HEAD.size + size]
                    return data
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                piece = self.socket.recv(_PIECE_BYTES)
            except TimeoutError:
                return None
            except OSError as error:
                raise ClosedError from error
            if not piece:
                raise ClosedError
            self._received += piece

    def close(self) -> None:
        """Closes this end."""
        self.socket.close()
