"""Questions and answers: filters, evidence, the shape of the JSON."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from engine.calibration import percentiles
from engine.distance import METHODS, margins
from engine.errors import ConceptError, InputError
from engine.index import Index
from engine.scan import decode_anchors
from engine.writer import IndexWriter
from query.answers import SearchAnswer
from query.cli.main import run
from query.filters import parse_conditions
from query.request import SearchRequest, read_concepts
from query.search import Searcher
from tests.support.small_index import ANIMALS, encode, make_filled_index, make_index, put_model


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return Searcher(make_filled_index(tmp_path_factory.mktemp("x") / "zoo"), encode)


def models(answer: SearchAnswer) -> set[str]:
    return {hit.model for hit in answer.results[0].hits}


@pytest.mark.parametrize(
    ("where", "expected", "searched"),
    [
        (["library=timm"], {"org/animals", "zoo/both"}, 11),
        (["library=TIMM", "library=transformers"], {"org/animals", "org/things", "zoo/both"}, 14),
        (["model=org/*"], {"org/animals", "org/things"}, 7),
        (["licence=mit"], {"org/animals"}, 4),
        (["license=mit", "library=transformers"], set(), 0),
        (["max-parameters=1k"], {"org/animals"}, 4),
        (["max_parameters=5M"], {"org/animals", "org/things"}, 7),
        (["min-downloads=50"], {"org/animals"}, 4),
        (["label=no"], {"zoo/both"}, 7),
        (["label=yes"], {"org/animals", "org/things"}, 7),
        (["label=yes", "label=no"], {"org/animals", "org/things", "zoo/both"}, 14),
    ],
)
def test_filters(searcher: Searcher, where: list[str], expected: set[str], searched: int) -> None:
    answer = searcher.search(SearchRequest(("cat",), 100, where=parse_conditions(where)))
    assert models(answer) == expected
    assert answer.searched == searched
    assert len(answer.results[0].hits) == searched
    assert answer.exact


def test_filtered_hits_are_the_unfiltered_ones_that_pass(searcher: Searcher) -> None:
    whole = searcher.search(SearchRequest(("horse",), 100)).results[0].hits
    some = searcher.search(SearchRequest(("horse",), 100, where=parse_conditions(["library=timm"]))).results[0].hits
    assert [(h.model, h.output, h.margin) for h in whole if h.model != "org/things"] == [
        (h.model, h.output, h.margin) for h in some
    ]


@pytest.mark.parametrize(
    "text", ["library", "colour=red", "library=", "max-parameters=many", "min-downloads=nan", "label=maybe", "=x"]
)
def test_bad_conditions(text: str) -> None:
    with pytest.raises(InputError, match="--where"):
        parse_conditions([text])


def test_json_has_the_shape_of_the_contract(searcher: Searcher) -> None:
    answer = searcher.search(SearchRequest(("cat", "dog"), 2, explain=True)).to_json()
    assert list(answer) == ["results", "searched", "exact", "seconds"]
    results = answer["results"]
    assert isinstance(results, list)
    assert [result["query"] for result in results] == [{"text": "cat"}, {"text": "dog"}]
    hit = results[0]["hits"][0]
    names = [
        "rank",
        "model",
        "revision",
        "output",
        "label",
        "margin",
        "percentile",
        "local",
        "global",
        "prior",
        "probes",
    ]
    assert list(hit) == names
    assert list(hit["local"]) == ["distance", "hubness", "scale"]
    assert list(hit["global"]) == ["correlation", "hubness", "scale"]
    assert list(hit["probes"][0]) == ["probe", "file", "response", "concept"]
    plain = searcher.search(SearchRequest(("cat",), 1, "probelog")).to_json()["results"][0]["hits"][0]  # type: ignore[index]
    assert list(plain) == [name for name in names if name not in {"global", "prior", "probes"}]


@pytest.mark.parametrize("method", METHODS)
def test_the_evidence_adds_up_to_the_margin(searcher: Searcher, method: str) -> None:
    for hit in searcher.search(SearchRequest(("lamp",), 14, method)).results[0].hits:
        margin = (hit.local.hubness - hit.local.distance) / hit.local.scale
        if method in {"dual", "whitened"}:
            assert hit.global_ is not None
            margin += (hit.global_.correlation - hit.global_.hubness) / hit.global_.scale
            assert (hit.prior is None) == (method == "dual")
            margin += hit.prior or 0
        assert hit.margin == pytest.approx(margin, abs=2e-4)


def test_percentile_is_that_of_the_background(searcher: Searcher) -> None:
    snapshot = searcher.snapshot
    background = searcher.background
    rows = np.arange(len(snapshot))
    a = snapshot.arrays
    idx, z = a.kept(rows)
    constants = a.constants(slice(None))
    anchors = decode_anchors(a, rows).astype(np.float32)
    own = margins(idx, z, anchors, constants, background.concepts, "whitened")
    hits = searcher.search(SearchRequest(("owl",), 14)).results[0].hits
    by_row = {(snapshot.model_of(r).repo, int(snapshot.output[r])): r for r in rows.tolist()}
    for hit in hits:
        row = by_row[hit.model, hit.output]
        better = int((own[:, row] >= hit.margin).sum())
        assert hit.percentile == pytest.approx(100 * (1 + better) / 61, abs=0.01)
    assert hits[0].percentile == pytest.approx(100 / 61, abs=0.01)
    got = percentiles(idx, z, anchors, constants, np.full(len(rows), -1e9), background, "whitened")
    assert (got == 100).all()


def test_explained_probes_are_what_the_output_and_the_concept_share(searcher: Searcher) -> None:
    hit = searcher.search(SearchRequest(("cat",), 1, explain=True)).results[0].hits[0]
    assert hit.probes is not None
    assert len(hit.probes) == 10
    agreement = [max(p.response, 0) ** 4 * p.concept for p in hit.probes]
    assert agreement == sorted(agreement, reverse=True)
    assert all(p.file == f"{p.probe:03d}.png" for p in hit.probes)


@pytest.mark.parametrize(
    ("request_", "error", "part"),
    [
        (SearchRequest(("",)), ConceptError, "empty"),
        (SearchRequest(("  \n",)), ConceptError, "empty"),
        (SearchRequest(("x" * 10_000,)), ConceptError, "10000 characters"),
        (SearchRequest(()), ConceptError, "no concept"),
        (SearchRequest(("cat",), 0), InputError, "-k 0"),
        (SearchRequest(("cat",), 1, "cosine"), InputError, "use one of"),
    ],
)
def test_bad_requests(searcher: Searcher, request_: SearchRequest, error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        searcher.search(request_)


def test_white_space_does_not_make_another_concept(searcher: Searcher) -> None:
    plain = searcher.search(SearchRequest(("polar bear",))).results[0]
    assert searcher.search(SearchRequest(("  polar \t bear\n",))).results[0] == plain


def test_kernels_give_the_same_answer(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    found = [
        Searcher(index, encode, kernel).search(SearchRequest(("cat", "lamp"))).results for kernel in ("numpy", "numba")
    ]  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_concept_files(tmp_path: Path) -> None:
    file = tmp_path / "concepts.txt"
    file.write_text("golden retriever\n\n  bus \n")
    assert read_concepts(["cat", f"@{file}"]) == ("cat", "golden retriever", "bus")
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_concepts([f"@{file}"])
    with pytest.raises(InputError, match="cannot be read"):
        read_concepts([f"@{tmp_path / 'absent'}"])
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_concepts([f"@{file}"])


def test_searching_needs_neither_torch_nor_the_store(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    index.embed(["cat"], encode)
    code = (
        "import sys\n"
        "from query.cli.main import run\n"
        f"status = run(['search', 'cat', '--index', {str(index.folder)!r}, '--format', 'quiet'])\n"
        "heavy = {'torch', 'timm', 'open_clip', 'qdrant_edge', 'qdrant_client', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] in (["org/animals#0", "zoo/both#0"], ["zoo/both#0", "org/animals#0"])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere: as root, become someone who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_index_can_be_searched_but_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(tempfile.mkdtemp())  # unlike tmp_path, its parents may be entered by anybody
    try:
        root.chmod(0o755)
        index = make_filled_index(root / "zoo")
        Searcher(index, encode).search(SearchRequest(("cat",)))  # imports what a search needs
        for path in (index.folder, *index.folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with as_nobody():
            assert not os.access(index.folder, os.W_OK, effective_ids=True)
            found = Searcher(Index(index.folder), encode).search(SearchRequest(("cat", "never asked before")))
            assert found.results[0].hits[0].output == 0
            assert run(["index", "snapshot", "--index", str(index.folder)]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "cannot write to the store" in lines[0]
        assert "read-only" in lines[0]
    finally:
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(root)


def test_a_lost_memory_costs_nothing_but_time(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    (index.folder / "concepts.sqlite").write_bytes(b"this is no database" * 100)
    assert Searcher(index, encode).search(SearchRequest(("cat",))).results[0].hits[0].output == 0


def test_hits_do_not_depend_on_the_order_of_adding(tmp_path: Path) -> None:
    answers = []
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        index = make_index(tmp_path / name / "zoo")
        with IndexWriter(index.folder) as writer:
            for i in order:
                put_model(writer, f"m/{i}", ANIMALS, seed=i)
            writer.finish()
        answers.append(Searcher(index, encode).search(SearchRequest(ANIMALS)).results)
    assert answers[0] == answers[1]
