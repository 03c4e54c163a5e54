"""Times as payloads write them: seconds, milliseconds, ISO text."""

import datetime
import zoneinfo

UTC = datetime.UTC
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")

# Numbers above this are milliseconds where a date is made of them; in seconds
# it would be the year 5138.
MILLISECONDS_FROM = 1e11
# UTC seconds at the beginning of the year 9999: every time zone can still name what is before it.
LATEST = 253_370_764_800


def utc_now_text() -> str:
    """Now, as the original's `datetime.utcnow().isoformat()`: UTC without an offset."""
    return datetime.datetime.now(UTC).replace(tzinfo=None).isoformat()


def row_time(at: str) -> str:
    """A receive time as tables have it: `YYYY-MM-DD HH:MM:SS`."""
    return at[:19].replace("T", " ")


def parse_iso(text: str) -> datetime.datetime | None:
    """ISO text as a time with an offset; UTC where it names none; None where it is not ISO."""
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def seconds(value: object) -> int | None:
    """int(seconds) of a timestamp for a table's key, or None.

    Takes a number, numeric text or ISO text (naive is UTC); a number stays as
    it was sent, milliseconds too.  None as well where it does not fit 64 bits.
    """
    whole: int | None
    try:
        if isinstance(value, str):
            try:
                if "_" in value:  # Python's own way to write numbers, nobody else's
                    raise ValueError
                whole = int(float(value)) if "." in value or "e" in value.lower() else int(value)
            except ValueError:
                parsed = parse_iso(value.strip())
                whole = None if parsed is None else int(parsed.timestamp())
        elif isinstance(value, (int, float)):
            whole = int(value)
        else:
            return None
    except (ValueError, OverflowError):  # NaN, infinity, a year without a timestamp
        return None
    return whole if whole is not None and -(1 << 63) <= whole < 1 << 63 else None


def unix(value: object) -> float | None:
    """A payload's time in seconds since 1970, to compare it with another's: as `seconds`, milliseconds understood."""
    whole = seconds(value)
    return whole / 1000 if whole is not None and abs(whole) > MILLISECONDS_FROM else whole


def from_number(value: float) -> datetime.datetime | None:
    """Seconds, or milliseconds above 1e11, as a UTC time; None where there is no such date."""
    try:
        return datetime.datetime.fromtimestamp(value / 1000 if abs(value) > MILLISECONDS_FROM else value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def seconds_of(timestamp: object) -> float | None:
    """A payload's time as UTC seconds; takes milliseconds and ISO text too; None where it is none from 1970 to 9998."""
    moment = None
    if isinstance(timestamp, (int, float)) and not isinstance(timestamp, bool):
        moment = from_number(timestamp)
    elif isinstance(timestamp, str) and (whole := seconds(timestamp)) is not None:
        moment = parse_iso(timestamp.strip()) or from_number(whole)
    try:
        found = moment.timestamp() if moment else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and 0 <= found < LATEST else None


def day(timestamp: object, received: str) -> str:
    """The UTC date `YYYY-MM-DD` of a timestamp (number or ISO text), else that of the receive time."""
    moment = None
    if isinstance(timestamp, (int, float)):
        moment = from_number(timestamp)
    elif isinstance(timestamp, str):
        whole = seconds(timestamp)
        if whole is not None:
            moment = parse_iso(timestamp.strip()) or from_number(whole)
    try:
        return moment.astimezone(UTC).date().isoformat() if moment else received[:10]
    except (ValueError, OverflowError):
        return received[:10]
