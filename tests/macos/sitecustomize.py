"""Takes from Python what Linux has and macOS lacks, and gives it what macOS has: for test_macos.py.

With this folder on PYTHONPATH Python imports it first of all, in spawned workers too. What C code
asks of the kernel by itself is not reached. Source: "Availability" in Python's library reference.
"""

import builtins
import fcntl
import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from types import ModuleType
from typing import Any

STAGES = ("common", "prepare", "train", "sample")
FOLDERS = ("/proc", "/sys/", "/dev/shm")
MISSING: dict[Any, str] = {
    os: "sched_getaffinity sched_setaffinity sched_yield posix_fadvise posix_fallocate "
    "copy_file_range sendfile splice memfd_create eventfd pipe2 pidfd_open getrandom setns unshare "
    "fdatasync O_TMPFILE O_DIRECT O_PATH O_NOATIME O_LARGEFILE getresuid setresuid getxattr "
    "setxattr listxattr removexattr POSIX_FADV_RANDOM POSIX_FADV_DONTNEED",
    fcntl: "F_SETPIPE_SZ F_GETPIPE_SZ F_SETLEASE F_NOTIFY F_OFD_SETLK",
    signal: "SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT sigtimedwait sigwaitinfo",
    resource: "prlimit RUSAGE_THREAD RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_NICE",
}
F_FULLFSYNC, MOST_FILES = 51, 256

for module, names in MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
platform.libc_ver = lambda *_, **__: ("", "")
multiprocessing.set_start_method("spawn")
resource.setrlimit(
    resource.RLIMIT_NOFILE, (MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Let nothing open Linux's own folders; let no Python code fork."""
    if event in ("open", "os.listdir", "os.scandir"):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
        if path.startswith(FOLDERS):
            raise FileNotFoundError(2, "No such file or directory", path)
    if event in ("os.fork", "os.forkpty"):
        raise RuntimeError("macOS's libraries may not survive a fork")


sys.addaudithook(refuse)

fcntl_of_linux, fsync_of_linux = fcntl.fcntl, os.fsync


def fcntl_of_macos(fd: Any, command: int, argument: Any = 0) -> Any:
    """Flush to the disk, or do what Linux does."""
    if command == F_FULLFSYNC:
        return fsync_of_linux(fd)
    return fcntl_of_linux(fd, command, argument)


def fsync_of_macos(fd: Any) -> None:
    """Stand for what leaves the data in the disk's cache, where a power cut loses it."""
    raise RuntimeError("on macOS os.fsync() is not enough")


fcntl.fcntl, os.fsync = fcntl_of_macos, fsync_of_macos
fcntl.F_FULLFSYNC = F_FULLFSYNC  # type: ignore[attr-defined]


class SysOfMacos(ModuleType):
    """The module sys, but for its platform: other packages were installed for Linux."""

    def __getattribute__(self, name: str) -> Any:
        return "darwin" if name == "platform" else getattr(sys, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys, name, value)


sys_of_macos, import_of_linux = SysOfMacos("sys"), builtins.__import__


def import_of_macos(name: str, *arguments: Any, **named: Any) -> Any:
    """Import; the modules of the stages get a sys of their own."""
    importing = (arguments[0] if arguments else named.get("globals")) or {}
    if name == "sys" and importing.get("__name__", "").partition(".")[0] in STAGES:
        return sys_of_macos
    return import_of_linux(name, *arguments, **named)


builtins.__import__ = import_of_macos
threading.stack_size(512 << 10)  # bytes: what macOS gives a thread that C code starts
