"""The download command with real shells and real children."""

import contextlib
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from data_pipeline.history.command import (
    VALUE_LIMIT,
    DownloadRunner,
    Template,
    UnfitValue,
    child_environment,
    fit_values,
)
from tests.helpers.support import eventually

SHELLS = [shell for shell in ("/bin/sh", shutil.which("dash"), shutil.which("bash")) if shell]
# Every value in the three contexts; the builtin printf makes it one process a link.
CONTEXTS = (
    "printf '%s\\0' {url} 'a{url}b' \"c{url}d\" {ticker} '{ticker}' \"{ticker}\""
    " {endpoint} 'x'{endpoint}'y' \"'{endpoint}'\""
)
EXTERNAL = CONTEXTS.replace("printf", "/usr/bin/printf")


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
        made = "".join(rng.choices(PARTS, k=rng.randrange(8)))
    elif kind < 0.99:
        made = "".join(
            chr(rng.choice((rng.randrange(1, 128), rng.randrange(1, 0x11000)))) for _ in range(rng.randrange(20))
        )
    else:
        made = "".join(rng.choices("'\"$`\\ \nab", k=rng.randrange(2000)))
    return made.lstrip("-")


def link(rng: random.Random) -> tuple[str, str, str]:
    return "https://x" + value(rng), value(rng), value(rng)


@contextlib.contextmanager
def running(template: str, cwd: pathlib.Path, **options):
    runner = DownloadRunner(Template.parse(template), cwd, **options)
    runner.start()
    try:
        yield runner
    finally:
        assert runner.stop(10)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "HistoryDownloads"]


def finished(runner) -> int:
    stats = runner.stats()
    return stats["succeeded"] + stats["failed"]


def test_ten_thousand_random_values_arrive_byte_for_byte_and_none_runs_anything(tmp_path):
    rng = random.Random(20261124)
    links = [link(rng) for _ in range(3334)]
    with running(CONTEXTS + " > out-{id}", tmp_path) as runner:
        for number, values in enumerate(links):
            assert runner.submit(number, *values)
        eventually(lambda: finished(runner) == len(links), 120)
        assert runner.stats()["failed"] == 0
    wrong = [n for n, values in enumerate(links) if (tmp_path / f"out-{n}").read_bytes() != expected(*values)]
    assert wrong == []
    assert not list(tmp_path.glob("**/canary*")) and len(list(tmp_path.iterdir())) == len(links)


@pytest.mark.parametrize("template", [CONTEXTS, EXTERNAL], ids=["builtin", "program"])
@pytest.mark.parametrize("shell", SHELLS)
def test_values_arrive_byte_for_byte_in_each_shell(shell, template, tmp_path):
    rng = random.Random(shell + template)
    command = Template.parse(template)
    for number in range(150):
        values = link(rng)
        done = subprocess.run(
            [shell, "-c", command.text],
            env=child_environment(fit_values(number, *values)),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
        )
        assert done.stdout == expected(*values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
def test_tildes_change_nothing(shell, tmp_path):
    command = Template.parse("printf '%s\\0' ~{ticker} A={ticker} ~/{endpoint}")
    environment = child_environment(fit_values(1, "https://x", "root", "~/x *")) | {b"HOME": b"/home/of"}
    done = subprocess.run([shell, "-c", command.text], env=environment, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"~root\0A=root\0/home/of/~/x *\0"


def test_the_largest_values_arrive_and_larger_ones_are_logged_and_not_run(tmp_path, caplog):
    with running("printf '%s' {url} '{ticker}' \"{endpoint}\" > out-{id}", tmp_path) as runner:
        largest = "é" * (VALUE_LIMIT // 2)
        url = "https://" + "x" * (VALUE_LIMIT - 8)
        assert runner.submit(1, url, largest, largest)
        assert not runner.submit(2, url + "secret", "T", "e")
        assert not runner.submit(3, "https://x", "secret\0", "e")
        eventually(lambda: finished(runner) == 1)
        assert runner.stats()["refused"] == 2
    assert (tmp_path / "out-1").read_text() == url + largest * 2
    assert [p.name for p in tmp_path.iterdir()] == ["out-1"]
    assert "History download 2 is not run: its url has 8198 bytes, more than 8192" in caplog.text
    assert "History download 3 is not run: its ticker holds a NUL character" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "values, why",
    [
        (("--output=/etc/x", "T", "e"), "its url begins with -"),
        (("https://x", "-Kfile", "e"), "its ticker begins with -"),
        (("https://x", "T", "--exec=sh"), "its endpoint begins with -"),
        (("file:///etc/passwd", "T", "e"), "its url is no http:// or https:// address"),
        (("ext::sh -c x", "T", "e"), "its url is no http:// or https:// address"),
        (("https:///etc", "T", "e"), "its url is no http:// or https:// address"),
        (("https://\n", "T", "e"), "its url is no http:// or https:// address"),
        (("https://", "T", "e"), "its url is no http:// or https:// address"),
        ((" https://x", "T", "e"), "its url is no http:// or https:// address"),
        (("https://x", "T", "\0"), "its endpoint holds a NUL character"),
    ],
)
def test_a_value_that_could_be_an_option_and_a_url_that_is_no_web_address_are_logged_and_not_run(
    values, why, tmp_path, caplog
):
    with running("printf x > out-{id}", tmp_path) as runner:
        assert not runner.submit(7, *values)
        assert runner.stats()["refused"] == 1 and runner.stats()["waiting"] == 0
    with pytest.raises(UnfitValue, match=why):
        fit_values(7, *values)
    assert [record.getMessage() for record in caplog.records if why in record.getMessage()]
    assert caplog.text.count("\n") == 1 and "History download 7 is not run" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_child_finds_the_values_and_the_servers_environment_without_its_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("GEXBOT_API_KEY", "hush-1")
    monkeypatch.setenv("DISCORD_BOT_TOKEN", "hush-2")
    monkeypatch.setenv("DASHBOARD_URL", "http://127.0.0.1:1")
    with running("env > out; mv out done", tmp_path) as runner:
        runner.submit(1, "https://x", "SPX", "gex_zero")
        eventually(lambda: finished(runner) == 1)
    found = (tmp_path / "done").read_text()
    assert "hush" not in found and "DASHBOARD_URL=http://127.0.0.1:1\n" in found
    for line in ("GEX_ID=1", "GEX_URL=https://x", "GEX_TICKER=SPX", "GEX_ENDPOINT=gex_zero"):
        assert line + "\n" in found


def test_a_child_has_its_own_session_no_input_and_the_projects_folder(tmp_path):
    script = (
        "import os, sys\n"
        "print(os.getsid(0) in (os.getpid(), os.getppid()), sys.stdin.read() == '', os.getcwd())\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
    )
    (tmp_path / "look.py").write_text(script)
    with running(f"{sys.executable} look.py > out-{{id}}", tmp_path) as runner:
        runner.submit(1, "https://x", "T", "e")
        eventually(lambda: finished(runner) == 1)
    assert (tmp_path / "out-1").read_text() == f"True True {tmp_path}\n[0, 1, 2]\n"


def test_exit_codes_and_signals_are_logged_and_children_reaped(tmp_path, caplog):
    caplog.set_level(logging.INFO, "webhook")
    (tmp_path / "end.sh").write_text('[ "$1" = ok ] && exit 0; [ "$1" = bad ] && exit 7; kill -9 $PPID')
    with running("sh end.sh {ticker}; exit", tmp_path) as runner:
        runner.submit(1, "https://x", "ok", "e")
        runner.submit(2, "https://x", "bad", "e")
        runner.submit(3, "https://x", "killed", "e")
        eventually(lambda: finished(runner) == 3)
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
    with running("echo {id} > started-{id}; head -n 1 gate", tmp_path) as runner:
        for number in range(10):
            assert runner.submit(number, "https://x", "T", "e")
        seen = 0
        gate = os.open(tmp_path / "gate", os.O_RDWR)
        while finished(runner) < 10:
            eventually(lambda: runner.stats()["running"] == min(4, 10 - finished(runner)))
            seen = max(seen, runner.stats()["running"])
            assert len(list(tmp_path.glob("started-*"))) <= finished(runner) + 4
            done = finished(runner)
            os.write(gate, b"go\n")
            eventually(lambda: finished(runner) > done)
        os.close(gate)
        assert seen == 4
    assert sorted(int(p.name[8:]) for p in tmp_path.glob("started-*")) == list(range(10))


def test_a_stop_starts_no_more_leaves_what_runs_and_names_what_was_not_started(tmp_path, caplog):
    os.mkfifo(tmp_path / "gate")
    runner = DownloadRunner(Template.parse("echo x > began-{id}; cat gate; echo done > done-{id}"), tmp_path, at_once=1)
    runner.start()
    for number in (1, 2, 3):
        assert runner.submit(number, "https://x", "T", "e")
    eventually((tmp_path / "began-1").exists)
    assert not runner.stop(5), "it says that one is left running"
    assert "2 history downloads were not started and stay queued: 2, 3" in caplog.text
    assert "Left running: history downloads 1" in caplog.text
    assert not runner.submit(4, "https://x", "T", "e")
    assert "History download 4 stays queued: the server stops" in caplog.text
    (tmp_path / "gate").write_text("go\n")
    eventually((tmp_path / "done-1").exists)
    eventually(lambda: threads() == [])
    assert not (tmp_path / "began-2").exists()
    assert runner.stats()["waiting"] == 0 and runner.stop(5)


def test_a_link_that_a_thread_takes_as_the_stop_comes_has_run_or_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "webhook")
    between = 0
    for _ in range(200):  # until the stop came between taking a link and starting its child at least once
        if between:
            break
        runner = DownloadRunner(Template.parse("true {id}"), tmp_path)
        runner.start()
        stop = threading.Thread(target=runner.stop, args=(5,))
        with runner._starting:
            for number in range(6):
                assert runner.submit(number, "https://x", "T", "e")
            eventually(lambda: runner.stats()["waiting"] == 2)
            stop.start()
        stop.join()
        eventually(lambda: threads() == [])
        stats = runner.stats()
        assert stats["succeeded"] == stats["started"]
        left = re.findall(r"(\d+) history downloads were not started", caplog.text)
        between = len(re.findall(r"History download \d+ stays queued: the server stops", caplog.text))
        assert stats["started"] + sum(map(int, left)) + between == 6, stats
        caplog.clear()
    assert between


def test_links_beyond_the_room_are_logged_and_not_lost_silently(tmp_path, caplog):
    runner = DownloadRunner(Template.parse("printf '%s' {url} > out-{id}"), tmp_path, room=5)
    assert [runner.submit(n, "https://x", "T", "e") for n in range(8)] == [True] * 5 + [False] * 3
    assert runner.stats()["dropped"] == 3
    assert "History download 5 stays queued: too many are waiting" in caplog.text
    runner.start()  # what was taken before the start runs
    eventually(lambda: finished(runner) == 5)
    assert runner.submit(99, "https://x", "T", "e")
    eventually(lambda: finished(runner) == 6)
    assert runner.stop(5)


def test_a_command_that_cannot_be_started_is_logged_and_the_next_one_is_tried(tmp_path, caplog):
    gone = tmp_path / "gone"
    with running("printf x > out-{id}", gone) as runner:
        runner.submit(1, "https://x", "T", "e")
        eventually(lambda: finished(runner) == 1)
        gone.mkdir()
        runner.submit(2, "https://x", "T", "e")
        eventually(lambda: finished(runner) == 2)
    assert "History download 1 could not be started: FileNotFoundError" in caplog.text
    assert (gone / "out-2").exists()


def test_the_threads_have_their_name_and_are_gone_after_the_stop(tmp_path):
    with running("true", tmp_path):
        assert threads() == ["HistoryDownloads"] * 4
    eventually(lambda: threads() == [])
    assert DownloadRunner(Template.parse("true"), tmp_path).stop(0)


def test_the_output_of_a_command_holds_no_pipe_of_the_server_open(tmp_path):
    """A service manager that reads the server's output to its end must not wait for a download."""
    (tmp_path / "noise.sh").write_text("echo $$ > pid-$1; echo noise; exec sleep 60")
    code = (
        "import pathlib, sys, time\nfrom data_pipeline.history.command import DownloadRunner, Template\n"
        "cwd = pathlib.Path(sys.argv[1])\ntemplate = Template.parse('sh noise.sh {id}')\n"
        "runner = DownloadRunner(template, cwd)\n"
        "runner.start(); runner.submit(1, 'https://x', 'T', 'e')\n"
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
