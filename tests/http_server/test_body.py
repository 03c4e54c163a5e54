"""Bodies as real clients send them, and as those who want to grow or hide one."""

import gzip
import json
import socket
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.http_server.body import LONGEST_LINE, MOST_TRAILERS, BadBody, Chunks, unpack
from tests.helpers.support import PATIENCE, RunningBridge, gex_payload, request, status_of

BODY = json.dumps(gex_payload()).encode()
CHUNKED = b"3\r\nabc\r\nA;x=1\r\n0123456789\r\n0 ;y\r\nTrailer: dropped\r\n\r\nnext"


def taken(raw: bytes, *cuts: int, most: int = 100) -> tuple[bool, bytes, bytes]:
    chunks, buffer, ended = Chunks(most), bytearray(b"HEAD"), False
    for start, end in zip([0, *cuts], [*cuts, len(raw)]):
        buffer += raw[start:end]
        ended = ended or chunks.take(buffer, 4)
    return ended, bytes(chunks.body), bytes(buffer[4:])


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=8).map(sorted))
def test_a_chunked_body_is_the_same_in_any_pieces(cuts):
    assert taken(CHUNKED, *cuts) == (True, b"abc0123456789", b"next")


@pytest.mark.parametrize(
    "raw",
    [
        *(
            size + b"\r\nabc\r\n0\r\n\r\n"
            for size in (b"", b"+3", b"0x3", b" 3", b"3 ", b"3_0", b"-3", b"000000003", b"g")
        ),
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3;\0\r\nabc\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"3;" + b"x" * LONGEST_LINE,
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * (MOST_TRAILERS // 6 + 1),
    ],
)
def test_a_chunk_that_two_readers_could_read_in_two_ways_is_refused(raw):
    with pytest.raises(BadBody) as refused:
        taken(raw)
    assert refused.value.status == 400


def test_chunks_are_refused_before_they_grow_over_the_limit():
    assert taken(b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n")[:2] == (True, b"x" * 100)
    for raw in (b"65\r\n", b"ffffffff\r\n", b"64\r\n" + b"x" * 100 + b"\r\n1\r\n"):
        with pytest.raises(BadBody) as refused:
            taken(raw)
        assert refused.value.status == 413


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


PACKED = [
    (b"gzip", gzip.compress(BODY)),
    (b"gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
    (b"x-gzip", gzip.compress(BODY)),
    (b"deflate", zlib.compress(BODY)),
    (b"deflate", raw_deflate(BODY)),
    (b"identity", BODY),
]


@pytest.mark.parametrize("coding, body", PACKED)
def test_a_packed_body_is_unpacked_up_to_the_limit(coding, body):
    assert unpack(body, coding, len(BODY)) == BODY
    if coding != b"identity":
        for wrong, status in ((body[:-1], 400), (body + b"x", 400), (b"{}", 400)):
            with pytest.raises(BadBody) as refused:
                unpack(wrong, coding, len(BODY))
            assert refused.value.status == status
        with pytest.raises(BadBody) as refused:
            unpack(body, coding, len(BODY) - 1)
        assert refused.value.status == 413


def test_a_bomb_costs_no_more_than_the_limit():
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BadBody):
            unpack(bomb, b"gzip", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with RunningBridge(tmp_path_factory.mktemp("bodies") / "data") as bridge:
        yield bridge


def test_the_server_takes_what_real_clients_send(running):
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    head = b"POST /gex HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status_of(running.send(head + chunked)) == 202
    for coding, body in PACKED:
        raw = request("/gex", body, headers=f"Content-Encoding: {coding.decode()}\r\n")
        assert status_of(running.send(raw)) == 202, coding
    assert running.post("/gex", b"\xef\xbb\xbf" + BODY) == 202
    assert status_of(running.send(request("http://127.0.0.1:8877/gex/", BODY))) == 202
    assert status_of(running.send(request("http://127.0.0.1:8877/gex?x", BODY))) == 404


def test_who_waits_for_100_continue_gets_it_at_once_and_only_where_the_body_is_wanted(running):
    def first_answer(length: int, body: bytes = b"") -> bytes:
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as client:
            client.sendall(b"POST /gex HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
            answer = client.recv(1000)
            client.sendall(body)
            return answer + client.recv(1000)

    assert first_answer(len(BODY), BODY).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 202 ")
    assert first_answer(5 << 20).startswith(b"HTTP/1.0 413 ")


def test_head_is_get_without_the_body_on_pages_alone(running):
    answer = running.send(b"HEAD /health HTTP/1.1\r\n\r\n")
    assert status_of(answer) == 200 and answer.endswith(b"\r\n\r\n")
    for path in (b"/gex", b"/uw", b"/gex_history_url"):
        answer = running.send(b"HEAD " + path + b" HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 501 Unsupported method ('HEAD')\r\n") and answer.endswith(b"\r\n\r\n")
