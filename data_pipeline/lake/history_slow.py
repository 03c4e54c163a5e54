"""The exact, slow reader of history files: one JSON value after the other, over what is damaged to the next whole one.

It takes what DuckDB's reader does not: arrays in a wrapper (`{"data": [...]}`), files that are cut short or broken
in the middle, bytes that are no UTF-8, several arrays one after the other.  What it cannot read is counted.
"""

import codecs
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 4 << 20

# One record at most: 50,000 strikes.  A longer one is bad.
RECORD_LIMIT = 4 << 20

# Characters left behind in a buffer before it is cut: json counts the lines before each error, and a cut copies.
BEHIND = 1 << 14

_BETWEEN = re.compile(r"[\s,]*")
_DATA = re.compile(r'"data"\s*:\s*\[')
_CLOSED = re.compile(r"\]\s*+\}?\s*+(?![\s,}])")
# Where the next record may begin after one that cannot be read.
_NEXT = re.compile(r'(?<=[\]}])\s*+,?\s*+(?=\{\s*+")|\n[^\S\n]*+(?=\{)')


def records(path: pathlib.Path) -> Iterator[bytes | None]:
    """The text of each record in the order of the file, None for what cannot be read.  Raises OSError."""
    with open(path, "rb") as file:
        yield from _records(_blocks(file))


def is_gzip(path: pathlib.Path) -> bool:
    """Whether the file's bytes, not its name, say gzip."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def unpacked_more_than(path: pathlib.Path, limit: int) -> bool:
    """Whether a gzip file unpacks to more than `limit` bytes; it is unpacked for that, and kept nowhere."""
    with open(path, "rb") as file:
        size = 0
        return any((size := size + len(block)) > limit for block in _blocks(file))


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    plain = _Unzipped(file) if packed else file
    block = plain.read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while block:
        yield block
        block = plain.read(BLOCK)


class _Unzipped:
    """What is in a gzip file, up to where it breaks: the standard library's reader keeps the last block to itself."""

    def __init__(self, file: BinaryIO):
        self._file: BinaryIO | None = file
        self._packed, self._member = b"", zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end or where the file is broken."""
        plain = bytearray()
        while len(plain) < size and (self._packed or self._fill()):
            if self._member.eof:
                self._member = zlib.decompressobj(31)
            try:
                plain += self._member.decompress(self._packed, size - len(plain))
            except zlib.error:
                self._packed, self._file = b"", None
                break
            self._packed = self._member.unconsumed_tail or self._member.unused_data
        return bytes(plain)

    def _fill(self) -> bool:
        self._packed = self._file.read(1 << 18) if self._file else b""
        return bool(self._packed)


def _records(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Each JSON value, None for what cannot be read; holds about RECORD_LIMIT characters and a block at once."""
    decoder = json.JSONDecoder()
    # A character may be cut by the block's end; bytes that are no UTF-8 stay what they are.
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    buffer, position, ended, skipping, in_array = "", 0, False, False, False
    while not ended:
        block = next(blocks, b"")
        ended = not block
        buffer, position = buffer[position:] + text.decode(block, ended), 0
        wrapped = True  # there may be a wrapper in the buffer
        while True:
            if skipping:
                following = _NEXT.search(buffer, position)
                if not following:
                    position = max(len(buffer) - 1, 0)  # what is before the next block may tell that a record begins
                    break
                position, skipping = following.end(), False
            if position > BEHIND:
                buffer, position = buffer[position:], 0
            position = _past_between(buffer, position)
            if not in_array and buffer[position : position + 1] == "[":
                in_array, position = True, position + 1
                continue
            while position < len(buffer) and not (in_array and buffer[position] == "]"):
                try:
                    value, end = decoder.raw_decode(buffer, position)
                except (ValueError, RecursionError):
                    break
                if end == len(buffer) and not ended:
                    break  # a number may go on in the next block
                yield from _unwrapped(value, buffer[position:end])
                position = _past_between(buffer, end)
            if in_array and buffer[position : position + 1] == "]":
                closed = _CLOSED.match(buffer, position)
                if not closed:
                    return  # other keys of the wrapper follow
                in_array, wrapped, position = False, True, closed.end()
                continue
            if len(buffer) - position < (1 if ended else RECORD_LIMIT):
                break  # perhaps only cut by the block's end
            # What stands here cannot be read, whatever follows.
            wrapper = _DATA.search(buffer, position) if wrapped and not in_array else None
            wrapped = False
            if wrapper:
                in_array, position = True, wrapper.end()
                continue
            yield None
            position, skipping = position + 1, True


def _past_between(buffer: str, position: int) -> int:
    found = _BETWEEN.match(buffer, position)
    return found.end() if found else position


def _unwrapped(value: object, text: str) -> Iterator[bytes]:
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        for one in value["data"]:
            yield json.dumps(one).encode()
    else:
        yield text.encode("utf-8", "surrogateescape")
