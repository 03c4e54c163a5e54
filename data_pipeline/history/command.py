"""HISTORY_DOWNLOAD_COMMAND: the operator's shell command, run once for each queued history link.

The command goes to `/bin/sh -c` once and for all as `Template.parse` made it
at the start; the values of a link reach it in the environment only, as
GEX_ID, GEX_URL, GEX_TICKER and GEX_ENDPOINT.
"""

import contextlib
import logging
import os
import pathlib
import queue
import re
import subprocess
import threading
from dataclasses import dataclass

from data_pipeline.config import SETTINGS, ConfigError
from data_pipeline.history.shell_template import SETTING, VARIABLES, safe_command

logger = logging.getLogger("webhook")

SHELL = "/bin/sh"
# Bytes of one value.  What waits in memory is bounded by this and by the number of links that wait.
VALUE_LIMIT = 8 << 10
# Key and token of the server are no affair of a download.
SECRETS = frozenset(setting.name.encode() for setting in SETTINGS if setting.secret)


class UnfitValue(Exception):
    """A value that is not handed to a command; the text names it without showing it."""


@dataclass(frozen=True)
class Template:
    """A command that was found to be safe; `text` is what the shell gets."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template with {id} {url} {ticker} {endpoint}, braces doubled as for str.format.

        Raises ConfigError with one line for what `safe_command` refuses and for what is no command to the shell.
        """
        command = safe_command(text)
        # With -n the shell reads the command and runs nothing.
        done = subprocess.run([SHELL, "-n", "-c", command], stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
            raise ConfigError(f"{SETTING}: the shell refuses it: {ascii(said)}")
        return cls(command)


def fit_values(job_id: int, url: str, ticker: str, endpoint: str) -> dict[bytes, bytes]:
    """The variables that carry a link's values, in UTF-8 (a lone surrogate as the three bytes it would be there).

    Raises UnfitValue for what no command may get: a NUL character, more than VALUE_LIMIT bytes, a text that begins
    with `-`, which programs take for an option, and a url that is no http(s) address.
    """
    made = {}
    for name, value in {"id": str(job_id), "url": url, "ticker": ticker, "endpoint": endpoint}.items():
        encoded = value.encode("utf-8", "surrogatepass")
        if b"\0" in encoded:
            raise UnfitValue(f"its {name} holds a NUL character")
        if len(encoded) > VALUE_LIMIT:
            raise UnfitValue(f"its {name} has {len(encoded)} bytes, more than {VALUE_LIMIT}")
        if value.startswith("-"):
            raise UnfitValue(f"its {name} begins with -, which a program takes for an option")
        made[VARIABLES[name].encode()] = encoded
    if not re.match(r"https?://[^\s/]", url):
        raise UnfitValue("its url is no http:// or https:// address")
    return made


def child_environment(values: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What a child finds: the server's environment without its secrets, and the values."""
    return {name: value for name, value in os.environb.items() if name not in SECRETS} | values


class DownloadRunner:
    """Runs the command for one link after another, on `at_once` threads named HistoryDownloads.

    cwd: the folder the command runs in (the project root).  A child has a session of its own and /dev/null for its
    input and its outputs (a command that is to leave a log redirects itself).  Up to `room` links wait in memory; one
    beyond that is logged and stays in its queue in the database, as does one that was still waiting at the stop.  What
    runs at the stop is left to finish.
    """

    def __init__(self, template: Template, cwd: pathlib.Path, at_once: int = 4, room: int = 4000):
        self._template = template
        self._cwd = cwd
        self._at_once = at_once
        # None asks a thread to end.
        self._waiting: queue.Queue[tuple[int, dict[bytes, bytes]] | None] = queue.Queue(room)
        self._lock = threading.Lock()  # guards the counts, the ids that run, and that nothing is put in after a stop
        self._counts = dict.fromkeys(("started", "succeeded", "failed", "refused", "dropped"), 0)
        self._running: set[int] = set()
        self._stopping = False
        self._starting = threading.Lock()  # held while a child is started, so that none is once the stop has it

    def start(self) -> None:
        """Start the threads; links submitted before are run then."""
        for _ in range(self._at_once):
            threading.Thread(target=self._run, name="HistoryDownloads", daemon=True).start()

    def submit(self, job_id: int, url: str, ticker: str, endpoint: str) -> bool:
        """Hand in one link; False (and a log line) if its values are unfit or there is no room.  Never waits."""
        try:
            job = job_id, fit_values(job_id, url, ticker, endpoint)
        except UnfitValue as problem:
            return self._turn_away(job_id, "refused", f"is not run: {problem}")
        with self._lock:
            why = "the server stops" if self._stopping else "too many are waiting"
            if not self._stopping and not self._waiting.full():
                self._waiting.put_nowait(job)
                return True
        return self._turn_away(job_id, "dropped", f"stays queued: {why}")

    def stop(self, timeout: float) -> bool:
        """Start no more children; True if none is left running.  It waits for none, whatever `timeout` in seconds."""
        left = []
        with self._starting, self._lock:
            self._stopping = True
            running = sorted(self._running)
            with contextlib.suppress(queue.Empty):
                while job := self._waiting.get_nowait():
                    left.append(job[0])
            self._waiting.put_nowait(None)
        if left:
            logger.warning("%d history downloads were not started and stay queued: %s", len(left), _some(left))
        if running:
            logger.warning("Left running: history downloads %s", _some(running))
        return not running

    def stats(self) -> dict[str, int]:
        """Counts since the start; how many wait and run now."""
        with self._lock:
            waiting = 0 if self._stopping else self._waiting.qsize()
            return {**self._counts, "waiting": waiting, "running": len(self._running)}

    def _turn_away(self, job_id: int, count: str, why: str) -> bool:
        with self._lock:
            self._counts[count] += 1
        logger.error("History download %d %s", job_id, why)
        return False

    def _run(self) -> None:
        while job := self._waiting.get():
            self._download(*job)
        self._waiting.put(None)  # for the next thread

    def _download(self, job_id: int, values: dict[bytes, bytes]) -> None:
        with self._starting:
            if self._stopping:
                self._turn_away(job_id, "dropped", "stays queued: the server stops")
                return
            try:
                child = subprocess.Popen(
                    [SHELL, "-c", self._template.text],
                    cwd=self._cwd,
                    env=child_environment(values),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except Exception as problem:  # whatever it is, this thread has the next link to run
                self._turn_away(job_id, "failed", f"could not be started: {type(problem).__name__}")
                return
            with self._lock:
                self._counts["started"] += 1
                self._running.add(job_id)
        code = child.wait()
        with self._lock:
            self._running.discard(job_id)
            self._counts["failed" if code else "succeeded"] += 1
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        logger.log(logging.ERROR if code else logging.INFO, "History download %d %s", job_id, how)


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:20])) + (" …" if len(ids) > 20 else "")
