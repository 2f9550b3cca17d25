"""An index: a folder with everything that search needs, and the one writer it can have.

::

    manifest.json           what it was made with
    probes.json             the probes in order: file and SHA-256
    probes/                 the images, where they were generated or fetched (a user's folder stays where it is)
    probe_embeddings.npy    normalised, float32 [n, d]
    background/FINGERPRINT/ phrases, embeddings, standardised similarities to the probes, the whitening
    concepts.sqlite         texts that were embedded before
    tasks/NAME/             the sample of a task's images, copied
    store/                  models, outputs and what is known about tasks: the truth
    responses/              full responses in float16: what the index can be made again from
    snapshots/              what queries read
    knowledge.json          what queries read about tasks; knowledge.due beside it until it is written anew

The folder to work in for an index on a Qdrant server (:mod:`engine.remote`) is the same, with ``server.json`` in place
of ``store/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from engine.calibration import Background
from engine.concepts import ConceptCache
from engine.descriptors import ConceptDescriptors, FloatArray, concept_descriptors
from engine.errors import IndexDamagedError, IndexUnusableError, InputError, ProbeError
from engine.files import new_folder, read_array, read_json, write_array, write_json
from engine.index_files import DELETING, MANIFEST, UNFINISHED
from engine.knowledge import Knowledge
from engine.manifest import (
    BackgroundPart,
    EncoderPart,
    Manifest,
    ProbesPart,
    half_deleted,
    read_manifest,
    unfinished,
    write_manifest,
)
from engine.remote import Remote, shown
from engine.responses import FOLDER, ResponseArchive
from engine.snapshot import Snapshot

if TYPE_CHECKING:
    from engine.encoder import ConceptEncoder
    from engine.probes import ProbeSet

Texts = Callable[[Sequence[str]], FloatArray]
"""Embeds texts: c texts -> float32 ``[c, d]``."""


@dataclass(frozen=True)
class IndexSettings:
    """What a new index is made with, beside probes and encoder.

    Attributes:
        top_r: Kept probes per output.
        method: The default method.
        responses: ``keep`` or ``drop`` the full responses.
        templates: Prompt templates.
        background: At least 11 phrases.
        background_source: Where they come from, for the manifest.
        k: How many of the nearest background concepts make the hubness.
        normalisation: ``divisive`` or ``none`` (``descriptors.divisive_gain``).
    """

    top_r: int
    method: str
    responses: str
    templates: tuple[str, ...]
    background: tuple[str, ...]
    background_source: str
    k: int
    normalisation: str = "divisive"


class Index:
    """An index opened for reading; needs no lock and sees the last finished snapshot.

    Args:
        folder: Of the index.

    Raises:
        IndexMissingError: There is none.
        IndexMismatchError: Another version made it.
        IndexDamagedError: Its manifest cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.remote: Remote | None = Remote.of(folder)
        self.responses = ResponseArchive(folder / FOLDER, self.remote)
        self.concepts = ConceptCache(folder / "concepts.sqlite")

    @cached_property
    def probe_embeddings(self) -> FloatArray:
        """Normalised probe embeddings, float32 ``[n, d]``, memory-mapped."""
        array = read_array(self.folder / "probe_embeddings.npy")
        expected = (self.manifest.probes.count, self.manifest.encoder.dimension)
        if array.shape != expected:
            raise IndexDamagedError(
                f"{self.folder / 'probe_embeddings.npy'} has the shape {array.shape} instead of {expected}",
                self.folder,
            )
        return array.astype(np.float32, copy=False)

    @cached_property
    def probe_files(self) -> tuple[tuple[str, str], ...]:
        """File and SHA-256 of every probe, in order."""
        value: Any = read_json(self.folder / "probes.json")
        try:
            files = tuple((str(entry["file"]), str(entry["sha256"])) for entry in value)
        except (TypeError, KeyError) as error:
            raise IndexDamagedError(f"{self.folder / 'probes.json'} is damaged", self.folder) from error
        return files

    @property
    def probe_folder(self) -> Path:
        """Where the probe images are; those of an index on a server are fetched when this is first asked for."""
        if self.remote is not None:
            self.remote.fetch_once("probes")
        return Path(self.manifest.probes.folder) if self.manifest.probes.folder else self.folder / "probes"

    def probes(self, folder: Path | None = None) -> ProbeSet:
        """The probe set, its images checked to be the very ones the index was made with.

        Args:
            folder: Where they are now, if they were moved.

        Raises:
            ProbeError: An image is missing.
            IndexMismatchError: An image has changed.
        """
        from engine.probes import Probe, ProbeSet, hash_file, probes_fingerprint

        where = folder or self.probe_folder
        try:
            now = tuple(Probe(file, hash_file(where / file)) for file, _ in self.probe_files)
        except OSError as error:
            raise ProbeError(
                f"the index's probe images are no longer in {where} ({error.filename}): "
                "put them back, or say where they are with --probes (of index add, index rebuild and describe)",
                where,
            ) from error
        self.manifest.check_probes(probes_fingerprint(probe.sha256 for probe in now), str(where))
        return ProbeSet(self.manifest.probes.source, where, now)

    def background(self, fingerprint: str | None = None) -> Background:
        """A background set with its descriptors; by default the one of the manifest."""
        fingerprint = fingerprint or self.manifest.background.fingerprint
        folder = self.folder / "background" / fingerprint[:16]
        value: Any = read_json(folder / "background.json")
        columns = {name: read_array(folder / f"{name}.npy") for name in ("t", "z", "sigma", "white")}
        matrix = read_array(folder / "whitening.npy")
        try:
            names, k = tuple(value["names"]), int(value["k"])
        except (TypeError, KeyError, ValueError) as error:
            raise IndexDamagedError(f"the background in {folder} is damaged", folder) from error
        return Background(names, ConceptDescriptors(**columns), k, matrix)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The index as its user named it: its folder, or its address on a server."""
        return shown(self.folder)

    @property
    def note(self) -> str | None:
        """Why the files of an index on a server may be older here than there; None where nothing is known of it."""
        return None if self.remote is None else self.remote.note

    def snapshot(self, progress: Callable[[int, int], None] | None = None, *, insist: bool = False) -> Snapshot:
        """The current generation; that of an index on a server is brought up to date first.

        Args:
            progress: Called with (models read, models to read) while it is brought up to date.
            insist: Wait for another process that does so as long as it takes; see ``catching_up.catch_up``.

        Raises:
            IndexUnusableError: Nothing was added yet.
            StoreError: The server refused or did not answer.
        """
        snapshot = self.current_snapshot(progress, insist=insist)
        if snapshot is None:
            raise IndexUnusableError(
                f"the index {self.name} is empty: add models with 'hubhound index add --index {self.name} MODEL...'"
            )
        return snapshot

    def current_snapshot(
        self, progress: Callable[[int, int], None] | None = None, *, insist: bool = False
    ) -> Snapshot | None:
        """As ``snapshot``, but None before anything was added."""
        root = self.folder / "snapshots"
        if self.remote is None:
            return Snapshot.open(root)
        from engine.catching_up import catch_up

        fingerprint = self.manifest.background.fingerprint
        return catch_up(self.remote.store, root, self.background, fingerprint, progress, insist=insist)

    def knowledge(self) -> Knowledge:
        """Tasks, profiles and performance as they were last exported; nothing if there are none.

        Raises:
            IndexDamagedError: The file cannot be read.
        """
        return Knowledge.read(self.folder)

    def load_encoder(self, device: str = "cpu") -> ConceptEncoder:
        """The encoder that the index was made with.

        Raises:
            EncoderError: It cannot be loaded.
            IndexMismatchError: What is there now is another one.
        """
        from engine.encoder import ConceptEncoder
        from engine.throughput import pick_device

        encoder = ConceptEncoder.load(self.manifest.encoder.spec, pick_device(device))
        self.manifest.check_encoder(encoder.fingerprint, encoder.spec)
        return encoder

    def embed(self, texts: Sequence[str], encode: Texts | None = None) -> FloatArray:
        """Embeddings of texts, from the index's memory where it has them.

        Args:
            texts: c texts, cleaned.
            encode: Embeds those that are new; by default the index's encoder is loaded for it.

        Returns:
            float32 ``[c, d]``.
        """
        known = self.concepts.get(list(dict.fromkeys(texts)))
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            vectors = encode(new) if encode else self._encode(new)
            fresh = dict(zip(new, vectors, strict=True))
            self.concepts.put(fresh)
            known |= fresh
        return np.stack([known[text] for text in texts])

    def describe(self, t: FloatArray, background: Background | None = None) -> ConceptDescriptors:
        """Concept descriptors of embeddings over the index's probes.

        Args:
            t: Concept embeddings, float32 ``[c, d]``.
            background: The one that the outputs are calibrated with; by default the manifest's.
        """
        return concept_descriptors(t, self.probe_embeddings, (background or self.background()).whitening)

    def describe_texts(
        self, texts: Sequence[str], encode: Texts | None = None, background: Background | None = None
    ) -> ConceptDescriptors:
        """Concept descriptors of texts over the index's probes; see ``embed`` and ``describe``."""
        return self.describe(self.embed(texts, encode), background)

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        return self.load_encoder().encode_texts(texts, self.manifest.encoder.templates)

    @classmethod
    def create(
        cls,
        folder: Path,
        probes: ProbeSet,
        embeddings: FloatArray,
        encoder: ConceptEncoder,
        settings: IndexSettings,
        images: Path | None = None,
    ) -> Self:
        """Makes an empty index; it appears whole or not at all.

        Args:
            folder: Must not exist, or be empty.
            probes: The probe set.
            embeddings: Of the probes, normalised, float32 ``[n, d]``.
            encoder: The concept encoder.
            settings: Everything else.
            images: A folder with the probes' images to move into the index; None leaves them where they are.

        Raises:
            InputError: The folder is not empty or a setting is out of range.
            OSError: It cannot be written.
        """
        from engine.store.base import StoreLayout
        from engine.store.edge import EdgeStore

        refuse_occupied(folder)
        if not 1 <= settings.top_r <= len(probes):
            raise InputError(f"--top-r {settings.top_r}: it must lie between 1 and the number of probes, {len(probes)}")
        if embeddings.shape != (len(probes), encoder.dimension):
            raise InputError(
                f"{len(probes)} probes of {encoder.dimension} dimensions have embeddings {embeddings.shape}"
            )
        for template in settings.templates:
            if "{}" not in template:
                raise InputError(f"the template {template!r} has no {{}} for the concept")
        background = describe_background(
            settings.background, settings.k, embeddings, lambda t: encoder.encode_texts(t, settings.templates)
        )
        manifest = Manifest.model_validate(
            {
                "probes": ProbesPart(
                    source=probes.source,
                    folder=None if images else str(probes.folder),
                    count=len(probes),
                    fingerprint=probes.fingerprint,
                ),
                "encoder": EncoderPart(
                    spec=encoder.spec,
                    fingerprint=encoder.fingerprint,
                    dimension=encoder.dimension,
                    templates=settings.templates,
                ),
                "top_r": settings.top_r,
                "method": settings.method,
                "responses": settings.responses,
                "normalisation": settings.normalisation,
                "background": background_part(background, settings.background_source),
            }
        )
        with new_folder(folder) as new:
            if images:
                images.rename(new / "probes")
            write_json(new / "probes.json", [{"file": p.file, "sha256": p.sha256} for p in probes.probes])
            write_array(new / "probe_embeddings.npy", embeddings)
            write_background(new, background)
            layout = StoreLayout(len(probes), settings.top_r, encoder.dimension, settings.method)
            EdgeStore.create(new / "store", layout).close()
            write_manifest(new, manifest)
        return cls(folder)


def refuse_occupied(folder: Path) -> None:
    """Refuses to make an index where something is.

    Raises:
        InputError: The path is a file or a folder with something in it.
        IndexDamagedError: What is in it was not copied, or not deleted, to the end.
    """
    if (folder / DELETING).exists():
        raise half_deleted(folder)
    if (folder / MANIFEST).exists():
        raise InputError(
            f"there is an index at {folder} already: choose another folder, or delete it first with "
            f"'hubhound index delete --index {folder}'"
        )
    if (folder / UNFINISHED).exists():
        raise unfinished(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: choose another one")


def describe_background(names: Sequence[str], k: int, embeddings: FloatArray, encode: Texts) -> Background:
    """A background set over the probes.

    Raises:
        InputError: It has no more than k phrases.
    """
    if len(names) <= k:
        raise InputError(f"the background has {len(names)} phrases: it needs more than k = {k}, better some hundreds")
    return Background.describe(names, encode(names), embeddings, k)


def background_part(background: Background, source: str) -> BackgroundPart:
    """The manifest's entry on a background set."""
    return BackgroundPart(
        source=source, count=len(background.names), k=background.k, fingerprint=background.fingerprint
    )


def write_background(index: Path, background: Background) -> None:
    """Puts a background set into an index's folder, under its fingerprint."""
    folder = index / "background" / background.fingerprint[:16]
    if folder.exists():
        return
    concepts, whitening = background.concepts, background.whitening
    if concepts.white is None or whitening is None:
        raise ValueError("the background has no whitening: make it with Background.describe")
    columns = {"t": concepts.t, "z": concepts.z, "sigma": concepts.sigma, "white": concepts.white}
    with new_folder(folder) as new:
        (new / "background.json").write_text(
            json.dumps({"names": background.names, "k": background.k}, ensure_ascii=False), encoding="utf-8"
        )
        for name, column in {**columns, "whitening": whitening}.items():
            write_array(new / f"{name}.npy", column)
