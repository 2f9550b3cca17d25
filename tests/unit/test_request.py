"""What may be asked together, and how a command line's concepts and images become a request."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import ConceptError, InputError
from query.request import SearchRequest, read_concepts, read_images
from tests.support.small_index import write_example

IMAGE = Path("cat.png")


@pytest.mark.parametrize(
    "request_",
    [
        SearchRequest(("cat",)),
        SearchRequest(("cat", "cat")),
        SearchRequest(images=(IMAGE, IMAGE)),
        SearchRequest(("cat",), images=(IMAGE,)),
        SearchRequest(("cat",), images=(IMAGE,), level="model"),
        SearchRequest(like="org/name#3"),
        SearchRequest(like="org/name", level="model", require="all"),
        SearchRequest(("cat", "dog"), level="model", require="any"),
        SearchRequest(("cat", "cats"), level="model"),
        SearchRequest(("cat",), images=(IMAGE,), evidence="both"),
        SearchRequest(("cat", "dog"), evidence="labels", explain=True),
    ],
)
def test_what_makes_sense_passes(request_: SearchRequest) -> None:
    request_.check()


@pytest.mark.parametrize(
    ("request_", "error", "part"),
    [
        (SearchRequest(), ConceptError, "no concept"),
        (SearchRequest(("cat",), k=0), InputError, "-k 0"),
        (SearchRequest(("cat",), k=-3), InputError, "-k -3"),
        (SearchRequest(("cat",), like="org/name#1"), InputError, "--like org/name#1 is a question of its own"),
        (SearchRequest(images=(IMAGE,), like="org/name#1"), InputError, "question of its own"),
        (SearchRequest(("cat", "dog"), images=(IMAGE,)), InputError, "examples of one concept, and there are 2"),
        (SearchRequest(("cat", "dog"), images=(IMAGE,), level="model"), InputError, "examples of one concept"),
        (SearchRequest(("cat",), level="model", evidence="labels"), InputError, "--evidence labels .* --level model"),
        (SearchRequest(("cat",), level="model", evidence="both"), InputError, "--evidence both"),
        (SearchRequest(like="org/name#1", evidence="both"), InputError, "--evidence both"),
        (SearchRequest(("cat",), require="all"), InputError, "--require all .* add --level model"),
        (SearchRequest(like="org/name#1", require="any"), InputError, "--require any"),
        (SearchRequest(("cat", "dog", "cat"), level="model"), ConceptError, "'cat' is twice"),
        (SearchRequest(("Polar bear", " polar\tBEAR "), level="model"), ConceptError, "'polar BEAR' is twice"),
        (SearchRequest(("caf\u00e9", "cafe\u0301"), level="model"), ConceptError, "is twice"),
        (SearchRequest(("cat", " "), level="model"), ConceptError, "empty"),
    ],
)
def test_what_makes_no_sense_is_refused(request_: SearchRequest, error: type[InputError], part: str) -> None:
    with pytest.raises(InputError, match=part) as raised:
        request_.check()
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_a_concept_that_is_twice_in_the_list_is_named() -> None:
    with pytest.raises(ConceptError) as raised:
        SearchRequest(("dog", "cat", "CAT"), level="model").check()
    assert raised.value.concept == "CAT"
    replace(SearchRequest(("dog", "cat", "CAT"), level="model"), level="output").check()


def test_concepts_come_from_arguments_and_files(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("owl\n\n  polar bear \n", encoding="utf-8")
    assert read_concepts(["cat", f"@{file}", "@", "dog"]) == ("cat", "owl", "polar bear", "@", "dog")
    assert read_concepts([]) == ()


def test_images_come_from_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    names = ["b.png", "a.png", "deep/c.PNG", "deep/er/d.png"]
    for name in names:
        write_example(folder / name, "cat")
    (folder / "notes.txt").write_text("no image")
    other = tmp_path / "without_suffix"
    write_example(tmp_path / "x.png", "cat").rename(other)
    found = read_images([str(other), str(folder), str(folder / "a.png"), str(folder)])
    assert found == (other, *(folder / name for name in ("a.png", "b.png", "deep/c.PNG", "deep/er/d.png")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_images(["~/photos/a.png"]) == (folder / "a.png",)
    assert read_images([]) == ()


def test_missing_paths_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.md").write_text("none")
    good = write_example(tmp_path / "good.png", "cat")
    long = tmp_path / ("x" * 300)
    dangling = tmp_path / "dangling.png"
    os.symlink(tmp_path / "gone.png", dangling)
    for path, part in (
        (empty, "no image is in this folder"),
        (tmp_path / "absent", "there is no such file or folder"),
        (dangling, "there is no such file or folder"),
        (long, "cannot be read"),
        ("~nobody-of-that-name/x", "cannot be read"),
    ):
        with pytest.raises(InputError, match=part) as raised:
            read_images([str(good), str(path)])
        assert str(path) in str(raised.value)
