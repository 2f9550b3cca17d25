"""Collections of the stand-in server: one shard of the embedded engine each, durable across a kill.

::

    FOLDER/aliases.json
    FOLDER/collections/NAME/collection.json   its settings; written last, so that a folder with it is complete
    FOLDER/collections/NAME/shard/            the engine's
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from tests.support import qdrant_standin_config as configs
from tests.support.qdrant_standin_faults import Fault, engine_fault, not_found, wrong_input
from tests.support.qdrant_standin_points import update

Json = dict[str, Any]

_FLUSH_BYTES = 64 << 20
"""Written since the last flush, above which a shard flushes: a log of this length is replayed in about a second."""

_IDLE_S = 1.0
"""A collection that was not written to for so long is optimised if it is due."""

LATER_S = 0.1
"""When an update takes effect that the client does not wait for."""

_WAL_OPTIONS = {"segment_capacity": 1 << 20, "segment_queue_len": 0, "retain_closed": 1}

_OPTIMISE = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a server that is killed leaves nobody in its folder
import qdrant_edge as qe
shard = qe.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.flush()
shard.close()
"""
"""The engine holds the interpreter's lock while it optimises: in a process of its own, the server goes on answering."""

_LOCKED_S = 10.0
"""How long the optimiser of a killed server may hold its folder."""


class Collection:
    """A collection, open.

    Args:
        path: Its folder.
        config: Its settings as described by Qdrant (:func:`qdrant_standin_config.described`).
        schemas: Its payload indexes by field, as they were asked for.
        engine: The engine's shard.
    """

    def __init__(self, path: Path, config: Json, schemas: dict[str, Any], engine: qe.EdgeShard) -> None:
        self.path = path
        self.config = config
        self.schemas = schemas
        self._engine: qe.EdgeShard | None = engine
        self._lock = threading.RLock()
        self.later_s = LATER_S
        self._operations = 0
        self._later: list[tuple[Any, int, int]] = []
        self._unflushed_bytes = 0
        self._unoptimised_kb = 0.0
        self._written_at = 0.0
        self._optimiser: subprocess.Popen[bytes] | None = None
        self._counts = (0, 0, 0)

    @classmethod
    def create(cls, path: Path, body: Json) -> Collection:
        """Makes an empty collection as a request asks."""
        config = configs.described(body)
        (path / "shard").mkdir(parents=True)
        (path / "shard" / "edge_config.json").write_text(json.dumps({"wal_options": _WAL_OPTIONS}), encoding="utf-8")
        with _engine_faults():
            try:
                engine = qe.EdgeShard.load(str(path / "shard"), configs.edge_config(config))
                engine.flush()
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
        made = cls(path, config, {}, engine)
        made._write_settings()
        return made

    @classmethod
    def open(cls, path: Path) -> Collection:
        """Opens a collection and replays its log."""
        stored = json.loads((path / "collection.json").read_text(encoding="utf-8"))
        shutil.rmtree(path / "shard" / "temp_segments", ignore_errors=True)
        deadline = time.monotonic() + _LOCKED_S
        while True:
            try:
                engine = qe.EdgeShard.load(str(path / "shard"))
                break
            except Exception as error:
                if "WouldBlock" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        opened = cls(path, stored["config"], stored["schemas"], engine)
        # How much of it is indexed the engine does not say: the next optimisation finds out.
        opened._unoptimised_kb = engine.info().points_count * opened._point_kb()
        return opened

    @contextmanager
    def engine(self) -> Iterator[qe.EdgeShard]:
        """The engine's shard, for one thread at a time; what it raises becomes an answer."""
        with self._lock, _engine_faults():
            if self._engine is None:
                raise not_found(self.path.name)
            yield self._engine

    def update(self, kind: str, body: Any, size_bytes: int, wait: bool = True) -> int:
        """Applies an update; where the client waits for it, it is in the log when this returns.

        Where the client does not wait, it takes effect a moment later, but before the next one. (Qdrant has it in its
        log by then; here a kill in that moment loses it.)

        Args:
            kind: Name of the operation, see :func:`qdrant_standin_points.update`.
            body: Its request.
            size_bytes: Length of the request.
            wait: Whether the client waits for the effect.

        Returns:
            Its number.
        """
        with _engine_faults():
            operation, points = update(kind, body)
        with self._lock:
            self._operations += 1
            number = self._operations
            self._later.append((operation, points, size_bytes))
            if wait:
                self._apply_all()
            else:
                timer = threading.Timer(self.later_s, self._apply_quietly)
                timer.daemon = True
                timer.start()
            return number

    def _apply_all(self) -> None:
        waiting, self._later = self._later, []
        for place, (operation, points, size_bytes) in enumerate(waiting):
            try:
                self._apply(operation, points, size_bytes)
            except Fault:
                if place == len(waiting) - 1:  # nobody waits for the others
                    raise

    def _apply_quietly(self) -> None:
        with self._lock, suppress(Fault):
            self._apply_all()

    def _apply(self, operation: Any, points: int, size_bytes: int) -> None:
        with self.engine() as engine:
            self._written_at = time.monotonic()
            engine.update(operation)
            self._unoptimised_kb += points * self._point_kb()
            self._unflushed_bytes += size_bytes
            if self._unflushed_bytes > _FLUSH_BYTES:
                engine.flush()
                self._unflushed_bytes = 0

    def create_index(self, field: str, schema: Any) -> int:
        """Makes an index of a payload field; replaces one of another type."""
        with self.engine() as engine:
            engine.update(qe.UpdateOperation.create_field_index(field, configs.index_schema(schema)))
            self.schemas[field] = schema
            self._write_settings()
            self._operations += 1
            return self._operations

    def delete_index(self, field: str) -> int:
        """Removes the index of a payload field; it is no error if there is none."""
        with self.engine() as engine:
            engine.update(qe.UpdateOperation.delete_field_index(field))
            self.schemas.pop(field, None)
            self._write_settings()
            self._operations += 1
            return self._operations

    def change(self, body: Json) -> None:
        """Changes settings; those of vectors and optimiser take effect with the next optimisation."""
        with self.engine():
            self.config = configs.changed(self.config, body)
            self._write_settings()
            if body.keys() - {"metadata"}:
                self._reopen(configs.edge_config(self.config))
                self._unoptimised_kb = float("inf")  # whatever was changed, the next round finds out

    def info(self) -> Json:
        """What ``GET /collections/NAME`` answers; during an optimisation with the counts before it."""
        if self._lock.acquire(blocking=self._optimiser is None):
            try:
                with self.engine() as engine:
                    found = engine.info()
                    self._counts = (found.points_count, found.indexed_vectors_count, found.segments_count)
                    points = {field: index.points for field, index in found.payload_schema.items()}
            finally:
                self._lock.release()
        else:
            points = {}
        schema = {
            field: {
                "data_type": configs.schema_kind(asked),
                "points": points.get(field, 0),
                **({} if isinstance(asked, str) else {"params": asked}),
            }
            for field, asked in self.schemas.items()
        }
        return {
            "status": "yellow" if self._optimiser is not None or self.due else "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": self._counts[1],
            "points_count": self._counts[0],
            "segments_count": self._counts[2],
            "config": self.config,
            "payload_schema": schema,
        }

    @property
    def due(self) -> bool:
        """Whether there is more unindexed than the optimiser's threshold allows."""
        threshold_kb = self.config["optimizer_config"]["indexing_threshold"]
        return bool(threshold_kb) and self._unoptimised_kb > threshold_kb

    @property
    def idle(self) -> bool:
        """Whether nothing was written lately."""
        return time.monotonic() - self._written_at > _IDLE_S

    def optimise(self) -> None:
        """Merges segments and builds graphs, in a process of its own; other requests to this collection wait."""
        with self.engine() as engine:
            path = str(self.path / "shard")
            engine.flush()
            engine.close()
            self._engine = None
            try:
                environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
                self._optimiser = subprocess.Popen([sys.executable, "-c", _OPTIMISE, path], env=environment)
                if self._optimiser.wait() == 0:
                    self._unoptimised_kb = 0.0
            finally:
                shutil.rmtree(self.path / "shard" / "temp_segments", ignore_errors=True)
                self._engine = qe.EdgeShard.load(path)
                self._optimiser = None

    def close(self) -> None:
        """Flushes and lets go of the folder."""
        self._interrupt()
        with self._lock:
            if self._engine is not None:
                self._apply_quietly()
                self._engine.flush()
                self._engine.close()
                self._engine = None

    def remove(self) -> None:
        """Deletes the collection."""
        self._interrupt()
        with self._lock:
            (self.path / "collection.json").unlink()
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            shutil.rmtree(self.path)

    def _interrupt(self) -> None:
        optimiser = self._optimiser
        if optimiser is not None:
            optimiser.kill()

    def _reopen(self, config: qe.EdgeConfig) -> None:
        assert self._engine is not None
        self._engine.flush()
        self._engine.close()
        self._engine = qe.EdgeShard.load(str(self.path / "shard"), config)

    def _write_settings(self) -> None:
        _write_json(self.path / "collection.json", {"config": self.config, "schemas": self.schemas})

    def _point_kb(self) -> float:
        dense = sum(given["size"] for given in configs.named_vectors(self.config).values())
        return float(4 * dense / 1024)


class Collections:
    """All collections of a server, and their aliases.

    Args:
        folder: Where they are kept; what is there is opened.
        later_s: When an update takes effect that the client does not wait for.
    """

    def __init__(self, folder: Path, later_s: float = LATER_S) -> None:
        self._folder = folder
        self._later_s = later_s
        self._lock = threading.RLock()
        self._found: dict[str, Collection] = {}
        (folder / "collections").mkdir(parents=True, exist_ok=True)
        for path in sorted((folder / "collections").iterdir()):
            if (path / "collection.json").exists():
                self._add(path.name, Collection.open(path))
            else:  # being made or removed when the server was killed
                shutil.rmtree(path)
        aliases = folder / "aliases.json"
        self.aliases: dict[str, str] = json.loads(aliases.read_text(encoding="utf-8")) if aliases.exists() else {}

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        with self._lock:
            return sorted(self._found)

    def all(self) -> list[Collection]:
        """The collections."""
        with self._lock:
            return list(self._found.values())

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return self.aliases.get(name, name) in self._found

    def __getitem__(self, name: str) -> Collection:
        with self._lock:
            found = self._found.get(self.aliases.get(name, name))
        if found is None:
            raise not_found(name)
        return found

    def create(self, name: str, body: Json) -> None:
        """Makes a collection.

        Raises:
            Fault: There is one, or the name or the settings are not allowed.
        """
        if not re.fullmatch(r"[^<>:\"/\\|?*\x00-\x1f]{1,255}", name) or name in (".", ".."):
            raise Fault(422, "Validation error in path parameters: [name: not a valid collection name]")
        with self._lock:
            if name in self:
                raise Fault(409, f"Wrong input: Collection `{name}` already exists!")
            self._add(name, Collection.create(self._folder / "collections" / name, body))

    def delete(self, name: str) -> bool:
        """Deletes a collection with its aliases; False if there is none."""
        with self._lock:
            found = self._found.pop(name, None)
            if found is None:
                return False
            self._set_aliases({alias: of for alias, of in self.aliases.items() if of != name})
        found.remove()
        return True

    def change_aliases(self, actions: list[Json]) -> None:
        """Makes, renames and deletes aliases, all or none."""
        with self._lock:
            aliases = dict(self.aliases)
            for action in actions:
                ((kind, given),) = action.items()
                if kind == "create_alias":
                    if given["collection_name"] not in self._found:
                        raise not_found(given["collection_name"])
                    if given["alias_name"] in self._found:
                        raise wrong_input(f"Collection `{given['alias_name']}` already exists!")
                    aliases[given["alias_name"]] = given["collection_name"]
                elif kind == "delete_alias":
                    aliases.pop(given["alias_name"], None)
                else:
                    if given["old_alias_name"] not in aliases:
                        raise Fault(404, f"Not found: Alias {given['old_alias_name']} does not exists!")
                    aliases[given["new_alias_name"]] = aliases.pop(given["old_alias_name"])
            self._set_aliases(aliases)

    def close(self) -> None:
        """Closes all collections."""
        for collection in self.all():
            collection.close()

    def _add(self, name: str, collection: Collection) -> None:
        collection.later_s = self._later_s
        self._found[name] = collection

    def _set_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self.aliases:
            _write_json(self._folder / "aliases.json", aliases)
            self.aliases = aliases


@contextmanager
def _engine_faults() -> Iterator[None]:
    try:
        yield
    except Fault:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Fault(400, f"Format error in JSON body: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise engine_fault(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise engine_fault(error) from error


def _write_json(file: Path, content: Any) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")  # not synced: it must survive a kill, not a power cut
    temporary.replace(file)
