"""How deep JSON is nested, found from its text."""

import re
from itertools import accumulate

DEEPEST = 64  # lists and objects around a value, the outermost one among them

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_ALIKE = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")  # as signed bytes: one level down, one level up
_ROUNDS = 8  # levels of an ordinary payload


def is_too_deep(text: bytes) -> bool:
    """Whether this JSON, which must be valid, is nested deeper than DEEPEST.

    Only brackets are left of the text, then the innermost pairs are taken
    away, all of one level at once: that costs an ordinary payload some
    microseconds.  What is still there is counted bracket by bracket.
    """
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    # Brackets inside of texts are none.  Without a backslash quotes come in pairs, and far less is left to look at.
    if b"\\" in text:
        text = _STRINGS.sub(b"", text)
    brackets = _STRINGS.sub(b"", text.translate(_ALIKE, _NO_STRUCTURE))
    for _ in range(_ROUNDS):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return max(accumulate(memoryview(brackets.translate(_STEPS)).cast("b"))) > DEEPEST - _ROUNDS
