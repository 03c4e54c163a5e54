"""A shell command with placeholders, read as the shell will read it.

No value ever becomes part of the command's text: it travels in the child's
environment, and a placeholder becomes a reference to it that is fit for its
place (POSIX.1-2017, XCU 2.2, 2.3 and 2.6):

    bare      {url}    ->  "${GEX_URL}"
    in "..."  {url}    ->  ${GEX_URL}
    in '...'  {url}    ->  '"${GEX_URL}"'

So a value cannot end a quotation or start a command.  What is left to find
are the places where a shell, or another program, would take the *expanded*
text for code once more, and those where sh and bash read the text
differently; there a placeholder is refused.  This module has the words for
all that; `shell_scanner` knows the shell's grammar, `shell_rules` the
programs.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from data_pipeline.config import ConfigError

SETTING = "HISTORY_DOWNLOAD_COMMAND"

# placeholder -> the variable that carries its value
VARIABLES = {"id": "GEX_ID", "url": "GEX_URL", "ticker": "GEX_TICKER", "endpoint": "GEX_ENDPOINT"}

# In `Word.value`: a client's value, and anything else the shell fills in.
# No template holds these characters: control characters are refused.
CLIENT, OTHER = "\x01", "\x02"

# Words after which a command starts.
OPENERS = frozenset(("if", "then", "elif", "else", "while", "until", "do", "!", "{"))


@dataclass(frozen=True)
class Placeholder:
    name: str
    at: int  # the character of the text it starts at, from 1


@dataclass
class Word:
    """One word of a command after quote removal, with CLIENT and OTHER where the shell fills something in."""

    at: int
    value: str = ""
    quoted_from: int | None = None  # where in `value` the first quoted character stands
    bare_expansion: bool = False
    names: dict = field(default_factory=dict)  # placeholder in it -> its first place
    variables: Counter = field(default_factory=Counter)  # the variables in it that stand in double quotes

    @property
    def client(self) -> bool:
        return CLIENT in self.value

    @property
    def literal(self) -> bool:
        return CLIENT not in self.value and OTHER not in self.value

    @property
    def plain(self) -> str:
        """The word as a keyword could be: its text if nothing in it is quoted or filled in, else ""."""
        return self.value if self.literal and self.quoted_from is None else ""


@dataclass
class Command:
    """A simple command: its words, the targets of its redirections, and whether a client's value may come by pipe."""

    words: list = field(default_factory=list)
    targets: list = field(default_factory=list)
    piped: bool = False


def refuse(reason: str, at: int, name: str = "") -> None:
    """Raise the ConfigError that names the reason and the place."""
    what = f"{{{name}}} at character {at}" if name else f"character {at}"
    raise ConfigError(f"{SETTING}: {what}: {reason}")


def refuse_word(word: Word, reason: str) -> None:
    """Raise the ConfigError for a word and the first placeholder in it."""
    name, at = next(iter(word.names.items()), ("", word.at))
    refuse(reason, at, name)


def split(text: str) -> list[tuple[str | Placeholder, int]]:
    """The characters and placeholders of a template, each with its place; {{ and }} are braces, as for str.format.

    Raises ConfigError for braces that str.format would refuse, for unknown
    names, and for conversions and format specifications.
    """
    items, i = [], 0
    while i < len(text):
        c, at = text[i], i + 1
        if c in "{}" and text[i : i + 2] == c * 2:
            items.append((c, at))
            i += 2
        elif c == "{":
            end = text.find("}", i)
            if end < 0:
                refuse("a { without its }; a brace itself is written {{", at)
            items.append((Placeholder(_name(text[i + 1 : end], at), at), at))
            i = end + 1
        elif c == "}":
            refuse("a } without its {; a brace itself is written }}", at)
        elif (ord(c) < 32 and c not in "\t\n") or ord(c) == 127 or "\ud800" <= c <= "\udfff":
            refuse("a control character or one that is no text", at)
        else:
            items.append((c, at))
            i += 1
    return items


def _name(inside: str, at: int) -> str:
    if inside in VARIABLES:
        return inside
    known = " ".join(f"{{{name}}}" for name in VARIABLES)
    shown = ascii("{" + (inside if len(inside) < 40 else inside[:40] + "...") + "}")
    if re.split("[!:]", inside)[0] in VARIABLES:
        refuse(f"a placeholder takes no conversion or format: {shown}", at)
    refuse(f"unknown placeholder {shown}; known are {known}; a brace itself is written {{{{ or }}}}", at)
