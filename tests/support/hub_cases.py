"""What a bad repository is made of: a good one to spoil, what its hub is told, and what a crawler must say of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.errors import Reason
from indexers.crawl.records import State
from indexers.loaders.declined import REFUSALS
from tests.support.hub_bases import Base, bases, draw_labels, write

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

WEIGHTS = "model.safetensors"


@dataclass
class Told:
    """What a folder cannot say about its repositories and a hub has to be told.

    Attributes:
        gated: Repositories whose authors want to be asked.
        vanished: Status of repositories that are listed and cannot be fetched.
        sizes: Stated sizes in bytes, by repository and file.
        aliases: By repository, names it claims to have, and the file behind each.
        corrupt: Files that arrive damaged.
        facts: What else is stated.
    """

    gated: set[str] = field(default_factory=set)
    vanished: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    corrupt: set[tuple[str, str]] = field(default_factory=set)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tell(self, hub: HubServer) -> None:
        """Tell a hub."""
        hub.gated |= self.gated
        hub.vanished |= self.vanished
        hub.facts |= self.facts
        hub.repositories.aliases |= self.aliases
        for (repo, name), size in self.sizes.items():
            hub.lie(repo, name, size=size)
        for repo, name in self.corrupt:
            hub.corrupt(repo, name)


@dataclass
class Case:
    """A repository to be spoilt.

    Attributes:
        repo: Its id.
        folder: Where it lies.
        rng: For what is drawn.
        told: To add to.
        canary: A file that exists if any of its code has been run.
    """

    repo: str
    folder: Path
    rng: np.random.Generator
    told: Told
    canary: Path

    def good(self, name: str) -> Base:
        """Write a whole model of a kind first."""
        base = next(base for base in bases() if base.name == name)
        write(self.folder, base, base.copy(self.rng, 6), draw_labels(self.rng, 6))
        return base

    def config(self, **changes: Any) -> None:
        """Change keys of the config; None removes one."""
        self._json("config.json", changes)

    def processor(self, **changes: Any) -> None:
        """Change keys of the preprocessing."""
        self._json("preprocessor_config.json", changes)

    def _json(self, name: str, changes: Mapping[str, Any]) -> None:
        content = {**json.loads((self.folder / name).read_text()), **changes}
        (self.folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    def weights(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the tensors in place."""
        tensors = dict(load_file(self.folder / WEIGHTS))
        change(tensors)
        save_file(tensors, self.folder / WEIGHTS, {"format": "pt"})

    def raw(self, header: bytes, body: bytes = b"", claimed: int | None = None) -> None:
        """Replace the weights by a header and a body."""
        length = struct.pack("<Q", len(header) if claimed is None else claimed)
        (self.folder / WEIGHTS).write_bytes(length + header + body)

    def only(self, *names: str) -> None:
        """Remove all other files."""
        for path in self.folder.iterdir():
            if path.name not in {*names, "README.md"}:
                path.unlink()


@dataclass(frozen=True)
class Kind:
    """A way to be bad.

    Attributes:
        name: Of the kind.
        reason: The crawler must give.
        why: One line for people.
        spoil: Makes the repository.
        loads: Whether it loads, and only its answers show what is wrong.
        heavy: Whether it is so large that one of it is enough.
    """

    name: str
    reason: Reason
    why: str
    spoil: Callable[[Case], None]
    loads: bool = False
    heavy: bool = False

    @property
    def state(self) -> State:
        """Where it ends in the journal."""
        return State.REFUSED if self.reason in REFUSALS else State.FAILED
