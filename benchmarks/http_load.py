"""The load generator of `http.py`: many clients in one process, each with one request under way.

A client keeps its connection, sends its next request when the whole answer to the last one is there, and takes the time
between. There is no HTTP library in between: one would take longer than what is measured. Runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any

HEAD_END = b"\r\n\r\n"
EXAMPLES = 5


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        port: Of a server on this machine.
        bodies: JSON bodies, sent in turn; empty for requests without one.
        clients: At the same time.
        seconds: For how long.
        path: Where to.
        again: Whether the bodies begin anew when all were sent; else that is the end.
        needles: What the answer to each body must contain, one a body.
        sample: Every so many answers are kept whole; 0 for none.
    """

    port: int
    bodies: Sequence[bytes] = ()
    clients: int = 1
    seconds: float = 5.0
    path: str = "/v1/search"
    again: bool = True
    needles: Sequence[bytes] = ()
    sample: int = 0

    def request(self, body: bytes | None) -> bytes:
        """The bytes of one request."""
        host = f"Host: 127.0.0.1:{self.port}\r\n"
        if body is None:
            return f"GET {self.path} HTTP/1.1\r\n{host}\r\n".encode()
        head = f"POST {self.path} HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body


@dataclass
class Answers:
    """What came back.

    Attributes:
        seconds: Of each answered request, in the order of their ends.
        elapsed: From the first request to the last answer.
        statuses: Answers by status.
        failures: Requests without an answer, answers that are not 200, answers that lack what they must contain; with
            a few examples.
        samples: Place of the body and the whole answer.
        processor: Seconds of processor time that this process took for all of it.
        cut_off: Requests whose connection was closed before a byte of the answer came.
        closed: Connections that the service ended with an answer, as it does when it is told to end.
    """

    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: int = 0
    examples: list[str] = field(default_factory=list)
    samples: list[tuple[int, bytes]] = field(default_factory=list)
    processor: float = 0.0
    cut_off: int = 0
    closed: int = 0

    @cached_property
    def _sorted(self) -> list[float]:
        return sorted(self.seconds)

    def ms(self, share: float) -> float:
        """The smallest time that this share of the requests did not exceed, in milliseconds."""
        place = max(0, math.ceil(share * len(self._sorted)) - 1)
        return round(1e3 * self._sorted[place], 3)

    def figures(self) -> dict[str, float]:
        """Percentiles and rate."""
        return {
            "p50_ms": self.ms(0.5),
            "p95_ms": self.ms(0.95),
            "p99_ms": self.ms(0.99),
            "max_ms": round(1e3 * self._sorted[-1], 3),
            "rps": round(len(self.seconds) / self.elapsed, 1),
            "requests": len(self.seconds),
        }

    def fail(self, what: str) -> None:
        """Counts a failure."""
        self.failures += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(what)


class Client(asyncio.Protocol):
    """One connection with one request under way."""

    def __init__(self, load: Load, places: Iterator[int], answers: Answers, end: float) -> None:
        self._load, self._places, self._answers, self._end = load, places, answers, end
        self._buffer = bytearray()
        self._place = -1
        self._under_way = False
        self._needed = 0
        self._last = False
        self._started = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        place = next(self._places, None) if time.perf_counter() < self._end else None
        if place is None:
            self._under_way = False
            self._transport.close()
            return
        self._place, self._under_way, self._needed = place, True, 0
        self._buffer.clear()
        bodies = self._load.bodies
        request = self._load.request(bodies[place % len(bodies)] if bodies else None)
        self._started = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Waits for the whole answer, then sends the next request."""
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(HEAD_END)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            if not found:
                self._answers.fail(f"an answer without its length: {bytes(self._buffer[:200])!r}")
                self._under_way = False
                self._transport.close()
                return
            self._needed = end + len(HEAD_END) + int(rest.partition(b"\r\n")[0])
            self._last = b"\r\nconnection: close" in head
        if len(self._buffer) >= self._needed:
            self._take(time.perf_counter() - self._started)
            if self._last:
                self._answers.closed += 1
                self._under_way = False
                self._transport.close()
            else:
                self._send()

    def _take(self, seconds: float) -> None:
        answers, load = self._answers, self._load
        answers.seconds.append(seconds)
        status = int(self._buffer[9:12])
        answers.statuses[status] += 1
        if status != 200:
            answers.fail(f"status {status}: {bytes(self._buffer[-300:])!r}")
        elif load.needles and load.needles[self._place % len(load.needles)] not in self._buffer:
            needle = load.needles[self._place % len(load.needles)]
            answers.fail(f"{needle!r} is not in {bytes(self._buffer[:300])!r}")
        elif load.sample and self._place % load.sample == 0:
            answers.samples.append((self._place, bytes(self._buffer).partition(HEAD_END)[2]))

    def connection_lost(self, error: Exception | None) -> None:
        """A request that has no answer yet has failed."""
        if self._under_way:
            self._answers.cut_off += not self._buffer
            self._answers.fail(f"the connection was closed after {len(self._buffer)} bytes of an answer: {error!r}")
        self.done.set_result(None)


async def send(load: Load) -> Answers:
    """Sends a load."""
    answers = Answers()
    count = None if load.again or not load.bodies else len(load.bodies)
    places = iter(range(count)) if count is not None else itertools.count()
    loop = asyncio.get_running_loop()
    began, processor = time.perf_counter(), time.process_time()
    clients = []
    for _ in range(load.clients):
        try:
            _, client = await loop.create_connection(
                lambda: Client(load, places, answers, began + load.seconds), "127.0.0.1", load.port
            )
            clients.append(client)
        except OSError as error:
            answers.fail(f"no connection: {error}")
    await asyncio.gather(*(client.done for client in clients))
    answers.elapsed, answers.processor = time.perf_counter() - began, time.process_time() - processor
    return answers


def _serve(pipe: Connection) -> None:
    with asyncio.Runner() as runner:
        while (load := pipe.recv()) is not None:
            pipe.send(runner.run(send(load)))


class Generator:
    """The process that sends; use it as a context manager."""

    def __enter__(self) -> Generator:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._pipe.send(None)
            self._process.join(5)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def begin(self, load: Load) -> None:
        """Starts to send; ``end`` waits for it."""
        self._pipe.send(load)

    def end(self) -> Answers:
        """What came back."""
        answers: Answers = self._pipe.recv()
        return answers

    def run(self, load: Load) -> Answers:
        """Sends a load and waits for its end."""
        self.begin(load)
        return self.end()


def search_body(text: str, **more: Any) -> bytes:
    """The body of a search for one concept."""
    return json.dumps({"concepts": [text], **more}).encode()
