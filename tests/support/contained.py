"""Starts a program as a container does: nothing but named folders can be written, no capabilities, no new privileges.

``python contained.py FOLDER... -- PROGRAM ARGUMENT...``, in the first folder. It stands for a root file system that is
mounted read-only where none can be mounted: Landlock refuses all writing elsewhere, to root as well.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_LAST = 24, 38, 63
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_FIRST = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_BY_VERSION = {2: 1 << 13, 3: _TRUNCATE}
_SPECIAL = ("/dev", "/proc")  # a container has its own of them


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


_LIBC = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


def write_only(folders: list[str]) -> None:
    """From here on this process and its children write to these folders, devices and /proc, and nowhere else."""
    version = landlock_version()
    handled = _FIRST | sum(bit for since, bit in _BY_VERSION.items() if version >= since)
    attributes = ctypes.c_uint64(handled)
    ruleset = _LIBC.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(8), ctypes.c_uint32(0))
    assert ruleset >= 0, os.strerror(ctypes.get_errno())
    rules = {path: handled for path in folders} | dict.fromkeys(_SPECIAL, (_WRITE_FILE | _TRUNCATE) & handled)
    for path, allowed in {**rules, "/dev/shm": handled}.items():  # noqa: S108
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _Beneath(allowed, handle)
        failed = _LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
        assert not failed, f"{path}: {os.strerror(ctypes.get_errno())}"
        os.close(handle)
    _LIBC.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
    assert not _LIBC.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def drop_capabilities() -> None:
    """The next program has none, even as root; who is not root has none to drop."""
    for capability in range(_CAP_LAST + 1):
        _LIBC.prctl(_CAPBSET_DROP, *(ctypes.c_ulong(value) for value in (capability, 0, 0, 0)))


def main() -> None:
    """Starts the program in the place of this process."""
    end = sys.argv.index("--")
    folders, command = sys.argv[1:end], sys.argv[end + 1 :]
    os.chdir(folders[0])
    drop_capabilities()
    write_only(folders)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
