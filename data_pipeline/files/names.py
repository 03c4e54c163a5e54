"""Client text as the name of a folder or file: it can never leave the place it is put in."""

import hashlib

_STAY = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-^")

# A file name may have 255 bytes on most file systems; temporary names need some of them.
LONGEST = 200


def percent_encoded(text: str) -> str:
    """ASCII letters, digits and `. _ - ^` stay; any other byte (UTF-8) becomes %XX, and so does a name of dots alone.

    Different texts give different names; the empty text gives the empty name.
    A lone surrogate is encoded like any code point.
    """
    stay = _STAY if text.strip(".") else frozenset()
    return "".join(chr(b) if b in stay else f"%{b:02X}" for b in text.encode("utf-8", "surrogatepass"))


def folder_name(text: str) -> str:
    """`text` as the name of one folder or file of at most LONGEST bytes, never empty.

    Too long a name is cut and gets `~` and a hash, a character that stands in
    no other name, so that two texts never share a folder.
    """
    name = percent_encoded(text) or "%"
    if len(name) <= LONGEST:
        return name
    mark = "~" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return name[: LONGEST - len(mark)] + mark
