"""Code that uses an output: whatever strangers call things, it is Python that holds exactly that."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from engine.errors import InputError
from engine.schema import LeftOut, Model
from query.usage import is_hub_id, usage

COMMIT = "767268603ca0cb0bfe326fa87277f19c419566ef"
HOSTILE = (
    "a \"quoted\" 'one'",
    "three \"\"\" and ''' quotes",
    "back\\slash \\n \\",
    "line\nfeed\r\nand return\r",
    "# comment\nimport os; os.system('x')",
    "next\u2028line\u2029paragraph\x85\x0b\x0c\x1c\x00",
    "{braces} {0} {{LABEL!r}} %s",
    "'); import os #",
    "\u202eevil\u202c \ufeff zero\u200bwidth",
    "<script>alert(1)</script>",
    "狗 🐕 é",
    "",
)


def model(**facts: Any) -> Model:
    given = {"repo": "timm/resnet50.a1_in1k", "revision": COMMIT, "library": "timm", "outputs": 1000, **facts}
    return Model.model_validate(given)


def constants(code: str) -> dict[str, Any]:
    """What the module-level names of a program hold."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with_value = node.value
            if isinstance(with_value, ast.Constant):
                found[node.targets[0].id] = with_value.value
    return found


def lines(code: str) -> int:
    return len(code.splitlines())


@pytest.mark.parametrize("library", ["timm", "transformers", "onnx"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_whatever_a_label_or_an_id_is_the_code_holds_exactly_that(library: str, hostile: str) -> None:
    plain = usage(model(library=library), 207, "dog").code
    asked = usage(model(library=library, repo=f"org/{hostile}", architecture=hostile), 207, hostile)
    held = constants(asked.code)
    assert held["LABEL"] == hostile
    assert held["REPOSITORY"] == f"org/{hostile}"
    assert held["REVISION"] == COMMIT
    assert held["OUTPUT"] == 207
    # Nothing else depends on it: the rest is the same program, and no stranger's text begins a line.
    assert lines(asked.code) == lines(plain)
    own = ("LABEL = ", "REPOSITORY = ")
    rest = [line for line in asked.code.splitlines() if not line.startswith(own)]
    assert rest == [line for line in plain.splitlines() if not line.startswith(own)]
    assert all(c.isprintable() or c == "\n" for c in asked.code)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_revision_is_not_used(hostile: str) -> None:
    asked = usage(model(revision=hostile), 0, None)
    assert "REVISION" not in asked.code
    assert asked.code == usage(model(revision="r1"), 0, None).code


def test_a_commit_is_pinned_and_a_content_hash_is_not() -> None:
    for library in ("timm", "transformers", "onnx"):
        pinned = usage(model(library=library), 0, None)
        assert f"REVISION = '{COMMIT}'" in pinned.code
        assert "folder" not in (pinned.note or "")
        for other in ("r1", "main", COMMIT[:39], COMMIT + "0", COMMIT.upper(), "a" * 64):
            loose = usage(model(library=library, revision=other), 0, None)
            assert "REVISION" not in loose.code
            assert "revision" not in loose.code
            assert "from a folder, not from a commit" in (loose.note or "")
    assert "'hf-hub:' + REPOSITORY + '@' + REVISION" in usage(model(), 0, None).code


@pytest.mark.parametrize("library", ["timm", "transformers", "onnx"])
def test_what_answers_probabilities_gets_no_softmax(library: str) -> None:
    code = usage(model(library=library, probabilities=True), 3, "x").code
    assert "softmax" not in code
    assert "sigmoid" not in code
    assert "exp(" not in code


@pytest.mark.parametrize("library", ["timm", "transformers", "onnx"])
def test_a_softmax_over_one_output_would_say_nothing(library: str) -> None:
    left_out = (LeftOut(output=1, reason="constant"),)
    one = usage(model(library=library, outputs=1), 0, None)
    two = usage(model(library=library, outputs=1, left_out=left_out), 0, None)
    told = usage(model(library=library, outputs=0), 0, None, outputs=1)
    for asked in (one, told):
        assert ".sigmoid()" in asked.code or "1 / (1 + np.exp(-answer))" in asked.code
        assert "softmax" not in asked.code
        assert "one output" in (asked.note or "")
    assert "softmax" in two.code or "powers.sum()" in two.code
    assert "one class" in (two.note or "")


def test_transformers_say_at_run_time_whether_classes_exclude_each_other() -> None:
    code = usage(model(library="transformers"), 0, None).code
    assert "model.config.problem_type == 'multi_label_classification'" in code
    assert ".logits[0]" in code
    other = usage(model(library="transformers", architecture="PPLCNetForImageClassification"), 0, None).code
    assert ".last_hidden_state[0]" in other


def test_onnx_says_what_is_not_known() -> None:
    note = usage(model(library="onnx"), 0, None).note
    assert note is not None
    assert "preprocessor_config.json" in note
    assert "not recorded" in note


def test_a_library_that_nobody_knows() -> None:
    for library in (None, "tensorflow", "open_clip"):
        with pytest.raises(InputError, match="no code is known that loads timm/resnet50"):
            usage(model(library=library), 0, None)


@pytest.mark.parametrize(
    ("repo", "can_be"),
    [
        ("timm/resnet50.a1_in1k", True),
        ("a/b--c", True),
        ("open_clip:ViT-B-32/openai", False),
        ("org/name/more", False),
        ("name", False),
        ("../..", False),
        ("org/..", False),
        ("org/na me", False),
        ("javascript:alert(1)/x", False),
        ("org/név", False),
        ("org/name\n", False),
        ("", False),
    ],
)
def test_ids_of_the_hub(repo: str, can_be: bool) -> None:
    assert is_hub_id(repo) is can_be
