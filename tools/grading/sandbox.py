"""The rights that a process gives up before it runs a student's code.

`close` can be called once and cannot be undone. It has four layers, and returns the names of those
that this machine has:

- limits: memory, size of files, number of open files, CPU time (every system except Windows).
- audit: Python's own operations that write outside the folder, start programs or open connections
  are refused (every system). Code that reaches past Python, for example by ctypes, is not stopped.
- system calls: the kernel refuses connections, programs, new processes, signals, other processes'
  memory and changes of rights, by a seccomp filter (Linux on x86-64).
- files: the kernel refuses to read anything but Python and the course, and to write outside the
  folder, by Landlock (Linux 5.13 or newer).
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

LARGEST_FILE = 16 * 2**20  # bytes of a file that a student's code may write
OPEN_FILES = 256

# --- Limits --------------------------------------------------------------------------------------


def _limit(memory: int, seconds: int) -> bool:
    """Limits of this process, which it cannot raise again."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: LARGEST_FILE,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in wanted.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS refuses a limit of the address space
            continue
    return True


# --- Python's audit events -----------------------------------------------------------------------

FORBIDDEN = (
    "socket.",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.fork",
    "os.kill",
    "os.chmod",
    "os.chown",
    "os.setxattr",
    "os.putenv",
    "pty.spawn",
    "shutil.chown",
    "winreg.",
)
WRITING = ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate")


def _audit(folder: Path) -> bool:
    """Refuse Python's own operations outside `folder`; the hook cannot be removed."""
    inside = os.path.realpath(folder) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    nothing, real, join = os.devnull, os.path.realpath, os.path.join

    def allowed(path: object) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path)
        return text == nothing or join(real(text), "").startswith(inside)

    def hook(event: str, details: tuple) -> None:
        if event == "open":
            path, _, flags = details
            if path is not None and flags & writing and not allowed(path):
                raise PermissionError("while grading, code may write in its own folder only")
        elif event.startswith(WRITING):
            paths = [part for part in details if isinstance(part, str | bytes)]
            if not all(map(allowed, paths)):
                raise PermissionError("while grading, code may write in its own folder only")
        elif event.startswith(FORBIDDEN):
            raise PermissionError(f"while grading, code may not use {event}")

    sys.addaudithook(hook)
    return True


# --- seccomp: the system calls that the kernel refuses -------------------------------------------

# numbers of x86-64; the names are those of the manual pages
REFUSED = {
    "network": (41, 42, 43, 44, 46, 49, 50, 53, 288),  # socket … accept4
    "processes": (57, 58, 59, 322),  # fork, vfork, execve, execveat
    "signals": (62, 129, 200, 234, 297, 424, 434, 438),  # kill … pidfd_getfd
    "other processes": (101, 310, 311, 298, 440),  # ptrace, process_vm_readv …, process_madvise
    "limits": (160, 302, 141),  # setrlimit, prlimit64, setpriority
    "rights of files": (90, 91, 92, 93, 94, 260, 268, 452, 132, 235, 261, 280, 188, 189, 190),
    "mounts": (155, 161, 165, 166, 272, 303, 304, 308, 428, 429, 430, 431, 432, 433, 442),
    "kernel": (103, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 227, 246, 313, 320),
    "ways around": (248, 249, 250, 321, 323, 425, 426, 427),  # keys, bpf, userfaultfd, io_uring
}
CLONE, CLONE3, THREAD = 56, 435, 0x10000
EPERM, ENOSYS = 1, 38
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
NO_NEW_PRIVILEGES, SECCOMP, PARENT_DEATH_SIGNAL = 38, 22, 1  # options of prctl


def _filter() -> bytes:
    """The program of classic BPF that the kernel runs at each system call."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    program = [
        step(load, 4),  # the architecture
        step(equal, X86_64, 1, 0),
        step(give, KILL),
        step(load, 0),  # the number of the call
        step(at_least, 0x40000000, 0, 1),  # the x32 interface has numbers of its own
        step(give, ERROR | EPERM),
        step(equal, CLONE3, 0, 1),  # its flags lie in memory: the C library then uses clone
        step(give, ERROR | ENOSYS),
        step(equal, CLONE, 0, 4),
        step(load, 16),  # the flags
        step(any_bit, THREAD, 0, 1),
        step(give, ALLOW),
        step(give, ERROR | EPERM),
    ]
    for number in sorted(number for group in REFUSED.values() for number in group):
        program += [step(equal, number, 0, 1), step(give, ERROR | EPERM)]
    return b"".join([*program, step(give, ALLOW)])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def is_known_linux() -> bool:
    """Whether this is Linux on a 64-bit PC, whose numbers of system calls this module knows."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def _refuse_calls() -> bool:
    """Install the filter for every thread of this process."""
    program = ctypes.create_string_buffer(_filter())

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    given = Program((len(program) - 1) // 8, ctypes.addressof(program))
    seccomp_call, set_filter, all_threads = 317, 1, 1
    return _libc().syscall(seccomp_call, set_filter, all_threads, ctypes.byref(given)) == 0


# --- Landlock: the files that the kernel lets through --------------------------------------------

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
CREATE_RULES, ADD_RULE, RESTRICT = 444, 445, 446  # the numbers are the same on every machine
ALL_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}  # by version; 5 adds ioctl
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def _guard_files(folder: Path, readable: Iterable[Path], listable: Iterable[Path]) -> bool:
    """Let this process read `readable`, list `listable`, and write in `folder` alone."""
    libc = _libc()
    version = libc.syscall(CREATE_RULES, None, 0, 1)
    if version < 1:
        return False
    rights = ALL_RIGHTS.get(version, 0xFFFF)
    network = 3 if version >= 4 else 0  # bind and connect by TCP
    scope = 3 if version >= 6 else 0  # abstract sockets and signals
    attributes = struct.pack("QQQ", rights, network, scope)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    rules = libc.syscall(CREATE_RULES, attributes, len(attributes), 0)
    if rules < 0:
        return False
    reading = EXECUTE | READ_FILE | READ_DIR
    wanted = [(path, reading) for path in readable]
    wanted += [(path, READ_DIR) for path in listable]
    wanted += [(Path(name), READ_FILE | WRITE_FILE) for name in DEVICES]
    for path, granted in [*wanted, (folder, rights)]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not path.is_dir():
            granted &= EXECUTE | READ_FILE | WRITE_FILE
        rule = struct.pack("=Qi", granted & rights, place)
        added = libc.syscall(ADD_RULE, rules, 1, rule, 0)
        os.close(place)
        if added:
            os.close(rules)
            return False
    closed = libc.syscall(RESTRICT, rules, 0) == 0
    os.close(rules)
    return closed


# --- All layers ----------------------------------------------------------------------------------


def close(
    folder: Path, readable: Iterable[Path], listable: Iterable[Path], memory: int, seconds: int
) -> list[str]:
    """Give up every right that the exercises do not need; the names of the layers that hold."""
    held = ["limits"] * _limit(memory, seconds)
    if sys.platform == "linux" and _libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        held += ["files"] * _guard_files(folder, readable, listable)
        held += ["system calls"] * (is_known_linux() and _refuse_calls())
    held += ["audit"] * _audit(folder)
    return held


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(PARENT_DEATH_SIGNAL, 9, 0, 0, 0)
