"""What a copy, a backup or a restoration has done."""

from __future__ import annotations

from dataclasses import dataclass

from engine.store.content import IndexContent


@dataclass
class CopyReport:
    """What a copy holds and how it came about.

    Attributes:
        source: Where it comes from.
        target: Where it is.
        content: What both hold.
        resumed: Whether it went on with a copy that was cut short.
        copied: Models copied by this run.
        kept: Models that an earlier run had copied.
        repaired: Models that were copied again because they differed.
        rounds: Times that the source was read; more than one if it was written to meanwhile.
        settled: Whether nothing changed after the last round began.
    """

    source: str
    target: str
    content: IndexContent
    resumed: bool = False
    copied: int = 0
    kept: int = 0
    repaired: int = 0
    rounds: int = 0
    settled: bool = True

    def to_json(self) -> dict[str, object]:
        """Everything as JSON."""
        return {
            "from": self.source,
            "to": self.target,
            **{part: content.count for part, content in self.content.parts().items()},
            "content": self.content.sha256,
            "parts": {part: content.sha256 for part, content in self.content.parts().items()},
            "resumed": self.resumed,
            "copied": self.copied,
            "kept": self.kept,
            "repaired": self.repaired,
            "rounds": self.rounds,
            "settled": self.settled,
        }
