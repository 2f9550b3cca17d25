"""Two writers of one index on a server that cross each other at a chosen step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from engine.store.server import ServerStore
from engine.writer import IndexWriter


class KilledError(BaseException):
    """Stands for a kill: nothing in the program catches it."""


class Steps:
    """Has something else done, once, after one of the requests of a writer; as long as the context lasts.

    Args:
        writer: The writer.
        names: Of the methods of its store that are steps.
        at: After which of them, from 0.
        act: What is done then.
    """

    def __init__(self, writer: IndexWriter, names: Sequence[str], at: int, act: Callable[[], object]) -> None:
        self._store = writer.store
        self._names = names
        self._at = at
        self._act = act
        self._count = 0

    @property
    def crossed(self) -> bool:
        """Whether it came so far."""
        return self._count > self._at

    def __enter__(self) -> Self:
        for name in self._names:
            setattr(self._store, name, self._step(getattr(self._store, name)))
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self._names:
            delattr(self._store, name)

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any) -> Any:
            answer = real(*given)
            self._count += 1
            if self._count - 1 == self._at:
                self._act()
            return answer

        return step


def store_of(writer: IndexWriter) -> ServerStore:
    """The store on the server that a writer writes to."""
    assert isinstance(writer.store, ServerStore)
    return writer.store
