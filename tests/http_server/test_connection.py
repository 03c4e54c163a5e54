import socket
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.http_server import connection as connection_module
from data_pipeline.http_server import waiting_room
from data_pipeline.http_server.connection import Connection, Limits, Problem
from data_pipeline.http_server.waiting_room import WaitingRoom
from tests.helpers.support import PATIENCE, eventually

GET = b"GET /status HTTP/1.1\r\n\r\n"
ANSWER = bytes(range(256)) * 20_000  # more than any socket takes at once
BODY = b'{"ticker": "SPX"}\r\n\r\nmore'
HEAD = b"POST /gex HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    theirs.settimeout(PATIENCE)
    yield ours, theirs
    ours.close()
    theirs.close()


def received(*pieces: bytes, limits=Limits(), end=True) -> Connection:
    """A connection after a client has sent these pieces, each read on its own; `end`: and hung up."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE)
        connection = Connection(ours, ("127.0.0.1", 1), limits)
        for piece in pieces:
            if piece and not connection.ready:
                theirs.sendall(piece)
                left = len(piece)
                while left > 0 and not connection.ready:
                    before = len(connection._buffer)
                    connection.receive()
                    left -= len(connection._buffer) - before
        if end and not connection.ready:
            theirs.shutdown(socket.SHUT_WR)
            connection.receive()
        return connection


def outcome(connection):
    return connection.ready, connection.silent, connection.problem, connection.head, connection.body


def test_a_request_is_the_same_wherever_it_is_split():
    whole = HEAD + BODY
    expected = (True, False, None, HEAD, BODY)
    assert outcome(received(whole, end=False)) == expected
    for at in range(1, len(whole)):
        assert outcome(received(whole[:at], whole[at:], end=False)) == expected, at
    assert outcome(received(*(whole[n : n + 1] for n in range(len(whole))), end=False)) == expected


@given(st.lists(st.integers(1, len(HEAD + BODY)), max_size=6).map(sorted))
def test_a_request_is_the_same_in_any_pieces(cuts):
    whole = HEAD + BODY
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]
    assert outcome(received(*pieces, end=False)) == (True, False, None, HEAD, BODY)


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD.replace(b"\r\n", b"\n"),
        HEAD.replace(b"Host", b"X: \xff\r\nHost"),
        HEAD.replace(b"Content-Length: ", b"content-LENGTH:\t "),
    ],
)
def test_heads_as_clients_write_them(head):
    assert outcome(received(head + BODY, end=False)) == (True, False, None, head, BODY)


@pytest.mark.parametrize(
    "value, body",
    [
        (b"0", b""),
        (b"-5", b""),
        (b"5", BODY[:5]),
        (b" 5\t", BODY[:5]),
        (b"005", BODY[:5]),
        (b"5\r\nContent-Length: 5", BODY[:5]),
    ],
)
def test_the_body_is_as_long_as_the_head_says(value, body):
    connection = received(b"POST /gex HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % value + BODY, end=False)
    assert (connection.problem, connection.body) == (None, body)
    assert connection.has_unread


def test_without_a_length_there_is_no_body():
    connection = received(b"POST /gex HTTP/1.1\r\n\r\n", end=False)
    assert (connection.problem, connection.body, connection.has_unread) == (None, b"", False)


@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"PUT", b"post"])
def test_other_methods_have_no_body(method):
    connection = received(HEAD.replace(b"POST", method) + BODY, end=False)
    assert (connection.ready, connection.problem, connection.body) == (True, None, b"")


INVALID = Problem(400, "Invalid Content-Length")
MALFORMED = Problem(400, "Malformed request head")


@pytest.mark.parametrize(
    "lines, problem",
    [
        *(
            (b"Content-Length: " + value, INVALID)
            for value in (b"abc", b"", b"+2", b"1_0", b"1.0", b"0x10", b"5, 5", b"5 5", b"\xb2", b"--5", b"9" * 5000)
        ),
        *(
            (line, MALFORMED)
            for line in (
                b"Content-Length: 5\0",
                b"Content-Length:\r\n 5",
                b"Content-Length : 5",
                b"Content-Length: 5\r",
                b" Content-Length: 5",
                b"Transfer-Encoding : chunked",
                b"X: y\rContent-Length: 5",
                b"Content-Length",
                b": 5",
                b"X\xff: y",
            )
        ),
        (b"Content-Length: 5\r\nContent-Length: x", INVALID),
        (b"Content-Length: 5\r\nContent-Length: 6", Problem(400, "Conflicting Content-Length")),
        (b"Content-Length: 5\r\nX: y\r\ncontent-length: 0", Problem(400, "Conflicting Content-Length")),
        (b"Content-Length: 0\r\nContent-Length: -5", Problem(400, "Conflicting Content-Length")),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", Problem(400, "Conflicting Content-Length")),
        (
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Problem(400, "Transfer-Encoding is not supported"),
        ),
        (b"Transfer-Encoding: gzip, chunked", Problem(400, "Transfer-Encoding is not supported")),
        (b"Content-Length: 5\r\nContent-Encoding: br", Problem(415, "Content-Encoding is not supported")),
        (b"Content-Length: 5\r\ntransfer-encoding:", Problem(400, "Transfer-Encoding is not supported")),
        (b"Transfer-Encoding: identity", Problem(400, "Transfer-Encoding is not supported")),
        (b"Content-Length: 101", Problem(413, "Request body is too large")),
        (b"Content-Length: " + b"9" * 100, Problem(413, "Request body is too large")),
    ],
)
def test_a_wrong_framing_is_found_at_the_end_of_the_head_wherever_it_is_split(lines, problem):
    head = b"POST /gex HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\n"
    for at in {1, 20, len(head) // 2, *range(len(head) - 5, len(head) + 1)}:
        connection = received(head[:at], head[at:], limits=Limits(max_body=100), end=False)
        assert (connection.ready, connection.problem) == (True, problem)
        assert connection.has_unread and connection.head == head


def test_a_body_of_exactly_the_limit_is_taken():
    limits = Limits(max_body=len(BODY))
    assert received(HEAD + BODY, limits=limits, end=False).body == BODY


def test_a_header_in_the_body_or_in_a_value_frames_nothing():
    body = b"\r\nContent-Length: 3\r\n\r\n"
    head = b"POST /gex HTTP/1.1\r\nX: Content-Length: 7\r\nX-Content-Length: 9\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    assert received(head + body, end=False).body == body
    assert received(b"POST /Content-Length:5 HTTP/1.1\r\n\r\n", end=False).body == b""


@pytest.mark.parametrize(
    "sent, problem",
    [
        (HEAD[:30], Problem(400, "Request head is incomplete", True)),
        (HEAD[:-1], Problem(400, "Request head is incomplete", True)),
        (HEAD, Problem(400, "Request body is shorter than its Content-Length")),
        (HEAD + BODY[:-1], Problem(400, "Request body is shorter than its Content-Length")),
    ],
)
def test_a_request_cut_short_is_no_request(sent, problem):
    assert received(sent).problem == problem


def test_who_says_nothing_gets_no_answer():
    connection = received()
    assert (connection.ready, connection.silent, connection.problem) == (True, True, None)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"\r\n", b"GET /\r\n", b"hello\n", b"POST /" + b"x" * 65536])
def test_a_first_line_that_can_have_no_head_is_ready_at_once(sent):
    connection = received(sent, end=False)
    assert (connection.ready, connection.problem, connection.head) == (True, None, sent)


def test_a_head_beyond_the_limit_is_refused_whole_or_not():
    line = b"X: " + b"x" * 1021
    for end in (b"", b"\r\n\r\n"):
        head = b"POST / HTTP/1.1\r\n" + b"\r\n".join([line] * 300) + end
        connection = received(*(head[n : n + 50_000] for n in range(0, len(head), 50_000)), end=False)
        assert connection.problem == Problem(431, "Request head is too large", True)


@pytest.mark.parametrize("over", [0, 1])
def test_a_head_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(over):
    start, end = b"POST / HTTP/1.1\r\n", b"\r\n\r\n"
    lines = [b"X: " + b"x" * 1019] * 255
    room = connection_module.HEAD_LIMIT + over - len(start) - len(end) - sum(len(line) + 2 for line in lines)
    head = start + b"\r\n".join([*lines, b"X: " + b"x" * (room - 3)]) + end
    assert len(head) == connection_module.HEAD_LIMIT + over
    problem = Problem(431, "Request head is too large", True) if over else None
    connection = received(head[:200_000], head[200_000:], end=False)
    assert (connection.ready, connection.problem) == (True, problem)


def test_deadlines_have_a_word_for_head_and_body():
    connection = received(HEAD[:10], end=False)
    connection.expire()
    assert connection.problem == Problem(408, "Request head took too long", True)
    connection = received(HEAD + BODY[:1], end=False)
    connection.expire()
    assert connection.problem == Problem(408, "Request body took too long")
    connection = received(end=False)
    connection.expire()
    assert connection.silent and connection.problem is None


def test_the_body_has_its_own_deadline_from_the_end_of_the_head(pair):
    ours, theirs = pair
    connection = Connection(ours, ("127.0.0.1", 1), Limits(head_time=1000, body_time=50))
    before = connection.deadline
    theirs.sendall(HEAD)
    assert not connection.receive()
    assert connection.deadline < before


def test_memory_is_bounded_by_what_arrived_and_not_by_what_was_announced(pair):
    ours, theirs = pair
    connection = Connection(ours, ("127.0.0.1", 1), Limits(max_body=1 << 40))
    theirs.sendall(b"POST /gex HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (1 << 39))
    tracemalloc.start()
    try:
        connection.receive()
        for _ in range(20):
            theirs.sendall(b"x" * 1000)
            connection.receive()
        assert tracemalloc.get_traced_memory()[1] < 3 * connection_module.RECEIVE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_request_is_forgotten_while_its_answer_is_on_the_way(pair, more):
    ours, theirs = pair
    connection = Connection(ours, ("127.0.0.1", 1), Limits())
    theirs.sendall(HEAD + BODY + more)
    assert connection.receive() and not connection.send(ANSWER) and connection.linger()
    assert (connection.head, connection.body, connection.has_unread) == (more, b"", bool(more))


class Waiting:
    """A waiting_room, and what became ready in it."""

    def __init__(self, most=100):
        self.ready: list[Connection] = []
        self.waiting_room = WaitingRoom(most, self.ready.append)
        threading.Thread(target=self.waiting_room.run, daemon=True).start()
        self.clients: list[socket.socket] = []
        self.connections: list[Connection] = []

    def add(self, limits=Limits(), request=b"", answer=b"") -> socket.socket:
        """A client that has sent nothing yet, or this request, and was given what it took at once of this answer."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        connection = Connection(ours, ("127.0.0.1", len(self.clients)), limits)
        if request:
            theirs.sendall(request)
            assert connection.receive()
            assert not answer or not connection.send(answer), "some of it is left"
            assert connection.linger()
        self.clients.append(theirs)
        self.connections.append(connection)
        self.waiting_room.add(connection)
        return theirs

    def has_closed(self) -> bool:
        return all(connection.sock.fileno() == -1 for connection in self.connections)

    def close(self):
        assert self.waiting_room.stop(PATIENCE)
        for sock in self.clients + [connection.sock for connection in self.ready]:
            sock.close()


@pytest.fixture
def waiting():
    made = []

    def make(*args):
        made.append(Waiting(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_request_that_comes_in_drips_is_ready_when_it_is_whole(waiting):
    room = waiting()
    client, other = room.add(), room.add()
    for n in range(len(HEAD + BODY) - 1):
        client.sendall((HEAD + BODY)[n : n + 1])
    other.sendall(HEAD + BODY)
    eventually(lambda: room.ready)
    assert [c.address[1] for c in room.ready] == [1]
    client.sendall(BODY[-1:])
    eventually(lambda: len(room.ready) == 2)
    assert room.ready[1].body == BODY
    assert len(room.waiting_room) == 0


def test_a_slow_request_is_answered_at_its_total_deadline_however_it_drips(waiting):
    room = waiting()
    client = room.add(Limits(head_time=0.3))
    stopped = threading.Event()

    def drip():
        while not stopped.wait(0.02):
            client.sendall(b"P")

    dripping = threading.Thread(target=drip)
    dripping.start()
    eventually(lambda: room.ready)
    stopped.set()
    dripping.join(PATIENCE)
    assert room.ready[0].problem.status == 408


def test_over_the_most_the_oldest_is_refused(waiting):
    room = waiting(3)
    for _ in range(5):
        room.add()
    eventually(lambda: len(room.ready) == 2)
    assert [c.address[1] for c in room.ready] == [0, 1]
    assert {c.problem for c in room.ready} == {Problem(503, "Too many connections", True)}


def test_over_the_most_to_be_drained_the_oldest_is_closed_and_nobody_refused(waiting, monkeypatch):
    monkeypatch.setattr(waiting_room, "MOST_DRAINING", 2)
    monkeypatch.setattr(connection_module, "DRAIN_TIME", 2 * PATIENCE)
    room = waiting(1)
    room.add()
    drained = [room.add(request=GET + b"more") for _ in range(4)]
    assert [client.recv(1) for client in drained[:2]] == [b"", b""]
    assert (len(room.waiting_room), room.ready) == (3, [])


def test_a_request_that_comes_as_the_room_is_filled_is_taken(waiting):
    room, gate = waiting(2), threading.Event()

    def on_ready(connection):
        room.ready.append(connection)
        assert gate.wait(PATIENCE)

    room.waiting_room.on_ready = on_ready
    first, client = room.add(), room.add()
    first.sendall(HEAD + BODY)
    eventually(lambda: room.ready)
    # The room is busy with the first; when it looks again, all this has happened.
    last = [room.add(), room.add()]
    client.sendall(HEAD + BODY)
    gate.set()
    eventually(lambda: len(room.ready) == 2)
    assert (room.ready[1].address[1], room.ready[1].problem) == (1, None)
    for client in last:
        client.sendall(HEAD + BODY)
    eventually(lambda: len(room.ready) == 4)


def test_a_request_that_cannot_be_handed_over_ends_alone(waiting):
    room = waiting()
    taken = room.waiting_room.on_ready

    def on_ready(connection):
        room.waiting_room.on_ready = taken
        raise RuntimeError("can't start new thread")

    room.waiting_room.on_ready = on_ready
    first, second = room.add(), room.add()
    first.sendall(HEAD + BODY)
    assert first.recv(1) == b"", "closed"
    second.sendall(HEAD + BODY)
    eventually(lambda: room.ready)
    assert room.ready[0].problem is None


def test_the_largest_unfinished_request_is_refused_when_all_together_are_too_large(waiting, monkeypatch):
    monkeypatch.setattr(waiting_room, "MOST_RECEIVED", 10_000)
    room = waiting()
    large, small = room.add(), room.add()
    head = b"POST /gex HTTP/1.1\r\nContent-Length: 9000\r\n\r\n"
    small.sendall(head + b"x" * 3000)
    large.sendall(head + b"x" * 8000)
    eventually(lambda: room.ready)
    assert (room.ready[0].address[1], room.ready[0].problem.status) == (0, 503)
    small.sendall(b"x" * 6000)
    eventually(lambda: len(room.ready) == 2)
    assert (room.ready[1].address[1], room.ready[1].problem) == (1, None)
    assert room.waiting_room._received == 0


def test_who_leaves_without_a_word_is_forgotten(waiting):
    room = waiting()
    room.add().close()
    eventually(lambda: len(room.waiting_room) == 0)
    silent = room.add(Limits(head_time=0.1))
    assert silent.recv(1) == b"", "closed at its deadline"
    assert room.ready == []


def test_a_client_that_was_answered_early_is_drained_and_closed(waiting):
    room = waiting()
    client = room.add(request=GET + b"more")
    client.sendall(b"x" * 100_000)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    endless = room.add(request=GET + b"more")
    with pytest.raises(OSError):
        while True:
            endless.sendall(b"x" * 10_000)
    assert room.ready == []


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def test_an_answer_that_is_not_taken_at_once_goes_out_as_the_client_reads(waiting):
    room = waiting()
    clients = [room.add(request=GET, answer=ANSWER) for _ in range(3)]
    assert [read_all(client) == ANSWER for client in clients] == [True] * 3
    eventually(room.has_closed)
    assert room.ready == []


def test_who_sent_more_than_a_request_is_drained_after_its_answer(waiting):
    room = waiting()
    client = room.add(request=GET + b"more", answer=ANSWER)
    assert read_all(client) == ANSWER
    client.sendall(b"x" * 1_000_000)
    client.shutdown(socket.SHUT_WR)
    eventually(room.has_closed)
    assert room.ready == []


@pytest.mark.parametrize("more", [b"", b"more"])
def test_who_does_not_take_its_answer_in_time_is_closed_however_it_trickles(waiting, monkeypatch, more):
    monkeypatch.setattr(connection_module, "SEND_TIME", 0.3)
    room = waiting()
    client = room.add(Limits(head_time=2 * PATIENCE), request=GET + more, answer=ANSWER)
    trickled = []
    eventually(lambda: trickled.append(client.recv(1000)) or room.has_closed())
    assert len(b"".join(trickled) + read_all(client)) < len(ANSWER)
    assert room.ready == []


def test_who_goes_away_before_its_answer_is_forgotten(waiting):
    room = waiting()
    room.add(request=GET, answer=ANSWER).close()
    eventually(room.has_closed)
    assert room.ready == []


def test_over_the_most_an_answer_that_is_not_taken_is_given_up_like_a_request(waiting):
    room = waiting(2)
    clients = [room.add(request=GET, answer=ANSWER), room.add(), room.add(request=GET, answer=ANSWER), room.add()]
    eventually(lambda: room.ready)
    assert [c.address[1] for c in room.ready] == [1]
    assert len(read_all(clients[0])) < len(ANSWER)
    assert read_all(clients[2]) == ANSWER


def test_answers_that_are_not_taken_have_a_limit_of_memory_and_the_newest_stays(waiting, monkeypatch):
    monkeypatch.setattr(waiting_room, "MOST_UNSENT", int(2.5 * len(ANSWER)))
    room = waiting()
    asking = room.add()
    clients = [room.add(request=GET, answer=ANSWER) for _ in range(4)]
    last = room.add(request=GET, answer=3 * ANSWER)
    assert [len(read_all(client)) < len(ANSWER) for client in clients] == [True] * 4
    assert read_all(last) == 3 * ANSWER
    asking.sendall(HEAD + BODY)
    eventually(lambda: room.ready)
    assert room.ready[0].body == BODY


def test_stop_waits_for_answers_that_are_being_taken_and_for_no_others(waiting):
    room = waiting()
    silent, client = room.add(), room.add(request=GET, answer=ANSWER)
    stopping = ThreadPoolExecutor(1).submit(room.waiting_room.stop, PATIENCE)
    assert read_all(client) == ANSWER
    assert silent.recv(1) == b""
    assert stopping.result() and room.waiting_room.sending == 0


def test_stop_has_an_end_where_an_answer_is_not_taken(waiting):
    room = waiting()
    client = room.add(request=GET, answer=ANSWER)
    assert room.waiting_room.stop(0.1) and room.waiting_room.sending == 1
    assert len(read_all(client)) < len(ANSWER)


def test_stop_closes_who_still_waits_and_who_comes_after(waiting):
    room = waiting()
    before = room.add()
    eventually(lambda: len(room.waiting_room) == 1)
    assert room.waiting_room.stop(PATIENCE)
    after = room.add()
    assert (before.recv(1), after.recv(1)) == (b"", b"")
    assert room.waiting_room.stop(PATIENCE)
