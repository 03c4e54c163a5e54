"""Log lines: the contract's format, one line a message, whatever a client sent.

Also as JSON, one object a line, and with systemd's priorities where standard
error goes to the journal.  Nobody waits for the log: see `LogThread`.
"""

import json
import logging
import os
import re
import sys
import threading
import time
from typing import Any, TextIO

from data_pipeline.operations import systemd

FORMAT = "%(asctime)s %(levelname)s %(message)s"
QUEUE_BYTES = 4 << 20  # of lines that wait to be written
FLUSH_TIME = 0.5  # s

# Control characters, C1 ones too, line and paragraph separators, marks that turn the direction of
# text, and lone surrogates, which no terminal or file takes.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TRACEBACK = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

# Python's levels to those of syslog(3), which journald knows.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def escaped(text: str, unsafe: re.Pattern[str] = _UNSAFE) -> str:
    r"""The text with what could break or forge a line as \n, \x1b, \u2028 …."""
    return unsafe.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


class LineFormatter(logging.Formatter):
    """The contract's format on one line; only a traceback has lines of its own."""

    def __init__(self, fmt: str = FORMAT):
        super().__init__(fmt)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))

    def formatException(self, info: Any) -> str:
        # The exception's text may be a client's, with line breaks that look like log lines.
        return _indented(escaped(super().formatException(info), _UNSAFE_IN_TRACEBACK))

    def formatStack(self, stack: str) -> str:
        return _indented(escaped(stack, _UNSAFE_IN_TRACEBACK))


class JournalFormatter(LineFormatter):
    """For journald, which has the time itself and reads `<N>` at the start of each line as its priority."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{second}.{int(record.msecs):03d}+00:00",
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def priority(level: int) -> int:
    """The syslog priority of a Python log level."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


GATHER = 0.02  # s, between the first line and the write


class LogThread(logging.Handler):
    """Lines go to a file through a bounded queue and a thread of its own, so that nobody waits for who reads them.

    fd: where to, None for nowhere.  Where the queue is full (nobody reads the
    pipe, the terminal is stopped), or a write fails (the disk is full), lines
    are dropped and counted in `dropped`; once lines get through again, one of
    them says how many there were.
    """

    def __init__(self, fd: int | None, formatter: logging.Formatter):
        super().__init__()
        self.setFormatter(formatter)
        self._fd = fd
        self._changed = threading.Condition()  # guards what follows
        self._lines: list[bytes] = []
        self._waiting = 0  # bytes in `_lines`
        self._busy = False
        self.dropped = self._told = 0
        # A daemon: at the end it may hang in a write that never comes back.
        threading.Thread(target=self._run, name="Log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:  # a message that does not fit its arguments costs a line, never the caller
            line = escaped(f"a line that cannot be written: {record.msg!r}").encode() + b"\n"
        with self._changed:
            if self._lines and self._waiting + len(line) > QUEUE_BYTES:
                self.dropped += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            if len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_TIME) -> None:
        """Wait until everything is written, but not longer than `timeout` seconds; also called at exit."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
            # Lines that come together are one write: a thread that woke for each took a tenth of a request's time.
            time.sleep(GATHER)
            with self._changed:
                lines, self._lines, self._waiting, self._busy = self._lines, [], 0, True
            if self._write(b"".join(lines)):
                if (lost := self.dropped - self._told) and self._write(self._say_dropped(lost)):
                    self._told += lost
            else:
                with self._changed:
                    self.dropped += len(lines)

    def _write(self, content: bytes) -> bool:
        rest = memoryview(content)
        try:
            while rest and self._fd is not None:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            return False
        return self._fd is not None

    def _say_dropped(self, count: int) -> bytes:
        text = f"{count} lines of the log were dropped: nobody read them, or they could not be written"
        record = logging.LogRecord("webhook", logging.WARNING, "", 0, text, None, None)
        return (self.format(record) + "\n").encode()


def configure(level: str, json_lines: bool, stream: TextIO | None = None) -> None:
    """All logging to `stream` (one with a descriptor), by default standard error.

    level: DEBUG, INFO …, the least that is written.  DEBUG is for the bridge's
    own logger: what libraries log at DEBUG, such as addresses with keys in
    them, stays out.
    """
    stream = stream or sys.stderr
    formatter: logging.Formatter = JsonFormatter()
    if not json_lines:
        formatter = JournalFormatter() if systemd.under_journald(stream) else LineFormatter()
    root = logging.getLogger()
    for old in root.handlers[:]:
        old.flush()
        root.removeHandler(old)
    # Python has no stream where the descriptor was closed at the start.
    root.addHandler(LogThread(stream.fileno() if stream else None, formatter))
    root.setLevel(max(logging.INFO, logging.getLevelName(level)))
    logging.getLogger("webhook").setLevel(level)


def flush() -> None:
    """Wait a moment for what is logged to be written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def dropped() -> int:
    """Lines that the log has lost since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogThread))


def _indented(text: str) -> str:
    """No line of a traceback may look like one that starts a message."""
    return "\n".join(line if line.startswith("Traceback (") else "  " + line for line in text.split("\n"))
