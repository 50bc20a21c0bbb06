"""What a program may try from inside the sandbox, run by one user: `python breaches.py` prints how each attempt ended.

It needs nothing but Python and tithe's package, so that it can also be run as a user who sees neither this folder nor
pytest. Each entry is the body of `breach()`: it counts as held where it raises, or returns False; outside, victims are
looked at afterwards.
"""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from tithe.lab.evaluate.sandbox import Limits, run_program

LIMITS = Limits(cpu_seconds=5, wall_seconds=20, memory_bytes=1 << 28, file_bytes=1 << 20, folder_bytes=1 << 23)
CALLS = """
def called(name, *args):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)
    return True
"""
# `{victim}` is a file of the user's, `{host}` the number of the process that began all this.
# Names in a folder of homes, without those that Python and its environment lie in; fails if there are no others.
LISTED = "[n for n in os.listdir('{0}') if not any(p.startswith('{0}/' + n) for p in (sys.prefix, sys.base_prefix))][0]"
ATTEMPTS = {
    "make a block device": "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(7, 0))",
    "make a character device": "os.mknod('mem', stat.S_IFCHR | 0o600, os.makedev(1, 1))",
    "open a disk": "[os.open(p, 0) for p in glob.glob('/dev/*') if p[5:7] in ('vd', 'sd', 'lo')][0]",
    "read a file of the user": "open({victim!r}).read()",
    "write a file of the user": "open({victim!r}, 'a').write('x')",
    "make a file beside it": "open({victim!r} + '.new', 'w')",
    "delete a file of the user": "os.unlink({victim!r})",
    "change a file's mode": "os.chmod({victim!r}, 0o4777)",
    "change a file's time": "os.utime({victim!r}, (0, 0))",
    "change a file's owner": "os.chown({victim!r}, 12345, 12345)",
    "change a file's attributes": "os.setxattr({victim!r}, 'user.x', b'1')",
    "change the mode of a device": "os.chmod('/dev/null', 0o666)",
    "change the mode of what is open": "[os.fchmod(n, 0o600) for n in (0, 1, 2)]",
    "change the mode of Python": "os.chmod(sys.executable, 0o4777)",
    "write beside Python": "open(os.path.join(os.path.dirname(os.__file__), 'x.py'), 'w')",
    "write in the root folder": "open('/x', 'w')",
    "write among the devices": "open('/dev/x', 'w')",
    "read the system's users": "open('/etc/passwd').read()",
    "list the homes": LISTED.format("/home"),
    "list root's home": LISTED.format("/root"),
    "see processes": "os.listdir('/proc')",
    "see devices": "os.listdir('/sys')",
    "set the kernel's handler of cores": "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/x')",
    "read the parent's environment": "open('/proc/{host}/environ').read()",
    "read an environment": "return 'hunter2' in repr(dict(os.environ))",
    "signal the host's process": "os.kill({host}, 9)",
    "signal the parent": "os.kill(os.getppid(), 9)",
    "signal all processes": "os.kill(-1, 9)",
    "signal by a pipe's owner": (
        "r, w = os.pipe()\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, fcntl.F_SETOWN, {host})\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
    ),
    "slow the host's process down": "os.setpriority(os.PRIO_PROCESS, {host}, 19)",
    "slow the parent down": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "schedule the host's process": "os.sched_setscheduler({host}, os.SCHED_IDLE, os.sched_param(0))",
    "trace the host's process": "called('ptrace', 16, {host}, 0, 0)",
    "read the host's memory": "called('process_vm_readv', {host}, 0, 0, 0, 0, 0)",
    "connect by TCP": "socket.create_connection(('127.0.0.1', {port}), timeout=2)",
    "send by UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "send a datagram to a path": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {path!r})",
    "send a datagram to a name": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {name!r})",
    "talk to the virtual machine": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "open a raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "fork": "os.fork()",
    "start a process": "subprocess.run([sys.executable, '-c', 'pass'])",
    "spawn a process": "os.posix_spawn(sys.executable, ['python'], dict())",
    "run a shell": "os.execv('/bin/sh', ['sh'])",
    "a namespace of one's own": "called('unshare', 0x10000000)",
    "mount": "called('mount', b'x', b'/tmp', b'tmpfs', 0, 0)",
    "memory beyond the limit": "[bytearray(1 << 24) for _ in range(64)]",
    "mapped memory beyond the limit": "m = mmap.mmap(-1, 1 << 29)",
    "memory that is no file": "os.memfd_create('x')",
    "System V memory": "called('shmget', 0, 1 << 20, 0o1600)",
    "System V messages": "called('msgget', 0, 0o1600)",
    "message queues": "called('mq_open', b'/x', 66, 0o600, None)",
    "shared memory by name": "open('/dev/shm/x', 'w')",
    "a file beyond the limit": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('big', 'wb').write(bytes(1 << 21))",
    "many files beyond the limit": (
        "for i in range(64):\n    fd = os.open(str(i), os.O_CREAT | os.O_RDWR)\n"
        "    os.posix_fallocate(fd, 0, 1 << 20)\n    os.close(fd)"
    ),
    "many open files": "[os.dup(0) for _ in range(100)]",
    "many threads": (
        "threading.stack_size(1 << 15)\n[threading.Thread(target=time.sleep, args=(3,), daemon=True).start() "
        "for _ in range(200)]"
    ),
    "raise the limit of memory": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise the limit of files": "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
    "raise the limit of time": "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "be root": "os.setuid(0)\nreturn os.getuid() == 0",
    "have other groups": "return bool({{*os.getgroups()}} - {{65534}})",
    "type into the terminal": "fcntl.ioctl(2, 0x5412, b'x')",
    "open the terminal": "open('/dev/tty', 'w')",
    "set the clock's pace": "called('adjtimex', bytes(512))",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "read the kernel's log": "called('klogctl', 10, 0, 0)",
    "watch all files": "called('fanotify_init', 0, 0)",
    "read the keys of the session": "called('syscall', {keyctl}, 0, -3, 0)",
    "add a key": "called('syscall', {add_key}, b'user', b'x', b'y', 1, -3)",
    "watch the machine's performance": "called('syscall', {perf}, bytes(128), 0, -1, -1, 0)",
    "load a program into the kernel": "called('syscall', {bpf}, 0, bytes(64), 64)",
    "pipes that are left open": (
        "open_ones = []\nfor n in range(3, 64):\n    try:\n        os.fstat(n)\n        open_ones.append(n)\n"
        "    except OSError:\n        pass\nreturn len(open_ones) > 2"  # its own two: questions and answers
    ),
    "know the machine's name": "return socket.gethostname() == {machine!r}",
}
NUMBERS = {"x86_64": (250, 248, 298, 321), "aarch64": (219, 217, 241, 280)}  # keyctl, add_key, perf_event_open, bpf


def program(body):
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    imports = "import fcntl, glob, mmap, os, resource, signal, socket, stat, subprocess, sys, threading, time"
    return (
        f"{imports}\n{CALLS}\ndef breach():\n    try:\n{lines}\n"
        "    except (OSError, MemoryError, ValueError, RuntimeError, IndexError) as error:\n        return False\n"
        "    return True\n"
    )


def state(path):
    found = path.stat()
    return path.read_text(), found.st_mode, found.st_mtime_ns, found.st_uid, os.listxattr(path)


def main():
    """Try everything; print a reason for each attempt that was not held, and nothing for the others."""
    os.environ["SECRET"] = "hunter2"
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    folder = Path(tempfile.mkdtemp(prefix="breaches-"))
    try:
        print(json.dumps(found_in(folder)))
    finally:
        shutil.rmtree(folder)


def found_in(folder):
    victim = folder / "victim"
    victim.write_text("mine")
    by_path, by_name = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    by_path.bind(str(folder / "socket"))
    by_name.bind(f"\0breaches-{os.getpid()}")
    tcp = socket.create_server(("127.0.0.1", 0))
    heard = []
    threading.Thread(target=lambda: heard.append(tcp.accept()), daemon=True).start()
    keyctl, add_key, perf, bpf = NUMBERS[os.uname().machine]
    known = {
        "victim": str(victim),
        "host": os.getpid(),
        "port": tcp.getsockname()[1],
        "path": str(folder / "socket"),
        "name": by_name.getsockname(),
        "machine": socket.gethostname(),
        **{"keyctl": keyctl, "add_key": add_key, "perf": perf, "bpf": bpf},
    }
    before = (
        state(victim),
        os.getpriority(os.PRIO_PROCESS, 0),
        Path("/dev/null").stat().st_mode,
        sorted(folder.iterdir()),
    )
    found = {}
    for name, body in ATTEMPTS.items():
        outcome = run_program(program(body.format(**known)), "assert breach() is False", LIMITS)
        found[name] = "" if outcome.passed else outcome.reason
        after = (
            state(victim),
            os.getpriority(os.PRIO_PROCESS, 0),
            Path("/dev/null").stat().st_mode,
            sorted(folder.iterdir()),
        )
        if after != before:
            found[name] = f"before {before}, after {after}"
            before = after
        for one in (by_path, by_name):
            one.setblocking(False)
            try:
                found[name] = f"the socket heard {one.recv(9)!r}"
            except BlockingIOError:
                continue
        if heard:
            found[name] = "the server was reached"
            heard.clear()
    return found


if __name__ == "__main__":
    sys.exit(main())
