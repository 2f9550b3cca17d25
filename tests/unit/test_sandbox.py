"""Every layer alone, in its own process: what it forbids is done without it, what a model needs is done with it."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from indexers.crawl import landlock, sandbox, seccomp

ROOT = Path(__file__).parents[2]
HEADERS = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers but the last are Linux's own")
has_landlock = pytest.mark.skipif(landlock.version() < 6, reason="this kernel has no Landlock, or an older one")
on_known_machine = pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="the filter is written for x86_64 and aarch64"
)

BEGIN = """
import ctypes, errno, mmap, os, pathlib, resource, shutil, signal, socket, subprocess, sys, tempfile, threading
from indexers.crawl import audit, landlock, sandbox, seccomp
libc = ctypes.CDLL(None, use_errno=True)
scratch, outside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
def c(name, *arguments):
    done = getattr(libc, name)(*arguments)
    return errno.errorcode[ctypes.get_errno()] if done == -1 else "done"
def b(path):
    return os.fsencode(path)
def py(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__ if error.errno is None else errno.errorcode[error.errno]
    except MemoryError:
        return "MemoryError"
    return "done"
"""


def run(tmp_path: Path, *lines: str, stdin: int | None = None) -> str:
    """What a process prints that runs these lines; or the signal that ended it."""
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    for folder in (scratch, outside):
        folder.mkdir(exist_ok=True)
        (folder / "old").write_text("old")
    script = BEGIN + "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(scratch), str(outside)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert not done.stderr.strip(), done.stderr
    return done.stdout.strip() if done.returncode == 0 else signal.Signals(-done.returncode).name


def compare(tmp_path: Path, layer: str, act: str, refusal: str) -> None:
    """An act that is done without the layer and refused with it."""
    assert run(tmp_path, f"print({act})") == "done"
    assert run(tmp_path, f"assert {layer}", f"print({act})") == refusal


def outcomes(tmp_path: Path, layer: str, acts: list[str], stdin: int | None = None) -> list[str]:
    """What becomes of each act under a layer; without one the files are made anew before each."""
    fresh = (
        "def fresh():",
        "    for folder in (scratch, outside):",
        "        shutil.rmtree(folder, ignore_errors=True); folder.mkdir(); (folder / 'old').write_text('old')",
    )
    steps = [step for act in acts for step in ("" if layer else "fresh()", f"print({act})")]
    said = run(tmp_path, *fresh, "fresh()", f"assert {layer or True}", *steps, stdin=stdin)
    return said.split("\n")


LANDLOCK = "landlock.restrict(scratch, [pathlib.Path(os.devnull)])"


CHANGES = [
    "c('open', b(outside / 'new'), os.O_WRONLY | os.O_CREAT, 0o600)",
    "c('open', b(outside / 'old'), os.O_WRONLY)",
    "c('truncate', b(outside / 'old'), ctypes.c_long(0))",
    "c('unlink', b(outside / 'old'))",
    "c('mkdir', b(outside / 'new'), 0o700)",
    "c('symlink', b'x', b(outside / 'new'))",
    "c('mkfifo', b(outside / 'new'), 0o600)",
    "c('rename', b(scratch / 'old'), b(outside / 'new'))",
    "c('rename', b(outside / 'old'), b(scratch / 'new'))",
    "c('link', b(outside / 'old'), b(scratch / 'new'))",
    "c('mkfifo', b(scratch / 'new'), 0o600)",
]


@has_landlock
def test_landlock_forbids_to_change_files_elsewhere(tmp_path: Path) -> None:
    assert outcomes(tmp_path, "", CHANGES) == ["done"] * len(CHANGES)
    assert set(outcomes(tmp_path, LANDLOCK, CHANGES)) <= {"EACCES", "EXDEV"}


@has_landlock
def test_landlock_leaves_scratch_and_reading_alone(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        f"print({LANDLOCK} == (landlock.FILES, landlock.NETWORK, landlock.SIGNALS))",
        "with tempfile.TemporaryDirectory(dir=scratch) as folder:",
        "    (pathlib.Path(folder) / 'link').symlink_to(outside / 'old')",
        "    print((pathlib.Path(folder) / 'link').read_text())",
        "(scratch / 'a').write_text('1'); (scratch / 'sub').mkdir(); (scratch / 'a').rename(scratch / 'sub' / 'b')",
        "open(os.devnull, 'w').write('x')",
        "print(sorted(p.name for p in scratch.iterdir()), os.kill(os.getpid(), 0))",
    )
    assert said.split("\n") == ["True", "old", "['old', 'sub'] None"]


@has_landlock
@pytest.mark.parametrize(
    ("act", "refusal"),
    [("py(lambda: socket.create_server(('127.0.0.1', 0)))", "EACCES"), ("c('kill', os.getppid(), 0)", "EPERM")],
)
def test_landlock_forbids_servers_and_signals(tmp_path: Path, act: str, refusal: str) -> None:
    compare(tmp_path, LANDLOCK, act, refusal)


CALLS = [
    "c('socket', 2, 1, 0)",
    "c('socket', 1, 1, 0)",
    "c('socketpair', 1, 1, 0, (ctypes.c_int * 2)())",
    "c('kill', os.getppid(), 0)",
    "c('chmod', b(outside / 'old'), 0o777)",
    "c('utimes', b(outside / 'old'), None)",
    "c('memfd_create', b'x', 0)",
    "c('shmget', 0, 4096, 0o600)",
    "c('setrlimit', 4, (ctypes.c_ulong * 2)(0, 0))",
    "c('prlimit', 0, 4, (ctypes.c_ulong * 2)(0, 0), None)",
    "c('prctl', 1, 0, 0, 0, 0)",
    "c('unshare', 0x200)",
    "c('setpriority', 0, 0, 1)",
]


@on_known_machine
def test_seccomp_forbids_calls(tmp_path: Path) -> None:
    assert outcomes(tmp_path, "", CALLS) == ["done"] * len(CALLS)
    assert outcomes(tmp_path, "seccomp.restrict()", CALLS) == ["EPERM"] * len(CALLS)


@on_known_machine
def test_seccomp_forbids_to_send_to_an_address(tmp_path: Path) -> None:
    act = "c('sendto', 0, b'x', 1, 0, (ctypes.c_char * 16)(127), 16)"
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        assert outcomes(tmp_path, "", [act], sender.fileno()) == ["EINVAL"]  # no address, but it was looked at
        assert outcomes(tmp_path, "seccomp.restrict()", [act], sender.fileno()) == ["EPERM"]


@on_known_machine
def test_seccomp_forbids_processes_and_programs(tmp_path: Path) -> None:
    ways = ["py(lambda: os.fork() or os._exit(0))", "py(lambda: subprocess.run(['/bin/true']))"]
    assert outcomes(tmp_path, "", ways) == ["done", "done"]
    assert outcomes(tmp_path, "seccomp.restrict()", ways) == ["EPERM", "EPERM"]
    program = "(libc.execv(b'/bin/echo', (ctypes.c_char_p * 3)(b'echo', b'done', None)), 'refused')[1]"
    compare(tmp_path, "seccomp.restrict()", program, "refused")


@on_known_machine
def test_seccomp_leaves_threads_files_and_an_open_connection_alone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said = run(
            tmp_path,
            "assert seccomp.restrict() == ('seccomp',)",
            "t = threading.Thread(target=lambda: print('thread')); t.start(); t.join()",
            "(scratch / 'new').write_text('x')",
            "end = socket.socket(fileno=0); end.sendall(b'heard')",
            "print(c('kill', os.getpid(), 0), resource.getrlimit(resource.RLIMIT_CORE)[0] >= -1)",
            stdin=theirs.fileno(),
        )
        assert said.split("\n") == ["thread", "done True"]
        assert ours.recv(10) == b"heard"
    assert run(tmp_path, "assert seccomp.restrict()", "os.abort()") == "SIGABRT"


def interpret(code: list[seccomp.Instruction], words: dict[int, int]) -> int:
    """The kernel's machine, as far as the filter uses it (linux/bpf_common.h)."""
    accumulator, at = 0, 0
    while True:
        kind, yes, no, constant = code[at]
        at += 1
        if kind == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            accumulator = words.get(constant, 0)
        elif kind == 0x06:  # BPF_RET
            return constant
        else:
            true = {
                0x15: accumulator == constant,  # BPF_JMP | BPF_JEQ
                0x35: accumulator >= constant,  # BPF_JGE
                0x45: bool(accumulator & constant),  # BPF_JSET
            }[kind]
            at += yes if true else no


@pytest.mark.parametrize(("column", "machine"), [(0, 0xC000003E), (1, 0xC00000B7)])
def test_filter_of_both_architectures(column: int, machine: int) -> None:
    code = seccomp.program(column, machine, pid=77)
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM

    def answer(number: int | None, *arguments: int) -> int:
        assert number is not None
        words = {0: number, 4: machine}
        for place, value in enumerate(arguments):
            words |= {16 + 8 * place: value & 0xFFFFFFFF, 20 + 8 * place: value >> 32}
        return interpret(code, words)

    for numbers in seccomp.FORBIDDEN.values():
        if numbers[column] is not None:
            assert answer(numbers[column]) == refuse
    for numbers in seccomp.TO_ITSELF.values():
        assert (answer(numbers[column], 77), answer(numbers[column], 78)) == (allow, refuse)
    assert answer(seccomp.CLONE3[column]) == 0x00050000 | errno.ENOSYS
    assert (answer(seccomp.CLONE[column], 0x3D0F00), answer(seccomp.CLONE[column], 17)) == (allow, refuse)
    assert (answer(seccomp.PRCTL[column], 1), answer(seccomp.PRCTL[column], 15)) == (refuse, allow)
    assert (answer(seccomp.SENDTO[column], 3, 0, 0, 0, 0), answer(seccomp.SENDTO[column], 3, 0, 0, 0, 1 << 40)) == (
        allow,
        refuse,
    )
    assert (answer(seccomp.PRLIMIT[column], 0, 4, 0), answer(seccomp.PRLIMIT[column], 0, 4, 9)) == (allow, refuse)
    assert answer((0, 63)[column]) == allow  # read
    assert interpret(code, {0: 0, 4: 0x40000003}) == 0x80000000  # the numbers of another architecture
    if column == 0:
        assert answer(0x40000000 + 41) == refuse  # x32's socket


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[column].read_text()
    stated = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    ours = {
        **seccomp.FORBIDDEN,
        **seccomp.TO_ITSELF,
        "clone": seccomp.CLONE,
        "clone3": seccomp.CLONE3,
        "prctl": seccomp.PRCTL,
        "prlimit64": seccomp.PRLIMIT,
        "sendto": seccomp.SENDTO,
        "seccomp": seccomp.SECCOMP,
    }
    newer = 449  # calls that headers of this age need not know
    assert {name: numbers[column] for name, numbers in ours.items() if (numbers[column] or 0) < newer} == {
        name: stated.get(name) for name, numbers in ours.items() if (numbers[column] or 0) < newer
    }
    assert len(ours) > 80


AUDIT = "audit.restrict(scratch)"


DEEDS = [
    "socket.socket()",
    "socket.getaddrinfo('localhost', 80)",
    "open(outside / 'new', 'w')",
    "open(outside / 'old', 'a')",
    "os.open(outside / 'old', os.O_RDWR)",
    "os.remove(outside / 'old')",
    "os.remove('old', dir_fd=os.open(outside, os.O_RDONLY))",
    "os.rename(outside / 'old', outside / 'new')",
    "os.rename(scratch / 'old', outside / 'new')",
    "os.mkdir(outside / 'new')",
    "os.symlink('x', outside / 'new')",
    "os.link(outside / 'old', scratch / 'new')",
    "os.truncate(outside / 'old', 0)",
    "os.chmod(outside / 'old', 0o777)",
    "os.utime(outside / 'old')",
    "(os.symlink(outside / 'old', scratch / 'link'), open(scratch / 'link', 'w'))",
    "open(scratch / '..' / 'outside' / 'new', 'w')",
    "subprocess.run(['/bin/true'])",
    "os.system('true')",
    "os.fork() or os._exit(0)",
    "os.kill(os.getppid(), 0)",
    "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
]


def test_audit_hook_refuses(tmp_path: Path) -> None:
    acts = [f"py(lambda: {deed})" for deed in DEEDS]
    assert outcomes(tmp_path, "", acts) == ["done"] * len(DEEDS)
    said = dict(zip(DEEDS, outcomes(tmp_path, AUDIT, acts), strict=True))
    assert said == dict.fromkeys(DEEDS, "PermissionError")


def test_audit_hook_leaves_scratch_and_reading_alone(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        f"assert {AUDIT} == ('audit hook',)",
        "folder = pathlib.Path(tempfile.mkdtemp(dir=scratch)); (folder / 'sub').mkdir()",
        "(folder / 'sub' / 'link').symlink_to(outside / 'old'); print((folder / 'sub' / 'link').read_text())",
        "shutil.rmtree(folder); open(os.devnull, 'w').write('x'); os.chdir(scratch); open('here', 'w').close()",
        "print(sorted(p.name for p in scratch.iterdir()))",
    )
    assert said.split("\n") == ["old", "['here', 'old']"]


def test_memory_limit(tmp_path: Path) -> None:
    private = "mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS"
    compare(tmp_path, "sandbox.limit_memory(10**9)", f"py(lambda: mmap.mmap(-1, 3 * 10**9, {private}))", "ENOMEM")
    assert run(tmp_path, "sandbox.limit_memory(10**9)", "print(py(lambda: bytearray(50 * 10**9)))") == "MemoryError"
    assert run(tmp_path, "sandbox.limit_memory(10**9)", "print(len(bytearray(9 * 10**8)))") == "900000000"


def test_file_limits(tmp_path: Path) -> None:
    layer = "sandbox.limit_files(10**6)"
    compare(tmp_path, layer, "py(lambda: (scratch / 'a').write_bytes(bytes(2 * 10**6)))", "EFBIG")
    compare(tmp_path, layer, "py(lambda: [os.dup(0) for _ in range(600)])", "EMFILE")
    assert run(tmp_path, layer, "print(resource.getrlimit(resource.RLIMIT_CORE))") == "(0, 0)"


def status(name: str) -> str:
    return f"[l.split()[1] for l in open('/proc/self/status') if l.startswith('{name}:')][0]"


def test_privileges_are_dropped(tmp_path: Path) -> None:
    assert run(tmp_path, "assert sandbox.no_new_privileges()", f"print({status('NoNewPrivs')})") == "1"
    held = run(tmp_path, "assert sandbox.drop_capabilities()", f"print({status('CapEff')}, {status('CapPrm')})")
    assert {int(part, 16) & ~4 for part in held.split()} == {0}
    if os.geteuid() == 0:
        compare(tmp_path, "sandbox.drop_capabilities()", "py(lambda: os.chown(scratch / 'old', 12345, 1))", "EPERM")


def test_first_to_go_and_own_group(tmp_path: Path) -> None:
    score = "print(open('/proc/self/oom_score_adj').read())"
    assert run(tmp_path, "assert sandbox.go_first()", score) == "1000" != run(tmp_path, score)
    assert run(tmp_path, "assert sandbox.own_group()", "print(os.getpgrp() == os.getpid())") == "True"


@pytest.mark.parametrize("layer", ["", "sandbox.die_with(parent)"])
def test_dies_with_its_parent(tmp_path: Path, layer: str) -> None:
    pid = int(
        run(
            tmp_path,
            "parent = os.getpid(); r, w = os.pipe()",
            "if not os.fork():",
            f"    {layer or 'pass'}; os.close(1); os.close(2); os.write(w, b'x'); import time; time.sleep(30)",
            "os.read(r, 1); print([p for p in os.listdir('/proc') if p.isdecimal() and "
            "f' {parent} ' in open(f'/proc/{p}/stat').read().rpartition(')')[2][:20]][0])",
        )
    )
    ends = time.monotonic() + (5 if layer else 0.5)
    while alive(pid) and time.monotonic() < ends:
        time.sleep(0.01)
    assert alive(pid) is not bool(layer)
    if not layer:
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_orphan_ends_at_once(tmp_path: Path) -> None:
    assert run(tmp_path, "if not os.fork(): sandbox.die_with(1 + os.getppid()); print('lives on')", "os.wait()") == ""


ALL = "sandbox.apply(scratch, sandbox.Limits(memory_bytes=10**9, scratch_bytes=10**6), parent=os.getppid())"


@has_landlock
@on_known_machine
def test_all_layers_together(tmp_path: Path) -> None:
    assert run(tmp_path, f"print({ALL} == sandbox.LAYERS)") == "True"
    assert len(sandbox.LAYERS) == 12


def test_layers_that_are_missing_are_left_out(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        "landlock.version = lambda: 0",
        "seccomp.platform.machine = lambda: 'riscv64'",
        f"layers = {ALL}",
        "print(sorted(set(sandbox.LAYERS) - set(layers)))",
        "print(py(lambda: open(outside / 'old', 'w')))",
    )
    assert said.split("\n") == [
        "['landlock: TCP', 'landlock: files', 'landlock: signals', 'seccomp']",
        "PermissionError",
    ]
