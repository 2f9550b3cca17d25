"""What a model might do if a loader had a fault: imported into a nursery, it does so for repositories of certain names.

A repository ``hostile/ACT`` or ``hostile/ACT-then-fine`` is loaded by the function ``ACT`` below; all others are loaded
as ever. The functions go beneath Python where the sandbox's last layer would stop them, because there is no other layer
on their way that the tests of the sandbox have not tried alone.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ModelFailedError, Reason
from indexers import loaders
from indexers.loaders import LoadedModel, Repository

libc = ctypes.CDLL(None, use_errno=True)
load = loaders.load
kept: list[object] = []


def hostile_load(repository: Repository, *, allow_pickle: bool = False) -> LoadedModel:
    """The loaders' ``load``, but for certain names."""
    owner, _, name = repository.repo.partition("/")
    if owner == "hostile":
        act, _, then = name.partition("-then-")
        said = ACTS[act](repository)
        if not then:
            raise ModelFailedError(Reason.RUN_FAILED, f"{act}: {said}", repository.repo, repository.revision)
    return load(repository, allow_pickle=allow_pickle)


loaders.load = hostile_load


def errno_of(result: int) -> str:
    return os.strerror(ctypes.get_errno()) if result < 0 else "done"


def connection() -> int:
    """The one socket that the process has."""
    return next(n for n in range(3, 600) if is_socket(n))


def is_socket(n: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(n).st_mode)
    except OSError:
        return False


def say(message: dict[str, object] | bytes) -> None:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    os.write(connection(), struct.pack(">I", len(data)) + data)


def job_number() -> int:
    frame: Any = sys._getframe()
    while "job" not in frame.f_locals:
        frame = frame.f_back
    return int(frame.f_locals["job"].number)


def forge(repository: Repository, **changes: object) -> None:
    """Leaves responses that are as they should be, and says so but for some changes."""
    n, fingerprint = (repository.folder / "probes.txt").read_text().split()
    if not Path("responses.npy").exists():
        np.save("responses.npy", np.zeros((int(n), 2), np.float32))
    answer = {
        "kind": "answer",
        "number": job_number(),
        "library": "timm",
        "architecture": "forged",
        "parameters": 1,
        "input_size": [8, 8],
        "labels": ["a", None],
        "shape": [int(n), 2],
        "probabilities": False,
        "seconds": {"load": 0.0, "decode": 0.0, "probe": 0.0},
        "pixels": f"{fingerprint[:16]}/{'0' * 16}.npy",
        "new_pixels": False,
    }
    say({**answer, **changes})
    time.sleep(60)


def never(_: Repository) -> None:
    while True:
        time.sleep(1)


def pause(_: Repository) -> None:
    time.sleep(0.5)


def two_threads(_: Repository) -> None:
    import torch

    torch.set_num_threads(2)
    a = torch.ones(300, 300)
    for _ in range(5):
        a = torch.nn.functional.softmax((a @ a).abs().sort(dim=1)[0], dim=0)
    if not torch.isfinite(a).all():
        raise ArithmeticError


def spin(_: Repository) -> None:
    """Never comes back from beneath Python, and no other thread gets to run."""
    ctypes.PyDLL(None).sleep(1000)


def allocate(_: Repository) -> None:
    import torch

    kept.append(torch.empty(50 * 10**9, dtype=torch.uint8))


def allocate_unused(_: Repository) -> None:
    """More than its limit, and little enough that the machine would grant it."""
    import torch

    kept.append(torch.empty(3 * 10**9, dtype=torch.uint8))


def allocate_list(_: Repository) -> None:
    kept.append(bytearray(50 * 10**9))


def share_memory(_: Repository) -> None:
    """Memory that no limit of the kernel counts."""
    shared = mmap.mmap(-1, 4 * 10**9, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for start in range(0, 4 * 10**9, 10**7):
        shared[start : start + 10**7] = b"x" * 10**7
        time.sleep(0.003)
    time.sleep(5)


def leak(_: Repository) -> None:
    kept.append(np.ones(20_000_000))  # 160 MB


def leave(_: Repository) -> None:
    os._exit(3)


def crash(_: Repository) -> None:
    ctypes.string_at(0)


def abort(_: Repository) -> None:
    os.abort()


def killed(_: Repository) -> None:
    libc.kill(os.getpid(), 9)


def hang_up(_: Repository) -> None:
    os.close(connection())
    time.sleep(60)


def is_telling() -> bool:
    """Whether another model is being loaded."""
    return any("repository" in frame.f_locals for frame in sys._current_frames().values())


def later(_: Repository) -> None:
    """Behaves, and ends the process while another model is in it."""

    def end() -> None:
        while not Path("responses.npy").exists():
            time.sleep(0.001)
        while Path("responses.npy").exists():
            time.sleep(0.001)
        while not is_telling():
            time.sleep(0.001)
        os._exit(9)

    threading.Thread(target=end, daemon=True).start()


def connect(_: Repository) -> str:
    return errno_of(libc.socket(2, 1, 0))


def connect_in_python(_: Repository) -> str:
    try:
        socket.socket()
    except PermissionError as error:
        return str(error)
    return "done"


def write_outside(repository: Repository) -> str:
    target = repository.folder / "planted"
    return errno_of(libc.open(os.fsencode(target), os.O_WRONLY | os.O_CREAT, 0o600))


def run_program(repository: Repository) -> str:
    target = os.fsencode(repository.folder / "planted")
    return errno_of(libc.execv(b"/bin/touch", (ctypes.c_char_p * 3)(b"touch", target, None)))


def kill_others(_: Repository) -> str:
    return f"{errno_of(libc.kill(os.getppid(), 9))}, {errno_of(libc.kill(-1, 9))}"


def flood(_: Repository) -> None:
    for _ in range(2000):
        os.write(1, b"x" * 100_000)
        os.write(2, b"y" * 100_000)


def environment(_: Repository) -> str:
    return json.dumps(sorted(os.environ))[:480]


def handles(_: Repository) -> str:
    return " ".join(f"{n}:{os.readlink(f'/proc/self/fd/{n}').partition(':')[0]}" for n in range(300) if is_open(n))


def is_open(n: int) -> bool:
    try:
        os.fstat(n)
    except OSError:
        return False
    return True


def fill(_: Repository) -> None:
    for i in range(1000):
        Path(f"part-{i}").write_bytes(b"x" * 10**6)
        time.sleep(0.001)
    time.sleep(10)


def fill_hidden(_: Repository) -> None:
    for i in range(300):
        handle = os.open(f"part-{i}", os.O_WRONLY | os.O_CREAT)
        os.write(handle, b"x" * 10**6)
        Path(f"part-{i}").unlink()
    time.sleep(10)


def many_files(_: Repository) -> None:
    for i in range(3000):
        Path(f"{i}").touch()
    time.sleep(10)


def deep(_: Repository) -> None:
    for _ in range(1500):
        libc.mkdir(b"d", 0o700)
        libc.chdir(b"d")
    os._exit(4)


def garbage(_: Repository) -> None:
    os.write(connection(), b"Traceback (most recent call last):\n" * 100)
    time.sleep(60)


def long_message(_: Repository) -> None:
    os.write(connection(), struct.pack(">I", 2**31))
    time.sleep(60)


def not_json(_: Repository) -> None:
    say(b"{" * 100_000)
    time.sleep(60)


def unknown_kind(_: Repository) -> None:
    say({"kind": "pay", "to": "me"})
    time.sleep(60)


def other_number(repository: Repository) -> None:
    forge(repository, number=job_number() + 1)


def nan_parameters(repository: Repository) -> None:
    forge(repository, parameters=float("nan"))


def nan_seconds(repository: Repository) -> None:
    forge(repository, seconds={"load": float("nan"), "decode": 0.0, "probe": 0.0})


def more_fields(repository: Repository) -> None:
    forge(repository, licence="mine")


def too_many_outputs(repository: Repository) -> None:
    forge(repository, shape=[80, 1_000_001])


def wrong_shape(repository: Repository) -> None:
    forge(repository, shape=[79, 2])


def wrong_labels(repository: Repository) -> None:
    forge(repository, labels=["a", "b", "c"])


def climbing_pixels(repository: Repository) -> None:
    forge(repository, pixels="../../../etc/passwd.npy", new_pixels=True)


def missing_pixels(repository: Repository) -> None:
    forge(repository, new_pixels=True)


def linked_pixels(repository: Repository) -> None:
    Path(f"{'0' * 16}.npy").symlink_to(repository.folder / "pixels.npy")
    forge(repository, new_pixels=True)


def good_pixels(repository: Repository) -> None:
    Path(f"{'0' * 16}.npy").write_bytes((repository.folder / "pixels.npy").read_bytes())
    forge(repository, new_pixels=True)


def objects(repository: Repository) -> None:
    np.save("responses.npy", np.array([[{}, {}]] * 80, dtype=object), allow_pickle=True)
    forge(repository)


def other_dtype(repository: Repository) -> None:
    np.save("responses.npy", np.zeros((80, 2)))
    forge(repository)


def short_file(repository: Repository) -> None:
    np.save("responses.npy", np.zeros((80, 2), np.float32))
    os.truncate("responses.npy", 300)
    forge(repository)


def linked_responses(repository: Repository) -> None:
    Path("responses.npy").symlink_to(repository.folder / "true.npy")
    forge(repository)


def no_network_reason(_: Repository) -> None:
    failure = {"kind": "failure", "number": job_number(), "blame": "model", "reason": "network", "detail": "try again"}
    say(failure)
    time.sleep(60)


def blame_probes(_: Repository) -> None:
    failure = {"kind": "failure", "number": job_number(), "blame": "probes", "reason": "not found", "detail": "gone"}
    say(failure)
    time.sleep(60)


def tell_all_day(_: Repository) -> None:
    while True:
        say({"kind": "telling", "what": "probing", "done": 1, "total": 2})


def honest(repository: Repository) -> None:
    """The forger's tools work: what it says is taken if nothing in it is wrong."""
    forge(repository)


ACTS: dict[str, Callable[[Repository], object]] = {
    name: value for name, value in globals().items() if callable(value) and getattr(value, "__module__", "") == __name__
}
