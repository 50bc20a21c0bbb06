"""Start untrusted programs in a sandbox: bubblewrap on Linux, a container elsewhere.

Both start a command that sees Python's own files and one small folder, but no network, no other process and none of the
user's files. There is no weaker mode: if neither works, nothing is run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tithe.errors import TitheError

NOBODY = 65534  # the kernel's id of the user `nobody`
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # the whole environment of a program
SYSTEM = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/lib", "/lib32", "/lib64", "/nix/store")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
OF_PYTHON = ("bin", "lib", "lib64", "pyvenv.cfg")
IMAGE = "tithe-sandbox"
PROXIES = tuple(name for one in ("http", "https", "ftp", "no") for name in (f"{one}_proxy", f"{one}_PROXY".upper()))
PATIENCE = 60.0  # seconds that a sandbox may take to start
PYTHON_FLAGS = ("-I", "-B", "-X", "utf8")

# What namespaces and resource limits leave open: starting processes (limits hold for each one separately), memory that
# belongs to no process, the session's keys, sockets to a hypervisor, the kernel's log, and new kernel interfaces.
REFUSED = (
    *("fork", "vfork", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open"),
    *("pidfd_send_signal", "ptrace", "process_vm_readv", "process_vm_writev", "setpriority", "ioprio_set"),
    *("sched_setscheduler", "sched_setparam", "sched_setattr", "sched_setaffinity"),
    *("shmget", "msgget", "semget", "mq_open", "memfd_create", "socket", "keyctl", "add_key", "request_key"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "mknod", "mknodat", "open_by_handle_at"),
    *("io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "syslog", "acct", "quotactl"),
    *("adjtimex", "clock_adjtime", "clock_settime", "settimeofday", "reboot", "swapon", "swapoff"),
)
CLONE_THREAD = 0x00010000
ALLOW, ERRNO, MASKED_EQUAL = 0x7FFF0000, 0x00050000, 7  # of seccomp.h


class SandboxError(TitheError):
    """No sandbox works here, or one could not be started."""


class SeccompArgument(ctypes.Structure):
    """`scmp_arg_cmp` of libseccomp: which argument of a call, the comparison, and its operands."""

    _fields_ = [("argument", ctypes.c_uint), ("how", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@cache
def call_filter() -> bytes:
    """Compile `REFUSED` into a seccomp filter, as BPF.

    Raises:
        SandboxError: libseccomp is missing or too old.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise SandboxError("libseccomp is not installed") from error
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    try:
        for name in REFUSED:
            refuse(library, context, name, errno.EPERM)
        refuse(
            library, context, "clone3", errno.ENOSYS
        )  # a filter cannot see its flags; libc then falls back to `clone`
        # `clone` may start threads, but not processes.
        flags = 1 if platform.machine() == "s390x" else 0
        refuse(library, context, "clone", errno.EPERM, SeccompArgument(flags, MASKED_EQUAL, CLONE_THREAD, 0))
        place = os.memfd_create("filter")
        with os.fdopen(place, "rb") as file:
            check(library.seccomp_export_bpf(context, place), "export")
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)


def refuse(library: Any, context: ctypes.c_void_p, name: str, number: int, *when: SeccompArgument) -> None:
    """Add the rule that a system call fails with this error number, if its arguments fit."""
    call = library.seccomp_syscall_resolve_name(name.encode())
    if call == -1:
        raise SandboxError(f"libseccomp does not know the system call `{name}`: 2.5 or later is needed")
    compared = (SeccompArgument * len(when))(*when)
    check(library.seccomp_rule_add_array(context, ctypes.c_uint32(ERRNO | number), call, len(when), compared), name)


def check(code: int, what: str) -> None:
    if code < 0:
        raise SandboxError(f"libseccomp cannot make the filter: {what}: {os.strerror(-code)}")


@dataclass
class Started:
    """A process that was started in a sandbox.

    Args:
        process: the process, or the container's client.
        end: kills it and everything it started.
    """

    process: subprocess.Popen[bytes]
    end: Callable[[], None]


@dataclass(frozen=True)
class Bubblewrap:
    """Run commands in bubblewrap, which needs no daemon and leaves nothing behind.

    If tithe runs as root, an outer bubblewrap first shows the process the few files that it may read and makes it
    `nobody`, outside the namespace too; the inner one then starts as for an ordinary user.

    Args:
        bwrap: path of the program.
    """

    bwrap: str

    @property
    def means(self) -> dict[str, str]:
        """Return what confines a program: network, processes and files, each with its mechanism."""
        return dict.fromkeys(("network", "processes", "files"), f"{version_of(self.bwrap)} and seccomp")

    def start(self, command: Sequence[str], folder_bytes: int, seconds: float, stderr: int) -> Started:
        """Start Python with these arguments, with pipes for stdin and stdout."""
        reads, writes = os.pipe()
        try:
            os.write(writes, call_filter())
            os.close(writes)
            line = [*self.inner(folder_bytes, reads), "--", sys.executable, *command]
            process = popen([*self.outer(), *line] if os.geteuid() == 0 else line, stderr, reads)
        finally:
            os.close(reads)
        return Started(process, process.kill)  # everything in its namespaces dies with it

    def inner(self, folder_bytes: int, filter_at: int) -> list[str]:
        """Return the command line of the sandbox; `filter_at` is the descriptor of the seccomp filter."""
        ours = [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
        devices = [part for name in DEVICES for part in ("--dev-bind", name, name)]
        return [
            *(self.bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
            *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
            *("--die-with-parent", "--new-session", "--clearenv", *ours),
            *(*bind_options(readable_paths()), *devices),  # no /proc: root could change kernel settings there
            *("--size", str(folder_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),
            *("--seccomp", str(filter_at)),
        ]

    def outer(self) -> list[str]:
        """Return the command line that turns root into `nobody`, to stand before that of the sandbox."""
        setpriv = shutil.which("setpriv") or "setpriv"
        paths = [*readable_paths(), *(Path(one) for one in ("/usr/bin", "/bin", self.bwrap, setpriv))]
        below = [*paths, *map(Path, DEVICES)]
        parents = sorted({str(parent) for path in below for parent in path.parents if str(parent) != "/"})
        open_to_all = [part for name in parents if not Path(name).is_symlink() for part in ("--dir", name)]
        return [
            *(self.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--die-with-parent", "--clearenv"),
            *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
            *(*open_to_all, *bind_options(paths), *(part for name in DEVICES for part in ("--dev-bind", name, name))),
            *("--proc", "/proc", "--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"),
            *("--", setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--"),
        ]


@cache
def version_of(bwrap: str) -> str:
    """Return bubblewrap's name and version, such as `bubblewrap 0.8.0`."""
    said = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return said.stdout.strip() or "bubblewrap"


@dataclass(frozen=True)
class Container:
    """Run commands in a container whose image has Python, on systems without bubblewrap.

    Args:
        engine: path of `podman` or `docker`.
    """

    engine: str

    @property
    def means(self) -> dict[str, str]:
        return dict.fromkeys(("network", "processes", "files"), f"a container of {Path(self.engine).name}")

    def start(self, command: Sequence[str], folder_bytes: int, seconds: float, stderr: int) -> Started:
        name = f"{IMAGE}-{secrets.token_hex(8)}"
        line = [self.engine, "run", *self.options(name, folder_bytes), IMAGE]
        # `timeout` is the container's first process: nothing inside can kill it, and it ends even if tithe is gone.
        last = ["timeout", "-s", "KILL", f"{seconds:g}", "python3", *command]
        process = popen([*line, *last], stderr, home=True)

        def end() -> None:
            process.kill()
            gone = [self.engine, "rm", "--force", name]
            subprocess.run(gone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False)

        return Started(process, end)

    def options(self, name: str, folder_bytes: int) -> list[str]:
        known = {
            **ENVIRONMENT,
            **dict.fromkeys(PROXIES, ""),
        }  # the client would pass its own proxies in, with passwords
        environment = [part for key, value in known.items() for part in ("--env", f"{key}={value}")]
        podmans = ["--read-only-tmpfs=false"] if Path(self.engine).name == "podman" else []
        return [
            *("--rm", "--interactive", "--name", name, "--pull", "never", "--log-driver", "none", *environment),
            *("--network", "none", "--ipc", "none", "--read-only", "--cap-drop", "ALL", "--user", f"{NOBODY}:{NOBODY}"),
            *("--security-opt", "no-new-privileges", "--pids-limit", "80", "--memory", "2g", "--memory-swap", "2g"),
            *("--ulimit", "nofile=256:256", "--ulimit", "nproc=256:256", *podmans),
            *("--tmpfs", f"/tmp:rw,nosuid,nodev,size={folder_bytes}", "--workdir", "/tmp"),
        ]


Confinement = Bubblewrap | Container


def popen(line: Sequence[str], stderr: int, *kept: int, home: bool = False) -> subprocess.Popen[bytes]:
    """Start a process that inherits nothing but pipes.

    Args:
        line: the command line.
        stderr: where its stderr goes, as for `subprocess`.
        kept: descriptors that it inherits as well.
        home: keep our environment, by which a container's client finds its settings.
    """
    try:
        return subprocess.Popen(
            line,
            cwd="/",
            env=None if home else {},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=kept,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the process for generated code cannot be started: {error.strerror or error}") from error


def readable_paths() -> list[Path]:
    """List what a program can read: the system's libraries and Python's own files, nothing beside them."""
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    own = [Path(prefix) / part for prefix in prefixes for part in OF_PYTHON]
    wanted = [Path(one) for one in (*SYSTEM, *SYSTEM_FILES)] + own + [Path(sys.executable)]
    return [path for path in dict.fromkeys(wanted) if path.exists()]


def bind_options(paths: Iterable[Path]) -> list[str]:
    """Return the options of bubblewrap that show paths read-only; links in the root folder stay links."""
    options: list[str] = []
    done: list[Path] = []
    for path in sorted(set(paths)):
        if any(path.is_relative_to(one) for one in done):
            continue
        if path.is_symlink() and path.parent == Path("/"):
            options += ["--symlink", str(path.readlink()), str(path)]
        else:
            options += ["--ro-bind", str(path), str(path)]
        done.append(path)
    return options


def find_confinements() -> tuple[list[Confinement], list[str]]:
    """Look for bubblewrap and a container image.

    Returns:
        What was found, the better one first, which may still not work; and what is missing of the others.
    """
    found: list[Confinement] = []
    missing: list[str] = []
    if sys.platform == "linux":
        bwrap = shutil.which("bwrap")
        found += [Bubblewrap(bwrap)] if bwrap else []
        missing += [] if bwrap else ["bubblewrap (`bwrap`) is not installed"]
    engines = [path for name in ("podman", "docker") if (path := shutil.which(name))]
    with_image = [path for path in engines if has_image(path)]
    found += [Container(path) for path in with_image]
    if not with_image:
        missing.append(f"no container image `{IMAGE}` is there" if engines else "neither podman nor docker is there")
    return found, missing


def has_image(engine: str) -> bool:
    """Return whether podman or docker has our image."""
    call = [engine, "image", "inspect", IMAGE]
    try:
        asked = subprocess.run(call, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def how_to_get() -> str:
    """Say how to install what is missing on this system."""
    container = f"a container image `{IMAGE}`, as docs/evaluating.md shows"
    installers = {
        "apt-get": "apt install bubblewrap",
        "dnf": "dnf install bubblewrap",
        "pacman": "pacman -S bubblewrap",
    }
    named = next((how for program, how in installers.items() if shutil.which(program)), None)
    if sys.platform != "linux":
        return f"build {container}"
    return f"`{named or 'install bubblewrap 0.8 or later'}`, or build {container}"
