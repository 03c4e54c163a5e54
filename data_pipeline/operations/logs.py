"""Log lines: the contract's format, one line a message, whatever a client sent.

Also as JSON, one object a line, and with systemd's priorities where standard
error goes to the journal.
"""

import json
import logging
import re
import sys
import time

from data_pipeline.operations import systemd

FORMAT = "%(asctime)s %(levelname)s %(message)s"

# Control characters, C1 ones too, line and paragraph separators, marks that turn the direction of
# text, and lone surrogates, which no terminal or file takes.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TRACEBACK = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

# Python's levels to those of syslog(3), which journald knows.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def escaped(text: str, unsafe: re.Pattern = _UNSAFE) -> str:
    r"""The text with what could break or forge a line as \n, \x1b, \u2028 …."""
    return unsafe.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


class LineFormatter(logging.Formatter):
    """The contract's format on one line; only a traceback has lines of its own."""

    def __init__(self, fmt: str = FORMAT):
        super().__init__(fmt)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))

    def formatException(self, info) -> str:
        # The exception's text may be a client's, with line breaks that look like log lines.
        return _indented(escaped(super().formatException(info), _UNSAFE_IN_TRACEBACK))

    def formatStack(self, stack: str) -> str:
        return _indented(escaped(stack, _UNSAFE_IN_TRACEBACK))


class JournalFormatter(LineFormatter):
    """For journald, which has the time itself and reads `<N>` at the start of each line as its priority."""

    def __init__(self):
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


def configure(debug: bool, json_lines: bool, stream=None) -> None:
    """All logging to `stream`, by default standard error; DEBUG where `debug`, else INFO.

    debug is for the bridge's own logger: what libraries log at DEBUG, such as
    addresses with keys in them, stays out.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if json_lines:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(JournalFormatter() if systemd.under_journald(stream) else LineFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("webhook").setLevel(logging.DEBUG if debug else logging.INFO)


def _indented(text: str) -> str:
    """No line of a traceback may look like one that starts a message."""
    return "\n".join(line if line.startswith("Traceback (") else "  " + line for line in text.split("\n"))
