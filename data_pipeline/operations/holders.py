"""Who has a file: from /proc, as fuser(1) and lslocks(8) find out.  See proc(5)."""

import os
import pathlib

from data_pipeline.config import DataFolder

PROC = pathlib.Path("/proc")


def lock_holders(path: pathlib.Path) -> list[int]:
    """The processes that hold a lock (flock or POSIX) on the file; any user's.  [] where it is not there."""
    try:
        found = path.stat()
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return []
    wanted = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    pids = set()
    for line in lines:
        words = line.split()
        if "->" in words or words[5].startswith("<none>"):  # one that waits; one on a file without an inode
            continue
        major, minor, inode = words[5].split(":")
        # On btrfs and overlayfs stat has another device than this; there only `openers` finds them.
        if (int(major, 16), int(minor, 16), int(inode)) == wanted and int(words[4]) > 0:
            pids.add(int(words[4]))
    return sorted(pids)


def openers(path: pathlib.Path) -> list[int]:
    """The processes, as far as this user may look into them, that have the file open; without this one."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    return [
        pid
        for pid in sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
        if pid != os.getpid() and _has_open(pid, wanted)
    ]


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        for fd in (PROC / str(pid) / "fd").iterdir():
            try:
                if os.path.samestat(fd.stat(), wanted):
                    return True
            except OSError:
                continue  # closed in between
    except OSError:
        pass  # gone, or another user's
    return False


def holders(path: pathlib.Path) -> list[int]:
    """Everybody who holds a lock on the file or has it open; without this process."""
    return sorted({*lock_holders(path), *openers(path)} - {os.getpid()})


def command_of(pid: int) -> str:
    """The process's command line, at most 100 characters, printable; empty where it is gone."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return ascii(b" ".join(words).decode("utf-8", "replace").strip())[1:-1][:100]


def bridge_running(data_dir: pathlib.Path) -> bool:
    """Whether a bridge runs on this data folder.  Only looks: taking the lock could refuse one that starts now."""
    return bool(holders(DataFolder(data_dir).journal / "lock"))
