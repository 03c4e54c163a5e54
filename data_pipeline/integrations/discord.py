"""Discord: what is said about a payload, and the thread that says it.

Nothing here waits in a request: `Discord.send` puts a text of at most 2,000
characters into a bounded queue.  API: https://discord.com/developers/docs.
"""

import collections
import itertools
import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from data_pipeline.integrations import outgoing
from data_pipeline.payloads.trades import TOPIC, option_trade, to_float

if TYPE_CHECKING:
    import requests

LIMIT = 2000  # characters a message may have
QUEUE_SIZE = 1000  # messages that wait; with LIMIT at most 8 MB
DROPS_A_LINE = 100  # messages dropped for one line in the log
ATTEMPTS = 5
LONGEST_PAUSE = 60.0  # seconds between two attempts, unless Discord names its own
CHANNEL_TIME, DM_TIME = 10, 5  # seconds a request may take
FENCE = "```"

log = logging.getLogger("webhook")


def confirmation(payload: dict[str, Any]) -> dict[str, Any] | None:
    """The proposal that is posted for an option trade; None where the payload makes no trade."""
    trade = option_trade(payload)
    if trade is None:
        return None
    quantity = trade["quantity"]
    half = None if quantity is None else max(1, quantity // 2)
    price = trade["execution_price"] or trade["price"] or 0.0
    message = (
        f"🔔 CONFIRM PROPOSAL — {trade['symbol'] or 'UNKNOWN'} {trade['side'] or 'UNKNOWN'} qty {quantity}"
        f" -> propose half {half} LMT @ ${price:.2f}"
    )
    return {"type": "confirmation", "message": message, "raw": payload}


def message_text(message: dict[str, Any]) -> str:
    """The text posted to the channel: trades in words, everything else as JSON in a code fence."""
    if message.get("type") == "discord_trade_execution":
        return fit(_trade_text(message))
    return fit(f"🔔 **Webhook Received**\n{FENCE}\n{_start_of_json(message)}\n{FENCE}")


def short_text(message: dict[str, Any]) -> str:
    """The line sent as a direct message."""
    return fit(f"[Bridge] New webhook: {message.get('type', 'unknown')}\nSummary: {message.get('summary', '')}")


def fit(text: str) -> str:
    """Cut to the 2,000 characters of a message; a code fence that the cut left open is closed."""
    if len(text) <= LIMIT:
        return text
    closing = "\n" + FENCE
    cut = text[: LIMIT - len(closing)]
    return cut + closing if cut.count(FENCE) % 2 else cut


def _start_of_json(value: object) -> str:
    """As much of the indented JSON as a message can show: a payload of megabytes costs no more than a small one.

    Three backticks in it would end the code fence, and what follows could
    then mention @everyone; the third is written as JSON's escape.
    """
    parts, size = [], 0
    for part in json.JSONEncoder(indent=2).iterencode(value):
        parts.append(part[:LIMIT])
        size += len(part)
        if size > LIMIT:
            break
    return "".join(parts).replace(FENCE, "``\\u0060")


def _trade_text(message: dict[str, Any]) -> str:
    alert = message.get("alert")
    alert = alert if isinstance(alert, dict) else {}
    executions = message.get("executions")
    line = f"**{alert.get('action') or 'UNKNOWN'} {alert.get('symbol') or 'UNKNOWN'}**"
    if alert.get("strike"):
        line += f" ${alert['strike']}{alert.get('option_type') or ''}"
    if alert.get("expiration"):
        line += f" exp {str(alert['expiration'])[:10]}"
    text = f"🤖 **Trade Executed by {message.get('username') or 'Unknown'}**\n"
    text += f"{line} @ ${to_float(alert.get('price')) or 0.0:.2f}\n\n"
    # A hundred lines are more than a message can hold.
    for one in itertools.islice(executions if isinstance(executions, list) else (), 100):
        if isinstance(one, dict):
            kind = "🟡 DRY RUN" if one.get("dry_run") else "🔴 LIVE ORDER"
            text += f"✅ **{one.get('broker') or 'Unknown'}**: {one.get('quantity') or 0} contracts {kind}\n"
    return text


class _Message(NamedTuple):
    text: str
    short: str


class _NotDelivered(Exception):
    """Why one request came to nothing; the text never holds the token."""


class _Forbidden(_NotDelivered):
    """Discord answered 401 or 403: trying again is of no use."""


class Discord:
    """Posts messages to a channel, and a line to a user, on a thread of its own.

    token, channel_id: without either nothing is posted, and each message is
    a warning in the log; dm_user_id: empty for no direct messages; pause:
    seconds before the second attempt, doubled for each further one.
    """

    def __init__(
        self,
        token: str,
        channel_id: str,
        dm_user_id: str = "",
        api_url: str = "https://discord.com/api/v10",
        pause: float = 1.0,
    ):
        self._token, self._channel_id, self._dm_user_id, self._api_url = token, channel_id, dm_user_id, api_url
        self._first_pause = pause
        self._thread = threading.Thread(target=self._run, name="Discord", daemon=True)
        # Guards everything below; notified when a message comes and when stop is called.
        self._changed = threading.Condition()
        self._waiting: collections.deque[_Message] = collections.deque()
        self._in_hand: _Message | None = None  # taken from `_waiting`, and not known to be delivered or to have failed
        self._deadline: float | None = None  # monotonic; set by stop
        self._counts = {"delivered": 0, "failed": 0, "dropped": 0}
        self._refused = False

    def start(self) -> None:
        """Begin to deliver, where there is a token and a channel.  Raises RuntimeError where there is no thread."""
        if self._token and self._channel_id:
            self._thread.start()

    def send(self, payload: dict[str, Any]) -> None:
        """Queue what is to be said about a payload; never blocks, never raises.

        For an option trade that is its confirmation (nothing where it makes no
        row), else the payload itself.  A `discord_trade_execution` is posted as
        Discord's markdown, mentions and all, so none that a client made should
        come here.
        """
        try:
            message = confirmation(payload) if payload.get("topic") == TOPIC else payload
            if message is None or not self._takes():
                return
            texts = _Message(message_text(message), short_text(message))
        except Exception:
            log.exception("no Discord message could be made of a payload")
            return
        with self._changed:
            self._waiting.append(texts)
            self._changed.notify_all()

    def _takes(self) -> bool:
        """Whether there is use and room for a message; if not, it is counted and logged.

        Asked before the text is made, as that is what costs; so a few more
        than QUEUE_SIZE may wait, at most one for each thread that sends.
        """
        if not self._token:
            log.warning("DISCORD_BOT_TOKEN not set; Discord message not sent")
            return False
        if not self._channel_id:
            log.warning("ALT_CHANNEL_OPTION_TRADES and DISCORD_CHANNEL_ID not set; Discord message not sent")
            return False
        with self._changed:
            if len(self._waiting) < QUEUE_SIZE and not self._refused and self._deadline is None:
                return True
            self._counts["dropped"] += 1
            dropped = self._counts["dropped"]
        # A refusal has been logged; a flood of payloads must not become a flood of warnings.
        if not self._refused and dropped % DROPS_A_LINE == 1:
            why = "the queue is full" if self._deadline is None else "the bridge stops"
            log.warning("Discord message dropped, %s (%d so far)", why, dropped)
        return False

    def stop(self, timeout: float) -> bool:
        """Deliver what is queued for up to `timeout` seconds; True if the thread has ended by then.

        What is left is logged, message by message.
        """
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        with self._changed:
            left = ([self._in_hand] if self._in_hand else []) + list(self._waiting)
            self._in_hand = None
            self._waiting.clear()
            self._counts["failed"] += len(left)
        for message in left:
            self._log_failed(message, "the bridge stopped before")
        return not self._thread.is_alive()

    def stats(self) -> dict[str, int]:
        """queued, delivered, failed, dropped: messages; refused: 1 once Discord refused the token or the channel."""
        with self._changed:
            return {"queued": len(self._waiting), **self._counts, "refused": int(self._refused)}

    def _run(self) -> None:
        session = outgoing.session(f"Bot {self._token}", {"Content-Type": "application/json"})
        try:
            while (message := self._next()) is not None:
                try:
                    self._deliver(session, message)
                except Exception:
                    log.exception("a Discord message could not be delivered")
                    self._done("failed")
        finally:
            session.close()

    def _next(self) -> _Message | None:
        """The next message; None when there is no more to do."""
        with self._changed:
            while not self._waiting and self._deadline is None and not self._refused:
                self._changed.wait()
            if self._refused or not self._waiting or self._too_late(0):
                return None
            self._in_hand = self._waiting.popleft()
            return self._in_hand

    def _deliver(self, session: "requests.Session", message: _Message) -> None:
        try:
            self._post(session, self._messages_of(self._channel_id), {"content": message.text}, CHANNEL_TIME)
            self._done("delivered")
        except _NotDelivered as problem:
            if self._done("failed"):
                self._log_failed(message, problem)
            if isinstance(problem, _Forbidden):
                return self._give_up(problem)
        if self._dm_user_id and not self._too_late(0):
            self._deliver_short(session, message.short)

    def _deliver_short(self, session: "requests.Session", text: str) -> None:
        try:
            opened = self._post(session, "/users/@me/channels", {"recipient_id": self._dm_user_id}, DM_TIME)
            try:
                channel = opened.json()["id"]
            except (outgoing.WebError, LookupError, TypeError):
                raise _NotDelivered("the reply names no channel") from None
            self._post(session, self._messages_of(str(channel)), {"content": text}, DM_TIME)
        except _Forbidden as problem:
            # A user may refuse direct messages; the channel still takes what it took.
            log.error("Discord refuses direct messages to that user (%s): none are sent until restart", problem)
            self._dm_user_id = ""
        except _NotDelivered as problem:
            log.error("Discord direct message not delivered (%s): %s", problem, ascii(text))

    @staticmethod
    def _messages_of(channel: str) -> str:
        return f"/channels/{quote(channel, safe='')}/messages"

    def _post(self, session: "requests.Session", path: str, body: dict[str, str], time_limit: float) -> outgoing.Reply:
        """POST until Discord takes it; raises _NotDelivered, or _Forbidden for 401 and 403."""
        pause = self._first_pause
        for attempt in range(1, ATTEMPTS + 1):
            wait, pause = pause, min(pause * 2, LONGEST_PAUSE)
            try:
                reply = outgoing.call(
                    session, "POST", self._api_url + path, time_limit, json=body, allow_redirects=False
                )
            except outgoing.WebError as problem:
                reason = str(problem)
            else:
                if 200 <= reply.status < 300:
                    return reply
                reason = f"HTTP {reply.status}"
                if reply.status in (401, 403):
                    raise _Forbidden(reason)
                if reply.status == 429:
                    wait = reply.retry_after(wait)
                elif reply.status < 500:
                    raise _NotDelivered(reason)
            if attempt < ATTEMPTS and not self._wait(wait):
                raise _NotDelivered(f"{reason}, and no time to try again")
        raise _NotDelivered(f"{reason}, {ATTEMPTS} attempts")

    def _wait(self, seconds: float) -> bool:
        """Wait; False, at once, where stop's deadline comes first."""
        end = time.monotonic() + seconds
        with self._changed:
            while (left := end - time.monotonic()) > 0:
                if self._too_late(left):
                    return False
                self._changed.wait(left)
        return True

    def _too_late(self, seconds: float) -> bool:
        """Whether stop's deadline comes within so many seconds."""
        return self._deadline is not None and self._deadline <= time.monotonic() + seconds

    def _give_up(self, problem: Exception) -> None:
        log.error("Discord refuses the bot token or the channel (%s): no messages are sent until restart", problem)
        with self._changed:
            self._refused = True
            self._counts["dropped"] += len(self._waiting)
            self._waiting.clear()

    def _done(self, outcome: str) -> bool:
        """Count what became of the message in hand; False where stop has counted and logged it already."""
        with self._changed:
            if self._in_hand is None:
                return False
            self._in_hand = None
            self._counts[outcome] += 1
            return True

    def _log_failed(self, message: _Message, reason: object) -> None:
        log.error("Discord message not delivered (%s): %s", reason, ascii(message.text))
