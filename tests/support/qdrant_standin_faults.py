"""What the stand-in server answers when it refuses, with Qdrant's status codes and words."""

from __future__ import annotations

import re


class Fault(Exception):
    """A refusal.

    Args:
        status: HTTP status.
        text: What ``status.error`` of the answer says.
        plain: The body is the bare text, as where an API key is missing.
    """

    def __init__(self, status: int, text: str, plain: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.plain = plain


def wrong_input(text: str) -> Fault:
    """What a request asks for does not fit the collection."""
    return Fault(400, f"Wrong input: {text}")


def not_found(name: str) -> Fault:
    """There is no such collection."""
    return Fault(404, f"Not found: Collection `{name}` doesn't exist!")


def engine_fault(error: BaseException) -> Fault:
    """The answer to what the engine raised."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if text.startswith("No point with id"):
        return Fault(404, f"Not found: {text} found")
    if re.match("No (appropriate|range) index", text):
        return Fault(400, f"Bad request: {text}")
    if text.startswith("Service runtime error: ") or type(error).__name__ == "PanicException":
        return Fault(500, f"Service internal error: {text.removeprefix('Service runtime error: ')}")
    return wrong_input(text)
