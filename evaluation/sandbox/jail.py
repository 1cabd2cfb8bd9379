"""What stands between a completion and the machine: namespaces, a root of the standard library, limits, seccomp."""

from __future__ import annotations

import ctypes
import os
import resource

from .codec import PACKAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGXFSZ = 25  # Linux's number
NEW_USER, NEW_MOUNT = 0x10000000, 0x00020000
NEW_WORLD = NEW_MOUNT | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # with UTS, IPC, PID, network

# System calls that no completion needs and that have let programs out of their jails, by their numbers here.
_MACHINES = {"x86_64": 0, "aarch64": 1}
_DENIED = (  # number on each machine
    (101, 117), (165, 40), (166, 39), (155, 41), (161, 51), (272, 97), (308, 268),  # ptrace; mounts, roots, namespaces
    (250, 219), (248, 217), (249, 218), (321, 280), (298, 241), (323, 282),  # keys; bpf, perf events, userfaultfd
    (425, 425), (426, 426), (427, 427), (303, 264), (304, 265), (310, 270), (311, 271),  # io_uring; handles; others'
    (312, 272), (246, 104), (175, 105), (313, 273), (41, 198),  # memory; kernel and its modules; sockets
    (29, 194), (64, 190), (68, 186), (438, 438),  # System V memory, of which no limit knows, and its kin; others' files
)  # fmt: skip
_CLONE3 = 435  # both; its flags lie where a filter cannot look, and the C library does without it
_CLONE = (56, 220)
_ARCHITECTURES = (0xC000003E, 0xC00000B7)

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _call("mount", *[a and a.encode() for a in (source, target, kind)], flags, data and data.encode())


def build(root: str, libraries: list[str], masked: list[str], packages: dict[str, str]) -> None:
    """Moves this process to a root, at `root`, of read-only `libraries`, the `masked` directories emptied."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", NEW_MOUNT | (NEW_USER if uid else 0))  # a user namespace for those who are not root
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount("none", "/", None, 0x44000)  # MS_REC | MS_PRIVATE: nothing below is seen outside
    _mount("jail", root, "tmpfs", 6, "size=1m,mode=755")  # MS_NOSUID | MS_NODEV
    bound = {path: root + path for path in libraries}
    bound |= {path: f"{root}{PACKAGES}/{name}" for name, path in packages.items()}
    for source, target in bound.items():
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "w").close()
        _mount(source, target, None, 0x1000)  # MS_BIND, which takes MS_RDONLY only in a second step
    for path in masked:
        _mount("empty", root + path, "tmpfs", 7)
    for source, target in bound.items():
        _mount(source, target, None, 0x1000 | 0x20 | 7)
    os.mkdir(root + "/tmp")
    _mount("jail", root, None, 0x27, "size=1m,mode=755")  # MS_REMOUNT | MS_RDONLY | …
    os.chroot(root)
    os.chdir("/")


def enter() -> None:
    """New namespaces, and an empty `/tmp` to work in, for this process and the children it will have."""
    _call("unshare", NEW_WORLD)
    _mount("tmp", "/tmp", "tmpfs", 6, "size=16m,nr_inodes=4k,mode=1777")
    os.chdir("/tmp")


def confine(config: dict[str, Any]) -> None:
    """Sets every limit, then gives up the user id (root) or the capabilities (anyone else), for good."""
    # A core limit of 1, unlike 0, also keeps the kernel from starting the program that collects cores.
    limits = {"AS": config["memory"], "FSIZE": config["output"], "NOFILE": 64, "CORE": 1}
    for name, value in (limits | {"NPROC": config["processes"], "RTPRIO": 0}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (config["cpu"], config["cpu"] + 1))  # SIGXCPU, then SIGKILL
    _libc.signal(SIGXFSZ, None)  # back to the default: Python ignores it, but too much output must kill
    if uid := config["uid"]:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    elif os.getuid():
        _call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if config["filter"]:
        deny_system_calls()


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def deny_system_calls() -> None:
    """Makes those listed fail with EPERM for this process and its children. Raises OSError where seccomp is missing."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(f"no seccomp filter for {machine}")
    which = _MACHINES[machine]
    number, architecture, flags = 0, 4, 16  # offsets of what a filter may look at
    allow, deny, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM is 1, ENOSYS 38
    steps = [(0x20, 0, 0, architecture), (0x15, 1, 0, _ARCHITECTURES[which]), (0x06, 0, 0, kill), (0x20, 0, 0, number)]
    steps += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, deny)]  # the second set of numbers that x86-64 has
    for denied in _DENIED:
        steps += [(0x15, 0, 1, denied[which]), (0x06, 0, 0, deny)]
    steps += [(0x15, 0, 1, _CLONE3), (0x06, 0, 0, missing)]
    steps += [(0x15, 0, 3, _CLONE[which]), (0x20, 0, 0, flags), (0x45, 0, 1, NEW_USER), (0x06, 0, 0, deny)]
    steps += [(0x06, 0, 0, allow)]
    program = b"".join(
        code.to_bytes(2, "little") + bytes([then, otherwise]) + value.to_bytes(4, "little")
        for code, then, otherwise, value in steps
    )
    _call("prctl", 22, 2, ctypes.byref(_Filter(len(steps), program)), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
