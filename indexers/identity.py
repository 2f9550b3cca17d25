"""Which models must answer alike, told from their files without running them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from engine.errors import Reason
from indexers.loaders.declined import Declined

_NAMES = frozenset({"id2label", "label2id", "label_names", "label_descriptions"})
_REMARKS = frozenset({"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map"})
_ORIGIN = frozenset({"license", "tag", "source", "url", "file", "hf_hub_id", "hf_hub_filename", "origin_url"})
_ORIGIN |= {"paper_name", "paper_ids", "architecture", "custom_load", *_NAMES}


def identity_of(config: Mapping[str, object], small: Mapping[str, bytes], digests: Sequence[str | None]) -> str | None:
    """What two repositories share whose models answer alike, whatever they and their outputs are called.

    Args:
        config: Content of config.json; names, labels and remarks on its origin do not count.
        small: Content of the other configs by name: how images are prepared.
        digests: Hashes of the weights files, in their order; None for one that is not known.

    Returns:
        A SHA-256 in hexadecimal, None where a hash is not known.

    Raises:
        Declined: The config is nested so deeply that it cannot be written again.
    """
    if None in digests:
        return None
    kept = {key: value for key, value in config.items() if key not in _NAMES | _REMARKS}
    if isinstance(trained := kept.get("pretrained_cfg"), dict):
        kept["pretrained_cfg"] = {key: value for key, value in trained.items() if key not in _ORIGIN}
    others = {name: hashlib.sha256(content).hexdigest() for name, content in small.items()}
    try:
        whole = json.dumps([kept, others, digests], sort_keys=True, default=str)
    except RecursionError as error:
        raise Declined(Reason.BROKEN_CONFIG, "its config is nested too deeply") from error
    return hashlib.sha256(whole.encode()).hexdigest()
