"""The one way a file is written: whole, so that a reader sees the old one or the new one, or by lines at its end."""

import os
import pathlib
import secrets

# Temporary files have this ending; `clean` removes what a crash left of them.
ENDING = ".tmp~"


def replace(path: pathlib.Path, content: bytes, durable: bool = True) -> None:
    """Put `content` at `path` atomically; folders are made as needed.

    durable: survive a power cut too (fsync of file and folder); without it
    only a crash of the process.  The new file has mode 0644.  Raises OSError,
    and then leaves `path` as it was and no temporary file.
    """
    make_folder(path.parent)
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}{ENDING}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            write_all(fd, content)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def append(path: pathlib.Path, lines: bytes) -> None:
    """Append lines, durably; made where it is missing, mode 0644.  Raises OSError, and may have written a part then.

    Behind half a line that a crash has left they begin on one of their own, or they would be lost with it.
    """
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        write_all(fd, lines)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if not size:  # new, or left empty by an attempt that failed
        fsync_folder(path.parent)


def write_all(fd: int, content: bytes) -> None:
    """os.write until everything is written; raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def make_folder(folder: pathlib.Path) -> None:
    """Make a folder, and those above it that are missing; each survives a power cut.  Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: pathlib.Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def clean(folder: pathlib.Path, of: str = "*") -> int:
    """Remove temporary files that a crash left below `folder`; how many there were.

    of: a pattern, for the names of the files that they were to become.
    """
    found = list(folder.rglob(f".{of}{ENDING}*"))  # DuckDB puts a log beside a file of its own
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
