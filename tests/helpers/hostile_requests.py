"""Hostile HTTP requests, as plain data: REQUESTS is a list of (name, raw bytes, half close, expected).

half close: whether the client shuts its sending side down after the last
byte; otherwise it keeps it open and waits for the answer, or for the head's
or body's deadline of the server.  expected: the status codes that are right;
CLOSED among them where a close without a byte of answer is right too.  Every
answer must besides have a status line and headers without control characters.

Where an expectation comes from stands behind it: [contract] is what this
bridge promises, [stdlib] what http.server answers, [9110] and [9112] are the
RFCs; [rule] is that anything hostile gets a 4xx or a clean close.
"""

CLOSED = "closed"

BODY = b'{"ticker": "SPX", "kind": "majors", "data": {"spot": 5000.5}}'
LENGTH = b"%d" % len(BODY)
DEEP = 200_000


def post(*headers: bytes, body: bytes = BODY, line: bytes = b"POST /gex HTTP/1.1", end: bytes = b"\r\n") -> bytes:
    """A request with exactly these header lines, after Host."""
    return end.join((line, b"Host: localhost", *headers, b"", b"")) + body


def sized(body: bytes, *headers: bytes, line: bytes = b"POST /gex HTTP/1.1") -> bytes:
    """A request that declares its body's true length."""
    return post(*headers, b"Content-Length: %d" % len(body), body=body, line=line)


def length(value: bytes, body: bytes = BODY) -> bytes:
    return post(b"Content-Length: " + value, body=body)


LENGTHS = [
    # [contract]: a length that is no plain number is a 400, also where int() would take it
    ("a length of letters", length(b"abc"), False, {400}),
    ("a length with a plus", length(b"+" + LENGTH), False, {400}),
    ("a length of +2 and two bytes", length(b"+2", b"{}"), False, {400}),
    ("a length with an underscore", length(LENGTH[:1] + b"_" + LENGTH[1:]), False, {400}),
    ("a length of 1_0 and ten bytes", length(b"1_0", b'{"a":"bc"}'), False, {400}),
    ("a hexadecimal length", length(b"0x2", b"{}"), False, {400}),
    ("a length with a fraction", length(LENGTH + b".0"), False, {400}),
    ("a length with an exponent", length(b"1e2"), False, {400}),
    ("a length with a superscript digit", length(b"\xb2"), False, {400}),
    ("a length followed by a vertical tab", length(LENGTH + b"\x0b"), False, {400}),
    ("a length followed by a no-break space", length(LENGTH + b"\xa0"), False, {400}),
    ("a length followed by a NUL", length(LENGTH + b"\0"), False, {400}),
    ("a length followed by a semicolon", length(LENGTH + b";"), False, {400}),
    ("an empty length", length(b""), False, {400}),
    ("a length of minus zero", length(b"-0"), False, {400}),
    ("a negative length", length(b"-5"), False, {400}),  # [contract], recorded
    ("a huge negative length", length(b"-" + b"9" * 30), False, {400}),
    ("two lengths that differ", post(b"Content-Length: 2", b"Content-Length: " + LENGTH), False, {400}),
    (
        "two lengths that differ, in another case",
        post(b"Content-Length: 2", b"content-LENGTH: " + LENGTH),
        False,
        {400},
    ),
    ("two lengths that differ in one header", length(LENGTH + b", 2"), False, {400}),
    # [9110] 8.6: the same length twice may be taken or refused; the original took it
    ("the same length twice", post(b"Content-Length: " + LENGTH, b"Content-Length: " + LENGTH), False, {202, 400}),
    ("the same length twice in one header", length(LENGTH + b", " + LENGTH), False, {202, 400}),
    # [9110] 8.6: 1*DIGIT, so zeros before it are legal; [9110] 5.5: blanks around a value are not part of it
    ("a length with zeros before it", length(b"000" + LENGTH), False, {202, 400}),
    ("a length between blanks and tabs", length(b" \t" + LENGTH + b" \t"), False, {202}),
    # [contract]: over the limit is 413, at once and without the body
    ("a length of a quadrillion", length(b"1" + b"0" * 15, b""), False, {413}),
    ("a length of a quadrillion and some of its body", length(b"1" + b"0" * 15, b"{" * 1000), False, {413}),
    ("a length beyond 64 bits", length(b"9" * 30, b""), False, {413}),
    ("a length of five thousand digits", length(b"9" * 5000, b""), False, {400, 413}),  # int() refuses those
    # [contract]: a body cut short is a 400
    ("a body cut short", length(b"100", b'{"ticker": "SPX"'), True, {400}),
    ("a body cut short where it is whole JSON", length(b"100", BODY), True, {400}),
    ("no body at all", length(b"100", b""), True, {400}),
    # [contract]: one request a connection; what is beyond the length is not ours
    ("a body longer than its length", length(LENGTH, BODY + b"POST /uw HTTP/1.1\r\n\r\n"), False, {202}),
    ("a length that cuts the JSON", length(b"20"), False, {400}),
]

TRANSFER = [
    # [contract]: Transfer-Encoding is a 400 unless it is chunked and nothing else
    ("chunked", post(b"Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)), False, {202}),
    ("chunked with a length", post(b"Transfer-Encoding: chunked", b"Content-Length: " + LENGTH), False, {400}),
    ("a length, then chunked", post(b"Content-Length: " + LENGTH, b"Transfer-Encoding: chunked"), False, {400}),
    ("chunked in odd case", post(b"tRANSFER-eNCODING: cHUNKED", b"Content-Length: " + LENGTH), False, {400}),
    ("an unknown transfer coding", post(b"Transfer-Encoding: xchunked", b"Content-Length: " + LENGTH), False, {400}),
    ("identity", post(b"Transfer-Encoding: identity", b"Content-Length: " + LENGTH), False, {400}),
    ("an empty transfer coding", post(b"Transfer-Encoding:", b"Content-Length: " + LENGTH), False, {400}),
    ("chunked that never ends", post(b"Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\n{"), False, {400}),
]

LINES = [
    # [stdlib]: HTTP/0.9 knows only GET; [contract] puts status lines on every answer
    ("POST in HTTP/0.9", b"POST /gex\r\n\r\n", False, {400}),
    ("GET in HTTP/0.9", b"GET /gex\r\n\r\n", False, {400, 501, CLOSED}),
    ("one word", b"POST\r\n\r\n", False, {400}),
    ("four words", post(b"Content-Length: " + LENGTH, line=b"POST /gex x HTTP/1.1"), False, {400}),
    ("no version number", post(line=b"POST /gex HTTP/"), False, {400}),
    ("a version of letters", post(line=b"POST /gex HTTP/a.b"), False, {400}),
    ("a version with a plus", post(b"Content-Length: " + LENGTH, line=b"POST /gex HTTP/+1.1"), False, {400}),
    ("a version of many digits", post(line=b"POST /gex HTTP/1." + b"1" * 5000), False, {400}),
    ("a version in lower case", post(line=b"POST /gex http/1.1"), False, {400}),
    ("another protocol", post(line=b"POST /gex ICAP/1.0"), False, {400}),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False, {400, 501, 505}),  # [stdlib]: 505
    # nothing, or no request
    ("nothing", b"", True, {CLOSED}),
    ("one line end", b"\r\n", True, {400, CLOSED}),
    (
        "a line end before the request",
        b"\r\n" + sized(BODY),
        False,
        {202, 400, CLOSED},
    ),  # [9112] 2.2: should be skipped
    ("only blanks", b"   \r\n\r\n", True, {400, CLOSED}),
    ("a request line cut short", b"POST /ge", True, {400, CLOSED}),
    ("a head cut short", b"POST /gex HTTP/1.1\r\nContent-Length: 2\r\n", True, {400, CLOSED}),
    ("a header cut short", b"POST /gex HTTP/1.1\r\nContent-Len", True, {400, CLOSED}),
    ("binary junk with line ends", bytes(range(256)) * 8 + b"\r\n\r\n", True, {400, CLOSED}),
    ("binary junk without a line end", b"\xfe\xfd\xfc\x80" * 300, True, {400, CLOSED}),
    # not closed by the client: the head's deadline, or sooner
    ("binary junk, kept open", b"\xfe\xfd\xfc\x80" * 300, False, {400, 408, CLOSED}),
    # line ends
    ("lone CR line ends", post(b"Content-Length: " + LENGTH, end=b"\r"), True, {400, CLOSED}),
    ("lone LF line ends", post(b"Content-Length: " + LENGTH, end=b"\n"), False, {202, 400}),  # [9112] 2.2: may be taken
    (
        "a lone CR inside a header",
        post(b"X-A: b\rContent-Length: 2", b"Content-Length: " + LENGTH),
        False,
        {400},
    ),  # [9112] 2.2
    ("a lone CR inside the request line", post(line=b"POST /gex\rX: y HTTP/1.1"), False, {400, 404}),
    # [stdlib]: a line over 65,536 bytes is 414; below it is just an unknown path
    ("a request line over 64 KiB", post(line=b"POST /" + b"a" * 65_536 + b" HTTP/1.1"), False, {414, 400}),
    ("a request line over 64 KiB without an end", b"POST /" + b"a" * 70_000, True, {414, 400}),
    ("a request line just under 64 KiB", post(line=b"POST /" + b"a" * 65_000 + b" HTTP/1.1"), False, {404, 414}),
    ("a request line of a megabyte", post(line=b"POST /" + b"a" * (1 << 20) + b" HTTP/1.1"), False, {414, 400}),
]

TARGETS = [
    # [9112] 3.2.2: the absolute form must be taken; [contract]: the path is everything after the host, as sent
    ("the absolute form", sized(BODY, line=b"POST http://localhost/gex HTTP/1.1"), False, {202, 404}),
    (
        "the absolute form of elsewhere",
        sized(BODY, line=b"POST http://elsewhere.example/nope HTTP/1.1"),
        False,
        {400, 404},
    ),
    (
        "the authority form",
        post(line=b"CONNECT elsewhere.example:443 HTTP/1.1", body=b""),
        False,
        {400, 405, 501},
    ),  # [stdlib]: 501
    ("the asterisk form", post(line=b"OPTIONS * HTTP/1.1", body=b""), False, {400, 404}),
    ("two slashes and a host", sized(BODY, line=b"POST //elsewhere.example/gex HTTP/1.1"), False, {404}),
    (
        "dots in the path",
        sized(BODY, line=b"POST /../../gex HTTP/1.1"),
        False,
        {404},
    ),  # [contract]: as sent, so unknown
    ("an encoded path", sized(BODY, line=b"POST /%67ex HTTP/1.1"), False, {404}),
    ("an encoded line end in the path", sized(BODY, line=b"POST /gex%0d%0aX-Injected:%20yes HTTP/1.1"), False, {404}),
    ("a fragment", sized(BODY, line=b"POST /gex#x HTTP/1.1"), False, {400, 404}),
    # [contract]: control characters and non-latin-1 text never reach the status line
    ("a NUL in the path", sized(BODY, line=b"POST /gex\0 HTTP/1.1"), False, {400, 404}),
    ("escape sequences in the path", sized(BODY, line=b"POST /\x1b[2J\x1b]0;owned\x07 HTTP/1.1"), False, {400, 404}),
    ("bytes beyond ASCII in the path", sized(BODY, line=b"POST /gex\xff\xfe HTTP/1.1"), False, {400, 404}),
    ("UTF-8 in the path", sized(BODY, line="POST /gex€ HTTP/1.1".encode()), False, {400, 404}),
    (
        "a next-line character in the path",
        sized(BODY, line=b"POST /gex\x85x HTTP/1.1"),
        False,
        {400, 404},
    ),  # str.split splits there
    ("no-break spaces for blanks", sized(BODY, line=b"POST\xa0/gex\xa0HTTP/1.1"), False, {400, 501}),  # and there
    ("tabs for blanks", sized(BODY, line=b"POST\t/gex\tHTTP/1.1"), False, {202, 400}),  # [9112] 3: may be taken
    ("many blanks", sized(BODY, line=b"POST    /gex    HTTP/1.1"), False, {202, 400}),
    # [stdlib]: a method without a handler is 501, with its name in the status line
    ("control characters in the method", sized(BODY, line=b"P\x01S\x1bT /gex HTTP/1.1"), False, {400, 501}),
    ("a NUL in the method", sized(BODY, line=b"POST\0 /gex HTTP/1.1"), False, {400, 501}),
    ("bytes beyond ASCII in the method", sized(BODY, line=b"P\xd6ST /gex HTTP/1.1"), False, {400, 501}),
    ("UTF-8 in the method", sized(BODY, line="P€ST /gex HTTP/1.1".encode()), False, {400, 501}),
    ("markup in the method", sized(BODY, line=b"<script>alert(1)</script> /gex HTTP/1.1"), False, {400, 501}),
    ("a method in lower case", sized(BODY, line=b"post /gex HTTP/1.1"), False, {400, 501}),
    ("a method that is an attribute's name", sized(BODY, line=b"__class__ /gex HTTP/1.1"), False, {400, 501}),
    ("a method of 5,000 letters", sized(BODY, line=b"A" * 5000 + b" /gex HTTP/1.1"), False, {400, 501}),
    ("a method of 70,000 letters", sized(BODY, line=b"A" * 70_000 + b" /gex HTTP/1.1"), False, {400, 414}),
]

HEADERS = [
    # [stdlib]: a line over 65,536 bytes and more than 100 headers are 431
    ("a header line over 64 KiB", sized(BODY, b"X-Long: " + b"a" * 65_536), False, {400, 431}),
    ("a header line over 64 KiB without an end", b"POST /gex HTTP/1.1\r\nX-Long: " + b"a" * 70_000, True, {400, 431}),
    ("a header name over 64 KiB", sized(BODY, b"a" * 65_536 + b": x"), False, {400, 431}),
    ("a thousand headers", sized(BODY, *(b"X-%d: y" % i for i in range(1000))), False, {400, 431}),
    ("a thousand times one header", sized(BODY, *[b"X: y"] * 1000), False, {400, 431}),
    (
        "three megabytes of headers",
        sized(BODY, *(b"X-%d: %s" % (i, b"a" * 60_000) for i in range(50))),
        False,
        {400, 413, 431},
    ),
    # [9112] 5.1: a blank before the colon must be refused
    ("a blank before the colon of the length", post(b"Content-Length : " + LENGTH), False, {400}),
    ("a blank before a colon", sized(BODY, b"X-A : b"), False, {400}),
    (
        "a blank before the colon of the coding",
        post(b"Transfer-Encoding : chunked", b"Content-Length: " + LENGTH),
        False,
        {400},
    ),
    ("a tab before a colon", sized(BODY, b"X-A\t: b"), False, {400}),
    # [9112] 5.2: a folded line must be refused or read as a blank
    ("a folded header", sized(BODY, b"X-A: b", b" c"), False, {202, 400}),
    ("a folded length", post(b"Content-Length:", b" " + LENGTH), False, {202, 400}),
    ("a length folded behind another header", post(b"X-A: b", b" Content-Length: " + LENGTH), False, {400}),
    (
        "a folded first header",
        b"POST /gex HTTP/1.1\r\n X-A: b\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY,
        False,
        {400},
    ),  # [9112] 2.2
    # [9112] 5: no header; http.server would drop all that follows it
    ("a header without a colon, then the length", sized(BODY, b"garbage"), False, {400}),
    ("the length, then a header without a colon", post(b"Content-Length: " + LENGTH, b"garbage"), False, {400}),
    (
        "a coding hidden behind a header without a colon",
        post(b"Content-Length: " + LENGTH, b"x", b"Transfer-Encoding: chunked"),
        False,
        {400},
    ),
    ("a header without a name", sized(BODY, b": x"), False, {400}),
    (
        "an mbox line among the headers",
        sized(BODY, b"From me"),
        False,
        {400},
    ),  # email.parser takes these for an envelope
    # [9110] 5.5: NUL, CR and LF in a value must be refused or read as a blank
    ("a NUL in a header", sized(BODY, b"X-A: b\0c"), False, {202, 400}),
    ("a NUL in a header's name", sized(BODY, b"X-\0A: b"), False, {400}),
    ("control characters in a header", sized(BODY, b"User-Agent: \x1b[2J\x07\x85"), False, {202, 400}),
    ("bytes beyond ASCII in a header", sized(BODY, b"User-Agent: \xff\xfe\x80"), False, {202, 400}),
    ("bytes beyond ASCII in a header's name", sized(BODY, b"X-\xc4: b"), False, {202, 400}),
    (
        "characters at which str.splitlines would split",
        sized(BODY, b"X-A: b\x0bContent-Length: 2\x0c\x1c\x1d\x1e\x85"),
        False,
        {202, 400},
    ),
    ("two hosts", sized(BODY, b"Host: elsewhere.example"), False, {202, 400}),  # [9112] 3.2: 400; the original took it
    ("an expectation", sized(BODY, b"Expect: 100-continue"), False, {202}),  # [stdlib], HTTP/1.0: not looked at
    ("an unknown expectation", sized(BODY, b"Expect: " + b"x" * 100), False, {202, 417}),
    ("an upgrade", sized(BODY, b"Connection: Upgrade", b"Upgrade: h2c, websocket"), False, {202}),
    (
        "a compressed body",
        post(b"Content-Encoding: gzip", b"Content-Length: 20", body=b"\x1f\x8b\x08" + b"\0" * 17),
        False,
        {400, 415},
    ),
]

ENVELOPE = b'{"ticker": "SPX", "kind": "majors", "data": {"x": %s}}'

BODIES = [
    # [contract]: not UTF-8 and deep nesting are a 400
    ("invalid UTF-8", sized(b'{"ticker": "\xff\xfe"}'), False, {400}),
    ("UTF-8 cut in a character", sized(b'{"ticker": "\xe2\x82"}'), False, {400}),
    ("overlong UTF-8", sized(b'{"ticker": "\xc0\xaf"}'), False, {400}),
    ("a surrogate in UTF-8", sized(b'{"ticker": "\xed\xa0\x80"}'), False, {400}),
    ("UTF-16 with a mark", sized(BODY.decode().encode("utf-16")), False, {400}),
    ("UTF-16 without a mark", sized(BODY.decode().encode("utf-16-le")), False, {400}),
    ("UTF-16, the other way round", sized(BODY.decode().encode("utf-16-be")), False, {400}),
    ("UTF-32", sized(BODY.decode().encode("utf-32-le")), False, {400}),
    ("latin-1", sized('{"ticker": "é", "kind": "majors", "data": {}}'.encode("latin-1")), False, {400}),
    ("a byte order mark", sized(b"\xef\xbb\xbf" + BODY), False, {202, 400}),  # RFC 8259, 8.1: may be ignored
    ("200,000 arrays", sized(b"[" * DEEP + b"]" * DEEP), False, {400}),
    ("200,000 arrays, left open", sized(b"[" * DEEP), False, {400}),
    ("200,000 objects", sized(b'{"a":' * DEEP + b"1" + b"}" * DEEP), False, {400}),
    ("200,000 objects, left open", sized(b'{"a":' * DEEP), False, {400}),
    ("200,000 arrays in a good envelope", sized(ENVELOPE % (b"[" * DEEP + b"]" * DEEP)), False, {400}),
    ("200,000 objects in a good envelope", sized(ENVELOPE % (b'{"a":' * DEEP + b"1" + b"}" * DEEP)), False, {400}),
    (
        "200,000 arrays for /uw",
        sized(b'{"topic": "x", "payload": ' + b"[" * DEEP + b"]" * DEEP + b"}", line=b"POST /uw HTTP/1.1"),
        False,
        {400},
    ),
    (
        "200,000 arrays for a history link",
        sized(
            b'{"url": ' + b"[" * DEEP + b"]" * DEEP + b', "ticker": "T", "kind": "k"}',
            line=b"POST /gex_history_url HTTP/1.1",
        ),
        False,
        {400},
    ),
    # int() refuses these; [rule] wants a 4xx, and nothing forbids taking them
    ("an integer of 5,000 digits", sized(ENVELOPE % (b"9" * 5000)), False, {202, 400}),
    ("only blanks for a body", sized(b" " * 1000), False, {400}),
    ("a NUL for a body", sized(b"\0"), False, {400}),
    ("NULs after the JSON", sized(BODY + b"\0\0"), False, {400}),
    ("JSON twice", sized(BODY + BODY), False, {400}),
    ("a form", sized(b"ticker=SPX&kind=majors", b"Content-Type: application/x-www-form-urlencoded"), False, {400}),
    (
        "line ends in a ticker that is refused",
        sized(b'{"ticker": 5, "kind": "a\\r\\nX-Injected: yes", "data": {}}'),
        False,
        {400},
    ),
]

# A TLS 1.2 ClientHello without extensions: record header, handshake header,
# version, random, session, one suite, compression.
CLIENT_HELLO = (
    b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03" + bytes(range(0x80, 0xA0)) + b"\x00\x00\x02\x00\x2f\x01\x00"
)

OTHER_PROTOCOLS = [
    # [rule]: a 4xx or a clean close; without a line end only the head's deadline can tell
    ("TLS on the plain port", CLIENT_HELLO, False, {400, 408, CLOSED}),
    ("TLS on the plain port, then the end", CLIENT_HELLO, True, {400, CLOSED}),
    ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", True, {400, CLOSED}),
    ("SMTP", b"EHLO elsewhere.example\r\nMAIL FROM:<a@b>\r\n", True, {400, CLOSED}),
    ("Redis", b"*1\r\n$4\r\nPING\r\n", True, {400, CLOSED}),
    ("a PROXY protocol line", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + sized(BODY), False, {400, CLOSED}),
    ("SOCKS5", b"\x05\x01\x00", True, {400, CLOSED}),
]

REQUESTS = LENGTHS + TRANSFER + LINES + TARGETS + HEADERS + BODIES + OTHER_PROTOCOLS
