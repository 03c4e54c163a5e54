"""Templates of the download command: which are taken, which are refused, and that no value of a client runs."""

import os
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from data_pipeline.config import ConfigError
from data_pipeline.history.command import Template, fit_values

SHELLS = [shell for shell in ("/bin/sh", shutil.which("dash"), shutil.which("bash")) if shell]

# Where a shell or a program could take a value for code, or as the name of a file: each is refused.
UNSAFE = [
    'echo "$(curl {url})"',
    "echo $(curl '{url}')",
    "echo $(echo ')' {url})",
    'echo "$(echo "a)" {url})"',
    "echo $( (echo a) {url} )",
    "echo `curl {url}`",
    'echo "`curl \\`echo x\\` {url}`"',
    "echo $(( {id} + 1 ))",
    "echo $[{url}]",
    'echo "$[ 1 + {url} ]"',
    "echo $[1] {url}",
    "echo {url} $[1]",
    "echo ${{X:-{url}}}",
    'echo "${{X:-{url}}}"',
    "cat <(curl {url})",
    "tee >(cat {url})",
    "cat <<EOF\n{url}\nEOF",
    "cat <<'EOF'\n{url}\nEOF",
    "cat <<-EOF\n\t{url}\n\tEOF\n",
    "cat <<{url}\nx",
    "cat <<EOF\nx\nEOF\ncurl {url}",
    "echo $'{url}'",
    "echo $'a\\'b' {url}",
    'echo $"{url}"',
    "echo \"${{X:-'a'}}\" {url}",
    'echo {url} "${{X:-"a"}}"',
    "echo ${url}",
    'echo "${url}"',
    "echo \\{url}",
    'echo "\\{url}"',
    "echo $\\\n(echo {url})",
    "((x = {id}))",
    "sh -c 'curl {url}'",
    'bash -ec "curl {url}"',
    "sh -c 'curl \"$1\"' sh {url}",
    "sh -s {url}",
    "sh {url}",
    "sh -x {url}",
    "/bin/sh -c {url}",
    "'sh' -c {url}",
    "s\\h -c {url}",
    "eval curl {url}",
    "e''val curl {url}",
    "su -c 'curl {url}' bot",
    "ssh host curl {url}",
    "xargs sh -c {url}",
    "xargs -I X curl X {url}",
    "make URL={url}",
    "sed 's/x/{url}/' file",
    "find . -name {ticker} -exec sh -c 'x' ';'",
    "sqlite3 x.db 'insert into t values (\"{url}\")'",
    "python -c \"print('{url}')\"",
    "python3 -uc 'print(\"{url}\")'",
    "python -m timeit {url}",
    "python {url}",
    "perl -e 'print 1' {url}",
    "node -e 'x' {url}",
    "awk '{{print \"{url}\"}}' file",
    "mytool -c {ticker}",
    "mytool --exec='{url}'",
    "docker run image sh -c 'curl {url}'",
    "timeout 60 sh -c 'curl {url}'",
    "env A=b bash -c 'curl {url}'",
    "env -S 'curl {url}'",
    "nohup nice -n 5 sudo -u bot sh -c 'curl {url}' &",
    "if true; then sh -c '{url}'; fi",
    "A=b sh -c '{url}'",
    "x && ! sh -c '{url}'",
    "echo 'curl {url}' | sh",
    "echo {url} | tee log | bash -s",
    "{{ echo {url}; }} | (cat; sh)",
    "echo {url} | sudo sh -",
    "echo {url} | xargs curl",
    "echo {url} | python",
    "echo {url} | while read -r u; do curl $u; done",
    "echo {url} | case x in x) sh;; esac",
    "sh <<< {url}",
    "echo {url} | `echo sh`",
    "{url}",
    "'{url}' x",
    "/opt/{ticker}/run",
    "true; {url}",
    "true | {url}",
    "true &\n{url}",
    "A=b {url}",
    '"A={url}" b',
    "if {url}; then true; fi",
    "> log {url}",
    "nohup {url}",
    "time {url}",
    "env A=b {url}",
    "timeout {id} curl x",
    "$TOOL {url}",
    "$HOME/bin/fetch {url}",
    '$HOME/bin/fetch "$GEX_URL"',
    "`echo eval` {url}",
    "export A={url}",
    "cd {ticker}",
    "set -- {url}",
    "for u in {url}; do curl $u; done",
    "read -r x{ticker}",
    "trap 'echo {url}' EXIT",
    ". ./{ticker}",
    "[[ -v {url} ]]",
    "test {endpoint} {url}",
    "[ -v {url} ]",
    "printf {url}",
    "printf -v {ticker} x",
    'f() {{ eval "$1"; }}; f {url}',
    'function f {{ eval "$1"; }}; f {url}',
    "a=({url})",
    "case {url} in x) true;; esac",
    'curl "x$(case a in a) echo {url};; esac)"',
    "PATH={url} ls",
    "LD_PRELOAD={url} ls",
    "env BASH_ENV={url} bash x.sh",
    "U={url}; curl $U",
    'U={url}; eval "$U"',
    'U={url}; V="x$U"; sh -c "$V"',
    'U={url}; echo "$(sh -c "$U")"',
    "U={url} sh -c 'curl \"$U\"'",
    'U={url}; cat < "$U"',
    "U={url}; export U; sh -c 'curl $U'",
    "U={url}; echo $((U))",
    "env U={url} sh -c 'curl $U'",
    "docker run -e U={url} image sh -c 'curl ${{U}}'",
    "curl $GEX_URL",
    'sh -c "curl $GEX_URL"',
    'sh -c "curl ${{GEX_URL}}"',
    'curl x > "$GEX_TICKER"',
    'echo "$GEX_URL" | sh',
    "time {{ {url}; }}",
    "curl x > {ticker}",
    "curl x >> 'out/{ticker}.json'",
    "cat < {url}",
    "echo '{url}",
    'echo "{url}',
    "echo {url} \\",
    "echo $(echo {url}",
    "echo {url} $(echo",
    "(echo {url}",
    "echo {url} )",
    "echo {url} ${{X",
    "echo {url} `x",
    "echo {url} >",
    "URL={url} make",
    "make URL='$(GEX_URL)'",
    "make fetch URL={url}",
    "printf {url} > job.sh && sh job.sh",
    "printf '%s' {url} > job.sh && sh job.sh",
    "printf '%s' {url} > job.sh; ./job.sh",
    "sh job.sh; printf '%s' {url} > job.sh",
    "curl -o job.sh -- {url} && sh job.sh",
    "curl -o job-{id}.sh -- {url} && sh job-{id}.sh",
    "curl -o cat -- {url}; ./cat x",
    "sh job.sh {url} >> job.sh",
    "sh job.sh {url} | tee -a ./job.sh",
    "./fetch {url} > job.sh && sh job.sh",
    "sort --compress-program={url} x",
    "/usr/bin/sort --compress-program={url} x",
    "sort --compress-program {ticker} x",
    "tar --to-command={url} -xf x",
    "tar -xf {ticker}",
    "tar xf x --checkpoint-action=exec={ticker}",
    "git -c core.pager={url} log",
    "git clone {ticker}",
    "curl -K {ticker}",
    "printf '%s' {ticker} | curl -K -",
    "printf '%s' {ticker} | curl --config -",
    "curl -{ticker} https://x",
    "curl -O {url}",
    "curl -fsSLO {url}",
    "curl -J --remote-name {url}",
    "curl -o '#1' {url}",
    "curl -o {ticker} -- {url}",
    "curl --create-dirs -o {url} {url}",
    "wget {url}",
    "wget -e {ticker} -O x",
    "wget -i - -O {url}",
    "pip install {url}",
    "npx {ticker}",
    "venv/bin/pip install {url}",
    "python3 venv/bin/pip install {url}",
    "docker run {ticker}",
    "export URL={url}; make",
    "env X={url} make",
    "sudo sh fetch.sh {url}",
    "exec sh fetch.sh {url}",
    "time sh fetch.sh {url}",
    "source ./env; sh fetch.sh {url}",
    "mv x {ticker}",
    "./fetch --exec --opt={url}",
    "cd {id}",
    "exit {id}",
    "test -s {id}",
    "cp x {url}",
    "tee {ticker}",
    "cat {ticker}",
    "rm -f {ticker}",
    "ls * {url}",
    "echo ? {url}",
    "echo {url} # it",
    "sh fetch.sh {url} &> log",
    "sh fetch.sh {url} >| log",
    "sh fetch.sh {url} >& log",
    "sh fetch.sh {url} 2>&1x",
    "sh /dev/stdin {url}",
    "sh - {url}",
    "sh fetch-{ticker}.sh",
    "./fetch -c {ticker}",
    "./fetch --on-exec {url}",
    "./fetch --exec={url}",
    "./run sh -c {url}",
    "./run bash {url}",
    "~/bin/env sh -c {url}",
    "echo\xa0{url}",
    "2>&1 echo {url}",
    "> log echo {url}",
    "a=b echo {url}",
    "unknown {url}",
    "sh a.sh {url}; sh b.sh",
    "python3 fetch.py {url} || python3 alert.py {url}",
    "sh fetch.sh {url} || echo {url} >> failed",
    "curl -- {url} | sh",
    "curl -- {url} | python3 load.py",
    "curl -- {url} | ./load",
    "echo {url} \\\\; sh",
    'echo "a\\\\" {url}',
]
# What may well be safe, but takes more of the shell's grammar than is followed here.
BEYOND_THE_GRAMMAR = [
    "curl -o '{ticker}-{id}.json' {url}",
    "curl --url={url} x{ticker}y",
    "awk '{{print}}' {url}",
    "echo {{{url}}}",
    "URL={url} sh fetch.sh",
    'URL={url}; curl "$URL" > out-{id}',
    "curl {url} # don't {ticker}",
    "cat <<EOF | curl -d @- {url}\nhello\nEOF",
    "(cd data && curl -O {url}) 2>&1",
    "sh -c 'curl \"$GEX_URL\"'",
    "python3.11 -c 'import sys; print(sys.argv)' {url}",
    "python -m mytool {url}",
    "python - {url} <<'X'\nprint(1)\nX",
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
# template -> what the shell gets
TAKEN = {
    "curl {url}": 'curl "${GEX_URL}"',
    "curl '{url}'": "curl ''\"${GEX_URL}\"''",
    'curl "{url}"': 'curl "${GEX_URL}"',
    "echo ~{ticker} ~/{ticker}": 'echo ~"${GEX_TICKER}" ~/"${GEX_TICKER}"',
    "curl \\\n  {url}": 'curl \\\n  "${GEX_URL}"',
    "curl -o {id}.json -- '{url}'": "curl -o \"${GEX_ID}\".json -- ''\"${GEX_URL}\"''",
    "sh fetch.sh {url}": 'sh fetch.sh "${GEX_URL}"',
    "curl -d '{{\"id\": {id}}}' 'https://x/{ticker}'": "curl -d '{\"id\": '\"${GEX_ID}\"'}' 'https://x/'\"${GEX_TICKER}\"''",
}
TAKEN_TOO = [
    "python -u fetch.py {url}",
    "bash -eu fetch.sh {url}",
    "python3 fetch.py {url} {ticker}",
    "curl -- {url} | gzip > x",
    "curl -fsSL {url} | gzip > {id}.json.gz",
    "/usr/bin/curl -sS {url} -o {id}.json",
    'venv/bin/python scripts/backfill.py --url {url} --ticker={ticker} --endpoint "{endpoint}" >> download.log 2>&1',
    "cd data && ./fetch {url} '{ticker}' 2> errors-{id}.log || echo 'failed: {id}' >> failed.log",
    "~/bin/fetch -- {url} &",
    "/opt/gex/fetch {url}",
    "/usr/local/bin/fetch {url}",
    "wget -q -O {id}.json -- {url}",
    "wget -qO- {url} | jq . > {id}.json\nsleep 1",
    "mkdir -p out; curl -o out/{id}.part {url} && mv out/{id}.part out/{id}.json",
    "printf '%s\\n' {url} {ticker} >> links.txt",
    "logger -t gex 'link {id}: {url}'",
    "curl -o - {url} | gzip > {id}.gz",
    "curl -XPOST -H 'A: b' -d @body.json -- {url}",
    "node fetch.js {url}",
    "perl fetch.pl {url}",
    "sh -eu fetch.sh {url} < /dev/null",
    "true {id} {url} '{ticker}' \"{endpoint}\"",
    "make",
    "sh -c 'exec make $X' | sort",
]
# template -> words of the reason
NO_TEMPLATE = {
    "echo {nope}": "unknown placeholder '{nope}'",
    "echo {}": "unknown placeholder",
    "echo {0}": "unknown placeholder",
    "echo { id}": "unknown placeholder",
    "echo {url.x}": "unknown placeholder",
    "echo {url[0]}": "unknown placeholder",
    "echo {id!r}": "no conversion or format",
    "echo {url:>10}": "no conversion or format",
    "echo {url": "a brace without its other",
    "echo }": "a brace without its other",
    "echo {{url}": "a brace without its other",
    "fi": "the shell refuses it",
    "echo {id} &&": "the shell refuses it",
    "echo {id} ;; echo": "the shell refuses it",
    "echo \x07{url}": "control character",
    "echo \x01": "control character",
    "echo \ud800": "control character",
    "  ": "no command",
}


@pytest.mark.parametrize("template", TAKEN)
def test_a_safe_template_becomes_references_fit_for_their_places(template):
    assert Template.parse(template).text == TAKEN[template]


@pytest.mark.parametrize("template", TAKEN_TOO)
def test_a_simple_template_is_taken(template):
    Template.parse(template)


def refusal(template: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Template.parse(template)
    text = str(caught.value)
    assert text.startswith("HISTORY_DOWNLOAD_COMMAND: ") and text.isprintable() and len(text) < 300
    return text


@pytest.mark.parametrize("template", UNSAFE + BEYOND_THE_GRAMMAR)
def test_what_is_outside_the_grammar_is_refused_in_one_line_that_says_put_it_into_a_script(template):
    assert refusal(template).endswith("; put it into a script, as in: sh fetch.sh {url}")


@pytest.mark.parametrize("template", NO_TEMPLATE)
def test_what_is_no_template_is_refused_in_one_line_with_its_reason(template):
    assert NO_TEMPLATE[template] in refusal(template)


def test_the_refused_piece_is_named_with_its_placeholders():
    assert "'-o {ticker}.json': a value must not stand in an option" in refusal("curl -o '{ticker}.json' -- {url}")


def test_a_template_that_names_no_value_is_the_operators_own():
    assert (
        Template.parse("for x in $(ls *.todo); do make ${{x}}; done").text
        == "for x in $(ls *.todo); do make ${x}; done"
    )


HOSTILE = "'\"`touch canary`$(touch canary)\\;touch canary\n*~ $X ${X} |touch canary&#\\"
TRICKS = [
    HOSTILE,
    "$(touch canary)",
    "`touch canary`",
    "';touch canary;'",
    '";touch canary;"',
    "\ntouch canary\n",
    "x\noutput=canary",
    "touch canary",
    "./canary.sh",
    "canary.sh",
    "sh -c 'touch canary'",
    "exec=./canary.sh",
    "ext::sh -c 'touch canary'",
    "|touch canary",
    "&touch canary",
    "a[$(touch canary)]",
    "() { :;}; touch canary",
    "__import__('os').system('touch canary')",
    "../../canary",
    "> canary",
    "{touch,canary}",
    "%s%n\\0",
]


def test_no_template_that_is_taken_runs_anything_of_any_hostile_value(tmp_path):
    """Every template above that passes, with every trick in every value, under the real shell."""
    folder, programs = tmp_path / "root", tmp_path / "programs"
    for name in ("", "bin", "data", "scripts", "venv/bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    programs.mkdir()

    def program(path: pathlib.Path, text: str = '#!/bin/sh\nprintf "%s\\n" "$@"\n') -> None:
        path.write_text(text)
        path.chmod(0o755)

    for path in ("fetch", "fetch.sh", "job.sh", "x", "load", "data/fetch", "bin/fetch"):
        program(folder / path)
    for path in ("fetch.py", "load.py", "look.py", "scripts/backfill.py"):
        program(folder / path, "import sys\nprint(*map(ascii, sys.argv))\n")
    program(folder / "canary.sh", "#!/bin/sh\ntouch canary\n")
    # curl and wget that write their last argument, as a server might answer, to where they are told.
    downloader = (
        '#!/bin/sh\nto=/dev/stdout\nfor a; do case $b in -o|-O) to=$a;; esac; b=$a; done\nprintf "%s\\n" "$b" > "$to"\n'
    )
    program(programs / "curl", downloader)
    program(programs / "wget", downloader)
    for name in ("make", "logger", "sleep", "node"):
        program(programs / name, "#!/bin/sh\ncat\n")
    taken = 0
    for template in [*UNSAFE, *BEYOND_THE_GRAMMAR, *TAKEN, *TAKEN_TOO]:
        try:
            command = Template.parse(template).text
        except ConfigError:
            continue
        taken += 1
        for trick in TRICKS:
            values = fit_values(taken, "https://x/" + trick, trick, trick)
            environment = {b"PATH": f"{programs}:{os.environ['PATH']}".encode(), b"HOME": bytes(folder)} | values
            arguments = ["/bin/sh", "-c", command]
            subprocess.run(arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
            assert not list(tmp_path.glob("**/canary")), f"{template!r} with {trick!r}"
    assert taken == len(TAKEN) + len(TAKEN_TOO)


# The more often a piece is named, the more often it comes: places for values are what is looked for.
# (A lone & is left out: what runs in the background prints in any order.)
PIECES = st.sampled_from(
    ["{url}", "{ticker}", "x{url}y"] * 6
    + ["'", '"', " ", "; printf '<%s>' "] * 4
    + ["a", "=", ":", "\n", " \\\n", " | cat ", " > {id}", " 2>&1 "] * 2
    + ["\\", "\\\n", "-", ";", "|", "&&", "(", ")", "<", ">", "{{", "}}", "$", "`", "#", "*", "?", "!", "[", "2"]
)


def _output(shell: str, command: str, url: str, ticker: str, cwd) -> bytes:
    env = {"PATH": os.environ["PATH"], "X": "x y", "GEX_URL": url, "GEX_TICKER": ticker, "GEX_ID": "7"}
    done = subprocess.run(
        [shell, "-c", command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.stdout + b"".join(path.read_bytes() for path in sorted(cwd.iterdir()))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES, min_size=1, max_size=14).map("".join))
def test_what_is_taken_does_with_any_value_what_the_plain_text_does_with_a_plain_one(tmp_path_factory, pieces):
    template = "printf '<%s>' " + pieces
    try:
        command = Template.parse(template).text
    except ConfigError:
        reject()
    # Two of a pipe that write to one file do so in any order.
    assume("GEX_" in command and not ("|" in command and ">" in command.replace("<%s>", "")))
    for shell in SHELLS[1:]:

        def output(text: str, url: str, ticker: str) -> bytes:
            cwd = tmp_path_factory.getbasetemp() / "empty"
            shutil.rmtree(cwd, ignore_errors=True)
            cwd.mkdir()
            return _output(shell, text, url, ticker, cwd)

        plain = output(template.format(url=".Qurl.", ticker=".Qtick.", id="7"), "", "")
        assert output(command, ".Qurl.", ".Qtick.") == plain
        hostile = output(command, HOSTILE, HOSTILE + "2")
        assert hostile == plain.replace(b".Qurl.", HOSTILE.encode()).replace(b".Qtick.", HOSTILE.encode() + b"2")


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("{}'\"\\$`()<>|&;#\n ashev-c=") | st.characters(), max_size=40))
def test_any_text_is_either_taken_or_refused_with_a_config_error(text):
    try:
        Template.parse(text)
    except ConfigError as problem:
        assert "\n" not in str(problem)
