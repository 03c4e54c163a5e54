"""A payload of the topic `option_trades_super_algo` as a row of the table `option_trades_events`."""

import json
import math
from collections.abc import Callable
from typing import Any

from data_pipeline.payloads import values

TOPIC = "option_trades_super_algo"


def option_trade(payload: dict[str, Any]) -> dict[str, Any] | None:
    """The row's columns, without id, received_at and raw_payload_json.

    payload: the whole `/uw` payload; its `alert` and the first of its
    `executions` are the sources, and fields of its own where the alert has
    none.  Every value fits its column: text, a 64-bit int, a finite float, or
    None.  Returns None, and there is no row, where alert or the execution is
    not an object or the side not a string; an alert that is null counts as
    absent.  Never raises for what a JSON parser can return.
    """
    alert = payload.get("alert")
    alert = {} if alert is None else alert
    executions = payload.get("executions") or [{}]
    first = executions[0] if isinstance(executions, list) else None
    if not isinstance(alert, dict) or not isinstance(first, dict):
        return None
    side = alert.get("action") or payload.get("action") or payload.get("side") or ""
    if not isinstance(side, str):
        return None
    symbol = alert.get("symbol") or payload.get("symbol") or payload.get("ticker")
    row = {
        "topic": _text(payload.get("topic")),
        "symbol": _written(symbol, str) if symbol else None,
        "side": values.text(side.upper()),
        "quantity": to_int(alert.get("quantity") or payload.get("quantity") or 0),
        "price": to_float(alert.get("price") or payload.get("price") or 0),
        "strike": to_float(alert.get("strike")),
        "option_type": _text(alert.get("option_type") or alert.get("optionType")),
        "expiration": _text(alert.get("expiration") or alert.get("exp")),
        "order_type": _text(alert.get("order_type") or alert.get("orderType")),
        "execution_status": "unknown",
        "broker": None,
        "execution_qty": None,
        "execution_price": None,
    }
    if payload.get("executions"):
        row["execution_status"] = "dry_run" if first.get("dry_run") else "live"
        row["broker"] = _text(first.get("broker") or first.get("venue"))
        row["execution_qty"] = to_int(first.get("quantity") or 0)
        row["execution_price"] = to_float(first.get("price") or first.get("execution_price") or 0)
    return row


def to_int(value: Any) -> int | None:
    """As int() parses it; None where it does not, or where it has more than 64 bits."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -(2**63) <= number < 2**63 else None


def to_float(value: Any) -> float | None:
    """As float() parses it; None where it does not, or where it is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str | None:
    """What a TEXT column of SQLite made of it: numbers as text; lists and objects, which failed there, as JSON."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return values.text(value)
    if isinstance(value, (int, float)):
        return str(int(value) if isinstance(value, bool) else value)
    return _written(value, json.dumps)


def _written(value: object, write: Callable[[object], str]) -> str | None:
    """None where lists stand in each other too deep to be written."""
    try:
        return values.text(write(value))
    except RecursionError:
        return None
