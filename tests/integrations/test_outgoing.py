import gzip
import logging
import socket
import subprocess
import sys

import pytest

from data_pipeline.integrations import outgoing
from tests.helpers.web import Answer, Service, script

SECRET = "s3cr3t-key"


@pytest.fixture
def session():
    made = outgoing.session(f"Bearer {SECRET}", {"Accept": "application/json"})
    yield made
    made.close()


def get(session, url, limit=5, **more):
    return outgoing.call(session, "GET", url, limit, params={"key": SECRET}, **more)


def failure(session, answer, **more):
    with Service(script(answer)) as service, pytest.raises(outgoing.WebError) as caught:
        get(session, service.url, **more)
    return caught.value


def test_a_reply_comes_with_status_headers_and_body_and_the_header_was_sent(session):
    with Service(script(Answer({"a": 1}, 404, {"X-A": "b"}))) as service:
        reply = get(session, service.url)
    assert (reply.status, reply.headers["x-a"], reply.json()) == (404, "b", {"a": 1})
    assert service.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert service.requests[0].headers["Accept"] == "application/json"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"[1, 2, 3]"),
        Answer(b"[1, 2, 3]", manner="chunked"),
        Answer(gzip.compress(b"[1, 2, 3]"), headers={"Content-Encoding": "gzip"}),
        Answer(gzip.compress(b"[1, 2, 3]"), headers={"Content-Encoding": "gzip"}, manner="chunked"),
    ],
)
def test_a_body_is_whole_however_it_is_packed(session, answer):
    with Service(script(answer)) as service:
        assert get(session, service.url).json() == [1, 2, 3]


@pytest.mark.parametrize(
    "answer, text",
    [
        (Answer(manner="hang"), "no answer within 0.3 s"),
        (Answer(b"[", manner="drip"), "no answer within 0.3 s"),
        (Answer(b"[1, 2, 3, 4]", manner="half"), "the connection closed before the reply was whole"),
        (Answer(manner="close"), "the connection closed before the reply was whole"),
        (Answer(b"not gzip at all", headers={"Content-Encoding": "gzip"}), "DecodeError"),
        (Answer(b"", 302, {"Location": "/again"}), "TooManyRedirects"),
        (Answer(b"", 302, {"Location": "http://[/"}), "ValueError"),
    ],
)
def test_a_service_that_misbehaves_is_an_error_within_the_time_limit(session, answer, text):
    assert text in str(failure(session, answer, limit=0.3))


def test_a_body_over_the_limit_is_refused_also_when_it_is_packed_small(session):
    bomb = Answer(gzip.compress(b" " * 10**7), headers={"Content-Encoding": "gzip"})
    assert str(failure(session, bomb, max_bytes=10**6)) == "the reply has more than 1000000 bytes"


def test_no_exception_and_no_log_line_holds_the_key(session, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    caplog.set_level(logging.DEBUG)
    problems = [
        failure(session, answer, limit=0.3)
        for answer in (Answer(manner="hang"), Answer(manner="half"), Answer(manner="close"))
    ]
    for url in (dead, "http://no-such-host.invalid/", "http://[::1", "nothing"):
        with pytest.raises(outgoing.WebError) as caught:
            get(session, url)
        problems.append(caught.value)
    bad = outgoing.session(f"Bearer {SECRET}\r\nX: y", {})
    problems.append(failure(bad, Answer()))
    bad.close()
    assert "Connection refused" in str(problems[3])
    for problem in problems:
        assert SECRET not in str(problem) and SECRET not in repr(problem)
        assert problem.__cause__ is None and problem.__context__ is None
    assert SECRET not in caplog.text


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff", b"[" * 100_000, b'{"a": '])
def test_a_body_that_is_not_json_is_an_error(body):
    with pytest.raises(outgoing.WebError, match="^the reply is not JSON$"):
        outgoing.Reply(200, {}, body).json()


@pytest.mark.parametrize(
    "body, headers, seconds",
    [
        (b'{"retry_after": 0.25}', {"Retry-After": "9"}, 0.25),
        (b'{"retry_after": "2"}', {}, 2.0),
        (b"<html>", {"Retry-After": "9"}, 9.0),
        (b"[]", {"Retry-After": "9"}, 9.0),
        (b"{}", {}, 7.0),
        (b'{"retry_after": -1}', {}, 7.0),
        (b'{"retry_after": NaN}', {}, 7.0),
        (b'{"retry_after": [1]}', {}, 7.0),
        (b'{"retry_after": 1e300}', {}, outgoing.LONGEST_RETRY_AFTER),
        (b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 7.0),
    ],
)
def test_the_pause_of_a_429_is_the_one_named_or_the_default(body, headers, seconds):
    assert outgoing.Reply(429, headers, body).retry_after(7.0) == seconds


def test_nothing_heavy_is_imported_before_it_is_used():
    rooms = ("integrations.outgoing", "integrations.discord", "integrations.gexbot", "payloads.trades")
    modules = ", ".join(f"data_pipeline.{room}" for room in rooms)
    heavy = ("requests", "urllib3", "polars", "duckdb", "pyarrow")
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_redirect_to_another_server_does_not_take_the_header_along(session):
    with (
        Service(script(Answer({}))) as other,
        Service(script(Answer(b"", 302, {"Location": other.url + "/x"}))) as first,
    ):
        assert get(session, first.url).status == 200
    assert "Authorization" in first.requests[0].headers
    assert "Authorization" not in other.requests[0].headers and SECRET not in other.requests[0].path


def test_cookies_are_not_kept_and_a_netrc_file_does_not_replace_the_key(session, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Service(script(Answer({}, headers={"Set-Cookie": "a=b; Path=/"}))) as service:
        get(session, service.url), get(session, service.url)
    for request in service.requests:
        assert request.headers["Authorization"] == f"Bearer {SECRET}" and "Cookie" not in request.headers
