"""Bringing the constants of all outputs to the background of their index; no model runs.

Several may do so at once on a server, to different backgrounds even. Outputs there say which background their constants
are of, so that readers are right at every moment; which background is the index's says its manifest, and who finds that
it has become another one stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from engine.calibration import Background, calibrate
from engine.errors import IndexMismatchError
from engine.index import Index
from engine.manifest import read_manifest
from engine.schema import Model, ModelState
from engine.shared_model import SharedModel
from engine.store.base import DescriptorStore, Shared

_LOOK_S = 1.0
"""How often the manifest of an index on a server is looked at."""


class Recalibration:
    """Computes constants against one background.

    Args:
        index: Whose outputs; its manifest names the background.
        store: Its store, open for writing.
        background: That of the manifest.
    """

    def __init__(self, index: Index, store: DescriptorStore, background: Background) -> None:
        self._index = index
        self._store = store
        self._background = background
        self._fingerprint = index.manifest.background.fingerprint

    def run(self, progress: Callable[[int, int], None] | None = None) -> int:
        """All models whose constants are not those of the background.

        Args:
            progress: Called with (models done, models to do).

        Returns:
            How many were recalibrated.

        Raises:
            IndexMismatchError: The index has been given another background meanwhile; models that were done after that
                have its constants.
            StoreError: The store cannot be written.
        """
        done = 0
        looked = time.monotonic()
        lately: list[str] = []
        while stale := self._stale():
            total = done + len(stale)
            for model in stale:
                if time.monotonic() > looked + _LOOK_S:
                    self._look(lately)
                    looked = time.monotonic()
                    lately.clear()
                self._write(model)
                lately.append(model.repo)
                done += 1
                if progress:
                    progress(done, total)
            if not isinstance(self._store, Shared):  # else others may have written with another background meanwhile
                break
        self._look(lately)
        return done

    def mend(self) -> None:
        """Models whose records name the background while some of their outputs are of another one: a kill left them."""
        if isinstance(self._store, Shared):
            for model in self._store.mixed(self._fingerprint):
                self._write(model)

    def of(self, repo: str) -> None:
        """One model, if it has outputs."""
        model = self._store.model(repo)
        if model is not None and model.state is ModelState.INDEXED:
            self._write(model)

    def _stale(self) -> list[Model]:
        models = [model for model in self._store.models() if model.state is ModelState.INDEXED]
        mixed = self._store.mixed(self._fingerprint) if isinstance(self._store, Shared) else []
        others = {model.repo for model in mixed}
        return [model for model in models if model.calibration != self._fingerprint or model.repo in others]

    def _look(self, lately: Iterable[str]) -> None:
        """Stops if the index has been given another background.

        Args:
            lately: Models that were done since the last look, perhaps after who gave it that was through with them.

        Raises:
            IndexMismatchError: It has; these models have its constants.
        """
        if self._index.remote is None:
            return
        self._index.remote.refresh()
        manifest = read_manifest(self._index.folder)
        if manifest.background.fingerprint == self._fingerprint:
            return
        now = Index(self._index.folder)
        theirs = Recalibration(now, self._store, now.background())
        for repo in lately:
            theirs.of(repo)
        part = manifest.background
        raise IndexMismatchError(
            f"the index {self._index.name} has been given another background meanwhile ({part.count} phrases from "
            f"{part.source}), which counts: to have this one, run 'hubhound index calibrate' again after that",
            "background",
            self._fingerprint,
            part.fingerprint,
        )

    def _write(self, model: Model) -> None:
        table = self._store.outputs(model.repo, model.revision)
        if table is not None and len(table) and not table.calibrated_with(self._fingerprint, model.calibration):
            constants = calibrate(table.idx, table.z, table.anchor, self._background)
            self._store.upsert_outputs(table.with_calibration(constants, self._fingerprint))
        if not isinstance(self._store, Shared):
            self._store.upsert_model(model.model_copy(update={"calibration": self._fingerprint}))
            return

        def calibrated(now: Model | None) -> Model | None:
            if now is None or (now.state, now.revision) != (ModelState.INDEXED, model.revision):
                return None
            return now.model_copy(update={"calibration": self._fingerprint})

        if not self._store.change_model(model.repo, calibrated).seq:
            # Replaced or removed since it was read: what was written just now may have come after its outputs went.
            SharedModel(self._store, model.repo).clear_all()
