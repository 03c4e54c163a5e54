"""What a `/uw` payload carries of option trades and flow alerts, as rows of the table `option_flow`.

The feeds name the same things differently, and put them at different depths:
what counts is that an object names a contract and something that was traded.
"""

import datetime
import math
import re
from collections.abc import Iterator
from typing import Any

from data_pipeline.payloads import times, values

# Where a payload may hold what it is about.
INSIDE = ("payload", "data", "alert", "alerts", "trades", "trade")

# column -> the names it has in the feeds, in the order they are looked for
NUMBERS = {
    "strike": ("strike", "strike_price"),
    "price": ("price", "avg_price"),
    "premium": ("premium", "total_premium"),
    "underlying_price": ("underlying_price", "stock_price", "spot"),
    "implied_volatility": ("implied_volatility", "iv"),
    "delta": ("delta",),
    "gamma": ("gamma",),
    "theta": ("theta",),
    "vega": ("vega",),
}
COUNTS = {
    "size": ("size", "total_size", "quantity", "qty"),
    "volume": ("volume",),
    "open_interest": ("open_interest", "oi"),
}
# column -> its name, and the word that says so among tags and report flags
FLAGS = {
    "has_sweep": ("has_sweep", "sweep"),
    "has_floor": ("has_floor", "floor"),
    "has_multileg": ("has_multileg", "multi"),
}
SYMBOL = ("underlying_symbol", "ticker", "symbol", "underlying")
OPTION_SYMBOL = ("option_chain_id", "option_symbol", "option_chain", "optionSymbol")
OPTION_TYPE = ("option_type", "optionType", "type", "put_call")
EXPIRATION = ("expiry", "expiration", "exp", "expiration_date")
EXECUTED_AT = ("executed_at", "tape_time", "created_at", "start_time", "timestamp", "time")
RULE = ("alert_rule", "rule_name", "rule")
TRADED = (*COUNTS["size"], *NUMBERS["price"], *NUMBERS["premium"])

# The OCC's symbol of a contract: root, YYMMDD, C or P, the strike in thousandths.
_OCC = re.compile(r"(?:O:)?([A-Z0-9.^]{1,6}?) *([0-9]{6})([CP])([0-9]{8})")


def option_flow(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """A row, without id, webhook_id and received_at, for each trade or alert in the whole `/uw` payload.

    strike, price, premium in dollars; expiration `YYYY-MM-DD`; executed_at
    `YYYY-MM-DD HH:MM:SS.mmm`, UTC; option_type C or P; side ask, bid or mid;
    the flags 1, 0, or None where nothing is said.  Never raises for what a
    JSON parser can return.
    """
    topic = payload.get("topic") or payload.get("channel")
    return [_row(item, contract, topic) for item, contract in _items(payload)]


def _items(value: object, symbol: object = None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each object that is a trade or alert, and its contract; symbol: what the object around it names."""
    if isinstance(value, list):
        for each in value:
            yield from _items(each, symbol)
    elif isinstance(value, dict):
        inside = [item for key in INSIDE for item in _items(value.get(key), _first(value, SYMBOL) or symbol)]
        if inside:
            yield from inside
        elif any(value.get(name) is not None for name in TRADED) and (contract := _contract(value, symbol)):
            yield value, contract


def _contract(item: dict[str, Any], symbol: object) -> dict[str, Any] | None:
    """symbol, option_symbol, option_type, strike, expiration: by their names, else from the OCC symbol."""
    written = next((item[name] for name in OPTION_SYMBOL if isinstance(item.get(name), str)), "")
    own_symbol = _first(item, SYMBOL)
    if not written and isinstance(own_symbol, str) and _OCC.fullmatch(own_symbol):
        written, own_symbol = own_symbol, None
    occ = _OCC.fullmatch(written.strip().upper())
    root, day, letter, thousandths = occ.groups() if occ else ("", "", "", "")
    found = {
        "symbol": _text(own_symbol or root or symbol),
        "option_symbol": _text(written or None),
        "option_type": _option_type(item) or letter or None,
        "strike": _number(_first(item, NUMBERS["strike"])),
        "expiration": _date(_first(item, EXPIRATION)) or _date(f"20{day[:2]}-{day[2:4]}-{day[4:]}"),
    }
    if found["strike"] is None and occ:
        found["strike"] = int(thousandths) / 1000
    named = found["option_type"] and found["expiration"] and found["strike"] is not None
    return found if occ or named else None


def _row(item: dict[str, Any], contract: dict[str, Any], topic: object) -> dict[str, Any]:
    tags = item.get("tags")
    words = [
        word.lower()
        for listed in (tags, item.get("report_flags"))
        for word in (listed if isinstance(listed, list) else [])
        if isinstance(word, str)
    ]
    return {
        "topic": _text(topic),
        "executed_at": _moment(_first(item, EXECUTED_AT)),
        **{column: _number(_first(item, names)) for column, names in NUMBERS.items()},
        **{column: _whole(_first(item, names)) for column, names in COUNTS.items()},
        **contract,
        "side": _side(item, words),
        "sentiment": _word(item.get("sentiment"), words, ("bullish", "bearish", "neutral")),
        "rule": _text(_first(item, RULE)),
        **{column: _flag(item.get(name), word, words) for column, (name, word) in FLAGS.items()},
        "tags_json": values.json_text(tags) if isinstance(tags, list) else None,
    }


def _first(item: dict[str, Any], names: tuple[str, ...]) -> object:
    return next((item[name] for name in names if item.get(name) not in (None, "")), None)


def _text(value: object) -> str | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return values.text(value) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    found = values.number(value)
    return found if found is not None and math.isfinite(found) else None


def _whole(value: object) -> int | None:
    found = _number(value)
    return int(found) if found is not None and abs(found) < 1 << 63 else None


def _option_type(item: dict[str, Any]) -> str | None:
    for name in OPTION_TYPE:
        if isinstance(item.get(name), str) and item[name].lower() in ("c", "p", "call", "put", "calls", "puts"):
            return str(item[name][0].upper())
    return None


def _side(item: dict[str, Any], words: list[str]) -> str | None:
    found = _word(item.get("side"), [word.removesuffix("_side") for word in words], ("ask", "bid", "mid"))
    ask, bid = _number(item.get("total_ask_side_prem")), _number(item.get("total_bid_side_prem"))
    if found is None and ask is not None and bid is not None and (ask or bid):
        return "mid" if ask == bid else "ask" if ask > bid else "bid"
    return found


def _word(named: object, tags: list[str], known: tuple[str, ...]) -> str | None:
    named = named.lower() if isinstance(named, str) else None
    return named if named in known else next((word for word in known if word in tags), None)


def _flag(named: object, word: str, tags: list[str]) -> int | None:
    if isinstance(named, (bool, int)):
        return int(bool(named))
    return 1 if any(word in tag for tag in tags) else None


def _time(value: object) -> datetime.datetime | None:
    """Seconds, milliseconds, either as text, or ISO text, in UTC."""
    number = _number(value)
    found = times.from_number(number) if number is not None else None
    if found is None and isinstance(value, str):
        found = times.parse_iso(value.strip())
    try:
        return found and found.astimezone(datetime.UTC)
    except OverflowError:  # the first or last day there is, elsewhere
        return None


def _moment(value: object) -> str | None:
    found = _time(value)
    return None if found is None else found.replace(tzinfo=None).isoformat(" ", "milliseconds")


def _date(value: object) -> str | None:
    """A day keeps its name: in UTC it might become another."""
    if isinstance(value, str) and (found := times.parse_iso(value.strip())):
        return found.date().isoformat()
    moment = _time(value)
    return None if moment is None else moment.date().isoformat()
