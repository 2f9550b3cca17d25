"""The folder that a model's process may write to, as seen by the daemon: everything in it may be a trap."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from indexers.crawl.limits import SCRATCH_ENTRIES

_DEEPEST = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def new(parent: Path, name: str) -> Path:
    """An empty folder that only this user can enter.

    Args:
        parent: Made if it is missing.
        name: Of the folder; whatever has it now is removed.
    """
    folder = parent / name
    remove(folder)
    parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    return folder


def size_bytes(folder: Path) -> int | None:
    """What lies in a folder, without following links.

    Args:
        folder: It may change meanwhile.

    Returns:
        Bytes on the disk; None if there are too many files to look at.
    """
    total, count, folders = 0, 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                if count > SCRATCH_ENTRIES:
                    return None
                with contextlib.suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    total += facts.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def empty(folder: Path) -> bool:
    """Removes what lies in a folder, but not the folder.

    Args:
        folder: Links in it are removed, not followed.

    Returns:
        Whether nothing is left.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                remove(Path(entry.path))
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it, as far as that is possible.

    Args:
        path: It may be missing; a link is not followed, and folders in it may lie in each other thousands deep.
    """
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        top = os.open(path, _FOLDER)
        _clear(top)
        path.rmdir()


def _clear(top: int) -> None:
    """Removes what lies in an open folder, which is closed.

    ``shutil.rmtree`` goes as deep as there are folders in each other, and ends where Python's calls or the open files
    do. Here a folder that lies too deep is moved up first.
    """
    stack = [(top, "", _files_gone(top))]
    while stack:
        here, name, folders = stack[-1]
        if not folders:
            os.close(here)
            stack.pop()
            if stack:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=stack[-1][0])
            continue
        below = folders.pop()
        with contextlib.suppress(OSError):
            if len(stack) > _DEEPEST:
                moved = f"deep-{os.urandom(8).hex()}"
                os.rename(below, moved, src_dir_fd=here, dst_dir_fd=stack[0][0])
                stack[0][2].append(moved)
            else:
                deeper = os.open(below, _FOLDER, dir_fd=here)
                stack.append((deeper, below, _files_gone(deeper)))


def _files_gone(here: int) -> list[str]:
    """Removes everything but folders from an open folder, and names those."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(here) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=here)
    return folders
