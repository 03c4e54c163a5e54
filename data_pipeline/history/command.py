"""HISTORY_DOWNLOAD_COMMAND: the operator's shell command, run once for each queued history link.

The command goes to `/bin/sh -c` once and for all as `Template.parse` made it
at the start; the values of a link reach it in the environment only, as
GEX_ID, GEX_URL, GEX_TICKER and GEX_ENDPOINT.
"""

import collections
import logging
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

from data_pipeline.config import ConfigError
from data_pipeline.history import shell_rules
from data_pipeline.history.shell_scanner import Scanner
from data_pipeline.history.shell_template import SETTING, VARIABLES, Placeholder, split

logger = logging.getLogger("webhook")

SHELL = "/bin/sh"
# Linux takes no more than 128 KiB in one variable or argument.
VALUE_LIMIT = 100 << 10


class UnfitValue(Exception):
    """A value that cannot be handed to a command; the text names it without showing it."""


@dataclass(frozen=True)
class Template:
    """A command that was found to be safe; `text` is what the shell gets."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template with {id} {url} {ticker} {endpoint}, braces doubled as for str.format.

        Raises ConfigError with one line, the reason and the place, for what
        str.format would refuse, for a placeholder in a place that is not
        safe, and for what the shell says is no command.
        """
        items = split(text)
        # The operator's text alone, in which names of variables are looked for.
        command = own = "".join(item if isinstance(item, str) else " " for item, _ in items)
        if any(isinstance(item, Placeholder) for item, _ in items) or any(name in own for name in VARIABLES.values()):
            scanner = Scanner(items)
            shell_rules.judge(scanner.commands, own)
            command = scanner.text
        if not command.strip():
            raise ConfigError(f"{SETTING}: there is no command in it")
        _check_grammar(command)
        return cls(command)

    def environment(self, job_id: int, url: str, ticker: str, endpoint: str) -> dict[bytes, bytes]:
        """What the child finds in its environment, UTF-8; a lone surrogate as the three bytes it would be there.

        Raises UnfitValue for a NUL character and for more than VALUE_LIMIT bytes.
        """
        values = {"id": str(job_id), "url": url, "ticker": ticker, "endpoint": endpoint}
        made = dict(os.environb)
        for name, value in values.items():
            encoded = value.encode("utf-8", "surrogatepass")
            if b"\0" in encoded:
                raise UnfitValue(f"its {name} holds a NUL character")
            if len(encoded) > VALUE_LIMIT:
                raise UnfitValue(f"its {name} has {len(encoded)} bytes, more than {VALUE_LIMIT}")
            made[VARIABLES[name].encode("ascii")] = encoded
        return made


def _check_grammar(command: str) -> None:
    """Let the shell read the command without running it."""
    arguments = [SHELL, "-n", "-c", command]
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise ConfigError(f"{SETTING}: the shell refuses it: {ascii(said)}")


class DownloadRunner:
    """Runs the command for one link after another, at most `at_once` at a time, from a thread named HistoryDownloads.

    cwd: the folder the command runs in (the project root).  A child has a
    session of its own, /dev/null for its input and its outputs (a command
    that is to leave a log redirects itself), and the server's environment.
    Links wait in memory up to `memory` bytes of values; one beyond that is
    logged and stays in its queue in the database, as does one that was still
    waiting at the stop.  What runs at the stop is left to finish.
    """

    def __init__(self, template: Template, cwd: pathlib.Path, at_once: int = 4, memory: int = 64 << 20):
        self._template = template
        self._cwd = cwd
        self._at_once = at_once
        self._memory = memory
        self._lock = threading.Lock()  # guards the queue, its size, the counts and _stopping
        self._waiting = collections.deque()  # (job id, values, bytes)
        self._waiting_bytes = 0
        self._counts = dict.fromkeys(("started", "succeeded", "failed", "refused", "dropped"), 0)
        self._stopping = False
        self._running = {}  # pidfd -> (job id, child); only the thread touches it
        self._running_now = 0
        self._wake_read, self._wake_write = -1, -1
        self._thread = None

    def start(self) -> None:
        """Start the thread; links submitted before are run then."""
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._loop, name="HistoryDownloads", daemon=True)
        self._thread.start()

    def submit(self, job_id: int, url: str, ticker: str, endpoint: str) -> bool:
        """Hand in one link; False (and a log line) if its values do not fit or there is no room. Never waits."""
        values = (url, ticker, endpoint)
        size = sum(map(sys.getsizeof, values))
        try:
            self._template.environment(job_id, *values)
        except UnfitValue as problem:
            return self._turn_away(job_id, "refused", f"is not run: {problem}")
        with self._lock:
            full = self._waiting_bytes + size > self._memory
            if not full and not self._stopping:
                self._waiting.append((job_id, values, size))
                self._waiting_bytes += size
                self._wake()
                return True
        why = "too many are waiting" if full else "the server stops"
        return self._turn_away(job_id, "dropped", f"stays queued: {why}")

    def stop(self, timeout: float) -> bool:
        """Start no more children and end the thread; True if it ended within `timeout` seconds."""
        with self._lock:
            self._stopping = True
            left = [job_id for job_id, _, _ in self._waiting]
            self._wake()
        if left:
            logger.warning("%d history downloads were not started and stay queued: %s", len(left), _some(left))
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stats(self) -> dict:
        """Counts since the start; how many wait and run now."""
        with self._lock:
            return {**self._counts, "waiting": len(self._waiting), "running": self._running_now}

    def _turn_away(self, job_id: int, count: str, why: str) -> bool:
        self._count(count)
        logger.error("History download %d %s", job_id, why)
        return False

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _wake(self) -> None:
        if self._wake_write >= 0:
            try:
                os.write(self._wake_write, b"x")
            except BlockingIOError:
                pass  # so many wake-ups are pending that one more says nothing

    # In the thread

    def _loop(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._stopping:
                self._start_what_fits(selector)
                for key, _ in selector.select():
                    if key.fd == self._wake_read:
                        os.read(self._wake_read, 65536)
                    else:
                        selector.unregister(key.fd)
                        self._reap(key.fd)
            self._let_go()

    def _start_what_fits(self, selector) -> None:
        while len(self._running) < self._at_once:
            with self._lock:
                if self._stopping or not self._waiting:
                    return
                job_id, values, size = self._waiting.popleft()
                self._waiting_bytes -= size
            try:
                pidfd, child = self._spawn(job_id, values)
            except (OSError, ValueError, subprocess.SubprocessError) as problem:
                self._count("failed")
                logger.error("History download %d could not be started: %s", job_id, type(problem).__name__)
                continue
            self._running[pidfd] = (job_id, child)
            selector.register(pidfd, selectors.EVENT_READ)
            with self._lock:
                self._counts["started"] += 1
                self._running_now += 1

    def _spawn(self, job_id: int, values: tuple[str, str, str]) -> tuple[int, subprocess.Popen]:
        """A child and the descriptor that tells of its end.  Raises OSError, and then none is left."""
        child = subprocess.Popen(
            [SHELL, "-c", self._template.text],
            cwd=self._cwd,
            env=self._template.environment(job_id, *values),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return os.pidfd_open(child.pid), child
        except OSError:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise

    def _reap(self, pidfd: int) -> None:
        job_id, child = self._running.pop(pidfd)
        os.close(pidfd)
        code = child.wait()
        with self._lock:
            self._running_now -= 1
            self._counts["failed" if code else "succeeded"] += 1
        if code < 0:
            logger.error("History download %d was ended by signal %d", job_id, -code)
        else:
            level = logging.ERROR if code else logging.INFO
            logger.log(level, "History download %d ended with exit code %d", job_id, code)

    def _let_go(self) -> None:
        """Leave the children that still run to themselves; init reaps them once this process is gone."""
        if self._running:
            ids = [job_id for job_id, _ in self._running.values()]
            logger.warning("Left running: history downloads %s", _some(ids))
        for pidfd, (_, child) in self._running.items():
            os.close(pidfd)
            child.returncode = 0  # or Popen would warn of a child that nobody waits for
        self._running.clear()
        with self._lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:20])) + (" …" if len(ids) > 20 else "")
