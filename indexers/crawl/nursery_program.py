"""The nursery's own side, ``python -m indexers.crawl.nursery_program``: see `indexers.crawl.nursery`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import HubhoundError, InputError
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.nursery import MAX_LINE


class _Program:
    """The nursery's own side."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._setup: Setup
        self._limits: Limits
        self._probes: Any = None

    def run(self) -> None:
        """Gets ready, then answers until the daemon is gone."""
        question, _ = self._hear()
        self._say(self._guarded(lambda: self._prepare(question)))
        while True:
            question, handles = self._hear()
            match question["do"]:
                case "fork":
                    self._say(self._fork(Path(question["folder"]), handles[0]))
                case "ended":
                    self._say(self._ended(question["pid"]))
                case "check":
                    self._say(self._guarded(self._open_probes))

    def _prepare(self, first: Mapping[str, Any]) -> dict[str, object]:
        setup = first["setup"]
        probes = None if setup["probes"] is None else Path(setup["probes"])
        self._setup = Setup(**{**setup, "index": Path(setup["index"]), "cache": Path(setup["cache"]), "probes": probes})
        self._limits = Limits(**first["limits"])
        answer = self._open_probes()  # first, because it can say at once what is wrong
        self._import(first["preload"])
        # What was imported stays for ever: a child's collector need not look at it, nor copy its pages for it.
        gc.collect()
        gc.freeze()
        return answer

    def _import(self, preload: str | None) -> None:
        import importlib

        from engine.placement import cuda_is_there

        if not self._setup.on_gpu:
            self._setup.place()
        elif not cuda_is_there():
            raise InputError(f"device {self._setup.device!r} cannot be used: there is no CUDA here")
        importlib.import_module("indexers.crawl.child")
        # Not that of ONNX: its runtime starts a thread when it is imported, and it is imported in no time.
        loaders = ["indexers.loaders.timm_loader", "indexers.loaders.transformers_loader"]
        towers = ["indexers.crawl.profile_child", "engine.conductance", "open_clip"]
        for module in towers if self._setup.towers else loaders:
            importlib.import_module(module)
        if preload:
            importlib.import_module(preload)

    def _open_probes(self) -> dict[str, object]:
        if self._setup.towers:
            return {"probes": 0, "fingerprint": ""}
        from engine.index import Index

        self._probes = Index(self._setup.index).probes(self._setup.probes)
        return {"probes": len(self._probes), "fingerprint": self._probes.fingerprint}

    def _fork(self, folder: Path, handle: int) -> dict[str, object]:
        nursery = os.getpid()
        pid = os.fork()
        if not pid:
            self._become_child(folder, handle, nursery)
        os.close(handle)
        self._children.add(pid)
        return {"pid": pid}

    def _become_child(self, folder: Path, handle: int, nursery: int) -> None:
        try:
            from indexers.crawl.child import live

            _close_all_but(handle)
            live(socket.socket(fileno=handle), folder, self._setup, self._limits, self._probes, nursery)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 70)

    def _ended(self, pid: int) -> dict[str, object]:
        if pid not in self._children:
            return {"ended": True, "status": None, "signal": signal.SIGKILL}
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return {"ended": False}
        self._children.discard(pid)
        by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return {"ended": True, "status": None if by else os.waitstatus_to_exitcode(status), "signal": by}

    def _guarded(self, what: Callable[[], dict[str, object]]) -> dict[str, object]:
        try:
            return what()
        except HubhoundError as error:
            return {"error": " ".join(str(error).split())}
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return {"error": f"the process that loads models does not work: {text}"}

    def _hear(self) -> tuple[dict[str, Any], list[int]]:
        received, handles = b"", list[int]()
        while not received.endswith(b"\n"):
            piece, passed, _, _ = socket.recv_fds(self._control, MAX_LINE, 1)
            if not piece:
                for pid in self._children:  # where a parent's death is not their own
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                os._exit(0)
            received += piece
            handles += passed
        question: dict[str, Any] = json.loads(received)
        return question, handles

    def _say(self, answer: Mapping[str, object]) -> None:
        self._control.sendall(json.dumps(answer).encode() + b"\n")


def _close_all_but(handle: int) -> None:
    """Closes what a child would inherit beside its connection: the nursery's own, and files that libraries opened."""
    os.closerange(3, handle)
    os.closerange(handle + 1, os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Program(socket.socket(fileno=int(sys.argv[1]))).run()
