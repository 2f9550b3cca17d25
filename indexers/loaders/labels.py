"""What a model's outputs are called, as far as its config says so.

Labels are shown to people and used in evaluations, never for descriptors or search.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

_WORDNET = re.compile(r"n\d{8}")
_PLACEHOLDER = re.compile(r"(label|class|category|cls|output|logit)[\s_:#-]*\d+", re.IGNORECASE)

_SUBSETS = {
    "in1k": {1000: "imagenet-1k"},
    "in12k": {11821: "imagenet-12k"},
    "in21k": {11221: "imagenet-21k-miil", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"},
    "in22k": {21841: "imagenet-22k", 21842: "imagenet-22k-ms"},
}
"""timm's names of the ImageNet versions, as they stand in a model's tag, and which of them has how many classes."""


def tidy(
    names: Sequence[object] | Mapping[int, object],
    outputs: int,
    descriptions: Mapping[str, object] | None = None,
) -> tuple[str | None, ...]:
    """Bring declared labels into one per output.

    A placeholder counts as none: an empty label, ``LABEL_0``, ``class 7`` and the like, or a number that is the
    output's own position. (A digit classifier's "0" at position 0 is lost with that; it cannot be told apart.)
    WordNet ids become words.

    Args:
        names: The labels in the order of the outputs, or by output.
        outputs: How many outputs the model has.
        descriptions: Longer labels by name, used where the name is a WordNet id or a placeholder.
    """
    by_output = names if isinstance(names, Mapping) else dict(enumerate(names))
    return tuple(_tidy(by_output.get(output), output, descriptions or {}) for output in range(outputs))


def declared_labels(config: Mapping[str, object], outputs: int) -> tuple[str | None, ...]:
    """The labels in the ``id2label`` of a config.

    Args:
        config: Content of a config.json.
        outputs: How many outputs the model has.
    """
    declared = config.get("id2label")
    if not isinstance(declared, dict):
        return (None,) * outputs
    return tidy({int(key): name for key, name in declared.items() if str(key).isdecimal()}, outputs)


def imagenet_labels(tag: str, outputs: int) -> tuple[str | None, ...] | None:
    """The labels of a model whose tag says that it was trained or tuned last on a version of ImageNet.

    Args:
        tag: timm's tag of the weights, such as ``augreg_in21k_ft_in1k``.
        outputs: How many outputs the model has; a tag that does not fit them says nothing.
    """
    datasets = [part for part in re.split(r"[._\\-]", tag.lower()) if part in _SUBSETS]
    subset = _SUBSETS[datasets[-1]].get(outputs) if datasets else None
    if subset is None:
        return None
    from timm.data import ImageNetInfo  # imports torch

    return tuple(ImageNetInfo(subset).label_descriptions())


def _tidy(name: object, output: int, descriptions: Mapping[str, object]) -> str | None:
    text = " ".join(str(name).split()) if name is not None else ""
    wordnet = _WORDNET.fullmatch(text) is not None
    if (wordnet or _is_placeholder(text, output)) and isinstance(description := descriptions.get(text), str):
        return description.strip() or None
    if wordnet:
        return _wordnet_words().get(text, text)
    return None if _is_placeholder(text, output) else text


def _is_placeholder(text: str, output: int) -> bool:
    if text.isdecimal():
        return int(text) == output
    return not text or _PLACEHOLDER.fullmatch(text) is not None


@functools.cache
def _wordnet_words() -> dict[str, str]:
    from timm.data import ImageNetInfo  # imports torch

    words: dict[str, str] = {}
    for subset in ("imagenet-1k", "imagenet-12k", "imagenet-22k", "imagenet-21k-goog", "imagenet-21k-miil"):
        words.update(ImageNetInfo(subset).label_descriptions(as_dict=True))
    return words
