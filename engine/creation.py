"""Making an index: gather the probes, embed them, write the folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from engine.encoder import ConceptEncoder
from engine.errors import InputError, ProbeError
from engine.index import Index, IndexSettings, refuse_occupied
from engine.probes import Probe, ProbeSet, checked_images, gather, is_folder_spec
from engine.throughput import pick_device

Advance = Callable[[int, int], None]


def create_index(
    folder: Path,
    probe_source: str,
    encoder_spec: str,
    settings: IndexSettings,
    *,
    seed: int = 0,
    skip_bad: bool = False,
    device: str = "auto",
    copy_images: bool = False,
    gathering: Advance | None = None,
    embedding: Advance | None = None,
    skipped: Callable[[ProbeError], None] | None = None,
) -> Index:
    """Makes an empty index; it appears whole or not at all.

    Args:
        folder: Must not exist, or be empty.
        probe_source: A folder, ``hf:ORG/DATASET:SPLIT:N`` or ``dead-leaves:N``.
        encoder_spec: See ``ConceptEncoder.load``.
        settings: Everything else.
        seed: Of the probe set's draw or generator.
        skip_bad: Leave out images that cannot be read.
        device: Where the encoder runs.
        copy_images: Copy the images of a user's folder into the index, too.
        gathering: Called with (done, total) while probes are fetched or generated.
        embedding: Called with (done, total) while probes are embedded.
        skipped: Told about every image left out.

    Raises:
        InputError: Anything given cannot be used.
        OSError: The index cannot be written.
    """
    refuse_occupied(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.probes."))
    try:
        images = scratch / "probes"
        probes = gather(probe_source, images, seed, gathering)
        if settings.top_r > len(probes):
            raise InputError(
                f"--top-r {settings.top_r}: there are only {len(probes)} probes; use more images or a smaller r"
            )
        encoder = ConceptEncoder.load(encoder_spec, pick_device(device))
        good: list[Probe] = []

        def readable() -> Iterator[Image.Image]:
            for probe, image in checked_images(probes, skip_bad, skipped):
                good.append(probe)
                yield image

        total = len(probes)
        vectors = encoder.encode_images(
            readable(),
            total,
            (lambda done: embedding(done, total)) if embedding else None,
        )
        whole = ProbeSet(probes.source, probes.folder, tuple(good))
        moved: Path | None = images
        if is_folder_spec(probe_source):
            moved = _copied(whole, images) if copy_images else None
        return Index.create(folder, whole, vectors, encoder, settings, moved)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def create_like(
    old: Index,
    folder: Path,
    settings: IndexSettings,
    encoder_spec: str,
    *,
    device: str = "auto",
    probe_folder: Path | None = None,
    embedding: Advance | None = None,
    copy_images: bool = False,
) -> Index:
    """Makes an empty index over the same probes as another one.

    Args:
        old: The other index.
        folder: Of the new one.
        settings: Of the new one.
        encoder_spec: Its encoder; the probes are embedded again unless it is the same.
        device: Where the encoder runs.
        probe_folder: Where the probe images are now, if they were moved.
        embedding: Called with (done, total) while probes are embedded.
        copy_images: Copy the images into the index, also if the other one has them in a user's folder.

    Raises:
        InputError: Anything given cannot be used.
        IndexMismatchError: The probe images have changed.
        OSError: The index cannot be written.
    """
    refuse_occupied(folder)
    encoder = ConceptEncoder.load(encoder_spec, pick_device(device))
    probes = old.probes(probe_folder)
    vectors = old.probe_embeddings
    if encoder.fingerprint != old.manifest.encoder.fingerprint:
        total = len(probes)
        vectors = encoder.encode_images(
            (image for _, image in checked_images(probes)),
            total,
            (lambda done: embedding(done, total)) if embedding else None,
        )
    copied: Path | None = None
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.probes."))
    try:
        if copy_images or old.manifest.probes.folder is None:
            copied = _copied(probes, scratch / "probes")
        return Index.create(folder, probes, vectors, encoder, settings, copied)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copied(probes: ProbeSet, target: Path) -> Path:
    """A folder with copies of the images of a probe set, and nothing else."""
    for probe in probes.probes:
        copy = target / probe.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(probes.folder / probe.file, copy)
    return target
