"""What containers and units start, started for real on this machine.

Command lines, variables, secrets and checks are those of ``deploy/``. Replaced are only

- absolute paths, by folders of the test: `PATHS`, of which ``/tmp`` is named in ``TMPDIR``;
- ports that something listens on, by free ones, and names of other containers with them: ``qdrant:6333``;
- the image, by the program of this checkout.

Added is ``HF_ENDPOINT``, the tests' own Hub. A read-only root is imitated by Landlock, see `contained`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support import contained
from tests.support.deployment import REPOSITORY, Check, Container, image_environment
from tests.support.service import free_port

PATHS = (
    *("/opt/hubhound", "/run/secrets", "/run/credentials", "/etc/hubhound", "/etc/mirror"),
    *("/var/lib/hubhound-backups", "/var/lib/hubhound", "/var/cache/hubhound"),
    *("/backups", "/models", "/data", "/cache", "/tmp"),  # noqa: S108
)
"""Absolute paths that mean a folder of the test."""

WAIT_S = 120.0
"""A machine with much else to do takes its time."""

_PATH = re.compile(rf"(?<![\w./-])({'|'.join(PATHS)})(?![\w.-])")
_PROGRAMS = {
    "hubhound": "from query.cli.main import main; main()",
    "hf": "from huggingface_hub.cli.hf import main; main()",
    "ray": "from ray.scripts.scripts import main; main()",
}
_OPTION = r"--(?:metrics-|node-manager-|object-manager-|min-worker-|max-worker-)?port"
_GIVEN = re.compile(rf"({_OPTION}[ \n])(\d+)")
_WIDTH = 100
_RANGES = itertools.count()


@dataclass
class Running:
    """A process of a container.

    Attributes:
        process: It.
        log: File of what it writes.
        grace_s: From SIGTERM to SIGKILL.
    """

    process: subprocess.Popen[bytes]
    log: Path
    grace_s: float

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log of one kind, which it writes as JSON."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something that it does, which may be to listen; fails when it ends before."""
        until = time.monotonic() + WAIT_S
        while not _is(condition):
            assert self.process.poll() is None, f"it ended before {what}: {self.said()}"
            assert time.monotonic() < until, f"not in {WAIT_S:g} s: {what}: {self.said()}"
            time.sleep(0.1)

    def end(self) -> int:
        """Ends it as its manager would; its exit status, negative where SIGTERM or SIGKILL ended it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(self.grace_s)


@dataclass
class Contained:
    """One container or unit on this machine.

    Attributes:
        one: As ``deploy/`` describes it.
        folder: Its paths are below this.
        hosts: What other containers are called here.
        ports: Its own ports here, by those of its files.
        extra: More variables.
    """

    one: Container
    folder: Path
    hosts: Mapping[str, str]
    extra: Mapping[str, str]
    ports: dict[str, str] = field(default_factory=dict)
    _running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        told = "\n".join((*self.one.command, *self.one.arguments))
        first = 12000 + _WIDTH * ((os.getpid() + next(_RANGES)) % 180)  # away from those that the kernel gives away
        for option, port in _GIVEN.findall(told):
            ranged = "-worker-" in option
            self.ports[port] = str(first + int(port) % _WIDTH if ranged else free_port())
        for path in (*self.one.writable, "/tmp"):  # noqa: S108
            self.path(path).mkdir(parents=True, exist_ok=True)
        programs = self.path("/opt/hubhound") / "bin"
        programs.mkdir(parents=True)
        for name, source in _PROGRAMS.items():
            (programs / name).write_text(f"#!{sys.executable}\n{source}\n")
            (programs / name).chmod(0o755)

    def path(self, name: str) -> Path:
        """Where an absolute path of the container is."""
        return self.folder / name.lstrip("/")

    def told(self, text: str) -> str:
        """A text of the files with paths, hosts and ports of this machine."""
        text = _PATH.sub(lambda match: str(self.path(match[1])), text)
        for host, here in self.hosts.items():
            text = re.sub(rf"(?<![\w.]){re.escape(host)}(?!\w)", here, text)
        return text

    def line(self, words: Sequence[str]) -> list[str]:
        """A command line on this machine."""
        found = []
        for before, word in zip(("", *words), words, strict=False):
            here = self.ports[word] if re.fullmatch(_OPTION, before) else self.told(word)
            found.append(_GIVEN.sub(lambda match: match[1] + self.ports[match[2]], here))
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Its variables and no others of this process."""
        of_image = {} if self.one.where.endswith(".service") else image_environment()
        given = {**of_image, **self.one.environment, **self.extra}
        found = {name: self.told(value) for name, value in given.items()}
        found["TMPDIR"] = str(self.path("/tmp"))  # noqa: S108
        found["PATH"] = f"{self.path('/opt/hubhound') / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
        found["PYTHONPATH"] = str(REPOSITORY)
        return found

    def secrets(self, made: Path) -> None:
        """Lays down the secrets that are mounted, as files that it cannot write to."""
        for path, name in self.one.secrets.items():
            target = self.path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / name, target)

    def command(self) -> list[str]:
        """What it runs."""
        return self.line([*(self.one.command or ["hubhound"]), *self.one.arguments])

    def start(self, words: Sequence[str] = ()) -> Running:
        """Starts it.

        Args:
            words: A finished command line; by default its own.
        """
        log = self.folder / f"log-{len(self._running)}.txt"
        writable = [str(self.path("/tmp")), *(str(self.path(path)) for path in sorted(self.one.writable))]  # noqa: S108
        launch = [sys.executable, "-I", contained.__file__, *writable, "--"]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*launch, *(words or self.command())],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(Running(process, log, self.one.grace_s))
        return self._running[-1]

    def run(self, words: Sequence[str] = ()) -> str:
        """Runs it to its end, which must be a good one; what it said."""
        running = self.start(words)
        status = running.process.wait(WAIT_S)
        assert status == 0, f"{self.one.where}: {status}: {running.said()}"
        return running.said()

    @property
    def web(self) -> str:
        """The port, as its files have it, where it answers over HTTP."""
        words = self.one.arguments
        return words[words.index("--metrics-port" if "--metrics-port" in words else "--port") + 1]

    @property
    def url(self) -> str:
        """Where it answers over HTTP."""
        return f"http://127.0.0.1:{self.ports[self.web]}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Asks it over HTTP."""
        return httpx.get(f"{self.url}{path}", timeout=5, **options)

    def well(self, check: Check) -> bool:
        """Whether a check passes; by HTTP it is asked by the address of a pod, as by a kubelet."""
        if check.path:
            try:
                return self.get(check.path, headers={"Host": f"10.1.2.3:{self.web}"}).is_success
            except httpx.HTTPError:
                return False
        words = [self.told(word) for word in check.command]
        for written, here in self.ports.items():
            words = [re.sub(rf"(?<=[ :]){written}\b", here, word) for word in words]
        if words[0] == "python":
            words[0] = sys.executable
        done = subprocess.run(words, env=self.environment, capture_output=True, timeout=30)
        return done.returncode == 0

    def close(self) -> None:
        """Kills what still runs, with what it started."""
        for running in self._running:
            # What it left behind as well: a container takes everything with it.
            with suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait(30)


def _is(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except httpx.TransportError:
        return False


@contextmanager
def place(
    folder: Path, hosts: Mapping[str, str], extra: Mapping[str, str], secrets: Path
) -> Iterator[Callable[..., Contained]]:
    """Makes containers on this machine; whatever they started is ended with the block.

    Args:
        folder: For all their files.
        hosts: ``NAME:PORT`` of other containers, and where they are here.
        extra: Variables that all get.
        secrets: Folder of ``deploy/make_secrets.sh``.
    """
    made: list[Contained] = []

    def make(one: Container, name: str, **more: str) -> Contained:
        made.append(Contained(one, folder / name, hosts, {**extra, **more}))
        made[-1].secrets(secrets)
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
