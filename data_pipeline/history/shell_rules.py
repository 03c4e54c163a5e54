"""Which programs may be given a client's value, and where among their words.

`shell_template` makes sure that a value stays one word.  A word can still
be taken for code by the program that gets it: `sh -c`, `eval`, `ssh`, an
interpreter's `-e`; or by a later command of the same pipeline.  These rules
refuse such places.  An unknown program may be given values anywhere but
after an option that commonly takes a command; what it makes of an argument
that starts with `-` is its own affair.
"""

import re

from data_pipeline.history.shell_template import CLIENT, OPENERS, OTHER, Command, Word, refuse_word

SHELLS = frozenset("sh bash rbash dash ash ksh mksh pdksh zsh csh tcsh fish yash posh elvish nu xonsh pwsh rc".split())
SHELL_OPTION = re.compile(r"-[aefhlmnuvx]+|--(norc|noprofile|posix|login)?")

_SCRIPT_FIRST = "node nodejs deno bun php lua luajit tclsh wish expect guile osascript groovy scala Rscript".split()
# interpreter -> options that may stand before its script
INTERPRETERS = {
    "python": re.compile(r"-[bBdEIOPqsSuvx]+"),
    "pypy": re.compile(r"-[bBdEIOPqsSuvx]+"),
    "perl": re.compile(r"-[wWtTX]+|--"),
    "ruby": re.compile(r"-[wW]|--"),
    **dict.fromkeys(_SCRIPT_FIRST, re.compile("--")),
    # their program comes first, then data
    **dict.fromkeys("awk gawk mawk nawk".split(), re.compile(r"-F.+|--")),
}
# Modules of python -m that run what they are given.
RUNNING_MODULES = frozenset("timeit pdb trace profile cProfile runpy code doctest unittest IPython asyncio".split())

# Programs that hand their arguments or their input to a shell, or have commands of their own.
RUNNERS = frozenset(
    "eval su runuser ssh rsh mosh xargs parallel watch at batch crontab script entr tmux screen systemd-run nsenter"
    " chroot nix-shell xterm make gmake gdb lldb m4 sed ed ex vi vim nvim emacs find sqlite3 psql mysql duckdb dc"
    " gnuplot ssh-keygen".split()
)
# What they read is data, as long as their arguments are the operator's.
INPUT_IS_DATA = frozenset(("sed", "find", "make", "gmake"))
# Of all of the above, those also looked for among the arguments of an unknown program.
RUN_BY_OTHERS = SHELLS | frozenset(INTERPRETERS) | frozenset("eval su runuser ssh xargs parallel".split())

BUILTINS = frozenset(
    ". source alias bg bind break builtin caller cd compgen complete continue coproc declare dirs disown enable exit"
    " export fc fg for function getopts hash history jobs kill let local logout mapfile newgrp popd pushd read"
    " readarray readonly return select set shift shopt suspend times trap type typeset ulimit umask unalias unset wait"
    " [[ case fi done esac }".split()
)
READ_INTO_A_VARIABLE = frozenset("read mapfile readarray".split())

# wrapper -> (options without an argument, options with one, operands before the command it runs)
WRAPPERS = {
    "exec": ("", "", 0),
    "command": ("p", "", 0),
    "time": ("pv", "fo", 0),
    "env": ("i0v", "uC", 0),
    "nohup": ("", "", 0),
    "setsid": ("cfw", "", 0),
    "nice": ("", "n", 0),
    "ionice": ("t", "cn", 0),
    "chrt": ("bfior", "", 1),
    "taskset": ("ac", "", 1),
    "timeout": ("v", "ks", 1),
    "stdbuf": ("", "ioe", 0),
    "flock": ("nsxuo", "wE", 1),
    "sudo": ("nEHbS", "ugp", 0),
    "doas": ("n", "u", 0),
    "busybox": ("", "", 0),
    "toybox": ("", "", 0),
}

LONG_OPTION = re.compile(
    "--(foreground|preserve-status|(adjustment|kill-after|signal|unset|chdir|user|group|class|classdata|timeout)=.+)"
)

# Programs known to run nothing they are given as an argument.
PLAIN = frozenset(
    "curl wget aria2c http https echo cat tee logger touch mkdir cp mv date basename dirname true false :".split()
)

COMMAND_OPTION = re.compile(r"(-c|--?(command|cmd|exec|execute|eval|run|shell|rsh|init|script))(=.*)?", re.DOTALL)

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=", re.DOTALL)
# Variables that shells and programs take for code, or for the place of code.
RISKY_VARIABLE = re.compile(
    r"PATH|IFS|ENV|SHELL|HOME|CDPATH|TMPDIR|PS[0-4]|PROMPT_COMMAND|.*EDITOR|VISUAL|.*PAGER|BROWSER|LESS.*|MAKEFLAGS"
    r"|MANPATH|TERM.*|BASH.*|SHELLOPTS|GLOBIGNORE|FPATH|ZDOTDIR|LD_.*|DYLD_.*|GCONV_PATH|LOCPATH|NLSPATH|PYTHON.*"
    r"|PERL.*|RUBY.*|NODE_.*|LUA_.*|PHP.*|JAVA_.*|_JAVA.*|JDK_.*|CLASSPATH|GIT_.*|SSH_.*"
    r"|.*_(COMMAND|ASKPASS|OPTIONS|OPTS|PRELOAD)|GEX_.*|AWK.*|CURL_HOME|WGETRC"
)


def judge(commands: list[Command], text: str) -> None:
    """Raise ConfigError where a placeholder of these commands is in a place that is not safe."""
    _follow_variables(commands, text)
    for command in commands:
        _judge_command(command)


# Variables


def _assignment(word: Word) -> re.Match | None:
    """The NAME= at the start of a word, which must not be quoted."""
    match = ASSIGNMENT.match(word.value)
    return match if match and (word.quoted_from is None or match.end() <= word.quoted_from) else None


def _assignments(command: Command) -> list[tuple[str, Word]]:
    """The NAME=value words before the command itself."""
    found = []
    for word in command.words:
        match = _assignment(word)
        if not match and word.plain not in OPENERS:
            break
        if match:
            found.append((match[1], word))
    return found


def _follow_variables(commands: list[Command], text: str) -> None:
    """Hold a variable that is given a client's value, and is used in double quotes, to the same rules as a placeholder.

    Used anywhere else it would be split into words or read as code.  A
    NAME=value that is an argument (of env, of docker run -e) may become a
    variable of code in the same text; there $NAME is not taken at all.
    """
    followed = set()
    while True:
        assigned = (pair for command in commands for pair in _assignments(command))
        name, word = next(((n, w) for n, w in assigned if w.client and n not in followed), (None, None))
        if name is None:
            break
        followed.add(name)
        _follow(name, word, commands, text)
    for word in (word for command in commands for word in command.words if word.client):
        match = ASSIGNMENT.match(word.value)
        if match and match[1] not in followed and re.search(rf"\$\{{?{match[1]}(?![A-Za-z0-9_])", text):
            refuse_word(word, f"${match[1]} is used in the same text, where it could be split or taken for code")


def _follow(name: str, assignment: Word, commands: list[Command], text: str) -> None:
    if RISKY_VARIABLE.fullmatch(name):
        refuse_word(assignment, f"the variable {name} has a meaning of its own for shells and programs")
    safe = 0
    for command in commands:
        safe += sum(n == name for n, _ in _assignments(command))
        if command.words and command.words[0].plain == "export":
            safe += sum(word.plain == name for word in command.words[1:])
        for word in command.words + command.targets:
            if name in word.variables:
                safe += word.variables[name]
                word.value = word.value.replace(OTHER, CLIENT)
                word.names = assignment.names | word.names
    targets = (target for command in commands for target in command.targets)
    for target in (t for t in targets if name in t.variables and set(t.names) != {"id"}):
        refuse_word(target, f"${name} holds a client's value, which would choose the file of a redirection")
    if len(re.findall(rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z0-9_])", text)) != safe:
        why = f'the variable {name} is used outside double quotes or in nested code; write "${name}"'
        refuse_word(assignment, why)


# Commands


def _judge_command(command: Command) -> None:
    words = list(command.words)
    while words and (words[0].plain in OPENERS or _assignment(words[0])):
        words.pop(0)
    if words:
        _judge_words(words, command.piped)


def _judge_words(words: list[Word], piped: bool) -> None:
    """words: a command and its arguments; piped: a client's value may come to its standard input."""
    while words and words[0].plain in OPENERS:  # bash's time { …; }
        words = words[1:]
    given = next((word for word in words if word.client), None)
    if not words or given is None and not piped:
        return
    if words[0].client:
        refuse_word(words[0], "it would choose the program that is run")
    name = _program(words[0])
    if name in BUILTINS:
        _judge_builtin(name, words, given, piped)
    elif name in RUNNERS:
        if given is None and name in INPUT_IS_DATA:
            return
        why = f"{name} runs commands, or has some of its own, and takes its arguments and input for them"
        refuse_word(given or words[0], why)
    elif name in SHELLS:
        _judge_shell(name, words, piped)
    elif _family(name) in INTERPRETERS:
        _judge_interpreter(_family(name), words, piped)
    elif name in WRAPPERS:
        _judge_wrapper(name, words, piped)
    elif name == "printf":
        _judge_printf(words)
    elif name in ("test", "["):
        _judge_test(words)
    elif name not in PLAIN:
        _judge_unknown(words, piped)


def _program(word: Word) -> str:
    """The last part of the program's path."""
    name = re.split(f"[/{OTHER}]", word.value)[-1]
    if word.bare_expansion or not name or OTHER in word.value and "/" not in word.value:
        why = "the name of a command that is given a value must be plain text, or a double-quoted path that ends in it"
        refuse_word(word, why)
    return name if name in BUILTINS or name in RUNNERS else _family(name)


def _family(name: str) -> str:
    """Without the version: python3.11 is python."""
    return re.sub(r"-?[\d.]+(\.exe)?$", "", name) or name


def _judge_builtin(name: str, words: list[Word], given: Word | None, piped: bool) -> None:
    if given:
        refuse_word(given, f"the shell's own {name} gives its arguments a meaning, or keeps them for later")
    if piped and name in READ_INTO_A_VARIABLE:
        refuse_word(words[0], f"{name} would take a value out of the pipe into a variable, which is not followed")


def _operand(what: str, words: list[Word], known: re.Pattern, piped: bool) -> int | None:
    """Where the script of an interpreter stands; None if there is none and nothing depends on it."""
    for i, word in enumerate(words[1:], 1):
        if word.client:
            refuse_word(word, f"{what} would take it for a script, a program or an option; name the script before it")
        if word.value in ("-", "/dev/stdin") and piped:
            refuse_word(word, f"{what} would read its program from a pipe that carries a value")
        if not word.value.startswith("-") or word.value == "-":
            return i
        if not known.fullmatch(word.value):
            return _unknown_option(what, words, i, piped)
    if piped:
        refuse_word(words[0], f"{what} would read its program from a pipe that carries a value")
    return None


def _unknown_option(what: str, words: list[Word], i: int, piped: bool) -> None:
    given = next((word for word in words[i:] if word.client), None)
    if given or piped:
        option = words[i].value.replace(OTHER, "…")
        why = f"after {what} {ascii(option)} it could be taken for code; put that into a script, which takes it safely"
        refuse_word(given or words[i], why)


def _judge_shell(name: str, words: list[Word], piped: bool) -> None:
    _operand(name, words, SHELL_OPTION, piped)


def _judge_interpreter(name: str, words: list[Word], piped: bool) -> None:
    if name in ("python", "pypy"):
        for i, word in enumerate(words[1:-1], 1):
            if word.value in ("-c", "-m"):
                _judge_python_code(name, word.value, words[i + 1])
                return
            if not INTERPRETERS[name].fullmatch(word.value):
                break
    _operand(name, words, INTERPRETERS[name], piped)


def _judge_python_code(name: str, option: str, code: Word) -> None:
    """After -c CODE and -m MODULE python takes no more options: the rest is data, and so is its input."""
    if code.client:
        refuse_word(code, f"it stands inside the code of {name} {option}; use sys.argv or os.environ['GEX_…'] there")
    if option == "-m" and (not code.literal or code.value.split(".")[0] in RUNNING_MODULES):
        refuse_word(code, f"{name} -m {ascii(code.value)} may run what it is given")


def _judge_wrapper(name: str, words: list[Word], piped: bool) -> None:
    """Find the command that is run by nohup, env, timeout …, and judge that."""
    flags, with_argument, operands = WRAPPERS[name]
    i = 1
    while i < len(words) and words[i].value.startswith("-") and words[i].value not in ("-", "--"):
        rest = words[i].value[1:].lstrip(flags)
        if words[i].client or rest and rest[0] not in with_argument and not LONG_OPTION.fullmatch(words[i].value):
            _unknown_option(name, words, i, piped)
        i += 2 if len(rest) == 1 else 1
    if i < len(words) and words[i].value == "--":
        i += 1
    while name == "env" and i < len(words) and (match := ASSIGNMENT.match(words[i].value)):
        if words[i].client and RISKY_VARIABLE.fullmatch(match[1]):
            refuse_word(words[i], f"the variable {match[1]} has a meaning of its own for shells and programs")
        i += 1
    for word in words[1 : i + operands]:
        if word.client and not ASSIGNMENT.match(word.value):
            refuse_word(word, f"it stands before the command that {name} runs")
    if words[i + operands :]:
        if words[i + operands].value.startswith("-"):
            _unknown_option(name, words, i + operands, piped)
        _judge_words(words[i + operands :], piped)


def _judge_printf(words: list[Word]) -> None:
    given = any(word.client for word in words)
    if given and (words[1].client or words[1].value.startswith(("-", OTHER))):
        refuse_word(words[1], "as the first argument of printf it would be its format; write printf '%s' before it")


def _judge_test(words: list[Word]) -> None:
    """Only the shapes in which no argument can be taken for an operator: bash's -v evaluates its operand."""
    values = [word.value for word in words[1:]]
    if words[0].value.endswith("["):
        values = values[:-1]
    one = len(values) == 2 and values[0] in ("-n", "-z")
    two = len(values) == 3 and values[1] in ("=", "!=")
    given = next((word for word in words if word.client), None)
    if given and not one and not two:
        refuse_word(given, "in a test only -n, -z, = and != can take it")


def _judge_unknown(words: list[Word], piped: bool) -> None:
    """A program we know nothing of: look for the ways to have it run another one."""
    for i, word in enumerate(words[1:], 1):
        option = COMMAND_OPTION.fullmatch(words[i - 1].value if i > 1 else "")
        if word.client and option and not option[3]:
            refuse_word(word, f"after {words[i - 1].value} it could be taken for a command")
        if word.client and (inner := COMMAND_OPTION.fullmatch(word.value)) and inner[3]:
            refuse_word(word, f"after {inner[1]} it could be taken for a command")
        if not word.client and _family(word.value.rsplit("/", 1)[-1]) in RUN_BY_OTHERS and not word.bare_expansion:
            _judge_words(words[i:], piped)
            return
