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

CONDUCTANCE = "conductance.npy"
"""File in the scratch folder that holds a tower's conductance, float64 ``[images, blocks + 1]``: of each image the mean
|conductance| of each block, and the completeness gap."""

MAX_BLOCKS = 2000
MAX_BLOCK_NAME = 300

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


class Shown(_Message):
    """An image of a task's sample.

    Attributes:
        path: Where it is.
        sha256: Of its bytes.
    """

    path: str
    sha256: str


class Recorded(_Message):
    """What profiles of a model there are.

    Attributes:
        revision: Hash of the weights they were made with.
        blocks: Names of their blocks.
        missing: Tasks without a profile that could be made like them.
    """

    revision: str
    blocks: tuple[str, ...]
    missing: tuple[str, ...]


class ProfileJob(_Message):
    """One vision-language model to load and profile.

    Attributes:
        number: Counts the jobs of a process.
        name: As its profiles name it.
        folder: Where its files are.
        n_steps: Steps of the path.
        precision: Of the passes, ``auto`` for the device's.
        tasks: Images of the tasks' samples, by task.
        recorded: Its profiles, None without. Under the same weights only what is missing is profiled.
    """

    number: int
    name: str
    folder: str
    n_steps: int
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    tasks: dict[str, tuple[Shown, ...]]
    recorded: Recorded | None


def images_of(job: ProfileJob, revision: str) -> dict[str, Shown]:
    """The images that a job asks to show to a model, by hash, in their order.

    Args:
        job: The job.
        revision: Hash of the weights that turned out to be there.
    """
    same = job.recorded is not None and job.recorded.revision == revision
    names = job.recorded.missing if job.recorded is not None and same else tuple(job.tasks)
    return {image.sha256: image for name in names for image in job.tasks[name]}


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


class ProfileAnswer(_Message):
    """A tower was loaded and profiled; its conductance lies in the scratch folder unless there was no image to show.

    Attributes:
        number: Of the job.
        revision: Hash of its weights and preprocessing.
        blocks: Names of its blocks.
        parameters: Number of them, of the whole model.
        precision: Of the passes.
        images: How many it was shown.
        seconds: By stage.
    """

    kind: Literal["profiled"] = "profiled"
    number: int
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    blocks: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_BLOCK_NAME, pattern=r"^[\x21-\x7e]+$")], ...],
        Field(min_length=1, max_length=MAX_BLOCKS),
    ]
    parameters: _Count
    precision: Literal["float32", "float16", "bfloat16"]
    images: _Count
    seconds: dict[Literal["load", "probe"], _Seconds]


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


Reply = Hello | Telling | Answer | ProfileAnswer | Failure
_JOBS: TypeAdapter[Job | ProfileJob] = TypeAdapter(Job | ProfileJob)
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


def read_job(data: bytes) -> Job | ProfileJob:
    """What the daemon asks for."""
    return _JOBS.validate_json(data)


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
