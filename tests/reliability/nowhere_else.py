"""Nowhere else: no payload makes a file outside DATA_DIR, runs a command, reaches a host that was not allowed, or shows
a secret in the log or in a file.

Tickers, endpoints, timestamps and links full of path and shell tricks go to
a real bridge that has secrets, a poller, Discord and a download command;
strace writes down every file that server, writer and their children open for
writing, every program they start and every address they connect to.
"""

import pathlib
import random

from tests.helpers.support import eventually, gex_payload, read
from tests.reliability.trace import Trace, has_ended, traced

ROUNDS, SHORT = 3000, 60
COMMAND = "true {id} {url} '{ticker}' \"{endpoint}\""
SECRETS = {"GEXBOT_API_KEY": "secret-of-gexbot-8f1e", "DISCORD_BOT_TOKEN": "secret-of-discord-77ab"}
# Where nothing listens.
SERVICES = {
    "GEXBOT_API_URL": "http://127.0.0.1:9",
    "DISCORD_API_URL": "http://127.0.0.1:9/api",
    "DISCORD_CHANNEL_ID": "1",
}
PATHS = [
    "../../x",
    "..",
    ".",
    "...",
    "/",
    "/tmp/gex-bridge-escaped",
    "a/b",
    "a\\..\\b",
    "..\\..\\x",
    "%2e%2e",
    "%2e%2e%2fx",
    "..%2f..",
    "a\0b",
    "\0",
    "x" * 5000,
    "é" * 300,
    "\ud800",
    "\u202e",
    "line\nend\r\n",
    "\x1b[2J",
    " ",
    "~",
    "~root",
    "CON",
    ".hidden",
    "-rf",
    "*",
    "{id}",
    "latest.json",
    "..;/",
    "．．／x",
    "a" * 255 + "/../../x",
]
SHELL = [
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY",
    "'; touch CANARY; '",
    '"; touch CANARY; "',
    "\n touch CANARY\n",
    "| touch CANARY",
    "&& touch CANARY",
    "$((touch CANARY))",
    "' $(touch CANARY) '",
    '"$(touch CANARY)"',
    "${IFS}touch${IFS}CANARY",
    "\\'; touch CANARY #",
    "> CANARY",
    "'\"`touch CANARY`\"'",
]
HOSTS = [
    "http://169.254.169.254/latest",
    "https://example.com/x",
    "file:///etc/passwd",
    "http://[::1]:1/",
    "gopher://127.0.0.1:70/x",
]


def payloads(rounds: int, canary: pathlib.Path, chance: random.Random):
    """(path, payload): each trick in each place, then `rounds` with tricks in all places."""
    tricks = [trick.replace("CANARY", str(canary)) for trick in PATHS + SHELL + HOSTS]
    for trick in tricks:
        yield "/gex", gex_payload(trick, endpoint=trick)
        yield "/gex", gex_payload("SPX", timestamp=trick)
        yield "/gex_history_url", {"url": trick, "ticker": trick, "endpoint": trick}
    for _ in range(rounds):
        one, two, three = chance.choices(tricks, k=3)
        yield chance.choice(
            [
                ("/gex", gex_payload(one + two, timestamp=three, endpoint=two)),
                ("/gex_history_url", {"url": one + two, "ticker": two + three, "endpoint": three}),
                ("/uw", {"topic": "gex", "ticker": one, "endpoint": two, "payload": {"timestamp": three, "spot": 1}}),
                (
                    "/uw",
                    {
                        "topic": "option_trades_super_algo",
                        "alert": {"symbol": one, "action": two},
                        "executions": [{"broker": three}],
                    },
                ),
            ]
        )


def run(rounds: int, folder: pathlib.Path, seed: int = 11) -> str:
    canary, output = folder / "canary", folder / "trace"
    bridge = traced(folder / "data", output, STOP_TIMEOUT="8", HISTORY_DOWNLOAD_COMMAND=COMMAND, **SECRETS, **SERVICES)
    bridge.flags = ("--poll-interval", "0.5", "--debug")
    accepted = links = 0
    with bridge:
        for path, payload in payloads(rounds, canary, random.Random(seed)):
            status = bridge.post(path, payload)
            assert status in (200, 202, 400), f"{status} for {payload!r}"
            accepted += status != 400
            links += path == "/gex_history_url" and status == 202
        assert bridge.stop() == 0
    eventually(lambda: has_ended(output), "strace has written everything down")
    trace = Trace(output.read_text())
    assert not canary.exists(), "a command of a client ran"
    opened = _only_below(trace, folder / "data")
    _only_our_programs(trace)
    assert _addresses(trace) <= {"127.0.0.1"}, f"connected to {_addresses(trace)}"
    _no_secrets(bridge)
    assert read(bridge.database, "SELECT count(*) FROM gex_history_queue") == [(links,)]
    return (
        f"{accepted:,} payloads with tricks in them taken, {links:,} links given to a command:"
        f" {opened:,} files opened for"
        f" writing, 0 outside DATA_DIR; 0 commands of a client run, 0 foreign addresses, 0 secrets shown"
    )


def _only_below(trace: Trace, data: pathlib.Path) -> int:
    count = 0
    for call in trace.calls:
        writes = call.name == "openat" and any(flag in call.arguments for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        if call.result >= 0 and (writes or call.name in ("rename", "link", "mkdir", "unlink")):
            count += writes
            for path in (text.decode("utf-8", "surrogateescape") for text in call.strings):
                # Not only by its name: nothing below may lead out again.
                inside = pathlib.Path(path).resolve().is_relative_to(data)
                assert inside or path.startswith(("/dev/", "/proc/")) or "__pycache__" in path, (
                    f"{call.name} of {path!r}"
                )
    return count


def _only_our_programs(trace: Trace) -> None:
    for call in trace.calls:
        if call.name == "execve" and call.result == 0:
            program, *arguments = call.strings
            ours = b"run_server.py" in b" ".join(arguments) or b"data_pipeline.writer" in arguments
            assert ours or program in (b"/bin/sh", b"/usr/bin/true", b"/bin/true"), (
                f"{program!r} was run with {arguments!r}"
            )


def _addresses(trace: Trace) -> set[str]:
    return {
        call.strings[-1].decode()
        for call in trace.calls
        if call.name == "connect" and "sa_family=AF_INET" in call.arguments and call.strings
    }


def _no_secrets(bridge) -> None:
    files = [bridge.log_path, *(path for path in bridge.data_dir.rglob("*") if path.is_file())]
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} stands in {path}"
