"""Names of dual encoders, readable without loading any library."""

from __future__ import annotations

from pathlib import Path


def absolute_spec(spec: str) -> str:
    """The same encoder from whatever folder a command is run: the folder of ``local-dir:`` as an absolute path."""
    prefix = "open_clip:local-dir:"
    if not spec.startswith(prefix) or spec == prefix:
        return spec
    return prefix + str(Path(spec.removeprefix(prefix)).expanduser().resolve())
