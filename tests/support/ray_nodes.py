"""A Ray cluster of several nodes on this machine, whose nodes can be killed and added.

It runs in a process of its own, ``python -m tests.support.ray_nodes``: what Ray leaves open there is no concern of the
tests, and it ends when they do.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE_BYTES = 80 * 2**20
"""Object store of each node: the smallest that Ray takes is 75 MB."""


class RayNodes:
    """The side of those who use it.

    Args:
        process: That runs it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = ""
        """``HOST:PORT``."""

    def add(self, cpus: float = 1, gpus: float = 0) -> int:
        """Starts one more node; its number."""
        return int(self._say({"do": "add", "cpus": cpus, "gpus": gpus})["number"])

    def kill(self, number: int) -> None:
        """Kills all processes of a node."""
        self._say({"do": "kill", "number": number})

    def start(self) -> None:
        """Waits until the head, which has no room for workers, is there."""
        self.address = self._hear()["address"]

    def _say(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def ray_nodes(folder: Path) -> Iterator[RayNodes]:
    """A cluster, its head being started.

    Args:
        folder: For its object stores: not all machines let everybody write to their shared memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "cluster.log").open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_nodes", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=Path(__file__).parents[2],
        ) as process,
    ):
        try:
            yield RayNodes(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _main(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")
    common = {"object_store_memory": STORE_BYTES, "plasma_directory": folder, "include_dashboard": False}

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_log_monitor": False, **common}
    )
    say({"address": cluster.address})
    nodes: list[Any] = []
    try:
        for line in sys.stdin:
            question = json.loads(line)
            if question["do"] == "add":
                nodes.append(cluster.add_node(num_cpus=question["cpus"], num_gpus=question["gpus"], **common))
                say({"number": len(nodes) - 1})
            else:
                cluster.remove_node(nodes[question["number"]], allow_graceful=False)
                say({})
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    _main(sys.argv[1])
