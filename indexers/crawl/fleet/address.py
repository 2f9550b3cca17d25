"""The address of a Ray cluster: is it one, and does anybody answer, known within seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from engine.errors import HubhoundError, InputError, one_line

CONNECT_S = 5.0
"""Longest wait for a connection."""

TELL_S = 2.5
"""A longer wait for a cluster is told of."""

JOIN_S = 20.0
"""Longest wait for a cluster to let us in; what is none is found out before that (`indexers.crawl.fleet.knock`)."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's environment: it tells nobody of us."""

_FORM = "HOST:PORT, as 'ray start --head' prints it, or 'auto' for the cluster of this machine"


def check(address: str, tell: Callable[[str], None] = lambda line: None) -> str:
    """Looks whether there is a cluster that this machine can drive.

    Args:
        address: ``HOST:PORT`` or ``auto``.
        tell: Called with a line if that takes longer than one would think.

    Returns:
        The same as ``HOST:PORT``.

    Raises:
        InputError: It is no address, or Ray is not installed.
        HubhoundError: Nobody answers there, or it is no cluster.
    """
    if find_spec("ray") is None:
        raise InputError("--ray needs Ray, which is not installed: pip install 'hubhound[fleet]', on all nodes")
    if address.startswith("ray://"):
        raise InputError(f"{address} is for Ray's client: start the crawl on a node of the cluster, with --ray {_FORM}")
    if address != "auto":
        host, port = _parts(address)
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as error:
            why = "nobody has answered" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
            raise HubhoundError(
                f"there is no Ray cluster at {address}: {why}; look at 'ray status' there, or start one with "
                "'ray start --head'"
            ) from error
    return _join(address, tell)


def _parts(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise InputError(f"{address!r} is not the address of a Ray cluster: {_FORM}")
    return match[1].strip("[]"), int(match[2])


def _join(address: str, tell: Callable[[str], None]) -> str:
    """What Ray itself says, from a process that is killed when it takes too long."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "indexers.crawl.fleet.knock", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **QUIET},
        start_new_session=True,
    )
    try:
        try:
            said, _ = process.communicate(timeout=min(TELL_S, JOIN_S))
        except subprocess.TimeoutExpired:
            tell(f"waiting for the Ray cluster at {address} to let us in, up to {JOIN_S:g} s")
            said, _ = process.communicate(timeout=max(0.0, JOIN_S - TELL_S))
        answer = json.loads(said)
    except subprocess.TimeoutExpired:
        answer = {"error": f"it has not let us in for {JOIN_S:g} s"}
    except ValueError:
        answer = {"error": "it answers, but not as Ray does"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if "address" in answer:
        return str(answer["address"])
    raise HubhoundError(
        f"no Ray cluster can be joined at {address}: {one_line(str(answer['error']))} "
        "(this machine must be one of its nodes, with the same versions of Ray and Python)"
    )
