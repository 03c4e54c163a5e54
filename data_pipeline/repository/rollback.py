"""What a checkpoint of DuckDB may leave half written, kept until it is through.

A checkpoint writes new blocks where nothing is that the last one needs, and
ends with a new header; with one exception: blocks of metadata (each holds 64
small ones, some of them free) are written again in place.  Cut off in the
middle of such a write, by a kill or by the power, the block has a checksum
that fits neither, the header still points to it, and DuckDB refuses the whole
file.  (Seen with DuckDB 2.0: the offsets of its writes during CHECKPOINT
against `PRAGMA metadata_info`.)

So before a checkpoint the headers and these blocks are copied to a file beside
the database.  Whoever opens it next and finds the headers as they were puts
the blocks back; with other headers the checkpoint was through, and the copy is
dropped.  The copy is

    8s magic "GEXROLL1" | u32 crc32 of what follows | u32 block size | 12,288 bytes of headers
    then for each block: u64 number | the block

all little-endian.
"""

import fcntl
import logging
import os
import pathlib
import struct
import zlib

import duckdb

from data_pipeline.files import atomic

log = logging.getLogger("webhook")

MAGIC = b"GEXROLL1"
HEADERS = 12288  # bytes in front of block 0: the main header, and the headers of the last two checkpoints
_START = struct.Struct("<8sII")
_NUMBER = struct.Struct("<Q")
# Blocks with room for what the checkpoint writes; full ones it leaves alone.
_WRITTEN_AGAIN = "SELECT block_id FROM pragma_metadata_info() WHERE free_blocks > 0 ORDER BY block_id"
_BLOCK_SIZE = "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()"


def beside(path: pathlib.Path) -> pathlib.Path:
    """Where the copy of a database lies."""
    return path.with_name(f"{path.name}.rollback")


def keep(con: duckdb.DuckDBPyConnection, path: pathlib.Path) -> None:
    """Copy, durably, what a checkpoint by `con` may overwrite of the file at `path`.  Raises OSError."""
    fd = _descriptor(path)
    ((size,),) = con.execute(_BLOCK_SIZE).fetchall()
    rest = struct.pack("<I", size) + os.pread(fd, HEADERS, 0)
    for (number,) in con.execute(_WRITTEN_AGAIN).fetchall():
        if len(block := os.pread(fd, size, HEADERS + number * size)) == size:
            rest += _NUMBER.pack(number) + block
    atomic.replace(beside(path), MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest)


def drop(path: pathlib.Path) -> None:
    """The checkpoint is through."""
    beside(path).unlink(missing_ok=True)


def undo(path: pathlib.Path) -> bool:
    """Take back a checkpoint that was cut off; True if anything of it was there.

    Nothing in this process may have the database open.  Where another process
    has, it is left alone.  Raises OSError.
    """
    if not beside(path).exists():
        return False
    changed = False
    with open(path, "r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as DuckDB does
            raw = beside(path).read_bytes()  # now that nobody makes another one
        except (BlockingIOError, PermissionError, FileNotFoundError):
            return False
        if _is_whole(raw) and os.pread(file.fileno(), HEADERS, 0) == raw[_START.size : _START.size + HEADERS]:
            changed = _put_back(file.fileno(), raw)
        drop(path)
    if changed:
        log.warning(
            "a checkpoint of %s was cut off; the file is as it was before, and the checkpoint is made again", path
        )
    return changed


def _put_back(fd: int, raw: bytes) -> bool:
    (_, _, size), at, changed = _START.unpack_from(raw), _START.size + HEADERS, False
    while at < len(raw):
        (number,) = _NUMBER.unpack_from(raw, at)
        block = raw[at + _NUMBER.size : at + _NUMBER.size + size]
        at += _NUMBER.size + size
        if os.pread(fd, size, HEADERS + number * size) != block:
            os.pwrite(fd, block, HEADERS + number * size)
            changed = True
    os.fsync(fd)
    return changed


def _is_whole(raw: bytes) -> bool:
    if len(raw) < _START.size + HEADERS:
        return False
    magic, crc, size = _START.unpack_from(raw)
    return bool(
        magic == MAGIC
        and zlib.crc32(raw[12:]) == crc
        and (len(raw) - _START.size - HEADERS) % (_NUMBER.size + size) == 0
    )


def _descriptor(path: pathlib.Path) -> int:
    """DuckDB's own descriptor of the file: opening another and closing it would drop the lock that DuckDB has on it."""
    wanted = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
        except OSError:  # closed meanwhile; that of the listing itself is
            continue
    raise FileNotFoundError(f"{path} is not open in this process")
