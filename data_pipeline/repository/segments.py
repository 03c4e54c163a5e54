"""The journal on disk: how a segment file looks, and how it is read back.

    journal/0000000000000001.journal      named by the number of its first record
    journal/0000000000012345.journal

A segment is its header, twice (so that one damaged byte cannot hide it), and
then records up to the end of the file, all little-endian:

    header   8s magic "GEXJRNL1" | 16s journal id | u64 first number | u64 last link id | u32 crc32
    record   4s mark FF FE 52 FD | u64 number | u32 length | u32 crc32 | payload of that length

The header's crc32 covers what stands before it; a record's covers number,
length and payload.  The mark cannot stand in UTF-8 text, and payloads are
UTF-8, so after damage the next record is found by looking for it.  Numbers
ascend by one; a gap is where records are damaged.  A record whose number is
not below the next segment's first number does not count: its write failed,
and its sender was told so.
"""

import os
import pathlib
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

HEADER = struct.Struct("<8s16sQQI")
HEADER_MAGIC = b"GEXJRNL1"
HEADER_BYTES = 2 * HEADER.size
RECORD = struct.Struct("<4sQII")
MARK = b"\xff\xfeR\xfd"
_NUMBERED = struct.Struct("<QI")
ENDING = ".journal"
BUFFER = 256 << 10  # bytes read at once


@dataclass(frozen=True)
class SegmentHeader:
    """journal: the journal's id, 32 hex digits; last_link: the last history-queue id given out before it."""

    journal: str
    first: int
    last_link: int

    def encode(self) -> bytes:
        """HEADER_BYTES: two copies."""
        packed = HEADER.pack(HEADER_MAGIC, bytes.fromhex(self.journal), self.first, self.last_link, 0)[:-4]
        return 2 * (packed + struct.pack("<I", zlib.crc32(packed)))

    @classmethod
    def decode(cls, raw: bytes) -> "SegmentHeader | None":
        """From the first HEADER_BYTES of a segment; None where both copies are damaged."""
        for copy in (raw[: HEADER.size], raw[HEADER.size : HEADER_BYTES]):
            if len(copy) == HEADER.size:
                magic, journal, first, last_link, crc = HEADER.unpack(copy)
                if magic == HEADER_MAGIC and crc == zlib.crc32(copy[:-4]):
                    return cls(journal.hex(), first, last_link)
        return None


@dataclass(frozen=True)
class Record:
    """A whole record of a segment."""

    number: int
    payload: bytes


@dataclass(frozen=True)
class Damage:
    """Bytes of a segment that are no record; `after` is the number of the last whole one before them."""

    segment: str
    offset: int
    raw: bytes
    after: int


def record_head(number: int, payload: bytes) -> bytes:
    """What stands before the payload of a record."""
    crc = zlib.crc32(payload, zlib.crc32(_NUMBERED.pack(number, len(payload))))
    return RECORD.pack(MARK, number, len(payload), crc)


def segment_path(folder: pathlib.Path, first: int) -> pathlib.Path:
    """Where the segment that begins with record `first` lies."""
    return folder / f"{first:016d}{ENDING}"


def first_number(path: pathlib.Path) -> int:
    """The number of a segment's first record, by its name."""
    return int(path.name[: -len(ENDING)])


def list_segments(folder: pathlib.Path) -> list[pathlib.Path]:
    """The segments of a journal, oldest first."""
    return sorted(p for p in folder.glob(f"*{ENDING}") if p.name[: -len(ENDING)].isdigit())


def read_header(path: pathlib.Path) -> SegmentHeader | None:
    """A segment's header; None where both copies are damaged."""
    with open(path, "rb") as file:
        return SegmentHeader.decode(file.read(HEADER_BYTES))


def read_record(file: BinaryIO, offset: int) -> Record | None:
    """The whole, undamaged record that starts at `offset` of a segment, if there is one; read by its known length."""
    file.seek(offset)
    head = file.read(RECORD.size)
    if len(head) < RECORD.size:
        return None
    mark, number, length, crc = RECORD.unpack(head)
    # A damaged length may say 4 GB, and what is asked for is allocated.
    if mark != MARK or length > os.fstat(file.fileno()).st_size - offset:
        return None
    payload = file.read(length)
    if len(payload) != length or zlib.crc32(payload, zlib.crc32(_NUMBERED.pack(number, length))) != crc:
        return None
    return Record(number, payload)


def next_mark(file: BinaryIO, offset: int) -> int | None:
    """Where at or behind `offset` of a segment the next record may start."""
    file.seek(offset)
    window = b""
    while part := file.read(BUFFER):
        offset -= len(window)
        window += part
        if (at := window.find(MARK)) != -1:
            return offset + at
        offset += len(window)
        window = window[1 - len(MARK) :]
    return None


def remove_consumed(folder: pathlib.Path, position: int) -> int:
    """Remove the segments whose records are all at or before `position`; how many went.

    The newest one always stays: its header carries the journal's id and its
    last link id.
    """
    segments = list_segments(folder)
    gone = [path for path, following in zip(segments, segments[1:]) if first_number(following) - 1 <= position]
    for path in gone:
        path.unlink()
    return len(gone)


class Reader:
    """Reads a journal forward from after record `after`; goes on where it stopped.

    Only what is known to be durable may be read: `read(upto)` stops behind
    record `upto`.  For one thread.
    """

    def __init__(self, folder: pathlib.Path, after: int):
        self.folder = folder
        self.position = after
        self._path: pathlib.Path | None = None
        self._offset = 0

    def read(self, upto: int, most: int = 1024, most_bytes: int = 8 << 20) -> list[Record | Damage]:
        """The next records, in order, at the most `most` or about `most_bytes`; [] where there is none yet.

        Damaged places come as `Damage`.  `position` moves to the last record
        returned, and past numbers up to `upto` whose records are lost.  Raises OSError.
        """
        found: list[Record | Damage] = []
        size = 0
        while self.position < upto and len(found) < most and size < most_bytes:
            before = len(found)
            limit = self._open_next()
            if limit is None:
                break
            size += self._scan(found, min(upto, limit - 1), most, most_bytes - size)
            if len(found) == before:
                # Nothing more counts in this segment: what is missing up to the next one is lost.
                self.position = max(self.position, min(upto, limit - 1))
        return found

    def _open_next(self) -> int | None:
        """Choose the segment that holds the next record; returns the first number that is not in it."""
        segments = list_segments(self.folder)
        if not segments:
            return None
        firsts = [first_number(p) for p in segments]
        index = max([i for i, first in enumerate(firsts) if first <= self.position + 1], default=0)
        if segments[index] != self._path:
            self._path, self._offset = segments[index], HEADER_BYTES
        if firsts[index] > self.position + 1:
            self.position = firsts[index] - 1
        return firsts[index + 1] if index + 1 < len(firsts) else 1 << 63

    def _scan(self, found: list[Record | Damage], upto: int, most: int, most_bytes: int) -> int:
        """Read on in the segment; returns the bytes of the payloads that were found."""
        assert self._path is not None
        size = 0
        with open(self._path, "rb", buffering=BUFFER) as file:
            while self.position < upto and len(found) < most and size < most_bytes:
                record = read_record(file, self._offset)
                if record is None:
                    if not self._skip_damage(found, file):
                        break
                    continue
                if record.number > upto:
                    break
                self._offset += RECORD.size + len(record.payload)
                if record.number > self.position:
                    self.position = record.number
                    found.append(record)
                    size += len(record.payload)
        return size

    def _skip_damage(self, found: list[Record | Damage], file: BinaryIO) -> bool:
        """Go on to the next whole record; False where there is none."""
        assert self._path is not None
        begin, end = self._offset, next_mark(file, self._offset + 1)
        while end is not None and read_record(file, end) is None:
            end = next_mark(file, end + 1)
        file.seek(begin)
        raw = file.read(-1 if end is None else end - begin)
        if raw:
            found.append(Damage(self._path.name, begin, raw, self.position))
        self._offset += len(raw)
        return end is not None
