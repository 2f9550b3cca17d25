"""Whether a driver can join a cluster, tried in a process that can be killed: ``python -m indexers.crawl.fleet.knock``.

Ray waits for minutes where nobody answers, and ends the process in some of the cases. So what listens there is first
asked the question that the head of a cluster answers at once.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

ASK_S = 6.0
"""Longest wait for what listens at the address to say that it is the head of a cluster."""

_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def stranger(address: str, ask_s: float = ASK_S) -> str | None:
    """Why what listens at an address is not the head of a cluster; None if it is, or cannot be asked.

    Args:
        address: ``HOST:PORT``, or ``auto``, of which nobody is asked.
        ask_s: Longest wait.
    """
    if address == "auto" or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None
    try:
        grpc: Any = importlib.import_module("grpc")
    except ImportError:
        return None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=ask_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"it takes the connection, and has not answered for {ask_s:g} s"
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE):
                return "it answers, but not as Ray does"
    return None


def knock(address: str) -> dict[str, str]:
    """Joins a cluster and leaves it.

    Args:
        address: As Ray takes it, ``auto`` for the one that runs here.

    Returns:
        ``address`` of the cluster, or ``error``.
    """
    if (why := stranger(address)) is not None:
        return {"error": why}
    ray: Any = importlib.import_module("ray")
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        found = str(ray.get_runtime_context().gcs_address)
        ray.shutdown()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"error": lines[0] if lines else type(error).__name__}
    return {"address": found}


if __name__ == "__main__":
    # Where its libraries write is nobody's business.
    answer = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer, "w") as stream:
        json.dump(knock(sys.argv[1]), stream)
    os._exit(0)
