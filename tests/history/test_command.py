"""The download command with real shells and real children."""

import contextlib
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from data_pipeline.history.command import VALUE_LIMIT, DownloadRunner, Template, UnfitValue

SHELLS = [shell for shell in ("/bin/sh", shutil.which("dash"), shutil.which("bash")) if shell]
# Every value in the three contexts; the builtin printf makes it one process a link.
CONTEXTS = (
    "printf '%s\\0' {url} 'a{url}b' \"c{url}d\" {ticker} '{ticker}' \"{ticker}\""
    " {endpoint} 'x'{endpoint}'y' \"'{endpoint}'\""
)
EXTERNAL = "env " + CONTEXTS


def expected(url: str, ticker: str, endpoint: str) -> bytes:
    texts = (url, f"a{url}b", f"c{url}d", ticker, ticker, ticker, endpoint, f"x{endpoint}y", f"'{endpoint}'")
    return b"".join(text.encode("utf-8", "surrogatepass") + b"\0" for text in texts)


PARTS = (
    [
        "'",
        '"',
        "`",
        "$",
        "\\",
        "\n",
        "\r",
        "\t",
        " ",
        ";",
        "&",
        "|",
        "<",
        ">",
        "(",
        ")",
        "{",
        "}",
        "*",
        "?",
        "[",
        "]",
        "~",
        "#",
        "!",
        "=",
        "%",
        "-",
    ]
    + [
        "$(touch canary)",
        "`touch canary`",
        "';touch canary;'",
        '";touch canary;"',
        "'\"$(touch canary)\"'",
        "\ntouch canary\n",
        "&&touch canary",
    ]
    + [
        "${GEX_URL}",
        "$GEX_URL",
        "$((1+1))",
        "{url}",
        "a[$(touch canary)]",
        "() { :;}; touch canary",
        "\\'",
        '\\"',
        "\\\\",
        "%s",
        "%n",
        "\\0",
        "\\c",
    ]
    + [
        "-n",
        "--",
        "/etc/passwd",
        "../",
        "NQ_NDX",
        "https://hist.gex.bot/a?b=c&d=%20",
        "\ud800",
        "\udcff",
        "é",
        "€",
        "😀",
        "\u0081",
        "\u2028",
        "\ufeff",
        "\x01\x02\x7f\x88",
    ]
)


def value(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.7:
        return "".join(rng.choices(PARTS, k=rng.randrange(8)))
    if kind < 0.99:
        return "".join(
            chr(rng.choice((rng.randrange(1, 128), rng.randrange(1, 0x11000)))) for _ in range(rng.randrange(20))
        )
    return "".join(rng.choices("'\"$`\\ \nab", k=rng.randrange(2000)))


@contextlib.contextmanager
def running(template: str, cwd: pathlib.Path, **options):
    runner = DownloadRunner(Template.parse(template), cwd, **options)
    runner.start()
    try:
        yield runner
    finally:
        assert runner.stop(10)


def wait_until(condition, seconds: float = 20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def finished(runner) -> int:
    stats = runner.stats()
    return stats["succeeded"] + stats["failed"]


def test_ten_thousand_random_values_arrive_byte_for_byte_and_none_runs_anything(tmp_path):
    rng = random.Random(20261124)
    links = [(value(rng), value(rng), value(rng)) for _ in range(3334)]
    with running(CONTEXTS + " > out-{id}", tmp_path) as runner:
        for number, link in enumerate(links):
            assert runner.submit(number, *link)
        wait_until(lambda: finished(runner) == len(links), 120)
        assert runner.stats()["failed"] == 0
    wrong = [n for n, link in enumerate(links) if (tmp_path / f"out-{n}").read_bytes() != expected(*link)]
    assert wrong == []
    assert not list(tmp_path.glob("**/canary*")) and len(list(tmp_path.iterdir())) == len(links)


@pytest.mark.parametrize("template", [CONTEXTS, EXTERNAL], ids=["builtin", "program"])
@pytest.mark.parametrize("shell", SHELLS)
def test_values_arrive_byte_for_byte_in_each_shell(shell, template, tmp_path):
    rng = random.Random(shell + template)
    command = Template.parse(template)
    for number in range(150):
        link = (value(rng), value(rng), value(rng))
        done = subprocess.run(
            [shell, "-c", command.text],
            env=command.environment(number, *link),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
        )
        assert done.stdout == expected(*link)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
def test_tildes_and_assignments_change_nothing(shell, tmp_path):
    command = Template.parse('A={url} B=x:{ticker} C=~{endpoint}; printf \'%s\\0\' "$A" "$B" "$C" ~{ticker}')
    done = subprocess.run(
        [shell, "-c", command.text],
        env=command.environment(1, "~root", "~/x *", "root"),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"~root\0x:~/x *\0~root\0~~/x *\0"


def test_the_largest_values_arrive_and_larger_ones_are_logged_and_not_run(tmp_path, caplog):
    with running(
        "env printf '%s' {url} > out-{id}; printf '%s' '{ticker}' \"{endpoint}\" >> out-{id}", tmp_path
    ) as runner:
        largest = "é" * (VALUE_LIMIT // 2)
        assert runner.submit(1, largest, largest, largest)
        assert not runner.submit(2, "secret" + largest, "T", "e")
        assert not runner.submit(3, "u", "secret\0", "e")
        wait_until(lambda: finished(runner) == 1)
        assert runner.stats()["refused"] == 2
    assert (tmp_path / "out-1").read_text() == largest * 3
    assert [p.name for p in tmp_path.iterdir()] == ["out-1"]
    assert "History download 2 is not run: its url has 102406 bytes, more than 102400" in caplog.text
    assert "History download 3 is not run: its ticker holds a NUL character" in caplog.text
    assert "secret" not in caplog.text


def test_the_environment_says_which_value_does_not_fit():
    with pytest.raises(UnfitValue, match="endpoint"):
        Template.parse("true").environment(1, "u", "t", "\0")


def test_a_child_has_its_own_session_no_input_and_the_projects_folder(tmp_path):
    script = (
        "import os, sys\n"
        "print(os.getsid(0) in (os.getpid(), os.getppid()), sys.stdin.read() == '', os.getcwd())\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
    )
    (tmp_path / "look.py").write_text(script)
    with running(f"{sys.executable} look.py > out-{{id}}", tmp_path) as runner:
        runner.submit(1, "u", "T", "e")
        wait_until(lambda: finished(runner) == 1)
    assert (tmp_path / "out-1").read_text() == f"True True {tmp_path}\n[0, 1, 2]\n"


def test_exit_codes_and_signals_are_logged_and_children_reaped(tmp_path, caplog):
    caplog.set_level(logging.INFO, "webhook")
    with running(
        "[ {url} = ok ] || [ {url} = bad ] && exit 0; [ {url} = bad2 ] && exit 7; kill -9 $$ # {id}", tmp_path
    ) as runner:
        runner.submit(1, "ok", "T", "e")
        runner.submit(2, "bad2", "T", "e")
        runner.submit(3, "killed", "T", "e")
        wait_until(lambda: finished(runner) == 3)
        assert runner.stats() == {
            "started": 3,
            "succeeded": 1,
            "failed": 2,
            "refused": 0,
            "dropped": 0,
            "waiting": 0,
            "running": 0,
        }
    assert "History download 1 ended with exit code 0" in caplog.text
    assert "History download 2 ended with exit code 7" in caplog.text
    assert "History download 3 was ended by signal 9" in caplog.text
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_at_most_four_run_at_once_and_the_others_wait_their_turn(tmp_path):
    os.mkfifo(tmp_path / "gate")
    with running("echo {id} > started-{id}; read -r x < gate; true", tmp_path) as runner:
        for number in range(10):
            assert runner.submit(number, "u", "T", "e")
        seen = 0
        gate = os.open(tmp_path / "gate", os.O_RDWR)
        while finished(runner) < 10:
            wait_until(lambda: runner.stats()["running"] == min(4, 10 - finished(runner)))
            seen = max(seen, runner.stats()["running"])
            assert len(list(tmp_path.glob("started-*"))) <= finished(runner) + 4
            done = finished(runner)
            os.write(gate, b"go\n")
            wait_until(lambda: finished(runner) > done)
        os.close(gate)
        assert seen == 4
    assert sorted(int(p.name[8:]) for p in tmp_path.glob("started-*")) == list(range(10))


def test_a_stop_starts_no_more_leaves_what_runs_and_names_what_was_not_started(tmp_path, caplog):
    os.mkfifo(tmp_path / "gate")
    runner = DownloadRunner(
        Template.parse("echo $$ > pid-{id}; read -r x < gate; echo done > done-{id}"), tmp_path, at_once=1
    )
    runner.start()
    for number in (1, 2, 3):
        assert runner.submit(number, "u", "T", "e")
    wait_until(lambda: (tmp_path / "pid-1").exists() and (tmp_path / "pid-1").read_text())
    began = time.monotonic()
    assert runner.stop(5)
    assert time.monotonic() - began < 4
    assert "2 history downloads were not started and stay queued: 2, 3" in caplog.text
    assert "Left running: history downloads 1" in caplog.text
    assert not runner.submit(4, "u", "T", "e")
    assert "History download 4 stays queued: the server stops" in caplog.text
    with open(tmp_path / "gate", "w") as gate:
        gate.write("go\n")
    os.waitpid(int((tmp_path / "pid-1").read_text()), 0)
    assert (tmp_path / "done-1").exists() and not (tmp_path / "pid-2").exists()


def test_links_beyond_the_memory_are_logged_and_not_lost_silently(tmp_path, caplog):
    runner = DownloadRunner(Template.parse("printf '%s' {url} > out-{id}"), tmp_path, memory=5000)
    taken = [runner.submit(n, "u" * 1000, "T", "e") for n in range(10)]
    assert 0 < sum(taken) < 10 and taken == sorted(taken, reverse=True)
    assert f"History download {sum(taken)} stays queued: too many are waiting" in caplog.text
    runner.start()  # what was taken before the start runs
    wait_until(lambda: finished(runner) == sum(taken))
    assert runner.submit(99, "u" * 1000, "T", "e")
    wait_until(lambda: finished(runner) == sum(taken) + 1)
    assert runner.stop(5)


def test_a_command_that_cannot_be_started_is_logged_and_the_next_one_is_tried(tmp_path, caplog):
    gone = tmp_path / "gone"
    with running("printf x > out-{id}", gone) as runner:
        runner.submit(1, "u", "T", "e")
        wait_until(lambda: finished(runner) == 1)
        gone.mkdir()
        runner.submit(2, "u", "T", "e")
        wait_until(lambda: finished(runner) == 2)
    assert "History download 1 could not be started: FileNotFoundError" in caplog.text
    assert (gone / "out-2").exists()


def test_the_thread_has_its_name_and_is_gone_after_the_stop(tmp_path):
    with running("true", tmp_path):
        assert "HistoryDownloads" in [t.name for t in threading.enumerate()]
    assert "HistoryDownloads" not in [t.name for t in threading.enumerate()]
    assert DownloadRunner(Template.parse("true"), tmp_path).stop(0)


def test_the_output_of_a_command_holds_no_pipe_of_the_server_open(tmp_path):
    """A service manager that reads the server's output to its end must not wait for a download."""
    code = (
        "import pathlib, sys, time\nfrom data_pipeline.history.command import DownloadRunner, Template\n"
        "cwd = pathlib.Path(sys.argv[1])\ntemplate = Template.parse('echo $$ > pid-{id}; echo noise; exec sleep 60')\n"
        "runner = DownloadRunner(template, cwd)\n"
        "runner.start(); runner.submit(1, 'u', 'T', 'e')\n"
        "while not (cwd / 'pid-1').exists() or not (cwd / 'pid-1').read_text(): time.sleep(0.01)\nrunner.stop(5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
    )
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    assert done.returncode == 0 and b"noise" not in done.stdout and b"Traceback" not in done.stdout
