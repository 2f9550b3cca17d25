"""Whether a driver can join a cluster, tried in a process that can be killed: ``python -m indexers.crawl.fleet.knock``.

Ray waits for minutes where nobody answers, and ends the process in some of the cases.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def knock(address: str) -> dict[str, str]:
    """Joins a cluster and leaves it.

    Args:
        address: As Ray takes it, ``auto`` for the one that runs here.

    Returns:
        ``address`` of the cluster, or ``error``.
    """
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
