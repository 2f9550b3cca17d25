"""Search: concepts, images or known outputs in, the outputs or models that recognise them out, with the evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.calibration import Background
from engine.coverage import top_models
from engine.descriptors import ConceptDescriptors
from engine.distance import Method, check_method
from engine.errors import InputError
from engine.index import Index, Texts
from engine.scan import Kernel, exact_margins, top_k
from engine.snapshot import Snapshot
from query.answers import Result, SearchAnswer
from query.filters import Filter
from query.hits import HitMaker, short
from query.labels import LabelWitness
from query.questions import Images, Question, QuestionMaker
from query.request import SearchRequest
from query.vocabulary import Progress

Mask = npt.NDArray[np.bool_]


class Searcher:
    """Answers searches over one snapshot of an index.

    Args:
        index: The index.
        encode: Embeds texts that the index does not remember; by default its encoder is loaded when one comes.
        kernel: Which kernel scans.
        encode_images: Embeds image files; by default the index's encoder.
        progress: Called with (labels done, labels) while labels are embedded for the first time.
    """

    def __init__(
        self,
        index: Index,
        encode: Texts | None = None,
        kernel: Kernel = "auto",
        encode_images: Images | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._index = index
        self._encode = encode
        self._kernel: Kernel = kernel
        self._progress = progress
        self.snapshot: Snapshot = index.snapshot()
        self.note: str | None = self.snapshot.note or index.note
        self.background: Background = index.background(self.snapshot.background)
        self._questions = QuestionMaker(index, self.snapshot, self.background, encode, encode_images)
        self._filter = Filter(self.snapshot)
        self._witnesses: dict[Method, LabelWitness] = {}

    def ask(self, request: SearchRequest) -> list[Question]:
        """What a request asks, as concept descriptors.

        Raises:
            ConceptError: A concept is empty, too long, unknown to the encoder, or twice in a list for one model.
            InputError: The request makes no sense, an image cannot be read, or ``like`` names nothing in the index.
        """
        request.check()
        method = check_method(request.method or self._index.manifest.method)
        if request.evidence == "both" and method not in {"whitened", "dual"}:
            raise InputError(
                f"--evidence both adds up margins of one scale, those of {method} have another: "
                "use --method whitened or dual"
            )
        return self._questions.make(request)

    def search(self, request: SearchRequest) -> SearchAnswer:
        """The outputs or models that recognise each concept, best first; see ``SearchRequest``.

        Raises:
            ConceptError: See ``ask``.
            InputError: See ``ask``.
        """
        return self.answer(request, self.ask(request))

    def answer(self, request: SearchRequest, questions: Sequence[Question]) -> SearchAnswer:
        """The answer to questions that ``ask`` made of the same request."""
        method = check_method(request.method or self._index.manifest.method)
        if request.evidence != "probes" and method not in self._witnesses:
            self._witnesses[method] = LabelWitness(
                self._index, self.snapshot, self.background, method, self._encode, self._progress
            )
        started = time.perf_counter()
        allowed = self._filter.allowed(request.where)
        mask = allowed.rows
        maker = HitMaker(self._index, self.snapshot, self.background, method, request.explain, allowed.holders)
        if request.level == "model":
            results = [self._models(question, request, method, mask, maker) for question in questions]
        elif request.evidence == "probes":
            results = self._outputs(questions, request, method, mask, maker)
        else:
            results = [self._witnessed(question, request, method, mask, maker) for question in questions]
        without = questions[0].without if questions else None
        compared = self._others(mask, without)
        searched = len(self.snapshot) if compared is None else int(compared.sum())
        return SearchAnswer(
            results=tuple(results),
            searched=searched,
            exact=True,
            seconds=round(time.perf_counter() - started, 6),
            note=self.note,
        )

    def _outputs(
        self,
        questions: Sequence[Question],
        request: SearchRequest,
        method: Method,
        mask: Mask | None,
        maker: HitMaker,
    ) -> list[Result]:
        concepts = ConceptDescriptors.join([question.concepts for question in questions])
        allowed = self._others(mask, questions[0].without)
        found = top_k(self.snapshot.arrays, concepts, request.k, method, mask=allowed, kernel=self._kernel)
        return [
            Result(query=question.query, hits=tuple(maker.outputs(*rows, question.concepts)))
            for question, rows in zip(questions, found, strict=True)
        ]

    def _models(
        self, question: Question, request: SearchRequest, method: Method, mask: Mask | None, maker: HitMaker
    ) -> Result:
        """Models by their best assignment of distinct outputs; ``like`` asks for as much as there is."""
        require = request.require or ("any" if request.like else "all")
        matches = top_models(
            self.snapshot.arrays,
            self.snapshot.starts,
            question.concepts,
            request.k,
            method,
            require=require,
            ceiling=np.inf if request.ceiling is None else request.ceiling,
            mask=self._others(mask, question.without),
            kernel=self._kernel,
        )
        return Result(query=question.query, hits=tuple(maker.models(matches, question, request.ceiling)))

    def _witnessed(
        self, question: Question, request: SearchRequest, method: Method, mask: Mask | None, maker: HitMaker
    ) -> Result:
        """Labels alone rank by the label's margin, equal ones by the probes'; beside the probes they add a bonus.

        The bonus is never below 0 and mostly 0, so the best sums are among the best by the probes alone and the
        outputs with a bonus: the answer is exact.
        """
        said = self._witnesses[method].margins(question.concepts.t[0])
        arrays, k = self.snapshot.arrays, request.k
        speaking = ~np.isnan(said.margin) if request.evidence == "labels" else said.bonus > 0
        if mask is not None:
            speaking = speaking & mask
        if request.evidence == "labels":
            rows = _best(np.nonzero(speaking)[0], said.margin, k)
            margin = exact_margins(arrays, rows, question.concepts, 0, method)
            order = np.lexsort((rows, -margin, -said.margin[rows]))[:k]
        else:
            ((rows, _),) = top_k(arrays, question.concepts, k, method, mask=mask, kernel=self._kernel)
            rows = np.union1d(rows, np.nonzero(speaking)[0]).astype(np.int64)
            margin = exact_margins(arrays, rows, question.concepts, 0, method)
            order = np.lexsort((rows, -(margin + said.bonus[rows])))[:k]
        rows, margin = rows[order], margin[order]
        hits = []
        for hit, row in zip(maker.outputs(rows, margin, question.concepts), rows.tolist(), strict=True):
            by_label = said.bonus[row] > 0 if request.evidence == "both" else said.margin[row] > 0
            spoken = [name for name, speaks in (("probes", hit.margin > 0), ("labels", by_label)) if speaks]
            label = None if np.isnan(said.margin[row]) else short(said.margin[row])
            hits.append(hit.model_copy(update={"witnesses": tuple(spoken), "label_margin": label}))
        return Result(query=question.query, hits=tuple(hits))

    def _others(self, mask: Mask | None, without: int | None) -> Mask | None:
        """The allowed rows without those of one model."""
        if without is None:
            return mask
        allowed = np.ones(len(self.snapshot), np.bool_) if mask is None else mask.copy()
        allowed[self.snapshot.starts[without] : self.snapshot.starts[without + 1]] = False
        return allowed


def _best(rows: npt.NDArray[np.int64], values: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    """The rows whose value is at least the k-th largest: k, and those that are as good as the last of them."""
    if len(rows) <= k:
        return rows
    own = values[rows]
    return np.asarray(rows[own >= np.partition(own, len(own) - k)[len(own) - k]], dtype=np.int64)
