"""Who holds the outputs of a model: itself and its copies, whose facts a server limits searches by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.schema import Model, ModelState
from engine.store.points import holder

Holders = list[dict[str, Any]]


def holders_of(
    repos: Iterable[str], known: Mapping[str, Model], copies: Mapping[str, Sequence[Model]]
) -> dict[str, tuple[str, Holders]]:
    """Revision and holders of the models that have outputs: themselves, then the copies of that revision by id."""
    made: dict[str, tuple[str, Holders]] = {}
    for repo in repos:
        model = known.get(repo)
        if model is not None and model.state is ModelState.INDEXED:
            equal = [copy for copy in copies.get(repo, ()) if copy.copied_revision == model.revision]
            made[repo] = model.revision, [holder(one) for one in (model, *equal)]
    return made


def as_if(
    known: Mapping[str, Model], copies: Mapping[str, Sequence[Model]], written: Mapping[str, Model | None]
) -> tuple[dict[str, Model], dict[str, list[Model]]]:
    """Records and copies as they will be when some are written."""
    models = {repo: model for repo, model in known.items() if repo not in written}
    models |= {repo: model for repo, model in written.items() if model is not None}
    after = {repo: [copy for copy in some if copy.repo not in written] for repo, some in copies.items()}
    for model in written.values():
        if model is not None and model.copy_of is not None:
            after.setdefault(model.copy_of, []).append(model)
    return models, {repo: sorted(some, key=lambda copy: copy.repo) for repo, some in after.items()}


def originals(models: Iterable[Model]) -> set[str]:
    """The models that copies among some models are copies of."""
    return {model.copy_of for model in models if model.copy_of is not None}
