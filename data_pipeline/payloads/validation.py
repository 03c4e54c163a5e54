"""Payloads → small typed objects, and the wording of what is wrong with them."""

from dataclasses import dataclass
from typing import Any

from data_pipeline.payloads.store import KINDS, normalise

LONGEST = 256  # characters of ticker, endpoint and received_at
MOST_STRIKES = 20_000


class ValidationError(Exception):
    """The payload is not what the endpoint takes; the text is for the client."""


@dataclass(frozen=True)
class GexPayload:
    """A gamma-exposure payload: ticker (upper case), kind, the `data` object, endpoint and receive time or None."""

    ticker: str
    kind: str
    data: dict[str, Any]
    endpoint: str | None
    received_at: str | None


@dataclass(frozen=True)
class HistoryLink:
    """A link to download; the values are the client's, whatever JSON they were."""

    url: object
    ticker: object
    endpoint: object


def gex_payload(
    payload: dict[str, Any],
    data_key: str = "data",
    default_kind: str | None = None,
    default_endpoint: str | None = None,
) -> GexPayload:
    """Check an envelope `{ticker, kind, data, endpoint?, received_at?}`.

    data_key: the name of `data` there; the defaults stand in for absent, null
    or empty values.  Raises ValidationError with every problem, in the order
    ticker, received_at, endpoint, kind, data.
    """
    ticker: Any = payload.get("ticker")
    data: Any = payload.get(data_key)
    endpoint, received_at = payload.get("endpoint"), payload.get("received_at")
    kind: Any = payload.get("kind")
    kind = default_kind if kind in (None, "") else kind
    problems = []
    if ticker is None:
        problems.append("ticker: field required")
    elif not isinstance(ticker, str):
        problems.append("ticker: must be a string")
    elif not ticker.strip():
        problems.append("ticker: must not be empty")
    elif len(ticker) > LONGEST:
        problems.append(f"ticker: must not be longer than {LONGEST} characters")
    for name, value in (("received_at", received_at), ("endpoint", endpoint)):
        if value is not None and not isinstance(value, str):
            problems.append(f"{name}: must be a string")
        elif value and len(value) > LONGEST:
            problems.append(f"{name}: must not be longer than {LONGEST} characters")
    if not isinstance(kind, str) or kind not in KINDS:
        problems.append(f"kind: must be one of {', '.join(KINDS)}")
    if data is None:
        problems.append(f"{data_key}: field required")
    elif not isinstance(data, dict):
        problems.append(f"{data_key}: must be an object")
    elif isinstance(strikes := data.get("strikes"), list) and len(strikes) > MOST_STRIKES:
        problems.append(f"{data_key}: must not hold more than {MOST_STRIKES} strikes")
    if problems:
        raise ValidationError("Validation error: " + "; ".join(problems))
    return GexPayload(normalise(ticker), kind, data, endpoint or default_endpoint or endpoint, received_at)


def history_link(payload: dict[str, Any]) -> HistoryLink:
    """Raises ValidationError where url, ticker or endpoint (or feed, or kind) is missing or falsy."""
    endpoint = payload.get("endpoint") or payload.get("feed") or payload.get("kind")
    link = HistoryLink(payload.get("url"), payload.get("ticker"), endpoint)
    if not (link.url and link.ticker and link.endpoint):
        raise ValidationError("Missing url, ticker, or endpoint")
    return link
