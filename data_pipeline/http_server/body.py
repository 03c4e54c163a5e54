"""Bodies: chunked ones become bytes as RFC 9112 has it, packed ones are unpacked, and neither grows over its limit."""

import re
import zlib

LONGEST_LINE = 1024  # bytes of a chunk's size with its extensions
MOST_TRAILERS = 8192  # bytes
CODINGS = {b"": 0, b"identity": 0, b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # Content-Encoding → zlib's wbits

# At most eight digits, and nothing that two readers could read in two ways: no sign, no blank, no lone CR or LF.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_TRAILER = re.compile(rb"(?:[!-9;-~]+:[^\x00\r\n]*)?\r\n")


class BadBody(Exception):
    """A body that is not taken: status and text for the client."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


class Chunks:
    """The body of a chunked request, as far as it has come; at most `most` bytes of it are taken."""

    def __init__(self, most: int):
        self.body = bytearray()
        self._most = most
        self._left = 0  # bytes of the chunk that have not come, with the line end behind it
        self._trailers = -1  # bytes of trailers so far; -1 before the last chunk

    def take(self, buffer: bytearray, start: int) -> bool:
        """Take what has come from the buffer, from `start`; True at the end of the body.  Raises BadBody."""
        at = start
        try:
            while True:
                if self._left:
                    piece = buffer[at : at + max(0, self._left - 2)]
                    self.body += piece
                    at += len(piece)
                    self._left -= len(piece)
                    if self._left > 2 or len(buffer) - at < 2:
                        return False
                    if buffer[at : at + 2] != b"\r\n":
                        raise BadBody(400, "Invalid chunk")
                    at += 2
                    self._left = 0
                end = buffer.find(b"\n", at) + 1
                if (end or len(buffer)) - at > LONGEST_LINE:
                    raise BadBody(400, "Invalid chunk")
                if not end:
                    return False
                if self._line(buffer, at, end):
                    at = end
                    return True
                at = end
        finally:
            del buffer[start:at]

    def _line(self, buffer: bytearray, at: int, end: int) -> bool:
        """A chunk's size or a trailer, which is dropped; True at the empty line that ends them."""
        if self._trailers >= 0:
            self._trailers += end - at
            if self._trailers > MOST_TRAILERS or not _TRAILER.fullmatch(buffer, at, end):
                raise BadBody(400, "Invalid trailer")
            return end - at == 2
        found = _SIZE.fullmatch(buffer, at, end)
        if not found:
            raise BadBody(400, "Invalid chunk")
        size = int(found[1], 16)
        if size > self._most - len(self.body):
            raise BadBody(413, "Request body is too large")
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
        return False


def unpack(body: bytes, coding: bytes, most: int) -> bytes:
    """The body without its Content-Encoding, one of CODINGS; at most most + 1 bytes are made.  Raises BadBody."""
    window, found = CODINGS[coding], b""
    if not window or not body:
        return body
    if coding == b"deflate" and (body[0] & 15 != 8 or int.from_bytes(body[:2], "big") % 31):
        window = -15  # without the zlib header, as many clients send it
    try:
        while body:  # gzip may have several members
            unpacker = zlib.decompressobj(window)
            found += unpacker.decompress(body, most + 1 - len(found))
            if len(found) > most:
                raise BadBody(413, "Request body is too large")
            if not unpacker.eof:
                raise BadBody(400, "Request body is not whole " + coding.decode())
            body = unpacker.unused_data
    except zlib.error:
        raise BadBody(400, "Request body is not " + coding.decode()) from None
    return found
