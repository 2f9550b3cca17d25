"""Questions: what is searched for, as concept descriptors, whichever way it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.calibration import Background
from engine.concepts import clean_concept
from engine.descriptors import ConceptDescriptors, FloatArray, divisive_gain, normalise
from engine.errors import InputError, ProbeError
from engine.index import Index, Texts
from engine.probes import open_image
from engine.scan import decode_anchors
from engine.snapshot import Snapshot
from engine.whitening import STRENGTH
from query.answers import Query
from query.lookup import find_record
from query.request import SearchRequest

Images = Callable[[Sequence[Path]], FloatArray]
"""Embeds image files: m paths -> float32 ``[m, d]``."""


@dataclass(frozen=True)
class Question:
    """One question over the probes of an index.

    Attributes:
        query: As it was asked.
        names: Of the concepts, for people.
        concepts: One concept, or the list that one model must cover.
        without: Place of the model that must not answer (the one that was asked about), None for none.
    """

    query: Query
    names: tuple[str, ...]
    concepts: ConceptDescriptors
    without: int | None = None


class QuestionMaker:
    """Makes questions of requests.

    Args:
        index: The index.
        snapshot: The generation that is searched.
        background: The one that its constants were made with.
        encode: Embeds texts that the index does not remember; by default its encoder is loaded when one comes.
        encode_images: Embeds image files; likewise.
    """

    def __init__(
        self,
        index: Index,
        snapshot: Snapshot,
        background: Background,
        encode: Texts | None = None,
        encode_images: Images | None = None,
    ) -> None:
        self._index = index
        self._snapshot = snapshot
        self._background = background
        self._encode = encode
        self._encode_images = encode_images

    def make(self, request: SearchRequest) -> list[Question]:
        """The questions of a request; several texts at the level of outputs are several.

        Raises:
            ConceptError: A concept is empty, too long or unknown to the encoder.
            InputError: An image cannot be read, or ``like`` names nothing in the index.
        """
        if request.like:
            return [self._like(request.like, request.level == "model")]
        texts = [clean_concept(text) for text in request.concepts]
        if request.images:
            return [self._of_images(texts[0] if texts else None, request.images)]
        concepts = self._index.describe_texts(texts, self._encode, self._background)
        if request.level == "model":
            return [Question(Query(texts=tuple(texts)), tuple(texts), concepts)]
        return [Question(Query(text=text), (text,), concepts.take(c)) for c, text in enumerate(texts)]

    def _of_images(self, text: str | None, paths: Sequence[Path]) -> Question:
        """The mean of the normalised image embeddings; with a text the mean of that and the text's."""
        t = normalise(self._embed_images(paths).mean(axis=0, dtype=np.float64, keepdims=True))
        files = tuple(str(path) for path in paths)
        name = f"{len(paths)} image{'s' if len(paths) > 1 else ''}"
        if text is None:
            return Question(Query(images=files), (name,), self._index.describe(t, self._background))
        both = normalise((t + self._index.embed([text], self._encode)) / 2)
        concepts = self._index.describe(both, self._background)
        return Question(Query(text=text, images=files), (f"{text} and {name}",), concepts)

    def _embed_images(self, paths: Sequence[Path]) -> FloatArray:
        """Embeddings of image files, remembered by their content."""
        try:
            keys = ["\0image " + hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        except OSError as error:
            raise InputError(f"the image {error.filename} cannot be read: {error.strerror}") from error
        known = self._index.concepts.get(list(dict.fromkeys(keys)))
        new = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
        if new:
            encode = self._encode_images or self._load_images
            fresh = dict(zip(new, encode(list(new.values())), strict=True))
            self._index.concepts.put(fresh)
            known |= fresh
        return np.stack([known[key] for key in keys])

    def _load_images(self, paths: Sequence[Path]) -> FloatArray:
        def opened() -> Iterator[Image.Image]:
            for path in paths:
                try:
                    yield open_image(path)
                except ProbeError as error:
                    raise InputError(f"{error}: leave it out of --images") from error

        for _ in opened():  # before the encoder is loaded: one broken file among many is found in a moment
            pass
        return self._index.load_encoder().encode_images(opened(), len(paths))

    def _like(self, like: str, whole: bool) -> Question:
        """An output's own responses in the place of a concept's similarities."""
        repo, mark, number = like.partition("#")
        if whole and mark:
            raise InputError(f"--like {like} names one output: with --level model name a model, {repo}")
        if not whole and not mark:
            raise InputError(
                f"--like {like} names no output: use {repo}#NUMBER, or add --level model to find models like it"
            )
        place, named = find_record(self._snapshot, repo)
        rows = np.arange(self._snapshot.starts[place], self._snapshot.starts[place + 1])
        if not whole:
            rows = rows[self._snapshot.output[rows] == _number(like, number)]
            if not len(rows):
                count = self._snapshot.models[place].outputs
                raise InputError(
                    f"--like {like}: the index has no output {number} of {repo}; it has {count} outputs of this model "
                    f"('hubhound describe {repo}' lists them)"
                )
        names = tuple(self._snapshot.label_of(row) or f"#{self._snapshot.output[row]}" for row in rows.tolist())
        asked = Query(like=like, copy_of=named.copy_of) if named.copy_of else Query(like=like)
        return Question(asked, names, self._as_concepts(place, rows), place)

    def _as_concepts(self, place: int, rows: npt.NDArray[np.int64]) -> ConceptDescriptors:
        """Outputs as if they were concepts.

        The embedding is the direction that predicts the responses best, ``(C + ridge)^-1 a`` with C the covariance of
        the probes; the similarities are the responses themselves. Where they were not kept, what the direction
        predicts stands for them, except on the kept probes.
        """
        arrays = self._snapshot.arrays
        probes = np.asarray(self._index.probe_embeddings, dtype=np.float64)
        centred = probes - probes.mean(axis=0)
        covariance = centred.T @ centred / len(probes)
        ridge = STRENGTH * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        t = np.linalg.solve(covariance + ridge, decode_anchors(arrays, rows).T).T
        concepts = self._index.describe(normalise(t), self._background)
        kept = self._responses(place)
        if kept is not None:
            z = kept[rows - self._snapshot.starts[place]].astype(np.float32)
        else:
            z = concepts.z.copy()
            idx, strongest = arrays.kept(rows)
            np.put_along_axis(z, idx.astype(np.intp), strongest, axis=1)
        return ConceptDescriptors(concepts.t, z, concepts.sigma, concepts.white)

    def _responses(self, place: int) -> npt.NDArray[np.float64] | None:
        """Standardised responses of a model's outputs as the index describes them, None where they were not kept."""
        model = self._snapshot.models[place]
        archived = self._index.responses.read(model.repo, model.revision)
        if archived is None or len(archived) != model.outputs:
            return None
        z = archived.astype(np.float64)
        if self._index.manifest.normalisation == "divisive":
            z = z * divisive_gain(z)
        z -= z.mean(axis=1, keepdims=True)
        return np.asarray(z / z.std(axis=1, keepdims=True))


def _number(like: str, number: str) -> int:
    if not number.isdecimal() or len(number) > 18:  # longer ones are no output's, and Python may refuse to read them
        raise InputError(f"--like {like}: after # stands the number of an output, as in org/name#17")
    return int(number)
