"""The shapes a history file comes in, cut into records: pieces of some megabytes, whatever the file's size.

An array of chains, `{"data": [...]}`, one object, one object a line, each of
them gzipped or not: the bytes tell, never the name.

Cutting is fast because it looks for what stands between two records and does
not parse.  In an array that is `},{`, which may stand inside a record too; so
whoever parses the records of a piece says when one is not JSON (`Pieces.redo`),
and from there on the file is read slowly and exactly, one JSON value after the
other, over what is damaged to the next record that is whole.
"""

import codecs
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ARRAY, LINES, SLOW = "array", "lines", "slow"

# Smaller ones cost a query's planning more often, larger ones memory: measured with 1 to 12 MB.
PIECE = 4 << 20

# One record at most: 50,000 strikes.  A longer one is bad.
RECORD_LIMIT = 4 << 20

# Characters left behind in a buffer before it is cut: json counts the lines before each error, and a cut copies.
BEHIND = 1 << 14

_BOM = b"\xef\xbb\xbf"
_WRAPPER = re.compile(rb'\s*\{\s*"data"\s*:\s*\[')
_ARRAY_END = re.compile(rb"\]\s*+\}?\s*+\Z")
_GAP = re.compile(rb"\}\s*,\s*(?=\{)")
_BETWEEN = re.compile(r"[\s,]*")
_DATA = re.compile(r'"data"\s*:\s*\[')
_CLOSED = re.compile(r"\]\s*+\}?\s*+(?![\s,}])")
# Where the next record may begin after one that cannot be read.
_NEXT = re.compile(r'(?<=[\]}])\s*+,?\s*+(?=\{\s*+")|\n[^\S\n]*+(?=\{)')


class Piece(NamedTuple):
    """Records in the order of the file; None for one that is not JSON.  exact: each of the others is JSON to Python."""

    text: bytes
    records: list[bytes | None]
    exact: bool


class Pieces:
    """Iterate over the pieces of a file.  Raises OSError; for broken gzip the file ends where it breaks.

    read: bytes of the file read so far (compressed ones, for gzip).
    """

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "rb")
        packed = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        self._plain = _Unzipped(self._file) if packed else self._file
        self._again: list[bytes] = []
        self._in_array = False
        self._rest = self._block().removeprefix(_BOM)
        self._shape = self._find_shape()

    def close(self) -> None:
        self._file.close()

    @property
    def read(self) -> int:
        return self._file.tell()

    def redo(self, pieces: list[Piece]) -> None:
        """Take these, the last ones given out, back: they are cut again, exactly."""
        self._again = [b",".join(piece.text for piece in pieces) + (b"," if self._in_array else b"\n")]
        self._shape = SLOW

    def __iter__(self) -> Iterator[Piece]:
        while self._shape != SLOW:
            piece = self._fast()
            if piece is None:
                return
            yield piece
        records = _records(self._blocks(), self._in_array)
        while some := list(itertools.islice(records, 1000)):
            yield Piece(b"", some, True)

    def _block(self) -> bytes:
        return self._plain.read(PIECE)

    def _blocks(self) -> Iterator[bytes]:
        yield from self._again
        if self._rest:  # an empty block is the end
            yield self._rest
        while block := self._block():
            yield block

    def _find_shape(self) -> str:
        """The shape, from the first block; its opening is cut off."""
        start = self._rest.lstrip()
        wrapper = _WRAPPER.match(start)
        if start[:1] == b"[" or wrapper:
            self._in_array = True
            self._rest = start[wrapper.end() if wrapper else 1 :]
            return ARRAY
        return LINES if _one_a_line(start.split(b"\n", 1)[0]) else SLOW

    def _fast(self) -> Piece | None:
        """The next piece of an array or of lines; None at the end."""
        text = self._rest
        while True:
            block = self._block()
            text += block
            if not block:
                self._rest = b""
                text = _ARRAY_END.sub(b"", text, 1) if self._in_array else text
                break
            cut = text.rfind(b"\n") if self._shape == LINES else _last_gap(text)
            if cut > 0:
                text, self._rest = text[:cut], text[cut:].lstrip(b", \t\r\n")
                break
            if len(text) > 4 * PIECE:
                self._again, self._rest, self._shape = [text], b"", SLOW
                return Piece(b"", [], True)
        text = text.strip()
        if not text:
            return None
        if self._shape == LINES:
            return Piece(text, [line for line in text.split(b"\n") if line.strip()], False)
        cuts = [0] + [cut for gap in _GAP.finditer(text) for cut in (gap.start() + 1, gap.end())] + [len(text)]
        return Piece(text, [text[a:b] for a, b in zip(cuts[::2], cuts[1::2])], False)


class _Unzipped:
    """What is in a gzip file, up to where it breaks: the standard library's reader keeps the last block to itself."""

    def __init__(self, file):
        self._file, self._packed, self._member = file, b"", zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end or where the file is broken."""
        plain = b""
        while len(plain) < size and (self._packed or self._fill()):
            if self._member.eof:
                self._member = zlib.decompressobj(31)
            try:
                plain += self._member.decompress(self._packed, size - len(plain))
            except zlib.error:
                self._packed, self._file = b"", None
                break
            self._packed = self._member.unconsumed_tail or self._member.unused_data
        return plain

    def _fill(self) -> bool:
        self._packed = self._file.read(1 << 18) if self._file else b""
        return bool(self._packed)


def _last_gap(text: bytes) -> int:
    """The end of the last object that another one follows; -1 if there is none near the end."""
    found = -1
    for near in (64 << 10, 2 * RECORD_LIMIT):
        for gap in _GAP.finditer(text, max(0, len(text) - near)):
            found = gap.start() + 1
        if found >= 0:
            break
    return found


def _one_a_line(line: bytes) -> bool:
    """Whether the first line is one whole record, rather than a part of one or a wrapper of many."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _records(blocks: Iterator[bytes], in_array: bool) -> Iterator[bytes | None]:
    """Each JSON value, None for what cannot be read; holds about RECORD_LIMIT characters and a block at once."""
    decoder = json.JSONDecoder()
    # A character may be cut by the block's end; bytes that are no UTF-8 stay what they are.
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    buffer, position, ended, skipping = "", 0, False, False
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
            position = _BETWEEN.match(buffer, position).end()
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
                position = _BETWEEN.match(buffer, end).end()
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


def _unwrapped(value, text: str) -> Iterator[bytes]:
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        for one in value["data"]:
            yield json.dumps(one).encode()
    else:
        yield text.encode("utf-8", "surrogateescape")
