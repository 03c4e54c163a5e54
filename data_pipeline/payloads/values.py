"""Client values as a typed column can hold them."""

import json
import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def text(value: str | None) -> str | None:
    """Text that a UTF-8 column can hold: a lone surrogate becomes its escape, `\\ud800`."""
    if value is None or value.isascii():
        return value
    return _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", value)


def number(value: object) -> float | None:
    """What a REAL column keeps: numbers and numeric text; NaN and all else is null."""
    if isinstance(value, str) and "_" in value or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if found == found else None


def json_text(value: object) -> str:
    """`json.dumps(value, ensure_ascii=False)`, escaped where a lone surrogate forbids that."""
    written = json.dumps(value, ensure_ascii=False)
    if not written.isascii() and _SURROGATE.search(written):
        return json.dumps(value)
    return written
