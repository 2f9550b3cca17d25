"""What comes of a file while it comes: huggingface_hub tells it nobody but a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import Reason
from indexers.loaders.declined import Declined


def bar(name: str, most_bytes: int, advance: Callable[[int], None] | None) -> type[Any]:
    """A progress bar class for huggingface_hub that shows nothing, passes the bytes on, and ends what never ends.

    Args:
        name: Of the file, for messages.
        most_bytes: As the Hub states the file's size; the first byte beyond it raises `Declined`.
        advance: Called with the bytes that came; what it raises ends the download.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # or each class of bars starts a thread that never ends

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self._here = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._here += int(n or 0)  # less than nothing, where what was here has to come again
            if self._here > most_bytes:
                raise Declined(
                    Reason.CHECKSUM, f"of {name[:100]} the Hub sends more than the {most_bytes} bytes it states"
                )
            if advance is not None:
                advance(int(n or 0))

        # Without these two a download over Xet makes two bars of this class and counts every byte twice.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

    return Bar


def tell_as_it_comes() -> None:
    """Let huggingface_hub write and tell what comes when it comes.

    Else it waits for 10 MiB, and a server that is slow enough is never asked about its time. It reads this at every
    download; None is what its HTTP client takes for "as it comes".
    """
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = None  # type: ignore[assignment]
