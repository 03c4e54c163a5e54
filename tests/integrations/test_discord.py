import json
import logging
import pathlib
import threading
import time

import pytest

from data_pipeline import config
from data_pipeline.integrations import discord
from data_pipeline.integrations.discord import LIMIT, Discord, confirmation, fit, message_text
from data_pipeline.payloads.trades import TOPIC
from tests.helpers.support import eventually
from tests.helpers.web import Answer, Service, script

RECORDINGS = pathlib.Path(__file__).parents[1] / "recordings"
TOKEN = "T0KEN-t0ken"
API = "https://discord.com/api/v10"


def lines(name):
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


def payload_of(name):
    (request,) = [case["request"] for case in lines("requests.jsonl") if case["name"] == name]
    return json.loads(request.split("\r\n\r\n", 1)[1].encode("latin-1"))


RECORDED = [case for case in lines("discord.jsonl") if "name" in case]
FORMATS = [case for case in lines("discord.jsonl") if "format" in case]


def trade(**more):
    return {"topic": TOPIC, "symbol": "SPX", "side": "buy", "quantity": 4, "price": 1.5, **more}


def ok(request):
    """As Discord answers: a channel of a user, or the message."""
    return Answer({"id": "333"} if request.path.endswith("/users/@me/channels") else {"id": "1", "content": "…"})


@pytest.fixture
def talk():
    """talk(answer, **Discord's arguments): a service and a Discord that posts to it, both ended after the test."""
    made = []

    def make(answer=ok, **arguments):
        service = Service(answer).__enter__()
        it = Discord(**{"token": TOKEN, "channel_id": "111", "api_url": service.url, "pause": 0.01, **arguments})
        made.append((service, it))
        it.start()
        return service, it

    yield make
    for service, it in made:
        it.stop(0)
        service.__exit__()
        if it._thread.ident:
            it._thread.join(10)
            assert not it._thread.is_alive()


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_recorded_payloads_make_the_recorded_requests(case, talk):
    service, it = talk(token="TOKEN", dm_user_id="222")
    payload = payload_of(case["name"])
    if payload.get("topic") == TOPIC:  # the bridge sends no others
        it.send(payload)
    assert it.stop(5)
    assert len(service.requests) == len(case["posts"])
    for got, recorded in zip(service.requests, case["posts"]):
        assert got.method == "POST" and API + got.path == recorded["url"]
        assert {name: got.headers.get(name) for name in recorded["headers"]} == recorded["headers"]
        assert set(got.headers) == {
            *recorded["headers"],
            "Host",
            "User-Agent",
            "Accept",
            "Accept-Encoding",
            "Connection",
            "Content-Length",
        }
        assert got.body == json.dumps(recorded["json"]).encode(), "as requests.post(json=…) writes it"


@pytest.mark.parametrize("case", FORMATS, ids=["trade", "empty trade", "any"])
def test_recorded_formats_make_the_recorded_texts(case):
    assert message_text(case["format"]) == case["content"]


@pytest.mark.parametrize(
    "wrong", [{"alert": "x", "executions": "y"}, {"alert": {"price": "z", "strike": [1]}, "executions": [1, {}]}]
)
def test_a_trade_with_fields_of_any_type_still_makes_a_text(wrong):
    assert message_text({"type": "discord_trade_execution", **wrong}).startswith("🤖 **Trade Executed by Unknown**\n")


@pytest.mark.parametrize("extra", range(-2, 12))
def test_a_message_is_cut_to_2000_characters_and_its_fence_is_closed(extra):
    bare = len(message_text({"t": ""}))
    text = message_text({"t": "x" * (LIMIT - bare + extra)})
    assert len(text) == min(LIMIT, LIMIT + extra)
    assert text.count("```") == 2 and text.endswith("\n```")


@pytest.mark.parametrize(
    "text", ["x" * 1994 + "```" + "y" * 50, "`" * 2500, "``` " * 700, "```\n" + "é" * 3000, "🔔" * 2001]
)
def test_no_cut_leaves_a_fence_open(text):
    cut = fit(text)
    assert len(cut) <= LIMIT and cut.count("```") % 2 == 0


def test_backticks_in_a_payload_cannot_end_the_fence():
    text = message_text({"a": "``` @everyone", "````": "`" * 7})
    assert text.count("```") == 2
    assert json.loads(text.split("```")[1]) == {"a": "``` @everyone", "````": "`" * 7}


def test_a_payload_of_megabytes_or_of_great_depth_costs_no_more_than_a_message():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    wide = {str(n): n for n in range(10**6)}
    for value in (deep, wide, ["x" * 10**7]):
        text = message_text({"v": value})
        assert len(text) == LIMIT and text.endswith("\n```")
    while deep:  # a list so deep must be taken apart by hand
        (deep,) = deep


def test_429_is_obeyed_and_the_message_is_delivered_once(talk):
    limited = Answer({"message": "You are being rate limited.", "retry_after": 0.4, "global": False}, 429)
    service, it = talk(script(limited, Answer({"id": "1"})))
    it.send(trade())
    first, second = service.wait_for(2)
    assert second.at - first.at >= 0.4 and first.body == second.body
    assert it.stop(5) and len(service.requests) == 2 and it.stats()["delivered"] == 1


def test_500_and_broken_connections_are_tried_again_with_growing_pauses(talk):
    service, it = talk(
        script(Answer(b"", 500), Answer(manner="close"), Answer(b"xx", 502, {}, "half"), Answer({})), pause=0.05
    )
    it.send(trade())
    times = [request.at for request in service.wait_for(4)]
    for (a, b), least in zip(zip(times, times[1:]), (0.05, 0.1, 0.2)):
        assert b - a >= least
    assert it.stop(5) and it.stats() == {"queued": 0, "delivered": 1, "failed": 0, "dropped": 0, "refused": 0}


def test_a_message_that_cannot_be_delivered_is_logged_without_the_token_and_the_next_one_is_sent(talk, caplog):
    answers = [Answer(b"no", 500)] * discord.ATTEMPTS + [Answer({})]
    service, it = talk(script(*answers))
    it.send(trade(symbol="FIRST"))
    it.send(trade(symbol="SECOND\n2020-01-01 INFO forged"))
    assert it.stop(10)
    assert it.stats()["delivered"] == 1 and it.stats()["failed"] == 1
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "not delivered (HTTP 500, 5 attempts)" in record.getMessage() and "FIRST" in record.getMessage()
    assert TOKEN not in caplog.text and "\n" not in record.getMessage()


@pytest.mark.parametrize("status", [400, 404, 302])
def test_other_refusals_are_not_tried_again(talk, status):
    service, it = talk(script(Answer(b"", status, {"Location": "/x"}), Answer({})))
    it.send(trade())
    it.send(trade())
    assert it.stop(5) and len(service.requests) == 2
    assert it.stats()["failed"] == 1 and it.stats()["delivered"] == 1


@pytest.mark.parametrize("status", [401, 403])
def test_401_and_403_stop_everything_with_one_error(talk, caplog, status):
    held = threading.Event()

    def answer(request):
        held.wait(10)
        return Answer({"message": "no", "code": 0}, status)

    service, it = talk(answer, dm_user_id="222")
    for _ in range(3):
        it.send(trade())
    held.set()
    eventually(lambda: it.stats()["refused"])
    it._thread.join(10)
    it.send(trade())
    assert it.stop(1) and len(service.requests) == 1
    assert it.stats() == {"queued": 0, "delivered": 0, "failed": 1, "dropped": 3, "refused": 1}
    errors = [r.getMessage() for r in caplog.records if "refuses the bot token or the channel" in r.getMessage()]
    assert errors == [
        f"Discord refuses the bot token or the channel (HTTP {status}): no messages are sent until restart"
    ]
    assert TOKEN not in caplog.text


def test_a_user_who_takes_no_direct_messages_costs_the_channel_nothing(talk, caplog):
    service, it = talk(lambda r: ok(r) if "111" in r.path else Answer({"code": 50007}, 403), dm_user_id="222")
    it.send(trade())
    it.send(trade())
    assert it.stop(5)
    assert [r.path for r in service.requests] == [
        "/channels/111/messages",
        "/users/@me/channels",
        "/channels/111/messages",
    ]
    assert it.stats()["delivered"] == 2
    assert caplog.text.count("refuses direct messages") == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b"null"])
def test_a_channel_that_is_not_named_is_logged(talk, caplog, body):
    service, it = talk(lambda r: Answer(body) if "users" in r.path else ok(r), dm_user_id="222")
    it.send(trade())
    assert it.stop(5) and len(service.requests) == 2
    assert "direct message not delivered (the reply names no channel)" in caplog.text


def test_a_channel_id_from_outside_cannot_change_the_path(talk):
    service, it = talk(lambda r: Answer({"id": "../x?y"}) if "users" in r.path else ok(r), dm_user_id="222")
    it.send(trade())
    assert it.stop(5)
    assert service.requests[-1].path == "/channels/..%2Fx%3Fy/messages"


def test_send_does_not_wait_for_a_discord_that_hangs_and_what_is_too_much_is_counted_and_logged(
    talk, caplog, monkeypatch
):
    monkeypatch.setattr(discord, "QUEUE_SIZE", 20)
    monkeypatch.setattr(discord, "DROPS_A_LINE", 10)
    service, it = talk(script(Answer(manner="hang")))
    it.send(trade())
    service.wait_for(1)
    longest = 0.0
    for _ in range(50):
        began = time.monotonic()
        it.send(trade())
        longest = max(longest, time.monotonic() - began)
    assert longest < discord.CHANNEL_TIME / 2, "not one of them waited for the request that hangs"
    assert it.stats() == {"queued": 20, "delivered": 0, "failed": 0, "dropped": 30, "refused": 0}
    assert caplog.text.count("message dropped, the queue is full") == 3 and "(21 so far)" in caplog.text


def test_stop_meets_its_deadline_while_a_request_hangs_and_logs_what_is_left(talk, caplog):
    service, it = talk(script(Answer(manner="hang")))
    it.send(trade(symbol="HANGING"))
    it.send(trade(symbol="WAITING"))
    service.wait_for(1)
    began = time.monotonic()
    assert it.stop(0.3) is False
    assert time.monotonic() - began < discord.CHANNEL_TIME / 2
    left = [r.getMessage() for r in caplog.records if "the bridge stopped before" in r.getMessage()]
    assert len(left) == 2 and "HANGING" in left[0] and "WAITING" in left[1]
    assert it.stats()["failed"] == 2


def test_a_message_that_arrived_is_not_called_lost_because_the_direct_message_hangs(talk, caplog):
    service, it = talk(lambda r: Answer(manner="hang") if "users" in r.path else ok(r), dm_user_id="222")
    it.send(trade())
    service.wait_for(2)
    assert it.stop(0.1) is False
    assert it.stats()["delivered"] == 1 and it.stats()["failed"] == 0 and "not delivered" not in caplog.text


def test_a_message_that_stop_gave_up_is_logged_once_though_its_request_ends_later(talk, caplog):
    go = threading.Event()

    def answer(request):
        go.wait(10)
        return Answer(b"", 404)

    service, it = talk(answer)
    it.send(trade())
    eventually(lambda: it.stats()["queued"] == 0)
    assert it.stop(0.1) is False
    go.set()
    it._thread.join(10)
    assert caplog.text.count("not delivered") == 1 and it.stats()["failed"] == 1


def test_stop_does_not_sit_out_a_pause_longer_than_its_time(talk, caplog):
    service, it = talk(script(Answer({"retry_after": 3000}, 429)))
    it.send(trade())
    service.wait_for(1)
    assert it.stop(5) is True
    assert "HTTP 429, and no time to try again" in caplog.text


def test_what_is_queued_at_the_end_is_still_delivered(talk):
    service, it = talk()
    for n in range(30):
        it.send(trade(quantity=n))
    assert it.stop(10) is True
    assert len(service.requests) == 30 and it.stats()["delivered"] == 30
    it.send(trade())
    assert it.stats()["queued"] == 0 and it.stats()["dropped"] == 1, "after the end nothing is taken"


@pytest.mark.parametrize(
    "missing, text",
    [
        ({"token": ""}, "DISCORD_BOT_TOKEN not set"),
        ({"channel_id": ""}, "ALT_CHANNEL_OPTION_TRADES and DISCORD_CHANNEL_ID not set"),
    ],
)
def test_without_token_or_channel_there_is_a_warning_and_no_thread(talk, caplog, missing, text):
    caplog.set_level(logging.WARNING)
    service, it = talk(**missing)
    it.send(trade())
    assert text in caplog.text and not it._thread.is_alive()
    assert it.stop(1) and service.requests == []


def test_a_token_that_fits_no_header_is_not_logged(talk, caplog):
    service, it = talk(token=f"{TOKEN}\nX: y")
    it.send(trade())
    assert it.stop(5) and service.requests == []
    assert "not delivered" in caplog.text and TOKEN not in caplog.text


def test_a_trade_that_makes_no_row_makes_no_message(talk):
    service, it = talk()
    it.send({"topic": TOPIC, "alert": "buy now"})
    assert confirmation({"topic": TOPIC, "side": 5}) is None
    assert it.stop(5) and service.requests == []


def test_a_surrogate_in_a_payload_is_no_obstacle(talk):
    service, it = talk()
    it.send(trade(symbol="\ud800"))
    assert it.stop(5)
    assert "qty 4" in service.requests[0].json()["content"]


def test_the_token_may_stand_in_the_env_file_of_the_bot_and_the_environment_goes_first(tmp_path):
    (tmp_path / "discord-bot").mkdir()
    (tmp_path / "discord-bot" / ".env").write_text("DISCORD_BOT_TOKEN=from-the-bot\nDISCORD_CHANNEL_ID=9\n")
    settings = config.load(root=tmp_path, environ={})
    assert settings.discord_bot_token == "from-the-bot" and settings.discord_channel_id == ""
    assert config.load(root=tmp_path, environ={"DISCORD_BOT_TOKEN": "mine"}).discord_bot_token == "mine"
