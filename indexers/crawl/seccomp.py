"""A filter of system calls (seccomp, Linux): a process gives up sockets, programs, other processes and the machine.

The filter is classic BPF, made of three kinds of instruction: load a word of the call, compare it, answer. Calls that
are forbidden fail with EPERM, as if a permission were missing, so that libraries fall back or say so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

NAME = "seccomp"

FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "tkill": (200, 130),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "open_tree_attr": (467, 467),
    "file_setattr": (469, 469),
}
"""Calls that always fail, with their numbers on x86_64 and aarch64; None where the architecture has no such call.

Besides the network, programs and processes: what outlives the process (System V memory, queues), memory that no limit
counts (memfd), the attributes and times of files (Landlock leaves them open), and everything only root could do.
"""

CLONE, CLONE3, PRCTL, PRLIMIT, SENDTO, SECCOMP = (56, 220), (435, 435), (157, 167), (302, 261), (44, 206), (317, 277)
TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)}
"""Calls that may name the process itself as their first argument and no other: ``abort`` needs them."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # the numbers of x86_64's other way to call begin here
_CLONE_THREAD = 0x00010000
_SET_PDEATHSIG = 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE = 0, 4
_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""


def restrict() -> tuple[str, ...]:
    """Puts the filter on this process, all its threads, and what they start; it cannot be taken off again.

    Returns:
        Names of what is in force now; empty on other platforms and architectures, and where the kernel refuses.
    """
    place = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or place is None:
        return ()
    code = program(*place, os.getpid())
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
    argument = _Program(len(code), ctypes.cast(buffer, ctypes.c_void_p))
    failed = libc.syscall(
        SECCOMP[place[0]], ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_ALL_THREADS), ctypes.byref(argument)
    )
    return () if failed else (NAME,)


def program(column: int, architecture: int, pid: int) -> list[Instruction]:
    """The filter's instructions.

    Args:
        column: Of the numbers in ``FORBIDDEN``: 0 for x86_64, 1 for aarch64.
        architecture: The kernel's constant for it.
        pid: Of the process, which may send signals to itself.
    """
    refuse = (_ANSWER, 0, 0, 0x00050000 | errno.EPERM)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_ANSWER, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        code += [(_AT_LEAST, 0, 1, _X32), refuse]
    # glibc tries clone3, whose arguments lie where a filter cannot look, and falls back to clone.
    code += _case(CLONE3[column], [(_ANSWER, 0, 0, 0x00050000 | errno.ENOSYS)])
    for numbers in FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            code += _case(number, [refuse])
    for numbers in TO_ITSELF.values():
        code += _case(numbers[column], [(_LOAD, 0, 0, _low(0)), (_EQUAL, 1, 0, pid), refuse])
    code += _case(CLONE[column], [(_LOAD, 0, 0, _low(0)), (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse])
    code += _case(PRCTL[column], [(_LOAD, 0, 0, _low(0)), (_EQUAL, 0, 1, _SET_PDEATHSIG), refuse])
    for number, pointer in ((PRLIMIT[column], 2), (SENDTO[column], 4)):  # new limits; an address
        code += _case(number, _unless_null(pointer, refuse))
    return [*code, (_ANSWER, 0, 0, _ALLOW)]


def _case(number: int, body: Sequence[Instruction]) -> list[Instruction]:
    """Runs the body if the call has that number; a body that does not answer allows the call."""
    allow = [(_ANSWER, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body) + 1, number), *body, *allow]


def _unless_null(argument: int, refuse: Instruction) -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _low(argument)),
        (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _low(argument) + 4),
        (_EQUAL, 1, 0, 0),
        refuse,
    ]


def _low(argument: int) -> int:
    """Where the lower half of an argument lies in what a filter sees (both architectures are little-endian)."""
    return 16 + 8 * argument
