"""From a repository on disk to a model that can run: one module a library.

    load(repository)  ->  LoadedModel: the network, its own preprocessing, its labels

Loading never runs code from a repository and opens pickles only when allowed to. Whatever goes wrong, in a library or
in a file, is a `ModelRefusedError` or a `ModelFailedError` with a reason.
"""

from __future__ import annotations

import threading

from engine.errors import Reason
from indexers.loaders.base import LoadedModel, Metadata, Preprocessing, Repository
from indexers.loaders.declined import naming, stage
from indexers.loaders.layout import CONFIG, files_in, library_of, read_json, staged, weights_in

__all__ = ["LoadedModel", "Metadata", "Preprocessing", "Repository", "load"]

# While a model loads, logging and warnings of the whole process are turned down.
_LOADING = threading.Lock()


def load(repository: Repository, *, allow_pickle: bool = False) -> LoadedModel:
    """Load an image classifier.

    Args:
        repository: Where its files are.
        allow_pickle: Open weights that exist only as pickles, restricted to tensors (``weights_only``).

    Returns:
        The model, which has answered one image.

    Raises:
        ModelRefusedError: If we decline to load it.
        ModelFailedError: If it cannot be loaded.
    """
    with naming(repository.repo, repository.revision), stage(Reason.BROKEN_CONFIG):
        config = read_json(repository.folder / CONFIG)
        library = library_of(config, files_in(repository.folder))
        weights = weights_in(repository.folder, allow_pickle=allow_pickle)
        # Imported one by one: each library takes seconds.
        if library == "timm":
            from indexers.loaders.timm_loader import load_timm as load_it
        elif library == "onnx":
            from indexers.loaders.onnx_loader import load_onnx as load_it
        else:
            from indexers.loaders.transformers_loader import load_transformers as load_it
        from indexers.loaders.guard import quiet  # imports torch

        with _LOADING, quiet(), staged(repository.folder, weights) as folder:
            return load_it(repository, config, weights, folder)
