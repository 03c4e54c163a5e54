"""The closed grammar of HISTORY_DOWNLOAD_COMMAND: what a shell command with placeholders may look like.

No value ever becomes part of the command's text: it travels in the child's
environment, and a placeholder becomes a reference to it that fits its place:
bare {url} becomes "${GEX_URL}", in "..." ${GEX_URL}, in '...' '"${GEX_URL}"'.
So a value stays one word and starts no command.  What could still take it for
code is a program, or a shell that reads the text again.  This grammar follows
neither: it knows a few commands to which a value is data, and refuses all else
with "put it into a script", where "$1" is safe.  A template without
placeholders is the operator's own and passes as it is.
"""

import re
from posixpath import basename
from typing import NoReturn

from data_pipeline.config import ConfigError

SETTING = "HISTORY_DOWNLOAD_COMMAND"
VARIABLES = {"id": "GEX_ID", "url": "GEX_URL", "ticker": "GEX_TICKER", "endpoint": "GEX_ENDPOINT"}

# A placeholder is one of these characters while the text is read; no template holds them, they are control characters.
MARKS = dict(zip(VARIABLES, "\1\2\3\4"))
NAMES = dict(zip(MARKS.values(), VARIABLES.values()))
ANY, TEXT = re.compile("[\1-\4]"), re.compile("[\2-\4]")  # any placeholder; those whose value is a client's text

WORD = r"""(?:[A-Za-z0-9_./,:=@%+~\1-\4-]|'[^']*'|"[^"\\]*")+"""
# What sh, dash and bash all read alike.  A glob, a brace, a comment, a backslash, `(` or `<<` matches nothing here.
TOKEN = re.compile(
    rf"(?P<blank>[ \t](?:[ \t]|\\\n)*)|(?P<joint>&&|\|\||[;&|\n])"
    rf"|[0-9]*(?:>>|>|<)(?:&[0-9](?=[ \t\n;&|]|$)|[ \t]*(?P<target>{WORD}))|(?P<word>{WORD})"
)
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
NAME = re.compile(r"[A-Za-z0-9_./+~-]+")

# Programs to which a value is data wherever it stands as an argument of its own…
WITH_VALUES = frozenset("curl wget echo printf logger true".split())
# …and those that may stand beside it; of placeholders they get {id} alone, since a text would choose their file.
LISTED = WITH_VALUES | frozenset(
    "basename cat cd cp cut date dirname exit false grep gunzip gzip head jq mkdir mv rm sha256sum sleep sync tail tee"
    " test touch tr wc zstd".split()
)
# Options of the first that take no argument, or an address: a value may stand behind them.
FLAGS = re.compile("--?|-[fgknqsvSL46]+|-q?O-|--(?:silent|show-error|fail|location|compressed|quiet|url)")
# With these curl lets the client, or what comes by pipe, name the file it writes.  (-XPOST is none of them.)
CURL_CHOOSES = re.compile("-[a-zA-WYZ]*[OJK]|--(?:rem|conf)|.*#", re.DOTALL)
WGET_OUTPUT = re.compile("-q?O.*|--output-document.*", re.DOTALL)

# interpreter -> the options that may stand before its script
INTERPRETERS = {
    **dict.fromkeys("sh bash dash ksh zsh".split(), re.compile("-[eux]+")),
    **dict.fromkeys(("python", "pypy"), re.compile("-[BEIOsu]+")),
    **dict.fromkeys("perl ruby node php".split(), re.compile("(?!)")),
}
# Programs that take their arguments for code or run others; by a path, as a script or as an argument they are refused.
TAKES_CODE = frozenset(INTERPRETERS) | frozenset(
    "awk busybox command doas docker env eval exec expect find fish gawk git lua make nice nohup npm npx parallel pip"
    " psql rsync sed setsid sort sqlite ssh su sudo tar time timeout uv vim watch xargs".split()
)
SYSTEM_PATH = re.compile(r"/(?:usr/(?!local/)|(?:bin|sbin|dev|proc|snap|nix)/)")
CODE_OPTION = re.compile("-c[^a-z]*|--?[a-z-]*(?:command|cmd|exec|eval|run|shell|rsh|init|script|program|hook)[a-z-]*")


def safe_command(text: str) -> str:
    """The text for `/bin/sh -c` from a template with {id} {url} {ticker} {endpoint}, braces doubled as for str.format.

    Raises ConfigError with one line for what str.format would refuse, and for what is outside the grammar where the
    text has a placeholder or names its variable.
    """
    marked = _mark(text)
    if not marked.strip():
        raise ConfigError(f"{SETTING}: there is no command in it")
    if ANY.search(marked) or any(name in marked for name in VARIABLES.values()):
        _judge(*_commands(marked))
        return re.sub(f"{QUOTED.pattern}|{ANY.pattern}", _reference, marked)
    return marked


def _mark(text: str) -> str:
    """The template with its braces read and a mark for each placeholder."""

    def read(found: re.Match[str]) -> str:
        piece, inside = found[0], found[1]
        if inside in MARKS:
            return MARKS[inside]
        if piece in ("{{", "}}"):
            return piece[0]
        problem = "a control character or one that is no text"
        if inside is not None:
            known = " ".join(f"{{{name}}}" for name in VARIABLES)
            problem = f"unknown placeholder {_show(piece)}; known are {known}, with no conversion or format"
        elif piece in "{}":
            problem = "a brace without its other; a brace itself is written {{ or }}"
        raise ConfigError(f"{SETTING}: {problem}")

    return re.sub("{{|}}|{([^}]*)}|[{}\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", read, text)


def _show(piece: str) -> str:
    """A piece of the template for the operator, in one short line."""
    for name, mark in MARKS.items():
        piece = piece.replace(mark, f"{{{name}}}")
    return ascii(piece if len(piece) <= 50 else piece[:50] + "...")


def _refuse(piece: str, why: str) -> NoReturn:
    raise ConfigError(f"{SETTING}: {_show(piece)}: {why}; put it into a script, as in: sh fetch.sh {{url}}")


def _reference(found: re.Match[str]) -> str:
    """A placeholder, or a quotation with those in it, as the shell gets it."""
    form = {"'": "'\"${%s}\"'", '"': "${%s}"}.get(found[0][0], '"${%s}"')
    return ANY.sub(lambda mark: form % NAMES[mark[0]], found[0])


def _commands(marked: str) -> tuple[list[list[str]], list[str]]:
    """The words of each simple command, quotes removed, and the targets of all redirections."""
    if found := re.search(r"[$`]", marked):
        _refuse(marked[found.start() : found.start() + 20], "a $ or ` beside a placeholder is not taken")
    commands: list[list[str]] = [[]]
    targets: list[str] = []
    at = 0
    while at < len(marked):
        found = TOKEN.match(marked, at)
        if found is None:
            _refuse(marked[at : at + 20], "no plain word, no quotation and no redirection beside a placeholder")
        at = found.end()
        if found["joint"]:
            commands.append([])
        elif found["word"]:
            if not commands[-1] and not NAME.fullmatch(found["word"]):
                _refuse(found["word"], "a command begins with its name, in plain text")
            commands[-1].append(QUOTED.sub(r"\1\2", found["word"]))
        elif not found["blank"]:
            if not commands[-1]:
                _refuse(found[0], "a redirection stands behind the name of its command")
            targets.append(QUOTED.sub(r"\1\2", found["target"] or ""))
            if TEXT.search(targets[-1]):
                _refuse(found[0], "a value would choose the file; only {id} may stand there")
    return [words for words in commands if words], targets


def _judge(commands: list[list[str]], targets: list[str]) -> None:
    """Refuse what could run a value, or what a value can be written to, now or for the next link.

    Either listed programs alone get values, or one script or program of the operator's does: the only one of the
    template, in which nothing else names its file.
    """
    own = [w for w in commands if basename(w[0]) not in LISTED or "/" in w[0] and not SYSTEM_PATH.match(w[0])]
    everything = [basename(word) for some in [*commands, targets] for word in some]
    for words in commands:
        if words not in own:
            _judge_listed(basename(words[0]), words)
            if own and TEXT.search("".join(words)):
                _refuse(" ".join(words), f"it could write a value to where {own[0][0]} runs it")
        elif len(own) > 1:
            _refuse(own[1][0], "a second program that is not known to take a value for data")
        elif file := next((file for file in _judge_own(words) if everything.count(basename(file)) > 1), None):
            _refuse(file, "what is run must not be named, and perhaps written, elsewhere")


def _program(path: str) -> str:
    return re.sub(r"-?[\d.]+$", "", basename(path))  # without its version: python3.11 is python


def _judge_listed(name: str, words: list[str]) -> None:
    for before, word in zip(words, words[1:]):
        if (ANY if name in ("cd", "exit", "test") else TEXT).search(word):
            if name not in WITH_VALUES:
                _refuse(f"{name} {word}", "it takes no placeholder, or {id} alone")
            if word[0] == "-" or before[:1] == "-" and not FLAGS.fullmatch(before):
                _refuse(f"{before} {word}", "a value must not stand in an option nor behind one (-- ends them)")
        if name == "curl" and CURL_CHOOSES.match(word):
            _refuse(f"curl {word}", "the client would name the file; write -o {id}.json")
    if name == "wget" and not any(WGET_OUTPUT.fullmatch(word) for word in words):
        _refuse("wget", "the client would name the file; write -O {id}.json")
    if name == "printf" and re.match("-|.*[\1-\4]", "".join(words[1:2]), re.DOTALL):
        _refuse(f"printf {words[1]}", "a value must not be its format; write '%s' before it")


def _judge_own(words: list[str]) -> list[str]:
    """Judge a program named by its path, or an interpreter with its script; returns the files that are run."""
    name, rest, files = words[0], words[1:], words[:1]
    if options := INTERPRETERS.get(_program(name)):
        while rest and options.fullmatch(rest[0]):
            rest.pop(0)
        if not rest or rest[0][:1] in ("-", "") or ANY.search(rest[0]):
            _refuse(" ".join(words[:2]), "after an interpreter comes the name of a script")
        name = rest.pop(0)
        files.append(name)
    elif "/" not in name:
        _refuse(name, "not a program known to take a value for data; one of your own is named by its path")
    if _program(name) in TAKES_CODE or SYSTEM_PATH.match(name):
        _refuse(name, "not a program known to take a value for data")
    for before, word in zip(["", *rest], rest):
        if _program(word) in TAKES_CODE:
            _refuse(word, "it would take a value for code")
        if ANY.search(word) and any(map(CODE_OPTION.fullmatch, (before, word.split("=")[0]))):
            _refuse(f"{before} {word}", "behind such an option it could be taken for code")
    return files
