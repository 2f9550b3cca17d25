"""Python's own audit events, answered with PermissionError: the last layer, and the one that every platform has.

It stops what Python code does, not what a library does beneath Python (docs.python.org, audit events table).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

NAME = "audit hook"

_REFUSED = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.kill",
        "os.killpg",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "resource.prlimit",
        "resource.setrlimit",
        "signal.pthread_kill",
        "sqlite3.connect",
        "subprocess.Popen",
        "syslog.openlog",
        "syslog.syslog",
    }
)
_HARMLESS = frozenset({"socket.gethostname"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_CHANGED: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.chflags": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.removexattr": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.setxattr": ((0, None),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
"""Events that change a path: where in their arguments the path stands, and where the folder it is relative to."""

_ITSELF = frozenset({"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"})
"""Of these the events that change an entry of a folder; the others follow links."""


def restrict(writable: Path) -> tuple[str, ...]:
    """Refuses sockets, programs, signals and writing elsewhere to all Python code, for the rest of this process.

    Args:
        writable: The one folder beneath which files may be written; ``/dev/null`` may be, too.

    Returns:
        Names of what is in force now.
    """
    sys.addaudithook(_hook(os.path.realpath(writable)))
    return (NAME,)


def _hook(root: str) -> Callable[[str, tuple[object, ...]], None]:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not _within(path, root):
                raise PermissionError(f"a model's process may not write to {_shown(path)}")
        elif event in _REFUSED or (event.startswith("socket.") and event not in _HARMLESS):
            raise PermissionError(f"a model's process may not do this ({event})")
        elif event in _CHANGED:
            for place, relative in _CHANGED[event]:
                folder = arguments[relative] if relative is not None and relative < len(arguments) else None
                if not _within(arguments[place], root, folder, itself=event in _ITSELF):
                    raise PermissionError(f"a model's process may not change {_shown(arguments[place])} ({event})")

    return hook


def _within(path: object, root: str, folder: object = None, *, itself: bool = False) -> bool:
    if isinstance(path, int):
        return True  # a file that is open already
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
            text = os.path.join(_path_of(folder), text)
    except (TypeError, ValueError, OSError):
        return False
    if itself:  # the last part may be a link, which is meant and not what it points to
        parent, name = os.path.split(os.path.abspath(text))
        found = os.path.join(os.path.realpath(parent), name)
    else:
        found = os.path.realpath(text)
    return found in {root, os.devnull} or found.startswith(root + os.sep)


def _path_of(handle: int) -> str:
    if sys.platform == "darwin":
        import fcntl

        return os.fsdecode(fcntl.fcntl(handle, fcntl.F_GETPATH, b"\0" * 1024).rstrip(b"\0"))
    return os.readlink(f"/proc/self/fd/{handle}")


def _shown(path: object) -> str:
    return ascii(path)[:200]
