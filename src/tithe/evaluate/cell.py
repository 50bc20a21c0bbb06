"""Runs one program that nobody vouches for: a script of its own, started by `sandbox.py` in a fresh process.

It imports nothing of tithe. Before the program is read it gives up, for good, whatever the system lets it give up:
memory, time, files (Landlock), the network, other processes (seccomp, a namespace). What it could give up is the first
line that it writes; the last one is the mark, which it reads only after the program's end.

    cell.py RESULT_FD MARK_FD LIMITS      with `solution.py` and `program.py` in the working folder
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import runpy
import sys
from collections.abc import Callable, Iterable
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3, CLONE_THREAD = 435, 0x00010000
LIMIT_CALL = {"x86_64": 302, "aarch64": 261}  # prlimit64: reading is fine, setting is not
# socket, kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, fork, vfork, execve, execveat, ptrace,
# process_vm_readv, process_vm_writev, unshare, setns, mount, umount2, pivot_root, chroot, setrlimit, keyctl, add_key,
# request_key, init_module, finit_module, delete_module, kexec_load, reboot, swapon, swapoff, open_by_handle_at, acct,
# settimeofday, clock_settime, sethostname, setdomainname, shmget, msgget, semget, perf_event_open, bpf, userfaultfd
REFUSED = {
    "x86_64": (
        *(41, 62, 200, 234, 129, 297, 57, 58, 59, 322, 101, 310, 311, 272, 308, 165, 166, 155, 161, 160, 250, 248),
        *(249, 175, 313, 176, 246, 169, 167, 168, 304, 163, 164, 227, 170, 171, 29, 68, 64, 298, 321, 323),
    ),
    "aarch64": (
        *(198, 129, 130, 131, 138, 240, 221, 281, 117, 270, 271, 97, 268, 40, 39, 41, 51, 164, 219, 217),
        *(218, 105, 273, 106, 104, 142, 224, 225, 265, 89, 170, 112, 161, 162, 194, 186, 190, 241, 280, 282),
    ),
}
# pidfd_send_signal, io_uring_setup, open_tree, move_mount, fsopen, fsmount, pidfd_open, pidfd_getfd, mount_setattr
REFUSED_EVERYWHERE = (424, 425, 428, 429, 430, 432, 434, 438, 442)
READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom")
FILE_READ, FILE_RIGHTS = 0b101, 0b111 | 1 << 14 | 1 << 15  # execute and read; what applies to a file at all
DIRECTORY_READ = 0b1101


class Instruction(ctypes.Structure):
    """One of a seccomp filter's."""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(Instruction))]


class Beneath(ctypes.Structure):
    """A Landlock rule: these rights below this folder."""

    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def limit(limits: dict[str, int]) -> None:
    """Memory, processor time, file size, open files, no core dump; a limit that the system lacks is passed over."""
    seconds = limits["cpu_seconds"]
    wanted = {
        "RLIMIT_AS": (limits["memory_bytes"],) * 2,
        "RLIMIT_CPU": (seconds, seconds + 1),
        "RLIMIT_FSIZE": (limits["file_bytes"],) * 2,
        "RLIMIT_NOFILE": (64, 64),
        "RLIMIT_CORE": (0, 0),
    }
    for name, values in wanted.items():
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), values)
            except (ValueError, OSError) as error:  # macOS has limits of memory by name alone
                if name != "RLIMIT_AS":
                    raise RuntimeError(f"{name} cannot be set: {error}") from error


def leave_network(libc: ctypes.CDLL) -> bool:
    """A network of its own, with nothing in it."""
    unshare = getattr(libc, "unshare", None)
    return unshare is not None and (unshare(NEW_NETWORK) == 0 or unshare(NEW_USER | NEW_NETWORK) == 0)


def close_files(libc: ctypes.CDLL) -> bool:
    """Nothing but Python's own files can be read, nothing but the working folder written (Landlock, Linux 5.13)."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    handled = (1 << 13) - 1
    handled |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    rules = libc.syscall(444, ctypes.byref(ctypes.c_uint64(handled)), 8, 0)
    if rules < 0:
        return False
    for path in {*READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix}:
        if os.path.exists(path):  # noqa: PTH110
            allow(libc, rules, path, DIRECTORY_READ if os.path.isdir(path) else FILE_READ)  # noqa: PTH112
    allow(libc, rules, ".", handled)
    return bool(libc.syscall(446, rules, 0) == 0)


def allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    place = os.open(path, getattr(os, "O_PATH", os.O_RDONLY))
    rule = Beneath(rights, place)
    libc.syscall(445, rules, 1, ctypes.byref(rule), 0)
    os.close(place)


def refuse_calls(libc: ctypes.CDLL) -> bool:
    """No sockets, no other processes, no signals, no higher limits (seccomp, on two kinds of processor)."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCH:
        return False
    lines = list(filtered(machine))
    program = Program(len(lines), (Instruction * len(lines))(*lines))
    return bool(libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0) == 0)


def filtered(machine: str) -> Iterable[Instruction]:
    """The filter: load, compare, return, in the kernel's small language."""
    load, equal, at_least, has, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, arch, first, third_low, third_high = 0, 4, 16, 32, 36  # places in what the kernel shows
    no, unknown, yes, kill = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x7FFF0000, 0x80000000
    yield Instruction(load, 0, 0, arch)
    yield Instruction(equal, 1, 0, AUDIT_ARCH[machine])
    yield Instruction(give, 0, 0, kill)
    yield Instruction(load, 0, 0, number)
    yield Instruction(at_least, 0, 1, 0x40000000)  # the calls of x32
    yield Instruction(give, 0, 0, no)
    for call in (*REFUSED[machine], *REFUSED_EVERYWHERE):
        yield Instruction(equal, 0, 1, call)
        yield Instruction(give, 0, 0, no)
    yield Instruction(equal, 0, 1, CLONE3)  # its flags cannot be seen; libc then takes `clone`
    yield Instruction(give, 0, 0, unknown)
    yield Instruction(equal, 0, 4, CLONE[machine])
    yield Instruction(load, 0, 0, first)
    yield Instruction(has, 1, 0, CLONE_THREAD)
    yield Instruction(give, 0, 0, no)
    yield Instruction(give, 0, 0, yes)
    yield Instruction(equal, 0, 5, LIMIT_CALL[machine])
    yield Instruction(load, 0, 0, third_low)
    yield Instruction(equal, 0, 2, 0)
    yield Instruction(load, 0, 0, third_high)
    yield Instruction(equal, 1, 0, 0)
    yield Instruction(give, 0, 0, no)
    yield Instruction(give, 0, 0, yes)


def refuse_in_python(event: str, _: Any) -> None:
    """The same in Python alone, where the system cannot help; code that knows of it can go round it."""
    if event.startswith(("socket.connect", "socket.bind", "socket.__new__", "socket.getaddrinfo", "subprocess.")) or (
        event in ("os.kill", "os.killpg", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system")
    ):
        raise PermissionError(errno.EPERM, f"refused: {event}")


def confine(limits: dict[str, int]) -> dict[str, str]:
    """Give up all that can be given up, and say by what means."""
    libc = ctypes.CDLL(None, use_errno=True)
    limit(limits)
    linux = sys.platform == "linux"
    alone = linux and leave_network(libc)
    private = linux and libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    closed = private and close_files(libc)
    if not (private and platform.machine() in AUDIT_ARCH):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    refused = private and refuse_calls(libc)
    if not refused:
        sys.addaudithook(refuse_in_python)
    network = [name for name, there in (("namespace", alone), ("seccomp", refused)) if there]
    return {
        "network": " and ".join(network) or "audit hook",
        "processes": "seccomp" if refused else "rlimit and audit hook",
        "files": "landlock" if closed else "none",
    }


def tell(place: int, what: dict[str, Any]) -> None:
    os.write(place, json.dumps(what).encode() + b"\n")


def main() -> None:
    result, mark, limits = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    leave: Callable[[int], Any] = os._exit
    tell(result, {"confined": confine(limits)})
    sys.argv = ["program.py"]
    try:
        with open("solution.py", encoding="utf-8") as file:  # noqa: PTH123
            compile(file.read(), "solution.py", "exec")  # Python by itself: what follows it cannot be swallowed
        runpy.run_path("program.py", run_name="program")
    except BaseException as error:  # whatever it is, `SystemExit` too, the program did not get to its end
        text = f"{type(error).__name__}: {error}"[:200]
        tell(result, {"failed": text})
        leave(1)
    tell(result, {"mark": os.read(mark, 64).decode()})
    leave(0)


if __name__ == "__main__":
    main()
