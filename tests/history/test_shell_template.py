"""Templates of the download command: which places are taken, which are refused, and why."""

import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from data_pipeline.config import ConfigError
from data_pipeline.history.command import Template

SHELLS = [shell for shell in ("/bin/sh", shutil.which("dash"), shutil.which("bash")) if shell]

TAKEN = {
    "curl {url}": 'curl "${GEX_URL}"',
    "curl '{url}'": "curl ''\"${GEX_URL}\"''",
    'curl "{url}"': 'curl "${GEX_URL}"',
    "curl -o '{ticker}-{id}.json' {url}": "curl -o ''\"${GEX_TICKER}\"'-'\"${GEX_ID}\"'.json' \"${GEX_URL}\"",
    "curl --url={url} x{ticker}y": 'curl --url="${GEX_URL}" x"${GEX_TICKER}"y',
    "awk '{{print}}' {url}": "awk '{print}' \"${GEX_URL}\"",
    "echo {{{url}}}": 'echo {"${GEX_URL}"}',
    "echo ~{ticker} ~/{ticker}": 'echo ~"${GEX_TICKER}" ~/"${GEX_TICKER}"',
    "URL={url} sh fetch.sh": 'URL="${GEX_URL}" sh fetch.sh',
    'URL={url}; curl "$URL" > out-{id}': 'URL="${GEX_URL}"; curl "$URL" > out-"${GEX_ID}"',
    "curl {url} # don't {ticker}": 'curl "${GEX_URL}" # don\'t {ticker}',
    "cat <<EOF | curl -d @- {url}\nhello\nEOF": 'cat <<EOF | curl -d @- "${GEX_URL}"\nhello\nEOF',
    "curl \\\n  {url}": 'curl \\\n  "${GEX_URL}"',
    "(cd data && curl -O {url}) 2>&1": '(cd data && curl -O "${GEX_URL}") 2>&1',
    "sh -c 'curl \"$GEX_URL\"'": "sh -c 'curl \"$GEX_URL\"'",
}
TAKEN_TOO = [
    "python3.11 -c 'import sys; print(sys.argv)' {url}",
    "python -u fetch.py {url}",
    "python -m mytool {url}",
    "python - {url} <<'X'\nprint(1)\nX",
    "bash -eu fetch.sh {url}",
    ". venv/bin/activate && python fetch.py {url}",
    "if true; then curl {url}; fi",
    "while read -r x; do curl {url}; done < list",
    "{{ curl {url}; }} || echo 'no {ticker}'",
    "nohup curl {url} &",
    "timeout --foreground -k 5 60 curl {url}",
    "env A={url} nice -n 10 ionice -c2 -n7 stdbuf -oL python fetch.py",
    "sudo -n -u bot curl {url}",
    "exec curl {url}",
    "curl {url} | python -c 'import sys; sys.stdin.read()'",
    "curl {url} | sed 's/a/b/' | awk '{{print}}' | jq .",
    "printf '%s' '$[1]' \"\\$[\" {url}; echo $[1]",
    "curl $(cat key) `cat other` $((1+1)) ${{HOME}} {url}",
    "[ -n {url} ] && [ {ticker} = SPX ] && printf '%s\\n' {url}",
    "printf '%s' $'tab' {url}",
    '"$HOME/bin/fetch" {url}',
    "docker run --rm -e U={url} image fetch",
    "U={url}; export U; sh fetch.sh",
    "curl --data url={url} --data-urlencode ticker={ticker} http://localhost/url",
    'curl "$GEX_URL" -o "$GEX_ID.json"',
    'echo $(curl "$GEX_URL")',
    "git clone -- {url}",
]

# template -> words of the reason
REFUSED = {
    # nested code
    'echo "$(curl {url})"': "inside $(…)",
    "echo $(curl '{url}')": "inside $(…)",
    "echo $(echo ')' {url})": "inside $(…)",
    'echo "$(echo "a)" {url})"': "inside $(…)",
    "echo $( (echo a) {url} )": "inside $(…)",
    "echo `curl {url}`": "inside `…`",
    'echo "`curl \\`echo x\\` {url}`"': "inside `…`",
    "echo $(( {id} + 1 ))": "inside $((…))",
    "echo $[{url}]": "arithmetic to bash",
    'echo "$[ 1 + {url} ]"': "arithmetic to bash",
    "echo $[1] {url}": "arithmetic to bash",
    "echo {url} $[1]": "sh and bash read differently",
    "echo ${{X:-{url}}}": "inside ${…}",
    'echo "${{X:-{url}}}"': "inside ${…}",
    "cat <(curl {url})": "process substitution",
    "tee >(cat {url})": "process substitution",
    "cat <<EOF\n{url}\nEOF": "heredoc",
    "cat <<'EOF'\n{url}\nEOF": "heredoc",
    "cat <<-EOF\n\t{url}\n\tEOF\n": "heredoc",
    "cat <<{url}\nx": "redirection",
    "cat <<EOF\nx\nEOF\ncurl {url}": "heredoc",
    # quoting that shells read differently
    "echo $'{url}'": "inside $'…'",
    "echo $'a\\'b' {url}": "backslash in it",
    'echo $"{url}"': 'inside $"…"',
    "echo \"${{X:-'a'}}\" {url}": "quotes or braces",
    'echo {url} "${{X:-"a"}}"': "sh and bash read differently",
    "echo ${url}": "follows a $",
    'echo "${url}"': "follows a $",
    "echo \\{url}": "follows a backslash",
    'echo "\\{url}"': "follows a backslash",
    "echo $\\\n(echo {url})": "without a blank before the backslash",
    "((x = {id}))": "sh and bash read differently",
    # programs that run their arguments
    "sh -c 'curl {url}'": "could be taken for code",
    'bash -ec "curl {url}"': "could be taken for code",
    "sh -c 'curl \"$1\"' sh {url}": "could be taken for code",
    "sh -s {url}": "could be taken for code",
    "sh {url}": "take it for a script",
    "sh -x {url}": "take it for a script",
    "/bin/sh -c {url}": "could be taken for code",
    "'sh' -c {url}": "could be taken for code",
    "s\\h -c {url}": "could be taken for code",
    "eval curl {url}": "eval runs commands",
    "e''val curl {url}": "eval runs commands",
    "su -c 'curl {url}' bot": "su runs commands",
    "ssh host curl {url}": "ssh runs commands",
    "xargs sh -c {url}": "xargs runs commands",
    "xargs -I X curl X {url}": "xargs runs commands",
    "make URL={url}": "make runs commands",
    "sed 's/x/{url}/' file": "sed runs commands",
    "find . -name {ticker} -exec sh -c 'x' ';'": "find runs commands",
    "sqlite3 x.db 'insert into t values (\"{url}\")'": "sqlite3 runs commands",
    "python -c \"print('{url}')\"": "inside the code of python",
    "python3 -uc 'print(\"{url}\")'": "could be taken for code",
    "python -m timeit {url}": "may run what it is given",
    "python {url}": "take it for a script",
    "perl -e 'print 1' {url}": "could be taken for code",
    "node -e 'x' {url}": "could be taken for code",
    "awk '{{print \"{url}\"}}' file": "awk would take it",
    "mytool -c {ticker}": "after -c",
    "mytool --exec='{url}'": "after --exec",
    "docker run image sh -c 'curl {url}'": "could be taken for code",
    "timeout 60 sh -c 'curl {url}'": "could be taken for code",
    "env A=b bash -c 'curl {url}'": "could be taken for code",
    "env -S 'curl {url}'": "could be taken for code",
    "nohup nice -n 5 sudo -u bot sh -c 'curl {url}' &": "could be taken for code",
    "if true; then sh -c '{url}'; fi": "could be taken for code",
    "A=b sh -c '{url}'": "could be taken for code",
    "x && ! sh -c '{url}'": "could be taken for code",
    # input of a shell
    "echo 'curl {url}' | sh": "read its program from a pipe",
    "echo {url} | tee log | bash -s": "could be taken for code",
    "{{ echo {url}; }} | (cat; sh)": "read its program from a pipe",
    "echo {url} | sudo sh -": "read its program from a pipe",
    "echo {url} | xargs curl": "xargs runs commands",
    "echo {url} | python": "read its program from a pipe",
    "echo {url} | while read -r u; do curl $u; done": "into a variable",
    "echo {url} | case x in x) sh;; esac": "flows by pipe",
    "sh <<< {url}": "target of a redirection",
    "echo {url} | `echo sh`": "it comes after",
    # where a command's name stands
    "{url}": "choose the program",
    "'{url}' x": "choose the program",
    "/opt/{ticker}/run": "choose the program",
    "true; {url}": "choose the program",
    "true | {url}": "choose the program",
    "true &\n{url}": "choose the program",
    "A=b {url}": "choose the program",
    '"A={url}" b': "choose the program",
    "if {url}; then true; fi": "choose the program",
    "> log {url}": "choose the program",
    "nohup {url}": "choose the program",
    "time {url}": "choose the program",
    "env A=b {url}": "choose the program",
    "timeout {id} curl x": "before the command",
    "$TOOL {url}": "must be plain text",
    "$HOME/bin/fetch {url}": "must be plain text",
    '$HOME/bin/fetch "$GEX_URL"': "must be plain text",
    "`echo eval` {url}": "must be plain text",
    # the shell's own
    "export A={url}": "the shell's own export",
    "cd {ticker}": "the shell's own cd",
    "set -- {url}": "the shell's own set",
    "for u in {url}; do curl $u; done": "the shell's own for",
    "read -r x{ticker}": "the shell's own read",
    "trap 'echo {url}' EXIT": "the shell's own trap",
    ". ./{ticker}": "the shell's own .",
    "[[ -v {url} ]]": "the shell's own [[",
    "test {endpoint} {url}": "only -n, -z, = and !=",
    "[ -v {url} ]": "only -n, -z, = and !=",
    "printf {url}": "its format",
    "printf -v {ticker} x": "its format",
    'f() {{ eval "$1"; }}; f {url}': "function",
    'function f {{ eval "$1"; }}; f {url}': "function",
    "a=({url})": "function or an array",
    "case {url} in x) true;; esac": "case",
    'curl "x$(case a in a) echo {url};; esac)"': "case",
    # variables
    "PATH={url} ls": "meaning of its own",
    "LD_PRELOAD={url} ls": "meaning of its own",
    "env BASH_ENV={url} bash x.sh": "meaning of its own",
    "U={url}; curl $U": "outside double quotes",
    'U={url}; eval "$U"': "eval runs commands",
    'U={url}; V="x$U"; sh -c "$V"': "could be taken for code",
    'U={url}; echo "$(sh -c "$U")"': "outside double quotes",
    "U={url} sh -c 'curl \"$U\"'": "outside double quotes",
    'U={url}; cat < "$U"': "choose the file",
    "U={url}; export U; sh -c 'curl $U'": "outside double quotes",
    "U={url}; echo $((U))": "outside double quotes",
    "env U={url} sh -c 'curl $U'": "$U is used in the same text",
    "docker run -e U={url} image sh -c 'curl ${{U}}'": "$U is used in the same text",
    "curl $GEX_URL": "split into words",
    'sh -c "curl $GEX_URL"': "could be taken for code",
    'sh -c "curl ${{GEX_URL}}"': "could be taken for code",
    'curl x > "$GEX_TICKER"': "choose the file",
    'echo "$GEX_URL" | sh': "read its program from a pipe",
    "time {{ {url}; }}": "choose the program",
    # files the shell opens
    "curl x > {ticker}": "choose the file",
    "curl x >> 'out/{ticker}.json'": "choose the file",
    "cat < {url}": "choose the file",
    # braces
    "echo {nope}": "unknown placeholder '{nope}'",
    "echo {}": "unknown placeholder",
    "echo {0}": "unknown placeholder",
    "echo { id}": "unknown placeholder",
    "echo {url.x}": "unknown placeholder",
    "echo {url[0]}": "unknown placeholder",
    "echo {id!r}": "no conversion or format",
    "echo {url:>10}": "no conversion or format",
    "echo {url": "{ without its }",
    "echo }": "} without its {",
    "echo {{url}": "} without its {",
    # no command
    "echo '{url}": "' without its end",
    'echo "{url}': '" without its end',
    "echo {url} \\": "backslash at the end",
    "echo $(echo {url}": "inside $(…)",
    "echo {url} $(echo": "( without its )",
    "(echo {url}": "( without its )",
    "echo {url} )": ") without its (",
    "echo {url} ${{X": "${ without its }",
    "echo {url} `x": "` without its end",
    "echo {url} >": "without its target",
    "echo {url}; fi": "the shell refuses it",
    "fi": "the shell refuses it",
    "echo \x07{url}": "control character",
    "  ": "no command",
}


@pytest.mark.parametrize("template", TAKEN)
def test_a_safe_template_becomes_references_fit_for_their_places(template):
    assert Template.parse(template).text == TAKEN[template]


@pytest.mark.parametrize("template", TAKEN_TOO)
def test_a_safe_template_is_taken(template):
    Template.parse(template)


@pytest.mark.parametrize("template", REFUSED)
def test_an_unsafe_template_is_refused_in_one_line_with_its_reason(template):
    with pytest.raises(ConfigError) as caught:
        Template.parse(template)
    text = str(caught.value)
    assert REFUSED[template] in text
    assert text.startswith("HISTORY_DOWNLOAD_COMMAND: ") and "\n" not in text


def test_the_place_of_a_refused_placeholder_is_named():
    with pytest.raises(ConfigError, match=r"\{url\} at character 25:"):
        Template.parse("curl '{ticker}' \"$(curl {url})\"")


# The more often a piece is named, the more often it comes: places for values are what is looked for.
# (A lone & is left out: what runs in the background prints in any order.)
PIECES = st.sampled_from(
    ["{url}", "{ticker}", "x{url}y"] * 6
    + ["'", '"', " ", "; printf '<%s>' "] * 4
    + [
        "a",
        "=",
        "$X",
        "${{X}}",
        "$(echo r s)",
        "`echo t u`",
        "$((1+2))",
        "$[1+",
        "]",
        "#",
        "~",
        "*",
        "?",
        "\n",
        " \\\n",
        "\\a",
        " | cat ",
    ]
    * 2
    + ["\\", "\\\n", "-", ";", "|", "&&", "(", ")", "<", ">", "<<E\n", "{{", "}}", "$", "!", "$'", "A=", "if ", "E\n"]
)
HOSTILE = "'\"`touch canary`$(touch canary)\\;touch canary\n*~ $X ${X} |touch canary&#\\"


def _output(shell: str, command: str, url: str, ticker: str, cwd) -> bytes:
    env = {"PATH": os.environ["PATH"], "X": "x y", "GEX_URL": url, "GEX_TICKER": ticker}
    done = subprocess.run(
        [shell, "-c", command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.stdout


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES, min_size=1, max_size=14).map("".join))
def test_what_is_taken_does_with_any_value_what_the_plain_text_does_with_a_plain_one(tmp_path_factory, pieces):
    template = "printf '<%s>' " + pieces
    try:
        command = Template.parse(template).text
    except ConfigError:
        reject()
    assume("GEX_" in command and "$$" not in command and "$!" not in command)  # process ids differ from run to run
    cwd = tmp_path_factory.getbasetemp() / "empty"
    shutil.rmtree(cwd, ignore_errors=True)
    cwd.mkdir()
    for shell in SHELLS[1:]:
        plain = _output(shell, template.format(url=".Qurl.", ticker=".Qtick."), "", "", cwd)
        assert _output(shell, command, ".Qurl.", ".Qtick.", cwd) == plain
        hostile = _output(shell, command, HOSTILE, HOSTILE + "2", cwd)
        assert not (cwd / "canary").exists()
        assert hostile == plain.replace(b".Qurl.", HOSTILE.encode()).replace(b".Qtick.", HOSTILE.encode() + b"2")


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("{}'\"\\$`()<>|&;#\n ashev-c=") | st.characters(), max_size=40))
def test_any_text_is_either_taken_or_refused_with_a_config_error(text):
    try:
        Template.parse(text)
    except ConfigError as problem:
        assert "\n" not in str(problem)
