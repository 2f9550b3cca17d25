"""Figures as the page words them, and what its charts compute, run by Node where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from query.api.routes.page import WEB

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed; the browser tests cover the page itself")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's scripts in a folder that Node takes for one of modules."""
    folder = tmp_path_factory.mktemp("web")
    for file in WEB.glob("*.js"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def run(modules: Path, script: str, name: str = "amounts") -> Any:
    """What an expression over the exports of a module comes to."""
    assert NODE is not None
    source = f"import * as m from './{name}.js'; console.log(JSON.stringify({script}, (k, v) => v !== v ? 'NaN' : v));"
    (modules / "try.js").write_text(source)
    done = subprocess.run([NODE, "try.js"], cwd=modules, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_shares(modules: Path) -> None:
    given = {
        0: "0 %", 0.3149: "31 %", 0.0042: "0.4 %", 0.05: "5 %", 0.00004: "<\u00a00.1\u00a0%", 1: "100 %", 4.09: "409 %",
        0.996: "99.6 %", 0.99996: "99.9 %", 0.99: "99 %",
    }  # fmt: skip
    assert run(modules, f"{json.dumps(list(given))}.map(m.percent)") == list(given.values())


@needs_node
def test_sizes_on_disk(modules: Path) -> None:
    given = {
        0: "0 B",
        999: "999 B",
        1000: "1 kB",
        61440: "61.4 kB",
        999_600: "1 MB",
        16_592_896: "16.6 MB",
        1e15: "1000 TB",
    }
    assert run(modules, f"{json.dumps(list(given))}.map(m.bytes)") == list(given.values())


@needs_node
def test_three_digits_that_count(modules: Path) -> None:
    given = {0: "0", 0.0123456: "0.0123", 2.5: "2.50", 123.4: "123", 0.00001234: "1.23e-5", 2_500_000: "2.50e+6"}
    assert run(modules, f"{json.dumps(list(given))}.map(m.digits)") == list(given.values())


@needs_node
def test_places_in_a_ranking(modules: Path) -> None:
    assert run(modules, "[2, 2.5, 10 / 3, 2.96].map(m.place)") == ["2", "2.5", "3.3", "3"]


@needs_node
def test_numbers_of_parameters_that_people_write(modules: Path) -> None:
    given = {
        "200M": 200_000_000, " 1.5 b ": 1_500_000_000, "2g": 2_000_000_000, "7": 7, "0.5k": 500,
        "": "NaN", "lots": "NaN", "-3M": "NaN", "0": "NaN", "1e9": "NaN", "200MB": "NaN", "9" * 20: "NaN",
    }  # fmt: skip
    assert run(modules, f"{json.dumps(list(given))}.map(m.parameterCount)") == list(given.values())


@needs_node
def test_how_long_ago(modules: Path) -> None:
    now = "Date.parse('2026-03-01T12:00:00Z')"
    given = {
        "2026-03-01T11:59:55Z": "just now", "2026-03-01T11:59:01Z": "59 seconds ago",
        "2026-03-01T11:59:00Z": "1 minute ago", "2026-03-01T09:00:01Z": "2 hours ago",
        "2026-02-27T12:00:00Z": "2 days ago", "2026-01-01T12:00:00Z": "1 month ago",
        "2024-03-01T12:00:00Z": "2 years ago", "2026-03-01T12:00:30Z": "just now", "yesterday": "",
    }  # fmt: skip
    assert run(modules, f"{json.dumps(list(given))}.map((one) => m.ago(one, {now}))") == list(given.values())


@needs_node
def test_what_names_of_blocks_have_in_common(modules: Path) -> None:
    given: list[tuple[list[str], str]] = [
        (["visual.blocks.0", "visual.blocks.1"], "visual.blocks."),
        (["visual.blocks.0", "visual.trunk.1"], "visual."),
        (["layer1", "layer2"], ""),
        (["a.b", "a.b.c"], "a."),
        (["a.", "a.b"], ""),  # nothing would be left of the first
        (["only.one"], ""),
    ]
    asked = [names for names, _ in given]
    assert run(modules, f"{json.dumps(asked)}.map(m.commonStem)", "charts") == [stem for _, stem in given]


@needs_node
def test_labels_that_make_examples(modules: Path) -> None:
    given = {
        "golden retriever, Goldie": "golden retriever", "fire_truck": "fire truck", "Poké ball (red)": "Poké ball",
        "LABEL_7": None, "42": None, "": None, "ox": None, "background": None, "w" * 33: None, "<b>dog</b>": None,
        "jack-o'-lantern": "jack-o'-lantern", "none of these": None,
    }  # fmt: skip
    assert run(modules, f"{json.dumps(list(given))}.map(m.plain)", "examples") == list(given.values())
    assert run(modules, "[null, undefined, 7].map(m.plain)", "examples") == [None, None, None]


@needs_node
def test_examples_are_of_several_models(modules: Path) -> None:
    concepts = [["Pica pica", "Larus canus"], ["cat", "dog", "owl", "cow", "pig"], ["dog", "car"]]
    made = run(modules, f"m.mixed({json.dumps(concepts)})", "examples")
    # models in the order of their words, one of each in turn; dog is there already when the third model's turn comes
    assert [one["q"] for one in made[:-1]] == [["cat"], ["dog"], ["Pica pica"], ["car"]]
    assert made[-1] == {"q": ["owl", "cow", "pig"], "level": "model"}
    assert run(modules, "m.mixed([[], []])", "examples") == []
    assert run(modules, "m.mixed([['cat']])", "examples") == [{"q": ["cat"]}]
    assert run(modules, "m.spread([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 3)", "examples") == [1, 5, 8]
