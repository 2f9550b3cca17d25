"""The measurements of `http.py`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.http_index import Changing, concepts_of, large_index, middle, new_phrases, small_index, without_seconds
from benchmarks.http_load import Answers, Generator, Load, search_body
from engine.concepts import ConceptCache
from engine.index import Index
from query.api.memory import ConceptMemory
from query.request import SearchRequest
from query.search import Searcher

CLIENTS = (1, 8, 64)
CACHED, ROUNDS, SAMPLE = 200, 3, 25
EVERY_S = 2.0
MB = 2**20


@dataclass(frozen=True)
class Size:
    """How long everything takes.

    Attributes:
        seconds: Of each load.
        switching: Seconds of load while generations switch.
        starts: Of each kind of start; the median counts.
        calls: Of the library, a round.
        cold: Whether the page cache is emptied before each start.
    """

    seconds: float = 10.0
    switching: float = 20.0
    starts: int = 3
    calls: int = 1_000
    cold: bool = True


SMALL = Size(seconds=1.0, switching=5.0, starts=1, calls=200, cold=False)


@dataclass
class Service:
    """A running ``hubhound serve``; use it as a context manager.

    Attributes:
        index: That it serves.
        options: Further ones.
        ready_s: From the command to the first 200 of /readyz.
    """

    index: Path
    options: Sequence[str] = ()
    port: int = 0
    ready_s: float = 0.0
    log: list[str] = field(default_factory=list)

    def __enter__(self) -> Service:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", "from query.cli.main import main; main()", "serve", "--index", str(self.index)]
        command += ["--port", str(self.port), "--rate-limit", "0", "--names", "no", *self.options]
        self._log = tempfile.TemporaryFile("w+")
        began = time.perf_counter()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HUBHOUND_SERVE_")}
        self.process = psutil.Popen(
            command, cwd=Path(__file__).parents[1], stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - began > 120:
                sys.exit(f"http.py: the service did not become ready:\n{self.said()}")
            time.sleep(0.01)
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    def _ready(self) -> bool:
        try:
            self.get("/readyz")
        except OSError:  # also urllib's HTTPError: it is not ready
            return False
        return True

    def get(self, path: str) -> bytes:
        """The answer to a request."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            content: bytes = answer.read()
        return content

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        (value,) = re.findall(rf"^{name} (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        return float(value)

    def memory_mb(self) -> int:
        """Resident memory, all of it."""
        return round(self.process.memory_info().rss / MB)

    def said(self) -> str:
        """What it wrote."""
        self._log.seek(0)
        return self._log.read()

    def drain(self) -> float:
        """Seconds from SIGTERM to its end."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.perf_counter() - began


def main(description: str) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="5,000 synthetic outputs and a small untrained encoder.")
    parser.add_argument("--realhub", type=Path, default=Path(__file__).parents[2] / "shared" / "realhub")
    parser.add_argument("--from", dest="source", type=Path, help="An index of the models of --realhub, with responses.")
    parser.add_argument("--work", type=Path, help="Keeps what is made for the next run.")
    parser.add_argument("--seconds", type=float, help="Of each load, by default 10 (--small: 1).")
    options = parser.parse_args()
    size = SMALL if options.small else Size()
    if options.seconds:
        size = replace(size, seconds=options.seconds)
    if not options.small and not options.realhub.is_dir():
        sys.exit(f"http.py: {options.realhub} does not exist: say with --realhub where real models are, or add --small")
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory(prefix="hubhound-http-") as work:
        Path(work).mkdir(parents=True, exist_ok=True)
        folder = small_index(Path(work)) if options.small else large_index(Path(work), options.realhub, options.source)
        print(json.dumps(Benchmark(folder, size).run()))


class Benchmark:
    """All measurements on one index.

    Args:
        folder: The index.
        size: How long.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder, self._size = folder, size
        self._index = Index(folder)
        import_module("engine.scan_numba")  # the service has the compiled kernels loaded, and so has this library
        self._searcher = Searcher(self._index)
        self._concepts = concepts_of(self._index, CACHED)
        self._index.embed(self._concepts)  # what is not on disk yet is encoded here
        self._failed, self._examples = 0, list[str]()

    def run(self) -> dict[str, Any]:
        """Prints what it finds; answers the figures."""
        snapshot, manifest = self._searcher.snapshot, self._index.manifest
        print(f"{len(snapshot):,} outputs of {len(snapshot.models):,} models, encoder {manifest.encoder.spec}")
        print("processes: the service, the generator; options --rate-limit 0 --names no, else defaults\n")
        figures: dict[str, Any] = {"outputs": len(snapshot)}
        figures |= self._starts()
        with Generator() as generator, Service(self._folder) as service:
            before = service.memory_mb()
            self._send(generator, self._cached(service, 1, again=False))  # into its memory
            figures |= self._overhead(generator, service)
            figures["clients"] = self._clients(generator, service)
            loaded = service.memory_mb()
            figures |= self._switches(generator, service)
            after = service.memory_mb()
            print(f"\nresident memory: {before} MB when ready, {loaded} MB after the loads, {after} MB at the end")
            figures["memory_mb"] = {"ready": before, "loaded": loaded, "end": after}
            figures |= self._drain(generator, service)
        figures["failed"] = self._failed
        print(f"{self._failed} requests failed", *self._examples[:5], sep="\n  ")
        return figures

    def _starts(self) -> dict[str, Any]:
        """Cold starts with and without the encoder."""
        title = "start, page cache emptied" if self._size.cold else "start, files in the page cache"
        print(f"{title:44}{'ready s':>9}")
        figures = {}
        for name, preload in (("ready_s", "yes"), ("ready_without_preload_s", "no")):
            times = []
            for _ in range(self._size.starts):
                if self._size.cold:
                    self._forget()
                with Service(self._folder, ("--preload", preload)) as service:
                    times.append(service.ready_s)
            figures[name] = round(sorted(times)[len(times) // 2], 2)
            print(f"  --preload {preload:32}{figures[name]:9.2f}   worst {max(times):.2f}")
        return figures

    def _forget(self) -> None:
        """Puts the index, the encoder and the libraries out of the page cache, as far as nobody has them open."""
        spec = self._index.manifest.encoder.spec
        folders = [
            self._folder,
            Path(os.__file__).parent,
            *(Path(path) for path in sys.path if "site-packages" in path),
        ]
        if "local-dir:" in spec:
            folders.append(Path(spec.partition("local-dir:")[2]))
        for path in itertools.chain.from_iterable(folder.rglob("*") for folder in folders):
            try:
                file = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)

    def _cached(self, service: Service, clients: int, *, again: bool = True, seconds: float | None = None) -> Load:
        bodies = [search_body(text) for text in self._concepts]
        needles = [json.dumps(text).encode() for text in self._concepts]
        return Load(
            service.port, bodies, clients, seconds or self._size.seconds, again=again, needles=needles, sample=SAMPLE
        )

    def _new(self, service: Service, clients: int) -> Load:
        phrases = list(new_phrases(self._index, 20_000 if self._size.seconds > 1 else 5_000))
        needles = [json.dumps(text).encode() for text in phrases]
        bodies = [search_body(text) for text in phrases]
        return Load(service.port, bodies, clients, self._size.seconds, again=False, needles=needles)

    def _send(self, generator: Generator, load: Load) -> Answers:
        return self._judge(generator.run(load), load)

    def _judge(self, answers: Answers, load: Load, compare: bool = True) -> Answers:
        """Counts failures, and sampled answers that are not the library's."""
        self._failed += answers.failures
        self._examples += answers.examples
        for place, body in answers.samples if compare else ():
            text = json.loads(load.bodies[place % len(load.bodies)])["concepts"][0]
            expected = self._searcher.search(SearchRequest((text,))).to_json()
            if without_seconds(body) != without_seconds(expected):
                self._failed += 1
                self._examples.append(f"{text}: {body[:300]!r} is not {json.dumps(expected)[:300]}")
        return answers

    def _overhead(self, generator: Generator, service: Service) -> dict[str, Any]:
        """One client and the library in turns."""
        memories = {
            "memory": ConceptMemory(self._folder / "concepts.sqlite", CACHED),
            "file": ConceptCache(self._folder / "concepts.sqlite"),
        }
        library: dict[str, list[float]] = {name: [] for name in memories}
        over_http: list[float] = []
        load = self._cached(service, 1, seconds=self._size.seconds / ROUNDS)
        for _ in range(ROUNDS):
            for name, memory in memories.items():
                self._index.concepts = memory
                for number in range(-20, self._size.calls):
                    request = SearchRequest((self._concepts[number % len(self._concepts)],))
                    began = time.perf_counter()
                    self._searcher.search(request)
                    if number >= 0:
                        library[name].append(time.perf_counter() - began)
            over_http += self._send(generator, load).seconds
        found = {name: middle(times) for name, times in library.items()}
        asked = middle(over_http)
        overhead = round(asked - found["memory"], 3)
        print(f"\n{'one cached concept':44}{'p50 ms':>9}")
        print(f"  {'Searcher.search, concepts in memory':42}{found['memory']:9.2f}")
        print(f"  {'Searcher.search, concepts in their file':42}{found['file']:9.2f}")
        print(f"  {'POST /v1/search, one client':42}{asked:9.2f}")
        print(f"  {'overhead over the library in memory':42}{overhead:9.2f}")
        return {
            "overhead_p50_ms": overhead,
            "library_p50_ms": found["memory"],
            "library_file_p50_ms": found["file"],
            "http_p50_ms": asked,
        }

    def _clients(self, generator: Generator, service: Service) -> dict[str, Any]:
        """Cached and new concepts, and what the generator costs."""
        print(f"\n{'clients':28}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}{'a second':>10}{'requests':>10}")
        found: dict[str, Any] = {}
        for clients in CLIENTS:
            idle = self._send(generator, Load(service.port, (), clients, self._size.seconds / 2, "/healthz"))
            cached = self._send(generator, self._cached(service, clients))
            new = self._send(generator, self._new(service, clients))
            own_us = 1e6 * idle.processor / len(idle.seconds)
            for name, answers in (("/healthz", idle), ("cached concepts", cached), ("new concepts", new)):
                f = answers.figures()
                print(
                    f"  {clients:3} {name:22}{f['p50_ms']:9.2f}{f['p95_ms']:9.2f}{f['p99_ms']:9.2f}"
                    f"{f['max_ms']:9.2f}{f['rps']:10.1f}{f['requests']:10,}"
                )
            found[str(clients)] = {
                **cached.figures(),
                **{f"new_{name}": value for name, value in new.figures().items()},
                **{f"healthz_{name}": value for name, value in idle.figures().items()},
                "generator_us": round(own_us, 1),
            }
            print(f"      the generator itself: {own_us:.0f} microseconds of processor time a request")
        return found

    def _switches(self, generator: Generator, service: Service) -> dict[str, Any]:
        """Load while the index changes."""
        load = self._cached(service, 8, seconds=self._size.switching)
        before = service.metric("hubhound_generation_switches_total")
        with Changing(self._folder, EVERY_S) as changing:
            generator.begin(load)
            answers = generator.end()
            written = changing.end()
        self._judge(answers, load, compare=False)
        switches = int(service.metric("hubhound_generation_switches_total") - before)
        seen = {int(json.loads(body)["searched"]) for _, body in answers.samples}
        possible = {len(self._searcher.snapshot), *(outputs for _, outputs in written)}
        wrong = len(seen - possible)
        self._failed += wrong
        f = answers.figures()
        print(
            f"\n8 clients for {self._size.switching:.0f} s while {len(written)} generations were written: "
            f"{switches} taken over, {answers.failures + wrong} of {f['requests']:,} requests failed\n"
            f"  p50 {f['p50_ms']:.2f} ms, p99 {f['p99_ms']:.2f} ms, max {f['max_ms']:.2f} ms; "
            f"answers from {len(seen)} sizes of the index"
        )
        return {"switches": switches, "written": len(written), "switching": f, "sizes_seen": len(seen)}

    def _drain(self, generator: Generator, service: Service) -> dict[str, Any]:
        """The end under load: connections that are closed between two requests lose nothing."""
        load = self._cached(service, 8, seconds=30)
        generator.begin(load)
        time.sleep(1)
        seconds = service.drain()
        answers = generator.end()
        lost = answers.failures - answers.cut_off
        self._failed += lost
        self._examples += answers.examples if lost else []
        print(
            f"\nSIGTERM under 8 clients: ended after {seconds:.2f} s with status {service.process.returncode}; "
            f"{len(answers.seconds):,} requests answered, {lost} lost while they were answered, "
            f"{answers.cut_off} met a closed connection"
        )
        return {"drain_s": round(seconds, 2), "drain_lost": lost}
