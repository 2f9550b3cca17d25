"""What a process gives up before it touches a stranger's model; nothing of it can be taken back.

Every layer stands alone: what one platform or kernel lacks is left out, and named to whoever asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from indexers.crawl import audit, landlock, seccomp
from indexers.crawl.limits import MAX_OPEN_FILES, Limits

DEATH, GROUP, FIRST_TO_GO = "dies with its parent", "own process group", "first when memory is short"
RLIMITS, MEMORY, CAPABILITIES, NO_NEW_PRIVILEGES = "file limits", "memory limit", "no capabilities", "no new privileges"

LAYERS = (
    DEATH,
    GROUP,
    FIRST_TO_GO,
    RLIMITS,
    MEMORY,
    CAPABILITIES,
    NO_NEW_PRIVILEGES,
    landlock.FILES,
    landlock.NETWORK,
    landlock.SIGNALS,
    seccomp.NAME,
    audit.NAME,
)
"""All there are, in the order in which they are applied."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION = 0x20080522
_DAC_READ_SEARCH = 1 << 2


def apply(scratch: Path, limits: Limits, *, parent: int, on_gpu: bool = False) -> tuple[str, ...]:
    """Applies all layers to this process, which must have one thread only.

    Args:
        scratch: The one folder it may write to.
        limits: What it may take.
        parent: Process id of the parent, with which it dies.
        on_gpu: It may open NVIDIA devices, and its address space is not limited, because their driver reserves far
            more of it than memory.

    Returns:
        Names of the layers in force, of ``LAYERS``.
    """
    layers = [*die_with(parent), *own_group(), *go_first()]
    layers += limit_files(limits.scratch_bytes)
    layers += () if on_gpu else limit_memory(limits.memory_bytes)
    layers += [*drop_capabilities(), *no_new_privileges()]
    devices = [Path(os.devnull), *(sorted(Path("/dev").glob("nvidia*")) if on_gpu else ())]
    layers += landlock.restrict(scratch, devices)
    layers += seccomp.restrict()
    layers += audit.restrict(scratch)
    return tuple(layers)


def die_with(parent: int) -> tuple[str, ...]:
    """This process is killed when its parent ends, and ends at once if that has happened already.

    Args:
        parent: Its process id.
    """
    if sys.platform != "linux" or not _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        return ()
    if os.getppid() != parent:
        os._exit(1)
    return (DEATH,)


def own_group() -> tuple[str, ...]:
    """This process leads a group of its own: what is sent to its parent's terminal does not reach it."""
    try:
        os.setpgid(0, 0)
    except OSError:
        return ()
    return (GROUP,)


def go_first() -> tuple[str, ...]:
    """When the machine runs out of memory, the kernel kills this process first."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return ()
    return (FIRST_TO_GO,)


def limit_files(largest_bytes: int) -> tuple[str, ...]:
    """Limits the size of each file and the number of open ones, and forbids core dumps.

    Args:
        largest_bytes: Writing beyond it fails with EFBIG.
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: largest_bytes,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
    }
    # Without this the kernel kills a process that writes too much instead of telling it so.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return (RLIMITS,) if all([_limit(kind, value) for kind, value in wanted.items()]) else ()


def limit_memory(more_bytes: int) -> tuple[str, ...]:
    """Limits private memory: allocating beyond it fails, which Python and torch raise as errors.

    Args:
        more_bytes: Beyond what the process has now.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return ()  # other platforms accept the limit and do not enforce it
    has = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    return (MEMORY,) if _limit(resource.RLIMIT_DATA, has + more_bytes) else ()


def drop_capabilities() -> tuple[str, ...]:
    """Gives up what a privileged user may do, except reading files of others, in which models and probes may lie."""
    if sys.platform != "linux":
        return ()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    held = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, held):
        return ()
    effective, permitted = held[0] & _DAC_READ_SEARCH, held[1] & _DAC_READ_SEARCH
    kept = (ctypes.c_uint32 * 6)(effective, permitted, 0, 0, 0, 0)
    return () if libc.capset(header, kept) else (CAPABILITIES,)


def no_new_privileges() -> tuple[str, ...]:
    """No program that is ever started from here gains privileges from its file."""
    return (NO_NEW_PRIVILEGES,) if sys.platform == "linux" and _prctl(_PR_SET_NO_NEW_PRIVS, 1) else ()


def _limit(kind: int, value: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
        return True
    return False


def _prctl(option: int, value: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.prctl(option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0)))
