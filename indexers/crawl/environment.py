"""What a model's process finds in its environment: what libraries need, and none of the daemon's secrets."""

from __future__ import annotations

import os
import site
from collections.abc import Mapping
from pathlib import Path

_PASSED = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHASHSEED"}
)
_PASSED_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "NVIDIA_", "MALLOC_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def environment(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a nursery and its children: what libraries need to be found and to run, and no secrets.

    Args:
        given: The daemon's own.
        home: Folder that takes the place of the user's.
    """
    kept = {
        name: value
        for name, value in given.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and not any(word in name.upper() for word in _SECRET)
    }
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **kept,
        **dict.fromkeys((*offline, "HF_HUB_DISABLE_PROGRESS_BARS", "DO_NOT_TRACK"), "1"),
        # Asks the driver's library instead of starting CUDA, which could not be forked then.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUSERBASE": site.getuserbase(),
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "TORCH_HOME": str(home / "torch"),
    }
