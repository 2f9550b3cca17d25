"""The manifest: what an index was made with, and the refusal to mix it with anything else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from engine.descriptors import VERSION, Normalisation
from engine.distance import Method
from engine.errors import IndexDamagedError, IndexMismatchError, IndexMissingError
from engine.files import read_json, write_json
from engine.index_files import DELETING, MANIFEST, UNFINISHED
from engine.schema import Record

FORMAT = 2
"""Version of the folder's layout."""


class ProbesPart(Record):
    """The probe set."""

    source: str = Field(description="As the user named it.")
    folder: str | None = Field(description="Where the images are; None: in the index's own folder.")
    count: int
    fingerprint: str = Field(description="SHA-256 over the ordered contents.")


class EncoderPart(Record):
    """The concept encoder."""

    spec: str
    fingerprint: str = Field(description="SHA-256 over the weights.")
    dimension: int
    templates: tuple[str, ...]


class BackgroundPart(Record):
    """What outputs are calibrated against."""

    source: str
    count: int
    k: int = Field(description="How many of the nearest make the hubness.")
    fingerprint: str = Field(description="SHA-256 over the ordered phrases and k.")


class Manifest(Record):
    """What an index was made with."""

    format: int = FORMAT
    descriptor_version: int = VERSION
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    probes: ProbesPart
    encoder: EncoderPart
    top_r: int
    method: Method = "whitened"
    normalisation: Normalisation = "divisive"
    responses: Literal["keep", "drop"] = "keep"
    background: BackgroundPart

    def check_probes(self, fingerprint: str, where: str) -> None:
        """Refuses other probes.

        Raises:
            IndexMismatchError: The fingerprint differs.
        """
        _check("probes", self.probes.fingerprint, fingerprint, f"the probe images ({where}) are not the ones")

    def check_encoder(self, fingerprint: str, spec: str) -> None:
        """Refuses another encoder.

        Raises:
            IndexMismatchError: The fingerprint differs.
        """
        _check("encoder", self.encoder.fingerprint, fingerprint, f"the encoder {spec} is not the one")

    def check_top_r(self, top_r: int) -> None:
        """Refuses another number of kept probes.

        Raises:
            IndexMismatchError: It differs.
        """
        _check("top_r", self.top_r, top_r, f"top r {top_r} is not the one")


def _check(part: str, expected: object, found: object, complaint: str) -> None:
    if expected != found:
        raise IndexMismatchError(
            f"{complaint} that the index was made with: {part} {_short(expected)} was used, this is {_short(found)}; "
            "use the original, or make another index (hubhound index rebuild needs no model to be run again)",
            part,
            expected,
            found,
        )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index.

    Raises:
        IndexMissingError: There is no index in the folder.
        IndexDamagedError: The manifest cannot be read, or it is one that was not copied or not deleted to the end.
        IndexMismatchError: It was made by another version.
    """
    path = folder / MANIFEST
    if (folder / DELETING).exists():
        raise half_deleted(folder)
    if not path.exists():
        if (folder / UNFINISHED).exists():
            raise unfinished(folder)
        raise IndexMissingError(folder)
    value = read_json(path)
    versions = value if isinstance(value, dict) else {}
    for part, ours in (("format", FORMAT), ("descriptor_version", VERSION)):
        if versions.get(part, ours) != ours:
            raise IndexMismatchError(
                f"the index {folder} has {part.replace('_', ' ')} {versions[part]}, this hubhound reads {ours}: "
                "use the version that made it, or make the index again",
                part,
                ours,
                versions[part],
            )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IndexDamagedError(f"the manifest {path} is damaged: {where}: {first['msg']}", path) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest atomically."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def unfinished(place: Path | str) -> IndexDamagedError:
    """The error of an index that was not copied or restored to the end."""
    return IndexDamagedError(
        f"{place} is an unfinished copy: run the same 'hubhound index copy' (or restore) again, it goes on where it "
        f"stopped, or give it up with 'hubhound index delete --index {place}'",
        place,
    )


def half_deleted(place: Path | str) -> IndexDamagedError:
    """The error of an index whose deletion was interrupted."""
    return IndexDamagedError(
        f"{place} is what is left of an index that was being deleted: finish that with "
        f"'hubhound index delete --index {place}'",
        place,
    )
