"""What can be asked of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.concepts import clean_concept
from engine.coverage import Require
from engine.errors import ConceptError, InputError, ProbeError
from engine.probes import SUFFIXES, find_images
from query.filters import Condition

Level = Literal["output", "model"]
Evidence = Literal["probes", "labels", "both"]


@dataclass(frozen=True)
class SearchRequest:
    """A search: by texts, by example images, by both, or by an output or a model that is known.

    Attributes:
        concepts: Texts. At the level of outputs each is a question of its own, at that of models they are one list.
        k: Hits per question, >= 1.
        method: None for the index's default.
        where: Conditions.
        explain: Show the probes behind each hit.
        images: Example images of one concept; with a text the concept is the mean of both.
        like: ``org/name#17``, an output whose equals are sought; at the level of models ``org/name``.
        level: Whether outputs or models are found.
        require: At the level of models: must every concept be covered (``all``), or do more count more (``any``)? None
            for ``all``, or ``any`` with ``like``.
        ceiling: At the level of models: above this margin a concept counts a hundredth, so that models that cover the
            whole list evenly come first; > 0, None for no ceiling.
        evidence: What speaks: the probes, the declared labels, or both.
    """

    concepts: tuple[str, ...] = ()
    k: int = 10
    method: str | None = None
    where: tuple[Condition, ...] = ()
    explain: bool = False
    images: tuple[Path, ...] = ()
    like: str | None = None
    level: Level = "output"
    require: Require | None = None
    evidence: Evidence = "probes"
    ceiling: float | None = None

    def check(self) -> None:
        """Refuses what makes no sense together.

        Raises:
            ConceptError: There is nothing to search for, or a concept stands twice in a list for one model.
            InputError: k is out of range or two ways of asking exclude each other.
        """
        if self.k < 1:
            raise InputError(f"-k {self.k}: ask for at least one hit")
        if not (self.concepts or self.images or self.like):
            raise ConceptError("there is no concept to search for: write a word or a phrase", "")
        if self.like and (self.concepts or self.images):
            raise InputError(f"--like {self.like} is a question of its own: leave out the concepts and images")
        if self.images and len(self.concepts) > 1:
            raise InputError(
                f"--images are examples of one concept, and there are {len(self.concepts)}: "
                "give one text with them, or search for the others apart"
            )
        if self.evidence != "probes" and (self.level == "model" or self.like):
            raise InputError(
                f"--evidence {self.evidence} compares a concept with the labels of single outputs: "
                "use it without --level model and --like"
            )
        if self.level == "output" and self.require:
            raise InputError(f"--require {self.require} is about a list that one model covers: add --level model")
        if self.ceiling is not None and (self.level == "output" or not self.ceiling > 0):
            what = "is for lists: add --level model" if self.level == "output" else "must be above 0"
            raise InputError(f"--ceiling {self.ceiling:g} {what}")
        if self.level == "model":
            seen: set[str] = set()
            for text in map(clean_concept, self.concepts):
                if text.casefold() in seen:
                    raise ConceptError(
                        f"the concept {text!r} is twice in the list: each needs an output of its own, name it once",
                        text,
                    )
                seen.add(text.casefold())


def read_concepts(arguments: Sequence[str]) -> tuple[str, ...]:
    """Concepts as a command line gives them: texts, or ``@FILE`` with one a line.

    Raises:
        InputError: A file cannot be read or is empty.
    """
    from engine.textfiles import read_lines

    concepts: list[str] = []
    for argument in arguments:
        if argument.startswith("@") and len(argument) > 1:
            lines = read_lines(Path(argument[1:]), "concept")
            if not lines:
                raise InputError(f"the concept file {argument[1:]} is empty: write one concept a line")
            concepts += lines
        else:
            concepts.append(argument)
    return tuple(concepts)


def read_images(arguments: Sequence[str]) -> tuple[Path, ...]:
    """Image files as a command line gives them: files, or folders with files anywhere below.

    Raises:
        InputError: A path is missing, or a folder cannot be read or holds no image.
    """
    paths: list[Path] = []
    for argument in arguments:
        if not argument.strip():
            raise InputError("--images: the path is empty; is a variable unset?")
        try:
            path = Path(argument).expanduser()
            found = find_images(path) if path.is_dir() else [path]
        except (OSError, ProbeError, RuntimeError) as error:  # the last: the home of a user who is not there
            raise InputError(f"--images {argument}: the path cannot be read ({error})") from error
        if not found:
            raise InputError(f"--images {argument}: no image is in this folder ({', '.join(sorted(SUFFIXES))})")
        if not found[0].exists():
            raise InputError(f"--images {argument}: there is no such file or folder")
        paths += found
    return tuple(dict.fromkeys(paths))
