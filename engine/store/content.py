"""What a store and an index hold, as one number: whether a copy is the same, wherever either of them lies.

Every point is hashed by itself, and the hashes are added modulo 2^256: the order does not matter, nor which machine,
engine or batch it came from. Vectors count as the float32 numbers they are, sparse ones by ascending dimension,
payloads as JSON with sorted keys. It tells accidents (a lost batch, an altered byte, another version of a model), not
forgeries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from engine.store.base import StoredPoint, StoreLayout

_MODULUS = 1 << 256


@dataclass
class Content:
    """Count and hash of a set of things; adding one thing twice is seen.

    Attributes:
        count: How many were added.
        total: Sum of their SHA-256 hashes modulo 2^256.
    """

    count: int = 0
    total: int = 0

    def add(self, point: StoredPoint) -> None:
        """Adds a point of a store."""
        self._add(point_hash(point))

    def add_file(self, path: str, sha256: str) -> None:
        """Adds a file.

        Args:
            path: Below the index's folder, with slashes.
            sha256: Of its bytes, hexadecimal.
        """
        self._add(hashlib.sha256(f"{path}\0{sha256}".encode()).digest())

    def include(self, other: Content) -> None:
        """Adds everything that another one counts."""
        self.count += other.count
        self.total = (self.total + other.total) % _MODULUS

    @property
    def sha256(self) -> str:
        """The sum, 64 hexadecimal digits."""
        return f"{self.total:064x}"

    def _add(self, digest: bytes) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(digest, "big")) % _MODULUS


@dataclass
class IndexContent:
    """What an index holds, part by part.

    Attributes:
        layout: Of its store.
        outputs: Points of the outputs that a model's record claims.
        models: Records of models.
        profiles: Records of tasks, profiles and performance.
        files: Core files, samples of tasks and responses; of the probe images only their hashes, in ``probes.json``.
            The manifest counts as if the images lay in the index's own folder.
    """

    layout: StoreLayout
    outputs: Content = field(default_factory=Content)
    models: Content = field(default_factory=Content)
    profiles: Content = field(default_factory=Content)
    files: Content = field(default_factory=Content)

    def parts(self) -> dict[str, Content]:
        """The parts by name."""
        return {"outputs": self.outputs, "models": self.models, "profiles": self.profiles, "files": self.files}

    def to_json(self) -> dict[str, object]:
        """Everything as JSON."""
        parts = {name: {"count": part.count, "sha256": part.sha256} for name, part in self.parts().items()}
        return {"layout": asdict(self.layout), **parts}

    @property
    def sha256(self) -> str:
        """One hash of everything, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def differences(self, other: IndexContent) -> list[str]:
        """What differs, a few words each; empty where both hold the same."""
        found = [] if self.layout == other.layout else ["the layout"]
        for name, part in self.parts().items():
            theirs = other.parts()[name]
            if part.count != theirs.count:
                found.append(f"{part.count:,} {name} instead of {theirs.count:,}")
            elif part != theirs:
                found.append(f"the contents of the {name}")
        return found


def point_hash(point: StoredPoint) -> bytes:
    """The SHA-256 of one point, 32 bytes."""
    digest = hashlib.sha256()
    for block in (point.id.encode(), canonical(point.payload), *_vectors(point)):
        digest.update(len(block).to_bytes(8, "little"))
        digest.update(block)
    return digest.digest()


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no white space."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def content_of(points: Iterable[StoredPoint]) -> Content:
    """Count and hash of points."""
    content = Content()
    for point in points:
        content.add(point)
    return content


def files_content(hashes: Mapping[str, str]) -> Content:
    """Count and hash of files; probe images count by ``probes.json``, whether they come along or not.

    Args:
        hashes: SHA-256 by path.
    """
    content = Content()
    for path, sha256 in hashes.items():
        if not path.startswith("probes/"):
            content.add_file(path, sha256)
    return content


def _vectors(point: StoredPoint) -> tuple[bytes, bytes, bytes]:
    indices = np.asarray(point.indices, dtype="<u4")
    order = np.argsort(indices, kind="stable")
    # Adding zero makes one number of both zeros: a JSON number may lose its sign.
    values = np.asarray(point.values, dtype="<f4")[order] + np.float32(0)
    dense = np.asarray(point.dense, dtype="<f4") + np.float32(0)
    return indices[order].tobytes(), values.tobytes(), dense.tobytes()
